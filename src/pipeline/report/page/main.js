// What is looked at, how it is kept in the address, and what the controls do.

const view = {
  setIndex: 0,
  source: "",
  formula: null,
  row: null,
  position: null,
  rowSource: "",
  query: "",
  spans: [],
  set: () => DATA.sets[view.setIndex],
  /** A button that shows a row. */
  rowLink: (id, position, label) => {
    const isHere = view.set().rows.some((row) => row.id === id);
    if (!isHere)
      return make(
        "span",
        { title: "Not among the rows that are shown: report --row-id " + id + " adds it" },
        label || "row " + id,
      );
    return make(
      "button",
      {
        type: "button",
        class: "link",
        onclick: () => {
          clearFinder();
          if (goToRow(view, id, position)) $("heatmap").scrollIntoView();
        },
      },
      label || "row " + id,
    );
  },
  remember: () => {
    const address = fragment();
    if (address !== location.hash) history.replaceState(null, "", address || location.pathname + location.search);
  },
};

const defaultFormula = (set) => ({
  weighting: "dynamic",
  epsilon: set.epsilon === null ? 0.2 : set.epsilon,
  temperature: set.temperature === null ? 1 : set.temperature,
  center: "row",
  fraction: 0.6,
});

/** What is looked at, as a fragment of the address: only what differs from how the page opens. */
function fragment() {
  const state = new URLSearchParams();
  const usual = defaultFormula(view.set());
  if (view.setIndex) state.set("set", String(view.setIndex));
  for (const key of Object.keys(usual)) if (view.formula[key] !== usual[key]) state.set(key, String(view.formula[key]));
  if (view.source !== "") state.set("source", view.source);
  if (view.row && (view.row !== firstRow(view.set()) || view.position !== 1)) {
    state.set("row", view.row.id);
    state.set("position", String(view.position));
  }
  if (view.rowSource !== "") state.set("from", view.rowSource);
  if (view.query) state.set("text", view.query);
  const text = state.toString();
  return text ? "#" + text : "";
}

const within = (text, low, high) => {
  const value = Number(text);
  return text !== null && text !== "" && Number.isFinite(value) && value >= low && value <= high ? value : null;
};

/** Takes up what a fragment says; what it says wrongly is left out. */
function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  view.setIndex = within(state.get("set"), 0, DATA.sets.length - 1) === 1 ? 1 : 0;
  const set = view.set();
  const formula = defaultFormula(set);
  if (state.get("weighting") === "excess-top-k") formula.weighting = "excess-top-k";
  if (state.get("center") === "none") formula.center = "none";
  formula.epsilon = within(state.get("epsilon"), 0, 0.999999) ?? formula.epsilon;
  formula.temperature = within(state.get("temperature"), 1e-6, 1e6) ?? formula.temperature;
  const fraction = within(state.get("fraction"), 0.01, 1);
  if (fraction !== null) formula.fraction = Math.round(fraction * 100) / 100;
  view.formula = formula;
  const sourceIn = (key) => {
    const index = within(state.get(key), 0, set.sources.length - 1);
    return index !== null && Number.isInteger(index) ? String(index) : "";
  };
  view.source = sourceIn("source");
  view.rowSource = sourceIn("from");
  view.query = state.get("text") || "";
  const row = state.get("row");
  const position = within(state.get("position"), 0, 1e9);
  drawSet();
  if (row !== null) {
    if (goToRow(view, row, position)) $("heatmap").scrollIntoView();
    else $("heatmap").scrollIntoView();
  }
}

function clearFinder() {
  view.rowSource = "";
  view.query = "";
  for (const id of ["row-id", "row-text", "row-source"]) $(id).value = "";
}

function showControls() {
  const formula = view.formula;
  $("weighting").value = formula.weighting;
  $("center").value = formula.center;
  $("epsilon").value = String(Math.round(formula.epsilon * 100));
  const nearest = TEMPERATURES.reduce(
    (best, value, at) => (Math.abs(value - formula.temperature) < Math.abs(TEMPERATURES[best] - formula.temperature) ? at : best),
    0,
  );
  $("temperature").value = String(nearest);
  $("top-k").value = String(Math.round(formula.fraction * 100));
  $("source").value = view.source;
}

function formulaChanged() {
  showFormula(view);
  recolour(view);
  view.remember();
}

