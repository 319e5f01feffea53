"""Trains on a scored set with PyTorch's FSDP, on any number of processes, as remit-anneal does on one.

    torchrun --nproc-per-node 2 examples/fsdp.py --weights weights/ --model Qwen3-0.6B-Base/ -o annealed

Steps have the rows of remit-anneal for the same seed and --batch-tokens, and losses agree with its (tests/python/
test_parity.py: 1e-5 relative over 50 steps, on 1 and 2 processes). On GPUs it takes NCCL and the rest of a node's
GPUs, else gloo. The same command, run again, goes on from the last checkpoint, also on another number of processes.
The result is a Hugging Face directory; metrics.jsonl has every step.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import remit
import remit.order
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from remit.loss import LossSums, Objective
from remit.torch import DEFAULT_MICRO_TOKENS, ShardDataset
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM


def arguments(given=None):
    """The command line; names and defaults are those of remit-anneal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder that remit-score made")
    parser.add_argument("--model", help="initial model [default: the base that the set was scored with]")
    parser.add_argument("-o", "--output", type=Path, default=Path("annealed"))
    parser.add_argument("--weighting", default="dynamic", choices=["dynamic", "static", "uniform", "excess-top-k"])
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--z-loss", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=7.4487e-5)
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps [default: one epoch]")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of all processes together")
    parser.add_argument("--micro-batch-tokens", type=int, default=DEFAULT_MICRO_TOKENS)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--holdout", type=float)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"], help="of activations; weights stay f32")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--attention", default="sdpa", help="flash_attention_2 on GPUs keeps memory linear")
    return parser.parse_args(given)


def learning_rate(args, step):
    """Linear warm-up, then linear decay to 0; steps count from 0."""
    if step < args.warmup_steps:
        return args.lr * (step + 1) / args.warmup_steps
    return args.lr * (args.steps - step) / max(1, args.steps - args.warmup_steps)


def optimizer_of(model, decay):
    """AdamW; matrices other than the embedding decay."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim >= 2 and id(parameter) not in embeddings].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=0.0,
        betas=(0.9, 0.95),
        eps=1e-8,
    )


class Run:
    """A model in training, on this process's share of every parameter."""

    def __init__(self, args, ws, device):
        self.args, self.device = args, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.objective = Objective.of(
            ws, args.weighting, epsilon=args.epsilon, temperature=args.temperature, z_loss=args.z_loss
        )
        self.model_path = args.model or ws.plan["base"]["path"]
        self.model = AutoModelForCausalLM.from_pretrained(
            self.model_path, dtype=torch.float32, attn_implementation=args.attention
        )
        self.stored_dtype = AutoConfig.from_pretrained(self.model_path).dtype or torch.float32
        self.model.config.use_cache = False  # else rows that are packed would see each other
        self.model.to(device)
        mesh = init_device_mesh(device.type, (self.world,))
        compute = torch.bfloat16 if args.dtype == "bf16" else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        for block in self.model.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.model, mesh=mesh, mp_policy=policy)
        self.optimizer = optimizer_of(self.model, args.weight_decay)

    def step(self, step):
        """One optimizer step: gradients of sums are added up over micro-batches and ranks, and divided once."""
        rate = learning_rate(self.args, step.number - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total = None
        for micro in step.micro_batches:
            micro = micro.to(self.device)
            logits = self.model(micro.input_ids[None], position_ids=micro.position_ids[None]).logits[0]
            sums = self.objective.sums(logits, micro)
            # FSDP takes the mean of the ranks' gradients, so that times their number it is the sum.
            (sums.loss_sum * self.world).backward()
            total = sums.detach() if total is None else total + sums.detach()
        total: LossSums = total.all_reduce()
        normalizer = total.normalizer(self.objective.divisor)
        for parameter in self.model.parameters():
            parameter.grad.div_(normalizer.to(parameter.grad.dtype))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        loss = total.loss(self.objective.divisor)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise SystemExit(f"step {step.number}: the loss is {loss}, the norm of the gradient {norm}")
        self.optimizer.step()
        return {
            "step": step.number,
            "epoch": step.epoch,
            "loss": loss,
            "ntp_loss": total.ntp_loss,
            "lr": rate,
            "grad_norm": norm,
            "weight_mean": total.weight_mean,
            "targets": step.num_targets,
            "row_ids": step.row_ids.tolist(),
        }

    def save(self, folder, state):
        """Writes a checkpoint; its name is there once all of it is."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        partial = folder.with_suffix(".partial")
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=partial)
        if self.rank == 0:
            (partial / "state.json").write_text(json.dumps(state))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            for old in checkpoints(folder.parent)[:-2]:
                shutil.rmtree(old)
        dist.barrier()

    def load(self, folder):
        """Goes on from a checkpoint; returns the state of its rows."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        return json.loads((folder / "state.json").read_text())

    def export(self, output):
        """Writes the model as a Hugging Face directory, in the dtype that it was stored in."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(self.model, options=options)
        if self.rank != 0:
            return
        whole = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        whole.load_state_dict(tensors)
        whole.to(self.stored_dtype).save_pretrained(output)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if (Path(self.model_path) / name).exists():
                shutil.copy(Path(self.model_path) / name, output)


def checkpoints(folder):
    """Whole checkpoints, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").exists() and not path.suffix)


def train(args):
    """A run: goes on from the newest checkpoint, if there is one."""
    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    ws = remit.open(args.weights, verify=rank == 0)
    dataset = ShardDataset(
        ws,
        seed=args.seed,
        batch_tokens=args.batch_tokens,
        micro_tokens=args.micro_batch_tokens,
        holdout=args.holdout,
        rank=rank,
        world=world,
    )
    args.steps = args.steps or sum(1 for _ in dataset.order.step_ids(remit.order.Cursor(), args.batch_tokens))
    dataset.steps = args.steps
    run = Run(args, ws, device)
    found = checkpoints(args.output / "checkpoints")
    if found:
        dataset.load_state_dict(run.load(found[-1]))
    dist.barrier()  # before checkpoints are removed or written
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "metrics.jsonl"
    done = dataset.state_dict()["steps_done"]
    lines = path.read_text().splitlines(keepends=True)[:done] if path.exists() else []
    if rank == 0:
        path.write_text("".join(lines))
    for step in dataset:
        started = time.perf_counter()
        metrics = run.step(step)
        if rank == 0:
            seconds = time.perf_counter() - started
            with path.open("a") as file:
                file.write(json.dumps({**metrics, "tokens_per_second": step.num_tokens / seconds}) + "\n")
            print(
                f"step {step.number} loss {metrics['loss']:.4f}, {step.num_tokens / seconds:.0f} tokens/s", flush=True
            )
        if step.number % args.save_every == 0 or step.number == args.steps:
            run.save(args.output / "checkpoints" / f"step-{step.number:08}", step.state)
    run.export(args.output)
    dist.barrier()


def main():
    """Runs the command line."""
    train(arguments())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
