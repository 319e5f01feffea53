"""remit-inspect report in a real browser, and remit-inspect sweep: numbers are those that DuckDB computes from the shards.

The browser is the system's Chromium, driven by playwright: `apt-get install chromium`, or REMIT_CHROMIUM names one. Tests
that need it are skipped where there is none.
"""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys

import duckdb
import pytest
from tokenizers import Tokenizer

from oracle import metrics_of, read_rows

CHROMIUM = os.environ.get("REMIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
LN2 = math.log(2)


def data_of(path):
    """The data in a page."""
    text = path.read_text()
    return json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])


def number(text):
    """(value, half of the last digit's unit) of a number as the page shows it; percentages as shares."""
    text = text.strip().replace(",", "").replace("\u2212", "-")
    scale = 0.01 if text.endswith("%") else 1.0
    text = text.rstrip("%")
    digits = len(text.split(".")[1].split("e")[0]) if "." in text else 0
    power = int(text.split("e")[1]) if "e" in text else 0
    return float(text) * scale, 0.5 * 10.0 ** (power - digits) * scale


def assert_shows(text, wanted, what="", slack=0.0):
    shown, half = number(text)
    assert abs(shown - wanted) <= half * 1.0001 + slack, f"{what}: {text} is shown, {wanted} was computed"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium, or set REMIT_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in scripts/requirements.txt")
    with playwright.sync_playwright() as driver:
        # Without a sandbox of its own, since tests in containers run as root.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser):
    """look(path, fragment="", **options): the page, opened from disk and drawn. In the end nothing must have gone wrong in
    it, and nothing been asked of any network."""
    problems, contexts = [], []

    def opened(path, fragment="", width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        # Long, for machines that do much else: nothing here is about time.
        context.set_default_timeout(180_000)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    opened.problems = problems
    yield opened
    for context in contexts:
        context.close()
    assert not problems, problems


@pytest.fixture(scope="module")
def report(run, demo_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    run("remit-inspect", "report", demo_weights, "-o", path, "--row-id", 17179869393)
    return path


@pytest.fixture(scope="module")
def tokens(demo_weights):
    """A connection with a view `t` of the targets of the demo set, and `rows`."""
    connection = duckdb.connect()
    connection.execute(f"""
        CREATE TABLE rows AS SELECT * FROM '{demo_weights}/*.parquet';
        CREATE TABLE t AS
        WITH unnested AS (
            SELECT row_id, source, generate_subscripts(input_ids, 1) - 1 AS position, unnest(input_ids) AS id,
                   unnest(rl_logprob)::DOUBLE AS rl, unnest(base_logprob)::DOUBLE AS base, unnest(weight)::DOUBLE AS weight
            FROM rows)
        SELECT *, rl - base AS delta, rl - base - avg(rl - base) OVER (PARTITION BY row_id) AS centred
        FROM unnested WHERE rl IS NOT NULL;
    """)
    return connection


def query(connection, sql):
    result = connection.execute(sql)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row)) for row in result.fetchall()]


def cells(page, selector):
    """A table's rows as {heading: text}, by the text of their first cell."""
    rows = page.evaluate(
        """(selector) => {
            const table = document.querySelector(selector + " table");
            const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
            return [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell, i) => [heads[i], cell.textContent]));
        }""",
        selector,
    )
    return {row[0][1]: dict(row) for row in rows}


def grid(page, selector):
    """The texts of a table's cells, row by row."""
    return page.evaluate(
        "(selector) => [...document.querySelectorAll(selector + ' tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))",
        selector,
    )


SUMS = """
    count(*) AS targets, avg(rl) AS rl, avg(base) AS base, avg(delta) / ln(2) AS liking, avg(abs(delta)) / ln(2) AS apart,
    avg(weight) AS weight, sum(weight) * sum(weight) / sum(weight * weight) AS effective,
    avg(CASE WHEN weight <= 0.8::FLOAT THEN 1 ELSE 0 END) AS lower, avg(CASE WHEN weight >= 1.2::FLOAT THEN 1 ELSE 0 END) AS upper
"""


