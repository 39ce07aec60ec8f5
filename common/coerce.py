"""Values from YAML against the simple type hints of a constructor."""

from __future__ import annotations

import collections.abc
import types
import typing
from typing import Any

SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)


class Mismatch(TypeError):
    """A value that its type hint does not allow."""


def coerce(value: Any, hint: Any) -> Any:
    """`value` as the type that `hint` asks for.

    An int serves as a float, and so does a string such as `1e-4` that YAML left as it was; a list
    serves as a tuple. A bool is not an int. Hints other than int, float, bool, str, None,
    literals, sequences, mappings and unions of these allow every value.

    Raises:
        Mismatch: `hint` does not allow `value`.
    """
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if origin is typing.Literal:
        return _require(value in typing.get_args(hint), value)
    if origin in (None, type(None)):
        return _require(value is None, value)
    if origin in (bool, str):
        return _require(isinstance(value, origin), value)
    if origin is int:
        return _require(_is_int(value), value)
    if origin is float:
        return _to_float(value)
    if origin in SEQUENCES:
        return _coerce_sequence(value, hint, origin)
    if origin in MAPPINGS:
        return _require(isinstance(value, dict), value)
    return value


def describe(hint: Any) -> str:
    """A type hint as a user reads it: `int`, `list[float] | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(repr(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if typing.get_args(hint):
        return str(hint).replace("typing.", "").replace("collections.abc.", "")
    return getattr(hint, "__name__", str(hint))


def _coerce_union(value: Any, options: tuple[Any, ...]) -> Any:
    results = []
    for option in options:
        try:
            results.append(coerce(value, option))
        except Mismatch:
            continue
    if not results:
        raise Mismatch
    # An option that takes the value as it is goes before one that converts it.
    return next((result for result in results if type(result) is type(value)), results[0])


def _coerce_sequence(value: Any, hint: Any, origin: Any) -> Any:
    _require(isinstance(value, list | tuple), value)
    items = typing.get_args(hint)
    if origin is tuple and items and items[-1] is not Ellipsis:
        _require(len(value) == len(items), value)
        return tuple(coerce(item, kind) for item, kind in zip(value, items, strict=True))
    kind = items[0] if items else Any
    converted = [coerce(item, kind) for item in value]
    return tuple(converted) if origin is tuple else converted


def _to_float(value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise Mismatch from None
    return float(_require(isinstance(value, float) or _is_int(value), value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, value: Any) -> Any:
    if not holds:
        raise Mismatch
    return value
