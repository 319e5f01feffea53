"""Tokenizers of every kind that checkpoints come with: the ids in the shards are those of the tokenizers package, and
BOS and EOS are put around documents as the model's files say."""

import json

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from oracle import description, read_rows

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
TEXTS = [
    "Plain words, and some more of them; a sentence ends. Another begins!\n\nA second paragraph.\n",
    "  leading spaces\tand\ttabs \r\n and CRLF line ends\r\n\r\n   trailing   ",
    "na\u00efve caf\u00e9 cafe\u0301 \u00fcber stra\u00dfe \u0130stanbul \ufb01ne",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \ud7ff\ue000\uffff\U0010ffff",
    "zero\u200bwidth nul\x00byte bell\x07 nbsp\u00a0here \u2028 line",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 22, 333]}  # code\n",
    "a" * 300,
    "</s> spelled out, <|user|> too, and <s>",
    "x",
]


def byte_level(prefix):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return tokenizer, trainer


def split_then_bytes():
    """As Llama 3 and Qwen: a regular expression, then bytes."""
    tokenizer, trainer = byte_level(False)
    pattern = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer, trainer


def sentencepiece_bpe():
    """As Llama 2, Mistral and Gemma: spaces become U+2581, what is unknown falls back to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=pieces, limit_alphabet=60, show_progress=False)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )


KINDS = {
    "byte-level": lambda: byte_level(False),
    "byte-level with a prefix space": lambda: byte_level(True),
    "split, then byte-level": split_then_bytes,
    "sentencepiece BPE": sentencepiece_bpe,
    "Unigram": unigram,
}


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory):
    """A model of 1024 embeddings; its tokenizer is put beside it by the tests."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make(kind, weights_folder, folder, corpus, tokenizer_config, template=None):
    """A model directory with a tokenizer of this kind, trained on the corpus, and the tokenizer."""
    tokenizer, trainer = KINDS[kind]()
    texts = [(corpus / "essays/mid-training.md").read_text(), *TEXTS]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if template:
        ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    folder.mkdir()
    for path in weights_folder.iterdir():
        (folder / path.name).symlink_to(path)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return tokenizer


def score(run, model, tmp_path, texts, *args):
    """The rows of the texts, one a document, and the special tokens that the manifest records."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "weights"
    run("remit-score", corpus, "-o", out, "--rl-model", model, "--seq-len", 1024, "--device", "cpu", *args)
    manifest = description(out, "manifest")
    return [row["input_ids"] for row in read_rows(out)], manifest["plan"]["special_tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizers_package(kind, run, corpus, weights_folder, tmp_path):
    model = tmp_path / "model"
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    tokenizer = make(kind, weights_folder, model, corpus, names)
    rows, special = score(run, model, tmp_path, TEXTS)
    expected = [[*tokenizer.encode(text, add_special_tokens=False).ids, 2] for text in TEXTS]
    expected = [ids for ids in expected if len(ids) > 1]
    assert rows == expected
    assert special == {"bos": None, "eos": 2}
    # Tokens that text spells out are those tokens, as everywhere with such tokenizers.
    assert [token in rows[-2] for token in (1, 2, 3)] == [True, True, True]


# (template in tokenizer.json, tokenizer_config.json, arguments) -> (bos, eos)
POLICIES = {
    "neither is named: config.json's EOS": (None, {}, [], (None, 2)),
    "the template has BOS": ("<s> $A", {"eos_token": "</s>"}, [], (1, 2)),
    "the template has BOS and EOS": ("<s> $A </s>", {"eos_token": "</s>"}, [], (1, 2)),
    "add_bos_token adds nothing to a template without": (None, {"bos_token": "<s>", "add_bos_token": True}, [], (None, 2)),
    "add_bos_token false takes nothing from a template": ("<s> $A", {"bos_token": "<s>", "add_bos_token": False}, [], (1, 2)),
    "another EOS is named": (None, {"eos_token": "<|user|>"}, [], (None, 3)),
    "--bos always": (None, {"bos_token": "<s>"}, ["--bos", "always"], (1, 2)),
    "--bos never, --eos never": ("<s> $A", {}, ["--bos", "never", "--eos", "never"], (None, None)),
}


@pytest.mark.parametrize("name", POLICIES)
def test_bos_and_eos_are_as_the_files_and_arguments_say(name, run, corpus, weights_folder, tmp_path):
    template, tokenizer_config, args, (bos, eos) = POLICIES[name]
    model = tmp_path / "model"
    tokenizer = make("byte-level", weights_folder, model, corpus, tokenizer_config, template)
    texts = TEXTS[:3]
    rows, special = score(run, model, tmp_path, texts, *args)
    assert special == {"bos": bos, "eos": eos}
    around = [[token] if token is not None else [] for token in (bos, eos)]
    assert rows == [around[0] + tokenizer.encode(text, add_special_tokens=False).ids + around[1] for text in texts]


def test_special_tokens_map_names_what_tokenizer_config_does_not(run, corpus, weights_folder, tmp_path):
    model = tmp_path / "model"
    make("byte-level", weights_folder, model, corpus, {})
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|user|>"}}))
    _, special = score(run, model, tmp_path, TEXTS[:2])
    assert special == {"bos": None, "eos": 3}
