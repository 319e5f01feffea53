// Sources: the verdict, two sets side by side, the sliders' numbers, positions, repeats.

const LIKING =
  "Mean of log2 p_RL \u2212 log2 p_base over the targets: below 0 where the RL model likes the text less than the base does";
const DISAGREEMENT = "Mean of the distance between the two log-probs of a target, in bits";
const EFFECTIVE =
  "(sum w)\u00b2 / sum w\u00b2, the number of equally weighted targets that would tell as much, as a share of the targets";

const perplexity = (mean) => (mean === null ? null : Math.exp(-mean));
const perplexityText = (value) =>
  value === null || value < 1000 ? fixed(value, 3) : value < 1e9 ? grouped(value) : value.toExponential(2);
const share = (value, numbers) => (value === null ? null : value / Math.max(numbers.targets, 1));

function mostLiked(set) {
  return Math.max(1e-9, ...set.sources.map((source) => Math.abs(source.numbers.liking_bits || 0)));
}

/** Columns of the numbers of a source; what is sorted by is the fifth. */
function sourceColumns(set) {
  const most = mostLiked(set);
  const liking = (row) =>
    make(
      "span",
      { class: "with-bar" },
      divergingBar(row.numbers.liking_bits, most, signed(row.numbers.liking_bits, 3) + " bits"),
      make("span", { class: "value" }, signed(row.numbers.liking_bits, 3)),
    );
  const number = (heading, explanation, of, show) => [
    heading,
    explanation,
    (row) => show(of(row.numbers)),
    "number",
    (row) => of(row.numbers),
  ];
  const columns = [["source", "File of the corpus", (row) => row.label, "name", (row) => row.label]];
  if (set.base) columns.push(["RL \u2212 base, bits", LIKING, liking, "bar", (row) => row.numbers.liking_bits]);
  columns.push(
    number("documents", "Documents that begin in its rows", (n) => n.documents, grouped),
    number("tokens", "Tokens of its rows", (n) => n.tokens, grouped),
    number("ppl RL", "Perplexity under the RL model", (n) => perplexity(n.rl), perplexityText),
  );
  if (!set.base) return columns;
  columns.push(
    number("ppl base", "Perplexity under the base", (n) => perplexity(n.base), perplexityText),
    number(
      "apart, bits",
      DISAGREEMENT,
      (n) => n.disagreement_bits,
      (v) => fixed(v, 3),
    ),
    number(
      "w mean",
      "Mean of the stored weights",
      (n) => n.weight,
      (v) => fixed(v, 3),
    ),
    number(
      "effective",
      EFFECTIVE,
      (n) => share(n.effective, n),
      (v) => percent(v, 1),
    ),
    number(
      "at low",
      "Share of the targets at the lower bound",
      (n) => n.at_lower,
      (v) => percent(v, 1),
    ),
    number(
      "at high",
      "Share of the targets at the upper bound",
      (n) => n.at_upper,
      (v) => percent(v, 1),
    ),
  );
  return columns;
}

function showVerdict(view) {
  const set = view.set();
  const [first, ...rest] = set.headlines;
  replace(
    $("headlines"),
    make("p", { class: "headline" }, visibleNodes(first)),
    rest.length ? make("p", { class: "headlines" }, visibleNodes(rest.join(" "))) : null,
  );
  replace(
    $("odd"),
    set.odd.length
      ? [
          make("h3", null, "What looks odd"),
          make(
            "ul",
            { class: "odd" },
            set.odd.map((line) => make("li", null, visibleNodes(line))),
          ),
        ]
      : make("p", { class: "fine" }, "Nothing looks odd by the thresholds that remit-score warns by."),
  );
  const all = set.totals;
  const figures = [
    [grouped(all.documents), "documents" + (set.split_documents ? ", " + grouped(set.split_documents) + " of them cut" : "")],
    [grouped(all.tokens), "tokens in " + grouped(all.rows) + " rows"],
  ];
  if (set.base)
    figures.push(
      [
        grouped(all.effective),
        "effective targets of " + grouped(all.targets) + " (" + percent(share(all.effective, all), 1) + ")",
      ],
      [
        percent(all.at_lower, 1) + " / " + percent(all.at_upper, 1),
        "of the weights at the bounds, " + short(1 - set.epsilon) + " and " + short(1 + set.epsilon),
      ],
      [fixed(all.disagreement_bits, 3), "bits per token between the models"],
    );
  replace(
    $("figures"),
    figures.map(([value, what]) => make("li", null, make("strong", null, value), " ", what)),
  );
  replace(
    $("sources-note"),
    set.base
      ? "Sorted by what the RL model likes less than the base does; a heading sorts by its column. A bar to the left is distrust. Numbers are of the whole set, as it is stored. Weights rank the tokens within a row, so a distrusted source is not weighted down as a whole unless center is none."
      : "There is no base in this set, so there are no weights. Numbers are of the whole set.",
  );
  const columns = sourceColumns(set);
  const rows = set.sources.map((source) => ({ label: nameOf(source), numbers: source.numbers }));
  const sort = view.sort || (view.sort = { column: set.base ? 1 : 4, down: !set.base });
  const key = columns[Math.min(sort.column, columns.length - 1)][4];
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
  });
  rows.push({ label: "all", numbers: all, total: true });
  const onsort = (column) => {
    view.sort = { column, down: sort.column === column ? !sort.down : column !== 0 && column !== 1 };
    showVerdict(view);
  };
  replace($("sources"), table(columns, rows, { sort, onsort, rowClass: (row) => (row.total ? "total" : null) }));
}

