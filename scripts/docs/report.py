"""Photographs the page that remit-inspect report writes of fixtures/corpus, scored with the demo pair.

    cargo build --release
    python scripts/docs/report.py                  # writes docs/report.png and docs/report-tokens.png; about a minute
    python scripts/docs/report.py --out /tmp --weights weights/      # of a set that is there already

The first picture is what the page opens with, the second a document token by token. Needs playwright
(scripts/requirements.txt) and the system's Chromium, or the one that REMIT_CHROMIUM names.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
# A worked sum whose last line has a slip: 102+15=117, and "Answer: 107".
ROW, POSITION = 17179869393, 71
WIDTH, HEIGHT = 1120, 800


def make_page(scratch, weights):
    folder = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
    commands = [["remit-inspect", "report", "weights", "-o", "report.html", "--row-id", ROW]]
    if weights is None:
        commands.insert(0, ["remit-score", ROOT / "fixtures" / "corpus", "-o", "weights"])
    else:
        (Path(scratch) / "weights").symlink_to(weights.resolve())
    for command in commands:
        subprocess.run([str(folder / command[0]), *map(str, command[1:])], cwd=scratch, check=True, capture_output=True)
    return Path(scratch) / "report.html"


def photograph(page_file, out):
    chromium = os.environ.get("REMIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(180_000)
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.screenshot(path=out / "report.png")
        page.goto(f"{page_file.as_uri()}#row={ROW}&position={POSITION}")
        page.reload()
        page.wait_for_selector("html[data-ready]", state="attached")
        page.locator("#heatmap").screenshot(path=out / "report-tokens.png")
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    parser.add_argument("--weights", type=Path, help="fixtures/corpus, scored")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        photograph(make_page(scratch, args.weights), args.out)
    print(args.out / "report.png", args.out / "report-tokens.png")


if __name__ == "__main__":
    main()