def by_source(tokens, sums=SUMS):
    """Sums over targets by source, and over all."""
    found = {row["source"]: row for row in query(tokens, f"SELECT source, {sums} FROM t GROUP BY source")}
    [found["all"]] = query(tokens, f"SELECT {sums} FROM t")
    return found


def test_the_verdict_has_the_numbers_that_duckdb_computes(look, report, tokens):
    page = look(report)
    wanted = by_source(tokens)
    rows = "sum(len(doc_starts)) AS documents, sum(len(input_ids)) AS tokens, count(*) AS rows"
    counts = {row["source"]: row for row in query(tokens, f"SELECT source, {rows} FROM rows GROUP BY source")}
    [counts["all"]] = query(tokens, f"SELECT {rows} FROM rows")
    shown = cells(page, "#sources")
    assert shown.keys() == wanted.keys()
    for name, row in shown.items():
        sums = wanted[name]
        for heading, value in {
            "documents": counts[name]["documents"],
            "tokens": counts[name]["tokens"],
            "RL \u2212 base, bits": sums["liking"],
            "ppl RL": math.exp(-sums["rl"]),
            "ppl base": math.exp(-sums["base"]),
            "apart, bits": sums["apart"],
            "w mean": sums["weight"],
            "effective": sums["effective"] / sums["targets"],
            "at low": sums["lower"],
            "at high": sums["upper"],
        }.items():
            assert_shows(row[heading], value, f"{name}, {heading}")
    names = list(shown)
    assert names[-1] == "all"
    likings = [wanted[name]["liking"] for name in names[:-1]]
    assert likings == sorted(likings), "sorted by what the RL model likes least"

    enough = {name: sums for name, sums in wanted.items() if name != "all" and sums["targets"] >= 1000}
    least = min(enough, key=lambda name: enough[name]["liking"])
    headline = page.inner_text(".headline")
    assert headline.startswith(f"The RL model distrusts {least} most"), headline
    assert_shows(re.search(r"([\d.]+) bits", headline)[1], -enough[least]["liking"])
    figures = page.locator("#figures strong").all_inner_texts()
    for text, value in zip(figures, [counts["all"]["documents"], counts["all"]["tokens"], wanted["all"]["effective"]]):
        assert_shows(text, value)
    for text, value in zip(figures[3].split(" / "), [wanted["all"]["lower"], wanted["all"]["upper"]]):
        assert_shows(text, value)
    assert_shows(figures[4], wanted["all"]["apart"])


def test_tokens_kinds_and_contexts_have_the_numbers_that_duckdb_computes(look, report, tokens, models):
    page = look(report)
    data = data_of(report)["sets"][0]
    sums = "count(*) AS count, avg(weight) AS mean, sum(weight - 1) AS gained"
    for index, source in [*enumerate(data["sources"]), ("", data)]:
        page.select_option("#token-source", str(index))
        where = "true" if source is data else f"source = '{source['name']}'"
        wanted = query(tokens, f"SELECT id, {sums} FROM t WHERE {where} GROUP BY id ORDER BY gained, id DESC")
        for table, sign, last in (("raised", 1, wanted[::-1]), ("lowered", -1, wanted)):
            listed = source[table]
            gains = [row["gained"] for row in last if sign * row["gained"] > 0][:12]
            assert [token["sums"][3] - token["sums"][0] for token in listed] == pytest.approx(gains, abs=1e-6)
            rows = grid(page, f"#{table}")
            assert len(rows) == len(listed)
            known = {row["id"]: row for row in wanted}
            for token, row in zip(listed, rows):
                _, _, count, mean, gained, *_ = row
                assert_shows(count, known[token["id"]]["count"])
                assert_shows(mean, known[token["id"]]["mean"])
                assert_shows(gained.lstrip("+"), known[token["id"]]["gained"])
        for list_, order in (("raised_most", "DESC"), ("lowered_most", "ASC")):
            extremes = source.get(list_) or []
            if extremes:
                [far] = query(tokens, f"SELECT centred FROM t WHERE source = '{source['name']}' ORDER BY centred {order} LIMIT 1")
                assert extremes[0]["centred"] == pytest.approx(far["centred"], abs=1e-6)
            for extreme in extremes:
                [row] = query(tokens, f"SELECT * FROM t WHERE row_id = {extreme['row']} AND position = {extreme['position']}")
                assert [extreme["rl"], extreme["base"]] == pytest.approx([row["rl"], row["base"]], abs=1e-6)
    # Kinds are told by the text: digits and spaces can be told in SQL as well.
    assert f"Of the {len(wanted):,} different tokens" in page.inner_text("#tokens-note")
    tokenizer = Tokenizer.from_file(str(models / "demo-base" / "tokenizer.json"))
    texts = {id_: tokenizer.decode([id_], skip_special_tokens=False) for id_ in range(tokenizer.get_vocab_size())}

    def count(is_kind):
        ids = ",".join(str(id_) for id_, text in texts.items() if is_kind(text))
        return query(tokens, f"SELECT count(*) AS n, avg(weight) AS w, -avg(rl) AS rl FROM t WHERE id IN ({ids})")[0]

    shown = cells(page, "#kinds")
    for kind, is_kind in (
        ("digits", lambda text: text.strip().isdigit()),
        ("spaces and line breaks", lambda text: text != "" and text.strip() == ""),
    ):
        wanted = count(is_kind)
        assert_shows(shown[kind]["targets"], wanted["n"])
        assert_shows(shown[kind]["w mean"], wanted["w"])
        assert_shows(shown[kind]["loss RL"], wanted["rl"])
    total = sum(number(row["targets"])[0] for name, row in shown.items() if not name.startswith("boilerplate"))
    assert total == query(tokens, "SELECT count(*) AS n FROM t")[0]["n"]


