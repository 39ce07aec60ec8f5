"""Tokenizer checkpoints: of our training, exported, or released.

A released file holds raw weights under dotted names, and EMA weights under flat ones: the module, a
dot, and the parameter's name with its dots removed (`ema_encoder.conv_inweight`). The last block of
each semantic level in it never runs, and is not read.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common import checkpoint, distributed
from common.config import YAML, convert, structured
from common.config import load as load_yaml
from common.distributed import Process
from common.errors import UserError
from common.io import read_json, write_json
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

PathLike: TypeAlias = str | os.PathLike[str]
RELEASED_SCALE = 0.05493  # of the tokens of the released tokenizer, whose file does not say it
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of an export

_RELEASED = [
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
    (r"^bottleneck\.mix_columns\.", "encoder.encoder1d."),
    (r"^bottleneck\.unmix_columns\.", "decoder.decoder1d."),
    (r"^bottleneck\.to_tokens\.", "quant_layer."),
    (r"^bottleneck\.from_tokens\.", "post_quant_layer."),
]
_DISCRIMINATOR = [  # from released names to ours: PatchGAN, then the heads on DINO
    (r"^loss\.", "objective."),
    (r"discriminator\.main\.", "discriminator.stack."),
    (r"\.1\.fn\.", ".1.block."),
    (r"\.weight_orig$", ".parametrizations.weight.original"),
    (r"\.weight_([uv])$", r".parametrizations.weight.0._\1"),
]


def load_tokenizer(
    path: PathLike, overrides: Sequence[str] = (), token_scale: float | None = None
) -> Tokenizer:
    """The tokenizer of a file, with EMA weights where there are any (see `build`).

    Args:
        path: a checkpoint of our training, an exported folder, or a YAML file that names one as
            `model.params.ckpt_path`, or a released checkpoint, whose sizes it has to state.
        overrides: `key=value` over the YAML file.
        token_scale: overrides the measured scale of the tokens (`--vae_norm`), which a released
            checkpoint has not; it gets that of the released tokenizer.
    """
    file, sizes = path, None
    if Path(path).suffix in YAML:
        sizes, file = _from_yaml(path, overrides)
        if not file:
            raise UserError(f"{path}: model.params.ckpt_path: missing; expected a tokenizer")
    tokenizer = build(read(file, sizes), file)
    if token_scale is not None:
        convert(token_scale, float, {"above": 0}, "--vae_norm")
        tokenizer.token_scale.fill_(token_scale)
    return tokenizer


def untrained(path: PathLike, overrides: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of the sizes that a YAML file states, with random weights."""
    return _frozen(_from_yaml(path, overrides)[0], path)


