"""Many processes on one run: `torchrun --nproc-per-node N codelutra.py …`.

Every process has the whole model and does its share of the questions; gradients are added up, so all hold the same adapter,
and the first process alone writes. Without torchrun there is one process and nothing here does anything.
"""

from __future__ import annotations

import os
import sys
from functools import partialmethod

import torch
import torch.distributed as dist
from tqdm import tqdm


def start(device: torch.device) -> torch.device:
    """Join the processes that torchrun has started; returns the device of this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if rank():  # one progress bar and one table are enough
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
        sys.stdout = open(os.devnull, "w")
    return device


def end():
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(item) -> list:
    """The item of every process, in their order, on all of them."""
    if count() == 1:
        return [item]
    items = [None] * count()
    dist.all_gather_object(items, item)
    return items


def wait():
    """Until all are here: what the first process has written before can now be read."""
    if count() > 1:
        dist.barrier()


def spread(items: list, run) -> list:
    """run(items), with each process running its share; all the results on all of them, in the order of the items."""
    result = [None] * len(items)
    for r, part in enumerate(gather(run(items[rank() :: count()]))):
        result[r :: count()] = part
    return result


def add_up(parameters: list[torch.nn.Parameter]):
    """Every parameter's gradient becomes the sum over the processes."""
    if count() == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = gradient.view_as(p).clone()
