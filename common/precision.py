"""How precisely this machine multiplies."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bf16(device: torch.device) -> bool:
    """True where bfloat16 products are faster than float32 ones: on GPUs since Ampere, and on
    processors with instructions for them (AVX512-BF16, AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and supported()


def uses_bf16(precision: str, device: torch.device) -> bool:
    """`fp32`, `bf16`, or `auto`: bf16 where the device multiplies in it."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of float32 without TF32 or autocast, whatever is set outside."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value
