"""A trained tokenizer from a file: of our training, or released."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common import checkpoint, config
from common.data.latents import weights_hash
from common.errors import UserError
from tokenizer.exported import read
from tokenizer.model import Tokenizer
from tokenizer.released import from_released

# keys of `model.params` that decide the network, and those that only training reads
TRAINING = (
    *("lossconfig", "scheduler_config", "ema_decay", "grad_clip", "learning_rate", "seed"),
    *("stage2", "compile", "channels_last", "grad_checkpointing"),
)
SIZES = ("ddconfig", "embed_dim", "std", "sematicconfig", "post_channels")
RELEASED_SCALE = 0.05493  # of the tokens of the released tokenizer, whose file does not say it


def untrained(path: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer with the sizes of a YAML file and random weights, for measuring speed."""
    params = OmegaConf.select(config.load(path), "model.params")
    if not isinstance(params, DictConfig):
        raise UserError(f"{path}: model.params: missing; expected a tokenizer's sizes")
    sizes = {k: v for k, v in OmegaConf.to_container(params, resolve=True).items() if k in SIZES}
    sizes.pop("sematicconfig", None)  # for training only
    node = {"target": "tokenizer.model.Tokenizer", "params": sizes}
    return config.instantiate(node, "model").eval().requires_grad_(False)


def load_tokenizer(
    path: str | os.PathLike[str],
    sizes: Mapping[str, Any] | None = None,
    token_scale: float | None = None,
    ema: bool = True,
) -> Tokenizer:
    """The tokenizer of a checkpoint, in evaluation mode and without gradients.

    Args:
        path: a checkpoint of `scripts/train_tokenizer.py`, a folder of
            `scripts/export_tokenizer.py`, or a released checkpoint.
        sizes: arguments of `Tokenizer`; a checkpoint of ours carries its own, a released one
            needs them (`model.params` of its YAML file).
        token_scale: overrides the measured scale of the tokens (`--vae_norm`); a checkpoint
            under the released names has no measured one, and gets that of the released tokenizer.
        ema: take the EMA weights, as evaluation and stage two do, rather than the raw ones.

    Raises:
        UserError: no such file, not a tokenizer, or sizes that its weights do not fit.
    """
    exported = Path(path).is_dir()
    file = read(Path(path)) if exported else checkpoint.load(path)
    state = file.get("state_dict", file)
    own = file.get("tokenizer")
    if own is None and sizes is None:
        raise UserError(
            f"{path}: carries no sizes of its own; expected model.params of the "
            "tokenizer's YAML file beside it (--config_path)"
        )
    node = {"target": "tokenizer.model.Tokenizer", "params": own or sizes}
    tokenizer: Tokenizer = config.instantiate(node, "model")
    if exported:
        weights = state
    elif own is not None:
        prefix = "ema.model." if ema else "tokenizer."
        weights = _under(prefix, state)
    else:
        weights = from_released(state, tokenizer, ema)
        token_scale = RELEASED_SCALE if token_scale is None else token_scale
    checkpoint.load_weights(tokenizer, weights, path)
    if token_scale is not None:
        if not token_scale > 0:
            raise UserError(f"--vae_norm: found {token_scale}, expected a number above 0")
        tokenizer.token_scale.fill_(token_scale)
    return tokenizer.eval().requires_grad_(False)


def tokenizer_from_config(
    path: str | os.PathLike[str],
    token_scale: float | None = None,
    overrides: Sequence[str] = (),
) -> Tokenizer:
    """The tokenizer of a YAML file (`--config_path`): `model.params` names the checkpoint as
    `ckpt_path`, and gives the sizes if the checkpoint does not carry them; see `load_tokenizer`."""
    settings = config.load(path, overrides)
    config.check_keys(settings, ("model", "data", "lightning", "seed"), "")
    params = OmegaConf.select(settings, "model.params")
    if not isinstance(params, DictConfig):
        raise UserError(f"{path}: model.params: found {params}, expected ckpt_path and sizes")
    if not isinstance(params.get("ckpt_path"), str):
        raise UserError(
            f"{path}: model.params.ckpt_path: missing among {', '.join(map(str, params))}; "
            "expected a tokenizer checkpoint"
        )
    params = OmegaConf.to_container(params, resolve=True)
    config.check_keys(params, ("ckpt_path", *SIZES, *TRAINING), "model.params")
    sizes = {k: params[k] for k in SIZES if k in params}
    return load_tokenizer(params["ckpt_path"], sizes or None, token_scale)


def identity(tokenizer: Tokenizer) -> str:
    """A short name of the weights that make tokens and images, whatever the tokens' scale."""
    state = tokenizer.state_dict()
    del state["token_scale"]
    return weights_hash(state)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
