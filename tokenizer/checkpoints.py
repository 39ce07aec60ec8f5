"""Tokenizer checkpoints: of our training, exported, or released.

A released file holds raw weights under dotted names, and EMA weights under flat ones: the module, a
dot, and the parameter's name with its dots removed (`ema_encoder.conv_inweight`). It also holds one
more block at each semantic level than ever runs; these are not read, and written as blocks that
change nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from common import checkpoint, distributed
from common.config import check_range, limits, structured
from common.config import load as load_yaml
from common.distributed import Process
from common.errors import UserError
from common.io import read_json, write_json
from tokenizer.blocks import ResidualBlock
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer, former_name

YAML = (".yaml", ".yml")
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
    (r"^main\.", "stack."),
    (r"\.1\.fn\.", ".1.block."),
    (r"\.weight_orig$", ".parametrizations.weight.original"),
    (r"\.weight_([uv])$", r".parametrizations.weight.0._\1"),
]
_IGNORED = re.compile(r"^loss\.|^ema_\w+\.(decay|num_updates)$")


def load_tokenizer(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    token_scale: float | None = None,
    ema: bool = True,
) -> Tokenizer:
    """The tokenizer of a file, in evaluation mode and without gradients.

    Args:
        path: a checkpoint of `scripts/train_tokenizer.py`, a folder of
            `scripts/export_tokenizer.py`, a released checkpoint, or a YAML file that names one of
            these as `model.params.ckpt_path`.
        config: the YAML file of a released checkpoint, or its sizes: it carries none of its own.
        overrides: `key=value` over the YAML file.
        token_scale: overrides the measured scale of the tokens (`--vae_norm`); a checkpoint
            under the released names has no measured one, and gets that of the released tokenizer.
        ema: take the EMA weights where there are any, as evaluation and stage two do.

    """
    named = str(path)
    if Path(path).suffix in YAML:
        config, named = path, ""
    if config is not None and not isinstance(config, Mapping):
        where, (config, ckpt_path) = config, _from_yaml(config, overrides)
        named = named or ckpt_path
        if not named:
            raise UserError(f"{where}: model.params.ckpt_path: missing; expected a tokenizer")
    tokenizer = read(named, config).build(ema)
    if token_scale is not None:
        check_range(token_scale, limits(above=0), "--vae_norm")
        tokenizer.token_scale.fill_(token_scale)
    return tokenizer


def untrained(path: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer of the sizes that a YAML file states, with random weights."""
    sizes, _ = _from_yaml(path, ())
    tokenizer = Tokenizer(**asdict(structured(TokenizerConfig, sizes, str(path))))
    return tokenizer.eval().requires_grad_(False)


