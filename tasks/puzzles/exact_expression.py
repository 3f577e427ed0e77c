r"""Arithmetic expressions of + - * / and brackets, evaluated exactly. Text that a model wrote never runs as code.

    expression = parse(r"\frac{95 × 2}{(24 − 21)}")
    expression.value      # Fraction(190, 3); None if it divides by zero
    expression.numbers    # (95, 2, 24, 21): the number literals from left to right
    expression.text       # "95 * 2 / (24 - 21)"

All expressions that differ only in spacing, symbols and needless brackets have the same `text`.

`parse` takes time linear in the length of its text, refuses a text of more than MAX_CHARS unread, never recurses, and
raises ExpressionError only. Powers, factorials, roots, names and products without a sign ("2(3 + 4)") are not
expressions here: they are refused, not guessed.

| sign  | also written                                                                                       |
|-------|----------------------------------------------------------------------------------------------------|
| `*`   | × · ⋅ ∙ ∗ ✕ ✖, `\*`, `\times`, `\cdot`, `\ast`; x before a digit or bracket, if it touches no letter |
| `/`   | ÷ ∕ ⁄ ／, `\div`, and `\frac{a}{b}` (dfrac, tfrac, cfrac) for (a) / (b)                             |
| `-`   | − – ﹣ －; before a term it is the sign of the term, as is +                                        |
| `( )` | `[ ]`, `{ }`, （ ）, with `\left` and `\right` or without                                           |
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tasks.answers import canonical_number

__all__ = ["TOKEN", "Expression", "ExpressionError", "Number", "Term", "combined", "number_term", "parse"]

MAX_CHARS = 2_000
MAX_NUMBERS = 64
MAX_DIGITS = 24  # of one number
MAX_DEPTH = 64  # brackets and signs around one term

Number = int | Fraction

_SIGNS = {
    **dict.fromkeys(("*", "×", "·", "⋅", "∙", "∗", "✕", "✖", "x", "X", r"\*", r"\times", r"\cdot", r"\ast"), "*"),
    **dict.fromkeys(("/", "÷", "∕", "⁄", "／", r"\div"), "/"),
    **dict.fromkeys(("-", "−", "–", "﹣", "－"), "-"),
    **dict.fromkeys(("+", "＋"), "+"),
    **dict.fromkeys((r"\frac", r"\dfrac", r"\tfrac", r"\cfrac"), "frac"),
    **{bracket: bracket for bracket in "()[]{}"},
    **{"（": "(", "）": ")", r"\{": "{", r"\}": "}"},
}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_NOT_X = "A-WYZa-wyz"
_SYMBOLS = "".join(re.escape(sign) for sign in _SIGNS if len(sign) == 1 and sign not in "xX")
TOKEN = re.compile(
    rf"""
      (?P<number> (?<! [{_NOT_X}0-9_.] ) (?: [0-9]++ (?: \.[0-9]++ )?+ | \.[0-9]++ ) (?! [{_NOT_X}_] | \.[0-9] ) )
    | (?P<sign>
          [{_SYMBOLS}]
        | (?<! [A-Za-z_] ) [xX] (?= \s*+ [0-9.(\[{{\\] )
        | \\ (?: (?: times|cdot|ast|div|[cdt]?frac ) (?! [A-Za-z] ) | [*{{}}] )
      )
    | (?P<space> (?: \s | ~ | \\ (?: [,;:! ] | (?: left|right|quad ) (?! [A-Za-z] ) ) )++ )
    """,
    re.VERBOSE,
)
"""One token. A text in which it does not match somewhere is not an expression."""

_SUM, _PRODUCT, _SIGNED, _ATOM = range(4)
_PRECEDENCE = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "negative": _SIGNED}


class ExpressionError(ValueError):
    """The text is not an arithmetic expression. The message says why in a few words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A part of an expression: its spelling, how tightly its outer sign binds, its value (None: it divides by zero)."""

    text: str
    precedence: int
    value: Number | None

    def bracketed_below(self, precedence: int) -> str:
        return self.text if self.precedence >= precedence else f"({self.text})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expression:
    """A parsed expression, as the head of the module shows. Parsing `text` gives an equal Expression."""

    text: str
    value: Number | None
    numbers: tuple[Number, ...]


def parse(text: str) -> Expression:
    """Parse all of `text`. Raises ExpressionError if it is not an expression or exceeds a limit of this module."""
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    reader = _Reader()
    for token in _plain(_tokens(text)):
        reader.take(token)
    return reader.finish()


def number_term(value: Number, text: str | None = None) -> Term:
    """Return a term for a number that is not negative. `text` is its spelling if it is not Python's."""
    return Term(text=str(value) if text is None else text, precedence=_ATOM, value=value)


def combined(left: Term, sign: str, right: Term) -> Term:
    """Return `left sign right`, for a sign of "+-*/", with the brackets that it needs."""
    precedence = _PRECEDENCE[sign]
    text = f"{left.bracketed_below(precedence)} {sign} {right.bracketed_below(precedence + 1)}"
    value = None if left.value is None or right.value is None else _result(left.value, sign, right.value)
    return Term(text=text, precedence=precedence, value=value)


def _result(left: Number, sign: str, right: Number) -> Number | None:
    if sign == "/":
        return Fraction(left) / right if right else None
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def _tokens(text: str) -> Iterator[Term | str]:
    """Yield numbers as terms, signs in their spelling here, and "frac" for a fraction."""
    position = 0
    while position < len(text):
        token = TOKEN.match(text, position)
        if token is None:
            raise ExpressionError(f"'{text[position]}' is no part of an expression")
        if token["number"]:
            yield _literal(token["number"])
        elif token["sign"]:
            yield _SIGNS[token["sign"]]
        position = token.end()


def _literal(digits: str) -> Term:
    if len(digits) > MAX_DIGITS:
        raise ExpressionError(f"a number of more than {MAX_DIGITS} digits")
    value: Number = Fraction(digits) if "." in digits else int(digits)
    return number_term(value, canonical_number(digits))


def _plain(tokens: Iterator[Term | str]) -> Iterator[Term | str]:
    r"""Yield the tokens with round brackets only, correctly nested, and with ((a) / (b)) for \frac{a}{b}."""
    open_brackets: list[tuple[str, str]] = []  # what closes each, and what it holds
    holds = ""  # what the bracket holds that must come next
    for token in tokens:
        if holds and token != "{":
            raise ExpressionError(f"a fraction without {{{holds}}}")
        if token == "frac":
            yield "("
            holds = "numerator"
        elif isinstance(token, str) and token in _CLOSING:
            yield "("
            open_brackets.append((_CLOSING[token], holds))
            holds = ""
        elif isinstance(token, str) and token in _CLOSING.values():
            if not open_brackets or open_brackets[-1][0] != token:
                raise ExpressionError(f"'{token}' closes no bracket")
            yield ")"
            held = open_brackets.pop()[1]
            if held == "numerator":
                yield "/"
                holds = "denominator"
            elif held == "denominator":
                yield ")"
        else:
            yield token
    if open_brackets or holds:
        raise ExpressionError("a bracket is not closed")


class _Reader:
    """Precedence climbing on two stacks: finished terms, and the signs and brackets that wait for theirs."""

    def __init__(self) -> None:
        self._terms: list[Term] = []
        self._signs: list[str] = []
        self._numbers: list[Number] = []
        self._depth = 0
        self._is_term_due = True

    def take(self, token: Term | str) -> None:
        if isinstance(token, Term):
            self._take_number(token)
        elif self._is_term_due:
            self._open(token)
        elif token == ")":  # it closes an open bracket, because `_plain` checks the nesting
            self._finish_terms(_SUM)
            self._signs.pop()
            self._depth -= 1
        elif token == "(":
            raise ExpressionError("no sign between two terms")
        else:
            self._finish_terms(_PRECEDENCE[token])
            self._signs.append(token)
            self._is_term_due = True

    def finish(self) -> Expression:
        if not self._numbers:
            raise ExpressionError("no number")
        if self._is_term_due:
            raise ExpressionError("it ends where a number is due")
        self._finish_terms(_SUM)
        (term,) = self._terms
        return Expression(text=term.text, value=term.value, numbers=tuple(self._numbers))

    def _take_number(self, term: Term) -> None:
        if not self._is_term_due:
            raise ExpressionError("no sign between two terms")
        if len(self._numbers) == MAX_NUMBERS:
            raise ExpressionError(f"more than {MAX_NUMBERS} numbers")
        assert term.value is not None
        self._numbers.append(term.value)
        self._terms.append(term)
        self._is_term_due = False

    def _open(self, token: str) -> None:
        """Take a bracket or a sign before a term."""
        if token == "+":
            return
        if token not in ("(", "-"):
            raise ExpressionError(f"'{token}' where a number is due")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"nested more than {MAX_DEPTH} deep")
        self._signs.append("(" if token == "(" else "negative")

    def _finish_terms(self, precedence: int) -> None:
        """Apply the signs that bind at least as tightly as `precedence`, back to the last open bracket."""
        while self._signs and self._signs[-1] != "(" and _PRECEDENCE[self._signs[-1]] >= precedence:
            sign = self._signs.pop()
            right = self._terms.pop()
            if sign == "negative":
                self._depth -= 1
                value = None if right.value is None else -right.value
                self._terms.append(Term(text=f"-{right.bracketed_below(_SIGNED)}", precedence=_SIGNED, value=value))
            else:
                self._terms.append(combined(self._terms.pop(), sign, right))
