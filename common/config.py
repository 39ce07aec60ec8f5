"""Configuration: YAML files, dataclasses as schemas, and objects made from `{target, params}`.

A value is checked here and nowhere below: its type by OmegaConf, its range by the metadata that
`setting` or `limits` puts beside the type.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.utils.data import Dataset

from common.errors import UserError
from common.io import replacing

T = TypeVar("T")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
# What an argument may be: its type hint, its bounds, and whether it must be given.
Entry = tuple[Any, Mapping[str, Any], bool]

BOUNDS = {  # in words, and as a comparison
    "min": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "max": ("at most", operator.le),
    "below": ("less than", operator.lt),
}
PACKAGES = ("common", "tokenizer", "generator")
# Names in released files, and in files of earlier versions, and what they are called here.
ALIASES = {
    "tokenizer.models.tokenizer.EquivariantTokenizer": "tokenizer.lightning.TokenizerModule",
    "tokenizer.modules.losses.contperceptual.LPIPSWithDiscriminator": (
        "tokenizer.losses.objective.Objective"
    ),
    "tokenizer.modules.losses.DummyLoss": "tokenizer.losses.objective.NoObjective",
    "tokenizer.lr_scheduler.LambdaWarmUpDecayScheduler": "common.schedule.WarmupDecay",
    "tokenizer.data.imagenet.ImageNetTrain": "common.data.ImageNetTrain",
    "tokenizer.data.imagenet.ImageNetValidation": "common.data.ImageNetValidation",
    "scripts.train_tokenizer.DataModuleFromConfig": "common.data.DataModule",
    "tokenizer.objective.Objective": "tokenizer.losses.objective.Objective",
    "common.datamodule.DataModule": "common.data.DataModule",
    "common.datasets.ImageFolder": "common.data.ImageFolder",
    "common.lists.ImageList": "common.data.ImageList",
    "common.imagenet.ImageNetTrain": "common.data.ImageNetTrain",
    "common.imagenet.ImageNetValidation": "common.data.ImageNetValidation",
}
# What a released name means beyond ours: the released stage one resizes by cv2.
IMPLIED = {
    "tokenizer.data.imagenet.ImageNetTrain": {"interpolation": "cv2_bilinear"},
    "tokenizer.data.imagenet.ImageNetValidation": {"interpolation": "cv2_bilinear"},
}

_foreign_allowed = False


def load(paths: Paths, overrides: Sequence[str] = ()) -> DictConfig:
    """Read YAML files and merge them, later ones over earlier ones, then the overrides.

    Args:
        paths: one file or several.
        overrides: `dotted.key=value`, the value in YAML; a new key is allowed here, and refused
            where the configuration is used.

    Raises:
        UserError: naming the file or the override; also of a reference that leads nowhere.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    config = OmegaConf.create({})
    for file in files:
        config = OmegaConf.merge(config, _read(Path(file)))
    for override in overrides:
        _override(config, override)
    _plain(config, ", ".join(map(str, files)))
    return config


