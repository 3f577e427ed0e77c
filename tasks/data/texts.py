r"""What is wrong with a text that a file gives, if no response could ever match it, or no model was meant to read it.

    fault(json.loads(r'"\frac{1}{2}"'), is_answer=True)   ->  "holds a form feed before 'rac{1}{2}': ..."

JSON reads "\f", "\b", "\t", "\n" and "\r" as control characters. So LaTeX that is written with one backslash loses the
first letter of its commands. In a short answer, a tab or a carriage return before a letter is enough to say so. A
prompt and a whole solution may hold code or wrapped lines, so there the rest of a command must follow. NaN and Infinity
are no answers either: they are what programs write for a value that is missing or too large. A lone surrogate is half
of a character."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

__all__ = ["fault"]

_NAMES = {
    "\x08": "a backspace",
    "\x0c": "a form feed",
    "\t": "a tab",
    "\n": "a line break",
    "\r": "a carriage return",
    "\0": "a null character",
}
_LETTERS = {"\x08": "b", "\x0c": "f", "\t": "t", "\n": "n", "\r": "r"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_END = "(?![A-Za-z])"
_TABS = (
    rf"\t(?=(?:heta|imes|au|herefore|hinspace|riangle|anh){_END}|ext(?:bf|it|rm|tt|sf)?\s*\{{|binom\{{|ilde\{{|an[\\^({{])"
    rf"|\t(?=frac\s*[0-9\\{{])|(?<=[\^{{])\t(?=op{_END})"
)
_BREAKS = rf"\n(?=(?:abla|otin|leq|geq|eqq|leqslant|geqslant|rightarrow|leftarrow){_END})"
_RETURNS = rf"\r(?=(?:ho|angle|ceil|floor|brace|brack|ightarrow|ightharpoonup|oot){_END}|ight\s*[\\)\]}}|.]|m\{{)"
_IN_PROMPT = re.compile(f"{_TABS}|{_BREAKS}|{_RETURNS}")
_IN_ANSWER = re.compile(rf"(?<![\n\t])\t(?=[A-Za-z])|{_TABS}|\r(?=[A-Za-z])|{_BREAKS}|(?<=[^\n\r])\n(?=(?:e|eq|eg|u|ot){_END})")
_NOT_A_NUMBER = re.compile(r"[\s$]*+(?:####|\\boxed\s*+\{)?+[\s$]*+[-+]?nan[\s$}.]*+", re.IGNORECASE)
_MAX_BARE_CHARS = 200  # a longer answer is a solution
_NAN = "states no single number: 'NaN' stands for a value that is missing"
_NUM_SHOWN = 20


def fault(value: Any, *, is_answer: bool) -> str | None:
    """Return what is wrong with `value`, and the likely cause, or None. Lists and objects are searched."""
    match value:
        case str():
            return _fault_of_text(value, is_answer=is_answer)
        case float() | Decimal() if not math.isfinite(value):
            return "is Infinity: the number is larger than a float can be" if not math.isnan(value) else _NAN
        case list() | tuple():
            return next((found for item in value if (found := fault(item, is_answer=is_answer)) is not None), None)
        case Mapping():
            return fault([item for pair in value.items() for item in pair], is_answer=is_answer)
    return None


def _fault_of_text(text: str, *, is_answer: bool) -> str | None:
    surrogate = _SURROGATE.search(text)
    if surrogate is not None:
        return f"holds a lone surrogate, {ascii(surrogate.group())[1:-1]}, which is half of a character: the text was cut or badly escaped"
    is_bare = is_answer and len(text) <= _MAX_BARE_CHARS
    found = _CONTROL.search(text) or (_IN_ANSWER if is_bare else _IN_PROMPT).search(text)
    if found is not None:
        return _of_control(found.group(), text[found.end() : found.end() + _NUM_SHOWN])
    if is_answer and _NOT_A_NUMBER.fullmatch(text):
        return _NAN
    if is_answer and "\ufffd" in text:
        return "holds the sign for an unreadable character, U+FFFD: the file was written from another encoding"
    return None


def _of_control(character: str, after: str) -> str:
    name = _NAMES.get(character, f"the control character U+{ord(character):04X}")
    if character not in _LETTERS:
        return f"holds {name}"
    command = "".join(re.findall(r"\A[A-Za-z]*", after))
    example = rf'"\{_LETTERS[character]}{command}"' if command else f'"\\{_LETTERS[character]}"'
    return f"holds {name} before {after!r}: in JSON the backslash of {example} is written twice"
