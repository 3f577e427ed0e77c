r"""Numbers as people write them: digits of any script, and groups of digits, become plain ASCII digits.

    with_plain_digits("1,00,000元")  ->  "100000元"

A group is only joined where it can be nothing else. Those with commas may also be lists of numbers
(`without_blank_groups` leaves them):

| written                                                    | read       |
|------------------------------------------------------------|------------|
| 70 000, 1 234 567 (also with narrow or fixed blanks)       | 1234567    |
| 1,00,000 (Indian groups)                                   | 100000     |
| 1.234,56 and 12 345,67 (a decimal comma behind groups)     | 1234.56    |
| 1.234.567, 1'234'567, 1_234_567                            | 1234567    |
| ７２, ٧٢, ७२ (digits of other scripts)                       | 72         |

"1,234" stays, because a list may have commas too, and so does "3,5". Reading takes linear time."""

import re
import unicodedata

__all__ = [
    "COMMA_GROUPS",
    "MINUS",
    "ungrouped",
    "with_ascii_digits",
    "with_plain_digits",
    "with_plain_fractions",
    "with_plain_powers",
    "without_blank_groups",
]

MINUS = "-\u2212\ufe63\uff0d"
"""The minus signs."""

_BLANKS = "\u0020\u00a0\u2007\u2009\u202f"
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_WIDE_COMMA = re.compile("(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_WIDE_SIGNS = str.maketrans("．＋／％＝＄﹪٫٬", ".+/%=$%.,")
_BEFORE = rf"(?<! [0-9A-Za-z.,/^_'’] ) (?<! [0-9][{_BLANKS}] )"
_AFTER = "(?! [0-9/] | [.,'’_] [0-9] )"
_FIRST = "[1-9][0-9]{0,2}"
_BLANK_GROUPS = re.compile(
    rf"""{_BEFORE} {_FIRST} (?:
        (?: (?: [{_BLANKS}] [0-9]{{3}} )++ | (?: ['’] [0-9]{{3}} )++ | (?: _ [0-9]{{3}} )++ ) (?: \. [0-9]++ )?+
      | (?: \. [0-9]{{3}} ){{2,}}+
    ) {_AFTER}""",
    re.VERBOSE,
)
COMMA_GROUPS = re.compile(
    rf"""{_BEFORE} (?:
        [1-9][0-9]? (?: ,[0-9]{{2}} (?! [0-9] ) )++ ,[0-9]{{3}} (?: \. [0-9]++ )?+
      | {_FIRST} (?: (?: \. [0-9]{{3}} )++ | (?: [{_BLANKS}] [0-9]{{3}} )++ | (?: ['’] [0-9]{{3}} )++ ) , [0-9]++
    ) {_AFTER}""",
    re.VERBOSE,
)
"""Groups with commas, other than plain thousands."""

_DECIMALS = re.compile(r"[.,]([0-9]++)\Z")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_VULGAR = re.compile("[¼½¾⅐-⅞↉]")
_SLASHES = str.maketrans("⁄∕", "//")
_FROM_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")


def with_plain_digits(text: str) -> str:
    """Return `text` with ASCII digits, and without the signs that group them where they can mean nothing else."""
    return COMMA_GROUPS.sub(ungrouped, without_blank_groups(with_ascii_digits(text)))


def without_blank_groups(text: str) -> str:
    """Return `text` without blanks, apostrophes, underscores and full stops between groups of digits."""
    return _BLANK_GROUPS.sub(ungrouped, text)


def with_ascii_digits(text: str) -> str:
    """Return `text` with ASCII digits for those of other scripts, and ASCII signs for wide ones."""
    if text.isascii():
        return text
    text = _WIDE_COMMA.sub(",", text)
    digits = {ord(digit): str(unicodedata.decimal(digit)) for digit in set(_FOREIGN_DIGIT.findall(text))}
    return text.translate(_WIDE_SIGNS).translate(digits)


def with_plain_powers(text: str, opening: str = "", closing: str = "") -> str:
    """Return `text` with "^2" for "²". The exponents stand between `opening` and `closing`."""
    return text if text.isascii() else _RAISED.sub(lambda match: f"^{opening}{match.group().translate(_FROM_RAISED)}{closing}", text)


def ungrouped(match: re.Match[str]) -> str:
    """Return the digits of a match of COMMA_GROUPS. A comma or full stop that differs from the sign between the groups
    comes before the decimals."""
    text = match.group()
    decimals = _DECIMALS.search(text)
    is_group = decimals is None or (len(decimals[1]) == 3 and text.count(decimals.group()[0]) > 1)
    whole, fraction = (text, "") if is_group or decimals is None else (text[: decimals.start()], f".{decimals[1]}")
    return re.sub("[^0-9]", "", whole) + fraction


def with_plain_fractions(text: str) -> str:
    """Return `text` with "1/2" for "½" and "⁄", behind a blank where a digit before it makes a mixed number."""
    return text if text.isascii() else _VULGAR.sub(_plain_fraction, text).translate(_SLASHES)


def _plain_fraction(match: re.Match[str]) -> str:
    before = " " if match.string[match.start() - 1 : match.start()].isdigit() else ""
    return before + unicodedata.normalize("NFKC", match.group())
