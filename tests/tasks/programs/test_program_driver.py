from __future__ import annotations

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tasks.programs.program_driver import decode, encode

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    """With an equality and a representation of its own."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__

    def __repr__(self) -> str:
        return "anything"


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -7, 10**30, 1.5, -0.0, math.inf, "", "a\n\"'", "\ud800é", b"\x00\xff", 2 + 3j, [], (), set(), frozenset(), {},
        [1, "a", None, 1.5, True], [[1, [2, [3]]], []], (1, (2,), [3]), {1, 2, "a", (3, frozenset([4]))},
        {"a": 1, 2: [3], (4, 5): {6: 7}}, [[True], 1], 7**20_000, [7**20_000], -(7**20_000), range(3),
        Decimal("1.10"), Fraction(1, 3), date(2026, 1, 2), timedelta(1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_value_comes_back_as_it_went(value: Any) -> None:
    back = there_and_back(value)
    if isinstance(value, range | Decimal | Fraction | date | timedelta):
        assert (back.type_name, back.text) == (type(value).__name__, repr(value))
    else:
        assert back == value and type(back) is (frozenset if isinstance(value, set) else type(value))


def test_long_integer_is_not_written_in_decimal() -> None:
    """int() refuses more than 4300 decimal digits, and takes quadratic time for them."""
    assert encode(1 << 20_000) == {"int": hex(1 << 20_000)}
    assert decode({"int": "0x" + "f" * 10**6}) == (1 << 4 * 10**6) - 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, 1),
        (Text("x"), "x"),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Point(1, 2), (1, 2)),
        (bytearray(b"a"), b"a"),
    ],
)
def test_subclass_becomes_the_plain_type(value: Any, plain: Any) -> None:
    back = there_and_back(value)
    assert back == plain and type(back) is type(plain)


@pytest.mark.parametrize("value", [object(), iter([]), (x for x in []), deque([1]), len, [object()], {1: iter([])}, int, {}.keys()])
def test_what_is_no_plain_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="gave no plain value but "):
        encode(value)


def test_value_nested_too_deep_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError, match="nested too deep"):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"a": 1}, {"int": 1}, {"int": "z"}, {"int": None, "set": []}, {"tuple": 1}, {"set": [[]]}, {"set": [{"dict": []}]},
        {"dict": [1]},
        {"dict": [[[], 1]]}, {"complex": [1, 2, 3]}, {"complex": 1}, {"bytes": 1}, {"bytes": "\u0100"}, {"written": []}, {"written": 1},
        {"__class__": []},
    ],
)  # fmt: skip
def test_data_that_are_never_made_are_refused(data: Any) -> None:
    with pytest.raises(ValueError):
        decode(data)