/** Draws everything that is of a set. */
function drawSet() {
  const set = view.set();
  $("set-name").textContent = visible(set.name);
  document.title = "remit report: " + visible(set.name);
  for (const button of $("set-switch").children)
    button.setAttribute("aria-pressed", String(Number(button.dataset.set) === view.setIndex));
  const sources = [["", "all sources"], ...set.sources.map((source, index) => [index, nameOf(source)])];
  for (const id of ["source", "row-source", "token-source"]) choices($(id), sources);
  $("row-source").value = view.rowSource;
  $("row-text").value = view.query;
  $("row-id").value = "";
  view.sort = null;
  showVerdict(view);
  showControls();
  showFormula(view);
  showLegend(view);
  const rows = matchingRows(view);
  const first = firstRow(set);
  showRow(view, rows.includes(first) ? first : rows[0] || first);
  sayFound(view);
  showTokens(view);
  showMatrix(view);
  showRepeats(view);
}

const RUN_LINES = [
  ["loss", "Weighted loss, nats"],
  ["ntp_loss", "Plain loss, nats"],
  ["lr", "Learning rate"],
  ["weight_mean", "Mean weight"],
  ["weight_at_bounds", "Share of weights at the bounds"],
  ["grad_norm", "Norm of the gradient"],
];

function runLabel(run) {
  const objective = (run.settings || {}).objective || {};
  const formula = objective.formula || {};
  const words = [objective.weighting];
  if (objective.weighting === "dynamic")
    words.push(
      "epsilon " + formula.epsilon,
      "temperature " + formula.temperature,
      objective.center === "none" ? "center none" : null,
    );
  if (objective.weighting === "excess-top-k") words.push(objective.top_k_fraction);
  const told = words.filter((word) => word !== null && word !== undefined).join(", ");
  return visible(run.name) + (told ? " (" + told + ")" : "");
}

