"""Makes the built-in demo pair: fixtures/models/demo-base and fixtures/models/demo-rl.

    python scripts/demo_pair/make.py                 # everything; minutes on 2 CPU cores, see fixtures/models/README.md
    python scripts/demo_pair/make.py --pretrain-steps 20 --rl-steps 2 --out /tmp/pair    # a smoke run

1. Trains a byte-level BPE tokenizer on generated text (text.py).
2. Trains a small Qwen3-shaped model from scratch on worked arithmetic, of which 35 % is wrong on purpose, plus prose
   and code: the base.
3. Tunes a copy with reinforcement learning: sampled solutions, 1 for a right answer and 0 for any other, advantages
   relative to the group of samples of one question, a small KL penalty to the base. No solution is shown to it.
4. Writes both in bf16, loads the files again, and measures both on problems that neither training nor RL has seen.
"""

import argparse
import copy
import json
import platform
import random
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import text

ROOT = Path(__file__).resolve().parents[2]
EOS, EOS_ID = "<|endoftext|>", 0
NUM_EVAL = 500


def log(*words):
    print(*words, file=sys.stderr, flush=True)


# --- tokenizer ------------------------------------------------------------------------------------------------------


def train_tokenizer(seed, vocab_size):
    """Byte-level BPE over all 256 bytes, digits one by one, one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(seed)
    tokenizer.train_from_iterator((text.document(rng) for _ in range(15_000)), trainer)
    assert tokenizer.token_to_id(EOS) == EOS_ID
    return tokenizer


def write_tokenizer(tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "bos_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


# --- the base -------------------------------------------------------------------------------------------------------


def new_model(vocab_size):
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            eos_token_id=EOS_ID,
            bos_token_id=None,
            pad_token_id=None,
        )
    )


def windows(tokenizer, rng, length):
    """Endless rows of `length` ids. Each starts at a document, as scored rows do, and is filled with whole documents;
    the one that does not fit is cut."""
    while True:
        row = []
        while len(row) < length:
            row += tokenizer.encode(text.document(rng)).ids + [EOS_ID]
        yield row[:length]


def pretrain(model, tokenizer, steps, seed, lr=4e-3):
    """AdamW, 4,096 tokens a step; the last sixth of the steps sees rows of 1,024 so that long documents work too."""
    rng = random.Random(seed)
    decay = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    short, long = windows(tokenizer, rng, 192), windows(tokenizer, rng, 1024)
    model.train()
    for step in range(steps):
        rate = min(1.0, (step + 1) / 40) * min(1.0, 1.5 * (1 - step / steps) + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        rows = [next(short) for _ in range(21)] if step < steps * 5 // 6 else [next(long) for _ in range(4)]
        ids = torch.tensor(rows)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            log(f"pretrain step {step}: loss {loss.item():.4f}")
    return loss.item()


# --- sampling -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def complete(model, prompts, temperature, generator, max_new=48):
    """Continues every prompt (lists of ids) until EOS. Returns (ids, attention mask, completion mask), left-padded."""
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS_ID] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    made = torch.zeros_like(mask)
    alive = torch.ones(len(prompts), dtype=torch.long)
    cache, fed = None, ids
    for _ in range(max_new):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        out = model(input_ids=fed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                    logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        if temperature:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        fed = torch.where(alive[:, None] == 1, chosen, EOS_ID)
        ids, mask, made = torch.cat([ids, fed], 1), torch.cat([mask, alive[:, None]], 1), torch.cat([made, alive[:, None]], 1)
        alive = alive * (fed[:, 0] != EOS_ID)
        if not alive.any():
            break
    return ids, mask, made


def rewards_of(tokenizer, problems, ids, made):
    """0/1 for each row; a completion that did not end by itself gets 0."""
    found = []
    for p, row, keep in zip(problems, ids.tolist(), made.bool().tolist()):
        completion = [token for token, kept in zip(row, keep) if kept]
        ended = completion[-1] == EOS_ID
        found.append(text.reward(p, tokenizer.decode(completion[:-1])) if ended else 0.0)
    return torch.tensor(found)


def accuracy(model, tokenizer, temperature, seed, count=NUM_EVAL):
    """Share of right answers on held-out problems, the same ones for every model."""
    rng = random.Random(seed)
    seen, problems = set(), []
    while len(problems) < count:
        p = text.problem(rng, held_out=True)
        if p not in seen:
            seen.add(p)
            problems.append(p)
    prompts = [tokenizer.encode(text.question(rng, p)).ids for p in problems]
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    right = 0.0
    for start in range(0, count, 250):
        ids, _, made = complete(model, prompts[start : start + 250], temperature, generator)
        right += rewards_of(tokenizer, problems[start : start + 250], ids, made).sum().item()
    return right / count


# --- reinforcement learning -----------------------------------------------------------------------------------------


def log_probs(model, ids, mask):
    """(batch, length - 1) log-probs of each token given those before it."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]


