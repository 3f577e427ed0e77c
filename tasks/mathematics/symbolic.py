r"""Whether two expressions are equal as functions of their symbols, by Math-Verify and sympy. This is the slow rung.

    same_value(parse(r"\sin^2 x"), parse(r"1 - \cos^2 x"))   ->  True

Only what `refusal` lets pass comes here: no towers of powers, no factorials of factorials, nothing large. What passes
may still run forever, so it belongs in a process that is killed at a deadline (`actors.verifier`), never in a thread.

The parser is Math-Verify's. It reads LaTeX that is written from our nodes; no text of a model is evaluated or
sympified. If both sides can be computed to 50 digits at fixed points, these numbers decide, because Math-Verify's own
comparison takes 10^-30 for 10^-40, rounds decimals to six places, and misses some identities. Otherwise it decides."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tasks.mathematics.exact import rational_value
from tasks.mathematics.nodes import Node, latex, number, walk
from tasks.mathematics.words import words

__all__ = ["Unparsable", "close_value", "proportional", "refusal", "same_value", "warm_up"]

MAX_NODES = 200
MAX_DIGITS = 40
MAX_EXPONENT = 100  # if the base is a number or a symbol
MAX_EXPONENT_OF_SUM = 12
MAX_FACTORIAL = 100
_DIGITS = 50  # more than MAX_DIGITS, so an approximation never equals the value
_TOLERANCE = 1e-45  # relative
_NUM_POINTS = 6
_NUM_ENOUGH = 2  # points at which both sides have a value, to decide
_COARSE_BITS = 10

_EXPRESSIONS = words("""
number repeating mixed symbol sum product quotient power root function base negative factorial absolute percent degrees subscripted binomial
""")
_NO_VARIABLES = frozenset(("\\infty", "\\ldots", "\\varnothing", "\\angle", "\\triangle"))
_WARM_UP = (r"\frac{x+1}{2}", r"\sqrt{3}+x^{2}", r"\sin(x)\cdot \log(y)", r"e^{i}-(2\cdot x)", r"\binom{n}{k}+n!", r"|x|\cdot \pi")


class Unparsable(ValueError):
    """Math-Verify's parser does not read an expression. The message says which."""


def refusal(node: Node) -> str | None:
    """Return why `node` is kept from sympy (it is no expression, or something in it is too large), or None."""
    found = list(walk(node))
    if len(found) > MAX_NODES:
        return f"an expression of {len(found)} parts, more than {MAX_NODES}"
    return next((reason for part in found if (reason := _refusal_of_one(part)) is not None), None)


def same_value(first: Node, second: Node) -> bool:
    """Return whether both are equal wherever both have real values. Neither may have a `refusal`. The call may run for
    long. Raises Unparsable."""
    found, other = _parsed(first, second)
    decided = _agree(found, other, ratio=False)
    if decided is not None:
        return decided
    from math_verify import verify

    return bool(verify(found, other, timeout_seconds=None))


def close_value(first: Node, second: Node, *, rounding: int) -> bool:
    """Return whether two values differ by at most half a unit of the decimal place `rounding`."""
    from mpmath import mp

    found, other = _parsed(first, second)
    if found.free_symbols or other.free_symbols:
        return same_value(first, second)
    with mp.workdps(_DIGITS):
        value, other_value = (_value(each, {}, is_complex=True) for each in (found, other))
        return value is not None and other_value is not None and bool(abs(value - other_value) * 2 * 10**rounding <= 1 + _TOLERANCE)


def proportional(first: Node, second: Node, *, is_positive: bool = False) -> bool:
    """Return whether one is a multiple of the other by a number that is not 0, or by a positive one. Two equations say
    the same if the differences of their sides are proportional."""
    return _agree(*_parsed(first, second), ratio=True, is_positive=is_positive) is True


def warm_up() -> None:
    """Import sympy and fill the parser's caches, so that the first answer need not wait two seconds for it."""
    for text in _WARM_UP:
        _parse(text, is_real=True)


def _refusal_of_one(node: Node) -> str | None:
    match node.head:
        case "number" if len(node.text) > MAX_DIGITS:
            return f"a number of {len(node.text)} digits, more than {MAX_DIGITS}"
        case "symbol" if node.text in _NO_VARIABLES or "mathbb" in node.text or "'" in node.text:
            return f"'{node.text}' has no value"
        case "function" if node.text == "\\overline":
            return "a bar has no value"
        case "power":
            return _refusal_of_power(*node.parts)
        case "root" if (index := rational_value(node.parts[1])) is None or index.denominator != 1 or not 2 <= index <= MAX_EXPONENT_OF_SUM:
            return "a root of no small index"
        case "factorial" | "binomial":
            return next((reason for part in node.parts if (reason := _refusal_of_count(part)) is not None), None)
        case head if head not in _EXPRESSIONS:
            return f"a {head} is no expression"
    return None


