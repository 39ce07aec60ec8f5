"""Configuration: YAML files, dataclasses as schemas, and objects made from `{target, params}`.

A value is checked here and nowhere below: its type by its hint, its range by the metadata that
`setting` or `limits` puts beside the hint.
"""

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
from typing import Any, TypeVar

import yaml
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException, ValidationError
from torch import nn
from torch.utils.data import Dataset

from common.errors import UserError, refused
from common.io import replacing

T = TypeVar("T")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

YAML = (".yaml", ".yml")
BOUNDS = {  # in words, and as a comparison
    "min": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "max": ("at most", operator.le),
    "below": ("less than", operator.lt),
    "choices": ("one of", lambda value, choices: value in choices),
}
CONVERTERS = {bool: BooleanNode(), int: IntegerNode(), float: FloatNode(), str: StringNode()}
PACKAGES = ("common", "tokenizer", "generator")
RELEASED = {  # names in released files, and what they are called here
    "tokenizer.models.tokenizer.EquivariantTokenizer": "tokenizer.lightning.TokenizerModule",
    "tokenizer.modules.losses.contperceptual.LPIPSWithDiscriminator": (
        "tokenizer.losses.objective.Objective"
    ),
    "tokenizer.lr_scheduler.LambdaWarmUpDecayScheduler": "common.schedule.WarmupDecay",
    "tokenizer.data.imagenet.ImageNetTrain": "common.data.imagenet.ImageNetTrain",
    "tokenizer.data.imagenet.ImageNetValidation": "common.data.imagenet.ImageNetValidation",
    "scripts.train_tokenizer.DataModuleFromConfig": "common.data.loader.DataModule",
}

_foreign_allowed = False


def load(paths: Paths, overrides: Sequence[str] = ()) -> DictConfig:
    """Read YAML files and merge them, later ones over earlier ones, then the overrides, which are
    `dotted.key=value`. A new key is allowed here, and refused where the configuration is used."""
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    config = OmegaConf.create({})
    for file in files:
        try:
            found = OmegaConf.load(file)
        except OSError as error:
            raise UserError(refused(error, file)) from None
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise UserError(f"{file}: not a whole YAML file: {error}") from None
        if not isinstance(found, DictConfig) or not found:
            raise UserError(f"{file}: found no keys, expected a mapping of names to values")
        config = OmegaConf.merge(config, found)
    for override in overrides:
        try:
            if override.find("=") < 1:
                raise ValueError("no key or no value")
            config.merge_with_dotlist([override])
        except Exception as error:  # YAML, OmegaConf and Python each refuse in their own ways
            reason = str(error).partition("\n")[0]
            raise UserError(f"override {override!r}: {reason}; expected key=value") from None
    _plain(config, ", ".join(map(str, files)))
    return config


