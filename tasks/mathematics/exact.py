r"""Exact values of expressions in rational numbers, square roots, π and i, without a computer algebra system.

    exact_value(parse(r"\frac{1}{2+\sqrt{3}}")) == exact_value(parse(r"2-\sqrt3"))   # True, and proven

A value is a sum of terms c·π^k·√n with rational c and squarefree n (√-1 is i). Such terms are independent over the
rationals, so two expressions that both have a value here are equal exactly if their terms are. Expressions that do not
fit, or whose numbers grow beyond MAX_BITS, have no value here, and nothing is said about them."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from math import comb, factorial, isqrt

from tasks.mathematics.nodes import Node

__all__ = ["Exact", "exact_value", "rational_value", "spelling"]

Exact = Mapping[tuple[int, int], Fraction]
"""Maps (k, n) to c for each term c·π^k·√n that is not 0. The empty mapping is 0."""

MAX_BITS = 60_000  # in a numerator or denominator
MAX_TERMS = 40
MAX_FACTORIAL = 3000
_MAX_POWER_OF_SUM = 32
_RATIONAL = (0, 1)


class _NoValue(Exception):
    """The expression has no value of this kind, or too large a one."""


def exact_value(node: Node) -> Exact | None:
    """Return the value of an expression, or None if it has none here."""
    try:
        return _value(node)
    except (_NoValue, ZeroDivisionError):
        return None


def rational_value(node: Node) -> Fraction | None:
    """Return the value of an expression if it is a rational number, else None."""
    value = exact_value(node)
    return _as_rational(value) if value is not None and set(value) <= {_RATIONAL} else None


def spelling(value: Exact) -> str:
    r"""Return the one spelling of a value: "3/4", "2", "1/2*sqrt(2)", "3*pi+i". Decimals become fractions."""
    parts = []
    for (power, radicand), coefficient in sorted(value.items(), key=lambda item: (-item[0][0], -item[0][1])):
        factors = [_digits(coefficient)] if abs(coefficient) != 1 or (power, radicand) == _RATIONAL else []
        factors += [f"pi^{power}" if power != 1 else "pi"] if power else []
        factors += ["i"] if radicand < 0 else []
        factors += [f"sqrt({abs(radicand)})"] if abs(radicand) != 1 else []
        sign = "-" if coefficient == -1 and (power, radicand) != _RATIONAL else ""
        parts.append(sign + "*".join(factors))
    return "+".join(parts).replace("+-", "-") or "0"


def _digits(value: Fraction) -> str:
    """Write a rational number, in hexadecimal where Python refuses to write decimals."""
    numbers = (value.numerator,) if value.denominator == 1 else (value.numerator, value.denominator)
    return "/".join(str(part) if part.bit_length() < 10_000 else hex(part) for part in numbers)


def _value(node: Node) -> Exact:
    if node.head not in _RULES:
        raise _NoValue
    return _RULES[node.head](node)


def _rational(value: Fraction | int) -> Exact:
    return _bounded({_RATIONAL: Fraction(value)})


def _as_rational(value: Exact) -> Fraction:
    if not set(value) <= {_RATIONAL}:
        raise _NoValue
    return value.get(_RATIONAL, Fraction(0))


def _as_integer(value: Exact, largest: int) -> int:
    found = _as_rational(value)
    if found.denominator != 1 or abs(found) > largest:
        raise _NoValue
    return found.numerator


def _bounded(terms: Mapping[tuple[int, int], Fraction]) -> Exact:
    kept = {key: coefficient for key, coefficient in terms.items() if coefficient}
    if len(kept) > MAX_TERMS or any(max(abs(c.numerator), c.denominator).bit_length() > MAX_BITS for c in kept.values()):
        raise _NoValue
    return kept


# ---- arithmetic
def _add(first: Exact, second: Exact) -> Exact:
    return _bounded({key: first.get(key, Fraction(0)) + second.get(key, Fraction(0)) for key in first.keys() | second.keys()})


def _scale(value: Exact, factor: Fraction | int) -> Exact:
    return _bounded({key: coefficient * factor for key, coefficient in value.items()})


def _multiply(first: Exact, second: Exact) -> Exact:
    terms: dict[tuple[int, int], Fraction] = {}
    for (power_1, radicand_1), coefficient_1 in first.items():
        for (power_2, radicand_2), coefficient_2 in second.items():
            outside, radicand = _square_root_of(abs(radicand_1 * radicand_2))
            if radicand_1 < 0 and radicand_2 < 0:
                outside = -outside  # i·i
            elif radicand_1 < 0 or radicand_2 < 0:
                radicand = -radicand
            key = (power_1 + power_2, radicand)
            terms[key] = terms.get(key, Fraction(0)) + coefficient_1 * coefficient_2 * outside
    return _bounded(terms)


def _invert(value: Exact) -> Exact:
    """Return 1/value for one term or, by the conjugate, for two without π. Raises ZeroDivisionError for 0."""
    if not value:
        raise ZeroDivisionError
    if len(value) == 1:
        ((power, radicand), coefficient) = next(iter(value.items()))
        return _bounded({(-power, radicand): 1 / (coefficient * radicand)})  # 1/√n = √n / n, for i too
    if len(value) > 2 or any(power for power, _ in value):
        raise _NoValue
    (key_1, coefficient_1), (key_2, coefficient_2) = value.items()
    conjugate = {key_1: coefficient_1, key_2: -coefficient_2}
    return _scale(conjugate, 1 / _as_rational(_multiply(value, conjugate)))


def _power(base: Exact, exponent: Fraction) -> Exact:
    if exponent.denominator > 1:
        return _power(_root(_as_rational(base), exponent.denominator), Fraction(exponent.numerator))
    count = abs(exponent.numerator)
    if len(base) > 1 and count > _MAX_POWER_OF_SUM:
        raise _NoValue
    if count * max((max(abs(c.numerator), c.denominator).bit_length() for c in base.values()), default=1) > 2 * MAX_BITS:
        raise _NoValue
    if exponent < 0:
        base = _invert(base)
    elif not base and count == 0:
        raise _NoValue  # 0^0
    if set(base) <= {_RATIONAL}:
        return _rational(_as_rational(base) ** count)
    found = _rational(1)
    while count:  # by squaring
        if count % 2:
            found = _multiply(found, base)
        base, count = (_multiply(base, base) if count > 1 else base), count // 2
    return found


def _root(value: Fraction, index: int) -> Exact:
    if index == 2:
        outside, radicand = _square_root_of(abs(value.numerator) * value.denominator)
        return _bounded({(0, -radicand if value < 0 else radicand): Fraction(outside, value.denominator)})
    if value < 0 or not 2 < index <= 100:
        raise _NoValue
    return _rational(Fraction(_perfect_root(value.numerator, index), _perfect_root(value.denominator, index)))


def _square_root_of(number: int) -> tuple[int, int]:
    """Return (a, n) with a²·n = number and n squarefree. Raises _NoValue if finding them would take long."""
    if number.bit_length() > 2000:
        raise _NoValue
    outside, rest, radicand, divisor = 1, number, 1, 2
    while divisor <= 1000 and divisor * divisor <= rest:
        while rest % (divisor * divisor) == 0:
            rest //= divisor * divisor
            outside *= divisor
        if rest % divisor == 0:
            rest //= divisor
            radicand *= divisor
        divisor += 1
    whole = isqrt(rest)
    if whole * whole == rest:
        return (outside * whole, radicand) if number else (0, 1)
    if rest > 10**9:  # it could be a product of three factors above 1000, two of them equal
        raise _NoValue
    return outside, radicand * rest


def _perfect_root(number: int, index: int) -> int:
    if number.bit_length() > 2000:
        raise _NoValue
    low, high = 0, 1 << (number.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**index <= number else (low, middle - 1)
    if low**index != number:
        raise _NoValue
    return low


# ---- nodes
def _mixed(node: Node) -> Exact:
    whole, numerator, denominator = (_as_rational(_value(part)) for part in node.parts)
    return _rational(whole + numerator / denominator)


def _repeating(node: Node) -> Exact:
    """Return the value of a repeating decimal: 0.1 with the period 6 is (16 - 1) / 90."""
    period = node.parts[0].text
    if node.parts[0].head != "number" or not period.isdigit():
        raise _NoValue
    whole, _, fixed = node.text.partition(".")
    shift = 10 ** len(fixed)
    return _rational(Fraction(int(whole + fixed or "0"), shift) + Fraction(int(period), shift * (10 ** len(period) - 1)))


def _symbol(node: Node) -> Exact:
    match node.text:
        case "\\pi":
            return {(1, 1): Fraction(1)}
        case "i":
            return {(0, -1): Fraction(1)}
    raise _NoValue


def _root_node(node: Node) -> Exact:
    radicand, index = _value(node.parts[0]), _as_integer(_value(node.parts[1]), 100)
    if index < 2:
        raise _NoValue
    if index % 2 and _as_rational(radicand) < 0:  # the real root
        return _scale(_root(-_as_rational(radicand), index), -1)
    return _power(radicand, Fraction(1, index))


def _factorial(node: Node) -> Exact:
    count = _as_integer(_value(node.parts[0]), MAX_FACTORIAL)
    if count < 0:
        raise _NoValue
    return _rational(factorial(count))


def _binomial(node: Node) -> Exact:
    total, chosen = (_as_integer(_value(part), MAX_FACTORIAL) for part in node.parts)
    if total < 0 or chosen < 0:
        raise _NoValue
    return _rational(comb(total, chosen))


_RULES: Mapping[str, Callable[[Node], Exact]] = {
    "number": lambda node: _rational(Fraction(node.text)),
    "repeating": _repeating,
    "mixed": _mixed,
    "symbol": _symbol,
    "sum": lambda node: reduce(_add, map(_value, node.parts), _rational(0)),
    "product": lambda node: reduce(_multiply, map(_value, node.parts), _rational(1)),
    "negative": lambda node: _scale(_value(node.parts[0]), -1),
    "quotient": lambda node: _multiply(_value(node.parts[0]), _invert(_value(node.parts[1]))),
    "power": lambda node: _power(_value(node.parts[0]), _as_rational(_value(node.parts[1]))),
    "root": _root_node,
    "absolute": lambda node: _rational(abs(_as_rational(_value(node.parts[0])))),
    "factorial": _factorial,
    "binomial": _binomial,
}