function showBoth() {
  if (DATA.sets.length < 2) return;
  $("both").hidden = false;
  const [a, b] = DATA.sets;
  const names = [...new Set([...a.sources, ...b.sources].map(nameOf))].sort();
  const find = (set, name) => set.sources.find((source) => nameOf(source) === name);
  const rows = names.map((name) => ({ label: name, a: (find(a, name) || {}).numbers, b: (find(b, name) || {}).numbers }));
  rows.push({ label: "all", a: a.totals, b: b.totals, total: true });
  const pair = (heading, explanation, of, show) => [
    ["A " + heading, explanation, (row) => (row.a ? show(of(row.a)) : "\u2013"), "number"],
    ["B " + heading, explanation, (row) => (row.b ? show(of(row.b)) : "\u2013"), "number"],
  ];
  const change = (heading, of, show) => [
    heading,
    "B less A",
    (row) => (row.a && row.b && of(row.a) !== null && of(row.b) !== null ? show(of(row.b) - of(row.a)) : "\u2013"),
    "number",
  ];
  const columns = [
    ["source", "File of the corpus", (row) => row.label, "name"],
    ...pair(
      "RL \u2212 base, bits",
      LIKING,
      (n) => n.liking_bits,
      (v) => signed(v, 3),
    ),
    change(
      "B \u2212 A",
      (n) => n.liking_bits,
      (v) => signed(v, 3),
    ),
    ...pair("ppl RL", "Perplexity under the RL model", (n) => perplexity(n.rl), perplexityText),
    ...pair(
      "w mean",
      "Mean of the stored weights",
      (n) => n.weight,
      (v) => fixed(v, 3),
    ),
    ...pair(
      "effective",
      EFFECTIVE,
      (n) => share(n.effective, n),
      (v) => percent(v, 1),
    ),
    ...pair(
      "at bounds",
      "Share of the targets at either bound",
      (n) => (n.at_lower === null ? null : n.at_lower + n.at_upper),
      (v) => percent(v, 1),
    ),
  ];
  const title =
    "A: " +
    visible(a.name) +
    " (RL model " +
    visible(a.rl.path) +
    "); B: " +
    visible(b.name) +
    " (RL model " +
    visible(b.rl.path) +
    ")";
  replace($("both-table"), table(columns, rows, { caption: title, rowClass: (row) => (row.total ? "total" : null) }));
}