def _refusal_of_power(base: Node, exponent: Node) -> str | None:
    value = rational_value(exponent)
    if value is not None:
        largest = MAX_EXPONENT if base.head in ("number", "symbol", "subscripted", "function") else MAX_EXPONENT_OF_SUM
        return f"an exponent beyond {largest}" if max(abs(value.numerator), value.denominator) > largest else None
    return next((f"a {part.head} in an exponent" for part in walk(exponent) if part.head in ("power", "factorial", "binomial")), None)


def _refusal_of_count(node: Node) -> str | None:
    value = rational_value(node)
    if value is not None:
        return None if value <= MAX_FACTORIAL else f"a factorial beyond {MAX_FACTORIAL}"
    return next((f"a {part.head} in a factorial" for part in walk(node) if part.head in ("power", "factorial", "binomial")), None)


# ---- sympy
def _parsed(first: Node, second: Node) -> tuple[Any, Any]:
    """Parse both. Their symbols are real unless i occurs in one of them."""
    is_real = not any(part == Node("symbol", text="i") for node in (first, second) for part in walk(node))
    found, other = (_parse(latex(_plain(node)), is_real=is_real) for node in (first, second))
    return found, other


@lru_cache(maxsize=256)
def _parse(text: str, *, is_real: bool) -> Any:
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its timeouts are off
    config = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
    try:
        return latex2sympy(text, is_real=is_real, convert_degrees=False, normalization_config=None, conversion_config=config).doit()
    except Exception as error:  # the parser raises plain Exceptions, and sympy errors of any class
        raise Unparsable(f"'{text[:80]}' is not read as an expression: {type(error).__name__}") from None


def _plain(node: Node) -> Node:
    """Return `node` with its decimals, mixed numbers, percentages and degrees as fractions: nothing is rounded. The
    parser takes "I" for the imaginary unit and "i" for a variable; here it is the other way round."""
    if node.head == "symbol":
        return Node("symbol", text={"i": "I", "I": "\\Upsilon"}.get(node.text, node.text))
    if node.head in ("number", "repeating", "mixed"):
        value = rational_value(node)
        if value is None:
            return node
        numerator, denominator = number(value.numerator), number(value.denominator)
        return numerator if value.denominator == 1 else Node("quotient", (numerator, denominator))
    parts = tuple(_plain(part) for part in node.parts)
    if node.head == "percent":
        return Node("quotient", (parts[0], number(100)))
    if node.head == "degrees":
        return Node("quotient", (Node("product", (parts[0], Node("symbol", text="\\pi"))), number(180)))
    return Node(node.head, parts, node.text)


def _agree(first: Any, second: Any, *, ratio: bool, is_positive: bool = False) -> bool | None:
    """Return whether the values, or with `ratio` their quotients, agree at all points; None if too few points can tell.
    A point is skipped if one of them has no value there, or a value that is not real although i does not occur. So ln
    x² and 2 ln x are equal."""
    from mpmath import mp
    from sympy import I

    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    is_complex = first.has(I) or second.has(I)
    quotient: Any = None
    num_compared = 0
    with mp.workdps(_DIGITS):
        for point in _points(symbols):
            found, other = _value(first, point, is_complex=is_complex), _value(second, point, is_complex=is_complex)
            if found is None or other is None or (ratio and not found and not other):
                continue
            if ratio:
                if not found or not other:
                    return False
                quotient = found / other if quotient is None else quotient
                if is_positive and quotient.real < 0:
                    return False
                other *= quotient
            if abs(found - other) > _TOLERANCE * max(abs(found), abs(other)):
                return False
            num_compared += 1
    return True if num_compared >= (_NUM_ENOUGH if symbols else 1) else None


def _points(symbols: Sequence[Any]) -> list[Mapping[Any, Any]]:
    """Return fixed fractions of both signs. No two symbols have the same value at a point."""
    from sympy import Rational

    if not symbols:
        return [{}]

    def at(point: int, place: int) -> Any:
        return Rational((-1) ** (point * (place + 1) // 2) * (17 * place + 7 * point + 5), 11 + 3 * point)

    return [{symbol: at(point, place) for place, symbol in enumerate(symbols)} for point in range(_NUM_POINTS)]


def _value(expression: Any, point: Mapping[Any, Any], *, is_complex: bool) -> Any:
    """Return the value at `point` as a number of mpmath, or None if there is none, or none that is real."""
    from mpmath import mp, mpc

    try:
        found = expression.subs(point).evalf(_DIGITS)
    except (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError):  # sympy may raise any of these
        return None
    if not getattr(found, "is_number", False) or not found.is_finite:
        return None
    parts = found.as_real_imag()
    if not all(part.is_Number for part in parts) or (_without_noise(parts[1]) and not is_complex):
        return None
    return mpc(*(_without_noise(part)._to_mpmath(mp.prec) if part else 0 for part in parts))


def _without_noise(value: Any) -> Any:
    """Return 0 for a result with few correct bits, which is what rounding leaves of 0."""
    return value * 0 if value.is_Float and value._prec <= _COARSE_BITS else value
