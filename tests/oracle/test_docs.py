"""README.md, CONTRIBUTING.md and docs/: what they show is what happens.

Every sql and python block runs beside a scored set. The console blocks of the README run in order, and have to print
what they show. Flags, links, paths and names of tests have to exist.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas
import polars
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("remit-score", "remit-anneal", "remit-inspect")
MOST_README_LINES = 140


def blocks(page, *languages):
    """(number of its first line, text) of each fenced block of one of these languages."""
    found, language, lines = [], None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and language is None:
            language, start, lines = fence.group(1), number + 1, []
        elif fence:
            if language in languages:
                found.append((start, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page}: a block is not closed"
    return found


def parametrize(*languages):
    cases = [(page, line, text) for page in PAGES for line, text in blocks(page, *languages)]
    return pytest.mark.parametrize(
        ("page", "line", "text"), cases, ids=[f"{page.name}:{line}" for page, line, _ in cases]
    )


@pytest.fixture
def beside_weights(demo_weights, models, monkeypatch):
    """The working directory holds weights/, and base/, the model that static weights were made with."""
    monkeypatch.chdir(demo_weights.parent)
    base = demo_weights.parent / "base"
    if not base.exists():
        base.symlink_to(models / "demo-base")
    return demo_weights


@parametrize("sql")
def test_sql_returns_rows(page, line, text, beside_weights, run):
    connection = duckdb.connect()
    for statement in connection.extract_statements(text):
        result = connection.execute(statement)
        names = [column[0] for column in result.description]
        rows = result.fetchall()
        assert rows, f"no rows from:\n{statement.query}"
        if "perplexity" in names:
            found = {row[names.index("source")]: row[names.index("perplexity")] for row in rows}
            check_perplexity(found, run, beside_weights)


@parametrize("python")
def test_python_returns_rows(page, line, text, beside_weights, run):
    names = {}
    exec(compile(text, f"{page.name}:{line}", "exec"), names)
    tables = [v for v in names.values() if isinstance(v, (pandas.DataFrame, pandas.Series, polars.DataFrame))]
    assert any(len(table) for table in tables), "no table with rows"
    for table in tables:
        if isinstance(table, polars.DataFrame) and "perplexity" in table.columns:
            check_perplexity(dict(table.select("source", "perplexity").iter_rows()), run, beside_weights)


def sources_of(run, weights):
    """The manifest's statistics by source."""
    return json.loads(run("remit-inspect", weights, "--json").stdout)["sources"]


