r"""The tokens of a mathematical answer, as people and models write it: LaTeX, Unicode, plain text, or a mixture.

    [token.text for token in tokens(r"$\dfrac12\,\text{ cm}$")]  ->  ["\\frac", "12", "cm"]

Reading them takes linear time and never raises. `tasks.mathematics.syntax` says what they mean together."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from tasks.mathematics.words import (
    ALIASES,
    LINKS,
    MATHEMATICAL_TEXT,
    NAMES,
    NUMBER_WORDS,
    ONE_LETTER_UNITS,
    SHORT_WORDS,
    TEXT_COMMANDS,
    UNICODE,
    UNIT_WORDS,
)
from tasks.numerals import COMMA_GROUPS, ungrouped, with_ascii_digits, with_plain_powers, without_blank_groups

__all__ = ["Token", "TokenKind", "tokens", "without_grouping"]


class TokenKind(Enum):
    NUMBER = "number"  # digits, maybe with a decimal fraction
    BASED = "based"  # "digits_base": a numeral and its base
    LETTER = "letter"
    COMMAND = "command"  # with its backslash; aliases are resolved
    SIGN = "sign"  # one character: operators, brackets, separators
    WORD = "word"  # text, in \text{} or bare
    BEGIN = "begin"  # the name of a matrix environment
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    kind: TokenKind
    text: str
    spaced: bool = False
    """Whether blanks precede it."""


_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FROM_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_LAYOUT = re.compile(
    r"""
    \\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?
  | \\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|cal|hfill|strut|allowbreak)(?![A-Za-z])
  | \\(?:begin|end)\s*\{(?:aligned|align\*?|alignedat|eqnarray\*?|equation\*?|gathered|gather\*?|split|math|displaymath|center)\}
  | (?<!\\)\\[()\[\]]  |  (?:(?<!\\)|(?<=\\\\))\$  |  \*\*  |  ["`“”„«»]
    """,
    re.VERBOSE,
)
_SYSTEM_BRACE = re.compile(r"\\left\s*\\(?:\{|lbrace)(?=\s*\\begin)|\\right\s*\.")
_CONTINUED_ROW = re.compile(r"\\\\\s*&?\s*(?=[=<>]|\\(?:leq?|geq?|approx)(?![A-Za-z]))")
_PART_LABEL = re.compile(r"(?:(?<![A-Za-z])(?:for|in)\s+)?(?<![A-Za-z])(?:parts?|case)\s*\(\s*[a-z]{1,3}\s*\)\s*:?", re.IGNORECASE)
_LABELLED_LIST = re.compile(r"\s*\(a\)(?P<first>.*?[\s,;])\(b\)(?P<rest>.*)", re.DOTALL)
_NEXT_LABEL = re.compile(r"[\s,;]\([c-h]\)")
_OVERLINED, _DOTTED = re.compile("((?:[0-9]\u0305)+)"), re.compile("([0-9])\u0307")
_HALF_DAY = re.compile(r"(?<=[0-9])\s*([ap])\.\s?m(?:\.|(?![A-Za-z]))")
_PYTHON_POWER = re.compile(r"(?<=[0-9A-Za-z)\]}])\*\*(?=[0-9A-Za-z(\[{\\-])")  # 2**10, not the bold **10**
_SPACE = re.compile(
    r"""
    \\(?:enspace|thinspace|negthinspace)(?![A-Za-z])  |  \\q?quad(?![A-Za-z]{2})
  | (?<!\\)\\[,;:>!\ \n]
  | ~
  | \\[hv]space\*?\s*\{[^{}]*\}
  | \\h?phantom\s*(?:\{[^{}]*\}|\S)
    """,
    re.VERBOSE,
)
_GROUPING = re.compile(r"(?<=[0-9])(?:\{,\}|,\s*\\!\s*|\\!\s*,\s*|\\,|\{\\,\})(?=[0-9]{3}(?![0-9]))")
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])(?![0-9]{3}(?![0-9]))")
_COMMA_GROUPING = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?!,[0-9])")

_LEXER = re.compile(
    r"""
    (?P<space>   \s+ )
  | (?P<degree>  \^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*(?:[CF](?![A-Za-z]))? | \\degrees?(?![A-Za-z]) )
  | (?P<based>   (?<![A-Za-z0-9.])(?P<digits>[0-9A-F]*[0-9][0-9A-F]*)\s*_\s*
                 (?: (?P<base>[0-9]{1,2})(?![0-9]) | \{\s*(?:\\text\s*\{)?\s*(?P<group>[0-9]{1,2}|[a-z]{2,9})\s*\}?\s*\} ) )
  | (?P<number>  [0-9]+(?:\.[0-9]+)? | \.[0-9]+ )
  | (?P<env>     \\(?P<edge>begin|end)\s*\{\s*(?P<name>[a-zA-Z]+)\*?\s*\}(?:\s*\{[lcr|\s]*\})? )
  | (?P<command> \\[A-Za-z]+ )
  | (?P<escape>  \\\\(?:\[[^\]]*\])? | \\. )
  | (?P<run>     [A-Za-z]+(?![^\W\d_]|[\u0300-\u036f])(?:'+(?![A-Za-z]))? )
  | (?P<foreign> [^\W\d_](?:[^\W\d_]|[\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0900-\u0dff\u0e00-\u0eff])* )
  | (?P<sign>    <= | >= | != | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGN_MEANING = {"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "\\%": "%", "\\_": "_", "\\&": "&", "\\#": "#", "\\|": "|"}
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def tokens(text: str) -> list[Token]:
    """Return all tokens of `text`, without mere layout."""
    return list(_tokens(_tidy(text)))


def without_grouping(text: str) -> str:
    """Return `text` without the commas that group digits outside of brackets. "1,234" could also be a list of two
    numbers, and so could "1,00,000" and "1.234,56"."""
    text = _joined(COMMA_GROUPS, ungrouped, with_ascii_digits(text))
    return _joined(_COMMA_GROUPING, lambda match: match.group().replace(",", ""), text)


def _joined(groups: re.Pattern[str], rule: Callable[[re.Match[str]], str], text: str) -> str:
    return groups.sub(lambda match: match.group() if _in_brackets(text, match.start()) else rule(match), text)


def _in_brackets(text: str, end: int) -> bool:
    opened = sum(text.count(bracket, 0, end) for bracket in ("(", "[", "\\{"))
    return opened > sum(text.count(bracket, 0, end) for bracket in (")", "]", "\\}"))


def _tidy(text: str) -> str:
    text = with_plain_powers(with_ascii_digits(_PYTHON_POWER.sub("^", _HALF_DAY.sub(r" \1m", text))), "{", "}")
    text = _LOWERED.sub(lambda match: f"_{{{match.group().translate(_FROM_LOWERED)}}}", text)
    if not text.isascii():
        text = "".join(UNICODE.get(character, character) for character in text)
        text = "".join(map(_plain_character, unicodedata.normalize("NFKC", text)))
        text = _OVERLINED.sub(lambda match: f"\\overline{{{match[1].replace(chr(0x305), '')}}}", _DOTTED.sub(r"\\dot{\1}", text))
    text = _CONTINUED_ROW.sub(" ", text)
    text = _PART_LABEL.sub(" ", _SYSTEM_BRACE.sub(" ", text))
    text = _LABELLED_LIST.sub(_without_labels, text)
    text = _GROUPING.sub("", _DECIMAL_COMMA.sub(".", _LAYOUT.sub(" ", text)))
    return without_blank_groups(_SPACE.sub(lambda match: "" if match.group() == r"\!" else " ", text))


def _plain_character(character: str) -> str:
    """Drop an invisible mark, and read any currency as dollars."""
    category = unicodedata.category(character)
    return "" if category == "Cf" else r"\$" if category == "Sc" and character != "$" else character


def _without_labels(match: re.Match[str]) -> str:
    """Return the items of "(a) 3, (b) 5" with a comma between them."""
    rest = _NEXT_LABEL.sub(", ", match["rest"])
    return f"{match['first'].rstrip(' ,;')}, {rest}"


def _tokens(text: str) -> Iterator[Token]:
    position, spaced = 0, False
    while position < len(text):
        match = _LEXER.match(text, position)
        assert match is not None, "the last alternative matches any character"
        position = match.end()
        if match["space"] is not None:
            spaced = True
            continue
        if match["command"] is not None and match["command"][1:] in TEXT_COMMANDS:
            content, position = _argument(text, position)
            found: Iterator[Token] = _of_text(match["command"][1:], content, spaced)
        elif match["foreign"] is not None:
            found = _of_foreign(match["foreign"], spaced)
        elif match["run"] is not None:
            found = _of_run(match["run"], spaced, text[match.start() - 1 : match.start()], text[position : position + 1])
        else:
            found = _of_match(match, spaced)
        yield from found
        spaced = False


def _of_match(match: re.Match[str], spaced: bool) -> Iterator[Token]:
    if match["degree"] is not None:
        yield Token(TokenKind.SIGN, "°", spaced)
    elif match["based"] is not None:
        base = match["base"] or match["group"]
        yield Token(TokenKind.BASED, f"{match['digits']}_{NUMBER_WORDS.get(base, base)}", spaced)
    elif match["number"] is not None:
        yield Token(TokenKind.NUMBER, match["number"], spaced)
    elif match["env"] is not None:
        yield Token(TokenKind.BEGIN if match["edge"] == "begin" else TokenKind.END, match["name"], spaced)
    elif match["command"] is not None:
        yield _named(ALIASES.get(match["command"][1:], match["command"]), spaced)
    else:
        text = match.group()
        yield _named("\\\\" if text.startswith("\\\\") else _SIGN_MEANING.get(text, text), spaced)


def _named(text: str, spaced: bool) -> Token:
    if len(text) == 1:
        return Token(TokenKind.LETTER if text.isalpha() else TokenKind.SIGN, text, spaced)
    return Token(TokenKind.COMMAND, text, spaced)


def _argument(text: str, position: int) -> tuple[str, int]:
    """Return the content of the braces at `position`, and where they end. Without braces the argument is a single
    character; if they never close, it is all the rest."""
    start = position
    while start < len(text) and text[start].isspace():
        start += 1
    if text[start : start + 1] != "{":
        return text[start : start + 1], start + 1
    depth = 0
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start + 1 : match.start()], match.end()
    return text[start + 1 :], len(text)


_NUMBER_IN_TEXT = re.compile(r"[-+]?[0-9][0-9.,/]*+(?:%|\s++[A-Za-z]++(?:\s++[A-Za-z]++)?)?|[-+*/=<>,;:().\[\]\s]*")
"""A number, with its unit if it has one, or signs alone."""


def _of_text(command: str, content: str, spaced: bool) -> Iterator[Token]:
    r"""Yield the tokens of \text{...}: words, or mathematics if it contains a number, a command or \mathrm{e}."""
    plain = content.strip()
    is_mathematics = "\\" in plain or "$" in content or _NUMBER_IN_TEXT.fullmatch(plain) is not None
    if is_mathematics or (command in MATHEMATICAL_TEXT and (len(plain) == 1 or command in ("boxed", "fbox") or plain in NAMES)):
        yield from (
            Token(token.kind, token.text, token.spaced or (spaced and number == 0)) for number, token in enumerate(_tokens(_tidy(content)))
        )
        return
    link = plain.strip(" ,;.").casefold()
    if link in LINKS:
        yield Token(TokenKind.SIGN, ",", spaced)
        return
    head, _, rest = plain.partition(" ")
    if head.strip(",").casefold() in LINKS and rest:  # \text{and } before what it joins
        yield Token(TokenKind.SIGN, ",", spaced)
        plain = rest
    yield from _word(" ".join(plain.split()), spaced)


def _word(text: str, spaced: bool) -> Iterator[Token]:
    name = text.casefold().strip(" .")
    if name in ("percent", "percentage", "pct"):
        yield Token(TokenKind.SIGN, "%", spaced)
    elif name in ("degrees", "degree", "deg"):
        yield Token(TokenKind.SIGN, "°", spaced)
    else:
        yield Token(TokenKind.WORD, text, spaced)


def _of_run(run: str, spaced: bool, before: str, after: str) -> Iterator[Token]:
    """Yield the tokens of bare letters: a mathematical name, a word, or letters side by side."""
    if run in NAMES and not (run in UNIT_WORDS and after != "("):
        yield _named(ALIASES.get(run, f"\\{run}"), spaced)
    elif run.casefold() in LINKS:
        yield Token(TokenKind.SIGN, ",", spaced)
    elif _is_word(run, spaced, before, after):
        yield from _word(run, spaced)
    else:
        name = run.rstrip("'")
        for number, letter in enumerate(name):
            primes = run[len(name) :] if number == len(name) - 1 else ""
            yield Token(TokenKind.LETTER, letter + primes, spaced and number == 0)


def _of_foreign(run: str, spaced: bool) -> Iterator[Token]:
    """Yield the tokens of letters of which some are not ASCII: Greek letters are symbols, and others are a word."""
    if all(unicodedata.name(letter, "").startswith("GREEK") for letter in run) and len(run) < 3:
        for number, letter in enumerate(run):
            yield Token(TokenKind.LETTER, letter, spaced and number == 0)
    else:
        yield from _word(run, spaced)


def _is_word(run: str, spaced: bool, before: str, after: str) -> bool:
    """Return whether letters are a word: three or more, a short word, or a unit behind a number. "2xyz" and "abc+1"
    have letters side by side instead."""
    if len(run) == 1:
        return run in ONE_LETTER_UNITS and spaced and before in ("", " ") and not after.strip(" .,;")
    if run in SHORT_WORDS:
        return True
    stands_alone = not (before.strip() and before in "0123456789})+-*/=^_") and not (after and after in "^_+-*/=0123456789'(")
    return len(run) > 4 or (len(run) > 2 and stands_alone)
