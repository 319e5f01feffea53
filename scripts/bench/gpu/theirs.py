"""What PyTorch and transformers do beside remit: a task is a line of JSON on stdin, and answered with one on stdout."""

import contextlib
import gc
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

# Targets whose logits are held at a time.
HEAD_CHUNK = 2048
# No weight decay on these. An untied head is a matrix like any other.
EMBEDDINGS = {"model.embed_tokens.weight"}

# The name of an argument, which changed.
DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


def load(folder, dtype, device, attention="eager"):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(folder, **{DTYPE: dtype}, attn_implementation=attention)
    return model.eval().to(device)


def synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize()


def timed(call, device, repeats):
    """The median time of a call in seconds, after a warm-up."""
    seconds = []
    for number in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def environment(device):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__}
    if device != "cpu":
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
        major, minor = torch.cuda.get_device_capability()
        found |= {"card": torch.cuda.get_device_name(), "capability": f"{major}.{minor}"}
        found["memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return found


def ceilings(device):
    """Bytes read and written a second by a copy of 4 GB, FLOP/s of a bf16 product of 8192^3."""
    source = torch.empty(4_000_000_000, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), device, 10)
    del source, target
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = timed(lambda: torch.mm(a, b.T, out=out), device, 50)
    return {"copy": 2 * 4e9 / copy, "product": 2 * 8192**3 / product}


def make_shapes(folder, shapes, tokenizer, device):
    """Random models of these shapes in bf16: the number of parameters and of bytes of each."""
    found = {}
    for name, shape in shapes.items():
        torch.manual_seed(7)
        config = AutoConfig.for_model(**shape)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, **{DTYPE: torch.bfloat16})
        with torch.no_grad():
            for p in model.parameters():  # a norm's factors are 1 otherwise, and one that is left out not missed
                if p.ndim == 1:
                    p.add_(0.1 * torch.randn_like(p))
        model.save_pretrained(Path(folder) / name)
        copy_tokenizer(Path(tokenizer), Path(folder) / name)
        size = sum(file.stat().st_size for file in (Path(folder) / name).glob("*.safetensors"))
        found[name] = {"parameters": sum(p.numel() for p in model.parameters()), "bytes": size}
        del model
    return found


def copy_tokenizer(source, target):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / file, target / file)


def make_families(folder, models, seed, noise):
    """Of each family a learner and a reference, near enough to one another that most weights lie between bounds."""
    generator = torch.Generator().manual_seed(seed)
    for model in map(Path, models):
        for kind in ("base", "reference"):
            target = Path(folder) / f"{model.name}-{kind}"
            shutil.copytree(model, target)
            for path in sorted(target.glob("*.safetensors")):
                tensors = load_file(path)
                both = "lm_head.weight" in tensors and json.loads((model / "config.json").read_text())["tie_word_embeddings"]
                for name, t in sorted(tensors.items()):
                    tensors[name] = (t.float() + noise * torch.randn(t.shape, generator=generator)).to(t.dtype)
                if both:
                    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
                save_file(tensors, path, metadata={"format": "pt"})
    return {}


def read_ids(rows):
    return [json.loads(line)["input_ids"] for line in open(rows)]


