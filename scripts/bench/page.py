"""Writes the page of benchmarks and its chart from what the benchmarks measured; scripts/bench/all.sh runs it.

    python scripts/bench/page.py write target/bench --page docs/benchmarks.md --chart docs/benchmarks.svg

The folder has a file of JSON lines for each benchmark: the first, by `page.py begin CALL`, says when and on what machine
it ran, the others are those of results.py.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from html import escape
from pathlib import Path

from notes import AFTER, BEFORE, MISSED

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("scoring", "training", "streaming", "data_plane", "disk", "families", "report")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")
# Of the CPU's flags, those that a product depends on.
FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")


def machine():
    """The facts that a measurement depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    info = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    info = {key.strip(): value.strip() for key, value in info.items()}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target/release")) / "remit-score"
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "date": date.today().isoformat(),
        "cpu": f"{info['model name']}, family {info['cpu family']}, model {info['model']}, {os.cpu_count()} cores",
        "flags": " ".join(flag for flag in FLAGS if flag in info["flags"].split()),
        "memory": f"{pages / 1e9:.0f} GB",
        "remit": version.split()[1],
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load": os.getloadavg()[0],
    }


def number(value):
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values):
    """`min / median / max`, or the one value."""
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0])
    return " / ".join(number(v) for v in (min(values), statistics.median(values), max(values)))


def verdict(row):
    """(target, outcome) in words."""
    value = row["value"]
    for side, sign, meets in (("at_least", "≥", lambda a, b: a >= b), ("at_most", "≤", lambda a, b: a <= b)):
        target = row[side]
        if target is None:
            continue
        if meets(value, target):
            return f"{sign} {target:g}", "met"
        by = abs(1 - value / target)
        return f"{sign} {target:g}", f"missed by {by:.0%}"
    return "", ""


def table(rows):
    lines = ["| what | unit | remit | beside it | | ratio | target | |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        target, outcome = verdict(row)
        value = row["value"]
        # Not where the target is on what was measured itself.
        ratio = "" if value is None or [value] == row["ours"] else f"{value:.2f}"
        cells = [row["what"], row["unit"], spread(row["ours"]), row["peer"] or "", spread(row["theirs"]), ratio, target, outcome]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def notes(rows):
    """What is known about the targets of these rows that were missed."""
    missed = {row["key"] for row in rows if verdict(row)[1].startswith("missed")}
    return [f"- {MISSED[key]}" for key in MISSED if key in missed]


def page(benchmarks, chart):
    about = benchmarks[-1][0]
    lines = [
        "# Benchmarks",
        "",
        f"`scripts/bench/all.sh` measured what stands here and wrote the page. The CPU alone: {about['cpu']}, {about['memory']} of "
        f"memory, with {about['flags']}. remit {about['remit']}; Python {about['python']} with "
        + ", ".join(f"{name} {version}" for name, version in about["packages"].items())
        + ".",
        "",
        *BEFORE,
        "",
        f"![Ratios of remit to its peers]({chart.name})",
    ]
    by_section = {}
    for facts, rows in benchmarks:
        for row in rows:
            by_section.setdefault(row["section"], (facts, []))[1].append(row)
    for section, (facts, rows) in by_section.items():
        lines += ["", f"## {section}", "", f"{facts['date']}, `scripts/bench/{facts['call']}`; load of the machine at the start {facts['load']:.1f}.", ""]
        lines += table(rows)
        remarks = notes(rows)
        if remarks:
            lines += ["", "What was missed:", "", *remarks]
    return "\n".join([*lines, "", *AFTER]) + "\n"


STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .ink { fill: #1f2328 }
  .note { fill: #59636e }
  .bar { fill: #4393c3 }
  .rule { stroke: #59636e }
  .goal { stroke: #d6604d; stroke-width: 2 }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12.5px }
  .small { font-size: 11px }
  @media (prefers-color-scheme: dark) {
    .card { fill: #151b23; stroke: #3d444d }
    .ink { fill: #f0f6fc }
    .note { fill: #9198a1 }
    .bar { fill: #2f7ab5 }
    .rule { stroke: #9198a1 }
    .goal { stroke: #c8503f }
  }
"""
WIDTH, LEFT, RIGHT, TOP, LINE, BAR = 760, 330, 70, 62, 30, 16


def draw(rows):
    """Bars of ratios to peers, where more is better, with a mark at each target."""
    shown = [row for row in rows if row["theirs"] and row["unit"] == "tokens/s"]
    most = max([2.0, *(max(row["value"], row["at_least"] or 0) for row in shown)]) * 1.05
    height = TOP + LINE * len(shown) + 16
    scale = (WIDTH - LEFT - RIGHT) / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Tokens a second of remit as multiples of its peers'</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '<text class="ink" x="20" y="28">Tokens a second as multiples of the peer\'s; red: the target</text>',
    ]
    for tick in range(int(most) + 1):
        x = LEFT + tick * scale
        dashes = "" if tick in (0, 1) else ' stroke-dasharray="2 4"'
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 12}" stroke-opacity="0.5"{dashes}/>')
        parts.append(f'<text class="note small" x="{x:.1f}" y="{TOP - 11}" text-anchor="middle">{tick}</text>')
    for i, row in enumerate(shown):
        y = TOP + i * LINE
        what, peer = escape(row["what"].split(", ", 1)[0] if row["what"].startswith("--stream") else row["what"]), escape(row["peer"])
        parts.append(f'<text class="ink" x="{LEFT - 10}" y="{y + 8}" text-anchor="end">{what}</text>')
        parts.append(f'<text class="note small" x="{LEFT - 10}" y="{y + 20}" text-anchor="end">beside {peer}</text>')
        parts.append(f'<rect class="bar" x="{LEFT}" y="{y}" width="{row["value"] * scale:.1f}" height="{BAR}" rx="2"/>')
        end = LEFT + max(row["value"], row["at_least"] or 0) * scale
        parts.append(f'<text class="ink" x="{end + 7:.1f}" y="{y + 12}">{row["value"]:.2f}</text>')
        if row["at_least"]:
            x = LEFT + row["at_least"] * scale
            parts.append(f'<line class="goal" x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + BAR + 3}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("begin")
    begin.add_argument("call", help="the script and its options")
    write = commands.add_parser("write")
    write.add_argument("folder", type=Path)
    write.add_argument("--page", type=Path, required=True)
    write.add_argument("--chart", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "begin":
        print(json.dumps(machine() | {"call": args.call.strip()}))
        return
    benchmarks = []
    for name in ORDER:
        path = args.folder / f"{name}.jsonl"
        if path.exists():
            facts, *rows = map(json.loads, path.read_text().splitlines())
            benchmarks.append((facts, rows))
    if not benchmarks:
        sys.exit(f"{args.folder} has no results: run scripts/bench/all.sh first")
    args.chart.write_text(draw([row for _, rows in benchmarks for row in rows]))
    args.page.write_text(page(benchmarks, args.chart))
    print(f"{args.page}, {args.chart}")


if __name__ == "__main__":
    main()
