"""Reading an answer out of free text. Exact, linear in the length of the text, and never raises.

The number rule. The last number of the reply is its answer.
* A number is a run of ASCII digits, with thousands commas ("1,234") and a fraction (".5", "7.0") if it has them, that touches no ASCII
  letter: the digits of "x2" or "7th" are no number. Whatever else surrounds it is ignored: "$7$", "**7**", "7.", "x=7", "\\boxed{7}".
* A minus sign (ASCII or Unicode) counts when it touches the number and follows neither letter, digit nor closing bracket: "10-3" ends
  in 3, "is -3" in -3, "10 - 3" in 3.
* Numbers are compared by value as strings of digits, so a number of a million digits costs nothing and trips no conversion limit:
  "007", "7.0" and "+7" are 7, "-0" is 0. "7.5" and "1.2.3" are the last number and equal no integer.
* Fractions are not evaluated: the last number of "14/2" is 2.

The word rule. The last run of letters is the answer, whatever the case: "The answer is 'Tac'." says tac.
"""

from __future__ import annotations

import re
from collections import deque

__all__ = ["canonical_number", "last_number", "last_word"]

_MINUS = "-\u2212\ufe63\uff0d"

# Every quantifier is possessive or backtracks at most one step, and no match starts inside a run that has failed: linear time.
_NUMBER = re.compile(
    rf"""
    (?: (?<! [A-Za-z0-9)\]}}] ) [+{re.escape(_MINUS)}] )?  # a sign, not an operator between two terms
    (?<! [A-Za-z0-9] ) (?<! [0-9]\. )                   # not inside a word, not in the middle of a number
    (?:
        (?: [0-9]{{1,3}} (?: ,[0-9]{{3}} (?![0-9]) )+ | [0-9]++ )  (?: \.[0-9]++ )*+
      | (?<! \. ) \.[0-9]++
    )
    (?! [A-Za-z0-9] )
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"[^\W\d_]++")


def last_number(text: str) -> str | None:
    """The last number of `text` in canonical form (see `canonical_number`), or None where it has none."""
    token = _last_match(_NUMBER, text)
    return None if token is None else canonical_number(token)


def last_word(text: str) -> str | None:
    """The last run of letters of `text`, case-folded, or None where it has none."""
    word = _last_match(_WORD, text)
    return None if word is None else word.casefold()


def canonical_number(token: str) -> str:
    """One spelling a value: no plus sign, commas, leading zeros or zero fraction; an ASCII minus except on 0."""
    sign = "-" if token[:1] and token[0] in _MINUS else ""
    whole, dot, fraction = token.lstrip("+" + _MINUS).replace(",", "").partition(".")
    digits = (whole.lstrip("0") or "0") + (dot + fraction).rstrip("0").rstrip(".")
    return digits if digits == "0" else sign + digits


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0].group() if last else None
