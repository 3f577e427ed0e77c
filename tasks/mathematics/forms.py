r"""What an answer states, whatever its form: names, units, regions of the real line, words.

stated(parse("x = 5"))                ->  (x, 5)
without_unit(parse(r"5\text{ cm}"))   ->  (5, "cm")
region(parse(r"2 \le x < 5"))         ->  the interval [2, 5)
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from tasks.mathematics.exact import exact_value
from tasks.mathematics.nodes import COLLECTIONS, Node, walk
from tasks.mathematics.words import NUMBER_WORDS, ONE_LETTER_UNITS, UNITS

__all__ = [
    "conflicting_units",
    "is_equation",
    "items_of",
    "key",
    "negated",
    "region",
    "stated",
    "turned",
    "variables",
    "with_unit_of_one_letter",
    "without_unit",
]

REALS = Node("symbol", text="\\mathbb{R}")
INFINITY = Node("symbol", text="\\infty")
_MINUS_INFINITY = Node("negative", (INFINITY,))
_ALL_REALS = frozenset(("allrealnumbers", "allreals", "realnumbers", "allreal", "setofallrealnumbers"))
_CONSTANTS = frozenset(("e", "i", "\\pi", "\\infty"))
_FLIPPED = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le"}


def variables(node: Node) -> frozenset[str]:
    """Return the letters of an expression, without those that are numbers."""
    return frozenset(part.text for part in walk(node) if part.head == "symbol" and part.text not in _CONSTANTS)


def items_of(node: Node) -> tuple[Node, ...]:
    """Return the items of a list or set, or the node itself. The name in "n = 2, 3, 4" is dropped."""
    if node.head not in COLLECTIONS:
        return (node,)
    first, *rest = node.parts
    if rest and not any(item.head == "relation" for item in rest) and first.head == "relation":
        return (stated(first)[1], *rest)
    return node.parts


# ---- names
def stated(node: Node) -> tuple[Node | None, Node]:
    r"""Return the name and the value of "x = 5", "x \in S", "x^2 + y^2 = 4 + 21 = 25" and "x \approx 5". The last of
    several equal sides is the value; what follows a later \approx is dropped. Any other node, such as the equation
    "x + y - 3 = 0", has no name and is its own value."""
    if node.head != "relation":
        return None, node
    signs = node.text.split()
    if signs == ["\\in"]:
        return node.parts[0], node.parts[1]
    if not set(signs) <= {"=", "\\approx"}:
        return None, node
    if signs[0] == "\\approx":
        return (node.parts[0], node.parts[1]) if _is_name(node.parts[0]) else (None, node.parts[0])
    sides = node.parts[: signs.index("\\approx") + 1] if "\\approx" in signs else node.parts
    if is_equation(node):
        return None, Node("relation", sides, " ".join(["="] * (len(sides) - 1)))
    return sides[0], sides[-1]


def is_equation(node: Node) -> bool:
    """Return whether the node has two sides with variables, the first not a name and the last 0 or not a number."""
    if node.head != "relation" or node.text != "=" or _is_name(node.parts[0]) or not variables(node):
        return False
    value = exact_value(node.parts[1])
    return value is None or not value


def _is_name(node: Node) -> bool:
    """Return whether it is a name: x, x_1, f(x), f^{-1}(x), AB, \\angle ABC, P(A), S_{ABC} or words, but no sum and no
    number."""
    match node.head:
        case "word" | "symbol" | "subscripted":
            return True
        case "product":
            return all(_is_name(part.parts[0] if _is_inverse(part) else part) for part in node.parts)
        case "absolute" | "point":
            return all(_is_name(part) for part in node.parts)
        case "function":
            return node.text == "\\overline"
        case "degrees" | "quantity":
            return _is_name(node.parts[0])
    return False


# ---- units
def without_unit(node: Node) -> tuple[Node, str]:
    """Return the value and its unit. "%" and "°" are units too."""
    match node.head:
        case "quantity":
            value, inner = without_unit(node.parts[0])
            return value, inner or node.text
        case "percent":
            return node.parts[0], "%"
        case "degrees":
            return node.parts[0], "°"
        case "negative":
            value, unit = without_unit(node.parts[0])
            return (Node("negative", (value,)), unit) if unit else (node, "")
    return node, ""


def with_unit_of_one_letter(node: Node) -> Node:
    """Return 5m, 5m^2 and 5m/s as quantities. Read alone they are products with a variable m."""
    if node.head == "negative":
        inner = with_unit_of_one_letter(node.parts[0])
        return Node("quantity", (Node("negative", inner.parts),), inner.text) if inner.head == "quantity" else node
    product, below = (node.parts[0], node.parts[1:]) if node.head == "quotient" else (node, ())
    if product.head != "product" or product.parts[0].head != "number":
        return node
    above = product.parts[1:]
    if len(above) == 1 and above[0].head == "quotient" and not below:
        above, below = above[0].parts[:1], above[0].parts[1:]
    units = [_symbol_of(part) for part in (*above, *below)]
    is_one = len(units) == 1 or bool(below) or any(_is_inverse(part) for part in above)
    is_unit = is_one and all(unit in ONE_LETTER_UNITS for unit in units)
    return Node("quantity", product.parts[:1], "/".join(units)) if is_unit else node


def _symbol_of(node: Node) -> str:
    symbol = node.parts[0] if node.head == "power" else node
    return symbol.text if symbol.head == "symbol" else ""


def _is_inverse(node: Node) -> bool:
    return node.head == "power" and node.parts[1].head == "negative"


def conflicting_units(first: str, second: str) -> bool:
    """Return whether both units are known and differ, as miles and kilometers do, or a.m. and p.m."""
    one, other = _known(first), _known(second)
    return bool(one and other) and one != other


def _known(unit: str) -> str:
    words = [
        word
        for word in re.split(r"[\s^{}0-9]+", re.sub(r"\s*/\s*", "/", unit))
        if word and word.casefold() not in ("square", "sq", "sq.", "cubic", "cu")
    ]
    return UNITS.get(words[0].rstrip("."), UNITS.get(words[0].casefold().rstrip("."), UNITS.get(words[0], ""))) if len(words) == 1 else ""


# ---- regions of the real line
def region(node: Node) -> tuple[Node, ...] | None:
    r"""Return the intervals of a union, of \mathbb{R} without some points, or of inequalities in one name. The result
    is None if the node is not a region. Open intervals have the head "point", as "(2, 5)" has. Inequalities in a list
    are alternatives, unless they overlap: then both hold."""
    match node.head:
        case "interval" | "point" if len(node.parts) == 2:
            return (node,)
        case "union":
            found = [region(part) for part in node.parts]
            return None if None in found else _merged([interval for part in found if part for interval in part])
        case "difference":
            return _without_points(node.parts[1]) if region(node.parts[0]) == region(REALS) else None
        case "relation":
            return _of_inequality(node)
        case "list":
            found = [region(part) if part.head == "relation" else None for part in node.parts]
            return None if None in found else _joined([interval for part in found if part for interval in part])
        case "symbol" if node == REALS:
            return (Node("point", (_MINUS_INFINITY, INFINITY)),)
        case "word" if key(node) in _ALL_REALS:
            return region(REALS)
    return None


def _of_inequality(node: Node) -> tuple[Node, ...] | None:
    node = _with_positive_names(node)
    signs, sides = node.text.split(), node.parts
    if signs == ["\\in"]:
        return region(sides[1])
    if signs == ["\\ne"] and _is_name(sides[0]):
        return _without_points(sides[1])
    if signs[0] in (">", "\\ge"):
        signs, sides = [_FLIPPED.get(sign, "") for sign in reversed(signs)], sides[::-1]
    if not set(signs) <= {"<", "\\le"}:
        return None
    if len(sides) == 2 and _is_name(sides[0]) and not variables(sides[1]):
        sides, signs = (_MINUS_INFINITY, *sides), ["<", *signs]
    elif len(sides) == 2 and _is_name(sides[1]) and not variables(sides[0]):
        sides, signs = (*sides, INFINITY), [*signs, "<"]
    if len(sides) != 3 or not _is_name(sides[1]) or variables(sides[0]) or variables(sides[2]):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return (_interval(sides[0], sides[2], brackets),)


def _with_positive_names(node: Node) -> Node:
    """Return an inequality times -1 if a side of it is a name with a minus: x < 3 for -x > -3."""
    is_negated = any(side.head == "negative" and _is_name(side.parts[0]) for side in node.parts)
    return (negated(node) or node) if is_negated else node


def negated(relation: Node | None) -> Node | None:
    """Return an inequality times -1, and None for any other relation."""
    signs = relation.text.split() if relation is not None else []
    if relation is None or not set(signs) <= _FLIPPED.keys():
        return None
    sides = tuple(side.parts[0] if side.head == "negative" else Node("negative", (side,)) for side in relation.parts)
    return Node("relation", sides, " ".join(_FLIPPED[sign] for sign in signs))


def turned(relation: Node) -> Node | None:
    """Return a relation from right to left, and None if its signs have no direction."""
    flipped = {**_FLIPPED, "=": "=", "\\ne": "\\ne"}
    signs = relation.text.split()
    if not set(signs) <= flipped.keys():
        return None
    return Node("relation", relation.parts[::-1], " ".join(flipped[sign] for sign in reversed(signs)))


def _interval(left: Node, right: Node, brackets: str) -> Node:
    return Node("point", (left, right)) if brackets == "()" else Node("interval", (left, right), brackets)


def _joined(intervals: list[Node]) -> tuple[Node, ...]:
    """Return the intersection of two overlapping half-lines, and any other intervals as they are."""
    if len(intervals) == 2:
        for upper, lower in (intervals, intervals[::-1]):
            start, end = _real(upper.parts[0]), _real(lower.parts[1])
            if upper.parts[1] == INFINITY and lower.parts[0] == _MINUS_INFINITY and start is not None and end is not None and start < end:
                return (_interval(upper.parts[0], lower.parts[1], _brackets(upper)[0] + _brackets(lower)[1]),)
    return tuple(intervals)


def _merged(intervals: list[Node]) -> tuple[Node, ...]:
    """Join intervals that overlap or touch. If an end has no exact value, return them as they are."""
    ends = [(_end(interval.parts[0]), _end(interval.parts[1]), interval) for interval in intervals]
    known = [(start, end, interval) for start, end, interval in ends if start is not None and end is not None]
    if len(known) < len(intervals):
        return tuple(intervals)
    merged: list[tuple[float, float, Node]] = []
    for start, end, interval in sorted(known, key=lambda one: one[:2]):
        is_hole = bool(merged) and _brackets(merged[-1][2])[1] + _brackets(interval)[0] == ")("  # if they meet
        if not merged or start > merged[-1][1] or (start == merged[-1][1] and is_hole):
            merged.append((start, end, interval))
        elif end > merged[-1][1]:
            first, _, one = merged[-1]
            merged[-1] = (first, end, _interval(one.parts[0], interval.parts[1], _brackets(one)[0] + _brackets(interval)[1]))
    return tuple(interval for _, _, interval in merged)


def _end(node: Node) -> float | None:
    return {INFINITY: math.inf, _MINUS_INFINITY: -math.inf}.get(node, _real(node))


def _brackets(interval: Node) -> str:
    return interval.text or "()"


def _without_points(points: Node) -> tuple[Node, ...] | None:
    """Return the real line without some numbers, as open intervals in order."""
    values = {part: _real(part) for part in items_of(points)}
    if any(value is None for value in values.values()):
        return None
    ends = [_MINUS_INFINITY, *sorted(values, key=lambda part: values[part] or 0.0), INFINITY]
    return tuple(Node("point", (left, right)) for left, right in pairwise(ends))


def _real(node: Node) -> float | None:
    value = exact_value(node)
    if value is None or any(radicand < 0 for _, radicand in value):
        return None
    try:
        return math.fsum(float(coefficient) * math.pi**power * math.sqrt(radicand) for (power, radicand), coefficient in value.items())
    except OverflowError:
        return None


# ---- words
def key(node: Node) -> str:
    """Return words without case, blanks, brackets and articles, with numbers in digits; "" if the node is not words."""
    match node.head:
        case "word" | "symbol" | "number" | "based":
            return _key(node.text)
        case "product" if all(part.head == "symbol" and len(part.text) == 1 for part in node.parts):
            return _key("".join(part.text for part in node.parts))
        case "quantity":
            return _key(f"{key(node.parts[0])} {node.text}")
        case "list" | "set":
            return "".join(map(key, node.parts)) if all(map(key, node.parts)) else ""
    return ""


def _key(text: str) -> str:
    words: Sequence[str] = re.findall(r"[^\W_]+|[-+/^<>=]", text.casefold())
    if len(words) == 2 and words[0] in ("option", "choice") and len(words[1]) == 1:
        words = words[1:]
    return re.sub(
        r"(?<=[0-9]) (?=[0-9])|( )",
        lambda match: "" if match[1] else " ",
        " ".join(str(NUMBER_WORDS.get(word, word)) for word in words if word not in ("the", "a", "an") or len(text.strip(" ().")) < 3),
    )