def target_log_probs(model, ids):
    """log p(x_t | x_<t) of a row run alone, from its logits in f64. Keeps the graph where there is one."""
    ids = torch.tensor(ids, device=model.device)
    hidden = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1]
    cap = getattr(model.config, "final_logit_softcapping", None)
    found = []
    for at in range(0, len(hidden), HEAD_CHUNK):
        logits = model.lm_head(hidden[at : at + HEAD_CHUNK]).float()
        logits = (cap * torch.tanh(logits / cap) if cap else logits).double()
        found.append(torch.log_softmax(logits, -1).gather(-1, ids[1:][at : at + HEAD_CHUNK, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def log_probs(models, rows, dtype, device, output):
    """Log-probs by row of every model in turn, into a file. A family that this transformers lacks has the reason."""
    found = {}
    for name, folder in models.items():
        try:
            model = load(folder, dtype, device)
        except (ValueError, KeyError) as error:
            found[name] = str(error).splitlines()[0][:120]
            continue
        all_ids = read_ids(rows)
        found[name] = {row: target_log_probs(model, ids).tolist() for row, ids in enumerate(all_ids) if len(ids) > 1}
        del model
    Path(output).write_text(json.dumps(found))
    return {}


def attentions(device):
    """(name, implementation, context) of every kind of attention of transformers to be tried."""
    if device == "cpu":
        return [("sdpa", "sdpa", contextlib.nullcontext)]
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kinds = [
        ("sdpa flash", "sdpa", lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
        ("sdpa cudnn", "sdpa", lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)),
    ]
    with contextlib.suppress(ImportError):
        import flash_attn  # noqa: F401

        kinds.append(("flash-attn", "flash_attention_2", contextlib.nullcontext))
    return kinds


@torch.no_grad()
def rate(model, seq_len, batch_tokens, repeats, device):
    """Tokens/s of scoring full rows with each kind of attention, run as one who knows transformers would: batches of
    equal rows, hidden states once, the head in chunks."""
    rows = max(1, batch_tokens // seq_len)
    ids = torch.randint(1, 1000, (rows, seq_len), device=device)
    rates, reasons = {}, {}
    for name, implementation, context in attentions(device):
        try:
            scorer = load(model, "bf16", device, implementation)

            def batch():
                hidden = scorer.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
                targets = ids[:, 1:].flatten()
                chosen = []
                for at in range(0, len(targets), HEAD_CHUNK):
                    logits = scorer.lm_head(hidden[at : at + HEAD_CHUNK]).float()
                    picked = logits.gather(1, targets[at : at + HEAD_CHUNK, None])[:, 0]
                    chosen.append(picked - logits.logsumexp(1))
                return torch.cat(chosen).cpu()

            with context():
                rates[name] = rows * seq_len / timed(batch, device, repeats)
        except Exception as error:  # a kind that this card or this PyTorch lacks
            reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        scorer = None
        if device != "cpu":
            torch.cuda.empty_cache()
    return {"rates": rates, "reasons": reasons}


def train(model, rows, references, steps, lr, output):
    """Steps of AdamW with dynamic weights as remit-anneal takes them, in f32 on the CPU: a line of metrics a step.
    `references` has a file with the log-probs of the RL model by row."""
    model = load(model, "f32", "cpu")
    rows = list(enumerate(read_ids(rows)))
    references = {int(row): torch.tensor(values).double() for row, values in json.loads(Path(references).read_text()).items()}
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n not in EMBEDDINGS]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or n in EMBEDDINGS]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    num_targets = sum(len(ids) - 1 for _, ids in rows)
    history = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss = 0.0
        for row, ids in rows:
            log_probs = target_log_probs(model, ids)
            delta = references[row] - log_probs.detach()
            weight = torch.clamp(2 * torch.sigmoid(delta - delta.mean()), 0.8, 1.2)
            row_loss = -(weight * log_probs).sum() / num_targets
            row_loss.backward()
            loss += row_loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        history.append({"loss": loss, "grad_norm": norm})
    Path(output).write_text(json.dumps(history))
    return {}


def gradients_apart(pairs, floor):
    """How far the first moments after one step, which are gradients times a constant, are apart: the largest of a
    parameter by norms, a norm being at least `floor` of the whole gradient's."""
    found = {}
    for name, files in pairs.items():
        ours, expected = (
            {key: t.double() for key, t in load_file(file).items() if key.startswith("first_moment.")} for file in files
        )
        if not expected or ours.keys() != expected.keys():
            raise RuntimeError(f"the checkpoints of {name} have not the same first moments")
        whole = sum(t.square().sum() for t in expected.values()).sqrt()
        if not whole > 0:
            raise RuntimeError(f"the gradient of {name} is 0")
        apart = [(ours[key] - t).norm() / max(t.norm(), floor * whole) for key, t in expected.items()]
        found[name] = float("nan") if any(value.isnan() for value in apart) else max(apart).item()
    return found


TASKS = (environment, ceilings, make_shapes, make_families, log_probs, rate, train, gradients_apart)


def serve(answers):
    """Does the tasks of stdin, each as if it were the first: what one leaves on the GPU is freed."""
    tasks = {task.__name__: task for task in TASKS}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": tasks[request["task"]](**request["settings"])}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # No product in f32 is rounded to TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # What libraries print goes to stderr, that the answers are alone on stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(answers)
