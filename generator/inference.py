"""Inference: a generator made ready for sampling, its products in a chosen precision and with
weights packed as the processor reads them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import provenance
from common.errors import UserError
from generator.heads.flow import TimeEmbedding
from generator.model import Generator

PRECISIONS = ("fp32", "tf32", "bf16")


class InferenceLinear(nn.Module):
    """A linear layer that multiplies in `dtype`; what goes in and comes out is float32.

    If it is packed, its weight lies in the order in which oneDNN's kernels read it: a product with
    few rows takes as long as its weight takes to be read (docs/sampling.md).
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, packed: bool) -> None:
        super().__init__()
        self.out_features, self.dtype, self.packed = linear.out_features, dtype, packed
        self.weight, self.bias = (x.detach().to(dtype) for x in (linear.weight, linear.bias))
        if packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if not self.packed:
            return F.linear(x, self.weight, self.bias).float()
        product = torch.ops.mkldnn._linear_pointwise
        return product(x, self.weight, self.bias, "none", [], "").float()


def set_tf32(precision: str, device: torch.device) -> None:
    """Let products of float32 be TF32 on this process's GPU, or not."""
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"--precision: found tf32 on {device.type}, expected another")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def prepare(model: Generator, precision: str = "fp32", compile: bool = False) -> Generator:
    """Make a generator ready for sampling, in place: it cannot be trained or saved any more.

    Products are in `precision`: `tf32` is a setting of the whole process; in `bf16` norms,
    attention, time embedding and the solver's state stay float32. `compile` compiles the head's
    velocity, on GPUs into a CUDA graph; on a CPU no weights are packed then.
    """
    kind, half = model.device.type, precision == "bf16"
    set_tf32(precision, model.device)
    dtype = torch.bfloat16 if half else torch.float32
    # float32 products of torch are MKL's, which are slow on the processors of other makers
    packs = kind == "cpu" and not compile and (half or "Intel" not in provenance.processor())
    packs = packs and can_pack(dtype)
    if packs or half:
        _replace_linears(model, dtype, packs)
    if compile:
        mode = "reduce-overhead" if kind == "cuda" else None
        compiled = torch.compile(model.head.modulated, mode=mode)

        def modulated(x: Tensor, modulations: list[Tensor]) -> Tensor:
            # a CUDA graph writes every velocity to the same place, and solvers hold the last one
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(x, modulations).clone()

        model.head.modulated = modulated  # type: ignore[method-assign]
    return model


@torch.no_grad()
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, has products with packed weights."""
    linear = nn.Linear(2, 2)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    try:
        return InferenceLinear(linear, dtype, True)(torch.ones(1, 2)).tolist() == [[2.0, 2.0]]
    except (AttributeError, RuntimeError):
        return False


def _replace_linears(module: nn.Module, dtype: torch.dtype, packed: bool) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, InferenceLinear(child, dtype, packed))
        elif not isinstance(child, TimeEmbedding):
            _replace_linears(child, dtype, packed)
