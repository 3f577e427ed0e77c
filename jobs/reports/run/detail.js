// One response: what it was asked, what was made of it, and its tokens, shaded.

const SHADES = ["version", "log-prob", "none"];
const MOST_SPANS = 20000;

class Detail {
  // choose(row): opens another response; problem(id): shows all responses to a problem
  constructor(all, { choose, problem }) {
    Object.assign(this, { all, choose, problem, row: -1, shade: all.hasTokens ? "log-prob" : "none", promptOpen: false });
    this.box = document.getElementById("detail");
    this.box.append(element("p", { class: "soft", text: "Choose a response." }));
    this.box.addEventListener("mouseover", (event) => this.tell(event.target.closest("[data-token]")));
  }

  show(row) {
    const { all } = this, group = all.group[row];
    this.row = row;
    this.box.replaceChildren(
      this.title(row), this.where(row, group), this.siblings(row, group),
      element("h4", { text: "Question" }), element("pre", { dir: "ltr", text: all.question[group] ?? "" }), ...this.prompt(group),
      ...this.response(row), this.answers(row, group), this.facts(row, group));
    this.box.scrollTop = 0;
  }

  title(row) {
    const { all } = this, verdict = labelOf(all, "verdict_status", row);
    const numbers = ["reward", "bonus", "advantage"].map((name) => element("span", { text: `${name} ${fixed(all[name][row], 3)}` }));
    const cut = labelOf(all, "finish_reason", row) === "length" ? [element("span", { text: "✂ cut off" })] : [];
    const text = `${signOf(all, row)} ${(verdict ?? "no verdict").replace("_", " ")}`;
    return element("p", { class: "title" }, element("strong", { class: verdict ?? "", text }), ...numbers, ...cut);
  }

  where(row, group) {
    const { all } = this, problem = all.problem_id[group] ?? "";
    return element("p", { class: "where" },
      `step ${all.step[group]}, group ${all.group_id[group]}, response ${all.index[row]}, problem `,
      element("button", { type: "button", text: problem, title: "all responses to this problem", onclick: () => this.problem(problem) }));
  }

  answers(row, group) {
    const { all } = this, found = all.verdict_answer[row], detail = all.verdict_detail[row];
    const parts = [found === null ? "No answer was read out" : "Answer read out: ", found === null ? "" : element("bdi", { text: found }),
      ". Reference answer: ", element("bdi", { text: all.reference_answer[group] ?? "–" }), "."];
    return element("p", { class: "answers" }, ...parts, ...(detail ? [" The verifier says: ", element("bdi", { text: detail })] : []));
  }

  siblings(row, group) {
    const { all } = this, members = [];
    for (let one = all.first[group]; one < all.first[group + 1]; one++) {
      members.push(element("button", {
        type: "button", class: labelOf(all, "verdict_status", one) ?? "", "aria-current": one === row ? "true" : undefined,
        text: `${signOf(all, one)} ${fixed(all.advantage[one])}`, title: `response ${all.index[one]}, advantage ${fixed(all.advantage[one], 3)}`,
        onclick: () => this.choose(one),
      }));
    }
    return element("p", { class: "siblings" }, element("span", { class: "soft", text: "its group, with advantages " }), ...members);
  }

  prompt(group) {
    const { all } = this;
    if (!all.hasTokens) return [];
    const ids = all.prompt.subarray(all.prompt_start[group], all.prompt_start[group + 1]);
    const text = [...ids].map((id) => all.pieces[id]).join("");
    const ontoggle = (event) => { this.promptOpen = event.target.open; };
    return [element("details", { open: this.promptOpen ? "" : undefined, ontoggle },
      element("summary", { text: `The whole prompt, ${ids.length} tokens` }), element("pre", { dir: "ltr", text }))];
  }

  response(row) {
    const { all } = this;
    const heading = element("h4", { text: "Response" });
    if (!all.hasTokens) return [heading, element("pre", { dir: "ltr", text: all.response_text[row] ?? "" })];
    const choices = SHADES.map((shade) => element("button", {
      type: "button", text: shade, "aria-pressed": String(shade === this.shade), onclick: () => this.shadeBy(shade),
    }));
    heading.append(element("span", { class: "choices" }, "shaded by ", ...choices));
    this.told = element("p", { class: "soft told", text: this.legend(row) });
    return [heading, element("pre", { dir: "ltr", class: "tokens" }, ...this.tokens(row)), this.told];
  }

  shadeBy(shade) {
    this.shade = shade;
    if (this.row >= 0) this.show(this.row);
  }

