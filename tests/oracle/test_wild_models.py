"""Model folders as they are in the wild, asked of transformers: the text part of multimodal checkpoints, exports with
code of their own, configs that leave their defaults out, and scaled positions."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from oracle import read_rows, stored_tensors

MODELS = Path(__file__).resolve().parents[2] / "fixtures" / "models"
TEXT = {
    "vocab_size": 1056, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128,
}
GEMMA3 = {**TEXT, "head_dim": 8, "num_hidden_layers": 3, "sliding_window": 12, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
CLIP = {"model_type": "clip_vision_model", **SMALL, "projection_dim": 8}
SIGLIP = {"model_type": "siglip_vision_model", **SMALL}
PIXTRAL = {"model_type": "pixtral", **SMALL, "head_dim": 8}
INTERN = {**SMALL, "image_size": [8, 8], "patch_size": [4, 4]}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
               "out_hidden_size": 16, "fullatt_block_indexes": [0], "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
AUDIO = {"model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
         "encoder_ffn_dim": 16, "num_mel_bins": 8, "max_source_positions": 8}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
# Class of transformers, model_type, the text part, and what else the config needs.
MULTIMODAL = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3", {"model_type": "gemma3_text", **GEMMA3}, {"vision_config": SIGLIP, "mm_tokens_per_image": 4}),
    "llava-llama": ("LlavaForConditionalGeneration", "llava", {"model_type": "llama", **TEXT}, {"vision_config": CLIP}),
    "llava-mistral": ("LlavaForConditionalGeneration", "llava", {"model_type": "mistral", "sliding_window": 10, **TEXT}, {"vision_config": CLIP}),
    "llava-qwen2": ("LlavaForConditionalGeneration", "llava", {"model_type": "qwen2", "tie_word_embeddings": True, **TEXT}, {"vision_config": CLIP}),
    "llava_next": ("LlavaNextForConditionalGeneration", "llava_next", {"model_type": "mistral", **TEXT}, {"vision_config": CLIP, "image_grid_pinpoints": [[8, 8]]}),
    "llava_next_video": ("LlavaNextVideoForConditionalGeneration", "llava_next_video", {"model_type": "llama", **TEXT}, {"vision_config": CLIP, "image_grid_pinpoints": [[8, 8]]}),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "llava_onevision", {"model_type": "qwen2", **TEXT}, {"vision_config": SIGLIP, "image_grid_pinpoints": [[8, 8]]}),
    "vipllava": ("VipLlavaForConditionalGeneration", "vipllava", {"model_type": "llama", **TEXT}, {"vision_config": {**CLIP, "num_hidden_layers": 12}}),
    "video_llava": ("VideoLlavaForConditionalGeneration", "video_llava", {"model_type": "llama", **TEXT}, {"vision_config": CLIP}),
    "mistral3": ("Mistral3ForConditionalGeneration", "mistral3", {"model_type": "mistral", "head_dim": 8, **TEXT}, {"vision_config": PIXTRAL}),
    "internvl": ("InternVLForConditionalGeneration", "internvl", {"model_type": "qwen3", "head_dim": 8, **TEXT}, {"vision_config": INTERN}),
    "idefics3": ("Idefics3ForConditionalGeneration", "idefics3", {"model_type": "llama", **TEXT}, {"vision_config": SMALL}),
    "smolvlm": ("SmolVLMForConditionalGeneration", "smolvlm", {"model_type": "llama", **TEXT}, {"vision_config": SMALL}),
    "qwen2_audio": ("Qwen2AudioForConditionalGeneration", "qwen2_audio", {"model_type": "qwen2", **TEXT}, {"audio_config": AUDIO}),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "qwen2_vl", {"model_type": "qwen2_vl_text", "rope_parameters": MROPE, **TEXT}, {"vision_config": QWEN_VISION}),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", {"model_type": "qwen2_5_vl_text", "rope_parameters": MROPE, **TEXT}, {"vision_config": QWEN_VISION}),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "qwen3_vl", {"model_type": "qwen3_vl_text", "head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}, **TEXT}, {"vision_config": QWEN_VISION}),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On matrices this small a second thread gains nothing, and waits long for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("document")
    (folder / "page.txt").write_text("What is 12 + 30? It is 42, and 7 times 6 is 42 as well. So both are the same.")
    return folder


def with_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "tiny-llama" / name, folder / name)
    return folder


def multimodal(name, folder, change=None):
    """A random model in `folder`; `change` may edit its config.json before the weights are made."""
    class_name, model_type, text, rest = MULTIMODAL[name]
    config = AutoConfig.for_model(model_type, text_config=text, **rest)
    torch.manual_seed(0)
    model = getattr(transformers, class_name)._from_config(config).eval()
    with torch.no_grad():  # norms of all ones would hide a wrong one
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return with_tokenizer(folder)


def load(folder, class_name):
    return getattr(transformers, class_name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def largest_difference(rows, model, key="rl_logprob"):
    """In nats, of the stored log-probs from those of transformers."""
    worst = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        expected = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
        worst = max(worst, (torch.tensor(row[key][1:], dtype=torch.float64) - expected).abs().max().item())
    return worst


def score(run, document, folder, out, *more):
    run("remit-score", document, "-o", out, "--rl-model", folder, "--exact", *more)
    rows = read_rows(out)
    assert sum(len(row["input_ids"]) for row in rows) > 20
    return rows


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_text_of_a_multimodal_model_is_scored_trained_and_written_back(name, run, document, tmp_path):
    class_name = MULTIMODAL[name][0]
    folder = multimodal(name, tmp_path / "model")
    rows = score(run, document, folder, tmp_path / "weights", "--base-model", folder)
    assert largest_difference(rows, load(folder, class_name)) < 1e-4
    run("remit-anneal", "--weights", tmp_path / "weights", "-o", tmp_path / "out", "--steps", 3, "--lr", 1e-2)
    before, after = stored_tensors(folder), stored_tensors(tmp_path / "out")
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
    same = {k for k in before if torch.equal(before[k], after[k])}
    text = {k for k in before if "language_model." in k or "text_model." in k or k.startswith("lm_head")}
    if name in ("qwen2_vl", "qwen2_5_vl"):
        text = {k for k in before if not k.startswith("visual.")}
    assert len(text) > 15 and len(same) > 5
    assert same == before.keys() - text, "the text part is trained, and nothing else is changed"
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    rows = score(run, document, tmp_path / "out", tmp_path / "again")
    assert largest_difference(rows, load(tmp_path / "out", class_name)) < 1e-4


def test_names_before_and_after_transformers_4_52_are_both_followed(run, document, tmp_path):
    folder = multimodal("llava-llama", tmp_path / "model")
    rows = score(run, document, folder, tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    new = {}
    for k, v in tensors.items():
        k = k.replace("language_model.lm_head", "lm_head").replace("language_model.model", "model.language_model")
        new[k if k.startswith(("model.", "lm_head")) else f"model.{k}"] = v
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    again = score(run, document, folder, tmp_path / "again")
    assert [row["rl_logprob"] for row in rows] == [row["rl_logprob"] for row in again]
    assert largest_difference(again, load(folder, "LlavaForConditionalGeneration")) < 1e-4


@pytest.mark.parametrize("outer", [None, True, False])
@pytest.mark.parametrize("inner", [None, True, False])
@pytest.mark.parametrize("name", ["gemma3", "llava-llama", "llava_next", "mistral3", "qwen2_audio"])
def test_who_says_that_the_head_is_the_embedding(name, outer, inner, run, document, tmp_path):
    folder = multimodal(name, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for part, value in ((config, outer), (config["text_config"], inner)):
        part.pop("tie_word_embeddings", None)
        if value is not None:
            part["tie_word_embeddings"] = value
    (folder / "config.json").write_text(json.dumps(config))
    # With a head of its own in the files, in case it is asked for.
    tensors = load_file(folder / "model.safetensors")
    head = tensors["language_model.model.embed_tokens.weight"].clone().flip(0)
    save_file({**tensors, "language_model.lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    rows = score(run, document, folder, tmp_path / "weights")
    assert largest_difference(rows, load(folder, MULTIMODAL[name][0])) < 1e-4


def test_a_config_of_qwen2_5_vl_without_a_text_config_is_read(run, document, tmp_path):
    folder = multimodal("qwen2_5_vl", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    flat = {**text, **config, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "rope_theta": 10000.0}
    flat.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(flat))
    rows = score(run, document, folder, tmp_path / "weights")
    assert largest_difference(rows, load(folder, "Qwen2_5_VLForConditionalGeneration")) < 1e-4


def parameters_of_text(folder, class_name):
    """Of the model that transformers makes of a config."""
    with torch.device("meta"):
        model = getattr(transformers, class_name)._from_config(AutoConfig.from_pretrained(folder))
    parts = [model.get_decoder()]
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        parts.append(model.get_output_embeddings())
    return sum(p.numel() for part in parts for p in part.parameters())


@pytest.mark.parametrize("form", ["type", "empty", "absent", "null"])
@pytest.mark.parametrize("name", MULTIMODAL)
def test_sizes_that_a_text_config_leaves_out_are_those_of_transformers(name, form, run, tmp_path):
    class_name, model_type, text, rest = MULTIMODAL[name]
    config = {"model_type": model_type, **rest}
    if form != "absent":
        config["text_config"] = {"type": {"model_type": text["model_type"]}, "empty": {}, "null": None}[form]
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(tmp_path).text_config
    found = json.loads(run("remit-inspect", "model", tmp_path, "--json").stdout)
    assert found["parameters"] == parameters_of_text(tmp_path, class_name)
    assert found["max_position_embeddings"] == theirs.max_position_embeddings


@pytest.mark.parametrize("name", MULTIMODAL)
def test_settings_that_a_text_config_leaves_out_are_those_of_transformers(name, run, document, tmp_path):
    folder = multimodal(name, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "model_type", "dtype")
    text = config["text_config"]
    config["text_config"] = {k: v for k, v in text.items() if k in sizes}
    if name in ("qwen2_vl", "qwen2_5_vl"):  # the default sections are for heads of 128 features
        config["text_config"]["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    (folder / "config.json").write_text(json.dumps(config))
    rows = score(run, document, folder, tmp_path / "weights", "--seq-len", 128)
    assert largest_difference(rows, load(folder, MULTIMODAL[name][0])) < 1e-4


def plain_model(folder, name="tiny-phi3"):
    shutil.copytree(MODELS / name, folder)
    return folder


def edit(path, **fields):
    config = json.loads(path.read_text())
    config.update(fields)
    path.write_text(json.dumps(config))


def annealed(run, document, folder, tmp_path):
    score(run, document, folder, tmp_path / "weights", "--base-model", folder)
    run("remit-anneal", "--weights", tmp_path / "weights", "-o", tmp_path / "out", "--steps", 1)
    return tmp_path / "out"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder of its own for the code that transformers copies before it runs it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


CODE = {
    "configuration_own.py": "from transformers.models.phi3.configuration_phi3 import Phi3Config as P\nclass OwnConfig(P):\n    pass\n",
    "layers_own.py": "NAME = 'own'\n",
    "modeling_own.py": "from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM as P\nfrom .configuration_own import OwnConfig\n"
    "from .layers_own import NAME\nclass OwnForCausalLM(P):\n    config_class = OwnConfig\n    own_name = NAME\n",
}
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def test_code_that_auto_map_names_comes_with_the_export(run, document, tmp_path, modules):
    folder = plain_model(tmp_path / "model")
    for name, text in {**CODE, "train.py": "1 / 0\n"}.items():
        (folder / name).write_text(text)
    edit(folder / "config.json", auto_map=AUTO_MAP)
    out = annealed(run, document, folder, tmp_path)
    assert sorted(p.name for p in out.glob("*.py")) == sorted(CODE)
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM" and model.own_name == "own"


@pytest.mark.parametrize("missing", ["modeling_own.py", "layers_own.py"])
def test_auto_map_without_its_code_is_left_out_and_the_rest_kept(missing, run, document, tmp_path, modules):
    folder = plain_model(tmp_path / "model")
    for name, text in CODE.items():
        if name != missing:
            (folder / name).write_text(text)
    edit(folder / "config.json", auto_map=AUTO_MAP)
    out = annealed(run, document, folder, tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert config.pop("auto_map") == {"AutoConfig": AUTO_MAP["AutoConfig"]}
    before = json.loads((folder / "config.json").read_text())
    before.pop("auto_map")
    assert config == before
    assert [p.name for p in out.glob("*.py")] == ["configuration_own.py"]
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": AUTO_MAP["AutoModelForCausalLM"]})
    (tmp_path / "b").mkdir()
    out = annealed(run, document, folder, tmp_path / "b")
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert type(AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)).__name__ == "Phi3ForCausalLM"


@pytest.mark.parametrize(
    ("reference", "is_kept"),
    [("org/repo--modeling.Own", True), ("../outside.Own", False), ("sub/inside.Own", False), ("/outside.Own", False),
     ("outside", False), (["a.b.C"], False), (7, False)],
)
def test_code_outside_of_the_folder_is_never_copied(reference, is_kept, run, document, tmp_path):
    folder = plain_model(tmp_path / "model")
    (tmp_path / "outside.py").write_text("secret = 1\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "inside.py").write_text("x = 1\n")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": reference})
    out = annealed(run, document, folder, tmp_path)
    assert ("auto_map" in json.loads((out / "config.json").read_text())) == is_kept
    assert not list(out.rglob("*.py"))


def test_templates_licences_and_preprocessors_are_carried_over_and_nothing_else(run, document, tmp_path):
    folder = plain_model(tmp_path / "model", "tiny-llama")
    carried = ["LICENSE.txt", "NOTICE", "USE_POLICY.md", "Third-Party-Notices.txt", "preprocessor_config.json",
               "processor_config.json", "video_preprocessor_config.json", "chat_template.json", "own.tiktoken",
               "chat_template.jinja", "additional_chat_templates/tool.jinja"]
    left = [".env", "optimizer.pt", "train.py", "notes.txt", "additional_chat_templates/.hidden", "onnx/model.onnx"]
    for name in carried + left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else f"text of {name}\n")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: own\ntags: [x]\n---\n# Mine\nlicense: none\n")
    out = annealed(run, document, folder, tmp_path)
    for name in carried:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not [name for name in left if (out / name).exists()]
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(d).chat_template for d in (folder, out))
    assert ours == theirs and set(ours) == {"default", "tool"}
    card = (out / "README.md").read_text()
    assert card.split("---\n")[1].count("license: other\nlicense_name: own\n") == 1 and "# Mine" not in card
    assert "license: none" not in card


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_scaled_positions_reach_factor_times_the_first_context(kind, run, document, tmp_path):
    folder = plain_model(tmp_path / "model", "tiny-qwen3" if kind == "yarn" else "tiny-phi3")
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 16}
    if kind == "longrope":
        old = config.get("rope_scaling") or config["rope_parameters"]
        rope.update({k: old[k] for k in ("short_factor", "long_factor")})
        config["original_max_position_embeddings"] = 16
    config.pop("rope_parameters", None)
    config.update(max_position_embeddings=16, rope_scaling=rope)
    (folder / "config.json").write_text(json.dumps(config))
    found = json.loads(run("remit-inspect", "model", folder, "--json").stdout)
    assert found["max_position_embeddings"] == 64
    rows = score(run, document, folder, tmp_path / "weights", "--seq-len", 64)
    assert max(len(row["input_ids"]) for row in rows) > 16
    assert largest_difference(rows, load(folder, "AutoModelForCausalLM")) < 1e-4
