"""Several runs of examples/fsdp.py in one process for each rank, since starting takes longer than training: the
environment variable RUNS has a JSON array of command lines."""

import json
import os

import fsdp
import torch
import torch.distributed as dist
import transformers

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
for command_line in json.loads(os.environ["RUNS"]):
    fsdp.train(fsdp.arguments(command_line))
dist.destroy_process_group()
