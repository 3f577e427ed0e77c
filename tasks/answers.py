r"""Reading an answer out of free text. It is exact, takes time linear in the length of the text, and never raises.

Only the answer part of a response is read: what follows the reasoning, up to the end of the turn
(`tasks.judging`).

The number rule (`last_number`). The last number of the response is its answer.
* A number is a run of digits, with thousands commas ("1,234") and a fraction (".5", "7.0") if it has them. A unit may
  touch it ("7cm"), but the digits of "x2", "7th" or "2x" are not a number. Whatever else surrounds a number is ignored:
  "$7$", "**7**", "7.", "x=7", "\boxed{7}".
* Digits may be of any script, and grouped in other ways, if that can be nothing else: `tasks.numerals` says how.
* A minus sign (ASCII or Unicode) counts if it touches the number or its dollar sign and follows neither a letter, a
  digit nor a closing bracket: "10-3" ends in 3, "is -3" in -3, "-$3" in -3, "10 - 3" in 3.
* Numbers are compared by value, as strings of digits. So a million digits cost nothing and exceed no limit on
  conversion. "007", "7.0" and "+7" are 7, and "-0" is 0. "7.5" and "1.2.3" are last numbers that equal no integer.
* Fractions are not evaluated: the last number of "14/2" is 2.

The stated-number rule (`final_number`), for responses that reason first. The answer stands in the first of these that
exists:
1. the last closed \boxed{...} that is not blank;
2. what follows the last "####", or else the last "answer is" or "Answer:", if a number comes there before any letter. A
   Markdown heading ("#### Step 3", "#### 3. The total") therefore does not count;
3. the last number of the response.
In 1 and 2 the answer is the first number, or the first one behind the last "=" of the box or of the computation that
follows the mark: "the answer is 5 + 10 = 15 dollars" states 15. A computation without "=" is not evaluated, and "5 +
10" equals no number. If words come first, it is the number right behind the last "is" or "=" of the sentence: "Answer:
The largest n is 17." What follows a number is its unit: "72cm", "72 m²" and "50%" state 72, 72 and 50. In 3, "4th" and
"2x" are not numbers. A comma that groups no thousands makes no number: "3,5" could be 3.5 or two numbers, so it equals
neither. A time or a ratio is no number either, but "7:00" is 7. A minus sign at the start may stand apart: "- 5" is -5.
Fractions have their value: "1/2", "½", "\frac{1}{2}" and "0.5" are equal, and so are "1 1/2" and "1.5"; 1/3 is "1/3".
Powers, roots and π are not evaluated: "2^10", "5*10^3" and "2\sqrt{3}" equal no number, and neither do "1/0" and
"1/2/3".

The word rule (`last_word`). The last run of letters is the answer, in any case: "The answer is 'Tac'." states tac.

The text rule (`final_text`). The answer is the last closed \boxed{...} that is not blank, else the last line, up to
case and spacing."""

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from math import gcd

from tasks.base import DEFAULT_JUDGING, JudgingConfig, Verdict, judge
from tasks.numerals import MINUS, with_plain_digits, with_plain_fractions, with_plain_powers

__all__ = [
    "canonical_number",
    "canonical_text",
    "canonical_value",
    "final_number",
    "final_text",
    "last_boxed",
    "last_number",
    "last_word",
    "number_verdict",
    "reference_number",
]

