"""The shards as other tools see them, and the README's examples, run as they are printed."""

import json
import re

import duckdb
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oracle import shards

LISTS = {
    "doc_starts": pa.uint32(),
    "input_ids": pa.uint32(),
    "rl_logprob": pa.float32(),
    "base_logprob": pa.float32(),
    "weight": pa.float32(),
}


def readme_blocks(root, heading_word, language):
    """Fenced blocks of `language` in the README sections whose heading contains `heading_word`."""
    path = root / "README.md"
    assert path.exists(), f"{path} is missing"
    blocks, heading, inside, lines = [], "", None, []
    for line in path.read_text().splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence and inside is None:
            inside, lines = fence.group(1), []
        elif fence:
            if inside == language and heading_word.lower() in heading.lower():
                blocks.append("\n".join(lines))
            inside = None
        elif inside is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line
    return blocks


@pytest.fixture
def beside_weights(demo_weights, monkeypatch):
    """The working directory holds weights/."""
    monkeypatch.chdir(demo_weights.parent)
    return demo_weights


def test_readme_sql_returns_rows(root, beside_weights):
    blocks = readme_blocks(root, "DuckDB", "sql")
    assert blocks, "README.md has no sql block under a heading with DuckDB"
    for block in blocks:
        connection = duckdb.connect()
        for statement in connection.extract_statements(block):
            result = connection.execute(statement).fetchall()
            if statement.type == duckdb.StatementType.SELECT:
                assert result, f"no rows from:\n{statement.query}"


def test_readme_python_returns_rows(root, beside_weights):
    blocks = readme_blocks(root, "pandas", "python")
    assert blocks, "README.md has no python block under a heading with pandas"
    for block in blocks:
        names = {}
        exec(compile(block, "README.md", "exec"), names)
        frames = [v for v in names.values() if isinstance(v, (pandas.DataFrame, pandas.Series))]
        assert any(len(frame) for frame in frames), f"no table with rows from:\n{block}"


def test_schema_has_the_documented_types(demo_weights):
    for path in shards(demo_weights):
        schema = pq.read_schema(path)
        assert schema.field("row_id").type == pa.uint64()
        assert schema.field("doc_index").type == pa.uint64()
        source = schema.field("source").type
        assert (source.value_type if pa.types.is_dictionary(source) else source) in (pa.string(), pa.large_string())
        for name, element in LISTS.items():
            kind = schema.field(name).type
            assert pa.types.is_list(kind) or pa.types.is_large_list(kind), f"{name} is {kind}"
            assert kind.value_type == element, f"{name} is {kind}"


def test_list_fields_are_named_element(demo_weights):
    for path in shards(demo_weights):
        physical = pq.ParquetFile(path).schema
        paths = {physical.column(i).path for i in range(len(physical))}
        assert {f"{name}.list.element" for name in LISTS} <= paths, paths


def test_manifest_totals_equal_what_duckdb_counts(demo_weights):
    totals = json.loads((demo_weights / "manifest.json").read_text())["totals"]
    rows, tokens, targets = duckdb.connect().execute(
        f"SELECT count(*), sum(len(input_ids)), sum(len(list_filter(rl_logprob, lambda x: x IS NOT NULL)))"
        f" FROM '{demo_weights}/*.parquet'"
    ).fetchone()
    assert (totals["rows"], totals["tokens"], totals["targets"]) == (rows, tokens, targets)


def test_pandas_reads_the_columns(demo_weights):
    frame = pandas.read_parquet(shards(demo_weights)[0], columns=["source", "input_ids", "weight"])
    assert len(frame)
    assert (frame["input_ids"].map(len) == frame["weight"].map(len)).all()
