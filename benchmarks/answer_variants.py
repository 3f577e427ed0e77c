r"""Other forms of right answers, and wrong answers near them, to measure the error rates of the verifier with.

    equivalents(r"\frac{3}{4}")    ->  {"plain fraction": "3/4", "dfrac": r"\dfrac{3}{4}", ...}
    perturbations(r"\frac{3}{4}")  ->  {"digit": r"\frac{3}{5}", "inverted": r"\frac{4}{3}", ...}

Each is made from the text of the answer by a rule that does not know how the verifier reads it. A rule yields nothing
if it does not apply to the answer or, for a perturbation, would not change its value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

__all__ = ["equivalents", "perturbations"]

Rule = Callable[[str], str | None]

_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_ANY_FRACTION = re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_SCALAR = re.compile(r"-?(?:[0-9.]+|\\[dt]?frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\}|\\pi|i|[ +])*")
_NUMBER = re.compile(r"(?<![0-9_{^])[0-9]+(?![0-9}]*[_^])")
_TEXT = re.compile(r"\\text\{([^{}\\]+)\}")
_BRACKETED = re.compile(r"(?:\\left)?\s*([(\[])(.+?,.+?)(?:\\right)?\s*([)\]])")


def equivalents(answer: str) -> dict[str, str]:
    """Return the same answer in other forms, by the name of the rule."""
    return _applied(_EQUIVALENTS, answer)


def perturbations(answer: str) -> dict[str, str]:
    """Return other answers, by the name of the rule."""
    return _applied(_PERTURBATIONS, answer)


def _applied(rules: Mapping[str, Rule], answer: str) -> dict[str, str]:
    answer = answer.strip().rstrip(".,")
    found = {name: rule(answer) for name, rule in rules.items()}
    return {name: text for name, text in found.items() if text is not None and text != answer}


def _is_scalar(answer: str) -> bool:
    return bool(answer) and _SCALAR.fullmatch(answer) is not None and any(character.isalnum() for character in answer)


def _items(answer: str) -> list[str]:
    """Return the items of a list without brackets; none if it is no such list."""
    plain = re.sub(r",\\!\s*|\{,\}", "", answer)
    is_list = "," in plain and re.search(r"[()\[\]=]|\\\{|\\text|\\mbox", plain) is None
    is_number = re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", plain) is not None
    return [item.strip() for item in plain.split(",")] if is_list and not is_number else []


# ---- the same answer


def _with_left_and_right(answer: str) -> str | None:
    is_one = answer[0] in "([" and answer[-1] in ")]" and not re.search(r"\\cup|\\left|[)\]].*[(\[]", answer)
    return f"\\left{answer[:-1]}\\right{answer[-1]}" if is_one else None


def _thousands(answer: str) -> str | None:
    return f"{int(answer):,}" if _INTEGER.fullmatch(answer) and abs(int(answer)) >= 1000 else None


def _plain_fraction(answer: str) -> str | None:
    match = _FRACTION.fullmatch(answer)
    return f"{match[1]}{match[2]}/{match[3]}" if match else None


def _unreduced(answer: str) -> str | None:
    match = _FRACTION.fullmatch(answer)
    return f"{match[1]}\\frac{{{3 * int(match[2])}}}{{{3 * int(match[3])}}}" if match else None


def _as_fraction(answer: str) -> str | None:
    return f"\\frac{{{2 * int(answer)}}}{{2}}" if _INTEGER.fullmatch(answer) else None


def _reordered(answer: str) -> str | None:
    items = _items(answer)
    return ", ".join(items[::-1]) if items else None


def _in_words(answer: str) -> str | None:
    items = _items(answer)
    return f"{', '.join(items[:-1])} \\text{{ and }} {items[-1]}" if items else None


def _as_set(answer: str) -> str | None:
    items = _items(answer)
    return f"\\{{{', '.join(items)}\\}}" if items and len(set(items)) == len(items) else None


def _without_text(answer: str) -> str | None:
    match = _TEXT.fullmatch(answer)
    return match[1] if match and match[1].isalpha() else None


def _nothing_added(answer: str) -> str | None:
    is_expression = re.fullmatch(r"(?:[-+0-9a-z^{} ()]|\\frac|\\sqrt|\\pi)+", answer) is not None and re.search("[xyzabn]", answer)
    return f"0+{answer}" if is_expression and not answer.startswith("-") else None


_EQUIVALENTS: Mapping[str, Rule] = {
    "in dollar signs, with a full stop": lambda answer: f"${answer}$.",
    "dfrac": lambda answer: answer.replace("\\frac", "\\dfrac"),
    "left and right": _with_left_and_right,
    "display style": lambda answer: f"\\displaystyle {answer}",
    "named": lambda answer: f"x = {answer}" if _is_scalar(answer) else None,
    "with a unit": lambda answer: f"{answer}\\text{{ units}}" if _is_scalar(answer) else None,
    "thousands commas": _thousands,
    "decimal zeros": lambda answer: f"{answer}.00" if _INTEGER.fullmatch(answer) else None,
    "integer as fraction": _as_fraction,
    "plain fraction": _plain_fraction,
    "unreduced": _unreduced,
    "trailing zero": lambda answer: f"{answer}0" if _DECIMAL.fullmatch(answer) else None,
    "list in other order": _reordered,
    "list in words": _in_words,
    "list as set": _as_set,
    "bare words": _without_text,
    "zero added": _nothing_added,
    "degrees in words": lambda answer: answer.replace("^\\circ", "\\text{ degrees}") if answer.endswith("^\\circ") else None,
    "percent in words": lambda answer: answer.replace("\\%", " percent") if answer.endswith("\\%") else None,
}


# ---- other answers


def _other_digit(answer: str) -> str | None:
    """Change the last digit of the last number that is not an exponent or an index."""
    matches = list(_NUMBER.finditer(answer))
    if not matches or "text" in answer or "\\sum" in answer:
        return None
    end = matches[-1].end()
    return f"{answer[: end - 1]}{(int(answer[end - 1]) + 1) % 10}{answer[end:]}"


def _other_sign(answer: str) -> str | None:
    if not _is_scalar(answer) or re.fullmatch(r"[-0. ]+", answer) or "+" in answer[1:] or "-" in answer[1:]:
        return None
    return answer[1:] if answer.startswith("-") else f"-{answer}"


def _inverted(answer: str) -> str | None:
    match = _ANY_FRACTION.search(answer)
    if match is None or match[1] == match[2] or int(match[1]) == 0:
        return None
    return f"{answer[: match.start()]}\\frac{{{match[2]}}}{{{match[1]}}}{answer[match.end() :]}"


def _other_bracket(answer: str) -> str | None:
    match = _BRACKETED.fullmatch(answer)
    if match is None:
        return None
    return f"{'[' if match[1] == '(' else '('}{match[2]}{match[3]}"


def _last_coordinate(answer: str) -> str | None:
    match = _BRACKETED.fullmatch(answer)
    return None if match is None or "infty" in match[2].rpartition(",")[2] else f"{match[1]}{match[2]}+1{match[3]}"


def _first_coordinate(answer: str) -> str | None:
    match = _BRACKETED.fullmatch(answer)
    return None if match is None or "infty" in match[2].partition(",")[0] else f"{match[1]}1+{match[2]}{match[3]}"


def _item_missing(answer: str) -> str | None:
    items = _items(answer)
    return ", ".join(items[:-1]) if items else None


def _item_more(answer: str) -> str | None:
    items = _items(answer)
    return ", ".join([*items, "977"]) if items else None


def _other_letter(answer: str) -> str | None:
    match = re.fullmatch(r"\\text\{\(?([A-E])\)?\}", answer)
    return f"\\text{{{chr(ord(match[1]) + 1)}}}" if match else None


_PERTURBATIONS: Mapping[str, Rule] = {
    "digit": _other_digit,
    "sign": _other_sign,
    "inverted": _inverted,
    "ten times": lambda answer: f"{answer}0" if _INTEGER.fullmatch(answer) and int(answer) else None,
    "a half more": lambda answer: f"{answer}.5" if _INTEGER.fullmatch(answer) else None,
    "one more": lambda answer: f"1+{answer}" if _is_scalar(answer) and not answer.startswith("-") else None,
    "bracket": _other_bracket,
    "last coordinate": _last_coordinate,
    "first coordinate": _first_coordinate,
    "item missing": _item_missing,
    "item more": _item_more,
    "other option": _other_letter,
    "its variable": lambda answer: f"{answer}+x" if re.fullmatch(r"[-+0-9x^{} ]+", answer) and "x" in answer else None,
}
