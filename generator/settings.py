"""How the generator is trained: each setting once, which is a field, a flag, and kept."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from common.errors import UserError

GROUPS = ("updates", "objective", "speed", "records")
FIXED = ("seed",)  # a run cannot go on with another one


def _setting(group: str, default: Any, help: str, **limits: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": help, **limits})


@dataclass(frozen=True)
class TrainingConfig:
    """Defaults are the paper's; `python scripts/train_generator.py --help` explains each."""

    epochs: int = _setting("updates", 1200, "passes over the data", least=1)
    max_steps: int = _setting(
        "updates", 0, "updates after which training ends all the same (0: never)", least=0
    )
    batch_size: int = _setting("updates", 64, "images of one process in one pass", least=1)
    accumulate: int = _setting(
        "updates",
        1,
        "passes whose gradients make one update; batch_size x this x processes is the global batch",
        least=1,
    )
    blr: float = _setting("updates", 1e-4, "learning rate at a global batch of 256", least=0)
    lr: float | None = _setting("updates", None, "learning rate, instead of --blr", least=0)
    min_lr: float = _setting("updates", 0.0, "end of the cosine", least=0)
    lr_schedule: str = _setting(
        "updates", "constant", "after the warm-up", choices=("constant", "cosine")
    )
    warmup_epochs: float = _setting(
        "updates", 100.0, "epochs in which the rate grows from 0", least=0
    )
    weight_decay: float = _setting("updates", 0.02, "of matrices outside the flow head", least=0)
    grad_clip: float = _setting("updates", 3.0, "largest gradient norm (0: any)", least=0)
    ema_rate: float = _setting("updates", 0.9999, "of the averaged weights", least=0, below=1)
    seed: int = _setting("updates", 0, "of weights, order, noise, and crops of --data_path")

    label_drop_prob: float = _setting(
        "objective", 0.1, "how often an image loses its class", least=0, most=1
    )
    shift_num: int = _setting(
        "objective",
        16,
        "positions are shifted by 0 ... this - 1, one shift an update (1: never)",
        least=1,
    )
    diffusion_batch_mul: int = _setting("objective", 4, "flow draws of each token", least=1)
    train_columns: str = _setting(
        "objective", "all", "columns whose loss is trained, such as 0-3,8-11"
    )
    subsequence: int = _setting(
        "objective",
        0,
        "train on random runs of so many columns, each as though it were a whole "
        "image (0: on whole images)",
        least=0,
    )

    precision: str = _setting(
        "speed",
        "fp32",
        "of products; auto is bf16 where the device multiplies in it",
        choices=("fp32", "tf32", "bf16", "auto"),
    )
    compile: bool = _setting("speed", False, "compile layers and flow head")
    grad_checkpointing: bool = _setting(
        "speed", False, "recompute layers in the backward pass, for less memory"
    )
    share_classes: bool = _setting(
        "speed",
        False,
        "where there are fewer classes than images in a batch, read each once; "
        "images of a class then share its tokens' dropout",
    )

    log_freq: int = _setting("records", 20, "updates between two entries of the logs", least=1)
    save_last_freq: int = _setting(
        "records", 1, "epochs between two checkpoints that replace each other", least=1
    )
    save_freq: int = _setting(
        "records", 0, "epochs between two checkpoints that are kept (0: none)", least=0
    )
    save_steps: int = _setting(
        "records", 0, "updates between two checkpoints that replace each other (0: none)", least=0
    )
    eval_freq: int = _setting(
        "records",
        0,
        "epochs between two measurements of every column's loss with the averaged "
        "weights (0: none)",
        least=0,
    )
    eval_images: int = _setting("records", 2048, "images of such a measurement", least=1)
    sample_freq: int = _setting(
        "records",
        0,
        "epochs between two pictures of samples with the averaged weights (0: none)",
        least=0,
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, limits = getattr(self, setting.name), setting.metadata
            if value is None:
                continue
            if "least" in limits and not value >= limits["least"]:
                _refuse(setting.name, value, f"at least {limits['least']}")
            if "below" in limits and not value < limits["below"]:
                _refuse(setting.name, value, f"a number in [{limits['least']}, {limits['below']})")
            if "most" in limits and not value <= limits["most"]:
                _refuse(setting.name, value, f"a number in [{limits['least']}, {limits['most']}]")
            if "choices" in limits and value not in limits["choices"]:
                _refuse(setting.name, value, f"one of {', '.join(limits['choices'])}")
        if self.train_columns != "all" and self.subsequence:
            raise UserError("--subsequence: given together with --train_columns; expected one")

    def rate(self, world: int) -> float:
        """The learning rate after the warm-up on `world` processes."""
        batch = self.batch_size * self.accumulate * world
        return self.blr * batch / 256 if self.lr is None else self.lr


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; one that is not given is None."""
    hints = typing.get_type_hints(TrainingConfig)
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for setting in fields(TrainingConfig):
        _add_flag(groups[setting.metadata["group"]], setting, hints[setting.name])
    groups["speed"].add_argument(
        "--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32"
    )


def given(flags: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line, or its YAML file, gives.

    Raises:
        UserError: two of them contradict each other.
    """
    values = {setting.name: getattr(flags, setting.name) for setting in fields(TrainingConfig)}
    values = {name: value for name, value in values.items() if value is not None}
    if {"lr", "blr"} <= values.keys():
        raise UserError(
            f"--blr: found {values['blr']} together with --lr {values['lr']}, expected one of them"
        )
    return values


def resumed(
    stored: Mapping[str, Any], given: Mapping[str, Any], source: object
) -> tuple[TrainingConfig, list[str]]:
    """The settings with which a run goes on: those of its checkpoint, but for what is given now.

    Returns:
        The settings, and a line for each that changes.

    Raises:
        UserError: a setting that may not change, or a checkpoint of another version.
    """
    names = {setting.name for setting in fields(TrainingConfig)}
    if names != stored.keys():
        raise UserError(
            f"{source}: its settings are not those of this version; the first to differ is "
            f"{min(names ^ stored.keys())}"
        )
    before = TrainingConfig(**stored)
    changes = dict(given)
    if "blr" in given:
        changes.setdefault("lr", None)
    after = replace(before, **changes)
    lines = []
    for name in sorted(names):
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if name in FIXED:
            raise UserError(f"--{name}: found {new}, expected {old}, with which {source} was made")
        lines.append(f"--{name}: {old} so far, {new} from here on")
    return after, lines


def _add_flag(group: Any, setting: Field, hint: Any) -> None:
    flag, limits, default = f"--{setting.name}", setting.metadata, setting.default
    if hint is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag, action=action, default=None, help=limits["help"])
        return
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    shown = "" if default is None else f" (default {default})"
    choices = limits.get("choices")
    group.add_argument(flag, type=hint, choices=choices, help=limits["help"] + shown)


def _refuse(name: str, value: Any, expected: str) -> None:
    raise UserError(f"--{name}: found {value}, expected {expected}")
