// The list of responses: filtered, sorted, and drawn only where it is seen. Shapes: N responses, G groups, T tokens.

const ROW = 26; // pixels; as in the style sheet
const KINDS = { float32: Float32Array, int32: Int32Array, uint32: Uint32Array, uint16: Uint16Array };
const SIGNS = { correct: "✓", incorrect: "✗", no_answer: "∅", malformed: "≠", timeout: "⏱", error: "!" };

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function readRollouts() {
  const [texts, numbers] = await Promise.all([unpacked("data-texts"), unpacked("data-numbers")]);
  const rollouts = JSON.parse(new TextDecoder().decode(texts));
  let at = 0;
  for (const [name, kind, length] of rollouts.arrays) {
    rollouts[name] = new KINDS[kind](numbers, at, length);
    at += Math.ceil((length * KINDS[kind].BYTES_PER_ELEMENT) / 4) * 4;
  }
  return withWhatFollows(rollouts);
}

// what can be computed from the columns
function withWhatFollows(all) {
  all.size = all.group.length;
  all.first = new Uint32Array(all.step.length + 1).fill(all.size); // by group: its first row
  for (let row = all.size - 1; row >= 0; row--) all.first[all.group[row]] = row;
  all.hasTokens = all.pieces.length > 0;
  all.tokens = new Float32Array(all.size).fill(NaN);
  all.surprise = new Float32Array(all.size).fill(NaN); // mean log-prob of a token
  all.oldest = new Int32Array(all.size).fill(-1); // version of the oldest token
  for (let row = 0; all.hasTokens && row < all.size; row++) {
    const begin = all.token_start[row], end = all.token_start[row + 1];
    all.tokens[row] = end - begin;
    let sum = 0, known = 0;
    for (let at = begin; at < end; at++) if (all.logprob[at] < 65535) { sum += all.logprob[at]; known++; }
    if (known) all.surprise[row] = -sum / known / 1000;
    const runs = all.run_version.subarray(all.run_start[row], all.run_start[row + 1]);
    if (runs.length) all.oldest[row] = Math.min(...runs);
  }
  return all;
}

function key(all, row) {
  const group = all.group[row];
  return `${all.step[group]}.${all.group_id[group]}.${all.index[row]}`;
}

const SORTS = {
  "": null,
  step: (all) => (row) => all.step[all.group[row]],
  "#": (all) => (row) => all.index[row],
  reward: (all) => (row) => all.reward[row],
  bonus: (all) => (row) => all.bonus[row],
  advantage: (all) => (row) => all.advantage[row],
  tokens: (all) => (row) => all.tokens[row],
  "log-prob": (all) => (row) => all.surprise[row],
};

