"""Corpora as they lie about: what `datasets`, gzip, zstandard, pyarrow and transformers read of them, remit reads too.

Chat templates: the ids of a record are those of transformers' apply_chat_template, for templates written as the well-known
ones are. They are no copies, but have what these have: namespaces, loop controls, tests, slices, Python's methods, tojson,
raise_exception, strftime_now, blocks that eat the lines they stand on.
"""

import gzip
import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from conftest import ROOT
from oracle import description, load, read_rows, target_log_probs, weights_of
from transformers import AutoTokenizer

TEXTS = ["What is 12+30? It is 42.", "One line\nand another.", "Ünïcödé, ✓ and 𝕏", "x" * 300]
IGNORED = -100


def binary(name="remit-score"):
    return Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve() / name


@pytest.fixture(scope="session")
def model(models):
    return models / "tiny-llama"


@pytest.fixture(scope="session")
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)


@pytest.fixture
def score(run, model, tmp_path):
    def call(*args, out="out", rl=model):
        done = run("remit-score", *args, "-o", tmp_path / out, "--rl-model", rl, "--exact", cwd=tmp_path)
        return read_rows(tmp_path / out), done.stderr

    return call


def refused(*args, cwd, stdin=None):
    command = [str(binary()), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, input=stdin)
    assert done.returncode != 0, done.stderr
    return done.returncode, done.stderr.decode()


def ids_of(rows):
    return [row["input_ids"] for row in rows]


def encoded(tokenizer, texts=TEXTS):
    return [tokenizer(text).input_ids + [0] for text in texts]


def lines(texts=TEXTS):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


# Names, compression


