r"""Whether an answer is the right one. A comparison climbs from spelling to exact values to a computer algebra system.

    finding = compare(readings(gold), readings(answer))
    finding.is_equal, finding.rung, finding.refusal

The right answer decides what is compared: an unordered list, an ordered point, an interval, a matrix, an equation,
words, or one value with or without its unit. docs/verifiers.md states the choices. A pair of values climbs only as far
as it must:

SPELLING  The nodes are the same.
VALUE     Both have exact values, which decide.
FILTER    One is too large or too deep for sympy and is refused.
SYMBOLIC  Math-Verify and sympy decide."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from tasks.mathematics.exact import exact_value, rational_value, spelling
from tasks.mathematics.forms import (
    conflicting_units,
    is_equation,
    items_of,
    key,
    negated,
    region,
    stated,
    turned,
    variables,
    with_unit_of_one_letter,
    without_unit,
)
from tasks.mathematics.nodes import COLLECTIONS, Node, latex, number
from tasks.mathematics.symbolic import close_value, proportional, refusal, same_value
from tasks.mathematics.syntax import Unreadable, parse
from tasks.mathematics.tokens import without_grouping

__all__ = ["Finding", "Rung", "canonical", "compare", "readings"]

MAX_ITEMS = 60
_MAX_SYMBOLIC_ITEMS = 8
_IN_TEXT = r"\s*(?:\\(?:text|textbf|mathrm|mathbf|bf|rm)\s*\{\s*)?[*_]*"
_OPTION = re.compile(
    rf"{_IN_TEXT}(?:\(\s*([A-J])\s*\)|([A-J])[\s*_}}]*[.):])[*_]*\s*\}}?(?:(?:[\s.:~]|\\[,;: ]|\\q?quad)+(\S.*)|\s*)", re.DOTALL
)
_NAMED_OPTION = re.compile(
    rf"{_IN_TEXT}(?:option|choice|answer\s+choice)\s*\}}?{_IN_TEXT}\(?([A-J])(?![A-Za-z])(?:\s*[).:}},*-].*|\s*)", re.DOTALL | re.IGNORECASE
)
_HEDGE = re.compile(r"(?:(?i:\\text\s*\{\s*(?:or|and)\s*\}|or|and|[,/&])\s*)*(?:\\text\s*\{\s*)?\(?[A-J]\)?[\s.}]*")
"""What stands behind an option that names another one: the two are no answer."""


class Rung(IntEnum):
    SPELLING = 1
    VALUE = 2
    FILTER = 3
    SYMBOLIC = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of a comparison: the highest rung that it reached, and what kept the answer from the last one."""

    is_equal: bool
    rung: Rung
    refusal: str | None = None


def readings(text: str, *, is_answer: bool = False) -> list[Node]:
    """Return what `text` may mean, most likely first. Raises Unreadable if it has no meaning. "1,234" is a number or a
    list. "(C) 12", if it is an answer, is an option or what the option stands for."""
    found: list[Node] = []
    unreadable: Unreadable | None = None
    for reading in dict.fromkeys((without_grouping(text), text)):
        try:
            found.append(parse(reading))
        except Unreadable as error:
            unreadable = unreadable or error
    if is_answer and (option := _OPTION.fullmatch(text)) is not None and not _HEDGE.fullmatch(option[3] or ""):
        found.append(Node("word", text=option[1] or option[2]))
        with suppress(Unreadable):
            found.append(parse(without_grouping(option[3] or "")))
    elif is_answer and (option := _NAMED_OPTION.fullmatch(text)) is not None:
        found.append(Node("word", text=option[1]))
    if unreadable is not None and not found:
        raise unreadable
    return found


def compare(golds: Sequence[Node], answers: Sequence[Node], rounding: int | None = None) -> Finding:
    """Compare each reading of the answer with each of the right answer; one match is enough. `rounding` is that of
    `tasks.judging`."""
    comparison = _Comparison(rounding)
    is_equal = any(comparison.same(gold, answer) for gold in golds for answer in answers)
    return Finding(is_equal=is_equal, rung=comparison.rung, refusal=None if is_equal else comparison.refusal)


