"""What a device does at best, and what a computation asks of it.

The rates are measured, not read from a data sheet: what a program reaches is compared with what the
same machine reached minutes before, under the same settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

SIDES = (1024, 2048, 4096, 8192)  # of the matrices; small ones do not fill a GPU
LARGE = 2**28  # bytes that are copied, more than a cache holds
PATIENCE = 0.2  # seconds of a product after which no larger one is tried
ROUNDS = 3
WAITING = 0.9  # of the time spent on launching: then a GPU waits for its program
EXPLAINED = 0.5  # of the time, by a measured peak: then that is the bound


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of `call` in the best of a few rounds, each long enough for the clock."""

    def round_of(repeats: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronise(device)
        return (time.perf_counter() - start) / repeats

    round_of(1)  # loads libraries and chooses kernels
    repeats = max(1, round(PATIENCE / 2 / round_of(1)))
    return min(round_of(repeats) for _ in range(ROUNDS))


def matmul_rate(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> float:
    """FLOP/s of the fastest product of square matrices.

    Args:
        device: where.
        dtype: of the matrices.
        tf32: let a GPU round float32 factors to TF32, as its convolutions do by default.
    """
    before = torch.get_float32_matmul_precision()
    if tf32 and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    best = 0.0
    try:
        for side in SIDES:
            a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
            seconds = fastest(lambda a=a, b=b: a @ b, device)
            best = max(best, 2 * side**3 / seconds)
            if seconds > PATIENCE:
                break
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def memory_bandwidth(device: torch.device) -> float:
    """Bytes/s of a large copy, read and written ones together."""
    source = torch.ones(LARGE // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * LARGE / fastest(lambda: target.copy_(source), device)


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows
    import sys

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


@dataclass
class Work:
    """What a computation asks of a device.

    Args:
        flops: of convolutions, matrix products and attention; a multiply-add is two.
        traffic: bytes that all other operations read and write, one after the other. Less is moved
            where operations are fused, or tensors stay in a cache.
    """

    flops: int = 0
    traffic: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """Count the work done inside, backward passes too; the record is filled in at the end.

    Compiled modules run as they are written, and attention as plain products, so that the count is
    the same on every device.
    """
    work, traffic = Work(), _Traffic()
    with (
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as flops,
        traffic,
    ):
        yield work
    work.flops, work.traffic = flops.get_total_flops(), traffic.moved


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds until `call` is done, and until it has told the device all that it has to do."""
    synchronise(device)
    start = time.perf_counter()
    call()
    told = time.perf_counter()
    synchronise(device)
    return time.perf_counter() - start, told - start


@dataclass(frozen=True)
class Shares:
    """What the time of a computation goes into, as shares of it.

    Args:
        arithmetic: what its FLOPs would take at the measured rate of products.
        traffic: what `Work.traffic` would take at the measured bandwidth.
        launching: in which the program was still telling a GPU what to do; None on a CPU.
    """

    arithmetic: float
    traffic: float
    launching: float | None = None

    @property
    def bound(self) -> str:
        """What keeps it from being faster: `launching`, `arithmetic`, `traffic` or `neither`."""
        if (self.launching or 0) > WAITING:
            return "launching"
        if max(self.arithmetic, self.traffic) < EXPLAINED:
            return "neither"
        return "arithmetic" if self.arithmetic >= self.traffic else "traffic"

    def __str__(self) -> str:
        launching = "" if self.launching is None else f"{self.launching:.0%}"
        return (
            f"At the measured peaks, arithmetic would take {self.arithmetic:.0%} of the time, "
            f"and the memory traffic of all other operations at most {self.traffic:.0%}. "
        ) + {
            "launching": f"For {launching} of the time the program was still launching operations: "
            "the GPU waits for it, and larger batches or compilation may help.",
            "arithmetic": "So arithmetic is the bound.",
            "traffic": "So memory traffic is the bound, unless caches hold much of it.",
            "neither": "So neither is the bound: the operations reach less than the device gives "
            "at best.",
        }[self.bound]


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket not in flop_registry and "empty" not in func.__name__:
            given = _tensors((args, kwargs))
            if func._schema.is_mutable:
                named = {a.name: a.alias_info for a in func._schema.arguments}
                values = {**dict(zip(named, args, strict=False)), **kwargs}
                written = _tensors([v for k, v in values.items() if named[k] and named[k].is_write])
            else:
                places = {t.untyped_storage().data_ptr() for t in given}
                written = [t for t in _tensors(out) if t.untyped_storage().data_ptr() not in places]
            if written:  # no view
                self.moved += sum(map(_bytes, given + written))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """What there is in memory; an expanded tensor is smaller than it looks."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