def test_json_lines_under_the_names_of_c4_and_dolma_are_what_datasets_reads(score, tokenizer, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.json").write_bytes(lines())
    (tmp_path / "corpus" / "b.json.gz").write_bytes(gzip.compress(lines()))
    (tmp_path / "corpus" / "c.json.zst").write_bytes(zstandard.compress(lines()))
    # Padded, and in several members.
    padded = gzip.compress(lines()[:90]) + b"\0" * 1000 + gzip.compress(lines()[90:]) + b"\0" * 512
    (tmp_path / "corpus" / "d.jsonl.gz").write_bytes(padded)
    assert gzip.decompress(padded) == lines()
    (tmp_path / "corpus" / "README.md").write_text("---\nlicense: odc-by\n---\n")
    (tmp_path / "corpus" / "page.html").write_text("<p>")
    rows, stderr = score("corpus")
    assert ids_of(rows) == encoded(tokenizer) * 4
    assert "WARN" in stderr and "1 *.html (corpus/page.html)" in stderr and "corpus/README.md" in stderr
    read = datasets.load_dataset("json", data_files=[str(tmp_path / "corpus" / "b.json.gz")], cache_dir=str(tmp_path / "cache"))
    assert read["train"]["text"][:] == TEXTS


def test_stdin_is_read_as_the_file_would_be(score, run, tokenizer, model, tmp_path):
    for number, (content, args) in enumerate(
        [
            (lines(), ()),
            (gzip.compress(lines()), ("--input-format", "json.gz")),
            (TEXTS[0].encode(), ("--input-format", "txt")),
        ]
    ):
        out = tmp_path / str(number)
        command = [binary(), "-", "-o", out, "--rl-model", model, *args]
        done = subprocess.run(command, input=content, capture_output=True)
        assert done.returncode == 0, done.stderr
        expected = encoded(tokenizer) if content != TEXTS[0].encode() else encoded(tokenizer, TEXTS[:1])
        assert ids_of(read_rows(out)) == expected
        [file] = description(out, "plan")["corpus"]
        assert file["source"] == f"stdin.{args[1] if args else 'jsonl'}"
    assert refused("-", "--files-from", "-", "-o", "x", cwd=tmp_path, stdin=b"")[0] == 2
    assert refused("-", "-o", "x", "--input-format", "pdf", cwd=tmp_path, stdin=b"")[0] == 2


def test_a_missing_tmpdir_is_named(model, tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    done = subprocess.run(
        [binary(), tmp_path / "a.parquet.gz", "-o", tmp_path / "out", "--rl-model", model],
        env={**os.environ, "TMPDIR": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 74
    assert "no temporary file can be made in /nowhere" in done.stderr and "hint: set TMPDIR" in done.stderr


# Columns


def arrow_stream(table, path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def arrow_file(table, path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


WRITERS = {"parquet": pq.write_table, "arrow": arrow_stream, "feather": arrow_file}
TYPES = {
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.large_string()),
    "dictionary of binary": pa.dictionary(pa.int32(), pa.binary()),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_text_in_every_type_is_what_pyarrow_reads(score, tokenizer, ending, tmp_path):
    (tmp_path / "corpus").mkdir()
    number = 0
    for name, data_type in TYPES.items():
        values = [text.encode() for text in TEXTS] if "binary" in name else TEXTS
        if name.startswith("dictionary"):
            column = pa.array(values, data_type.value_type).dictionary_encode().cast(data_type)
        else:
            column = pa.array(values, data_type)
        table = pa.table({"id": list(range(len(TEXTS))), "text": column})
        try:
            WRITERS[ending](table, tmp_path / "corpus" / f"{number}.{ending}")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            continue
        number += 1
    rows, _ = score("corpus")
    assert number >= 6 and ids_of(rows) == encoded(tokenizer) * number
    bad = pa.table({"text": pa.array([b"ok", b"caf\xe9"], pa.binary())})
    WRITERS[ending](bad, tmp_path / f"bad.{ending}")
    code, stderr = refused(tmp_path / f"bad.{ending}", "-o", "x", cwd=tmp_path)
    assert code == 65 and "row 1: not valid UTF-8 at byte 3 of the value" in stderr


def test_a_field_inside_others_is_found_by_its_path(score, tokenizer, tmp_path):
    (tmp_path / "corpus").mkdir()
    records = [{"id": i, "a": {"n": [1], "b": {"text": text, "other": 1}}} for i, text in enumerate(TEXTS)]
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "corpus" / "b.parquet")
    arrow_file(pa.Table.from_pylist(records), tmp_path / "corpus" / "c.feather")
    # A key with a dot in it is the field itself.
    (tmp_path / "corpus" / "d.jsonl").write_text(json.dumps({"a.b.text": TEXTS[0], "a": {"b": {"text": "no"}}}))
    rows, _ = score("corpus", "--text-field", "a.b.text")
    assert ids_of(rows) == encoded(tokenizer) * 3 + encoded(tokenizer, TEXTS[:1])
    pq.write_table(pa.Table.from_pylist([records[0], {"id": 1, "a": None}]), tmp_path / "null.parquet")
    code, stderr = refused(tmp_path / "null.parquet", "-o", "x", "--text-field", "a.b.text", cwd=tmp_path)
    assert code == 65 and 'row 1: the text in column "a.b.text" is null' in stderr
    code, stderr = refused(tmp_path / "corpus" / "a.jsonl", "-o", "y", "--text-field", "a.c", cwd=tmp_path)
    assert code == 65 and 'no field "a.c"' in stderr


# Padding and masks


def padded_batch(tokenizer, side):
    """Ids and masks as transformers pads them."""
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.convert_ids_to_tokens(0), side
    return tokenizer(TEXTS, padding=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_cut_where_transformers_put_it(score, side, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = padded_batch(tokenizer, side)
    expected = [tokenizer(text).input_ids for text in TEXTS]
    (tmp_path / "corpus").mkdir()
    table = pa.table({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    for name, mask_type in [("int8", pa.int8()), ("bool", pa.bool_()), ("int64", pa.int64()), ("float", pa.float32())]:
        masks = pa.array([[type_of(name)(v) for v in mask] for mask in batch["attention_mask"]], pa.list_(mask_type))
        typed = table.set_column(1, "attention_mask", masks)
        pq.write_table(typed, tmp_path / "corpus" / f"{name}.parquet")
        (tmp_path / "corpus" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in typed.to_pylist()))
    rows, _ = score("corpus")
    assert ids_of(rows) == expected * 8


def type_of(name):
    return {"bool": bool, "float": float}.get(name, int)


def test_a_mask_with_a_hole_and_labels_of_other_ids_are_refused(tmp_path):
    for record, message in [
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "attention_mask has a hole: position 1 is 0"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1]}, "attention_mask has 2 values beside 3 token ids"),
        ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "labels is 6 at position 0, where the token id is 5"),
        ({"input_ids": [5, 6, 7], "loss_mask": [0, 1, 3]}, "loss_mask is 3 at position 2; expected 0 or 1"),
    ]:
        (tmp_path / "a.jsonl").write_text(json.dumps(record))
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
        for name in ("a.jsonl", "a.parquet"):
            code, stderr = refused(name, "-o", name + str(len(message)), cwd=tmp_path)
            assert code == 65 and message in stderr, stderr


def masked_records(tokenizer):
    """Prompts that are not predicted, and answers that are; some records without a mask."""
    records = []
    for number, text in enumerate(TEXTS * 3):
        ids = tokenizer(text).input_ids
        prompt = len(ids) // 3 + number % 3
        labels = [IGNORED] * prompt + ids[prompt:]
        if number % 4 == 1:
            labels[-1] = IGNORED
        records.append({"input_ids": ids, "labels": None if number % 5 == 4 else labels})
    return records


@pytest.fixture(scope="module")
def masked_set(run, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    records = masked_records(AutoTokenizer.from_pretrained(models / "tiny-llama"))
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet")
    pair = ("--rl-model", models / "tiny-llama", "--base-model", models / "tiny-llama-base")
    run("remit-score", folder / "a.parquet", "-o", folder / "set", *pair, "--exact")
    return folder, records


def test_what_labels_leave_out_is_no_target(masked_set, models, run):
    folder, records = masked_set
    rows = read_rows(folder / "set")
    rl, base = load(models / "tiny-llama"), load(models / "tiny-llama-base")
    total, rl_sum = 0, 0.0
    for row, record in zip(rows, records, strict=True):
        assert row["input_ids"] == record["input_ids"]
        labels = record["labels"] or record["input_ids"]
        is_target = np.array([label != IGNORED for label in labels[1:]])
        for column, model in [("rl_logprob", rl), ("base_logprob", base)]:
            assert [value is not None for value in row[column]] == [False, *is_target]
            with torch.no_grad():
                truth = target_log_probs(model, row["input_ids"]).numpy()[is_target]
            stored = np.array([value for value in row[column] if value is not None])
            np.testing.assert_allclose(stored, truth, atol=1e-4)
            if column == "rl_logprob":
                of_rl = stored
        weights = np.array(row["weight"][1:])
        np.testing.assert_array_equal(weights[~is_target], 0.0)
        np.testing.assert_allclose(weights[is_target], weights_of(of_rl - stored), atol=1e-6)
        total += is_target.sum()
        rl_sum += of_rl.sum()
    manifest = description(folder / "set", "manifest")
    assert manifest["totals"]["targets"] == total == sum(shard["targets"] for shard in manifest["shards"])
    assert manifest["totals"]["rl_logprob_mean"] == pytest.approx(rl_sum / total, abs=1e-6)
    assert manifest["totals"]["weight"]["min"] >= 0.79
    run("remit-inspect", "verify", folder / "set")


@pytest.mark.parametrize("weighting", ["dynamic", "static", "uniform", "excess-top-k"])
def test_training_sees_targets_alone_in_every_weighting(masked_set, models, run, weighting, tmp_path):
    """Loss and its gradient's norm of the first step, z-loss included, as PyTorch has them."""
    folder, _ = masked_set
    fraction, z_loss = 0.5, 1e-2
    run(
        *("remit-anneal", "--weights", folder / "set", "-o", tmp_path / "out", "--weighting", weighting, "--lr", 1e-4),
        *("--steps", 1, "--batch-tokens", 100_000, "--z-loss", z_loss, "--clip", 1e9, "--eval-weights", folder / "set", "--normalize", "targets"),
        *(("--top-k-fraction", fraction) if weighting == "excess-top-k" else ()),
    )
    [step] = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    model = load(models / "tiny-llama-base")
    loss, ntp, count = 0.0, 0.0, 0
    for row in read_rows(folder / "set"):
        is_target = torch.tensor([value is not None for value in row["rl_logprob"][1:]])
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][is_target].double()
        ids = torch.tensor(row["input_ids"][1:])[is_target]
        log_probs = torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]
        rl = torch.tensor([value for value in row["rl_logprob"] if value is not None], dtype=torch.float64)
        delta = rl - log_probs.detach()
        if weighting == "dynamic":
            weight = torch.tensor(weights_of(delta))
        elif weighting == "static":
            weight = torch.tensor(row["weight"][1:], dtype=torch.float64)[is_target]
        elif weighting == "uniform":
            weight = torch.ones_like(delta)
        else:
            chosen = torch.argsort(delta, descending=True, stable=True)[: int(np.ceil(fraction * len(delta) - 1e-9))]
            weight = torch.zeros_like(delta)
            weight[chosen] = 1.0
        loss = loss - (weight * log_probs).sum() + z_loss * torch.logsumexp(logits, -1).square().sum()
        ntp -= log_probs.detach().sum().item()
        count += len(delta)
    (loss / count).backward()
    norm = torch.sqrt(sum(p.grad.double().square().sum() for p in model.parameters())).item()
    assert step["targets"] == count
    assert step["ntp_loss"] == pytest.approx(ntp / count, abs=1e-5)
    assert step["loss"] + step["z_loss"] == pytest.approx(loss.item() / count, rel=1e-5)
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-4)
    first = json.loads((tmp_path / "out" / "eval.jsonl").read_text().splitlines()[0])
    assert (first["targets"], first["ntp_loss"]) == (count, pytest.approx(ntp / count, abs=1e-5))


def test_rows_without_masks_keep_their_bytes_beside_a_mask_that_says_yes(run, models, tokenizer, tmp_path):
    """A mask that leaves nothing out is none."""
    ids = [tokenizer(text).input_ids for text in TEXTS]
    for name, table in {
        "plain": {"input_ids": ids},
        "masked": {"input_ids": ids, "labels": ids, "attention_mask": [[1] * len(row) for row in ids]},
    }.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        shutil.copy(tmp_path / f"{name}.parquet", tmp_path / "a.parquet")
        run("remit-score", tmp_path / "a.parquet", "-o", tmp_path / name, "--rl-model", models / "tiny-llama")
    assert read_rows(tmp_path / "plain") == read_rows(tmp_path / "masked")


# Chat templates

CHATML = """{%- if messages[0]['role'] == 'system' -%}
{%- set system_message = messages[0]['content'] -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set system_message = 'You are helpful.' -%}{%- set loop_messages = messages -%}{%- endif -%}
{{- '<|im_start|>system\\n' + system_message + '<|im_end|>\\n' }}
{%- for message in loop_messages %}
{{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# As Llama 2 and Mistral have it.
STRICT = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' ~ message['content'] ~ eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

# As Llama 3.1 has it.
DATED = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
"""

# As Qwen 3 has it: what was thought before the last question is dropped.
THINKING = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
"""

# As Gemma and SmolLM3 have it: macros, loop controls, marked generations, blocks on lines of their own.
BLOCKS = """{{ bos_token }}
{% macro turn(role, text) %}
<start_of_turn>{{ role }}
{{ text | trim }}<end_of_turn>
{% endmacro %}
{% set roles = {'assistant': 'model', 'user': 'user'} %}
{% for message in messages %}
    {% if message.role not in roles %}{% continue %}{% endif %}
    {% if message['content'] is string and message.content | length > 400 %}
        {% break %}
    {% endif %}
    {% if message.role == 'assistant' %}
        {% generation %}
{{ turn(roles[message.role], message.content) }}
        {% endgeneration %}
    {% else %}
{{ turn(roles.get(message.role, 'user'), message.content) }}
    {% endif %}
    {# not shown #}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages[-1] | tojson }} {{ true }} {{ none }} {{ 1.0 }} {{ [1, 'a'] }} {{ messages[0].content.split() | first | upper }}
{{ 'x'.join(['a', 'b']).title() }}{{ ' y '.strip() }}{% for k, v in roles.items() %}{{ k }}={{ v }};{% endfor %}

"""

USER = {"role": "user", "content": "  What is 12+30? <b>'quoted'</b> \n"}
ASSISTANT = {"role": "assistant", "content": "<think>\n12+30\n</think>\n\nIt is \"42\" ✓"}
SYSTEM = {"role": "system", "content": "Count."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": [3.0, None, True], "é": "<&>"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <numbers>.", "parameters": {"z": {}, "a": []}}}]

CHATS = {
    "plain": {"messages": [USER, ASSISTANT]},
    "system": {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]},
    "alternate": {"messages": [USER, ASSISTANT, USER, ASSISTANT]},
    "user last": {"messages": [USER, ASSISTANT, USER]},
    "null keys": {"messages": [{**USER, "name": None}, {**ASSISTANT, "tool_calls": None}]},
    "reasoning": {"messages": [USER, {"role": "assistant", "content": "42", "reasoning": "It is easy."}]},
    "tools": {
        "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "42"}, ASSISTANT],
        "tools": TOOLS,
    },
}
TEMPLATES = {"chatml": CHATML, "strict": STRICT, "dated": DATED, "thinking": THINKING, "blocks": BLOCKS}


def with_template(model, folder, put):
    """A copy of the model with a chat template, and BOS and EOS spelled out."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["bos_token"] = config["bos_token"] or config["eos_token"]
    put(folder, config)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def truth(tokenizer, record):
    try:
        return tokenizer.apply_chat_template(record["messages"], tools=record.get("tools"), return_dict=False)
    except Exception as error:  # jinja2's, and what templates raise
        return error


@pytest.mark.parametrize("name", TEMPLATES)
def test_messages_become_the_ids_of_apply_chat_template(name, score, model, tmp_path):
    folder = with_template(model, tmp_path / "model", lambda _, config: config.update(chat_template=TEMPLATES[name]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = {chat: truth(tokenizer, record) for chat, record in CHATS.items()}
    good = {chat: ids for chat, ids in expected.items() if not isinstance(ids, Exception)}
    assert len(good) >= 2, expected
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in CHATS.values()))
    rows, _ = score("corpus", "--on-bad-record", "skip", rl=folder)
    by_record = {row["doc_index"]: row["input_ids"] for row in rows}
    for number, (chat, ids) in enumerate(expected.items()):
        if isinstance(ids, Exception):
            assert number not in by_record, f"{chat}: transformers says {ids!r}, and remit gives {tokenizer.decode(by_record[number])!r}"
        else:
            assert tokenizer.decode(by_record[number]) == tokenizer.decode(ids), chat
            assert by_record[number] == ids, chat


def test_templates_are_found_where_transformers_finds_them(score, model, tmp_path):
    def jinja(folder, config):
        (folder / "chat_template.jinja").write_text("JINJA " + CHATML)
        config["chat_template"] = STRICT

    def named(folder, config):
        config["chat_template"] = [
            {"name": "default", "template": "NAMED " + CHATML},
            {"name": "tool_use", "template": "TOOLS " + DATED},
        ]

    def extra(folder, config):
        jinja(folder, config)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("EXTRA " + DATED)

    corpus = tmp_path / "a.jsonl"
    records = [CHATS["plain"], CHATS["tools"]]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    for put in (jinja, named, extra):
        folder = with_template(model, tmp_path / put.__name__, put)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        expected = [truth(tokenizer, record) for record in records]
        rows, _ = score(corpus, "--on-bad-record", "skip", out=f"out-{put.__name__}", rl=folder)
        assert ids_of(rows) == [ids for ids in expected if not isinstance(ids, Exception)]


def test_messages_in_tables_and_files_of_templates(score, model, tmp_path):
    folder = with_template(model, tmp_path / "model", lambda _, config: config.update(chat_template=THINKING))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = [CHATS[name] for name in ("plain", "system", "null keys", "reasoning")]
    expected = [truth(tokenizer, record) for record in records]
    (tmp_path / "corpus").mkdir()
    table = pa.Table.from_pylist(records)
    pq.write_table(table, tmp_path / "corpus" / "a.parquet")
    arrow_stream(table, tmp_path / "corpus" / "b.arrow")
    datasets.Dataset.from_list(records).to_json(str(tmp_path / "corpus" / "c.jsonl"))
    (tmp_path / "corpus" / "d.jsonl").write_text("".join(json.dumps({"data": {"chat": r["messages"]}}) + "\n" for r in records))
    rows, stderr = score("corpus", "--exclude", "d.jsonl", rl=folder)
    assert ids_of(rows) == expected * 3
    assert "neither BOS nor EOS is put around them" in stderr
    (tmp_path / "t.jinja").write_text(THINKING)
    nested = ("--text-field", "data.chat", "--chat-template", tmp_path / "t.jinja")
    rows, _ = score("corpus", "--include", "d.jsonl", *nested, out="nested")
    assert ids_of(rows) == expected


def test_text_wins_over_messages_and_messages_need_a_template(score, tokenizer, model, tmp_path):
    (tmp_path / "both.jsonl").write_text(json.dumps({"messages": [USER], "text": TEXTS[0]}))
    rows, _ = score(tmp_path / "both.jsonl")
    assert ids_of(rows) == encoded(tokenizer, TEXTS[:1])
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [USER]}))
    code, stderr = refused("a.jsonl", "-o", "x", "--rl-model", model, cwd=tmp_path)
    assert code == 65 and "has no chat template" in stderr and "--chat-template FILE" in stderr


