"""A trained generator from a file: of our training, or released."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from common import checkpoint
from common.errors import UserError
from generator.flags import check_against, sizes
from generator.model import Generator, GeneratorConfig
from generator.released import from_released, is_released


@dataclass(frozen=True)
class Loaded:
    """A generator in evaluation mode and what its checkpoint says of it.

    Args:
        model: with EMA weights, if asked for.
        class_names: of the training data; numbers where the checkpoint has no names.
        tokenizer: identity of the tokenizer it was trained with, or None.
        token_scale: of the tokens it was trained on, or None.
        columns: of the images it was trained on, or None.
    """

    model: Generator
    class_names: list[str]
    tokenizer: str | None
    token_scale: float | None
    columns: int | None

    def scale(self, asked: float | None) -> float | None:
        """Of the tokens: `--vae_norm`, if it is asked for, or that of training.

        Raises:
            UserError: they contradict each other.
        """
        trained = self.token_scale
        if None not in (asked, trained) and not math.isclose(asked, trained, rel_tol=1e-3):
            raise UserError(f"--vae_norm: found {asked}, but the checkpoint has {trained:.6g}")
        return trained if asked is None else asked

    def check_tokenizer(self, name: str, source: Path) -> None:
        """Refuse a tokenizer of another identity; a checkpoint that names none takes any."""
        if self.tokenizer not in (None, name):
            raise UserError(
                f"{source}: was trained on tokens of tokenizer {self.tokenizer}, but the one of "
                f"--config_path is {name}"
            )


def load_generator(path: Path, flags: argparse.Namespace, ema: bool = True) -> Loaded:
    """The generator of a checkpoint.

    Args:
        path: a checkpoint of `scripts/train_generator.py`, or a released one.
        flags: size flags (see `generator.flags`); a released checkpoint needs them, and where
            ours carries its own they must not contradict it.
        ema: take the EMA weights rather than the raw ones.

    Raises:
        UserError: no such file, not a generator, or flags that do not fit it.
    """
    file = checkpoint.load(path)
    key = "model_ema" if ema else "model"
    if key not in file:
        raise UserError(f"{path}: has no {key}; expected a checkpoint of the generator")
    state = file[key]
    if "generator" in file:
        config = GeneratorConfig(**file["generator"])
        check_against(flags, config)
    elif is_released(state):
        missing = [k for k in ("class_emb.weight", "z_proj.weight") if k not in state]
        if missing:
            raise UserError(f"{path}: has no {missing[0]}; expected a checkpoint of the generator")
        stored = {
            "classes": len(state["class_emb.weight"]),
            "channels": state["z_proj.weight"].shape[1],
        }
        config = sizes(flags, stored)
    else:
        raise UserError(f"{path}: holds no generator under names known here")
    model = Generator(config)
    weights = from_released(state, model) if is_released(state) else state
    checkpoint.load_weights(model, weights, path)
    names = file.get("class_names") or [str(i) for i in range(config.classes)]
    model = model.eval().requires_grad_(False)
    columns = file.get("data", {}).get("columns")
    return Loaded(model, names, file.get("tokenizer"), file.get("token_scale"), columns)
