"""The command line's names for the generator's sizes, which are those of the released scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from common import config
from common.errors import UserError
from generator.model import FLOW_HEADS, SIZES, GeneratorConfig

# flag → field of GeneratorConfig
FIELDS = {
    "width": "width",
    "depth": "depth",
    "heads": "heads",
    "vae_embed_dim": "channels",
    "class_num": "classes",
    "buffer_size": "class_tokens",
    "cond_length": "window",
    "diffloss_w": "head_width",
    "diffloss_d": "head_depth",
    "attn_dropout": "attn_dropout",
    "proj_dropout": "proj_dropout",
}

# flags of which one takes the place of the other
INSTEAD = [("lr", "blr"), ("blr", "lr")]


class Help(argparse.RawDescriptionHelpFormatter):
    """Tells the default of every flag that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.default in (None, False, [], argparse.SUPPRESS) or "default" in text:
            return text
        return f"{text} (default %(default)s)".strip()


def add_size_flags(parser: argparse.ArgumentParser, dropout: bool = False) -> None:
    """Flags of the generator's sizes, and of its dropout if wanted; those not given come from the
    checkpoint or the data."""
    group = parser.add_argument_group("generator")
    add = group.add_argument
    add("--model", choices=SIZES, help="a named size: width, layers, attention heads")
    add("--width", type=int, help="width D, over the named size")
    add("--depth", type=int, help="layers, over the named size")
    add("--heads", type=int, help="attention heads, over the named size")
    add("--vae_embed_dim", type=int, help="channels of a token (default: the tokenizer's)")
    add("--class_num", type=int, help="classes (default: the data's)")
    add("--buffer_size", type=int, help="class tokens (default 16)")
    add("--cond_length", type=int, help="earlier columns a layer sees (default 3; 0: all)")
    add("--diffloss_w", type=int, help="width of the flow head")
    add("--diffloss_d", type=int, help="residual blocks of the flow head")
    if dropout:
        add("--attn_dropout", type=float, help="of attention weights (default 0.1)")
        add("--proj_dropout", type=float, help="after projections and in MLPs (default 0.1)")


def sizes(flags: argparse.Namespace, known: Mapping[str, Any]) -> GeneratorConfig:
    """The generator's sizes from the flags, over what data or tokenizer make known.

    Raises:
        UserError: a flag contradicts what is known, or a size is not given anywhere.
    """
    values = _given(flags)
    if flags.model:
        values = SIZES[flags.model] | FLOW_HEADS[flags.model] | values
    for field, value in known.items():
        if values.setdefault(field, value) != value:
            raise UserError(
                f"--{_flag(field)}: found {values[field]}, expected {value}, which the "
                "tokenizer or the data have"
            )
    for field in ("width", "depth", "heads"):
        if field not in values:
            raise UserError(
                f"--model: not given, and no --{field} either; expected one of "
                f"{', '.join(SIZES)}, or all sizes by hand"
            )
    return GeneratorConfig(**values)


def check_against(flags: argparse.Namespace, stored: GeneratorConfig) -> None:
    """Refuse size flags that contradict those a checkpoint was trained with.

    Raises:
        UserError: naming the first such flag.
    """
    given = _given(flags)
    if flags.model:
        given = SIZES[flags.model] | given
    for field, value in given.items():
        own = getattr(stored, field)
        if value != own:
            raise UserError(f"--{_flag(field)}: found {value}, but the checkpoint has {own}")


def flags_of(sizes: GeneratorConfig) -> dict[str, Any]:
    """The flags that give these sizes, by name."""
    return {flag: getattr(sizes, field) for flag, field in FIELDS.items()}


def _given(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields of GeneratorConfig that flags give one by one."""
    values = {field: getattr(flags, flag, None) for flag, field in FIELDS.items()}
    return {field: value for field, value in values.items() if value is not None}


def _flag(field: str) -> str:
    return next(flag for flag, name in FIELDS.items() if name == field)


def parse_with_config(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse flags; those in the YAML file of `--config` are defaults that flags override.

    Raises:
        UserError: the file has a key that is no flag, or a value that the flag does not take.
    """
    file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file.add_argument("--config")
    path = file.parse_known_args()[0].config
    if path:
        values = config.load(path)
        typed = {word.partition("=")[0].removeprefix("--") for word in sys.argv[1:]}
        for one, other in INSTEAD:
            if one in typed:
                values.pop(other, None)
        known: dict[str, argparse.Action] = {}
        for action in parser._actions:
            if action.dest not in ("help", "config"):
                known.setdefault(action.dest, action)
        try:
            config.check_keys(values, known, "")
            checked = {k: _flag_value(known[k], v) for k, v in values.items()}
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        parser.set_defaults(**checked)
    return parser.parse_intermixed_args()


def _flag_value(action: argparse.Action, value: Any) -> Any:
    """A value from YAML as the flag's own parser would give it."""
    if action.nargs in ("*", "+"):
        kind = action.type or str
        expected = f"a list of {kind.__name__}"
        if isinstance(value, ListConfig) and all(isinstance(v, kind) for v in value):
            return list(value)
    elif action.nargs == 0:  # a switch
        expected = "true or false"
        if isinstance(value, bool):
            return value
    else:
        kind = action.type or str
        expected = kind.__name__
        try:
            if isinstance(value, (ListConfig, DictConfig)):
                raise ValueError
            value = None if value is None else kind(str(value))
        except ValueError:
            pass
        else:
            if value is None or action.choices is None or value in action.choices:
                return value
            expected = f"one of {', '.join(action.choices)}"
    raise UserError(f"{action.dest}: found {value!r}, expected {expected}")