def test_a_date_that_a_template_asks_for_is_kept_with_the_set(run, score, model, tmp_path):
    folder = with_template(model, tmp_path / "model", lambda _, config: config.update(chat_template=DATED))
    (tmp_path / "a.jsonl").write_text(json.dumps(CHATS["plain"]))
    rows, _ = score("a.jsonl", "--chat-date", "2025-02-03", rl=folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "Today Date: 03 Feb 2025" in tokenizer.decode(rows[0]["input_ids"])
    plan = description(tmp_path / "out", "plan")
    assert plan["chat_date"] == "2025-02-03" and len(plan["chat_template"]) == 64
    # It goes on with that date, whatever day it is.
    again, _ = score("a.jsonl", rl=folder)
    assert again == rows and datetime.now().year > 2025 - 1
    code, stderr = refused(
        *("a.jsonl", "-o", tmp_path / "out", "--rl-model", folder, "--exact", "--chat-date", "2025-02-04"), cwd=tmp_path
    )
    assert code == 2 and "chat_date" in stderr
    (folder / "chat_template.jinja").write_text(CHATML)
    code, stderr = refused("a.jsonl", "-o", tmp_path / "out", "--rl-model", folder, "--exact", cwd=tmp_path)
    assert code == 2 and "chat_template" in stderr
