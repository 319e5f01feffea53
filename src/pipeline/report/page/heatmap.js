// The heatmap: a row at a time, its tokens coloured around 1, or by surprise where there are no weights.

/** Weights nearer to 1 than this have no colour, however small epsilon is: who trains would not notice. */
const LEAST_VISIBLE = 0.02;
/** Loss of the RL model that has the darkest colour where there are no weights, nats. */
const MOST_SURPRISE = 8;

/** For each position the text of its piece, at the last of its ids. */
function textsByPosition(row) {
  if (row.texts) return row.texts;
  row.texts = new Array(row.ids.length).fill("");
  let position = 0;
  for (const piece of (row.text || row.ids.map((id) => id + " ")).map(pieceOf)) {
    position += piece.ids;
    row.texts[position - 1] = piece.text + cutNote(piece);
  }
  return row.texts;
}

const wholeText = (row) => (row.whole ||= textsByPosition(row).join(""));

/** How strongly a weight is coloured: -1 to 1, 0 where nothing is said. */
function strength(target, row, view) {
  if (target === null) return 0;
  const formula = view.formula;
  const weight = weightOf(target, row, formula);
  if (weight === null) return clamp((-target.rl - 1) / (MOST_SURPRISE - 1), 0, 1);
  const epsilon = formula.weighting === "dynamic" ? formula.epsilon : 1;
  if (epsilon <= LEAST_VISIBLE) return 0;
  const neutral = Math.max(epsilon / 4, LEAST_VISIBLE);
  const distance = Math.abs(weight - 1);
  return distance <= neutral
    ? 0
    : Math.sign(weight - 1) * (0.25 + 0.75 * ((distance - neutral) / Math.max(epsilon - neutral, 1e-9)));
}

function colour(span, target, row, view) {
  const value = strength(target, row, view);
  const isMarked = span.classList.contains("match");
  span.className =
    "tok" +
    (value < 0 ? " low" : value > 0 ? " high" : "") +
    (Math.abs(value) > 0.999 ? " bound" : "") +
    (target === null ? " none" : "") +
    (isMarked ? " match" : "");
  if (value === 0) span.style.removeProperty("--a");
  else span.style.setProperty("--a", Math.abs(value).toFixed(3));
}

/** The tokens of a row as elements. A line break is shown, and breaks the line. */
function tokenSpans(row, view, prefix) {
  const targets = targetsOf(row);
  const spans = [];
  let position = 0;
  for (const raw of row.text || row.ids.map((id) => id + " ")) {
    const piece = pieceOf(raw);
    position += piece.ids;
    const last = position - 1;
    const isOption = prefix === "t";
    const span = make("span", { id: prefix + last, role: isOption && "option", "aria-selected": isOption && "false" });
    for (const node of visibleNodes(piece.text)) {
      span.append(node);
      if (typeof node !== "string" && node.textContent === "\u21b5") span.append("\n");
    }
    const note = cutNote(piece);
    if (note) span.append(make("span", { class: "control" }, note));
    if (piece.text === "") span.append(make("span", { class: "control" }, "\u25ab"));
    span.position = last;
    span.first = last - piece.ids + 1;
    colour(span, targets[last], row, view);
    spans.push(span);
  }
  return spans;
}

function markMatches(spans, row, query) {
  if (!query) return;
  const text = wholeText(row).toLowerCase();
  const wanted = query.toLowerCase();
  const hits = [];
  for (let at = text.indexOf(wanted); at >= 0 && hits.length < 1000; at = text.indexOf(wanted, at + wanted.length))
    hits.push([at, at + wanted.length]);
  const texts = textsByPosition(row);
  let offset = 0;
  for (const span of spans) {
    const end = offset + texts[span.position].length;
    if (hits.some(([from, to]) => from < end && to > offset)) span.classList.add("match");
    offset = end;
  }
}

function spoken(text) {
  return visible(text).replace(/ /g, "\u2423");
}

function showDetail(view, row, position) {
  const span = view.spans.find((candidate) => candidate.position === position);
  const text = textsByPosition(row)[position];
  const target = targetsOf(row)[position];
  const lines = [["position", position + " of " + (row.tokens - 1)]];
  lines.push([
    span && span.first < position ? "ids" : "id",
    (span ? row.ids.slice(span.first, position + 1) : [row.ids[position]]).join(" "),
  ]);
  if (target === null)
    lines.push(["", position === 0 ? "the first of its row: nothing predicts it" : "no target: the corpus masks it"]);
  else {
    lines.push(["log p RL", fixed(target.rl, 3) + " nats, p " + short(Math.exp(target.rl))]);
    if (target.delta !== null) {
      const weight = weightOf(target, row, view.formula);
      lines.push(["log p base", fixed(target.base, 3) + " nats, p " + short(Math.exp(target.base))]);
      lines.push(["delta", signed(target.delta, 3) + " nats"]);
      lines.push(["less row mean", signed(target.centred, 3)]);
      lines.push(["weight", fixed(weight, 4)]);
      lines.push(["rank in row", grouped(target.rank + 1) + " of " + grouped(row.targets)]);
    }
  }
  replace(
    $("detail"),
    make("p", { class: "big" }, make("bdi", { class: "token" }, spoken(text))),
    make(
      "dl",
      null,
      lines.flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]),
    ),
  );
}

