"""Configuration files, and objects made from `{target, params}` nodes that are checked first."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.coerce import Mismatch, coerce, describe
from common.errors import UserError
from common.io import replacing

# Names that released configuration files use, and what they are called here.
ALIASES = {
    "tokenizer.models.tokenizer.EquivariantTokenizer": "tokenizer.lightning.TokenizerModule",
    "tokenizer.modules.losses.contperceptual.LPIPSWithDiscriminator": (
        "tokenizer.losses.objective.Objective"
    ),
    "scripts.train_tokenizer.DataModuleFromConfig": "common.data.loader.DataModule",
    "tokenizer.data.imagenet.ImageNetTrain": "common.data.imagenet.ImageNetTrain",
    "tokenizer.data.imagenet.ImageNetValidation": "common.data.imagenet.ImageNetValidation",
}

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def load(paths: Paths, overrides: Sequence[str] = ()) -> DictConfig:
    """Read YAML files and merge them, later ones over earlier ones, then the overrides.

    Args:
        paths: one file or several.
        overrides: `dotted.key=value`, the value in YAML; a new key is allowed here, and refused
            where the configuration is used.

    Raises:
        UserError: naming the file or the override.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    config = OmegaConf.create({})
    for file in files:
        config = OmegaConf.merge(config, _read(Path(file)))
    for override in overrides:
        _override(config, override)
    return config


def save(config: DictConfig | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `config` as YAML with all its references resolved, whole or not at all."""
    text = OmegaConf.to_yaml(OmegaConf.create(_plain(config, "config")))
    with replacing(path) as file:
        file.write(text.encode())


def check_keys(node: Mapping[str, Any] | DictConfig, allowed: Collection[str], where: str) -> None:
    """Refuse keys of a mapping that nobody reads.

    Raises:
        UserError: `node` is no mapping, or has a key that is not in `allowed`.
    """
    if not isinstance(node, Mapping | DictConfig):
        raise UserError(f"{where}: found {node!r}, expected a mapping with {_names(allowed)}")
    for key in node:
        if key not in allowed:
            raise UserError(f"{_join(where, key)}: unknown key{_hint(str(key), allowed)}")


def instantiate(node: Mapping[str, Any] | DictConfig, where: str, **injected: Any) -> Any:
    """Build the object that a `{target: dotted.name, params: {...}}` node describes.

    Args:
        node: the node; `params` may be left out.
        where: the dotted key of the node, for messages.
        injected: further arguments of the constructor, which the node may not set itself.

    Raises:
        UserError: an unknown target, or a key of `params` that is unknown, missing or of a type
            that the constructor does not declare.
    """
    node = _plain(node, where)
    check_keys(node, ("target", "params"), where)
    name = node.get("target")
    if not isinstance(name, str):
        raise UserError(f"{where}.target: found {name!r}, expected the dotted name of a class")
    build = _find(ALIASES.get(name, name), f"{where}.target")
    params = node.get("params")
    params = {} if params is None else params
    return build(**_arguments(build, params, injected, f"{where}.params"), **injected)


def _arguments(
    build: Callable[..., Any], params: Any, injected: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """`params` as the arguments of `build`, simple types checked and converted."""
    signature = inspect.signature(build).parameters.values()
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature)
    named = {p.name: p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    free = [name for name in named if name not in injected]

    if not open_ended:
        for name in injected:
            if name not in named:
                raise UserError(f"{where}: {build.__name__} takes no {name!r}, which it is given")
        check_keys(params, free, where)
    elif not isinstance(params, dict):
        check_keys(params, free, where)
    for name in params:
        if name in injected:
            raise UserError(f"{where}.{name}: set here, but the program sets it itself")

    hints = _type_hints(build)
    for name in free:
        if named[name].default is inspect.Parameter.empty and name not in params:
            expected = f"; expected {describe(hints[name])}" if name in hints else ""
            raise UserError(f"{where}.{name}: missing{expected}")

    arguments = {}
    for name, value in params.items():
        try:
            arguments[name] = coerce(value, hints[name]) if name in hints else value
        except Mismatch:
            raise UserError(
                f"{where}.{name}: found {value!r} ({type(value).__name__}), "
                f"expected {describe(hints[name])}"
            ) from None
    return arguments


def _type_hints(build: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        return {}


def _find(name: str, where: str) -> Callable[..., Any]:
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        if not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module is there, and something that it needs is not installed
        module = None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"{where}: found {name!r}, expected the dotted name of a class that exists")
    return found


def _read(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read this configuration ({error.strerror})") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: found a list or a single value, expected a mapping")
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
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {error}") from None


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _hint(name: str, allowed: Collection[str]) -> str:
    close = difflib.get_close_matches(name, [str(key) for key in allowed], n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected {_names(allowed)}"


def _names(allowed: Collection[str]) -> str:
    return f"some of {', '.join(map(str, allowed))}" if allowed else "no keys"
