// Puts the parts together: the address of the page, the keyboard, and clicks on a step.

let showStep = () => {};

function linked() {
  return /^#rollout=(.+)$/.exec(decodeURIComponent(location.hash))?.[1] ?? null;
}

function startBrowser(all) {
  const detail = new Detail(all, {
    choose: (row) => list.select(row),
    problem: (id) => list.only({ problem: id }),
  });
  const list = new List(all, (row, isFirst) => {
    detail.show(row);
    if (!isFirst) history.replaceState(null, "", `#rollout=${key(all, row)}`);
  });
  showStep = (step) => {
    list.only({ step: String(step) });
    document.getElementById("rollouts").scrollIntoView();
  };

  function follow() {
    const wanted = linked();
    if (wanted === null) return;
    document.getElementById("rollouts").scrollIntoView();
    for (let row = 0; row < all.size; row++) {
      if (key(all, row) !== wanted) continue;
      if (!list.place.has(row)) list.only({});
      list.select(row);
      return;
    }
    const [step, group, index] = wanted.split(".");
    const text = `This page has no response ${index} of group ${group} in step ${step}: it may be among those left out.`;
    document.getElementById("detail").replaceChildren(element("p", { class: "warning", text }));
  }
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const inList = event.target.closest("#list");
    const actions = {
      j: () => list.move(1), k: () => list.move(-1), J: () => list.move(1, true), K: () => list.move(-1, true),
      ArrowDown: inList && (() => list.move(1)), ArrowUp: inList && (() => list.move(-1)),
      s: () => detail.nextShade(), "/": () => list.form.elements.text.focus(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  list.select(list.order.find((entry) => entry >= 0), { isFirst: true });
  follow();
}

drawSections(record("data-curves"));
drawTimeline(record("data-timeline"));
readRollouts().then((all) => {
  document.getElementById("browser").hidden = all.size === 0;
  if (all.size) startBrowser(all);
  document.documentElement.dataset.ready = "yes";
}, (error) => {
  const text = `The rollouts cannot be unpacked by this browser (${error.message}); a current one can.`;
  document.getElementById("browser").before(element("p", { class: "warning", text }));
});