def canonical(node: Node) -> str:
    """Return a canonical spelling: without names and units, with lists sorted and exact values written out. Equal
    values have the same spelling as far as that is known without sympy."""
    node = stated(node)[1]
    if node.head in COLLECTIONS:
        return ", ".join(sorted(map(canonical, items_of(node))))
    node, _ = without_unit(node)
    if node.head in ("point", "interval", "matrix", "row", "union", "ratio"):
        brackets = {"point": "()", "interval": node.text, "row": "[]", "matrix": "[]"}.get(node.head, "  ")
        joined = {"union": " U ", "ratio": ":"}.get(node.head, ", ").join(map(canonical, node.parts))
        return f"{brackets[0]}{joined}{brackets[1]}".strip()
    if node.head in ("word", "based"):
        words = key(node) or node.text
        return words.upper() if len(words) == 1 and words.upper() in node.text else words  # option C is not a variable c
    value = exact_value(node)
    return latex(node) if value is None else spelling(value)


class _Comparison:
    """One comparison of two answers. It records how far the comparison climbed."""

    def __init__(self, rounding: int | None) -> None:
        self._rounding = rounding
        self.rung = Rung.SPELLING
        self.refusal: str | None = None
        self._cheap = False  # True while only spelling and value are compared

    def same(self, gold: Node, answer: Node) -> bool:
        if gold == answer:
            return True
        gold, answer = _letters_apart(gold), _letters_apart(answer)
        match gold.head:
            case "relation":
                return self._relation(gold, answer)
            case "list" | "set":
                return self._collection(gold, answer)
        if is_equation(answer):
            return False
        answer = stated(answer)[1]
        if answer.head == "set" and len(answer.parts) == 1:
            answer = answer.parts[0]
        match gold.head:
            case "point" | "interval":
                return self._sequence(gold, answer)
            case "matrix":
                return self._matrix(gold, answer)
            case "union" | "difference":
                return self._region(gold, answer)
            case "word":
                return self._word(gold, answer)
        return self._quantity(gold, answer)

    def _all(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        return len(golds) == len(answers) and all(self.same(gold, answer) for gold, answer in zip(golds, answers, strict=True))

    # ---- structures
    def _collection(self, gold: Node, answer: Node) -> bool:
        """Compare without order. Each item counts as often as it is listed, or once in a set, among points, or among
        values of one name. Values of several names are compared in order if the answer gives no names."""
        answer = stated(answer)[1]
        golds, answers = list(items_of(gold)), list(items_of(answer))
        names = _names(golds)
        if len(set(names)) == len(golds) > 1 and (answer.head == "point" or (answer.head == "list" and not _names(answers))):
            return self._all([stated(item)[1] for item in golds], answer.parts)
        is_of_points = all(item.head == "point" for item in golds)
        if "set" in (gold.head, answer.head) or is_of_points or (names and len(set(names)) == 1):
            golds, answers = self._distinct(golds), self._distinct(answers)
        if answer.head not in COLLECTIONS and len(golds) != 1:
            return gold.head == "list" and self._region(gold, answer)
        if len(golds) != len(answers):
            return self._region(gold, answer)
        if len(golds) > MAX_ITEMS:
            self.refusal = f"a list of {len(answers)} items, more than {MAX_ITEMS}"
            return False
        return self._matched(golds, answers)

    def _distinct(self, items: list[Node]) -> list[Node]:
        """Return the items without those that repeat an earlier one by spelling or exact value."""
        was_cheap, self._cheap = self._cheap, True
        kept: list[Node] = []
        for item in items[: MAX_ITEMS + 1]:
            if not any(self.same(earlier, item) for earlier in kept):
                kept.append(item)
        self._cheap = was_cheap
        return kept + items[MAX_ITEMS + 1 :]

    def _matched(self, golds: list[Node], answers: list[Node]) -> bool:
        """Match the items. Equality is symmetric and transitive, so the first match of an item is as good as any."""
        was_cheap = self._cheap
        for cheap in (True, False):
            if golds and not cheap and (was_cheap or len(golds) > _MAX_SYMBOLIC_ITEMS):
                return False
            self._cheap = cheap
            for gold in list(golds):
                match = next((answer for answer in answers if self.same(gold, answer)), None)
                if match is not None:
                    golds.remove(gold)
                    answers.remove(match)
            self._cheap = was_cheap
        return not golds

    def _sequence(self, gold: Node, answer: Node) -> bool:
        """Compare in order, with the same brackets. A point may also be a column, or listed without brackets."""
        if answer.head in ("point", "interval"):
            return gold.text == answer.text and self._all(gold.parts, answer.parts)
        if gold.head == "point" and answer.head == "matrix":
            return self._all(gold.parts, _vector(answer))
        if (
            answer.head == "list"
            and gold.head == "point"
            and not any(item.head == "relation" and "=" not in item.text for item in answer.parts)
        ):
            return self._all(gold.parts, [stated(item)[1] for item in items_of(answer)])
        return self._region(gold, answer)

    def _matrix(self, gold: Node, answer: Node) -> bool:
        if answer.head == "matrix":
            return len(gold.parts) == len(answer.parts) and all(
                self._all(row.parts, other.parts) for row, other in zip(gold.parts, answer.parts, strict=True)
            )
        return answer.head == "point" and self._all(_vector(gold), answer.parts)

    def _region(self, gold: Node, answer: Node) -> bool:
        regions = region(gold), region(answer)
        if regions[0] is None or regions[1] is None or len(regions[0]) != len(regions[1]):
            return False
        left = list(regions[1])
        for interval in regions[0]:
            match = next((other for other in left if other.text == interval.text and self._all(interval.parts, other.parts)), None)
            if match is None:
                return False
            left.remove(match)
        return True

    def _relation(self, gold: Node, answer: Node) -> bool:
        """Compare with a relation. A name may be missing but must not differ; an equation may be a multiple of it."""
        name, value = stated(gold)
        if not is_equation(gold) and value is not gold:
            other_name, other = stated(answer)
            if name is not None and other_name is not None and _are_different_names(name, other_name):
                return False
            if not is_equation(answer):
                sides = (value,) if variables(gold) else gold.parts  # 0.56 = 56\%
                return any(self.same(side, other) for side in sides)
        if answer.head != "relation" or not (set(gold.text.split()) == set(answer.text.split()) == {"="}):
            return self._region(gold, answer) or self._inequality(gold, answer)
        return not self._cheap and self._symbolic(proportional, _difference(gold), _difference(answer))

    def _inequality(self, gold: Node, answer: Node) -> bool:
        """Compare the sides and the signs between them, in both directions, and also times -1. The differences of two
        sides may be multiples of one another."""
        if answer.head != "relation" or len(gold.parts) != len(answer.parts):
            return False
        forms = [form for form in (answer, turned(answer)) if form is not None and form.text == gold.text]
        forms += [form for form in map(negated, (answer, turned(answer))) if form is not None and form.text == gold.text]
        if any(self._all(gold.parts, form.parts) for form in forms):
            return True
        if len(gold.parts) > 2 or negated(gold) is None or not forms or self._cheap:
            return False
        return self._symbolic(partial(proportional, is_positive=True), _difference(gold), _difference(forms[0]))

    # ---- values
    def _word(self, gold: Node, answer: Node) -> bool:
        return bool(key(gold)) and key(gold) == key(answer)

    def _quantity(self, gold: Node, answer: Node) -> bool:
        """Compare values with units, which may be missing but not differ. "50%" is 50 or, if the gold has no %, 1/2."""
        if not variables(gold):
            answer = with_unit_of_one_letter(answer)
        gold, unit = without_unit(gold)
        answer, other_unit = without_unit(answer)
        if conflicting_units(unit, other_unit):
            return False
        if answer.head == "word" or gold.head == "word":
            return self._word(gold, answer)
        if unit == other_unit or "%" not in (unit, other_unit):
            return self._value(gold, answer)
        hundred = number(100)
        if unit == "%":
            return self._value(gold, answer) or self._value(Node("quotient", (gold, hundred)), answer)
        return self._value(gold, Node("quotient", (answer, hundred))) or (_exceeds_one(gold) and self._value(gold, answer))

    def _value(self, gold: Node, answer: Node) -> bool:
        if gold == answer:
            return True
        if gold.head == "ratio":
            return answer.head == "ratio" and self._all(gold.parts, answer.parts)
        if "based" in (_unsigned(gold).head, _unsigned(answer).head):
            return _same_numeral(gold, answer)
        self.rung = max(self.rung, Rung.VALUE)
        value, other = exact_value(gold), exact_value(answer)
        if value is not None and other is not None and (value == other or not self._is_rounded(gold, answer)):
            return value == other
        if bool(variables(gold)) != bool(variables(answer)) or self._cheap:
            return False
        if self._is_rounded(gold, answer):
            return self._symbolic(partial(close_value, rounding=self._rounding or 0), gold, answer)
        return self._symbolic(same_value, gold, answer)

    def _is_rounded(self, gold: Node, answer: Node) -> bool:
        """Return whether rounding is allowed and one of the values is a decimal, or so many percent."""
        values = (_unsigned(node.parts[0] if node.head == "quotient" else node) for node in (gold, answer))
        return self._rounding is not None and any(value.head == "number" and "." in value.text for value in values)

    def _symbolic(self, rule: Callable[[Node, Node], bool], gold: Node, answer: Node) -> bool:
        self.rung = max(self.rung, Rung.FILTER)
        if refusal(gold) is not None:
            return False
        reason = refusal(answer)
        if reason is not None:
            self.refusal = self.refusal or reason
            return False
        self.rung = Rung.SYMBOLIC
        return rule(gold, answer)


def _letters_apart(node: Node) -> Node:
    """Return options that are named in one piece of text, "B,E" or "B and E", as a list."""
    letters = [letter.strip() for letter in re.split(r",|\band\b|&", node.text)] if node.head == "word" else []
    if len(letters) > 1 and all(len(letter) == 1 for letter in letters):
        return Node("list", tuple(Node("word", text=letter) for letter in letters))
    return node


def _are_different_names(first: Node, second: Node) -> bool:
    """Return whether two variables, or two segments, differ. y and f(x) may be the same."""
    keys = key(first), key(second)
    if first.head == second.head == "symbol":
        return keys[0] != keys[1]
    are_segments = all(name.head == "product" and all(part.text.isupper() for part in name.parts) for name in (first, second))
    return are_segments and sorted(keys[0]) != sorted(keys[1])


def _vector(matrix: Node) -> tuple[Node, ...]:
    """Return the entries of a single row or column, and nothing for a larger matrix."""
    if len(matrix.parts) == 1:
        return matrix.parts[0].parts
    return tuple(row.parts[0] for row in matrix.parts) if all(len(row.parts) == 1 for row in matrix.parts) else ()


def _names(items: Sequence[Node]) -> list[str]:
    """Return the letter of the name of each item of "x_1 = 3, x_2 = 5", or nothing if an item has no name."""
    names = [stated(item)[0] for item in items]
    return [latex(name.parts[0] if name.head == "subscripted" else name) for name in names if name is not None] if None not in names else []


def _difference(equation: Node) -> Node:
    return Node("sum", (equation.parts[0], Node("negative", (equation.parts[-1],))))


def _exceeds_one(node: Node) -> bool:
    value = rational_value(node)
    return value is None or abs(value) > 1


def _unsigned(node: Node) -> Node:
    return node.parts[0] if node.head == "negative" else node


def _same_numeral(gold: Node, answer: Node) -> bool:
    """Compare the digits of two numerals. The base may be missing but must not differ."""
    if (gold.head == "negative") != (answer.head == "negative"):
        return False
    (digits, _, base), (other_digits, _, other_base) = (
        (part.text if part.head in ("based", "number", "word", "symbol") else "").partition("_")
        for part in (_unsigned(gold), _unsigned(answer))
    )
    return bool(digits) and digits.casefold() == other_digits.casefold() and (base == other_base or not (base and other_base))
