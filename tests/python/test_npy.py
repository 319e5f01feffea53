"""Arrays beside token files: each value at the id that it is about."""

import itertools

import numpy as np
import pytest
import remit
import remit.npy
from conftest import program


@pytest.fixture(scope="module")
def token_files(tmp_path_factory):
    """A corpus of two files of ids, one as OLMo-core has it and one with NumPy's header; documents end with 0."""
    folder = tmp_path_factory.mktemp("ids")
    draw = np.random.default_rng(1)
    for name in ("a.npy", "sub/b.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        documents = [np.append(draw.integers(1, 1000, draw.integers(1, 60)), 0) for _ in range(40)]
        ids = np.concatenate([*documents, [5, 6, 7]]).astype(np.uint16)
        ids.tofile(folder / name) if name == "a.npy" else np.save(folder / name, ids)
    return folder


@pytest.mark.parametrize("packing", ["document", "window"])
def test_every_value_stands_at_its_id(token_files, tmp_path, packing):
    out = tmp_path / "weights"
    program("remit-score", token_files, "-o", out, "--seq-len", 32, "--token-dtype", "uint16", "--separator", 0,
            "--packing", packing, "--part-bytes", 2000)  # fmt: skip
    ws = remit.open(out)
    assert remit.npy.export(ws, token_files, tmp_path / "aligned") == ["a.npy", "sub/b.npy"]
    count = 0
    for name in ("a", "sub/b"):

        def read(kind, dtype):
            path = tmp_path / "aligned" / f"{name}.{kind}.npy"  # noqa: B023
            return np.fromfile(path, dtype) if name == "a" else np.load(path)  # noqa: B023

        ids = np.fromfile(token_files / "a.npy", np.uint16) if name == "a" else np.load(token_files / "sub/b.npy")
        position, mask = read("position", np.uint32), read("label_mask", np.bool_)
        rl, weight = read("rl_logprob", np.float32), read("weight", np.float32)
        assert len(ids) == len(position) == len(mask) == len(rl) == len(weight)
        assert np.array_equal(mask, ~np.isnan(rl)) and (weight[~mask] == 0).all() and (weight[mask] > 0).all()
        assert not mask[position == 0].any()
        count += int(mask.sum())
        # What is in no row was left out: ends of one token.
        assert (position == remit.npy.NO_ROW).mean() < 0.05
    assert count == ws.num_targets
    by_context = {row.input_ids.tobytes(): row for row in ws}
    ids, position = (
        np.fromfile(token_files / "a.npy", np.uint16),
        np.fromfile(tmp_path / "aligned/a.position.npy", "u4"),
    )
    rl = np.fromfile(tmp_path / "aligned/a.rl_logprob.npy", np.float32)
    starts = [*np.flatnonzero(position == 0), len(ids)]
    for start, stop in itertools.pairwise(starts):
        tokens = slice(start, start + int((position[start:stop] != remit.npy.NO_ROW).sum()))
        row = by_context.get(ids[tokens].astype(np.uint32).tobytes())
        if row is not None:
            assert np.array_equal(rl[tokens], row.rl_logprob, equal_nan=True)


def test_another_corpus_is_refused(token_files, weights, tmp_path):
    out = tmp_path / "weights"
    program("remit-score", token_files, "-o", out, "--seq-len", 32, "--token-dtype", "uint16", "--separator", 0)
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    for name in ("a.npy", "sub/b.npy"):
        content = bytearray((token_files / name).read_bytes())
        content[-40] ^= 1
        (other / name).write_bytes(content)
    with pytest.raises(remit.DamagedError, match=r"a.npy has other ids at \d+ than row"):
        remit.npy.export(remit.open(out), other, tmp_path / "aligned")
    with pytest.raises(remit.MissingError, match=r"a.npy is missing"):
        remit.npy.export(remit.open(out), tmp_path, tmp_path / "aligned")
    with pytest.raises(remit.UsageError, match="no file of the corpus of .* holds ids"):
        remit.npy.export(remit.open(weights), tmp_path, tmp_path / "aligned")
