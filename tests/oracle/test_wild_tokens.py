"""The ids of texts are those of transformers' AutoTokenizer, whatever files decide them, or the folder is refused.

Every folder below is a tiny model with a tokenizer of one kind and a variation of its files; what is right is asked of
the installed transformers, never written down here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from oracle import description, read_rows
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

TEXTS = [
    "The quick brown fox, jumps over 12345 lazy dogs.",
    "  two spaces before,\ttabs\n\nand blank lines  ",
    "na\u00efve caf\u00e9, cafe\u0301 combining, \u4f60\u597d world, \U0001f642 emoji, \u0939\u093f\u0928\u094d\u0926\u0940",
    "it's don't we'll I'M 3.14 x+=1;",
    "<|im_start|>user hi<|im_end|>  \n there <think> x</think>y",
    "a <s> b </s> c<unk>d <pad><mask> <|endoftext|>e",
    "before  <strip>  after <word>glued x<word>y <norm> <NORM> [PAD]",
    " <|im_start|> \u2581<s>",
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def split_then_bytes():
    tokenizer, trainer = byte_level()
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer, trainer


def sentencepiece_bpe():
    """As Llama-2 and Gemma: spaces become a symbol, unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, limit_alphabet=60, show_progress=False
    )


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )


KINDS = {
    "byte-level": byte_level,
    "split": split_then_bytes,
    "sentencepiece": sentencepiece_bpe,
    "unigram": unigram,
}
TYPES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "olmo2", "olmo3", "smollm3", "youtu"]
CLASSES = [
    None,
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "GPTNeoXTokenizerFast",
    "PreTrainedTokenizer",
    "SmolLM3Tokenizer",
    "BloomTokenizerFast",
    "Qwen3_5Tokenizer",
]


def token(content, **flags):
    plain = dict(content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {**plain, **flags}


@pytest.fixture(scope="session")
def tokenizers(corpus, tmp_path_factory):
    """The text of a tokenizer.json of each kind, trained once; byte tokens are plain vocabulary."""
    made = {}
    for kind, make in KINDS.items():
        tokenizer, trainer = make()
        texts = [(corpus / "essays/mid-training.md").read_text(), *TEXTS]
        tokenizer.train_from_iterator(texts, trainer)
        value = json.loads(tokenizer.to_str())
        value["added_tokens"] = [t for t in value["added_tokens"] if not t["content"].startswith("<0x")]
        made[kind] = json.dumps(value)
    return made


class Folder:
    """A model folder whose tokenizer files a test changes."""

    def __init__(self, path, model, tokenizer_json):
        self.path = path
        path.mkdir()
        for file in model.iterdir():
            if not file.name.startswith(("tokenizer", "generation")):
                shutil.copy(file, path / file.name)
        self.tokenizer = json.loads(tokenizer_json)
        self.config = {}

    def write(self, **files):
        (self.path / "tokenizer.json").write_text(json.dumps(self.tokenizer))
        if self.config is not None:
            (self.path / "tokenizer_config.json").write_text(json.dumps(self.config))
        for name, content in files.items():
            (self.path / f"{name}.json").write_text(json.dumps(content))
        return self.path

    def id_of(self, content):
        vocab = self.tokenizer["model"]["vocab"]
        if isinstance(vocab, list):
            return [entry[0] for entry in vocab].index(content)
        return vocab[content]

    def template(self, *parts):
        """A template of these tokens, "A" standing for the text."""
        ids = {t["content"]: t["id"] for t in self.tokenizer["added_tokens"]}
        single = [
            {"Sequence": {"id": "A", "type_id": 0}} if part == "A" else {"SpecialToken": {"id": part, "type_id": 0}}
            for part in parts
        ]
        tokens = {p: {"id": p, "ids": [ids[p]], "tokens": [p]} for p in parts if p != "A"}
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": tokens,
        }

    def add(self, *tokens):
        """Appends added tokens, with the next ids where they have none."""
        vocab = self.tokenizer["model"]["vocab"]
        for new in tokens:
            taken = [len(vocab) - 1, *(t["id"] for t in self.tokenizer["added_tokens"])]
            self.tokenizer["added_tokens"].append({"id": max(taken) + 1, **new})