/** Moves to a token, and makes it the one that details are of. */
function selectToken(view, position, options) {
  const row = view.row;
  if (!row) return;
  const span = view.spans.find((candidate) => candidate.position >= position) || view.spans[view.spans.length - 1];
  if (view.selected) view.selected.setAttribute("aria-selected", "false");
  view.selected = span;
  span.setAttribute("aria-selected", "true");
  const target = targetsOf(row)[span.position];
  const weight = weightOf(target, row, view.formula);
  span.setAttribute(
    "aria-label",
    spoken(textsByPosition(row)[span.position]) + (weight === null ? "" : ", weight " + fixed(weight, 2)),
  );
  $("text").setAttribute("aria-activedescendant", span.id);
  view.position = span.position;
  showDetail(view, row, span.position);
  if (options && options.scroll) span.scrollIntoView({ block: "nearest" });
  if (!(options && options.silent)) view.remember();
}

/** The token nearest to the selected one in the line above or below. */
function neighbour(view, direction) {
  const here = view.selected.getBoundingClientRect();
  let best = null;
  for (const span of view.spans) {
    const box = span.getClientRects()[0];
    if (!box || direction * (box.top - here.top) < 4) continue;
    const distance = direction * (box.top - here.top) * 1000 + Math.abs(box.left - here.left);
    if (best === null || distance < best.distance) best = { span, distance };
  }
  return best && best.span.position;
}