def save(config: DictConfig | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `config` as YAML with all its references resolved, whole or not at all."""
    text = OmegaConf.to_yaml(OmegaConf.create(_plain(config, "config")))
    with replacing(path) as file:
        file.write(text.encode())


class Bounds(dict[str, Any]):
    """What `limits` gives; a type hint must be hashable, with what is beside it."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def limits(**bounds: Any) -> Bounds:
    """Bounds of a value, for `Annotated[int, limits(min=1)]`: `min`, `above`, `max`, `below`,
    `choices`. A sequence holds them for each of its items."""
    assert bounds.keys() <= {*BOUNDS, "choices"}, bounds
    return Bounds(bounds)


Positive = typing.Annotated[int, limits(min=1)]
Natural = typing.Annotated[int, limits(min=0)]
Fraction = typing.Annotated[float, limits(min=0, max=1)]


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    flag: str | None = None,
    alias: str | None = None,
    bare: str | None = None,
    group: str | None = None,
    **bounds: Any,
) -> Any:
    """A field of a schema.

    Args:
        default: without one, the setting must be given.
        help: what it is, as `--help` says it.
        flag: its name on the command line, if that is not the name of the field.
        alias: another name there.
        bare: its value where the flag is given without one.
        group: under which `--help` shows it.
        bounds: see `limits`.
    """
    names = {"flag": flag, "alias": alias, "bare": bare, "group": group}
    metadata = {"help": help, **names, **limits(**bounds)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def structured(schema: type[T], values: Any, where: str = "") -> T:
    """An instance of the dataclass `schema` from plain values, all of them checked.

    An int serves as a float, and so does a string such as `1e-4` that YAML left as it was; a list
    serves as a tuple. Numbers are finite. Fields that are dataclasses are made in the same way.

    Args:
        schema: fields with type hints, and with bounds by `setting`.
        values: a mapping, or an instance, which is returned as it is.
        where: the dotted key of `values`, for messages; `--` for flags of the command line.

    Raises:
        UserError: naming a key that is unknown, missing, of another type or out of its range.
    """
    if isinstance(values, schema):
        return values
    return _build(schema, _checked(_entries(schema), values, where), where)


def partial(schema: type, values: Any, where: str = "") -> dict[str, Any]:
    """Those fields of `schema` that `values` gives, checked as `structured` checks them."""
    entries = {k: (hint, bounds, False) for k, (hint, bounds, _) in _entries(schema).items()}
    return _checked(entries, values, where)


def instantiate(node: Mapping[str, Any] | DictConfig, where: str, **injected: Any) -> Any:
    """Build the object that a `{target: dotted.name, params: {...}}` node describes.

    Args:
        node: the node; `params` may be left out.
        where: the dotted key of the node, for messages.
        injected: further arguments of the constructor, which the node may not set itself.

    Raises:
        UserError: a target that is none of ours (see `allow_foreign_targets`), or a key of
            `params` that is unknown, missing or of a type that the constructor does not declare.
    """
    entries = {"target": (str, {}, True), "params": (dict[str, Any] | None, {}, False)}
    node = _checked(entries, node, where)
    build = find(node["target"], f"{where}.target")
    params = {**IMPLIED.get(node["target"], {}), **(node.get("params") or {})}
    return construct(build, params, f"{where}.params", **injected)


def construct(build: Callable[..., T], params: Any, where: str, **injected: Any) -> T:
    """Call `build` with `params`, checked by its signature, and with what is `injected`.

    Raises:
        UserError: naming a key of `params` that is unknown, missing, of a type or out of a range
            that the signature does not declare, or injected.
    """
    for key in injected:
        if key in params:
            raise UserError(f"{where}.{key}: set here, but the program sets it itself")
    if dataclasses.is_dataclass(build):
        return structured(build, {**params, **injected}, where)  # type: ignore[return-value]
    signature = inspect.signature(build).parameters.values()
    function = build.__init__ if inspect.isclass(build) else build
    hints = typing.get_type_hints(function, include_extras=True)
    entries = {
        p.name: (hints.get(p.name, Any), {}, p.default is p.empty)
        for p in signature
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in injected
    }
    if any(p.kind is p.VAR_KEYWORD for p in signature):
        entries = {**{key: (Any, {}, False) for key in params}, **entries}
    arguments = _checked(entries, params, where)
    return _build(build, {**arguments, **injected}, where)


def allow_foreign_targets() -> None:
    """Let `target` name whatever Python can import, which runs code: for files one has written."""
    global _foreign_allowed
    _foreign_allowed = True


def find(name: str, where: str) -> Callable[..., Any]:
    """The class that a `target` names: a module or data set of ours, unless others are allowed.

    Raises:
        UserError: there is none of this name.
    """
    module_name, _, attribute = ALIASES.get(name, name).rpartition(".")
    ours = module_name.partition(".")[0] in PACKAGES
    if not ours and not _foreign_allowed:
        raise UserError(
            f"{where}: found {name!r}, expected a class of {', '.join(PACKAGES)}; "
            "--allow_foreign_targets runs code from anywhere that a file names"
        )
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ValueError:  # no module before the name
        found = None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it needs is not installed
        found = None
    if not callable(found) or not (_foreign_allowed or _is_part(found)):
        raise UserError(f"{where}: found {name!r}, expected the dotted name of a class that exists")
    return found


def _is_part(found: Any) -> bool:
    """Whether this is a class of ours that files describe: a network, data, or plain settings."""
    if not inspect.isclass(found) or found.__module__.partition(".")[0] not in PACKAGES:
        return False
    kinds = issubclass(found, nn.Module | Dataset) or hasattr(found, "train_dataloader")
    return kinds or dataclasses.is_dataclass(found)


def _entries(schema: type) -> dict[str, Entry]:
    """The fields of a dataclass."""
    hints, nothing = typing.get_type_hints(schema, include_extras=True), dataclasses.MISSING
    return {
        field.name: (
            hints[field.name],
            field.metadata,
            field.default is nothing and field.default_factory is nothing,
        )
        for field in dataclasses.fields(schema)
        if field.init
    }


def _checked(entries: Mapping[str, Entry], values: Any, where: str) -> dict[str, Any]:
    """Those of `entries` that `values` gives, converted and in range."""
    values = _plain(values, where)
    if not isinstance(values, Mapping):
        expected = f"a mapping with {', '.join(entries)}"
        raise UserError(f"{where or 'configuration'}: found {values!r}, expected {expected}")
    for key in values:
        if key not in entries:
            raise UserError(f"{_join(where, key)}: unknown key{suggestion(str(key), entries)}")
    for name, (hint, bounds, required) in entries.items():
        if required and name not in values:
            shown = _join(where, bounds.get("flag") or name)
            raise UserError(f"{shown}: missing; expected {_describe(hint)}")
    return {
        name: _convert(
            value, *entries[name][:2], _join(where, entries[name][1].get("flag") or name)
        )
        for name, value in values.items()
    }


def _convert(value: Any, hint: Any, bounds: Mapping[str, Any], where: str) -> Any:
    """`value` as `hint` declares it, in range."""
    origin, arguments = _origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = {k: v for extra in (*arguments[1:], bounds) for k, v in extra.items()}
        return _convert(value, arguments[0], bounds, where)
    if origin is typing.Union and type(None) in arguments:
        if value is None:
            return None
        return _convert(value, typing.Union[_without_none(arguments)], bounds, where)  # noqa: UP007
    if dataclasses.is_dataclass(hint):
        return structured(hint, value, where)  # type: ignore[arg-type]
    if origin is typing.Literal:
        bounds = {**bounds, "choices": arguments}
    kind = _plain_type(hint)
    if kind is not Any:
        schema = OmegaConf.structured(dataclasses.make_dataclass("Value", [("value", kind)]))
        try:
            merged = OmegaConf.merge(schema, {"value": value})
            value = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)["value"]
        except (OmegaConfBaseException, ValueError, TypeError):
            found = f"{value!r} ({type(value).__name__})"
            raise UserError(f"{where}: found {found}, expected {_describe(hint)}") from None
    if origin is tuple:
        if Ellipsis not in arguments and len(arguments) != len(value):
            raise UserError(f"{where}: found {value!r}, expected {len(arguments)} values")
        value = tuple(value)
    check_range(value, bounds, where)
    return value