def test_positions_and_repeats_have_the_numbers_that_duckdb_computes(look, report, tokens, demo_weights):
    page = look(report)
    positions = query(tokens, """SELECT source, floor(log2(position))::INT AS range, avg(weight) AS weight, avg(delta) / ln(2) AS liking,
        -avg(rl) AS rl, -avg(base) AS base FROM t GROUP BY ALL""")
    for what in ("weight", "liking", "rl", "base"):
        page.select_option("#matrix-what", what)
        shown = [(name, list(row.values())[1:]) for name, row in cells(page, "#matrix-table").items()]
        wanted = {(row["source"], row["range"]): row[what] for row in positions}
        found = {(name, range_): text for name, row in shown for range_, text in enumerate(row) if text}
        assert found.keys() == wanted.keys()
        for key, text in found.items():
            assert_shows(text.lstrip("+"), wanted[key], f"{what} {key}")
    duplicates = {row["source"]: row["n"] for row in query(
        tokens, "SELECT source, count(*) - count(DISTINCT input_ids) AS n FROM rows GROUP BY source")}
    data = data_of(report)
    known, runs = dict.fromkeys(duplicates, 0), dict.fromkeys(duplicates, 0)
    for row in read_rows(demo_weights):
        length = 0
        for value in [*row["base_logprob"][1:], None]:
            if value is not None and -value <= data["known_nats"]:
                length += 1
                continue
            if length >= data["least_run"]:
                known[row["source"]] += length
                runs[row["source"]] += 1
            length = 0
    assert sum(runs.values()) > 0
    targets = {name: sums["targets"] for name, sums in by_source(tokens).items()}
    for name, row in cells(page, "#repeats-table").items():
        if name == "all":
            continue
        assert_shows(row["duplicate rows"], duplicates[name], name)
        assert_shows(row["runs"], runs[name], name)
        assert_shows(row["in known runs"], known[name] / targets[name], name)


