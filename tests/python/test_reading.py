"""What is read is what other readers of Parquet and Arrow read, and nothing that is not what the format says."""

import json
import pickle
import random
import shutil

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import remit
from blake3 import blake3
from conftest import LEARNER, ROOT, program

KINDS = ["parquet", "arrow", "window", "exact", "rl-only"]
VERSION_1 = ROOT / "fixtures" / "sets" / "version-1"


def table(folder):
    """All rows of a set, by pyarrow alone."""
    paths = sorted(folder.glob("part-*"))
    if paths[0].suffix == ".parquet":
        return pa.concat_tables([pq.read_table(path) for path in paths])
    return pa.concat_tables([pa.ipc.open_file(str(path)).read_all() for path in paths])


def same(value, expected):
    return np.array_equal(np.array(value), np.array(expected, dtype=np.array(value).dtype), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_that_pyarrow_reads(sets, kind):
    ws, expected = remit.open(sets[kind]), table(sets[kind]).to_pylist()
    assert len(ws) == len(expected) == ws.manifest.totals["rows"]
    for row, want in zip(ws, expected, strict=True):
        assert (row.row_id, row.source, row.doc_index) == (want["row_id"], want["source"], want["doc_index"])
        assert same(row.doc_starts, want["doc_starts"]) and same(row.input_ids, want["input_ids"])
        assert same(row.rl_logprob, [np.nan if x is None else x for x in want["rl_logprob"]])
        assert same(row.is_target, [x is not None for x in want["rl_logprob"]])
        if kind == "rl-only":
            assert row.weight is None and row.base_logprob is None
        else:
            assert same(row.weight, want["weight"])
            assert same(row.base_logprob, [np.nan if x is None else x for x in want["base_logprob"]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_data_frame_is_that_of_pandas(sets, kind):
    ours = remit.open(sets[kind]).to_pandas()
    theirs = table(sets[kind]).to_pandas()
    pandas.testing.assert_frame_equal(ours, theirs, check_dtype=False, check_categorical=False)


def test_rows_are_found_by_id_and_by_number(weights):
    ws = remit.open(weights)
    rows = list(ws)
    for number in [0, 1, len(rows) // 2, len(rows) - 1]:
        row = rows[number]
        for found in (ws[number], ws[number - len(ws)], ws.row(row.row_id)):
            assert found.row_id == row.row_id and same(found.input_ids, row.input_ids)
    with pytest.raises(remit.NoRowError, match=f"has {len(rows)} rows, and so no row number {len(rows)}"):
        ws[len(rows)]
    for unknown in (len(rows), 1 << 50, -1):
        with pytest.raises(LookupError, match=f"has no row {unknown}"):
            ws.row(unknown)


def test_a_set_can_be_sent_to_another_process(weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "copy")
    packed = pickle.dumps(remit.open(copy))
    assert pickle.loads(packed)[3].row_id == 3
    shutil.rmtree(copy)
    shutil.copytree(VERSION_1, copy)
    with pytest.raises(remit.UsageError, match="holds another set than before"):
        pickle.loads(packed)


def test_a_set_of_version_1_is_read():
    ws = remit.open(VERSION_1)
    assert [row.source for row in ws] == ["a.jsonl", "a.jsonl"] and len(ws) == 2


def test_ids_of_arrow_files_are_not_copied(sets):
    ws = remit.open(sets["arrow"])
    group = ws.shards[0].read(0)
    begin, size = ws.shards[0]._buffer.address, ws.shards[0]._buffer.size
    for array in (group.input_ids, group.weight, remit._set.row_at(group, 1).input_ids):
        assert begin <= array.ctypes.data < begin + size
        assert not array.flags.writeable


def test_tokens_have_the_text_that_inspect_exports(weights):
    tokens = remit.open(weights).tokens(row_id=2).to_pylist()
    row = remit.open(weights).row(2)
    assert [token["input_id"] for token in tokens] == row.input_ids.tolist()
    assert "".join(token["text"] for token in tokens if token["text"]).startswith(tokens[0]["text"])


def test_statistics_are_those_of_the_manifest(weights):
    ws = remit.open(weights)
    manifest = json.loads(program("remit-inspect", weights, "--json"))
    assert ws.stats() == manifest["totals"] and ws.stats(by="source") == manifest["sources"]
    assert (ws.num_tokens, ws.num_targets) == (manifest["totals"]["tokens"], manifest["totals"]["targets"])


def test_columns_that_come_later_are_left_unread(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "more")
    before = [row.input_ids.tolist() for row in remit.open(folder)]

    def widen(found):
        lists = pa.array([[0.5] * len(ids) for ids in found["input_ids"].to_pylist()], pa.list_(pa.float32()))
        return found.append_column("rl_entropy", lists)

    forge(folder, 0, widen)
    assert [row.input_ids.tolist() for row in remit.open(folder)] == before


def forge(folder, part, change):
    """Changes a shard, and makes the manifest agree with it: what only the rules of the format can find."""
    path = folder / f"part-{part:06}.parquet"
    found = pq.read_table(path)
    changed = change(found)
    footer = {key: value for key, value in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
    pq.write_table(changed.replace_schema_metadata(footer), path, row_group_size=1 << 20)
    description = folder / "_remit" / "manifest.parquet"
    metadata = dict(pq.read_metadata(description).metadata)
    manifest = json.loads(metadata[b"remit.manifest"], parse_float=remit._manifest._Decimal)
    content = path.read_bytes()
    manifest["shards"][part]["size_bytes"] = len(content)
    manifest["shards"][part]["blake3"] = blake3(content).hexdigest()
    reseal(description, manifest)


def reseal(description, manifest):
    """Writes a manifest anew with the digests that belong to it."""
    manifest["content_blake3"] = "0" * 64
    text = (remit._manifest._pretty(manifest, "") + "\n").encode()
    digest = blake3(text).hexdigest().encode()
    text = text.replace(b'"content_blake3": "' + b"0" * 64, b'"content_blake3": "' + digest, 1)
    stand_in = "f" * 64
    columns = pq.read_schema(description).empty_table()
    columns = columns.replace_schema_metadata({"remit.manifest": text.decode(), "remit.content_blake3": stand_in})
    with pq.ParquetWriter(description, columns.schema):
        pass
    content = description.read_bytes()
    at = content.rfind(stand_in.encode())
    blank = content[:at] + b"0" * 64 + content[at + 64 :]
    description.write_bytes(content[:at] + blake3(blank).hexdigest().encode() + content[at + 64 :])


def with_values(column, row, position, value):
    """A change of one value of one list."""

    def change(found):
        lists = found[column].to_pylist()
        lists[row][position] = value
        at = found.schema.get_field_index(column)
        return found.set_column(at, found.schema.field(column), pa.array(lists, found.schema.field(column).type))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_values("rl_logprob", 1, 2, 0.5), "row 1: rl_logprob at position 2 is 0.5; a log-probability is"),
        (with_values("rl_logprob", 1, 2, float("nan")), "row 1: rl_logprob at position 2 is nan"),
        (with_values("rl_logprob", 1, 2, float("-inf")), "row 1: rl_logprob at position 2 is -inf"),
        (with_values("rl_logprob", 2, 0, -1.0), "row 2: the first value of rl_logprob is not the one that marks"),
        (with_values("rl_logprob", 0, 2, None), "row 0: rl_logprob and base_logprob are not null at the same"),
        (with_values("weight", 3, 1, -0.5), "row 3: weight at position 1 is -0.5; a weight is finite and not negative"),
        (with_values("weight", 3, 1, float("inf")), "row 3: weight at position 1 is inf"),
        (with_values("weight", 3, 0, 1.0), "row 3: weight at position 0 is 1.0; this is no target"),
        (with_values("doc_starts", 0, 0, 500), "row 0: doc_starts is not an ascending list of positions below"),
        (lambda found: found.slice(1), "holds .* rows; .* were expected"),
        (lambda found: pa.concat_tables([found.slice(1), found.slice(0, 1)]), "row 0: row_id is 1; 0 was expected"),
        (lambda found: found.drop_columns(["weight"]), "is not one of this format: expected row_id: uint64, .* found"),
        (
            lambda found: found.rename_columns([*found.column_names[:4], "ids", *found.column_names[5:]]),
            "is not one of this format: expected",
        ),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_name(weights, tmp_path, change, message):
    folder = shutil.copytree(weights, tmp_path / "forged")
    forge(folder, 0, change)
    with pytest.raises(remit.DamagedError, match=f"part-000000.parquet.*{message}"):
        list(remit.open(folder))
    # So does the reader of the programs.
    program("remit-inspect", "verify", folder, code=65)


def test_what_is_missing_is_named(weights, tmp_path):
    missing = tmp_path / "nothing"
    with pytest.raises(remit.MissingError, match=f"no such folder: {missing}\nhint: remit-score INPUT -o"):
        remit.open(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(remit.MissingError, match="has no _remit/manifest, so it is not a set of shards\nhint: "):
        remit.open(tmp_path / "empty")
    with pytest.raises(remit.DamagedError, match="is a file, and a set is a folder"):
        remit.open(weights / "part-000000.parquet")
    folder = shutil.copytree(weights, tmp_path / "set")
    (folder / "part-000001.parquet").unlink()
    with pytest.raises(remit.MissingError, match="the shard .*part-000001.parquet is missing\nhint: run the same"):
        remit.open(folder)
    (folder / "part-000000.parquet").unlink()
    with pytest.raises(remit.MissingError, match="2 shards in .* are not what they should be:\n  the shard"):
        remit.open(folder)
    (folder / "_remit" / "manifest.parquet").unlink()
    with pytest.raises(remit.MissingError, match="is not finished: it has a plan in _remit/, but no manifest yet"):
        remit.open(folder)
    with pytest.raises(remit.MissingError, match="there is a set further down: .*/weights"):
        remit.open(weights.parent)
    with pytest.raises(remit.UsageError, match="is in an object store"):
        remit.open("s3://bucket/weights")


@pytest.mark.parametrize("other", ["exact", "window"])
def test_a_shard_of_another_plan_is_refused(sets, tmp_path, other):
    """Made with other packing, or other rounding, under the name that it has here."""
    folder = shutil.copytree(sets["parquet"], tmp_path / "mixed")
    shutil.copy(sets[other] / "part-000001.parquet", folder)
    with pytest.raises(remit.DamagedError, match="part-000001.parquet has .* bytes; the manifest says"):
        remit.open(folder)
    forge(folder, 1, lambda found: found)
    with pytest.raises(remit.DamagedError, match="part-000001.parquet was made under another plan"):
        remit.open(folder)


def test_a_model_whose_tokenizer_gives_other_ids_is_refused_by_name(weights, tmp_path):
    ws = remit.open(weights)
    ws.check(LEARNER)
    model = shutil.copytree(LEARNER, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(remit.UsageError, match=f"but that of {model} is another .*\nhint: score the corpus again with"):
        ws.check(model)
    with pytest.raises(remit.Error, match="remit-inspect exited with 66"):
        ws.check(tmp_path / "nothing")


def test_a_manifest_that_contradicts_itself_is_refused(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "set")
    description = folder / "_remit" / "manifest.parquet"
    text = pq.read_metadata(description).metadata[b"remit.manifest"]
    for change, message in [
        (lambda m: m["totals"].update(rows=7), "its shards have .* rows, but the totals say 7"),
        (lambda m: m["shards"].pop(), "it lists .* shards, but the plan has"),
        (lambda m: m["shards"][0].update(file="../../x"), "shard 0 is called '../../x' and says it is part 0"),
        (lambda m: m["plan"].update(formula=None), "a formula and a base come together or not at all"),
        (lambda m: m["plan"].update(format_version=3), "has format version 3; this remit reads version 2"),
        (lambda m: m.pop("sources"), "is not what remit writes: KeyError: 'sources'"),
    ]:
        manifest = json.loads(text, parse_float=remit._manifest._Decimal)
        change(manifest)
        reseal(description, manifest)
        with pytest.raises(remit.DamagedError, match=f"manifest.parquet.*{message}"):
            remit.open(folder)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_of_200_mutations_none_gives_a_wrong_row(sets, tmp_path, kind):
    """A flipped bit, a cut, an insertion, two files exchanged: refused, or the rows are the same."""
    good = [row.input_ids.tolist() + row.rl_logprob.tolist() for row in remit.open(sets[kind])]
    draw = random.Random(11)
    refused = 0
    for _ in range(100):
        folder = shutil.copytree(sets[kind], tmp_path / "damaged")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = draw.choice(files)
        content = bytearray(path.read_bytes())
        at = draw.randrange(len(content))
        match draw.randrange(5):
            case 0:
                content[at] ^= 1 << draw.randrange(8)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 3:
                content[at : at + 16] = bytes(16)
            case _:
                content = bytearray(draw.choice(files).read_bytes())
        path.write_bytes(content)
        try:
            found = [row.input_ids.tolist() + row.rl_logprob.tolist() for row in remit.open(folder)]
        except remit.Error as error:
            refused += 1
            assert path.name in str(error) or "exchanged" in str(error), error
        else:
            assert np.array_equal(np.concatenate(found), np.concatenate(good), equal_nan=True)
        shutil.rmtree(folder)
    assert refused >= 60
