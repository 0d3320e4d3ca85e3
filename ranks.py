"""Many processes on one run: `torchrun --nproc-per-node N codelutra.py …`.

Every process does its share of the questions; gradients are added up, so all hold the same adapter, and the
first process alone writes. Each has the whole model, or with `--shard` its part of every frozen layer, which
is then gathered whole while it computes: all processes must run as many passes, so those with less to do add
empty ones (`catch_up`). Without torchrun there is one process and nothing here does anything.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from cli import UserError


def start(device: torch.device) -> torch.device:
    """Join the processes that torchrun has started; returns the device of this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # one may wait long, as for the first to check all gold code; where one fails, torchrun ends the others
    dist.init_process_group(backend, timeout=timedelta(days=1))
    return device


def end():
    """Leave the other processes."""
    if dist.is_initialized():
        # A sharded model keeps its process group alive in reference cycles. Where those are only freed when
        # the interpreter ends, torch sometimes aborts there, and a finished run would end with an error.
        gc.collect()
        dist.destroy_process_group()


_sharded = False  # this process holds a part of each layer
_empty = False  # it is running a pass that the others have announced


def shard(model: torch.nn.Module, device: torch.device):
    """Leave each process its part of every decoder layer's weights, on its device (torch's `fully_shard`).

    model: a transformers model for causal language modelling. Adapters are injected later, and stay whole; so
    do embeddings and output projection, used outside the layers. Raises UserError where the model's layers
    are not to be found.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    global _sharded
    _sharded = True
    base: Any = model.base_model
    depth = model.config.num_hidden_layers
    stacks = [m for m in base.children() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise UserError(f"--shard: a {model.config.model_type} has no single list of {depth} layers.")
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in stacks[0]:
        fully_shard(layer, mesh=mesh)
    # the root decides when layers are given back; it has no weights of its own to share out
    fully_shard(base, mesh=mesh, ignored_params={p for p in base.parameters() if not hasattr(p, "to_local")})

    def before(*_):  # a value that a hook returns would be the pass's new input
        if not _empty:
            _announce(True)

    base.register_forward_pre_hook(before)


def sharded() -> bool:
    return _sharded


def _announce(working: bool) -> bool:
    """Called by all processes before each pass; returns whether any of them has one to run."""
    flag = torch.tensor(int(working))
    dist.all_reduce(flag)
    return flag.item() > 0


def catch_up(empty_pass: Callable[[], object]):
    """Own work is done: join the other processes' passes of the sharded layers with empty ones."""
    global _empty
    while _sharded and _announce(False):
        _empty = True
        empty_pass()
        _empty = False


def say(text: str):
    """Print, in the first process alone."""
    if rank() == 0:
        print(text, flush=True)


def bar(iterable: Iterable | None = None, disable: bool = False, **options) -> tqdm:
    """tqdm's progress bar, shown by the first process alone."""
    return tqdm(iterable, disable=disable or rank() > 0, dynamic_ncols=True, **options)


def rank() -> int:
    """This process among those that torchrun has started, also before `start`; 0 where there is one alone."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(item: Any) -> list:
    """The item of every process, in their order, on all of them."""
    if world_size() == 1:
        return [item]
    items = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def barrier():
    """Until all are here: what the first process has written before can now be read."""
    if world_size() > 1:
        dist.barrier()


def share_work(
    items: list, run: Callable[[list], list], empty_pass: Callable[[], object] | None = None
) -> list:
    """run(items), each process running its share; all get all results, in the order of the items.

    empty_pass: where `run` calls the model, see `catch_up`.
    """
    result, mine = [None] * len(items), run(items[rank() :: world_size()])
    if empty_pass:
        catch_up(empty_pass)
    for r, part in enumerate(all_gather(mine)):
        result[r :: world_size()] = part
    return result


def all_reduce_gradients(parameters: list[torch.nn.Parameter]):
    """Every parameter's gradient becomes the sum over the processes."""
    if world_size() == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = gradient.view_as(p).clone()
