"""Distributed processes: where this one stands, and sums, means and rows over all of them."""

import ctypes
import datetime
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves, tree_map_only

from common.errors import UserError

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=2)  # with which a process waits for the slowest one
PR_SET_PDEATHSIG = 1  # of Linux: the signal at the parent's death


@dataclass(frozen=True)
class Process:
    """This process among `world` in all, and `local_world` of its own machine."""

    rank: int
    local_rank: int
    world: int
    device: torch.device
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


@contextmanager
def launch(device: str = "auto", gpus: Sequence[int] | None = None) -> Iterator[Process]:
    """Join the processes that `torchrun` started, or stand alone without it.

    `device` is `auto` (a GPU where there is one), `cpu`, `cuda`, or `cuda:N` for one process alone.
    A process takes the GPU of its local rank, or that one of `gpus`.
    """
    alone = "RANK" not in os.environ
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    numbers = (0, 0, 1, 1) if alone else (int(os.environ[name]) for name in names)
    rank, local_rank, world, local_world = numbers
    if gpus is not None and len(gpus) != local_world:
        raise UserError(f"--gpus: found {len(gpus)}, expected {local_world}, one a process")
    chosen = _choose(device, alone, gpus[local_rank] if gpus else local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    process = Process(rank, local_rank, world, chosen, local_world)
    if alone:
        yield process
        return
    _end_with_parent()
    backend, own = ("nccl", chosen) if chosen.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, device_id=own, timeout=PATIENCE)
    try:
        yield process
    except BaseException:
        # NCCL is left by all processes together; after a failure here the others may never come,
        # and the message would wait for them. The end of this process frees what it holds.
        if chosen.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _choose(device: str, alone: bool, number: int) -> torch.device:
    """The device of that name: where it has no number of its own, GPU `number`."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    named = re.fullmatch(r"auto|cuda|cuda:(\d+)", device)
    if named is None or (named[1] and not alone):
        expected = "auto, cpu, cuda or, without torchrun, cuda:N"
        raise UserError(f"device: found {device!r}, expected {expected}")
    number = int(named[1] or number)
    if not 0 <= number < count:
        raise UserError(f"device: GPU number {number} asked for, but torch sees {count} GPU(s)")
    return torch.device("cuda", number)


def _end_with_parent() -> None:
    """End this process at once when torchrun, its parent, ends: another run may have begun."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor`, of one shape everywhere, over all processes, without gradient."""
    result = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(result)
    return result


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of `tensor` over all processes; see `all_reduce_sum`."""
    return all_reduce_sum(tensor) / (dist.get_world_size() if dist.is_initialized() else 1)


def gather(rows: torch.Tensor) -> torch.Tensor | None:
    """The rows [N, ...] of all processes, one process behind another, on the first one; None
    elsewhere. N differs between processes as it may, or is 0."""
    if not dist.is_initialized():
        return rows
    parts = [torch.empty(0)] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(rows.cpu(), parts)
    return torch.cat(parts).to(rows.device) if parts else None


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one message; all pass the same
    parameters in the same order, and all have gradients."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [a.view_as(g) for a, g in zip(parts, gradients, strict=True)])


def broadcast_module(module: torch.nn.Module) -> None:
    """Give every process the weights and buffers that the first one has."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def broadcast_object(value: T) -> T:
    """The value that the first process has: any picklable object, on every process."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def load_on_all(load: Callable[[], T], device: torch.device | str = "cpu") -> T:
    """What `load` gives on the first process, on all of them, and so with its `UserError`. Tensors
    inside it, which lie on the CPU, are sent one by one through `device`."""
    if not dist.is_initialized():
        return load()
    found: Any = None
    if dist.get_rank() == 0:
        try:
            found = load()
        except UserError as error:
            found = error
    shapes = broadcast_object(tree_map_only(torch.Tensor, lambda x: x.to("meta"), found))
    if isinstance(shapes, UserError):
        raise shapes
    if found is None:
        found = tree_map_only(torch.Tensor, lambda x: torch.empty_like(x, device="cpu"), shapes)
    for tensor in tree_leaves(found):
        if isinstance(tensor, torch.Tensor):
            sent = tensor.contiguous().to(device)
            dist.broadcast(sent, 0)
            tensor.copy_(sent)
    return found


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()
