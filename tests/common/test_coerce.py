from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import pytest

from common.coerce import Mismatch, coerce, describe


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        ("1e-4", float | None, 1e-4),
        ("1e-4", float | str, "1e-4"),
        (3, float | int, 3),
        (True, bool, True),
        ("x", str, "x"),
        (None, None, None),
        (None, Optional[int], None),  # noqa: UP045 (both spellings are met)
        ([1, 2], list, [1, 2]),
        ([1, "2e0"], list[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([1, 2], Sequence[int], [1, 2]),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ("res", Literal["res", "mid"], "res"),
        ("anything", Any, "anything"),
        ("anything", object, "anything"),
    ],
)
def test_values_that_serve(value, hint, result):
    found = coerce(value, hint)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("3", int),
        (3.0, int),
        (True, int),
        (True, float),
        ("small", float),
        (1, bool),
        ("true", bool),
        (1, str),
        (None, int),
        (0, None),
        ("ab", list[str]),
        ([1, "x"], list[int]),
        ([1, 2, 3], tuple[int, int]),
        (1, list[int] | None),
        ([1], dict),
        ("base", Literal["res", "mid"]),
    ],
)
def test_values_that_do_not(value, hint):
    with pytest.raises(Mismatch):
        coerce(value, hint)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (list[float] | None, "list[float] | None"),
        (Optional[str], "str | None"),  # noqa: UP045
        (Sequence[int], "Sequence[int]"),
        (Literal["a", "b"], "'a' | 'b'"),
    ],
)
def test_hints_as_a_user_reads_them(hint, text):
    assert describe(hint) == text