# Matching takes linear time: every quantifier is possessive or backtracks at most one step, and no match starts inside
# a run that has failed. A run of terms, as in "1/2/3", could be entered at each term, so it never fails: its group
# "spoilt" consumes what would make it fail.
_SIGN = rf"(?: (?<! [A-Za-z0-9)\]}}] ) [+{re.escape(MINUS)}] \$? )?"  # a sign, not an operator between two terms
_START = r"(?<! [A-Za-z0-9] ) (?<! [0-9]\. )"  # not inside a word, not in the middle of a number
_TERM = r"""
    (?:
        (?: [0-9]{1,3} (?: ,[0-9]{3} (?![0-9]) )+ | [0-9]++ )  (?: \.[0-9]++ )*+
      | (?<! \. ) \.[0-9]++
    )
"""
_CODE = "[A-Za-z]++ [-+]?[0-9]"  # as in "7b3" and "1e-5"
_NO_UNIT = "(?: st | nd | rd | th | [A-KM-Za-fi-kn-rt-z] ) (?! [A-Za-z] )"  # of an ordinal, or a variable, which is not g, h, l, L, m, s
_NUMBER = re.compile(rf"(?P<value> {_SIGN} {_START} {_TERM} ) (?P<spoilt> {_CODE} | {_NO_UNIT} )?+", re.VERBOSE)

_LIST = r"(?: [0-9]++ (?: \.[0-9]++ )*+ (?: ,[0-9]++ (?: \.[0-9]++ )*+ )++ )"  # commas that group no thousands: no number
_CLOCK = "(?: [0-9]++ (?: :(?! 00(?![0-9]) ) [0-9]++ )++ )"  # a time or a ratio: no number, but 7:00 is 7
_ROOT = r"[√π] [ ]*+ (?: [0-9]++ (?: \.[0-9]++ )?+ )?+"
_POWER = r"\^ [ ]*+ -?+ [0-9]++"
_VALUE = rf"""
    (?: [√π] [ ]*+ (?: / [ ]*+ )?+ )?+
    {_SIGN} {_START} (?<! \^ ) (?<! \^[ ] )           # not the exponent of a unit
    (?: [0-9]++ [ ] (?= [0-9]++ / [0-9] ) )?+         # the whole part of a mixed number
    (?: {_CLOCK} | {_TERM} (?! ,[0-9] ) | {_LIST} ) (?: [ ]?+ / [ ]?+ {_TERM} )*+
    (?: [ ]*+ (?: {_ROOT} | {_POWER} | [*×·x] [ ]*+ (?: {_ROOT} | 10 [ ]?+ {_POWER} ) ) )*+
"""
_STATED_VALUE = re.compile(rf"(?P<value> {_VALUE} ) (?P<spoilt> {_CODE} )?+", re.VERBOSE)
_ANY_VALUE = re.compile(rf"(?P<value> {_VALUE} ) (?P<spoilt> {_CODE} | {_NO_UNIT} )?+", re.VERBOSE)
_MAX_FRACTION_DIGITS = 100  # in each part; longer fractions are not evaluated
_DIGITS = rf"[0-9]{{0,{_MAX_FRACTION_DIGITS}}} (?: \.[0-9]{{1,{_MAX_FRACTION_DIGITS}}} )?"
_FRACTION = re.compile(
    rf"([+{re.escape(MINUS)}]?) \$? (?: ([0-9]{{1,{_MAX_FRACTION_DIGITS}}}) [ ] )? ({_DIGITS}) / ({_DIGITS})", re.VERBOSE
)
_PLAIN = re.compile(rf"-?[0-9]{{1,{_MAX_FRACTION_DIGITS}}}(?:[./][0-9]{{1,{_MAX_FRACTION_DIGITS}}})?")
_REFERENCE = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|-?[0-9]+/[1-9][0-9]*")
_SPACED_OPERATOR = re.compile(r"[ ]*+([/√π^*×·x])[ ]*+")
_WORD = re.compile(r"[^\W\d_]++")
_SPACED_MINUS = re.compile(rf"\A[\s$(:*]*+[{re.escape(MINUS)}]\s++(?=\$?[0-9.√π])")
_NEXT_TERM = re.compile(rf"[ ]*+[+*×·x÷{re.escape(MINUS)}][ ]*+[$(]*+[0-9√π](?:[ ]?+[0-9√π/.])*+")
_LIST_ITEM = re.compile(r"[^\S\n]*+\n\s*+[-*+•]\s")