function showRuns() {
  const runs = DATA.runs;
  if (runs.length === 0) return;
  $("training").hidden = false;
  const over = $("run-x").value;
  const points = Math.max(...runs.map((run) => run.steps_per_point));
  replace(
    $("run-legend"),
    runs.map((run, index) =>
      make(
        "span",
        null,
        shape(
          "svg",
          { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" },
          shape("line", { class: "line series-" + (index % 6), x1: 0, x2: 24, y1: 4, y2: 4 }),
        ),
        " " + (runs.length > 1 ? index + 1 + ": " : "") + runLabel(run) + ", " + grouped(run.steps) + " steps ",
      ),
    ),
    points > 1 ? "Each point is the mean over up to " + points + " steps." : null,
  );
  const charts = RUN_LINES.map(([key, title]) =>
    lineChart(
      title,
      over,
      runs.map((run, index) => ({ name: visible(run.name), index, x: run[over], y: run[key] })),
    ),
  );
  const evaluated = runs.some((run) => run.evaluations.length);
  if (evaluated)
    for (const [key, title] of [
      ["ntp_loss", "Evaluation: plain loss, nats"],
      ["loss", "Evaluation: weighted loss, nats"],
    ])
      charts.push(
        lineChart(
          title,
          "steps",
          runs.map((run, index) => ({
            name: visible(run.name),
            index,
            marked: true,
            x: run.evaluations.map((e) => e.step),
            y: run.evaluations.map((e) => e[key]),
          })),
        ),
      );
  replace($("run-charts"), charts);
  const names = [
    ...new Set(runs.flatMap((run) => run.evaluations.flatMap((evaluation) => evaluation.sources.map((source) => source.source)))),
  ].sort();
  $("run-evaluations").previousElementSibling.hidden = !evaluated;
  if (!evaluated) return replace($("run-evaluations"));
  const at = (evaluation, name) =>
    !evaluation
      ? null
      : name === null
        ? evaluation.ntp_loss
        : (evaluation.sources.find((source) => source.source === name) || { ntp_loss: null }).ntp_loss;
  const rows = [...names, null];
  const changes = runs.flatMap((run) => rows.map((name) => change(run, name)).filter((value) => value !== null));
  function change(run, name) {
    const [before, after] = [at(run.evaluations[0], name), at(run.evaluations[run.evaluations.length - 1], name)];
    return before === null || after === null ? null : after - before;
  }
  const most = Math.max(1e-9, ...changes.map(Math.abs));
  const columns = [["source", "Source of the evaluated rows", (name) => (name === null ? "all" : visible(name)), "name"]];
  runs.forEach((run, index) => {
    const which = runs.length > 1 ? index + 1 + ": " : "";
    const last = run.evaluations[run.evaluations.length - 1];
    columns.push([
      which + "first",
      visible(run.name) + ": plain loss before the first step, nats",
      (name) => fixed(at(run.evaluations[0], name), 4),
      "number",
    ]);
    columns.push([
      which + "last",
      visible(run.name) + ": plain loss after step " + (last ? last.step : 0),
      (name) => fixed(at(last, name), 4),
      "number",
    ]);
    columns.push([
      which + "change",
      visible(run.name) + ": last less first; below 0 is better",
      (name) => {
        const value = change(run, name);
        return value === null
          ? "\u2013"
          : make(
              "span",
              { class: "with-bar" },
              divergingBar(value, most, signed(value, 4)),
              make("span", { class: "value" }, signed(value, 4)),
            );
      },
      "bar",
    ]);
  });
  const caption =
    "Plain loss on the evaluated rows: " +
    runs.map((run, index) => (runs.length > 1 ? index + 1 + " is " : "") + visible(run.name)).join("; ");
  replace($("run-evaluations"), table(columns, rows, { caption, rowClass: (name) => (name === null ? "total" : null) }));
}

function wire() {
  $("temperature").max = String(TEMPERATURES.length - 1);
  const set = (key, value) => {
    view.formula[key] = value;
    formulaChanged();
  };
  $("weighting").addEventListener("change", (event) => set("weighting", event.target.value));
  $("center").addEventListener("change", (event) => set("center", event.target.value));
  $("epsilon").addEventListener("input", (event) => set("epsilon", Number(event.target.value) / 100));
  $("temperature").addEventListener("input", (event) => set("temperature", TEMPERATURES[Number(event.target.value)]));
  $("top-k").addEventListener("input", (event) => set("fraction", Number(event.target.value) / 100));
  $("source").addEventListener("change", (event) => {
    view.source = event.target.value;
    formulaChanged();
  });
  $("reset").addEventListener("click", () => {
    view.formula = defaultFormula(view.set());
    view.source = "";
    showControls();
    formulaChanged();
  });
  $("copy").addEventListener("click", async () => {
    const flags = asFlags(view.formula);
    try {
      await navigator.clipboard.writeText(flags);
      $("copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren($("flags"));
      $("copy").textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => ($("copy").textContent = "Copy as flags"), 2000);
  });
  for (const id of ["controls", "finder"]) $(id).addEventListener("submit", (event) => event.preventDefault());
  $("finder").addEventListener("submit", () => findRow(view));
  $("row-source").addEventListener("change", () => findRow(view));
  $("previous").addEventListener("click", () => moveRow(view, -1));
  $("next").addEventListener("click", () => moveRow(view, 1));
  $("text").addEventListener("keydown", (event) => onTextKey(view, event));
  for (const kind of ["mouseover", "click"])
    $("text").addEventListener(kind, (event) => {
      const span = event.target.closest(".tok");
      if (span && span.position !== undefined && (kind === "click" || span !== view.selected))
        selectToken(view, span.position, { silent: kind === "mouseover" });
    });
  $("token-source").addEventListener("change", () => showTokens(view));
  $("matrix-what").addEventListener("change", () => showMatrix(view));
  $("run-x").addEventListener("change", showRuns);
  $("theme").addEventListener("change", (event) => {
    if (event.target.value) document.documentElement.dataset.theme = event.target.value;
    else delete document.documentElement.dataset.theme;
  });
  addEventListener("hashchange", () => {
    // Fragments without a = are places on the page.
    if (location.hash === "" || location.hash.includes("=")) restore();
  });
}

function start() {
  const sections = [
    ["verdict", "Verdict"],
    ["both", "Two sets"],
    ["losses", "Losses"],
    ["formula", "Formula"],
    ["heatmap", "Documents"],
    ["tokens", "Tokens"],
    ["matrix", "Positions"],
    ["repeats", "Repeats"],
    ["training", "Training"],
  ];
  if (DATA.sets.length > 1) {
    $("set-switch").hidden = false;
    replace(
      $("set-switch"),
      DATA.sets.map((set, index) => {
        const button = make(
          "button",
          {
            type: "button",
            title: visible(set.name),
            onclick: () => {
              view.setIndex = index;
              Object.assign(view, { source: "", rowSource: "", query: "" });
              view.formula = defaultFormula(view.set());
              const row = view.row && view.row.id;
              drawSet();
              if (row && view.set().rows.some((candidate) => candidate.id === row)) goToRow(view, row, null);
              view.remember();
            },
          },
          "Set " + "AB"[index],
        );
        button.dataset.set = String(index);
        return button;
      }),
    );
  }
  wire();
  showBoth();
  showLosses();
  showRuns();
  restore();
  replace(
    $("nav"),
    sections
      .filter(([id]) => !$(id).hidden)
      .map(([id, label]) =>
        make(
          "button",
          {
            type: "button",
            class: "link",
            onclick: () => {
              $(id).scrollIntoView();
              $(id).querySelector("h2").focus();
            },
          },
          label,
        ),
      ),
  );
  for (const heading of document.querySelectorAll("h2")) heading.tabIndex = -1;
  $("footer").textContent =
    "Made by remit " +
    DATA.version +
    " (remit-inspect report). Sums, shares and histograms are of every row of the set. Rows, and examples of tokens, are a sample. Numbers under the sliders are read off bins.";
  document.documentElement.dataset.ready = "yes";
}

start();
