"""Configuration: YAML files, dataclasses as schemas, and objects made from `{target, params}`.

A value is checked here and nowhere below: its type by OmegaConf, its range by the metadata that
`setting` or `limits` puts beside the type.
"""

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import math
import operator
import os
import re
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

BOUNDS = {  # in words, and as a comparison
    "min": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "max": ("at most", operator.le),
    "below": ("less than", operator.lt),
}
PRIMITIVES = (bool, int, float, str, Path)
PACKAGES = ("common", "tokenizer", "generator")
# Names in released files, and in files of earlier versions, and what they are called here.
ALIASES = {
    "tokenizer.models.tokenizer.EquivariantTokenizer": "tokenizer.lightning.TokenizerModule",
    "tokenizer.modules.losses.contperceptual.LPIPSWithDiscriminator": (
        "tokenizer.losses.objective.Objective"
    ),
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

_foreign_allowed = False


def load(paths: Paths, overrides: Sequence[str] = ()) -> DictConfig:
    """Read YAML files and merge them, later ones over earlier ones, then the overrides.

    An override is `dotted.key=value`, the value in YAML; a new key is allowed here, and refused
    where the configuration is used.

    Raises:
        UserError: naming the file or the override; also of a reference that leads nowhere.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    config = OmegaConf.create({})
    for file in files:
        try:
            found = OmegaConf.load(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise UserError(f"{file}: not a whole YAML file: {error}") from None
        if not isinstance(found, DictConfig) or not found:
            raise UserError(f"{file}: found no keys, expected a mapping of names to values")
        config = OmegaConf.merge(config, found)
    for override in overrides:
        key, _, value = override.partition("=")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
            OmegaConf.update(config, key, parsed, merge=True, force_add=True)
            if not key or "=" not in override:
                raise ValueError("no key or no value")
        except (
            yaml.YAMLError,
            OmegaConfBaseException,
            ValueError,
            TypeError,
            LookupError,
        ) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"override {override!r}: {reason}; expected key=value") from None
    _plain(config, ", ".join(map(str, files)))
    return config


def save(config: DictConfig | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `config` as YAML with all its references resolved, whole or not at all."""
    text = OmegaConf.to_yaml(OmegaConf.create(_plain(config, "config")))
    with replacing(path) as file:
        file.write(text.encode())


class limits(dict[str, Any]):
    """Bounds of a value, for `Annotated[int, limits(min=1)]`: `min`, `above`, `max`, `below`,
    `choices`. A sequence holds them for each of its items."""

    __hash__ = object.__hash__  # type: ignore[assignment]


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
        flag, alias: its name on the command line, if not that of the field, and another one.
        bare: its value where the flag is given without one.
        group: under which `--help` shows it.
        bounds: see `limits`.
    """
    names = {"help": help, "flag": flag, "alias": alias, "bare": bare, "group": group}
    return dataclasses.field(default=default, metadata={**names, **bounds})


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
    return _build(schema, _checked(schema, values, where), where)


def partial(schema: type, values: Any, where: str = "") -> dict[str, Any]:
    """Those fields of `schema` that `values` gives, checked as `structured` checks them."""
    return _checked(schema, values, where, complete=False)


@dataclasses.dataclass
class _Node:
    target: str
    params: dict[str, Any] | None = None


def instantiate(node: Mapping[str, Any] | DictConfig, where: str, **injected: Any) -> Any:
    """Build the object that a `{target: dotted.name, params: {...}}` node describes.

    Args:
        node: the node; `params` may be left out.
        where: the dotted key of the node, for messages.
        injected: further arguments of the constructor, which the node may not set itself.

    Raises:
        UserError: a target that is none of ours (see `allow_foreign_targets`), or a key of
            `params` that does not fit the constructor's signature.
    """
    found = structured(_Node, node, where)
    build, where, params = find(found.target, f"{where}.target"), f"{where}.params", found.params
    params = params or {}
    if found.target.startswith("tokenizer.data.imagenet."):  # as released, which means OpenCV's
        params = {"interpolation": "cv2_bilinear", **params}
    for key in injected.keys() & params.keys():
        raise UserError(f"{where}.{key}: set here, but the program sets it itself")
    arguments = _checked(build, params, where, given=injected)
    return _build(build, {**arguments, **injected}, where)


def allow_foreign_targets() -> None:
    """Let `target` name whatever Python can import, which runs code: for files one has written."""
    global _foreign_allowed
    _foreign_allowed = True


def find(name: str, where: str) -> Callable[..., Any]:
    """The class that a `target` names: a network, a data set, a data module or plain settings of
    ours, unless others are allowed."""
    module_name, _, attribute = ALIASES.get(name, name).rpartition(".")
    if module_name.partition(".")[0] not in PACKAGES and not _foreign_allowed:
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
    ours = inspect.isclass(found) and found.__module__.partition(".")[0] in PACKAGES
    ours = ours and (
        issubclass(found, nn.Module | Dataset)
        or hasattr(found, "train_dataloader")
        or dataclasses.is_dataclass(found)
    )
    if not callable(found) or not (ours or _foreign_allowed):
        raise UserError(f"{where}: found {name!r}, expected the dotted name of a class that exists")
    return found


def _checked(
    build: Callable[..., Any],
    values: Any,
    where: str,
    complete: bool = True,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """`values` converted and in range, as the fields or arguments of `build`; those that are
    `given` besides are left out, and `complete` asks for all that have no default."""
    values = _plain(values, where)
    schema = dataclasses.is_dataclass(build)
    function = build.__init__ if inspect.isclass(build) and not schema else build
    hints = typing.get_type_hints(function, include_extras=True)
    own: Sequence[dataclasses.Field] = dataclasses.fields(build) if schema else ()  # type: ignore[arg-type]
    metadata: dict[str, Mapping[str, Any]] = {f.name: f.metadata for f in own}
    parameters = [p for p in inspect.signature(build).parameters.values() if p.name not in given]
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not isinstance(values, Mapping):
        expected = f"a mapping with {', '.join(names)}"
        raise UserError(f"{where or 'configuration'}: found {values!r}, expected {expected}")
    shown = {n: _join(where, metadata.get(n, {}).get("flag") or n) for n in {*names, *values}}
    for key in values:
        if key not in names and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise UserError(f"{shown[key]}: unknown key{suggestion(str(key), names)}")
    for p in parameters:
        if complete and p.name in names and p.default is p.empty and p.name not in values:
            raise UserError(f"{shown[p.name]}: missing")
    kinds = {name: _kind(hints.get(name, Any)) for name in values}
    fields = [(name, kind) for name, kind in kinds.items() if kind is not Any]
    typed = {name: values[name] for name, _ in fields}
    try:
        merged = OmegaConf.merge(dataclasses.make_dataclass("Values", fields), typed)
        found = {**values, **OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)}
    except OmegaConfBaseException as error:
        name = re.split(r"[.\[]", error.full_key or "")[0]
        reason = str(error).partition("\n")[0]
        raise UserError(f"{shown.get(name, where)}: {reason}") from None
    for name, value in found.items():
        hint, bounds, optional = _unwrap(hints.get(name, Any), metadata.get(name, {}))
        if dataclasses.is_dataclass(hint) and not (optional and value is None):
            found[name] = structured(hint, value, shown[name])  # type: ignore[arg-type]
        elif value is not None:
            found[name] = tuple(value) if typing.get_origin(hint) is tuple else value
            check_range(value, bounds, shown[name])
    return found


def check_range(value: Any, bounds: Mapping[str, Any], where: str) -> None:
    """Refuse numbers that are not finite, and values outside `bounds` (see `limits`)."""
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
    for name, (text, holds) in BOUNDS.items():
        if name in bounds and not holds(value, bounds[name]):
            raise UserError(f"{where}: found {value}, expected {text} {bounds[name]}")


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


def _unwrap(hint: Any, bounds: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any], bool]:
    """A type hint without what is around it: the bounds that are added to `bounds`, and None."""
    optional = False
    while True:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            hint, bounds = arguments[0], {**arguments[1], **bounds}
        elif origin in (typing.Union, types.UnionType) and type(None) in arguments:
            hint = typing.Union[tuple(a for a in arguments if a is not type(None))]  # noqa: UP007
            optional = True
        elif origin is typing.Literal:
            return hint, {**bounds, "choices": arguments}, optional
        else:
            return hint, bounds, optional


def _kind(hint: Any) -> Any:
    """The part of a type hint that OmegaConf checks; what it does not know is Any."""
    hint, _, optional = _unwrap(hint, {})
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    kind: Any = Any
    if origin in PRIMITIVES:
        kind = origin
    elif origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        kind = list[_kind(arguments[0]) if arguments else Any]  # type: ignore[misc]
    elif origin in (dict, collections.abc.Mapping):
        kind = dict[str, Any]
    elif origin is typing.Literal:
        kind = type(arguments[0])
    elif origin in (typing.Union, types.UnionType) and set(arguments) <= set(PRIMITIVES):
        kind = typing.Union[arguments]  # noqa: UP007
    return typing.Optional[kind] if optional and kind is not Any else kind  # noqa: UP045


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