def load_on_all(process: Process, load: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that the first process loads, on the devices of all; only that one reads."""
    tokenizer = load() if process.is_main else None
    sizes = distributed.broadcast_object(tokenizer.sizes if tokenizer else None)
    tokenizer = tokenizer or Tokenizer(**sizes)
    tokenizer = tokenizer.eval().requires_grad_(False).to(process.device)
    distributed.broadcast_module(tokenizer)
    return tokenizer


def _from_yaml(
    path: str | os.PathLike[str], overrides: Sequence[str]
) -> tuple[dict[str, Any], str | None]:
    """The sizes in `model.params` of a YAML file, and the checkpoint that it names."""
    params = OmegaConf.select(load_yaml(path, overrides), "model.params")
    if not isinstance(params, DictConfig):
        raise UserError(f"{path}: model.params: found {params}, expected ckpt_path and sizes")
    sizes = {field.name for field in fields(TokenizerConfig)}
    values = OmegaConf.to_container(params, resolve=True)
    return {k: v for k, v in values.items() if k in sizes}, values.get("ckpt_path")


@dataclass(frozen=True)
class TokenizerFile:
    """What a file holds: sizes, and weights under our names or the released ones."""

    path: str
    sizes: Mapping[str, Any]  # arguments of `Tokenizer`
    state: Mapping[str, Tensor]
    kind: str  # trained, exported or released

    def build(self, ema: bool = True) -> Tokenizer:
        """The tokenizer, in evaluation mode and without gradients."""
        tokenizer = Tokenizer(**asdict(structured(TokenizerConfig, self.sizes, str(self.path))))
        checkpoint.load_weights(tokenizer, self.weights(tokenizer, ema), self.path)
        if self.kind == "released":
            tokenizer.token_scale.fill_(RELEASED_SCALE)
        return tokenizer.eval().requires_grad_(False)

    def weights(self, tokenizer: Tokenizer, ema: bool) -> dict[str, Tensor]:
        """Weights for `tokenizer`, the averaged ones if there are any and `ema` is set."""
        if self.kind == "released":
            return from_released(self.state, tokenizer, ema)
        averaged = ema and any(name.startswith("ema.") for name in self.state)
        prefix = "" if self.kind == "exported" else "ema.model." if averaged else "tokenizer."
        names = {former_name(name): name for name in tokenizer.state_dict()}
        found = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        return {names.get(k, k): v for k, v in found.items()}

    def fill_discriminator(self, discriminator: nn.Module | None) -> bool:
        """Give a discriminator the trained weights of one of its kind, if the file has them."""
        prefix = "loss.discriminator." if self.kind == "released" else "objective.discriminator."
        found = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        for pattern, replacement in _DISCRIMINATOR:
            found = {re.sub(pattern, replacement, k): v for k, v in found.items()}
        names = {} if discriminator is None else discriminator.state_dict()
        if not names or not names.keys() <= found.keys():
            return False
        # a released one may hold its frozen network as well
        checkpoint.load_weights(discriminator, {k: found[k] for k in names}, self.path)
        return True


def read(path: str | os.PathLike[str], sizes: Mapping[str, Any] | None = None) -> TokenizerFile:
    """Read a checkpoint of our training, an exported folder, or a released checkpoint, which needs
    `sizes` from elsewhere."""
    if Path(path).is_dir():
        if not (Path(path) / CONFIG).is_file():
            raise UserError(f"{path}: holds no {CONFIG}; expected a checkpoint or an export")
        state = checkpoint.load(Path(path) / WEIGHTS)
        return TokenizerFile(str(path), read_json(Path(path) / CONFIG), state, "exported")
    return from_checkpoint(checkpoint.load(path), path, sizes)


def from_checkpoint(
    file: Mapping[str, Any],
    path: str | os.PathLike[str],
    sizes: Mapping[str, Any] | None = None,
) -> TokenizerFile:
    """What a checkpoint holds that has been read; see `read`."""
    state = file.get("state_dict", file)
    if "tokenizer" in file:
        return TokenizerFile(str(path), file["tokenizer"], state, "trained")
    if not sizes:
        raise UserError(
            f"{path}: carries no sizes of its own; expected the YAML file of a released "
            "tokenizer beside it (--config_path)"
        )
    return TokenizerFile(str(path), sizes, state, "released")


def export(tokenizer: Tokenizer, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a tokenizer with its sizes and the scale of its tokens into a folder of its own; the
    export of another tokenizer is replaced if `overwrite` is set."""
    folder = Path(folder)
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if there - {WEIGHTS, CONFIG}:
        raise UserError(f"{folder}: not empty, and no exported tokenizer; expected a new folder")
    held = there == {WEIGHTS, CONFIG} and not overwrite and read(folder).build().fingerprint
    if held not in (False, tokenizer.fingerprint):
        raise UserError(f"{folder}: holds another tokenizer; --overwrite replaces it")
    checkpoint.save_safetensors(folder / WEIGHTS, tokenizer.state_dict())
    write_json(folder / CONFIG, tokenizer.sizes)


def released_name(name: str) -> str:
    """The released name of our parameter `name`."""
    for pattern, replacement in _RELEASED:
        name = re.sub(pattern, replacement, name)
    return name


def ema_name(name: str) -> str:
    """The released flat name of the EMA copy of our parameter `name`."""
    module, _, rest = released_name(name).partition(".")
    return f"ema_{module}.{rest.replace('.', '')}"


def from_released(
    state: Mapping[str, Tensor], tokenizer: Tokenizer, ema: bool = True
) -> dict[str, Tensor]:
    """Weights for `tokenizer` from a released state dict: the EMA ones, if there are any and `ema`
    is set. Missing ones are left out; an unknown one is an error."""
    ours = _weights(tokenizer)
    known = {f(k) for k in (*ours, *_never_run(tokenizer)) for f in (released_name, ema_name)}
    unknown = [k for k in state if k not in known and not _IGNORED.match(k)]
    if unknown:
        raise UserError(
            f"released tokenizer: {len(unknown)} weights without a place in this config, the "
            f"first is {unknown[0]}"
        )
    name = ema_name if ema and any(ema_name(k) in state for k in ours) else released_name
    found = {k: state[name(k)] for k in ours if name(k) in state}
    return found | {"token_scale": tokenizer.token_scale}


def to_released(
    tokenizer: Tokenizer, ema: Tokenizer, decay: float = 0.9999, updates: int = 0
) -> dict[str, Tensor]:
    """The released state dict of raw weights and their EMA copy, without `loss.` entries."""
    state: dict[str, Tensor] = {}
    for model, name in ((tokenizer, released_name), (ema, ema_name)):
        state |= {name(k): v for k, v in (_weights(model) | _never_run(model)).items()}
    for module in {name.partition(".")[0] for name in state if name.startswith("ema_")}:
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


def run_config(source: Path, base: Path | None) -> Path:
    """The YAML file with the data of a checkpoint: `base`, the source itself, or its run's."""
    if not source.exists():
        raise UserError(f"{source}: no such file; expected a checkpoint or a YAML file")
    run = source.parent.parent / "configs" / "config.yaml"
    found = base or (source if source.suffix in YAML else run)
    if not found.is_file():
        raise UserError(f"{source}: lies in no run with {found}; expected -b/--base CONFIG.yaml")
    return found
