"""How precisely this machine multiplies."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether `fp32`, `bf16`, or `auto` means bf16 products; `auto` where they are the faster ones:
    on GPUs since Ampere, and on processors with instructions for them (AVX512-BF16, AMX)."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of float32 without TF32 or autocast, whatever is set outside."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
