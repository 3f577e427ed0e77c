// The timeline: one lane for each process, on a canvas that can be zoomed.

const LANE = 34, AXIS = 22, MARGIN = 118, MARKS = 16;
const FLAGS = { checkpoint: "C", evaluation: "E", fault: "!", dead: "✕", draining: "↓", scaled: "±", resumed: "R" };

function drawTimeline(data) {
  const canvas = document.querySelector("#picture canvas");
  if (!canvas) return;
  const told = document.getElementById("told"), pen = canvas.getContext("2d");
  const height = MARKS + data.lanes.length * LANE + AXIS;
  const whole = [0, Math.max(data.end, 0.001)];
  let [from, to] = whole, dragged = null, width = 0;
  const x = (time) => MARGIN + ((time - from) / (to - from)) * (width - MARGIN);
  const timeAt = (at) => from + ((at - MARGIN) / (width - MARGIN)) * (to - from);

  function draw() {
    const dense = window.devicePixelRatio || 1, look = getComputedStyle(document.documentElement);
    const color = (name) => look.getPropertyValue(`--${name}`).trim();
    width = canvas.parentElement.clientWidth;
    canvas.width = width * dense;
    canvas.height = height * dense;
    canvas.style.height = `${height}px`;
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.font = "12px system-ui, sans-serif";
    data.lanes.forEach((lane, row) => drawLane(lane, MARKS + row * LANE, color));
    drawMarks(color);
    drawAxis(color);
    if (dragged && dragged.to !== dragged.from) {
      pen.fillStyle = color("selected");
      pen.globalAlpha = 0.5;
      pen.fillRect(Math.min(dragged.from, dragged.to), 0, Math.abs(dragged.to - dragged.from), height - AXIS);
      pen.globalAlpha = 1;
    }
  }

  function drawLane(lane, top, color) {
    const bottom = top + LANE - 8;
    pen.fillStyle = color("card");
    pen.fillRect(MARGIN, top, width - MARGIN, bottom - top);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN, top - 2, width - MARGIN, LANE);
    pen.clip();
    const [begins = [], ends = [], kinds = []] = lane.spans;
    const span = (at, high) => {
      const left = Math.max(x(begins[at]), MARGIN), right = Math.min(x(ends[at]), width);
      pen.fillStyle = color(`kind-${kinds[at]}`) || color("soft");
      if (right >= MARGIN && left <= width) pen.fillRect(left, high, Math.max(right - left, 0.6), bottom - high);
    };
    begins.forEach((_, at) => { if (kinds[at] !== "load") span(at, kinds[at] === "serving" ? bottom - 2 : top); });
    drawCounts(lane.counts, top, bottom, color);
    begins.forEach((_, at) => { if (kinds[at] === "load") span(at, top); });
    pen.restore();
    pen.fillStyle = color("ink");
    pen.fillText(fitted(lane.name), 0, top + 17);
  }

  function drawCounts([times = [], counts = []], top, bottom, color) {
    if (!times.length) return;
    const highest = Math.max(1, counts.reduce((most, count) => Math.max(most, count), 0));
    pen.fillStyle = color("line-0");
    pen.globalAlpha = 0.75;
    for (let at = before(times, from); at < times.length && times[at] <= to; at++) {
      const left = Math.max(x(times[at]), MARGIN), right = Math.min(x(times[at + 1] ?? data.end), width);
      const high = (counts[at] / highest) * (bottom - top);
      if (right > left) pen.fillRect(left, bottom - high, right - left, high);
    }
    pen.globalAlpha = 1;
  }

  function drawMarks(color) {
    for (const [time, , kind] of data.marks) {
      if (!FLAGS[kind] || time < from || time > to) continue;
      const isBad = kind === "fault" || kind === "dead";
      pen.fillStyle = isBad ? color("bad") : color("soft");
      pen.fillRect(x(time), MARKS - 4, 1, height - AXIS - MARKS);
      pen.fillText(FLAGS[kind], Math.min(x(time) - 3, width - 10), 11);
    }
  }

  function drawAxis(color) {
    const parts = Math.max(2, Math.min(10, Math.floor((width - MARGIN) / 90)));
    pen.fillStyle = color("soft");
    for (const time of moments(from, to, parts)) {
      pen.fillRect(x(time), height - AXIS - 4, 1, 4);
      pen.textAlign = "center";
      pen.fillText(clock(time, (to - from) / parts), Math.min(x(time), width - 24), height - 5);
    }
    pen.textAlign = "left";
  }

  function fitted(name) {
    while (name.length > 3 && pen.measureText(name).width > MARGIN - 8) name = `${name.slice(0, -2)}…`;
    return name;
  }

  function look(begin, end) {
    const span = Math.min(Math.max(end - begin, 0.01), whole[1]);
    from = Math.min(Math.max(begin, 0), whole[1] - span);
    to = from + span;
    told.hidden = true;
    draw();
  }

  // what is under the pointer, in words
  function under(at, row) {
    const time = timeAt(at), lane = data.lanes[row], lines = [];
    for (const [when, step, , text] of data.marks) if (Math.abs(x(when) - at) < 4) lines.push(`${text} (step ${step})`);
    if (!lane || at < MARGIN) return { lines: lane ? [lane.name, lane.what] : lines };
    const [begins = [], ends = [], kinds = [], texts = []] = lane.spans, [times = [], counts = []] = lane.counts;
    let step;
    begins.forEach((begin, place) => {
      if (time < begin || time > ends[place]) return;
      const text = texts[place] || kinds[place];
      lines.push(`${text}: ${clock(begin, 0.1)} to ${clock(ends[place], 0.1)}, ${short(ends[place] - begin)} s`);
      step = /step (\d+)/.exec(text)?.[1] ?? step;
    });
    const place = before(times, time);
    if (times.length && times[place] <= time) lines.push(`${counts[place]} ${lane.what}`);
    return { lines: [`${lane.name}, ${clock(time, 0.1)}`, ...lines], step };
  }

  const rowOf = (event) => Math.floor((event.offsetY - MARKS) / LANE);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    dragged = { from: event.offsetX, to: event.offsetX };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged) {
      dragged.to = event.offsetX;
      draw();
    }
    const lines = under(event.offsetX, rowOf(event)).lines;
    told.hidden = !lines.length;
    told.replaceChildren(...lines.map((text) => element("div", { text })));
    told.style.left = `${Math.max(0, Math.min(event.offsetX + 14, width - told.offsetWidth - 4))}px`;
    told.style.top = `${event.offsetY + 18}px`;
  });
  canvas.addEventListener("pointerleave", () => { told.hidden = true; });
  canvas.addEventListener("pointerup", (event) => {
    const drag = dragged;
    dragged = null;
    const [left, right] = drag ? [drag.from, drag.to].sort((a, b) => a - b) : [0, 0];
    if (right - left > 4) return look(timeAt(left), timeAt(right));
    const { step } = under(event.offsetX, rowOf(event));
    if (step) showStep(Number(step));
  });
  canvas.addEventListener("dblclick", () => look(...whole));
  canvas.addEventListener("keydown", (event) => {
    const span = to - from, middle = (from + to) / 2;
    const views = {
      ArrowLeft: [from - span / 4, to - span / 4], ArrowRight: [from + span / 4, to + span / 4],
      "+": [middle - span / 4, middle + span / 4], "-": [middle - span, middle + span],
    };
    if (!views[event.key]) return;
    event.preventDefault();
    look(...views[event.key]);
  });
  document.getElementById("whole").addEventListener("click", () => look(...whole));
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

// whole seconds, minutes or hours that divide the way from begin to end into about `count` parts
function moments(begin, end, count) {
  const sizes = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
  const step = sizes.find((size) => (end - begin) / size <= count);
  if (!step || end - begin < count) return ticks(begin, end, count);
  return Array.from({ length: count + 1 }, (_, place) => (Math.ceil(begin / step) + place) * step).filter((time) => time <= end);
}

// the place of the last entry that is not above `wanted`, or 0
function before(sorted, wanted) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= wanted) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

// seconds after the beginning as 1:02:03, or as 1:02:03.4 where `step`, the finest difference that counts, is short
function clock(time, step) {
  const rounded = step < 1 ? Math.floor(time * 10 + 1e-6) / 10 : Math.floor(time + 1e-6);
  const seconds = step < 1 ? (rounded % 60).toFixed(1).padStart(4, "0") : String(rounded % 60).padStart(2, "0");
  const minutes = Math.floor(rounded / 60) % 60, hours = Math.floor(rounded / 3600);
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
}