def save(config: DictConfig | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `config` as YAML with all its references resolved, whole or not at all."""
    with replacing(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(_plain(config, "config"))).encode())


class limits(dict[str, Any]):
    """Bounds for `Annotated[int, limits(min=1)]`: `min`, `above`, `max`, `below`, `choices`; of a
    sequence, for each of its items."""

    __hash__ = object.__hash__  # type: ignore[assignment]


Positive = typing.Annotated[int, limits(min=1)]
Natural = typing.Annotated[int, limits(min=0)]
Fraction = typing.Annotated[float, limits(min=0, max=1)]


def setting(default: Any = dataclasses.MISSING, help: str = "", **more: Any) -> Any:
    """A field of a schema, with its bounds (see `limits`), and of its flag the `help`, the name
    (`flag`, if not the field's), another one (`alias`), and the `group` in `--help`."""
    return dataclasses.field(default=default, metadata={"help": help, "flag": None, **more})


def structured(build: Callable[..., T], values: Any, where: str = "", **injected: Any) -> T:
    """What the dataclass (or another class) `build` makes of plain values, all of them checked.

    An int serves as a float, and so does a string such as `1e-4` that YAML left as it was; a list
    serves as a tuple. Numbers are finite. Fields that are dataclasses are made in the same way.
    `where` is the dotted key of `values`, for messages; `--` for flags of the command line.
    Further arguments are `injected`, which the values may not set themselves.
    """
    if isinstance(build, type) and isinstance(values, build):
        return values  # type: ignore[return-value]
    given = {**_checked(build, values, where, injected), **injected}
    try:
        return build(**given)
    except UserError as error:  # its own message about a key is told with where that key is
        key = str(error).split(":")[0].split(".")[0]
        raise UserError(_join(where, str(error)) if key in given else str(error)) from None


def _node(target: str, params: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The keys of a node, for `structured` to check: its name and the arguments."""
    return target, params or {}


def instantiate(node: Mapping[str, Any] | DictConfig, where: str, **injected: Any) -> Any:
    """Build the object that a `{target: dotted.name, params: {...}}` node describes, whose
    dotted key is `where`; for `injected` see `structured`."""
    target, params = structured(_node, node, where)
    if target.startswith("tokenizer.data.imagenet."):  # as released: OpenCV's
        params = {"interpolation": "cv2_bilinear", **params}
    return structured(find(target, f"{where}.target"), params, f"{where}.params", **injected)


def allow_foreign_targets() -> None:
    """Let `target` name whatever Python can import, which runs code: for files one has written."""
    global _foreign_allowed
    _foreign_allowed = True


def find(name: str, where: str) -> Callable[..., Any]:
    """The class that a `target` names: one of ours (a network, a data set, a data module or plain
    settings), unless others are allowed."""
    module, _, attribute = RELEASED.get(name, name).rpartition(".")
    expected = f"expected a network, a data set or settings of {', '.join(PACKAGES)}"
    if module.partition(".")[0] not in PACKAGES and not _foreign_allowed:
        raise UserError(f"{where}: found {name!r}, {expected}, or --allow_foreign_targets")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: found {name!r}, which is not there ({error})") from None
    if _foreign_allowed and callable(found):
        return found
    ours = inspect.isclass(found) and found.__module__.partition(".")[0] in PACKAGES
    part = ours and (issubclass(found, nn.Module | Dataset) or hasattr(found, "train_dataloader"))
    if not part and not (ours and dataclasses.is_dataclass(found)):
        raise UserError(f"{where}: found {name!r}, {expected}")
    return found


def _checked(
    build: Callable[..., Any], values: Any, where: str, injected: Collection[str]
) -> dict[str, Any]:
    """`values` as arguments of `build`, each checked by its type hint: none that are `injected`,
    and all others without a default."""
    values, (named, others) = _plain(values, where), _parameters(build)
    if not isinstance(values, dict):
        expected = f"expected a mapping with {', '.join(named)}"
        raise UserError(f"{where or 'configuration'}: found {values!r}, {expected}")
    fields = dataclasses.fields(build) if dataclasses.is_dataclass(build) else ()
    metadata: dict[str, Any] = {field.name: field.metadata for field in fields}
    shown = {n: _join(where, metadata.get(n, {}).get("flag") or n) for n in {*named, *values}}
    checked = {}
    for key, value in values.items():
        if key in injected:
            raise UserError(f"{shown[key]}: set here, but the program sets it itself")
        if key not in named and not others:
            raise UserError(f"{shown[key]}: unknown key{suggestion(str(key), named)}")
        hint = named[key].annotation if key in named else Any
        checked[key] = convert(value, hint, metadata.get(key, {}), shown[key])
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in {*values, *injected}:
            raise UserError(f"{shown[name]}: missing")
    return checked


def _parameters(build: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of `build` by name, and whether it takes others too. What a constructor takes
    as `**options` are the parameters of its base class."""
    functions = [build]
    if inspect.isclass(build):
        functions = [vars(c)["__init__"] for c in build.__mro__ if "__init__" in vars(c)]
    named: dict[str, inspect.Parameter] = {}
    for function in functions:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
                named.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return named, False
    return named, True


def convert(value: Any, hint: Any, bounds: Mapping[str, Any], where: str) -> Any:
    """`value` as its type hint has it, the first one of several, and within `bounds` (see
    `limits`); what has a hint of another kind stays as it is."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Annotated:
        return convert(value, inner[0], {**inner[1], **bounds}, where)
    if kind in (typing.Union, types.UnionType):
        absent = value is None and type(None) in inner
        return None if absent else convert(value, inner[0], bounds, where)
    if dataclasses.is_dataclass(kind):
        return structured(kind, value, where)  # type: ignore[arg-type]
    if kind in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: found {value!r}, expected a list")
        return kind(convert(item, inner[0] if inner else Any, bounds, where) for item in value)
    if kind is dict and not isinstance(value, dict):
        raise UserError(f"{where}: found {value!r}, expected names and values")
    if kind is typing.Literal:
        kind, bounds = type(inner[0]), {"choices": inner}
    if kind not in CONVERTERS:
        return value
    try:
        if value is None:
            raise ValidationError
        value = CONVERTERS[kind].validate_and_convert(value)
    except ValidationError:
        raise UserError(f"{where}: found {value!r}, expected {kind.__name__}") from None
    if kind is float and not math.isfinite(value):
        raise UserError(f"{where}: found {value}, expected a finite number")
    for name, (text, holds) in BOUNDS.items():
        if name in bounds and not holds(value, bounds[name]):
            raise UserError(f"{where}: found {value!r}, expected {text} {bounds[name]}")
    return value


def suggestion(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the one that was meant, or all there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected some of {', '.join(known)}"


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