_BRACE = re.compile(r"\\boxed\s*+\{|\\[{}\\]|[{}]")
_ANSWER_MARKS = (re.compile(r"####(?![ \t]*+[0-9]++[.):][ \t]++[A-Za-z])"), re.compile(r"answer[ \t*_]*+(?:is\b|[:=])", re.IGNORECASE))
_BETWEEN_MARK_AND_ANSWER = " \t\r\n*_:"
_LETTER = re.compile(r"[A-Za-z]")
_SAYS = re.compile(r"(?<![A-Za-z])(?:is|are|equals?(?: to)?)(?![A-Za-z])|=", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]++)*+")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_WORD_AFTER_COMPUTATION = re.compile(r"(?<![A-Za-z])(?![xX](?![A-Za-z]))[A-Za-z]")  # an x alone says "times"

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_MAX_COMPOSED_CHARS = 10_000  # composing may take time that grows with the square of the length
_TEXT_COMMAND = re.compile(r"\s*+\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*+\{([^{}]*+)\}\s*+")
_LATEX_ARGUMENT = r"\s*+(?:\{\s*+(-?+[0-9][0-9,]*+(?:\.[0-9]++)?+)\s*+\}|([0-9]))"
_LATEX_FRACTION = re.compile(rf"\\[cdt]?frac{_LATEX_ARGUMENT}{_LATEX_ARGUMENT}")
_LATEX_THOUSANDS = re.compile(r"\{,\}|(?<=[0-9]),\s*+\\[!,]\s*+(?=[0-9]{3}(?![0-9]))|(?<=[0-9])\\[,!;: ](?=[0-9]{3})")
_LATEX_DECIMAL = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])(?![0-9]{3}(?![0-9]))")
_LATEX = re.compile(r"\\([A-Za-z]++|[^A-Za-z\n])?|[{}~]")
_LATEX_MEANING = {"times": "*", "cdot": "*", "div": "*", "sqrt": "√", "pi": "π", "$": "$", "%": "%", "#": "#"}


