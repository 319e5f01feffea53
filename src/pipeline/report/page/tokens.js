// Tokens that are raised and lowered, kinds of tokens, and the farthest ones in context.

const KINDS = {
  special: "special tokens",
  bytes: "parts of characters",
  space: "spaces and line breaks",
  digits: "digits",
  code: "code and formulas",
  punctuation: "punctuation",
  connective: "connectives",
  capitalized: "names and other capitals",
  word: "other words",
};

const addSums = (all, sums) => all.map((value, index) => value + sums[index]);

/** An occurrence of a token among the rows that are shown, the farthest in a direction. */
function occurrence(view, id, sources, direction) {
  const set = view.set();
  let best = null;
  for (const row of set.rows) {
    if (!sources.includes(set.sources[row.source])) continue;
    row.ids.forEach((found, position) => {
      if (found !== id) return;
      const target = targetsOf(row)[position];
      if (target && target.centred !== null && (best === null || direction * target.centred > best.value))
        best = { row, position, value: direction * target.centred };
    });
  }
  return best;
}

function exampleOf(view, token, sources, direction) {
  const found = occurrence(view, token.id, sources, direction);
  if (!found) return "\u2013";
  const texts = textsByPosition(found.row);
  const part = (from, to) => texts.slice(Math.max(0, from), to).join("");
  return make(
    "span",
    { class: "example" },
    make(
      "bdi",
      { dir: "auto" },
      visibleNodes(part(found.position - 6, found.position)),
      make("mark", null, visibleNodes(texts[found.position] || "\u2026")),
      visibleNodes(part(found.position + 1, found.position + 4)),
    ),
    " ",
    view.rowLink(found.row.id, found.position, "show"),
  );
}

function tokenTable(view, list, sources) {
  const direction = list === "raised" ? 1 : -1;
  const tokens = (sources.length === 1 ? sources[0] : view.set())[list];
  if (tokens.length === 0) return make("p", { class: "note" }, "None.");
  const most = Math.max(1e-9, ...tokens.map((token) => Math.abs(token.sums[3] - token.sums[0])));
  const columns = [
    [
      "token",
      "Its text, and its id",
      (token) => [
        token.text === null ? null : make("bdi", { class: "token" }, spoken(joined([token.text]))),
        make("span", { class: "control" }, " " + token.id),
      ],
      "name",
    ],
    ["kind", "Told by its text", (token) => (token.kind ? KINDS[token.kind] : "\u2013")],
    ["count", "Targets with this token", (token) => grouped(token.sums[0]), "number"],
    ["w mean", "Mean of its stored weights", (token) => fixed(token.sums[3] / token.sums[0], 3), "number"],
    [
      list === "raised" ? "gained" : "lost",
      "Sum of weight \u2212 1 over its targets",
      (token) =>
        make(
          "span",
          { class: "with-bar" },
          divergingBar(token.sums[3] - token.sums[0], most, ""),
          make("span", { class: "value" }, signed(token.sums[3] - token.sums[0], 1)),
        ),
      "bar",
    ],
    [
      "for example",
      "Among the rows that are shown, where it is farthest from the mean of its row",
      (token) => exampleOf(view, token, sources, direction),
    ],
  ];
  return table(columns, tokens);
}

function kindTable(sources, hasBase) {
  const kinds = new Map();
  for (const source of sources)
    for (const [kind, tokens, sums] of source.kinds) {
      const before = kinds.get(kind);
      kinds.set(
        kind,
        before ? { kind, tokens: Math.max(before.tokens, tokens), sums: addSums(before.sums, sums) } : { kind, tokens, sums },
      );
    }
  const rows = [...kinds.values()].map((row) => ({ ...row, label: KINDS[row.kind] }));
  rows.sort((a, b) => (hasBase ? a.sums[3] / a.sums[0] - b.sums[3] / b.sums[0] : b.sums[0] - a.sums[0]));
  const all = rows.reduce((sum, row) => sum + row.sums[0], 0);
  const known = sources.map((source) => source.known).reduce(addSums, [0, 0, 0, 0]);
  if (known[0] > 0) rows.push({ label: "boilerplate: any, in runs that are known", tokens: null, sums: known, total: true });
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(row.sums[3] / row.sums[0] - 1)));
  const columns = [
    ["kind", "Told by the text of the token alone", (row) => row.label, "name"],
    ["targets", "Number of targets", (row) => grouped(row.sums[0]), "number"],
    ["share", "Share of the targets", (row) => percent(row.sums[0] / Math.max(all, 1), 1), "number"],
    [
      "tokens",
      "Number of different tokens, in the source that has most",
      (row) => (row.tokens === null ? "\u2013" : grouped(row.tokens)),
      "number",
    ],
    ["loss RL", "Mean loss of the RL model, nats", (row) => fixed(-row.sums[1] / row.sums[0], 3), "number"],
  ];
  if (hasBase)
    columns.push(
      ["loss base", "Mean loss of the base, nats", (row) => fixed(-row.sums[2] / row.sums[0], 3), "number"],
      [
        "w mean",
        "Mean of the stored weights",
        (row) => {
          const mean = row.sums[3] / row.sums[0];
          return make(
            "span",
            { class: "with-bar" },
            divergingBar(mean - 1, most, ""),
            make("span", { class: "value" }, fixed(mean, 3)),
          );
        },
        "bar",
      ],
    );
  return table(columns, rows, { rowClass: (row) => (row.total ? "total" : null) });
}

function contextItem(view, extreme, source) {
  return make(
    "li",
    null,
    make(
      "bdi",
      { class: "quote", dir: "auto" },
      visibleNodes(joined(extreme.before)),
      make("mark", { class: extreme.centred < 0 ? "low" : "high" }, visibleNodes(joined(extreme.token))),
      visibleNodes(joined(extreme.after)),
    ),
    make(
      "span",
      { class: "where" },
      "RL " +
        fixed(extreme.rl, 2) +
        ", base " +
        fixed(extreme.base, 2) +
        " nats, " +
        signed(extreme.centred, 2) +
        " against its row; ",
      view.rowLink(extreme.row, extreme.position),
      " of " + nameOf(source),
    ),
  );
}

function showTokens(view) {
  const set = view.set();
  const chosen = $("token-source").value;
  const sources = chosen === "" ? set.sources : [set.sources[Number(chosen)]];
  $("tokens-note").textContent =
    "Of the " +
    grouped(set.num_tokens) +
    " different tokens of the set, by what their stored weights gain or lose in all. Counts and means are of the whole set; examples are from the rows that are shown.";
  for (const id of ["raised", "lowered"])
    replace(
      $(id),
      set.base ? tokenTable(view, id, sources) : make("p", { class: "note" }, "There are no weights without a base."),
    );
  replace(
    $("kinds"),
    sources.some((source) => source.kinds.length)
      ? kindTable(sources, set.base)
      : make("p", { class: "note" }, "Without the tokenizer there is no text to tell kinds by."),
  );
  for (const [id, list] of [
    ["raised-most", "raised_most"],
    ["lowered-most", "lowered_most"],
  ]) {
    const all = sources.flatMap((source) => source[list].map((extreme) => ({ extreme, source })));
    all.sort((a, b) => Math.abs(b.extreme.centred) - Math.abs(a.extreme.centred));
    replace(
      $(id),
      all.slice(0, 6).map(({ extreme, source }) => contextItem(view, extreme, source)),
    );
  }
}
