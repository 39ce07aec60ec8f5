"""Command lines: one flag for each field of a schema, and one vocabulary with the YAML files."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from common import config
from common.errors import UserError

T = TypeVar("T")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description as it is written, and tells the default of every flag."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.default in (None, False, [], argparse.SUPPRESS) or "default" in text:
            return text
        return f"{text} (default %(default)s)".strip()


def new_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser that takes no abbreviated flags and shows `description` as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=HelpFormatter, allow_abbrev=False, **options
    )


def add_flags(
    parser: argparse.ArgumentParser, schema: type, only: Collection[str] | None = None
) -> None:
    """Add one flag for each field of the dataclass `schema`; one that is not given is None.

    Args:
        parser: to which the flags go, into the groups that the fields name.
        schema: fields made by `config.setting`.
        only: the fields to add; all of them if not given.
    """
    groups: dict[str | None, Any] = {None: parser}
    groups |= {g.title: g for g in parser._action_groups if g.title}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if only is not None and field.name not in only:
            continue
        metadata = field.metadata
        group = metadata.get("group")
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        name, text = _flag(field), metadata.get("help", "")
        hint = next((t for t in _options(hints[field.name]) if t is not type(None)), str)
        default = field.default
        if default is dataclasses.MISSING:
            text += " (needed)" if field.default_factory is dataclasses.MISSING else ""
        elif default is not None and "default" not in text:
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default {shown})"
        options: dict[str, Any] = {"dest": name, "default": None, "help": text.replace("%", "%%")}
        if hint is bool:
            parser_action: Any = argparse.BooleanOptionalAction
            groups[group].add_argument(f"--{name}", action=parser_action, **options)
            continue
        if typing.get_origin(hint) in (list, tuple):
            options["nargs"] = "+"
        if metadata.get("bare"):
            options |= {"nargs": "?", "const": metadata["bare"]}
        choices = metadata.get("choices")
        options["metavar"] = "{" + ",".join(map(str, choices)) + "}" if choices else _metavar(hint)
        names = [f"--{name}", *([f"--{metadata['alias']}"] if metadata.get("alias") else [])]
        groups[group].add_argument(*names, **options)


def read(
    schema: type[T],
    flags: argparse.Namespace,
    values: Mapping[str, Any] | None = None,
    where: str = "--",
) -> T:
    """The settings of `schema`: `values` underneath, over them the flags that are given.

    Raises:
        UserError: naming the flag that has a wrong value or is missing.
    """
    return config.structured(schema, {**(values or {}), **_given(schema, flags)}, where)


def given(schema: type, flags: argparse.Namespace, where: str = "--") -> dict[str, Any]:
    """The fields of `schema` that flags give, checked, by name."""
    return config.partial(schema, _given(schema, flags), where)


def accept_ignored(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Take flags of the released scripts that have no effect here; `parse` says so in one line.

    Args:
        parser: of the script.
        names: of the flags, without dashes; one that ends with `=` takes a value.
    """
    for name in names:
        nargs = "?" if name.endswith("=") else 0
        parser.add_argument(
            f"--{name.rstrip('=')}", nargs=nargs, action=_Ignored, help=argparse.SUPPRESS
        )


class _Ignored(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace._ignored = [*getattr(namespace, "_ignored", []), option_string]


def parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
    config_flag: str = "config",
    either: Sequence[Collection[str]] = (),
) -> argparse.Namespace:
    """Parse a command line, under it the YAML file that its `--config` names.

    A key of the file is the name of a flag, and has the effect of that flag before all others.

    Args:
        parser: of the script; without a flag of this name, there is no file.
        arguments: of the command line.
        config_flag: the flag that names the file.
        either: flags that take each other's place: one that is typed hides the others in the file.

    Raises:
        UserError: the file has a key that is no flag.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags_by_name = {
        name.removeprefix("--"): action
        for name, action in parser._option_string_actions.items()
        if name.startswith("--") and action.dest != "help"
    }
    words: list[str] = []
    for word in arguments:  # key=value is the same as --key=value
        key, equals, value = word.partition("=")
        if equals and key in flags_by_name:
            words += _words(flags_by_name[key], key, yaml.safe_load(value), "override")
        else:
            words.append(word)
    if config_flag in flags_by_name:
        file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        file.add_argument(f"--{config_flag}", dest="path")
        path = file.parse_known_args(words)[0].path
        typed = {word.partition("=")[0].removeprefix("--") for word in words}
        hidden = {k for names in either if typed & set(names) for k in names} - typed
        for key, value in reversed(list(_file(path, flags_by_name).items()) if path else []):
            if key not in hidden:
                words = _words(flags_by_name[key], key, value, path) + words
    flags = parser.parse_intermixed_args(words)
    ignored = vars(flags).pop("_ignored", None)
    if ignored:
        print(f"ignored, without effect here: {' '.join(dict.fromkeys(ignored))}", file=sys.stderr)
    return flags


def _file(path: str, flags: Collection[str]) -> dict[str, Any]:
    """The keys of a YAML file, each of which is the name of a flag."""
    values = OmegaConf.to_container(config.load(path))
    for key in values:
        if key not in flags:
            raise UserError(f"{path}: {key}: unknown key{config.suggestion(str(key), flags)}")
    return values


def _words(action: argparse.Action, key: str, value: Any, source: str) -> list[str]:
    """A value from YAML as words of a command line."""
    if value is None:
        return []
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise UserError(f"{source}: {key}: found {value!r}, expected true or false")
        off = f"--no-{key}"
        return [f"--{key}"] if value else [off] if off in action.option_strings else []
    if isinstance(value, dict):
        raise UserError(f"{source}: {key}: found {value!r}, expected a single value")
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]


def _given(schema: type, flags: argparse.Namespace) -> dict[str, Any]:
    values = {f.name: getattr(flags, _flag(f), None) for f in dataclasses.fields(schema)}
    return {name: value for name, value in values.items() if value is not None}


def _flag(field: dataclasses.Field) -> str:
    return field.metadata.get("flag") or field.name


def _options(hint: Any) -> tuple[Any, ...]:
    options = typing.get_args(hint)
    return options if options and type(None) in options else (hint,)


def _metavar(hint: Any) -> str:
    inner = typing.get_args(hint)
    kind = inner[0] if inner else hint
    return {int: "N", float: "X"}.get(kind, "TEXT").lower() if kind is not str else "NAME"