def last_number(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the last number of the answer part in canonical form (`canonical_number`), or None."""
    last = _last(_values(_NUMBER, with_plain_digits(judging.answer_part(response))))
    return None if last is None else canonical_number(last["value"])


def last_word(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the last run of letters of the answer part, case-folded, or None."""
    word = _last(_WORD.finditer(judging.answer_part(response)))
    return None if word is None else word.group().casefold()


def final_number(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the number that `response` states as its answer, in canonical form (`canonical_value`), or None."""
    text = judging.answer_part(response)
    box = last_boxed(text)
    if box is not None:
        return _result(_without_latex(box))
    text = _without_latex(text)
    if not _LETTER.search(text) and "\n" not in text.strip():
        text = _SPACED_MINUS.sub("-", text)
    marked = _marked_number(text)
    return _last_value(text) if marked is None else marked


def number_verdict(response: str, answer: str, judging: JudgingConfig = DEFAULT_JUDGING) -> Verdict:
    """Give reward 1.0 if the stated number has the value of `answer`, as exactly as `judging` asks, else 0.0."""
    found, expected = final_number(response, judging), final_number(answer)
    is_rounded = judging.rounding is not None and _are_close(found or "", expected or "", judging.rounding)
    return judge(found, found if is_rounded else expected)


def reference_number(text: str) -> str | None:
    """Return `final_number` of a right answer, or None if it has no value that other spellings could equal. Without a
    box or mark the text must have a single number."""
    if last_boxed(text) is None:
        plain = _without_latex(text)
        numbers = {canonical_value(match["value"]) for match in _values(_ANY_VALUE, plain)}
        if len(numbers) > 1 and _marked_number(plain) is None:
            return None
    number = final_number(text)
    return number if number is not None and _REFERENCE.fullmatch(number) else None


def final_text(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the last box of the answer part, else its last line, in canonical form (`canonical_text`), or None."""
    text = judging.answer_part(response)
    box = last_boxed(text)
    if box is not None:
        return canonical_text(box)
    return canonical_text(text.rstrip().splitlines()[-1]) if text.strip() else None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last closed \boxed{...} that is not blank, the innermost if they nest, or None."""
    opened: list[int | None] = []  # start of the content of each open brace; None: it is not a box's
    start, end = -1, -1
    for match in _BRACE.finditer(text):
        brace = match.group()
        if brace == "}":
            box = opened.pop() if opened else None
            if box is not None and box > start and text[box : match.start()].strip():
                start, end = box, match.start()
        elif brace not in (r"\{", r"\}", r"\\"):
            opened.append(match.end() if len(brace) > 1 else None)
    return text[start:end] if start >= 0 else None


def canonical_number(token: str) -> str:
    """Return the one spelling of a number. It has no plus sign, dollar sign, commas, leading zeros or trailing zeros of
    a fraction, and an ASCII minus if the number is negative."""
    sign = "-" if token[:1] and token[0] in MINUS else ""
    whole, dot, fraction = token.lstrip("+$" + MINUS).replace(",", "").partition(".")
    digits = (whole.lstrip("0") or "0") + (dot + fraction).rstrip("0").rstrip(".")
    return digits if digits == "0" else sign + digits


def canonical_value(token: str) -> str:
    """Return the one spelling of a number or fraction: a decimal if it is one, else "p/q" in lowest terms. A text
    without a value here ("1/0", "1/2/3", "2^10") stays as it is, without spaces around its signs."""
    if not any(operator in token for operator in "/√π^"):
        is_number = not (":" in token or "," in token) or _THOUSANDS.fullmatch(token.lstrip("+$" + MINUS)) is not None
        return canonical_number(token) if is_number else token
    token = _SPACED_OPERATOR.sub(r"\1", token)
    value = _fraction_value(token.replace(",", ""))
    return token if value is None else _spelling(value)


def canonical_text(text: str) -> str:
    r"""Return `text` case-folded, with single spaces and composed letters. Invisible marks are dropped, and so are a
    \text{} and quotes around it."""
    unwrapped = _TEXT_COMMAND.fullmatch(text)
    plain = " ".join((unwrapped[1] if unwrapped else text).translate(_INVISIBLE).split())
    plain = plain if plain.isascii() or len(plain) > _MAX_COMPOSED_CHARS else unicodedata.normalize("NFC", plain)
    num_quotes = min(len(plain) - len(plain.lstrip(_QUOTES)), len(plain) - len(plain.rstrip(_QUOTES)), (len(plain) - 1) // 2)
    return plain[num_quotes : len(plain) - num_quotes].strip().casefold() if num_quotes > 0 else plain.casefold()


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    last = deque(matches, maxlen=1)
    return last[0] if last else None


def _marked_number(text: str) -> str | None:
    """Return the number behind the last mark that a number follows. `text` is free of LaTeX."""
    for mark in _ANSWER_MARKS:
        marks = list(mark.finditer(text))
        ends = [*(match.start() for match in marks), len(text)][1:]
        for match, end in reversed(list(zip(marks, ends, strict=True))):  # up to the next mark, so no character is read twice
            value = _value_at_the_start(text[match.end() : end], is_heading=match.group()[-1] in ":=")
            if value is not None:
                return value
    return None


def _last_value(text: str) -> str | None:
    last = _last(_values(_ANY_VALUE, text))
    return None if last is None else canonical_value(last["value"])


def _values(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    return (match for match in pattern.finditer(text) if match["spoilt"] is None)


def _value_at_the_start(segment: str, *, is_heading: bool) -> str | None:
    """Return the result of the computation at the start of `segment`. If a letter comes before any number, return that
    right behind the last "is" or "=" of the sentence, or None. Behind a heading ("Answer:") such a sentence may be the
    first of a solution: if numbers follow it, its own says nothing."""
    item = _LIST_ITEM.match(segment)
    line = segment[item.end() if item else 0 :].lstrip(_BETWEEN_MARK_AND_ANSWER).partition("\n")[0]
    result = _leading_result(line)
    if result is not None or not _LETTER.search(line):
        return result
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    behind = segment.partition(sentence)[2] if sentence else segment
    if is_heading and any(character.isdigit() for character in behind):
        return None
    parts = _SAYS.split(sentence)
    return next((result for part in reversed(parts[1:]) if (result := _leading_result(part)) is not None), None)


def _leading_result(text: str) -> str | None:
    number = next(_values(_STATED_VALUE, text), None)
    if number is None or _LETTER.search(text, 0, number.start()):
        return None
    word = _WORD_AFTER_COMPUTATION.search(text, number.end())
    return _result(text[: word.start()] if word else text)


def _result(text: str) -> str | None:
    """Return the first number behind the last "=" or, if there is none behind it, the first of all. If a computation
    begins with it, return its first two terms, without blanks and with "*" for the "x" of "3 x 4"."""
    for part in (text.rpartition("=")[2], text):
        part = _SPACED_MINUS.sub("-", part)
        for number in _values(_STATED_VALUE, part):
            more = _NEXT_TERM.match(part, number.end())
            return "".join(part[number.start() : more.end()].replace("x", "*").split()) if more else canonical_value(number["value"])
    return None


def _are_close(first: str, second: str, rounding: int) -> bool:
    """Return whether two values, of which one is a decimal, differ by at most half a unit of a decimal place."""
    if "." not in first + second or not (_PLAIN.fullmatch(first) and _PLAIN.fullmatch(second)):
        return False
    return bool(abs(Fraction(first) - Fraction(second)) * 2 * 10**rounding <= 1)


def _fraction_value(token: str) -> Fraction | None:
    match = _FRACTION.fullmatch(token)
    if match is None or not (match[3] and match[4]):
        return None
    numerator, denominator = Fraction(match[3]), Fraction(match[4])
    if denominator == 0 or (match[2] and numerator >= denominator):
        return None
    value = int(match[2] or 0) + numerator / denominator
    return -value if match[1] and match[1] in MINUS else value


def _spelling(value: Fraction) -> str:
    """Spell a fraction. It is a decimal of k digits if its denominator divides 10^k, so is a product of 2s and 5s."""
    rest, num_decimals = value.denominator, 0
    while rest > 1:
        common = gcd(rest, 10)
        if common == 1:
            return f"{value.numerator}/{value.denominator}"
        rest, num_decimals = rest // common, num_decimals + 1
    digits = str(abs(value.numerator) * 10**num_decimals // value.denominator).zfill(num_decimals + 1)
    split = len(digits) - num_decimals
    return canonical_number(f"{'-' if value < 0 else ''}{digits[:split]}.{digits[split:]}")


def _without_latex(text: str) -> str:
    r"""Return `text` with "\frac{1}{2}" as "1/2", "1{,}234" as "1,234", and other commands as signs or blanks."""
    text = _LATEX_DECIMAL.sub(".", with_plain_fractions(text))
    text = _LATEX_THOUSANDS.sub(lambda match: "," if match.group()[0] in "{," else "", text)
    text = _LATEX_FRACTION.sub(_plain_fraction, text)
    text = _LATEX.sub(lambda match: _LATEX_MEANING.get(match[1] or "", " "), text)
    return with_plain_powers(with_plain_digits(text))


def _plain_fraction(match: re.Match[str]) -> str:
    """Return a fraction as "1/2", after a blank if a digit before it makes a mixed number."""
    before = " " if match.string[match.start() - 1 : match.start()].isdigit() else ""
    return f"{before}{match[1] or match[2]}/{match[3] or match[4]} "