  nextShade() {
    if (this.all.hasTokens) this.shadeBy(SHADES[(SHADES.indexOf(this.shade) + 1) % SHADES.length]);
  }

  legend(row) {
    const { all } = this, versions = [...new Set(all.run_version.subarray(all.run_start[row], all.run_start[row + 1]))];
    const lag = (version) => all.step[all.group[row]] - 1 - version;
    const sampled = versions.map((version) => `${version} (lag ${lag(version)})`).join(", ") || "none";
    if (this.shade === "log-prob") return "The stronger the color, the less likely was the token. Point at a token to read it.";
    return `Sampled by version ${sampled}.${all.trained_from[row] >= 0 ? ` Tokens before version ${all.trained_from[row]} were too old to be trained on.` : ""}`;
  }

  // one span for each token; without shading one for all that looks alike
  tokens(row) {
    const { all, shade } = this, begin = all.token_start[row], end = Math.min(all.token_start[row + 1], begin + MOST_SPANS);
    const spans = [];
    let look = null, text = "", first = begin;
    const close = (at) => {
      if (at > first) spans.push(element("span", { class: look, "data-token": first, text }));
      [text, first] = ["", at];
    };
    for (let at = begin; at < end; at++) {
      const next = this.look(row, at);
      if (at > begin && (next !== look || shade === "log-prob")) close(at);
      look = next;
      text += all.pieces[all.token[at]];
    }
    close(end);
    if (shade === "log-prob") for (const span of spans) this.tint(span);
    if (end < all.token_start[row + 1]) spans.push(element("span", { class: "soft", text: ` … ${all.token_start[row + 1] - end} more tokens` }));
    return spans;
  }

  look(row, at) {
    const { all } = this, version = this.versionOf(row, at);
    const late = all.trained_from[row] >= 0 && version < all.trained_from[row] ? " late" : "";
    const special = (this.specials ??= new Set(all.special)).has(all.token[at]) ? " special" : "";
    const lag = Math.min(Math.max(all.step[all.group[row]] - 1 - version, 0), 4);
    const line = this.shade === "log-prob" && all.pieces[all.token[at]].includes("\n") ? " line" : "";
    return `${this.shade === "version" ? `lag-${lag}` : "token"}${late}${special}${line}`;
  }

  tint(span) {
    const unit = this.all.logprob[Number(span.dataset.token)];
    if (unit < 65535) span.style.setProperty("--much", `${Math.min(85, unit / 50).toFixed(0)}%`);
  }

  versionOf(row, at) {
    const { all } = this, place = at - all.token_start[row];
    let run = all.run_start[row];
    while (run + 1 < all.run_start[row + 1] && all.run_token[run + 1] <= place) run++;
    return all.run_version[run];
  }

  tell(span) {
    if (!this.told || !span) return;
    const { all, row } = this, at = Number(span.dataset.token), version = this.versionOf(row, at), unit = all.logprob[at];
    const chance = unit < 65535 ? `, log-prob ${fixed(-unit / 1000, 3)} (probability ${short(Math.exp(-unit / 1000))})` : "";
    const lag = all.step[all.group[row]] - 1 - version;
    const token = this.shade === "log-prob" ? `token ${at - all.token_start[row]} ${JSON.stringify(span.textContent)}${chance}, ` : "";
    this.told.textContent = `${token}version ${version}, lag ${lag}${span.classList.contains("late") ? ", too old to be trained on" : ""}`;
  }

  facts(row, group) {
    const { all } = this, number = (name, values) => [name, Number.isNaN(values[row]) ? null : fixed(values[row], 3)];
    const finish = labelOf(all, "finish_reason", row);
    const facts = [
      number("reward for form", all.reward_format), number("reward for length", all.reward_length), ["tokens", short(all.tokens[row])], number("mean log-prob", all.surprise),
      ["ended", { stop: "by itself", length: "cut off at the limit", aborted: "aborted" }[finish] ?? finish],
      ["outcome", labelOf(all, "outcome", row)], ["sampled in", Number.isNaN(all.generate_s[row]) ? null : `${short(all.generate_s[row])} s`],
      ["admitted under version", all.admitted_version[group]], ["attempt", all.attempt[group] || null],
      ...all.details.map((name, place) => number(name.replaceAll("_", " "), all[`detail ${place}`])),
    ].filter(([, value]) => value !== null && value !== undefined && value !== "–");
    return element("dl", {}, ...facts.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }))));
  }
}
