"""Weights of the released tokenizer: from its names to ours and back.

The released file holds raw weights under dotted names, and EMA weights under flat ones: the
module, a dot, and the parameter's name with its dots removed (`ema_encoder.conv_inweight`).
It also holds one more block at each semantic level than ever runs; these are not read, and
written as blocks that change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import UserError
from tokenizer.blocks import ResidualBlock
from tokenizer.model import Tokenizer

_RULES = [
    (r"^(encoder|semantic_decoder)\.levels\.", r"\1.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"\.blocks\.(\d+)\.shortcut\.", r".blocks.\1.nin_shortcut."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"^encoder\.downsamples\.(\d+)\.", r"encoder.down.\1.downsample.conv."),
    (r"^decoder\.upsamples\.(\d+)\.", r"decoder.up.\1.upsample.conv."),
    (r"\.middle\.block(\d)\.", r".mid.block_\1."),
    (r"\.middle\.attention\.", ".mid.attn_1."),
    (r"\.proj\.", ".proj_out."),
    (r"^encoder\.mix_columns\.", "encoder.encoder1d."),
    (r"^decoder\.mix_columns\.", "decoder.decoder1d."),
    (r"^to_tokens\.", "quant_layer."),
    (r"^from_tokens\.", "post_quant_layer."),
]
_IGNORED = re.compile(r"^loss\.|^ema_\w+\.(decay|num_updates)$")


def released_name(name: str) -> str:
    """The released name of our parameter `name`."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def ema_name(name: str) -> str:
    """The released flat name of the EMA copy of our parameter `name`."""
    module, _, rest = released_name(name).partition(".")
    return f"ema_{module}.{rest.replace('.', '')}"


def from_released(
    state: Mapping[str, Tensor], tokenizer: Tokenizer, ema: bool = True
) -> dict[str, Tensor]:
    """Weights for `tokenizer` from a released state dict.

    Args:
        state: every tensor of the released file.
        tokenizer: the model whose names and shapes are wanted.
        ema: take the EMA weights rather than the raw ones.

    Raises:
        UserError: a weight is missing, of another shape, or unknown.
    """
    name = ema_name if ema else released_name
    ours = _weights(tokenizer)
    missing = [name(k) for k in ours if name(k) not in state]
    if missing:
        raise UserError(
            f"released tokenizer: {len(missing)} weights missing, the first is {missing[0]}"
        )
    for k, value in ours.items():
        if state[name(k)].shape != value.shape:
            raise UserError(
                f"released tokenizer: {name(k)} has shape {list(state[name(k)].shape)}, the "
                f"config asks for {list(value.shape)}"
            )
    known = {f(k) for k in ours for f in (released_name, ema_name)}
    known |= {f(k) for k in _never_run(tokenizer) for f in (released_name, ema_name)}
    unknown = [k for k in state if k not in known and not _IGNORED.match(k)]
    if unknown:
        raise UserError(
            f"released tokenizer: {len(unknown)} weights without a place in this config, "
            f"the first is {unknown[0]}"
        )
    return {k: state[name(k)] for k in ours} | {"token_scale": tokenizer.token_scale}


def to_released(
    tokenizer: Tokenizer, ema: Tokenizer, decay: float = 0.9999, updates: int = 0
) -> dict[str, Tensor]:
    """The released state dict of raw weights and their EMA copy, without `loss.` entries."""
    state: dict[str, Tensor] = {}
    modules = {}
    for model, name in ((tokenizer, released_name), (ema, ema_name)):
        weights = _weights(model) | _never_run(model)
        state |= {name(k): v for k, v in weights.items()}
        modules |= {ema_name(k).partition(".")[0]: None for k in weights}
    for module in modules:
        state[f"{module}.decay"] = torch.tensor(decay)
        state[f"{module}.num_updates"] = torch.tensor(updates, dtype=torch.int32)
    return state


def _weights(tokenizer: Tokenizer) -> dict[str, Tensor]:
    return {k: v for k, v in tokenizer.state_dict().items() if k != "token_scale"}


def _never_run(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The released surplus block of each semantic level, as zero convolutions: an identity."""
    if tokenizer.semantic_decoder is None:
        return {}
    surplus = {}
    for i, level in enumerate(tokenizer.semantic_decoder.levels):
        block = ResidualBlock(level.width, level.width, groups=1).state_dict()
        for k, v in block.items():
            value = torch.ones_like(v) if re.match(r"norm\d\.weight", k) else torch.zeros_like(v)
            surplus[f"semantic_decoder.levels.{i}.blocks.{len(level.blocks)}.{k}"] = value
    return surplus
