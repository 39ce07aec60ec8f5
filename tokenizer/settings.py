"""What a run of stage one is told: YAML files, overrides and the flags that stand for keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from common import config
from common.coerce import Mismatch, coerce
from common.errors import UserError

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
# keys with a default: where they stand ("" is the top) and what they are
DEFAULTS: dict[tuple[str, str], Any] = {
    ("", "seed"): 0,
    ("model", "base_learning_rate"): 1.92e-4,
    ("lightning", "checkpoint_every"): 0,
}


def read(files: Sequence[Path], overrides: Sequence[str]) -> DictConfig:
    """Nodes `model`, `data`, `lightning` (with `trainer`) and `seed`, defaults filled in.

    Raises:
        UserError: naming the file or the key.
    """
    settings = config.load(files, overrides)
    config.check_keys(settings, ("model", "data", "lightning", "seed"), "")
    for key in ("model", "data"):
        if not isinstance(settings.get(key), DictConfig):
            raise UserError(f"{key}: found {settings.get(key)!r}, expected target and params")
    settings.lightning = settings.get("lightning") or {}
    config.check_keys(settings.lightning, ("trainer", "checkpoint_every"), "lightning")
    settings.lightning.trainer = settings.lightning.get("trainer") or {}
    if not isinstance(settings.lightning.trainer, DictConfig):
        raise UserError(
            f"lightning.trainer: found {settings.lightning.trainer!r}, expected arguments of the "
            "trainer"
        )
    for (where, key), default in DEFAULTS.items():
        node = settings[where] if where else settings
        try:
            node[key] = coerce(node.get(key, default), type(default))
        except Mismatch:
            raise UserError(
                f"{key}: found {node[key]!r}, expected {type(default).__name__}"
            ) from None
    return settings


def add_speed_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Flags that change the speed of training, and its result by rounding only."""
    add = parser.add_argument
    add("--compile", action="store_true", help="compile encoder and decoder")
    add("--channels_last", action="store_true", help="keep channels innermost in memory")
    add("--grad_checkpointing", action="store_true", help="less memory for more arithmetic")


def speed_overrides(flags: argparse.Namespace) -> list[str]:
    """The keys that the speed flags stand for."""
    names = ("compile", "channels_last", "grad_checkpointing")
    return [f"model.params.{name}=true" for name in names if getattr(flags, name)]


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Flags with `base`, YAML files, and `overrides`, `key=value` words wherever they stand.

    `-b config.yaml key=value` makes argparse read what follows the files as one more of them.
    """
    flags = parser.parse_intermixed_args()
    misread = [word for word in flags.base if "=" in word and not Path(word).exists()]
    flags.base = [word for word in flags.base if word not in misread]
    # a later override wins, wherever on the line it stands
    flags.overrides = [word for word in sys.argv[1:] if word in (*flags.overrides, *misread)]
    return flags