def binary(name):
    folder = Path(os.environ.get("REMIT_BIN", Path(__file__).resolve().parents[2] / "target/release"))
    return str(folder.resolve() / name)


def score(folder, tmp_path, *args, texts=TEXTS):
    """Scores the texts: the finished process, and the ids of each text if it went well."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "weights"
    shutil.rmtree(out, ignore_errors=True)
    command = [binary("remit-score"), corpus, "-o", out, "--rl-model", folder, "--seq-len", "1024"]
    command += ["--device", "cpu", "--threads", "1", "--on-bad-record", "skip", *args]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        return done, None
    rows = {}
    for row in read_rows(out):
        rows.setdefault(row["doc_index"], []).extend(row["input_ids"])
    return done, [rows.get(i) for i in range(len(texts))]


def encoded(tokenizer, text):
    """The ids of a text; None where the tokenizer can't encode it, as with an unknown token that it does not have."""
    try:
        return tokenizer(text).input_ids
    except Exception as error:
        assert "not found in the vocabulary" in str(error), error
        return None


def check(folder, tmp_path, refused=None, may_refuse=False, rows=1024):
    """Compares the ids of all texts with AutoTokenizer's. EOS is left out, BOS is as the template says. Returns what
    remit printed on stderr."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        expected = [encoded(tokenizer, text) for text in TEXTS]
    except Exception as error:  # whatever it is, there is no truth then
        tokenizer, expected = error, None
    done, ids = score(folder, tmp_path, "--eos", "never")
    if ids is None:
        assert done.returncode == 65, (done.returncode, done.stderr)
        if refused:
            assert refused in done.stderr, done.stderr
        else:
            assert may_refuse or expected is None, (done.stderr, tokenizer)
        return done.stderr
    assert refused is None, done.stderr
    assert expected is not None, f"transformers refuses it: {tokenizer!r}; remit gives {ids}"
    for text, mine, theirs in zip(TEXTS, ids, expected, strict=True):
        if theirs is None or any(i >= rows for i in theirs):
            assert mine is None, (text, mine, theirs)
        elif len(theirs) > 1:
            shown = [tokenizer.convert_ids_to_tokens(i or []) for i in (mine, theirs)]
            assert mine == theirs, (text, type(tokenizer).__name__, *shown)
    return done.stderr


@pytest.mark.parametrize("kind", ["split", "sentencepiece"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_on_every_family(kind, name, tokenizers, models, tmp_path):
    """transformers makes normalizer, pre-tokenizer, settings and template anew for some classes and families."""
    for model_type in TYPES:
        folder = Folder(tmp_path / model_type, models / f"tiny-{model_type}", tokenizers[kind])
        if name:
            folder.config["tokenizer_class"] = name
        folder.add(token("<|im_start|>"), token("<think>", special=False))
        check(folder.write(), tmp_path)


def test_every_class_of_transformers_is_right_or_refused(tokenizers, models, tmp_path):
    """Also the classes that transformers has and remit does not know by name."""
    names = {name for name in dir(transformers) if name.endswith(("Tokenizer", "TokenizerFast"))}
    names |= {"PythonBackend", "SentencePieceBackend", "MistralCommonBackend"}
    assert len(names) > 100
    for name in sorted(names - set(CLASSES) - {"AutoTokenizer"}):
        folder = Folder(tmp_path / name, models / "tiny-llama", tokenizers["split"])
        folder.config["tokenizer_class"] = name
        check(folder.write(), tmp_path, may_refuse=True)


def test_every_type_of_models_is_right_or_refused(tokenizers, models, tmp_path):
    """The class may come from config.json, and a folder for --tokenizer may have one of any type."""
    tokenizer_json, text = tokenizers["split"], TEXTS[1]
    model = Folder(tmp_path / "model", models / "tiny-llama", tokenizer_json)
    model.config["tokenizer_class"] = "PreTrainedTokenizerFast"
    model.write()
    accepted, wrong = 0, []
    for number, model_type in enumerate(sorted({*CONFIG_MAPPING_NAMES, "unheard-of"})[::4]):
        folder = Folder(tmp_path / str(number), models / "tiny-llama", tokenizer_json)
        path = folder.write()
        (path / "config.json").write_text(json.dumps({"model_type": model_type}))
        done, ids = score(model.path, tmp_path, "--eos", "never", "--tokenizer", path, texts=[text])
        if ids is None:
            assert done.returncode == 65
            continue
        try:
            AutoConfig.from_pretrained(path)
        except Exception:
            # No model can have this little in its config, or its config needs a package that is not there.
            continue
        expected = AutoTokenizer.from_pretrained(path)(text).input_ids
        accepted += 1
        if ids != [expected]:
            wrong.append((model_type, ids, expected))
    assert not wrong
    assert accepted >= 10


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizer", None])
def test_unigram(name, tokenizers, models, tmp_path):
    """Of Unigram, transformers makes LlamaTokenizer a model without merges, which splits text into characters."""
    folder = Folder(tmp_path / "m", models / "tiny-llama", tokenizers["unigram"])
    if name:
        folder.config["tokenizer_class"] = name
    refused = "PreTrainedTokenizerFast" if name == "LlamaTokenizer" else None
    check(folder.write(), tmp_path, refused=refused)


SETTINGS = [
    {"legacy": True},
    {"legacy": False},
    {"legacy": None},
    {"add_prefix_space": True},
    {"add_prefix_space": False},
    {"add_prefix_space": None},
    {"add_prefix_space": False, "legacy": True},
    {"add_bos_token": True},
    {"add_bos_token": False, "add_eos_token": True},
    {"unk_token": None, "bos_token": None, "eos_token": None, "pad_token": None},
    {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"},
    {"bos_token": {"__type": "AddedToken", **token("<s>", lstrip=True, rstrip=True)}},
    {"eos_token": {"__type": "AddedToken", **token("</s>", normalized=True, special=False)}},
    {"split_special_tokens": True},
    {"image_token": "<|im_start|>", "extra_special_tokens": {"boi_token": "<norm>"}},
    {"additional_special_tokens": ["<|im_start|>", "<strip>"]},
    {"extra_special_tokens": ["<|im_end|>", "<word>"]},
    {"extra_special_tokens": [], "additional_special_tokens": ["<|im_end|>"]},
    {"model_max_length": 5, "padding_side": "left", "clean_up_tokenization_spaces": True},
]


@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer"]
)
def test_settings_of_tokenizer_config(name, tokenizers, models, tmp_path):
    kinds = ["sentencepiece"] if name in ("LlamaTokenizer", "GemmaTokenizer") else ["split", "byte-level"]
    for number, settings in enumerate(SETTINGS):
        for kind in kinds:
            folder = Folder(tmp_path / f"{number}-{kind}", models / "tiny-llama", tokenizers[kind])
            folder.config = {"tokenizer_class": name, **settings}
            folder.add(token("<think>", special=False))
            check(folder.write(), tmp_path)


def decoder_of(*tokens):
    return {str(id): token for id, token in tokens}


# What the files say of tokens besides tokenizer.json: (tokenizer_config.json, other files)
TOKENS = {
    "a decoder of new tokens": (
        {"added_tokens_decoder": decoder_of((700, token("<|im_start|>")), (701, token("<|im_end|>", rstrip=True)))},
        {},
    ),
    "a decoder with ids in gaps": (
        {"added_tokens_decoder": decoder_of((900, token("<|im_start|>")), (950, token("<strip>", lstrip=True)))},
        {},
    ),
    "a decoder not in order": (
        {"added_tokens_decoder": decoder_of((901, token("<strip>")), (900, token("<|im_start|>")))},
        {},
    ),
    "flags in the decoder": (
        {
            "added_tokens_decoder": decoder_of(
                (700, token("<strip>", lstrip=True, rstrip=True)),
                (701, token("<word>", single_word=True)),
                (702, token("<NORM>", normalized=True, special=False)),
            )
        },
        {},
    ),
    "an incomplete token in the decoder": ({"added_tokens_decoder": {"700": {"content": "<strip>"}}}, {}),
    "an empty decoder": ({"added_tokens_decoder": {}}, {}),
    "a decoder and a map": (
        {"added_tokens_decoder": decoder_of((700, token("<|im_start|>")))},
        {"special_tokens_map": {"eos_token": "<|im_end|>"}, "added_tokens": {"<strip>": 710}},
    ),
    "added_tokens.json": ({}, {"added_tokens": {"<|im_start|>": 700, "<|im_end|>": 701}}),
    "added_tokens.json not in order": ({}, {"added_tokens": {"<|im_end|>": 720, "<|im_start|>": 710}}),
    "added_tokens.json and a name": (
        {"eos_token": "<|im_end|>"},
        {"added_tokens": {"<|im_start|>": 700, "<|im_end|>": 701}},
    ),
    "a map of strings": ({"bos_token": "<strip>"}, {"special_tokens_map": {"bos_token": "<|im_start|>"}}),
    "a map of objects": (
        {},
        {"special_tokens_map": {"bos_token": token("<|im_start|>", lstrip=True), "pad_token": token("[PAD]", rstrip=True)}},
    ),
    "a map with a list": ({}, {"special_tokens_map": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}}),
    "a map with a list beside one": (
        {"additional_special_tokens": ["<strip>"]},
        {"special_tokens_map": {"additional_special_tokens": ["<|im_start|>"]}},
    ),
    "a map with extra tokens": (
        {"extra_special_tokens": ["<strip>"]},
        {"special_tokens_map": {"extra_special_tokens": [{"content": "<|im_start|>", "lstrip": True}, "<strip>"]}},
    ),
    "a map with extra names": (
        {"audio_token": "<word>"},
        {"special_tokens_map": {"extra_special_tokens": {"image_token": "<|im_start|>"}, "video_token": "<strip>"}},
    ),
    "a name that is vocabulary only": ({"eos_token": "the", "unk_token": "a"}, {}),
    "a name that is nowhere": ({"pad_token": "[PAD]", "sep_token": "<strip>"}, {}),
    "objects in a list": ({"additional_special_tokens": [{"__type": "AddedToken", **token("<strip>", rstrip=True)}]}, {}),
    "one token with two names": ({"pad_token": "[PAD]", "unk_token": "[PAD]", "extra_special_tokens": ["[PAD]"]}, {}),
    "a name in both files": (
        {"audio_token": "<word>", "image_token": "<strip>"},
        {"special_tokens_map": {"image_token": "<|im_start|>"}},
    ),
    "names in both files": (
        {"extra_special_tokens": {"image_token": "<|im_end|>", "audio_token": "<word>"}},
        {"special_tokens_map": {"extra_special_tokens": {"image_token": "<|im_start|>", "b_token": "<strip>"}}},
    ),
    "an object among the names": (
        {"audio_token": "<word>", "image_token": {"__type": "AddedToken", **token("<strip>", lstrip=True)}},
        {},
    ),
    "one token as strings around an object": (
        {
            "bos_token": "<word>",
            "x_token": {"__type": "AddedToken", **token("<word>", single_word=True)},
            "extra_special_tokens": {"k_token": "<word>"},
        },
        {},
    ),
    "an empty list beside a map with a list": (
        {"additional_special_tokens": []},
        {"special_tokens_map": {"additional_special_tokens": ["<|im_start|>"]}},
    ),
    "an object that added_tokens.json names too": (
        {"bos_token": {"__type": "AddedToken", **token("<strip>", lstrip=True)}},
        {"added_tokens": {"<strip>": 710}},
    ),
    "an empty name": ({"pad_token": ""}, {}),
}


@pytest.mark.parametrize("what", TOKENS)
def test_tokens_outside_tokenizer_json(what, tokenizers, models, tmp_path):
    config, files = TOKENS[what]
    for kind, name in [
        ("split", "PreTrainedTokenizerFast"),
        ("sentencepiece", "LlamaTokenizer"),
        ("sentencepiece", "PreTrainedTokenizerFast"),
        ("byte-level", "Qwen2Tokenizer"),
    ]:
        for has_tokens in [False, True]:
            place = tmp_path / f"{kind}-{name}-{has_tokens}"
            folder = Folder(place, models / "tiny-llama", tokenizers[kind])
            folder.config = {"tokenizer_class": name, **config}
            if has_tokens:
                folder.add(token("<|im_start|>"), token("<strip>"), token("<think>", special=False))
            # Objects in plain lists make transformers fail.
            check(folder.write(**files), tmp_path)


def test_tokenizer_json_with_ids_in_gaps(tokenizers, models, tmp_path):
    for kind in ["split", "sentencepiece"]:
        folder = Folder(tmp_path / kind, models / "tiny-llama", tokenizers[kind])
        folder.config["tokenizer_class"] = "PreTrainedTokenizerFast"
        folder.add({**token("<|im_start|>"), "id": 900}, {**token("<strip>", lstrip=True), "id": 950})
        word = next(word for word in folder.tokenizer["model"]["vocab"] if word.isalpha() and len(word) > 1)
        folder.add({**token("<NORM>", normalized=True), "id": 951}, {**token(word), "id": folder.id_of(word)})
        check(folder.write(), tmp_path)


def test_templates(tokenizers, models, tmp_path):
    """BOS is what the template puts in front, whatever the flags say, except where a class makes its own."""
    number = 0
    for name in ["PreTrainedTokenizerFast", "LlamaTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"]:
        for parts in [("A",), ("<s>", "A"), ("A", "</s>"), ("<s>", "A", "</s>")]:
            for flags in [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": False}]:
                for in_sequence in [False, True] if not flags else [False]:
                    number += 1
                    folder = Folder(tmp_path / str(number), models / "tiny-llama", tokenizers["sentencepiece"])
                    folder.config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", **flags}
                    template = folder.template(*parts)
                    if in_sequence:
                        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
                        template = {"type": "Sequence", "processors": [byte_level, template]}
                    folder.tokenizer["post_processor"] = template
                    path = folder.write()
                    tokenizer = AutoTokenizer.from_pretrained(path)
                    done, ids = score(path, tmp_path, texts=TEXTS[:1])
                    expected = tokenizer(TEXTS[0]).input_ids
                    if expected[-1] != tokenizer.eos_token_id:
                        expected = [*expected, tokenizer.eos_token_id]
                    assert ids == [expected], (name, parts, flags, done.stderr)
                    starts = tokenizer(TEXTS[0]).input_ids[0] == tokenizer.bos_token_id
                    contradicts = flags.get("add_bos_token", starts) != starts
                    assert ("add_bos_token" in done.stderr) == contradicts, done.stderr


def test_a_template_that_is_more_than_bos_and_eos_is_refused(tokenizers, models, tmp_path):
    folder = Folder(tmp_path / "m", models / "tiny-llama", tokenizers["sentencepiece"])
    folder.config["tokenizer_class"] = "PreTrainedTokenizerFast"
    folder.tokenizer["post_processor"] = folder.template("<s>", "<unk>", "A")
    path = folder.write()
    done, _ = score(path, tmp_path)
    assert done.returncode == 65 and "the template of the tokenizer turns" in done.stderr
    _, ids = score(path, tmp_path, "--bos", "never", "--eos", "never", texts=TEXTS[:1])
    assert ids == [AutoTokenizer.from_pretrained(path)(TEXTS[0], add_special_tokens=False).input_ids]


def test_the_table_of_model_types_is_that_of_transformers():
    """src/tokenize/model_types.txt is what scripts/model_types.py writes."""
    script = [sys.executable, str(Path(__file__).resolve().parents[2] / "scripts" / "model_types.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