def test_tokens_of_the_heatmap_have_the_numbers_of_the_shards(look, report, tokens):
    data = data_of(report)["sets"][0]
    ids = [row["id"] for row in data["rows"]]
    assert "17179869393" in ids, "the row that was asked for"
    for id_ in [*ids[:: len(ids) // 12], "17179869393"]:
        wanted = query(tokens, f"SELECT *, rank() OVER (ORDER BY delta DESC, position) AS rank FROM t WHERE row_id = {id_} ORDER BY position")
        for target in (wanted[0], wanted[len(wanted) // 2], wanted[min(len(wanted), 1023) - 1]):
            page = look(report, f"#row={id_}&position={target['position']}")
            names, values = page.locator("#detail dt").all_inner_texts(), page.locator("#detail dd").all_inner_texts()
            detail = dict(zip(names, values))
            if int(detail["position"].split()[0]) != target["position"]:
                continue  # its text is a part of a character: the next id has it
            # Log-probs of the heatmap have four decimals.
            for name, column, slack in (
                ("log p RL", "rl", 6e-5), ("log p base", "base", 6e-5), ("delta", "delta", 2e-4), ("less row mean", "centred", 2e-4),
                ("weight", "weight", 2e-4),
            ):
                assert_shows(detail[name].split()[0].lstrip("+"), target[column], f"{name} of {id_}, {target['position']}", slack)
            assert detail["rank in row"].split()[0].replace(",", "") == str(target["rank"])


def set_slider(page, id_, value):
    page.evaluate(
        """([id, value]) => { const input = document.getElementById(id); input.value = value; input.dispatchEvent(new Event("input", {bubbles: true})); }""",
        [id_, str(value)],
    )


def live(page):
    return [page.inner_text(f"#live-{name}") for name in ("mean", "effective", "lower", "upper")]


def as_shown(swept):
    percent = lambda share: f"{100 * share:.2f}%"
    targets = swept["targets"]
    return [f"{swept['weight_mean']:.4f}", percent(swept["effective_targets"] / targets), percent(swept["share_at_lower"]),
            percent(swept["share_at_upper"])]


def test_the_sliders_show_what_sweep_prints(look, report, run, demo_weights):
    page = look(report)
    epsilons, temperatures, fractions = [0.0, 0.05, 0.2, 0.5, 0.99], [0.1, 0.25, 1, 5], [0.07, 0.6, 1.0]
    done = run("remit-inspect", "sweep", demo_weights, "--json", "--center", "row,none", "--epsilon", ",".join(map(str, epsilons)),
               "--temperature", ",".join(map(str, temperatures)), "--top-k-fraction", ",".join(map(str, fractions)))
    swept = json.loads(done.stdout)["weights"]
    assert len(swept) == 2 * len(epsilons) * len(temperatures) + len(fractions)
    steps = page.evaluate("TEMPERATURES")
    page.evaluate("document.getElementById('live-sources-box').open = true")
    for weights in swept:
        if weights["weighting"] == "dynamic":
            page.select_option("#weighting", "dynamic")
            page.select_option("#center", weights["center"])
            set_slider(page, "epsilon", round(100 * weights["epsilon"]))
            set_slider(page, "temperature", steps.index(weights["temperature"]))
            flags = f"--epsilon {weights['epsilon']:g} --temperature {weights['temperature']:g} --center {weights['center']}"
        else:
            page.select_option("#weighting", "excess-top-k")
            set_slider(page, "top-k", round(100 * weights["top_k_fraction"]))
            flags = f"--weighting excess-top-k --top-k-fraction {weights['top_k_fraction']:g}"
        assert live(page) == as_shown(weights["all"]), flags
        assert page.inner_text("#flags").endswith(flags)
        rows = cells(page, "#live-sources")
        assert len(rows) == len(weights["sources"])
        for source in weights["sources"]:
            assert list(rows[source["source"]].values())[1:] == as_shown(source), (flags, source["source"])
    # One source alone, and back.
    page.select_option("#source", "3")
    assert live(page) == as_shown(weights["sources"][3])
    page.click("#reset")
    default = next(w for w in swept if w["epsilon"] == 0.2 and w["temperature"] == 1 and w["center"] == "row")
    assert live(page) == as_shown(default["all"])


def test_sweep_agrees_with_the_formula_in_duckdb(run, demo_weights, tokens):
    done = run("remit-inspect", "sweep", demo_weights, "--json", "--center", "row,none", "--epsilon", "0.1,0.2,0.9",
               "--temperature", "0.25,1", "--top-k-fraction", "0.3")
    for weights in json.loads(done.stdout)["weights"]:
        if weights["weighting"] == "dynamic":
            e, tau = weights["epsilon"], weights["temperature"]
            x = "centred" if weights["center"] == "row" else "delta"
            free = f"(2 / (1 + exp(-{x} / {tau})))"
            sql = f"SELECT *, greatest({1 - e}, least({1 + e}, {free})) AS w, {free} <= {1 - e} AS l, {free} >= {1 + e} AS u FROM t"
        else:
            sql = f"""SELECT *, rank <= greatest(1, ceil({weights['top_k_fraction']} * n - 1e-9)) AS u, NOT u AS l, u::INT::DOUBLE AS w FROM (
                SELECT *, row_number() OVER (PARTITION BY row_id ORDER BY delta DESC, position) AS rank, count(*) OVER (PARTITION BY row_id) AS n FROM t)"""
        sums = "count(*) AS n, avg(w) AS mean, sum(w) * sum(w) / sum(w * w) AS effective, avg(l::INT) AS l, avg(u::INT) AS u"
        wanted = {row["source"]: row for row in query(tokens, f"SELECT source, {sums} FROM ({sql}) GROUP BY source")}
        [wanted[None]] = query(tokens, f"SELECT {sums} FROM ({sql})")
        for found in [weights["all"], *weights["sources"]]:
            row = wanted.pop(found["source"])
            what = (weights["epsilon"], weights["temperature"], found["source"])
            assert found["targets"] == row["n"]
            assert found["weight_mean"] == pytest.approx(row["mean"], abs=1e-5), what
            assert found["effective_targets"] == pytest.approx(row["effective"], rel=5e-5), what
            assert found["share_at_lower"] == pytest.approx(row["l"], abs=1e-9), what
            assert found["share_at_upper"] == pytest.approx(row["u"], abs=1e-9), what
        assert not wanted


def test_a_link_restores_the_view(look, report):
    page = look(report)
    assert "#" not in page.url
    page.select_option("#center", "none")
    set_slider(page, "epsilon", 50)
    page.select_option("#source", "2")
    page.fill("#row-id", "17179869393")
    page.click("#finder button[type=submit]")
    page.locator("#text .tok").nth(10).click()
    selected = page.inner_text("#detail")
    again = look(report, page.url[page.url.index("#"):])
    assert live(again) == live(page)
    assert again.input_value("#epsilon") == "50" and again.input_value("#center") == "none" and again.input_value("#source") == "2"
    assert again.inner_text("#shown-row") == "17179869393"
    assert again.inner_text("#detail") == selected
    # The address may change under an open page, and may be wrong.
    again.evaluate("location.hash = '#epsilon=0.1&source=99&center=x&temperature=-1&position=1e99&set=7'")
    again.wait_for_function("document.getElementById('epsilon').value === '10'")
    assert again.input_value("#source") == "" and again.input_value("#center") == "row"
    lost = look(report, "#row=4711<b>")
    assert "4711<b> is not among the rows" in lost.inner_text("#found")


def test_rows_are_found_by_source_and_text(look, report):
    page = look(report)
    data = data_of(report)["sets"][0]
    page.fill("#row-text", "ANSWER: 1")
    page.click("#finder button[type=submit]")
    assert re.fullmatch(r"row \d+ of \d+", page.inner_text("#found"))
    assert page.locator("#text .match").count() > 0
    assert "answer: 1" in page.inner_text("#text").lower()
    source = next(i for i, source in enumerate(data["sources"]) if source["name"] == "solutions/drill.txt")
    page.fill("#row-text", "")
    page.select_option("#row-source", str(source))
    count = sum(row["source"] == source for row in data["rows"])
    assert page.inner_text("#found").endswith(f"of {count}")
    first = page.inner_text("#shown-row")
    page.click("#next")
    assert count == 1 or page.inner_text("#shown-row") != first
    page.fill("#row-text", "there is no such text")
    page.click("#finder button[type=submit]")
    assert page.inner_text("#found") == "no row that is shown has it"


def test_the_heatmap_goes_by_keyboard_and_tells_screen_readers(look, report):
    page = look(report, "#row=17179869393")
    page.focus("#text")
    at = lambda: int(page.inner_text("#detail dd >> nth=0").split()[0])
    assert at() == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert at() == 3
    page.keyboard.press("ArrowLeft")
    assert at() == 2
    page.keyboard.press("ArrowDown")
    below = at()
    assert below > 3
    page.keyboard.press("ArrowUp")
    assert at() < below
    page.keyboard.press("End")
    assert at() == page.evaluate("view.row.ids.length - 1")
    page.keyboard.press("Home")
    assert at() == 0
    page.keyboard.press("ArrowRight")
    active = page.get_attribute("#text", "aria-activedescendant")
    assert re.search(r", weight \d\.\d\d$", page.get_attribute("#" + active, "aria-label"))
    # Every control and every picture has a name.
    unnamed = page.evaluate("""() => [...document.querySelectorAll("input, select, button, svg[role=img]")].filter((e) =>
        !e.closest("label") && !e.getAttribute("aria-label") && !e.textContent.trim() && !e.closest("[aria-hidden]")
        && !(e.tagName === "svg" && e.closest("td"))).map((e) => e.outerHTML)""")
    assert unnamed == []
    assert page.evaluate("[...document.querySelectorAll('[tabindex=\"0\"]')].every((e) => e.getAttribute('aria-label'))")


def test_the_page_fits_narrow_screens_dark_rooms_and_paper(look, report):
    for options in ({"width": 360}, {"width": 360, "color_scheme": "dark"}, {}):
        page = look(report, **options)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = lambda page: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light, dark = look(report, color_scheme="light"), look(report, color_scheme="dark")
    assert paper(light) != paper(dark)
    dark.select_option("#theme", "light")
    assert paper(light) == paper(dark)
    light.emulate_media(media="print")
    assert not light.is_visible("#finder") and not light.is_visible("nav")
    assert light.is_visible("#sources table") and light.is_visible("#text")


def contrast(a, b):
    """Contrast of two colours after WCAG."""
    def luminance(colour):
        parts = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
        r, g, b = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_can_be_read_on_every_colour(look, report, scheme):
    page = look(report, color_scheme=scheme)
    found = page.evaluate("""() => {
        const over = (top, under) => { const [r, g, b, a = 1] = top.match(/[\\d.]+/g).map(Number); const u = under.match(/[\\d.]+/g).map(Number);
            return `rgb(${[r, g, b].map((v, i) => v * a + u[i] * (1 - a)).join(",")})`; };
        const paper = getComputedStyle(document.body).backgroundColor;
        return [...document.querySelectorAll("#text .tok.bound")].map((span) => {
            const style = getComputedStyle(span);
            return [span.className, style.color, over(style.backgroundColor, paper)];
        });
    }""")
    assert {name.split()[1] for name, _, _ in found} == {"low", "high"}
    for name, ink, ground in found:
        assert contrast(ink, ground) >= 4.5, (name, ink, ground)


HOSTILE = [
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "<!-- <script> ]]> &lt;b&gt; {{data}} ${alert(3)} `alert(4)` javascript:alert(5)",
    "\x1b[2J\x1b]0;title\x07 bell \x00 nul \x7f del \x9b31m",
    "\u202egnp.exe\u202c \u2066isolate \u200b\u200d\ufeff \u2028\u2029 line",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 12+34=46",
    "e" + "\u0301" * 40 + " \u0301alone " + "\U0001f469\u200d\U0001f52c \U000e0041",
    "x" * 20_000,
    "\n\n\n\t\t\r\n \n",
]


@pytest.fixture(scope="module")
def hostile(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "<img src=x onerror=alert(6)>&amp;.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in HOSTILE))
    (corpus / "\u202eevil\x1b[2J.txt").write_text("a plain text")
    run("remit-score", corpus, "-o", folder / "weights")
    done = run("remit-inspect", "report", folder / "weights", "-o", folder / "report.html")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.stdout + done.stderr)
    return folder / "report.html"


def test_hostile_text_is_text(look, hostile):
    page = look(hostile)
    assert page.locator("script").count() == 2 and page.locator("img, iframe, object, embed, link, base, form[action]").count() == 0
    seen = ""
    for row in data_of(hostile)["sets"][0]["rows"]:
        page.fill("#row-id", row["id"])
        page.click("#finder button[type=submit]")
        assert page.inner_text("#shown-row") == row["id"]
        seen += page.locator("#text").text_content()
    for text in ("</script><script>alert(1)</script><img src=x onerror=alert(2)>", "{{data}} ${alert(3)}", "\u241b[2J\u241b]0;title\u2407",
                 "\u2400", "\u27e8U+202E\u27e9gnp.exe", "\u05e9\u05dc\u05d5\u05dd", "\u25cc\u0301", "x" * 1000):
        assert text in seen, text
    whole = page.evaluate("document.body.innerText + document.title")
    bad = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]", whole)
    assert bad == []
    assert "<img src=x onerror=alert(6)>&amp;.jsonl" in cells(page, "#sources")
    # Right to left within its own place: what stands beside it keeps its order.
    assert page.evaluate("[...document.querySelectorAll('.tok')].every((e) => getComputedStyle(e).unicodeBidi === 'isolate')")


def test_a_script_that_gets_into_the_page_would_not_run(look, hostile):
    page = look(hostile)
    page.evaluate("""() => { const s = document.createElement("div"); s.innerHTML = "<img src=x onerror='window.ran = 1'>"; document.body.append(s); }""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert look.problems and all("Content Security Policy" in problem for problem in look.problems)
    look.problems.clear()


def test_a_token_of_a_megabyte_is_cut(look, run, models, tmp_path):
    model = shutil.copytree(models / "demo-base", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    joined = lambda merge: "".join(merge) if isinstance(merge, list) else merge.replace(" ", "")
    last = max(vocab, key=vocab.get)
    tokenizer["model"]["merges"] = [merge for merge in merges if joined(merge) != last]
    vocab["<b>" * (1 << 18)] = vocab.pop(last)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "corpus").mkdir()
    ids = [5, max(vocab.values()), 7, 8, max(vocab.values()), 9]
    (tmp_path / "corpus" / "a.jsonl").write_text(json.dumps({"input_ids": ids}))
    run("remit-score", tmp_path / "corpus", "-o", tmp_path / "weights", "--rl-model", model, "--base-model", model)
    run("remit-inspect", "report", tmp_path / "weights", "-o", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 300_000
    page = look(tmp_path / "report.html", "#row=0&position=1")
    assert "\u2026 (786,432 characters)" in page.inner_text("#text")
    assert "every weight is 1" in page.inner_text("#odd")


def test_masked_rows_and_sets_without_a_base_have_a_page(look, run, models, tmp_path):
    (tmp_path / "corpus").mkdir()
    record = {"input_ids": [5, 6, 7, 8, 9, 10], "loss_mask": [0, 0, 1, 1, 0, 1]}
    (tmp_path / "corpus" / "a.jsonl").write_text(json.dumps(record))
    run("remit-score", tmp_path / "corpus", "-o", tmp_path / "masked")
    run("remit-inspect", "report", tmp_path / "masked", "-o", tmp_path / "masked.html")
    page = look(tmp_path / "masked.html", "#row=0&position=4")
    assert "no target" in page.inner_text("#detail")
    assert page.locator("#text .tok.none").count() == 3
    assert "of 3" in page.inner_text("#live")

    run("remit-score", tmp_path / "corpus", "-o", tmp_path / "bare", "--rl-model", models / "demo-rl")
    run("remit-inspect", "report", tmp_path / "bare", "-o", tmp_path / "bare.html")
    page = look(tmp_path / "bare.html", "#row=0&position=2")
    assert "without a base" in page.inner_text(".headline")
    assert not page.is_visible("#formula")
    assert "weight" not in page.inner_text("#detail")


@pytest.fixture(scope="module")
def trained(run, demo_weights, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for weighting in ("dynamic", "uniform"):
        run("remit-anneal", "--weights", demo_weights, "-o", folder / weighting, "--steps", 3, "--batch-tokens", 2048, "--holdout", 0.01,
            "--weighting", weighting, "--lr", "1e-3")
    losses = run("remit-inspect", "compare", models / "demo-base", folder / "uniform", "--weights", demo_weights, "--json")
    (folder / "losses.json").write_text(losses.stdout)
    return folder


def test_runs_are_drawn_and_their_evaluations_are_those_of_the_logs(look, run, demo_weights, trained, tmp_path):
    path = tmp_path / "runs.html"
    run("remit-inspect", "report", demo_weights, "-o", path, "--run", trained / "dynamic", "--run", trained / "uniform",
        "--losses", trained / "losses.json", "--sample", 1000)
    page = look(path)
    assert page.is_visible("#training")
    titles = page.locator("#run-charts figcaption").all_inner_texts()
    assert titles[:3] == ["Weighted loss, nats", "Plain loss, nats", "Learning rate"] and len(titles) == 8
    assert page.locator("#run-charts figure >> nth=1 >> polyline").count() == 2
    for index, name in enumerate(("dynamic", "uniform")):
        drawn = data_of(path)["runs"][index]
        metrics = metrics_of(trained / name)
        for key in ("step", "tokens", "loss", "ntp_loss", "lr", "weight_mean", "weight_at_bounds", "grad_norm"):
            assert drawn[key] == pytest.approx([line[key] for line in metrics], rel=1e-12), key
        assert f"weighting" in drawn["settings"]["objective"]
    assert "dynamic, epsilon 0.2, temperature 1" in page.inner_text("#run-legend")
    evaluations = [[json.loads(line) for line in (trained / name / "eval.jsonl").read_text().splitlines()] for name in ("dynamic", "uniform")]
    rows = grid(page, "#run-evaluations")
    names = [source["source"] for source in evaluations[0][0]["sources"]]
    assert [row[0] for row in rows] == [*names, "all"]
    for row, name in zip(rows, [*names, None]):
        texts = row[1:]
        for at, log in enumerate(evaluations):
            of = lambda line: line["ntp_loss"] if name is None else next(s["ntp_loss"] for s in line["sources"] if s["source"] == name)
            first, last, change = texts[3 * at: 3 * at + 3]
            assert_shows(first, of(log[0]))
            assert_shows(last, of(log[-1]))
            assert_shows(change.lstrip("+"), of(log[-1]) - of(log[0]))
    page.select_option("#run-x", "tokens")
    assert page.locator("#run-charts figure").count() == 8
    losses = json.loads((trained / "losses.json").read_text())
    for name, row in cells(page, "#losses-table").items():
        wanted = losses["all"] if name == "all" else losses["sources"][name]
        assert_shows(row["A"], wanted["ntp_loss"][0])
        assert_shows(row["B"], wanted["ntp_loss"][1])
        assert_shows(row["B weighted"], wanted["loss"][1])


def test_two_sets_stand_side_by_side(look, run, corpus, models, demo_weights, tmp_path):
    """The second set has the models swapped: what one likes less, the other likes more."""
    run("remit-score", corpus / "solutions", "-o", tmp_path / "swapped", "--rl-model", models / "demo-base", "--base-model", models / "demo-rl",
        "--seq-len", 512, "--exact", "--limit-docs", 60)
    run("remit-score", corpus / "solutions", "-o", tmp_path / "straight", "--seq-len", 512, "--exact", "--limit-docs", 60)
    run("remit-inspect", "report", tmp_path / "straight", tmp_path / "swapped", "-o", tmp_path / "both.html")
    assert (tmp_path / "both.html").stat().st_size < 5_000_000
    page = look(tmp_path / "both.html")
    rows = cells(page, "#both-table")
    assert len(rows) > 1
    for name, row in rows.items():
        a, b = (number(row[f"{which} RL \u2212 base, bits"].lstrip("+"))[0] for which in "AB")
        assert a == -b, name
    assert "The same row in the other set" in page.inner_text("#text-other")
    row = page.inner_text("#shown-row")
    here = page.locator("#text .tok.low").count()
    page.click("#set-switch button >> nth=1")
    assert "swapped" in page.inner_text("#set-name")
    page.fill("#row-id", row)
    page.click("#finder button[type=submit]")
    assert page.locator("#text .tok.high").count() > 0 and here > 0
    assert "set=1" in page.url
    again = look(tmp_path / "both.html", page.url[page.url.index("#"):])
    assert "swapped" in again.inner_text("#set-name")


def test_the_pictures_of_the_docs_are_made_by_their_script(browser, demo_weights, root, tmp_path):
    script = [sys.executable, str(root / "scripts" / "docs" / "report.py"), "--out", str(tmp_path), "--weights", str(demo_weights)]
    subprocess.run(script, check=True, capture_output=True)
    for name in ("report.png", "report-tokens.png"):
        committed, again = (struct.unpack(">II", (folder / name).read_bytes()[16:24]) for folder in (root / "docs", tmp_path))
        # Heights of texts are the fonts' of a machine.
        assert committed[0] == again[0] and abs(committed[1] - again[1]) < 200, name
