"""Whether this machine multiplies in bfloat16."""

from __future__ import annotations

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