def check_range(value: Any, bounds: Mapping[str, Any], where: str) -> None:
    """Refuse numbers that are not finite, and values outside `bounds` (see `limits`).

    Raises:
        UserError: naming `where`.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            check_range(item, {}, _join(where, key))
        return
    if isinstance(value, list | tuple):
        for item in value:
            check_range(item, bounds, where)
        return
    if "choices" in bounds and value not in bounds["choices"]:
        choices = ", ".join(map(str, bounds["choices"]))
        raise UserError(f"{where}: found {value!r}, expected one of {choices}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise UserError(f"{where}: found {value}, expected a finite number")
    if not all(holds(value, bounds[name]) for name, (_, holds) in BOUNDS.items() if name in bounds):
        expected = [
            f"{text} {bounds[name]}" for name, (text, _) in BOUNDS.items() if name in bounds
        ]
        raise UserError(f"{where}: found {value}, expected {' and '.join(expected)}")


def suggestion(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the one that was meant, or all there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected some of {', '.join(known)}"


def _build(build: Callable[..., T], arguments: Mapping[str, Any], where: str) -> T:
    """Call a constructor; its own message about a key is told with where that key is."""
    try:
        return build(**arguments)
    except UserError as error:
        key = str(error).split(":")[0].split(".")[0]
        raise UserError(_join(where, str(error)) if key in arguments else str(error)) from None


def _plain_type(hint: Any) -> Any:
    """The part of a type hint that OmegaConf checks; what it does not know is Any."""
    origin, arguments = _origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _plain_type(arguments[0])
    if origin in (bool, int, float, str, Path):
        return origin
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return list[_plain_type(arguments[0]) if arguments else Any]  # type: ignore[misc]
    if origin in (dict, collections.abc.Mapping):
        return dict[str, Any]
    if origin is typing.Literal and len({type(option) for option in arguments}) == 1:
        return type(arguments[0])
    if origin is typing.Union and all(o in (bool, int, float, str, type(None)) for o in arguments):
        return typing.Union[arguments]  # noqa: UP007
    return Any


def _without_none(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(argument for argument in arguments if argument is not type(None))


def _origin(hint: Any) -> Any:
    origin = typing.get_origin(hint) or hint
    return typing.Union if origin is types.UnionType else origin


def _describe(hint: Any) -> str:
    """A type hint as a user reads it: `int`, `list[float] | None`."""
    if _origin(hint) is typing.Annotated:
        return _describe(typing.get_args(hint)[0])
    if _origin(hint) is typing.Union:
        return " | ".join(map(_describe, typing.get_args(hint)))
    plain = hint if typing.get_args(hint) else getattr(hint, "__name__", hint)
    return str(plain).replace("typing.", "").replace("collections.abc.", "")


def _read(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read this configuration ({error.strerror})") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole YAML file: {error}") from None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{path}: found no keys in it, expected a mapping of names to values")
    return config


def _override(config: DictConfig, override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: expected dotted.key=value")
    try:
        value = OmegaConf.from_dotlist([f"value{override[len(key) :]}"])
        value = OmegaConf.to_container(value, resolve=False)["value"]
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"override {override!r}: {reason}; expected dotted.key=value") from None


def _plain(node: Any, where: str) -> Any:
    """Plain dictionaries and lists, all references resolved."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{where}: {str(error) or 'a loop of references'}") from None


def _join(where: str, key: Any) -> str:
    return f"{where}{key}" if where == "--" else f"{where}.{key}" if where else str(key)
