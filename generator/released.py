"""Weights of the released generators: from their names to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from common.errors import UserError
from generator.model import Generator

_RULES = [
    (r"^class_embedding\.", "class_emb."),
    (r"^unconditional$", "fake_latent"),
    (r"^class_positions$", "encoder_pos_embed_learned"),
    (r"^token_in\.", "z_proj."),
    (r"^norm_in\.", "z_proj_ln."),
    (r"^norm_out\.", "encoder_norm."),
    (r"^layers\.", "encoder_blocks."),
    (r"\.attention\.", ".attn."),
    (r"\.cross_attention\.q\.", ".attn2.qkv."),
    (r"\.cross_attention\.", ".attn2."),
    (r"\.class_norm\.", ".cross_cond_norm."),
    (r"^head\.token_in\.", "diffloss.net.input_proj."),
    (r"^head\.condition_in\.", "diffloss.net.cond_embed."),
    (r"^head\.time\.fc1\.", "diffloss.net.time_embed.mlp.0."),
    (r"^head\.time\.fc2\.", "diffloss.net.time_embed.mlp.2."),
    (r"^head\.modulation_out\.", "diffloss.net.final_layer.adaLN_modulation.1."),
    (r"^head\.token_out\.", "diffloss.net.final_layer.linear."),
    (r"^head\.blocks\.(\d+)\.norm\.", r"diffloss.net.res_blocks.\1.in_ln."),
    (r"^head\.blocks\.(\d+)\.fc1\.", r"diffloss.net.res_blocks.\1.mlp.0."),
    (r"^head\.blocks\.(\d+)\.fc2\.", r"diffloss.net.res_blocks.\1.mlp.2."),
    (r"^head\.blocks\.(\d+)\.modulation\.", r"diffloss.net.res_blocks.\1.adaLN_modulation.1."),
]


def released_name(name: str) -> str:
    """The released name of our parameter `name`."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is under the released names."""
    return "fake_latent" in state


def from_released(state: Mapping[str, Tensor], model: Generator) -> dict[str, Tensor]:
    """Weights for `model` from a state dict under the released names.

    Raises:
        UserError: a weight is missing, of another shape, or unknown.
    """
    ours = {k: (released_name(k), v) for k, v in model.state_dict().items()}
    missing = [name for name, _ in ours.values() if name not in state]
    if missing:
        raise UserError(
            f"released generator: {len(missing)} weights missing, the first is {missing[0]}"
        )
    for name, value in ours.values():
        if state[name].shape != value.shape:
            raise UserError(
                f"released generator: {name} has shape {list(state[name].shape)}, the given "
                f"sizes ask for {list(value.shape)}"
            )
    unknown = set(state) - {name for name, _ in ours.values()}
    if unknown:
        raise UserError(
            f"released generator: {len(unknown)} weights without a place in a model of the given "
            f"sizes, one is {min(unknown)}"
        )
    return {k: state[name] for k, (name, _) in ours.items()}


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released names."""
    return {released_name(k): v for k, v in state.items()}