function showLosses() {
  const losses = DATA.losses;
  if (!losses) return;
  $("losses").hidden = false;
  const rows = Object.entries(losses.sources).map(([name, numbers]) => ({ label: visible(name), numbers }));
  rows.sort((a, b) => a.numbers.ntp_loss[1] - a.numbers.ntp_loss[0] - (b.numbers.ntp_loss[1] - b.numbers.ntp_loss[0]));
  rows.push({ label: "all", numbers: losses.all, total: true });
  const difference = (row) => row.numbers.ntp_loss[1] - row.numbers.ntp_loss[0];
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(difference(row))));
  const columns = [
    ["source", "File of the corpus", (row) => row.label, "name"],
    ["targets", "Number of targets", (row) => grouped(row.numbers.targets), "number"],
    ["A", "Plain loss of A, nats per target", (row) => fixed(row.numbers.ntp_loss[0], 4), "number"],
    ["B", "Plain loss of B, nats per target", (row) => fixed(row.numbers.ntp_loss[1], 4), "number"],
    [
      "B \u2212 A",
      "Below 0 where B is better",
      (row) =>
        make(
          "span",
          { class: "with-bar" },
          divergingBar(difference(row), most, signed(difference(row), 4)),
          make("span", { class: "value" }, signed(difference(row), 4)),
        ),
      "bar",
    ],
    ["A weighted", "Loss of A, weighted with A as the learner", (row) => fixed(row.numbers.loss[0], 4), "number"],
    ["B weighted", "Loss of B, weighted with B as the learner", (row) => fixed(row.numbers.loss[1], 4), "number"],
  ];
  const caption =
    "A: " +
    visible(losses.models[0]) +
    "; B: " +
    visible(losses.models[1]) +
    "; on the rows of " +
    visible(losses.weights) +
    ", nats per target";
  replace($("losses-table"), table(columns, rows, { caption, rowClass: (row) => (row.total ? "total" : null) }));
}

/** What follows the sliders: figures, histogram, numbers by source. */
function showFormula(view) {
  const set = view.set();
  $("formula").hidden = !set.base;
  if (!set.base) return;
  const formula = view.formula;
  const chosen = view.source === "" ? set.sources : [set.sources[Number(view.source)]];
  const isDynamic = formula.weighting === "dynamic";
  for (const element of document.querySelectorAll(".of-dynamic")) element.hidden = !isDynamic;
  for (const element of document.querySelectorAll(".of-top-k")) element.hidden = isDynamic;
  $("epsilon-value").textContent = String(formula.epsilon);
  $("temperature-value").textContent = String(formula.temperature);
  $("top-k-value").textContent = String(formula.fraction);
  $("formula-text").textContent = inWords(formula);
  $("flags").textContent = asFlags(formula);
  const bySource = set.sources.map((source) => ({ label: nameOf(source), source, totals: totalsOf(source, formula) }));
  const all = numbersOf(
    bySource.filter((row) => chosen.includes(row.source)).reduce((sum, row) => addTotals(sum, row.totals), noTotals()),
  );
  const figure = (id, value, what) => make("li", null, make("strong", { id }, value), " ", what);
  replace(
    $("live"),
    figure("live-mean", fixed(all.mean, 4), "mean weight"),
    figure(
      "live-effective",
      percent(all.effective / Math.max(all.targets, 1), 2),
      "effective: " + grouped(all.effective) + " of " + grouped(all.targets) + " targets",
    ),
    figure("live-lower", percent(all.lower, 2), isDynamic ? "at the lower bound, " + short(1 - formula.epsilon) : "not selected"),
    figure("live-upper", percent(all.upper, 2), isDynamic ? "at the upper bound, " + short(1 + formula.epsilon) : "selected"),
  );
  view.live = all;
  const kind = isDynamic ? formula.center : "row";
  const bins = chosen.flatMap((source) => {
    source.bins ||= {};
    source.bins[kind] ||= unpack(kind === "row" ? source.centred : source.raw);
    return source.bins[kind];
  });
  bins.sort((a, b) => a.low - b.low);
  replace(
    $("histogram"),
    histogram(bins, isDynamic ? formula : { ...formula, center: "row" }),
    make("p", { class: "note" }, "The outermost bars hold what lies beyond them, too."),
  );
  const most = Math.max(1e-9, ...bySource.map((row) => Math.abs(numbersOf(row.totals).mean - 1)));
  const columns = [
    ["source", "File of the corpus", (row) => row.label, "name"],
    [
      "mean weight",
      "Mean weight of a target",
      (row) => {
        const mean = numbersOf(row.totals).mean;
        return make(
          "span",
          { class: "with-bar" },
          divergingBar(mean - 1, most, fixed(mean, 4)),
          make("span", { class: "value" }, fixed(mean, 4)),
        );
      },
      "bar",
    ],
    ["effective", EFFECTIVE, (row) => percent(numbersOf(row.totals).effective / Math.max(row.totals.targets, 1), 2), "number"],
    [isDynamic ? "at low" : "not selected", "Share of the targets", (row) => percent(numbersOf(row.totals).lower, 2), "number"],
    [isDynamic ? "at high" : "selected", "Share of the targets", (row) => percent(numbersOf(row.totals).upper, 2), "number"],
  ];
  bySource.sort((a, b) => numbersOf(a.totals).mean - numbersOf(b.totals).mean);
  replace($("live-sources"), table(columns, bySource));
}

