"""Draws the token weights of one document of fixtures/corpus, scored with the demo pair, as an SVG.

    cargo build --release
    python3 scripts/docs/token_weights.py                  # writes docs/token_weights.svg; a few seconds
    python3 scripts/docs/token_weights.py --out /tmp/a.svg --doc 1727

Tokens are coloured around 1: blue below, red above, none within 0.05 of 1, as `remit-inspect show` does. Those that
differ from 1 by more than 0.1 have their weight below them. The picture has a background of its own and follows the
reader's light or dark theme. Needs the standard library alone.
"""

import argparse
import csv
import os
import subprocess
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "fixtures" / "corpus" / "solutions" / "train-00.jsonl"
# A worked sum whose last line has a slip: 102+15=117, and "Answer: 107".
DOCUMENT = 1599
EPSILON = 0.2
NEUTRAL, LABELLED = 0.05, 0.1

MARGIN, CHAR, FONT, LINE, MAX_CHARS = 24, 9.0, 15, 37, 64
TEXT_TOP = 68
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .ink { fill: #1f2328 }
  .note { fill: #59636e }
  .high { fill: #d6604d }
  .low { fill: #4393c3 }
  .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .sans { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12.5px }
  .small { font-size: 10.5px }
  @media (prefers-color-scheme: dark) {
    .card { fill: #151b23; stroke: #3d444d }
    .ink { fill: #f0f6fc }
    .note { fill: #9198a1 }
    .high { fill: #c8503f }
    .low { fill: #2f7ab5 }
  }
"""


def tokens_of(document):
    """(text, weight or None) of every token of a document; the first is no target."""
    folder = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        weights, table = Path(scratch) / "weights", Path(scratch) / "tokens.csv"
        for command in (
            ["remit-score", SOURCE, "-o", weights, "--limit-docs", document + 1],
            ["remit-inspect", "export", weights, "--tokens", table, "--raw-cells"],
        ):
            subprocess.run([str(folder / command[0]), *map(str, command[1:])], check=True, capture_output=True)
        with table.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if int(row["doc_index"]) == document]
    rows.sort(key=lambda row: int(row["position"]))
    return [(row["text"], float(row["weight"]) if int(row["position"]) else None) for row in rows]


def layout(tokens):
    """(line, column, shown text, weight) of every token; lines break at newlines, and before words at the margin."""
    line = column = 0
    for text, weight in tokens:
        shown = text.replace("\n", "\u21b5")
        if shown.startswith("<|"):
            shown = " <eos>"
        if column + len(shown) > MAX_CHARS and shown.startswith(" "):
            line, column = line + 1, 0
        yield line, column, shown, weight
        column += len(shown)
        if text.endswith("\n"):
            line, column = line + 1, 0


def draw(tokens):
    placed = list(layout(tokens))
    num_lines = placed[-1][0] + 1
    width = 2 * MARGIN + CHAR * MAX_CHARS
    height = TEXT_TOP + num_lines * LINE + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height}" viewBox="0 0 {width:g} {height}"'
        ' role="img">',
        "<title>A worked sum from fixtures/corpus, its tokens coloured by weight: the wrong digit of the answer has"
        " the lowest</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1}" rx="8"/>',
    ]
    parts += legend(width)
    for line, column, shown, weight in placed:
        x, y = MARGIN + column * CHAR, TEXT_TOP + line * LINE
        if weight is not None and abs(weight - 1) > NEUTRAL:
            parts.append(box(x + 0.5, y, len(shown) * CHAR - 1, 22, weight, 'rx="3"'))
        # A line's end and the end of the text are no ink of the document.
        kind = "note" if shown in ("\u21b5", " <eos>") else "ink"
        said = "not a target" if weight is None else f"weight {weight:.2f}"
        parts.append(
            f'<text class="{kind} mono" x="{x:g}" y="{y + 16:g}" font-size="{FONT}" textLength="{len(shown) * CHAR:g}"'
            f' xml:space="preserve">{escape(shown)}<title>{said}</title></text>'
        )
        if weight is not None and abs(weight - 1) > LABELLED:
            middle = x + len(shown) * CHAR / 2
            number = f"{weight:.2f}".removeprefix("0")
            parts.append(f'<text class="note sans small" x="{middle:g}" y="{y + 33:g}" text-anchor="middle">{number}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def box(x, y, width, height, weight, more=""):
    """A rectangle in the colour of a weight."""
    kind = "high" if weight > 1 else "low"
    opacity = min(0.95, 0.95 * abs(weight - 1) / EPSILON)
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {more}'
        f' fill-opacity="{opacity:.2f}"/>'
    )


def legend(width):
    """A heading, and a scale from the lowest weight to the highest."""
    yield f'<text class="ink sans" x="{MARGIN}" y="32">Weight of each token in the loss: 102+15 is 117, not 107</text>'
    steps, step = 16, 11
    left = width - MARGIN - steps * step - 8
    for i in range(steps):
        weight = 1 + EPSILON * ((i + 0.5) / steps * 2 - 1)
        if abs(weight - 1) > NEUTRAL:
            yield box(left + i * step, 20, step, 13, weight)
    for weight in (1 - EPSILON, 1 - NEUTRAL, 1 + NEUTRAL, 1 + EPSILON):
        x = left + (weight - 1 + EPSILON) / (2 * EPSILON) * steps * step
        yield f'<text class="note sans small" x="{x:g}" y="47" text-anchor="middle">{weight:g}</text>'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "token_weights.svg")
    parser.add_argument("--doc", type=int, default=DOCUMENT, help="number of the document in its file, from 0")
    args = parser.parse_args()
    args.out.write_text(draw(tokens_of(args.doc)), encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