class List {
  // all: the rollouts; open(row): shows one of them
  constructor(all, open) {
    Object.assign(this, { all, open, selected: -1, sort: "", down: true, order: [], rowsShown: new Map() });
    this.form = document.getElementById("filters");
    this.box = document.getElementById("list");
    this.inside = document.getElementById("rows");
    this.fillSelect("task", [...new Set(all.task)]);
    this.fillSelect("verdict", all.verdict_status.filter((text) => text !== null));
    this.fillSelect("outcome", all.outcome.filter((text) => text !== null));
    this.form.addEventListener("input", () => this.refresh());
    this.form.addEventListener("reset", () => setTimeout(() => this.refresh()));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.box.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()));
    this.inside.addEventListener("click", (event) => {
      const row = event.target.closest("[data-row]");
      if (row) this.select(Number(row.dataset.row));
    });
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.refresh();
  }

  fillSelect(name, texts) {
    const select = this.form.elements[name];
    select.append(element("option", { value: "", text: "all" }), ...texts.map((text) => element("option", { value: text, text })));
    select.parentElement.hidden = texts.length < 2;
  }

  // filters and sorts; the row that is open stays open
  refresh() {
    const { all } = this, fits = this.filter();
    const rows = [];
    for (let row = 0; row < all.size; row++) if (fits(row)) rows.push(row);
    this.order = this.form.elements.together.checked ? this.grouped(rows) : this.sorted(rows, "step");
    this.place = new Map();
    this.order.forEach((entry, at) => { if (entry >= 0) this.place.set(entry, at); });
    document.getElementById("found").textContent = `${rows.length.toLocaleString("en")} of ${all.size.toLocaleString("en")} responses.`;
    this.drawHeadings();
    this.inside.style.height = `${this.order.length * ROW}px`;
    for (const node of this.rowsShown.values()) node.remove();
    this.rowsShown.clear();
    this.draw();
  }

  filter() {
    const { all, form } = this, fields = form.elements, tests = [];
    const [from, to] = rangeOf(fields.step.value);
    fields.step.setCustomValidity(from === null ? "a step such as 12, or a range such as 10-20" : "");
    if (from) tests.push((row) => all.step[all.group[row]] >= from && all.step[all.group[row]] <= to);
    if (fields.task.value) tests.push((row) => all.task[all.group[row]] === fields.task.value);
    const is = (column, wanted) => (row) => all[column][all[`${column}_index`][row]] === wanted;
    if (fields.verdict.value) tests.push(is("verdict_status", fields.verdict.value));
    if (fields.outcome.value) tests.push(is("outcome", fields.outcome.value));
    if (fields.cut.checked) tests.push(is("finish_reason", "length"));
    const problem = fields.problem.value.trim().toLowerCase();
    if (problem) tests.push((row) => all.problem_id[all.group[row]].toLowerCase().includes(problem));
    const text = fields.text.value.toLowerCase();
    if (text) tests.push((row) => this.searched(row).includes(text) || this.searchedGroup(all.group[row]).includes(text));
    return (row) => tests.every((test) => test(row));
  }

  searched(row) {
    const { all } = this;
    this.words ??= new Array(all.size);
    return (this.words[row] ??= `${all.response_text[row] ?? ""}\n${all.verdict_answer[row] ?? ""}`.toLowerCase());
  }

  searchedGroup(group) {
    const { all } = this;
    this.groupWords ??= new Array(all.step.length);
    return (this.groupWords[group] ??= `${all.question[group] ?? ""}\n${all.reference_answer[group] ?? ""}`.toLowerCase());
  }

  sorted(rows, otherwise) {
    const name = this.sort || otherwise;
    if (!name) return rows;
    const value = SORTS[name](this.all), sign = this.down ? -1 : 1;
    const rank = (row) => { const found = value(row); return Number.isNaN(found) ? Infinity * sign : found; }; // unknown is last
    return [...rows].sort((a, b) => sign * (rank(a) - rank(b)) || a - b);
  }

  // headers are negative: group g is -1 - g
  grouped(rows) {
    const groups = new Map();
    for (const row of rows) {
      const group = this.all.group[row];
      if (groups.has(group)) groups.get(group).push(row);
      else groups.set(group, [row]);
    }
    const oldestFirst = this.sort === "step" && !this.down;
    const numbers = [...groups.keys()].sort((a, b) => (this.all.step[b] - this.all.step[a]) * (oldestFirst ? -1 : 1) || a - b);
    const within = this.sort === "step" ? "" : this.sort;
    return numbers.flatMap((group) => {
      const members = groups.get(group);
      return [-1 - group, ...(within ? this.sorted(members, "") : members)];
    });
  }

  drawHeadings() {
    const names = Object.keys(SORTS).filter((name) => name);
    const button = (name) => element("button", {
      type: "button", text: name + (this.sort === name ? (this.down ? " ↓" : " ↑") : ""),
      onclick: () => {
        if (this.sort === name && !this.down) Object.assign(this, { sort: "", down: true });
        else if (this.sort === name) this.down = false;
        else Object.assign(this, { sort: name, down: true });
        this.refresh();
      },
    });
    document.getElementById("headings").replaceChildren(element("span"), ...names.map(button), element("span", { text: "response" }));
  }

  // makes the rows that are seen, and removes those that are not
  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 8);
    const last = Math.min(this.order.length, first + Math.ceil(this.box.clientHeight / ROW) + 16);
    for (const [at, node] of this.rowsShown) {
      if (at < first || at >= last) {
        node.remove();
        this.rowsShown.delete(at);
      }
    }
    for (let at = first; at < last; at++) {
      if (this.rowsShown.has(at)) continue;
      const entry = this.order[at];
      const node = entry < 0 ? this.header(-1 - entry, this.order[at + 1]) : this.line(entry);
      node.style.transform = `translateY(${at * ROW}px)`;
      this.inside.append(node);
      this.rowsShown.set(at, node);
    }
  }

  // `row` is the first one below
  header(group, row) {
    const { all } = this, members = all.first[group + 1] - all.first[group];
    let right = 0;
    for (let one = all.first[group]; one < all.first[group + 1]; one++) right += labelOf(all, "verdict_status", one) === "correct";
    const text = `step ${all.step[group]} · ${right}/${members} correct · `;
    return element("div", { class: "row group", "data-row": row }, element("b", { text }), oneLine(all.question[group]));
  }

  line(row) {
    const { all } = this, verdict = labelOf(all, "verdict_status", row);
    const cells = [all.step[all.group[row]], all.index[row], fixed(all.reward[row]), fixed(all.bonus[row]), fixed(all.advantage[row]),
      short(all.tokens[row]), fixed(all.surprise[row])];
    const cut = labelOf(all, "finish_reason", row) === "length" ? "✂ " : "";
    return element(
      "div", { class: "row", role: "option", "data-row": row, "aria-selected": String(row === this.selected) },
      element("span", { class: `sign ${verdict ?? ""}`, text: signOf(all, row), title: verdict ?? "no verdict" }),
      ...cells.map((text) => element("span", { text })),
      element("span", { class: "said", text: cut + oneLine(all.response_text[row]) }));
  }

  select(row, { isFirst = false } = {}) {
    for (const wanted of [this.selected, row]) {
      this.rowsShown.get(this.place.get(wanted))?.setAttribute("aria-selected", String(wanted === row));
    }
    this.selected = row;
    if (!isFirst) this.reveal(this.place.get(row));
    this.open(row, isFirst);
  }

  reveal(at) {
    if (at === undefined) return;
    const top = at * ROW, { scrollTop, clientHeight } = this.box;
    if (top < scrollTop + ROW || top > scrollTop + clientHeight - 2 * ROW) this.box.scrollTop = top - clientHeight / 3;
    this.draw();
  }

  // the next response (by = 1) or the one before (by = -1) in the list; whole groups with `groups`
  move(by, groups = false) {
    const { all, order } = this, group = all.group[this.selected];
    let at = this.place.get(this.selected) ?? (by > 0 ? -1 : order.length);
    do at += by;
    while (at >= 0 && at < order.length && (order[at] < 0 || (groups && all.group[order[at]] === group)));
    if (order[at] >= 0) this.select(order[at]);
  }

  // shows only these; what is left out is every response
  only(values) {
    this.form.reset();
    for (const [name, value] of Object.entries(values)) this.form.elements[name].value = value;
    this.refresh();
  }
}

function labelOf(all, column, row) {
  return all[column][all[`${column}_index`][row]] ?? null;
}

function signOf(all, row) {
  return SIGNS[labelOf(all, "verdict_status", row)] ?? "?";
}

function oneLine(text) {
  return (text ?? "").slice(0, 300).replace(/\s*\n\s*/g, " ⏎ ");
}

// "12" -> [12, 12], "10-20" -> [10, 20], "" -> [0, 0], anything else -> [null, null]
function rangeOf(text) {
  const found = /^\s*(\d*)\s*(?:[-–]\s*(\d*))?\s*$/.exec(text);
  if (!found) return [null, null];
  const isRange = /[-–]/.test(text);
  if (!found[1] && !found[2]) return [0, 0];
  const first = Number(found[1] || 1);
  return [first, isRange ? Number(found[2] || Infinity) : first];
}
