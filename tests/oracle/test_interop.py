"""The shards as other tools see them."""

import json
import re
import subprocess
import sys

import datasets
import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from oracle import description, shards

LISTS = {
    "doc_starts": pa.uint32(),
    "input_ids": pa.uint32(),
    "rl_logprob": pa.float32(),
    "base_logprob": pa.float32(),
    "weight": pa.float32(),
}


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
    totals = description(demo_weights, "manifest")["totals"]
    rows, tokens, targets = duckdb.connect().execute(
        f"SELECT count(*), sum(len(input_ids)), sum(len(list_filter(rl_logprob, lambda x: x IS NOT NULL)))"
        f" FROM '{demo_weights}/*.parquet'"
    ).fetchone()
    assert (totals["rows"], totals["tokens"], totals["targets"]) == (rows, tokens, targets)


def test_pandas_reads_the_columns(demo_weights):
    frame = pandas.read_parquet(shards(demo_weights)[0], columns=["source", "input_ids", "weight"])
    assert len(frame)
    assert (frame["input_ids"].map(len) == frame["weight"].map(len)).all()


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def stored(request, run, corpus, tmp_path_factory):
    """(format, folder of a set in it, what pyarrow reads there)."""
    import pyarrow as pa

    out = tmp_path_factory.mktemp(request.param) / "weights"
    run("remit-score", corpus / "solutions" / "train-00.jsonl", "-o", out, "--seq-len", 64, "--limit-docs", 150, "--format", request.param)
    paths = sorted(out.glob(f"part-*.{request.param}"))
    read = pq.read_table if request.param == "parquet" else lambda path: pa.ipc.open_file(str(path)).read_all()
    return request.param, paths, pa.concat_tables(map(read, paths), promote_options="permissive").to_pylist()


def by_duckdb(kind, paths):
    import duckdb
    import pyarrow as pa

    if kind == "parquet":
        relation = duckdb.sql(f"SELECT * FROM read_parquet({[str(path) for path in paths]!r}) ORDER BY row_id")
    else:  # It reads Arrow through pyarrow's tables.
        table = pa.concat_tables(pa.ipc.open_file(str(path)).read_all() for path in paths)
        relation = duckdb.from_arrow(table).order("row_id")
    return relation.to_arrow_table().to_pylist()


def by_pandas(kind, paths):
    import pandas

    read = pandas.read_parquet if kind == "parquet" else pandas.read_feather
    frame = pandas.concat(read(path) for path in paths)
    return [{name: list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value for name, value in row.items()} for row in frame.to_dict("records")]


def by_polars(kind, paths):
    import polars

    read = polars.read_parquet if kind == "parquet" else polars.read_ipc
    return polars.concat(read(path).with_columns(polars.col("source").cast(polars.String)) for path in paths).to_dicts()


def by_datasets(kind, paths, cache):
    import datasets

    return list(datasets.load_dataset(kind, data_files=[str(path) for path in paths], split="train", cache_dir=str(cache)))


@pytest.mark.parametrize("library", ["duckdb", "pandas", "polars", "datasets"])
def test_every_library_reads_both_formats(library, stored, tmp_path):
    kind, paths, expected = stored
    rows = {
        "duckdb": lambda: by_duckdb(kind, paths),
        "pandas": lambda: by_pandas(kind, paths),
        "polars": lambda: by_polars(kind, paths),
        "datasets": lambda: by_datasets(kind, paths, tmp_path),
    }[library]()
    assert len(rows) == len(expected) > 100
    for row, wanted in zip(rows, expected):
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            found = row[name]
            if isinstance(value, list):  # pandas has NaN where the others have null
                found = [None if x is None or x != x else x for x in found]
            assert found == value, f"{library}, {kind}, row {wanted['row_id']}: {name}"


def folder_by_duckdb(kind, folder):
    return by_duckdb(kind, sorted(folder.glob(f"*.{kind}")))


def folder_by_pandas(kind, folder):
    return pandas.read_parquet(f"{folder}/")


def folder_by_polars(kind, folder):
    read = polars.read_parquet if kind == "parquet" else polars.read_ipc
    return read(f"{folder}/")


def folder_by_polars_scan(kind, folder):
    scan = polars.scan_parquet if kind == "parquet" else polars.scan_ipc
    return scan(f"{folder}/").collect()


def folder_by_datasets(kind, folder):
    return datasets.load_dataset(kind, data_dir=str(folder), split="train", cache_dir=f"{folder}.cache")


def folder_by_datasets_alone(kind, folder):
    return datasets.load_dataset(str(folder), split="train", cache_dir=f"{folder}.cache")


def folder_by_pyarrow(kind, folder):
    return pyarrow.dataset.dataset(folder, format=kind).to_table()


FOLDER_READERS = {name.removeprefix("folder_by_"): call for name, call in list(globals().items()) if name.startswith("folder_by_")}


def records(table):
    """Any table as a list of records, in the order of row_id, with lists as lists."""
    if isinstance(table, pandas.DataFrame):
        table = table.to_dict("records")
    elif isinstance(table, polars.DataFrame):
        table = table.to_dicts()
    elif isinstance(table, pa.Table):
        table = table.to_pylist()

    def plain(value):
        if not hasattr(value, "__len__") or isinstance(value, str):
            return value
        return [None if x is None or x != x else x for x in value]  # pandas has NaN where the others have null

    found = [{name: plain(value) for name, value in row.items()} for row in table]
    return sorted(found, key=lambda row: row["row_id"])


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def finished(request, run, tmp_path_factory):
    """(format, folder) of a set of several parts, with a record that could not be read: all files that a set may have."""
    folder = tmp_path_factory.mktemp("finished")
    lines = [json.dumps({"text": f"What is {n} + {n}? It is {2 * n}."}) for n in range(30)]
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_text("\n".join([*lines[:9], "{", *lines[9:]]))
    args = ("--part-bytes", 300, "--on-bad-record", "skip", "--format", request.param)
    run("remit-score", folder / "corpus", "-o", folder / "weights", *args)
    return request.param, folder / "weights"


