"""The published JSON Schemas hold for files that were just written, and are not so loose that anything passes."""

import copy
import json

import jsonschema
import pytest

from oracle import description


def schema(root, name):
    content = json.loads((root / "schemas" / name).read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_a_fresh_manifest_is_valid_and_a_changed_one_is_not(root, demo_weights):
    validator = schema(root, "manifest.schema.json")
    manifest = description(demo_weights, "manifest")
    validator.validate(manifest)
    assert manifest["plan"] == description(demo_weights, "plan")
    for damage in (
        lambda m: m.update(extra=1),
        lambda m: m["plan"].pop("seq_len"),
        lambda m: m["shards"][0].update(blake3="0"),
        lambda m: m["totals"]["weight"].update(share_at_lower=1.5),
    ):
        damaged = copy.deepcopy(manifest)
        damage(damaged)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(damaged)


def test_every_line_of_metrics_is_valid(root, run, demo_weights, tmp_path):
    validator = schema(root, "metrics.schema.json")
    run("remit-anneal", "--weights", demo_weights, "-o", tmp_path / "out", "--steps", "2", "--batch-tokens", "2048")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        validator.validate(json.loads(line))
    damaged = json.loads(lines[0])
    damaged.pop("skipped")
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(damaged)


def test_every_line_of_evaluations_is_valid(root, run, demo_weights, tmp_path):
    validator = schema(root, "eval.schema.json")
    run("remit-anneal", "--weights", demo_weights, "-o", tmp_path / "out", "--steps", "2", "--batch-tokens", "2048",
        "--holdout", "0.01")
    lines = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        validator.validate(line)
        assert sum(source["targets"] for source in line["sources"]) == line["targets"]
    lines[0]["sources"][0].pop("loss")
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(lines[0])