def load_on_all(process: Process, load: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that the first process loads, on the devices of all; only that one reads."""

    def read() -> tuple[dict[str, Any], dict[str, Tensor]]:
        tokenizer = load()
        return tokenizer.sizes, tokenizer.state_dict()

    sizes, state = distributed.load_on_all(read, process.device)
    tokenizer = _frozen(sizes, "")
    tokenizer.load_state_dict(state)
    return tokenizer.to(process.device)


def _frozen(sizes: Mapping[str, Any], where: object) -> Tokenizer:
    tokenizer = Tokenizer(**vars(structured(TokenizerConfig, sizes, str(where))))
    return tokenizer.eval().requires_grad_(False)


def _from_yaml(path: PathLike, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Any]:
    """The sizes in `model.params` of a YAML file, and the checkpoint that it names."""
    params = OmegaConf.select(load_yaml(path, overrides), "model.params")
    if not isinstance(params, DictConfig):
        raise UserError(f"{path}: model.params: found {params}, expected ckpt_path and sizes")
    values: Any = OmegaConf.to_container(params, resolve=True)
    sizes = {f.name: values[f.name] for f in fields(TokenizerConfig) if f.name in values}
    return sizes, values.get("ckpt_path")


def read(path: PathLike, sizes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a tokenizer's file holds: among others its sizes (`tokenizer`), and weights under our
    names (`state_dict`): those of `tokenizer.`, `ema.model.` and `objective.discriminator.`.

    A checkpoint of our training, an exported folder, or a released checkpoint, which needs `sizes`
    from elsewhere.
    """
    if (folder := Path(path)).is_dir():
        weights = {f"tokenizer.{k}": v for k, v in checkpoint.load(folder / WEIGHTS).items()}
        return {"tokenizer": read_json(folder / CONFIG), "state_dict": weights}
    content = checkpoint.load(path)
    state, own = content.get("state_dict", content), content.get("tokenizer", {})
    sound = isinstance(state, Mapping) and isinstance(own, Mapping)
    if not sound or not all(isinstance(k, str) and isinstance(state[k], Tensor) for k in state):
        raise UserError(f"{path}: no tokenizer; expected sizes and tensors by name")
    if "tokenizer" in content:
        return content
    if not sizes:
        expected = "expected a YAML file that has them and this as model.params.ckpt_path"
        raise UserError(f"{path}: carries no sizes of its own; {expected}")
    tokenizer, found = _frozen(sizes, path), {}
    tokenizer.token_scale.fill_(RELEASED_SCALE)
    for prefix, ema in (("tokenizer.", False), ("ema.model.", True)):
        found |= {f"{prefix}{k}": v for k, v in from_released(state, tokenizer, ema).items()}
    for name, tensor in state.items():
        if name.startswith("loss.discriminator."):
            found[_renamed(name, _DISCRIMINATOR)] = tensor
    return {"tokenizer": tokenizer.sizes, "state_dict": found}


def part(content: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, without it."""
    found = content["state_dict"].items()
    return {k.removeprefix(prefix): v for k, v in found if k.startswith(prefix)}


def build(content: Mapping[str, Any], where: object) -> Tokenizer:
    """The tokenizer of what `read` gives, with EMA weights if there are any, in evaluation mode and
    without gradients."""
    tokenizer = _frozen(content["tokenizer"], where)
    weights = part(content, "ema.model.") or part(content, "tokenizer.")
    checkpoint.load_weights(tokenizer, weights, where)
    return tokenizer


def export(tokenizer: Tokenizer, folder: PathLike, overwrite: bool = False) -> None:
    """Write a tokenizer with its sizes and the scale of its tokens into a folder, a new one unless
    `overwrite` is set."""
    folder = Path(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; --overwrite replaces the tokenizer in it")
    checkpoint.save_safetensors(folder / WEIGHTS, tokenizer.state_dict())
    write_json(folder / CONFIG, tokenizer.sizes)


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def released_name(name: str) -> str:
    """The released name of our parameter `name`."""
    return _renamed(name, _RELEASED)


def ema_name(name: str) -> str:
    """The released flat name of the EMA copy of our parameter `name`."""
    module, _, rest = released_name(name).partition(".")
    return f"ema_{module}.{rest.replace('.', '')}"


def from_released(
    state: Mapping[str, Tensor], tokenizer: Tokenizer, ema: bool = True
) -> dict[str, Tensor]:
    """Weights for `tokenizer` from a released state dict: the EMA ones, if there are any and `ema`
    is set. Names without a place in it stay as they are."""
    ours = [name for name in tokenizer.state_dict() if name != "token_scale"]
    found, others = ({rename(k): k for k in ours} for rename in (released_name, ema_name))
    if ema and others.keys() & state.keys():
        found, others = others, found
    ignored = r"loss\.|ema_\w+\.(decay|num_updates)$"
    if tokenizer.semantic_decoder is not None:
        surplus = len(tokenizer.semantic_decoder.levels[0].blocks)
        ignored += rf"|(ema_)?semantic_decoder\.down\.?\d+\.?block\.?{surplus}\.?(norm|conv)\d"
    kept = {k: v for k, v in state.items() if k not in others and not re.match(ignored, k)}
    return {found.get(k, k): v for k, v in kept.items()} | {"token_scale": tokenizer.token_scale}