function onTextKey(view, event) {
  if (!view.selected || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = view.spans.indexOf(view.selected);
  const isRtl = getComputedStyle($("text")).direction === "rtl";
  const step = (by) => view.spans[clamp(at + by, 0, view.spans.length - 1)].position;
  const moves = {
    ArrowRight: () => step(isRtl ? -1 : 1),
    ArrowLeft: () => step(isRtl ? 1 : -1),
    Home: () => step(-at),
    End: () => step(view.spans.length),
    ArrowDown: () => neighbour(view, 1),
    ArrowUp: () => neighbour(view, -1),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  const position = moves[event.key]();
  if (position !== null && position !== undefined) selectToken(view, position, { scroll: true });
}

function showLegend(view) {
  const set = view.set();
  const formula = view.formula;
  const swatch = (kind, value) => {
    const box = make("span", { class: "swatch tok " + kind });
    box.style.setProperty("--a", value);
    return box;
  };
  if (!set.base) {
    replace(
      $("legend"),
      swatch("high", 0.2),
      swatch("high", 0.6),
      swatch("high", 1),
      " loss of the RL model, from 1 to " + MOST_SURPRISE + " nats; no colour below",
    );
    return;
  }
  if (formula.weighting === "excess-top-k") {
    replace($("legend"), swatch("low", 1), " not selected: weight 0; no colour: selected, weight 1");
    return;
  }
  if (formula.epsilon <= LEAST_VISIBLE) {
    replace($("legend"), "No colours: no weight can differ from 1 by more than " + LEAST_VISIBLE);
    return;
  }
  const neutral = Math.max(formula.epsilon / 4, LEAST_VISIBLE);
  replace(
    $("legend"),
    swatch("low bound", 1),
    " weight " + short(1 - formula.epsilon) + " ",
    swatch("low", 0.6),
    swatch("low", 0.3),
    " no colour: ",
    short(1 - neutral) + " to " + short(1 + neutral) + " ",
    swatch("high", 0.3),
    swatch("high", 0.6),
    swatch("high bound", 1),
    " " + short(1 + formula.epsilon) + "; grey: no target",
  );
}

/** The row that is shown first: of the source that the RL model distrusts most. */
function firstRow(set) {
  const liking = (row) => set.sources[row.source].numbers.liking_bits ?? -set.sources[row.source].numbers.rl;
  return set.rows.reduce((best, row) => (best === null || liking(row) < liking(best) ? row : best), null);
}

/** Shows a row, or says that there is none. */
function showRow(view, row, position) {
  view.row = row;
  view.selected = null;
  view.spans = [];
  const set = view.set();
  if (!row) {
    replace($("text"), make("span", { class: "note" }, set.rows.length ? "No row is chosen." : "There are no rows."));
    replace($("detail"));
    replace($("text-other"));
    return;
  }
  view.spans = tokenSpans(row, view, "t");
  markMatches(view.spans, row, view.query);
  const cut =
    row.ids.length < row.tokens
      ? make(
          "span",
          { class: "control" },
          " \u2026 the first " + grouped(row.ids.length) + " of " + grouped(row.tokens) + " tokens",
        )
      : null;
  replace($("text"), view.spans, cut);
  const source = row.source_name === null ? nameOf(set.sources[row.source]) : visible(row.source_name);
  $("text").setAttribute("aria-label", "Tokens of row " + row.id + " of " + source + ": arrow keys move from token to token");
  replace(
    $("rows-note"),
    "Row ",
    make("strong", { id: "shown-row" }, row.id),
    ": " +
      grouped(row.tokens) +
      " tokens, document " +
      grouped(row.doc) +
      " of " +
      source +
      ". Of " +
      grouped(set.totals.rows) +
      " rows, " +
      grouped(set.rows.length) +
      " are shown, drawn by row_id with seed " +
      DATA.seed +
      ", as many tokens of each source as it has, up to equal shares.",
  );
  const first = view.spans.find((span) => targetsOf(row)[span.position] !== null) || view.spans[0];
  selectToken(view, position === null || position === undefined ? first.position : position, {
    silent: true,
    scroll: position !== null && position !== undefined,
  });
  showOther(view, row);
}

/** The same row as the other set has it. */
function showOther(view, row) {
  const other = DATA.sets[1 - view.setIndex];
  const same = other && other.rows.find((candidate) => candidate.id === row.id && candidate.ids.join() === row.ids.join());
  view.otherRow = same || null;
  if (!other) return replace($("text-other"));
  if (!same)
    return replace(
      $("text-other"),
      make("p", { class: "note" }, "The other set does not show this row, or has other tokens in it."),
    );
  view.otherSpans = tokenSpans(same, view, "o");
  replace(
    $("text-other"),
    make("h3", null, "The same row in the other set, " + visible(other.name)),
    make("div", { class: "text", dir: "auto" }, view.otherSpans),
  );
}

/** Colours the shown tokens anew. */
function recolour(view) {
  showLegend(view);
  if (!view.row) return;
  for (const span of view.spans) colour(span, targetsOf(view.row)[span.position], view.row, view);
  if (view.otherRow)
    for (const span of view.otherSpans) colour(span, targetsOf(view.otherRow)[span.position], view.otherRow, view);
  if (view.selected) showDetail(view, view.row, view.position);
}

/** Rows of the chosen source whose text has what is looked for. */
function matchingRows(view) {
  const set = view.set();
  const wanted = view.query.toLowerCase();
  return set.rows.filter(
    (row) =>
      (view.rowSource === "" || row.source === Number(view.rowSource)) &&
      (!wanted || wholeText(row).toLowerCase().includes(wanted)),
  );
}

function moveRow(view, by) {
  const rows = matchingRows(view);
  if (rows.length === 0) return;
  const at = rows.indexOf(view.row);
  const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : (at + by + rows.length) % rows.length;
  showRow(view, rows[next]);
  sayFound(view);
  view.remember();
}

function sayFound(view, problem) {
  const rows = matchingRows(view);
  const at = rows.indexOf(view.row);
  $("found").textContent =
    problem || (at < 0 ? grouped(rows.length) + " rows" : "row " + grouped(at + 1) + " of " + grouped(rows.length));
}

function findRow(view) {
  const id = $("row-id").value.trim();
  view.rowSource = $("row-source").value;
  view.query = $("row-text").value;
  if (id !== "") return goToRow(view, id, null);
  const rows = matchingRows(view);
  if (rows.length === 0) return sayFound(view, "no row that is shown has it");
  showRow(view, rows.includes(view.row) ? view.row : rows[0]);
  const hit = view.spans.find((span) => span.classList.contains("match"));
  if (hit) selectToken(view, hit.position, { scroll: true, silent: true });
  sayFound(view);
  view.remember();
}

/** Goes to a row by its row_id; says how to see one that is not here. */
function goToRow(view, id, position) {
  const row = view.set().rows.find((candidate) => candidate.id === id);
  if (!row) {
    sayFound(
      view,
      "row " +
        visible(id) +
        " is not among the rows that are shown; report --row-id " +
        visible(id) +
        " adds it, show --row-id " +
        visible(id) +
        " prints it",
    );
    return false;
  }
  showRow(view, row, position);
  sayFound(view);
  view.remember();
  return true;
}
