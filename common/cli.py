"""Command lines: one flag for each field of a schema, and one vocabulary with the YAML files."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from omegaconf import OmegaConf

from common import config
from common.errors import UserError

T = TypeVar("T")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flag that lets configurations run code from anywhere, for `parse`."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the description's lines
    text = "run code that targets name anywhere"
    parser.add_argument("--allow_foreign_targets", action="store_true", help=text)
    return parser


def add_flags(parser: argparse.ArgumentParser, schema: type, without: Collection[str] = ()) -> None:
    """Add one flag for each field of the dataclass `schema` but for those `without`, into the
    groups that the fields name; one that is not given is None."""
    groups: dict[str | None, Any] = {group.title: group for group in parser._action_groups}
    for field in dataclasses.fields(schema):
        if field.name in without:
            continue
        metadata, default = field.metadata, field.default
        hint: Any = field.type
        if type(None) in typing.get_args(hint):
            hint = typing.get_args(hint)[0]
        items = typing.get_args(hint)  # of a list or tuple
        text = metadata["help"].replace("%", "%%")
        if default not in (None, dataclasses.MISSING) and "default" not in text:
            text += f" (default {' '.join(map(str, default)) if items else default})"
        shown = {int: "n", float: "x"}.get(items[0] if items else hint, "NAME")
        if "choices" in metadata:
            shown = "{" + ",".join(metadata["choices"]) + "}"
        options: dict[str, Any] = {"metavar": shown, "nargs": "+" if items else None}
        if hint is bool:
            options = {"action": argparse.BooleanOptionalAction}
        title = metadata.get("group")
        if title and title not in groups:
            groups[title] = parser.add_argument_group(title)
        options |= {"dest": field.name, "help": text}
        names = [metadata["flag"] or field.name, metadata.get("alias")]
        groups.get(title, parser).add_argument(*[f"--{n}" for n in names if n], **options)


def read(schema: type[T], flags: argparse.Namespace) -> T:
    """The settings of `schema` that flags give, checked; others have their defaults."""
    return config.structured(schema, given(schema, flags), "--")


def given(schema: type, flags: argparse.Namespace) -> dict[str, Any]:
    """The fields of `schema` that flags give, checked, by name."""
    values = {field: getattr(flags, field.name, None) for field in dataclasses.fields(schema)}
    return {
        f.name: config.convert(value, f.type, f.metadata, f"--{f.metadata['flag'] or f.name}")
        for f, value in values.items()
        if value is not None
    }


def accept_ignored(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Take flags of the released scripts that have no effect here; `parse` says so in one line.
    The name of one that takes a value ends with `=`."""
    for name in names:
        nargs: Any = "?" if name.endswith("=") else 0
        flag = f"--{name.rstrip('=')}"
        parser.add_argument(flag, nargs=nargs, action=_Ignored, help=argparse.SUPPRESS)


class _Ignored(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.ignored = dict.fromkeys([*getattr(namespace, "ignored", ()), option_string])


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line, under it the YAML file that its `--config` names, if it has one.

    A key of the file is the name of a flag, and has the effect of that flag before all others;
    `key=value` on the command line is the same as `--key=value`.
    """
    known = {
        name.removeprefix("--"): action
        for name, action in parser._option_string_actions.items()
        if name.startswith("--") and action.dest not in ("help", "allow_foreign_targets")
    }
    words: list[str] = []
    for word in sys.argv[1:] if arguments is None else arguments:
        key, equals, value = word.partition("=")
        words += _words(known[key], key, value) if equals and key in known else [word]
    file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file.add_argument("--config")
    path = file.parse_known_args(words)[0].config
    before: list[str] = []
    for key, value in OmegaConf.to_container(config.load(path)).items() if path else ():
        if key not in known:
            raise UserError(f"{path}: {key}: unknown key{config.suggestion(str(key), known)}")
        before += _words(known[key], key, value)
    flags = parser.parse_intermixed_args(before + words)
    if flags.allow_foreign_targets:
        config.allow_foreign_targets()
    if "ignored" in flags:
        print("ignored, without effect here:", *flags.ignored, file=sys.stderr)
    return flags


def _words(action: argparse.Action, key: str, value: Any) -> list[str]:
    """A value from YAML, or text, as words of a command line."""
    if value is None:
        return []
    if action.nargs == 0:  # a switch
        on = {"true": True, "false": False}.get(str(value).lower())
        if on is None:
            raise UserError(f"{key}: found {value!r}, expected true or false")
        off = f"--no-{key}"
        return [f"--{key}"] if on else [off] if off in action.option_strings else []
    return [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]