def reinforce(model, tokenizer, steps, seed, questions=32, group=8, lr=5e-4, kl_weight=0.02):
    """On-policy, group-relative policy gradient: one update per batch of questions x group samples at temperature 1."""
    base = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    history = []
    for step in range(steps):
        for param_group in optimizer.param_groups:
            param_group["lr"] = lr * min(1.0, (step + 1) / 5) * (1 - 0.9 * step / steps)
        problems = [text.problem(rng) for _ in range(questions)]
        prompts = [tokenizer.encode(text.question(rng, p)).ids for p in problems]
        problems = [p for p in problems for _ in range(group)]
        prompts = [p for p in prompts for _ in range(group)]
        model.eval()
        ids, mask, made = complete(model, prompts, 1.0, generator)
        reward = rewards_of(tokenizer, problems, ids, made)
        by_group = reward.view(questions, group)
        spread = by_group.std(1, keepdim=True)
        advantage = ((by_group - by_group.mean(1, keepdim=True)) / (spread + 1e-4)).view(-1, 1)

        model.train()
        chosen = made[:, 1:].float()
        new = log_probs(model, ids, mask)
        with torch.no_grad():
            old = log_probs(base, ids, mask)
        kl = torch.exp(old - new) - (old - new) - 1
        ratio = torch.exp(new - new.detach())  # 1, with the gradient of the log-prob: every update is on-policy
        loss = ((-advantage * ratio + kl_weight * kl) * chosen).sum() / chosen.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(reward.mean().item())
        if step % 10 == 0 or step == steps - 1:
            log(f"rl step {step}: reward {history[-1]:.3f}, kl {(kl * chosen).sum().item() / chosen.sum().item():.4f}")
    return history


# --- files ----------------------------------------------------------------------------------------------------------


def write_model(model, tokenizer, folder):
    write_tokenizer(tokenizer, folder)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "models")
    parser.add_argument("--seed", type=int, default=20260203)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--pretrain-steps", type=int, default=750)
    parser.add_argument("--rl-steps", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    begin = time.monotonic()

    tokenizer = train_tokenizer(args.seed, args.vocab_size)
    model = new_model(tokenizer.get_vocab_size())
    log(f"tokenizer: {tokenizer.get_vocab_size()} entries; model: {sum(p.numel() for p in model.parameters())} parameters")
    final_loss = pretrain(model, tokenizer, args.pretrain_steps, args.seed + 1)
    pretrain_seconds = time.monotonic() - begin
    write_model(model, tokenizer, args.out / "demo-base")
    history = reinforce(model, tokenizer, args.rl_steps, args.seed + 2)
    rl_seconds = time.monotonic() - begin - pretrain_seconds
    write_model(model, tokenizer, args.out / "demo-rl")

    # The numbers describe the files: bf16 weights, loaded again, computed in float32.
    results = {}
    for name in ("demo-base", "demo-rl"):
        loaded = AutoModelForCausalLM.from_pretrained(args.out / name, dtype=torch.float32)
        results[name] = {
            "greedy": accuracy(loaded, tokenizer, 0.0, args.seed + 3),
            "sampled": accuracy(loaded, tokenizer, 1.0, args.seed + 3),
        }
        log(name, results[name])
    report = {
        "made_by": "scripts/demo_pair/make.py",
        "seed": args.seed,
        "vocab_size": tokenizer.get_vocab_size(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretrain_steps": args.pretrain_steps,
        "pretrain_final_loss": round(final_loss, 4),
        "rl_steps": args.rl_steps,
        "rl_reward_first_10": round(sum(history[:10]) / len(history[:10]), 4),
        "rl_reward_last_10": round(sum(history[-10:]) / len(history[-10:]), 4),
        "held_out_problems": NUM_EVAL,
        "held_out_accuracy": results,
        "seconds": {
            "tokenizer_and_pretraining": round(pretrain_seconds),
            "rl": round(rl_seconds),
            "total": round(time.monotonic() - begin),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "cpu_threads": args.threads,
    }
    (args.out / "demo-pair.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
