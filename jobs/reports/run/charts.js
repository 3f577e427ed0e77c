// Small charts of metrics. A chart is drawn when its section is first seen, and its legend reads the step under the pointer.

const WIDTH = 340, HEIGHT = 170, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;
const SMOOTHED_FROM = 40; // points

function drawSections(sections) {
  for (const place of document.querySelectorAll("[data-section]")) {
    const panels = sections[Number(place.dataset.section)].panels;
    const draw = () => place.append(...panels.map(chart));
    if (place.closest("details")) place.closest("details").addEventListener("toggle", draw, { once: true });
    else draw();
  }
}

function chart(panel) {
  const lines = panel.stacked ? stacked(panel.lines) : panel.lines;
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const values = lines.flatMap((line) => [...line.y, ...(line.base || [])]).filter((value) => value !== null);
  const scale = scales(steps, values, panel.stacked);
  const image = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(panel) });
  image.append(...axes(scale), ...lines.flatMap((line, place) => drawn(line, place, scale)));
  const pointer = shape("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  image.append(pointer);
  const legend = legendOf(panel.lines);
  legend.read(null);
  const stepAt = (event) => {
    const box = image.getBoundingClientRect();
    const wanted = scale.step(((event.clientX - box.left) / box.width) * WIDTH);
    return steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), steps[0]);
  };
  image.addEventListener("mousemove", (event) => {
    const step = stepAt(event);
    pointer.setAttribute("x1", scale.x(step));
    pointer.setAttribute("x2", scale.x(step));
    pointer.setAttribute("visibility", "visible");
    legend.read(step);
  });
  image.addEventListener("mouseleave", () => {
    pointer.setAttribute("visibility", "hidden");
    legend.read(null);
  });
  image.addEventListener("click", (event) => showStep(stepAt(event)));
  const heading = element("h3", {}, panel.title, element("span", { class: "soft", text: panel.hint }));
  return element("figure", { class: "chart" }, heading, image, legend.node);
}

// each line on top of those before it, with their sum as its base
function stacked(lines) {
  let base = lines[0].x.map(() => 0);
  return lines.map((line) => {
    const y = line.y.map((value, place) => base[place] + (value || 0));
    const upon = { ...line, y, base };
    base = y;
    return upon;
  });
}

function scales(steps, values, fromZero) {
  let low = Math.min(...values.slice(0, 1)), high = low;
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (!values.length) [low, high] = [0, 1];
  if (fromZero || (low > 0 && low < high * 0.6)) low = 0;
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  else high += (high - low) * 0.04;
  const first = steps[0], last = steps[steps.length - 1], width = WIDTH - LEFT - RIGHT, height = HEIGHT - TOP - BOTTOM;
  const across = last - first || 1;
  return {
    x: (step) => LEFT + ((step - first) / across) * width,
    y: (value) => TOP + (1 - (value - low) / (high - low)) * height,
    step: (x) => first + ((x - LEFT) / width) * across,
    first, last, low, high,
  };
}

function axes(scale) {
  const found = [];
  for (const value of ticks(scale.low, scale.high, 4)) {
    found.push(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(value), y2: scale.y(value) }));
    found.push(shape("text", { x: LEFT - 5, y: scale.y(value) + 3.5, "text-anchor": "end", text: short(value) }));
  }
  for (const step of ticks(scale.first, scale.last, 5).filter(Number.isInteger)) {
    found.push(shape("text", { x: scale.x(step), y: HEIGHT - 5, "text-anchor": "middle", text: short(step, 6) }));
  }
  return found;
}

function drawn(line, place, scale) {
  const color = `stroke-${place % 8}`, dash = place >= 8 ? "4 2" : undefined;
  const points = line.x.map((step, at) => [step, line.y[at]]).filter((point) => point[1] !== null);
  if (line.base) {
    const back = line.x.map((step, at) => [step, line.base[at]]).reverse();
    return [shape("path", { class: `area fill-${place % 8}`, d: `${path(points, scale)}L${path(back, scale).slice(1)}Z` })];
  }
  if (points.length === 1 || (points.length <= 30 && line.name.startsWith("eval/"))) {
    const dots = points.map(([step, value]) => shape("circle", { class: `fill-${place % 8}`, cx: scale.x(step), cy: scale.y(value), r: 2.5 }));
    return [shape("path", { class: `line ${color}`, "stroke-dasharray": dash, d: path(points, scale) }), ...dots];
  }
  const raw = shape("path", { class: `line ${color}`, "stroke-dasharray": dash, d: path(points, scale) });
  if (points.length < SMOOTHED_FROM) return [raw];
  raw.classList.add("thin");
  return [raw, shape("path", { class: `line ${color}`, "stroke-dasharray": dash, d: path(smoothed(points), scale) })];
}

function path(points, scale) {
  return points.map(([step, value], at) => `${at ? "L" : "M"}${scale.x(step).toFixed(1)},${scale.y(value).toFixed(1)}`).join("");
}

// the mean over a window of a tenth of the points, cut at the ends
function smoothed(points) {
  const half = Math.max(1, Math.round(points.length / 20));
  return points.map(([step], at) => {
    const around = points.slice(Math.max(0, at - half), at + half + 1);
    return [step, around.reduce((sum, point) => sum + point[1], 0) / around.length];
  });
}

function legendOf(lines) {
  const numbers = lines.map(() => element("b"));
  const when = element("span", { class: "soft" });
  const entries = lines.map((line, place) =>
    element("span", { class: "entry" }, element("i", { class: `swatch fill-${place % 8}` }), `${line.name} `, numbers[place]));
  return {
    node: element("figcaption", {}, ...entries, when),
    read(step) { // the last value of each line where no step is given
      lines.forEach((line, place) => {
        const at = step === null ? line.y.findLastIndex((value) => value !== null) : line.x.indexOf(step);
        numbers[place].textContent = short(at < 0 ? null : line.y[at]);
      });
      when.textContent = step === null ? "" : `step ${step}`;
    },
  };
}

function described(panel) {
  const ends = panel.lines.map((line) => {
    const known = line.y.filter((value) => value !== null);
    return `${line.name} from ${short(known[0])} to ${short(known[known.length - 1])}`;
  });
  return `${panel.title}: ${ends.join(", ")}`;
}