def check_perplexity(by_source, run, weights):
    """Perplexities that a query gives are those of the manifest, which adds up tokens."""
    sources = sources_of(run, weights)
    assert by_source.keys() == sources.keys()
    for name, source in sources.items():
        assert by_source[name] == pytest.approx(source["rl_perplexity"], rel=1e-4)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder in which the README's console blocks are run."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def transcript(demo):
    """(command, lines shown, lines printed) of every command in the README's console blocks, run one after another."""
    (demo / "fixtures").symlink_to(ROOT / "fixtures")
    programs = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    ran = []
    for _, text in blocks(ROOT / "README.md", "console"):
        command, *shown = text.splitlines()
        assert command.startswith("$ "), command
        done = subprocess.run(
            ["bash", "-c", command[2:]], cwd=demo, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran.append((command, shown, done.stdout.splitlines()))
    return ran


def test_the_demo_is_three_commands_one_of_each_program(transcript):
    assert [command.split()[1] for command, _, _ in transcript] == ["remit-score", "remit-inspect", "remit-anneal"]


def test_commands_print_what_the_readme_shows(transcript):
    for command, shown, printed in transcript:
        rest = list(printed)
        may_skip = False
        for line in shown:
            if line == "...":
                may_skip = True
                continue
            while rest and may_skip and not is_like(rest[0], line):
                rest.pop(0)
            assert rest and is_like(rest[0], line), f"{command}\nREADME.md has: {line}\nprinted: {rest[:1]}\n" + "\n".join(printed)
            rest.pop(0)
            may_skip = False
        assert may_skip or not rest, f"{command}\nmore was printed, and README.md has no ... at its end: {rest}"


def is_like(printed, shown):
    """The same words and, within a hundredth, the same numbers; times and speeds may be any."""
    clock = re.compile(r"in [\d.]+ s, [\d,]+ tokens/s")
    printed, shown = (clock.sub("", line).split() for line in (printed, shown))
    return len(printed) == len(shown) and all(map(is_like_word, printed, shown))


def is_like_word(printed, shown):
    if printed == shown:
        return True
    number = re.compile(r"-?\d[\d,]*(\.\d+)?")
    if number.sub("#", printed) != number.sub("#", shown):
        return False
    values = [[float(m.group().replace(",", "")) for m in number.finditer(word)] for word in (printed, shown)]
    return all(a == pytest.approx(b, rel=0.01, abs=0.0021) for a, b in zip(*values))


def test_the_source_with_the_highest_weight_is_one_that_the_rl_model_likes_less(run, demo, transcript):
    """As the README says of centring by row: weights never rank sources."""
    sources = sources_of(run, demo / "weights")
    highest = max(sources, key=lambda name: sources[name]["weight"]["mean"])
    assert highest == "solutions/drill.txt"
    source = sources[highest]
    assert source["rl_logprob_mean"] - source["base_logprob_mean"] == pytest.approx(-0.115, abs=0.005)


def commands(text):
    """(program, words) of the remit commands in a block; a line that ends in a backslash goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for i, word in enumerate(words):
            name = Path(word.strip("[,]")).name
            if name in PROGRAMS:
                yield name, words[i + 1 :]
                break


@parametrize("sh", "console", "yaml")
def test_flags_in_examples_exist(page, line, text, run):
    for program, words in commands(text):
        subcommands = run(program, "--help").stdout.split("Arguments:")[0]
        is_subcommand = words and re.search(rf"^  {re.escape(words[0])} ", subcommands, re.MULTILINE)
        help_text = run(program, *words[: 1 if is_subcommand else 0], "--help").stdout
        for word in words:
            flag = word.strip("[,]").split("=")[0]
            if flag.startswith("--"):
                assert re.search(rf"{flag}\b", help_text), f"{program} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_paths_and_tests_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name} links {target}"
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for path in (word for words in code for word in words.split()):
        if re.match(r"(src|scripts|tests|fixtures|schemas|docs)/", path):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
    sources = [*(ROOT / "src").rglob("*.rs"), *(ROOT / "tests").rglob("*.rs"), *(ROOT / "tests").rglob("*.py")]
    functions = set(re.findall(r"^\s*(?:fn|def) (\w+)\(", "\n".join(path.read_text() for path in sources), re.MULTILINE))
    # A CUDA kernel, whose name may lack its dtype and size.
    kernels = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.cu"))
    for name in code:
        if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+){3,}", name):
            kernel = re.sub(r"_(bf16|f32)(_[0-9_]+)?$", "", name)
            assert name in functions or kernel in kernels, f"{page.name} names the test or kernel {name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES


def test_the_picture_is_of_what_is_scored(tmp_path):
    """Drawn again, docs/token_weights.svg has the same tokens, and weights that differ by rounding at most."""
    drawn = tmp_path / "again.svg"
    script = [sys.executable, str(ROOT / "scripts" / "docs" / "token_weights.py"), "--out", str(drawn)]
    subprocess.run(script, check=True, capture_output=True)
    tokens = re.compile(r">([^<]*)<title>(?:weight ([\d.]+)|not a target)</title>")
    committed, again = (tokens.findall(path.read_text()) for path in (ROOT / "docs" / "token_weights.svg", drawn))
    assert len(committed) > 50 and [text for text, _ in committed] == [text for text, _ in again]
    for (text, a), (_, b) in zip(committed, again):
        assert (not a and not b) or float(a) == pytest.approx(float(b), abs=0.011), text
