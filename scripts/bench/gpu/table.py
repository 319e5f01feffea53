"""The one table: a row for each check, with its target, what was found, the verdict and the card."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import NamedTuple

PASS, FAIL, NOT_RUN, NOT_MEASURED, SKIPPED, NOTED = "pass", "fail", "not run", "not measured", "skipped", "-"

# Of a value; an error may be long, and gpu.log has all of it.
WIDEST = 160


class Check(NamedTuple):
    """What a step finds out. Without a target it is noted only. On an emulated GPU those of a card only are left out."""

    name: str
    target: str = ""
    card_only: bool = False


@dataclass
class Row:
    step: str
    check: str
    target: str
    value: str
    verdict: str
    card: str


class Table:
    """Rows in order, shown as they come and kept in a file, so that a run that is cut short leaves what it had."""

    def __init__(self, folder, emulated):
        self.folder, self.emulated = folder, emulated
        self.card = "emulated" if emulated else "unknown"
        self.rows, self.seconds = [], {}

    def add(self, step, check, value, verdict):
        value = value if len(value) <= WIDEST else value[: WIDEST - 3] + "..."
        row = Row(step, check.name, check.target, value, verdict, self.card)
        self.rows.append(row)
        print(f"{verdict:<12} {step}: {check.name}: {value}", file=sys.stderr, flush=True)
        self.save()

    def passed(self):
        return bool(self.rows) and all(row.verdict not in (FAIL, NOT_RUN) for row in self.rows)

    def save(self):
        found = {"passed": self.passed(), "emulated": self.emulated, "card": self.card, "seconds": self.seconds}
        found["rows"] = [asdict(row) for row in self.rows]
        part = self.folder / "gpu.json.part"
        part.write_text(json.dumps(found, indent=2) + "\n")
        os.replace(part, self.folder / "gpu.json")

    def text(self):
        """The table as GitHub's Markdown has it, with columns aligned."""
        lines = [["step", "check", "target", "value", "verdict", "card"]]
        lines += [[getattr(row, key) for key in lines[0]] for row in self.rows]
        lines = [[cell.replace("|", "/") for cell in line] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, ["-" * width for width in widths])
        drawn = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
        count = {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in (PASS, FAIL, NOT_RUN, NOT_MEASURED, SKIPPED)}
        summary = ", ".join(f"{number} {verdict}" for verdict, number in count.items() if number)
        return "\n".join([*drawn, "", f"{'passed' if self.passed() else 'FAILED'}: {summary}"])