@pytest.mark.parametrize("reader", FOLDER_READERS)
def test_every_library_reads_a_finished_folder(reader, finished):
    kind, folder = finished
    if kind == "arrow" and reader == "pandas":
        pytest.skip("pandas reads no folder of Arrow files")
    assert sorted(path.stem for path in (folder / "_remit").iterdir()) == ["manifest", "plan", "rejects"]
    paths = sorted(folder.glob(f"part-*.{kind}"))
    read = pq.read_table if kind == "parquet" else lambda path: pa.ipc.open_file(str(path)).read_all()
    expected = [row for path in paths for row in read(path).to_pylist()]
    assert len(paths) > 3 and len(expected) == description(folder, "manifest")["totals"]["rows"] == 30
    assert records(FOLDER_READERS[reader](kind, folder)) == expected


def test_a_glob_over_a_finished_folder_finds_shards_alone(finished):
    kind, folder = finished
    assert sorted(folder.glob(f"*.{kind}")) == sorted(folder.glob("part-*"))
    if kind == "parquet":
        [(rows,)] = duckdb.connect().execute(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchall()
        assert rows == 30


def test_duckdb_reads_the_manifest(finished):
    kind, folder = finished
    if kind == "parquet":
        query = f"SELECT decode(value) FROM parquet_kv_metadata('{folder}/_remit/manifest.parquet') WHERE decode(key) = 'remit.manifest'"
        [(text,)] = duckdb.connect().execute(query).fetchall()
        assert json.loads(text) == description(folder, "manifest")


FOOTER_KEYS = {"remit.format_version", "remit.plan_blake3", "remit.pack_stats", "remit.content_blake3"}


def test_footers_of_both_formats_have_the_documented_metadata(stored):
    kind, paths, _ = stored
    plan = description(paths[0].parent, "plan")
    assert plan["format"] == kind
    for path in paths:
        if kind == "parquet":
            metadata, more = pq.ParquetFile(path).metadata.metadata, {"ARROW:schema"}
        else:
            metadata, more = pa.ipc.open_file(str(path)).metadata, {"remit.batch_rows"}
        metadata = {key.decode(): value.decode() for key, value in metadata.items()}
        assert metadata.keys() == FOOTER_KEYS | more
        assert metadata["remit.format_version"] == "1"
        seal = metadata["remit.content_blake3"]
        assert len(seal) == 64 and path.read_bytes().count(seal.encode()) == 1
        stats = json.loads(metadata["remit.pack_stats"])
        assert stats["rows"] > 0 and stats["rejected_records"] == 0
        if kind == "arrow":
            reader = pa.ipc.open_file(str(path))
            rows = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
            assert json.loads(metadata["remit.batch_rows"]) == rows


def test_an_arrow_shard_is_read_where_it_is_mapped(stored):
    kind, paths, expected = stored
    if kind != "arrow":
        pytest.skip("Parquet is decoded")
    rows = 0
    for path in paths:
        with pa.memory_map(str(path)) as file:
            mapped = file.read_buffer()
            file.seek(0)
            reader = pa.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                rows += batch.num_rows
                for column in batch.columns:
                    for buffer in filter(None, column.buffers()):
                        start = buffer.address - mapped.address
                        assert 0 <= start and start + buffer.size <= mapped.size, "something was copied"
                        assert buffer.address % 64 == 0
    assert rows == len(expected)


def test_tokens_are_exported_with_their_text(run, stored, corpus, tmp_path):
    import json

    import duckdb

    kind, paths, expected = stored
    tokens = [
        (row["row_id"], position, row["source"], id, row["rl_logprob"][position], row["base_logprob"][position], row["weight"][position])
        for row in expected
        for position, id in enumerate(row["input_ids"])
    ]
    texts = {}
    for suffix in ("parquet", "csv"):
        out = tmp_path / f"tokens.{suffix}"
        run("remit-inspect", "export", paths[0].parent, "--tokens", out, *(["--raw-cells"] if suffix == "csv" else []))
        columns = "row_id, position, source, input_id, rl_logprob::FLOAT, base_logprob::FLOAT, weight::FLOAT, text"
        rows = duckdb.sql(f"SELECT {columns} FROM '{out}' ORDER BY row_id, position").fetchall()
        assert [row[:-1] for row in rows] == tokens, suffix
        by_document = duckdb.sql(f"SELECT doc_index, string_agg(text, '' ORDER BY row_id, position) FROM '{out}' GROUP BY doc_index ORDER BY doc_index")
        texts[suffix] = dict(by_document.fetchall())
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines()[:150]
    documents = {index: json.loads(line)["text"] for index, line in enumerate(lines)}
    assert texts["parquet"] == texts["csv"]
    for index, text in texts["parquet"].items():  # each ends with the text of EOS
        assert text.startswith(documents[index]) and len(text) - len(documents[index]) < 20, index


def test_a_token_of_real_text_takes_little(root):
    """The same as scripts/bench/bytes_per_token.py prints, over less text: three columns, where a base was scored too."""
    script = [sys.executable, str(root / "scripts" / "bench" / "bytes_per_token.py"), "--kb", "150"]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    print(printed)
    parquet, arrow = map(float, re.search(r"token columns +([0-9.]+) +([0-9.]+)", printed).groups())
    assert 2 < parquet <= 4.5
    assert 12 <= arrow < 12.5  # three numbers of 4 bytes; offsets and bitmaps add little