const MATRIX = [
  ["weight", "mean stored weight", true, (sums) => sums[3] / sums[0], 1, (v) => fixed(v, 3)],
  ["liking", "RL \u2212 base, bits", true, (sums) => (sums[1] - sums[2]) / sums[0] / LN2, 0, (v) => signed(v, 2)],
  ["rl", "loss of the RL model, nats", false, (sums) => -sums[1] / sums[0], null, (v) => fixed(v, 2)],
  ["base", "loss of the base, nats", true, (sums) => -sums[2] / sums[0], null, (v) => fixed(v, 2)],
];

function showMatrix(view) {
  const set = view.set();
  const kinds = MATRIX.filter(([, , needsBase]) => set.base || !needsBase);
  choices(
    $("matrix-what"),
    kinds.map(([value, label]) => [value, label]),
  );
  const [, label, , of, neutral, show] = kinds.find(([value]) => value === $("matrix-what").value) || kinds[0];
  const ranges = Math.max(0, ...set.sources.map((source) => source.positions.length));
  const values = set.sources.flatMap((source) => source.positions.filter((sums) => sums[0] > 0).map(of));
  const most = Math.max(1e-9, ...values.map((value) => Math.abs(value - (neutral || 0))));
  const columns = [["source", "File of the corpus", (source) => nameOf(source), "name"]];
  for (let range = 0; range < ranges; range++) {
    const from = Math.pow(2, range);
    const heading = range === 0 ? "1" : grouped(from) + "\u2013" + grouped(2 * from - 1);
    columns.push([
      heading,
      "Positions in the row, the first being 0",
      (source) => {
        const sums = source.positions[range];
        if (!sums || sums[0] === 0) return "";
        const value = of(sums);
        const cell = make(
          "span",
          {
            class: "cell " + (neutral !== null && value < neutral ? "low" : "high"),
            title: nameOf(source) + ", positions " + heading + ": " + show(value) + ", " + grouped(sums[0]) + " targets",
          },
          show(value),
        );
        cell.style.setProperty("--a", Math.abs(value - (neutral || 0)) / most);
        return cell;
      },
      "number",
    ]);
  }
  replace($("matrix-table"), table(columns, set.sources, { caption: label + ", by position in the row; all tokens of the set" }));
}

function showRepeats(view) {
  const set = view.set();
  $("repeats-note").textContent =
    "Runs of at least " +
    DATA.least_run +
    " targets that " +
    (set.base ? "the base" : "the RL model") +
    " knows, each with a loss of at most " +
    short(DATA.known_nats) +
    " nats: text that is repeated, quoted, generated, or that the model was trained on. Duplicates are rows with the very tokens of an earlier row of their source. All rows of the set were looked at.";
  const columns = [
    ["source", "File of the corpus", (row) => row.label, "name"],
    ["in known runs", "Share of the targets in such runs", (row) => percent(row.numbers.known, 1), "number"],
    ["runs", "Number of such runs", (row) => grouped(row.numbers.known_runs), "number"],
    [
      "duplicate rows",
      "Rows with the tokens of an earlier one",
      (row) => (row.numbers.duplicates === null ? "not counted" : grouped(row.numbers.duplicates)),
      "number",
    ],
    ["of rows", "Rows", (row) => grouped(row.numbers.rows), "number"],
  ];
  const rows = set.sources.map((source) => ({ label: nameOf(source), numbers: source.numbers }));
  rows.sort((a, b) => b.numbers.known - a.numbers.known);
  rows.push({ label: "all", numbers: set.totals, total: true });
  replace($("repeats-table"), table(columns, rows, { rowClass: (row) => (row.total ? "total" : null) }));
  const longest = set.sources.flatMap((source) => source.longest.map((run) => ({ ...run, source })));
  longest.sort((a, b) => b.len - a.len);
  replace(
    $("longest"),
    longest
      .slice(0, 12)
      .map((run) =>
        make(
          "li",
          null,
          make(
            "span",
            { class: "where" },
            grouped(run.len) + " targets from position " + run.position + " of ",
            view.rowLink(run.row, run.position),
            ", " + nameOf(run.source),
          ),
          make("bdi", { class: "quote", dir: "auto" }, visibleNodes(joined(run.text)), run.len > run.text.length ? "\u2026" : ""),
        ),
      ),
  );
  $("longest").previousElementSibling.hidden = longest.length === 0;
}
