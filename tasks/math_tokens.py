r"""The words of a mathematical answer, as people and models type them: LaTeX, Unicode, plain text, or a mixture.

    [token.text for token in tokens(r"$\dfrac12\,\text{ cm}$")]  ->  ["\\frac", "12", "cm"]

Linear in the length of the text; never raises. What they mean together is `tasks.math_syntax`'s business.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = ["NUMBER_WORDS", "Kind", "Token", "tokens", "without_grouping"]


class Kind(Enum):
    NUMBER = "number"  # digits, with a decimal fraction if there is one
    BASED = "based"  # "digits_base": a numeral with the base it is written in
    LETTER = "letter"
    COMMAND = "command"  # with its backslash, aliases resolved
    SIGN = "sign"  # one character: operators, brackets, separators
    WORD = "word"  # text, in \text{} or bare
    BEGIN = "begin"  # of a matrix
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    text: str
    spaced: bool = False
    """Whether blanks come before it."""


NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
        "twenty".split()
    )
}

_UNICODE = {
    **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u2012\u2013\u2014", "-"),
    **dict.fromkeys("\u00b7\u22c5\u2219\u00d7\u2217", "*"),
    **{"÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ "},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\varnothing ", "ℝ": r"\mathbb{R}", "∖": r"\setminus ", "′": "'"},
    **{"⟨": r"\langle ", "⟩": r"\rangle ", "€": r"\$", "£": r"\$", "¢": r"\text{cents}", "\u00a0": " ", "\u202f": " ", "\u2009": " "},
    **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}"},
    **{"⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}"},
    **{
        letter: rf"\{name} "
        for letter, name in zip("αβγδεθλμφω", "alpha beta gamma delta epsilon theta lambda mu phi omega".split(), strict=True)
    },
}
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FROM_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_FROM_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_LAYOUT = re.compile(
    r"""
    \\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?
  | \\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|cal|hfill|strut|allowbreak)(?![A-Za-z])
  | \\(?:begin|end)\s*\{(?:aligned|align\*?|equation\*?|gathered|split|math|displaymath|center)\}
  | (?<!\\)\\[()\[\]]  |  (?<!\\)\$  |  \*\*
    """,
    re.VERBOSE,
)
_SPACE = re.compile(
    r"\\(?:quad|qquad|enspace|thinspace|negthinspace)(?![A-Za-z])|(?<!\\)\\[,;:>! \n]|~|\\[hv]space\*?\s*\{[^{}]*\}|\\h?phantom\s*(?:\{[^{}]*\}|\S)"
)
_GROUPING = re.compile(r"(?<=[0-9])(?:\{,\}|,\s*\\!\s*|\\!\s*,\s*|\\,|\{\\,\})(?=[0-9]{3}(?![0-9]))")
_BLANK_GROUPING = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])")
_COMMA_GROUPING = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?!,[0-9])")

_ALIASES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("times", "cdot", "ast", "star", "bullet"), "*"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), r"\le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("dots", "cdots", "dotsc", "dotsb"), r"\ldots"),
    **dict.fromkeys(("infin", "infinity", "inf"), r"\infty"),
    **dict.fromkeys(("euro", "pounds", "textdollar"), r"\$"),
    **{"emptyset": r"\varnothing", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")"},
    **{"lt": "<", "gt": ">", "neq": r"\ne", "div": "/", "imath": "i", "backslash": r"\setminus", "bigcup": r"\cup", "percent": "%"},
    **{
        "thickapprox": r"\approx",
        "simeq": r"\approx",
        "varphi": r"\phi",
        "varepsilon": r"\epsilon",
        "vartheta": r"\theta",
        "implies": r"\Rightarrow",
    },
    **{
        "land": ",",
        "lor": ",",
        "wedge": ",",
        "vee": ",",
        "colon": ":",
        "slash": "/",
        "prime": "'",
        "bmod": r"\mod",
        "pmod": r"\mod",
        "to": r"\Rightarrow",
    },
}
_NAMES = frozenset(
    "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp gcd lcm max min sqrt frac binom pi infty theta alpha beta "
    "infinity inf".split()
)
"""Mathematics, when they are written without a backslash."""
UNIT_WORDS = frozenset("cm mm km dm kg mg lb lbs oz ft mi yd in hr hrs min sec ml mL pm am PM AM sq cc mph kph rpm deg rad usd USD".split())
_LINKS = frozenset(("and", "or"))
_SHORT_WORDS = UNIT_WORDS | _LINKS | {"is", "no", "to", "of", "if", "an"}
_ONE_LETTER_UNITS = frozenset("mgsLlh")

_TEXT_COMMANDS = frozenset(
    "text textbf textit textrm textsf texttt textsc textup textnormal mbox hbox mathrm mathbf mathit mathsf mathtt operatorname boldsymbol bm "
    "emph underline boxed fbox".split()
)
_MATHEMATICAL_COMMANDS = frozenset("mathrm mathbf mathit mathsf mathtt operatorname boldsymbol bm underline boxed fbox".split())
_LEXER = re.compile(
    r"""
    (?P<space>   \s+ )
  | (?P<degree>  \^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*(?:[CF](?![A-Za-z]))? | \\degrees?(?![A-Za-z]) )
  | (?P<based>   (?<![A-Za-z0-9.])(?P<digits>[0-9A-F]*[0-9][0-9A-F]*)\s*_\s*(?:(?P<base>[0-9]{1,2})(?![0-9])|\{\s*(?:\\text\s*\{)?\s*(?P<group>[0-9]{1,2}|[a-z]{2,9})\s*\}?\s*\}) )
  | (?P<number>  [0-9]+(?:\.[0-9]+)? | \.[0-9]+ )
  | (?P<env>     \\(?P<edge>begin|end)\s*\{\s*(?P<name>[a-zA-Z]+)\*?\s*\}(?:\s*\{[lcr|\s]*\})? )
  | (?P<command> \\[A-Za-z]+ )
  | (?P<escape>  \\\\(?:\[[^\]]*\])? | \\. )
  | (?P<run>     [A-Za-z]+(?:'+(?![A-Za-z]))? )
  | (?P<sign>    <= | >= | != | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGN_MEANING = {"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "\\%": "%", "\\_": "_", "\\&": "&", "\\#": "#", "\\|": "|"}
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def tokens(text: str) -> list[Token]:
    """All tokens of `text`, without what is layout only."""
    return list(_tokens(_tidy(text)))


def without_grouping(text: str) -> str:
    """`text` with its plain thousands commas taken out, outside of brackets: "1,234" could also be a list of two numbers."""
    return _COMMA_GROUPING.sub(lambda match: match.group() if _in_brackets(text, match.start()) else match.group().replace(",", ""), text)


def _in_brackets(text: str, end: int) -> bool:
    opened = sum(text.count(bracket, 0, end) for bracket in ("(", "[", "\\{"))
    return opened > sum(text.count(bracket, 0, end) for bracket in (")", "]", "\\}"))


def _tidy(text: str) -> str:
    text = _RAISED.sub(lambda match: f"^{{{match.group().translate(_FROM_RAISED)}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{match.group().translate(_FROM_LOWERED)}}}", text)
    if not text.isascii():
        text = "".join(_UNICODE.get(character, character) for character in text)
        text = "".join(character for character in unicodedata.normalize("NFKC", text) if unicodedata.category(character) != "Cf")
    text = _SPACE.sub(lambda match: "" if match.group() == r"\!" else " ", _GROUPING.sub("", _LAYOUT.sub(" ", text)))
    return _BLANK_GROUPING.sub(lambda match: match.group().replace(" ", ""), text)


def _tokens(text: str) -> Iterator[Token]:
    position, spaced = 0, False
    while position < len(text):
        match = _LEXER.match(text, position)
        assert match is not None, "the last alternative matches any character"
        position = match.end()
        if match["space"] is not None:
            spaced = True
            continue
        if match["command"] is not None and match["command"][1:] in _TEXT_COMMANDS:
            content, position = _argument(text, position)
            found: Iterator[Token] = _of_text(match["command"][1:], content, spaced)
        elif match["run"] is not None:
            found = _of_run(match["run"], spaced, text[match.start() - 1 : match.start()], text[position : position + 1])
        else:
            found = _of_match(match, spaced)
        yield from found
        spaced = False


def _of_match(match: re.Match[str], spaced: bool) -> Iterator[Token]:
    if match["degree"] is not None:
        yield Token(Kind.SIGN, "°", spaced)
    elif match["based"] is not None:
        base = match["base"] or match["group"]
        yield Token(Kind.BASED, f"{match['digits']}_{NUMBER_WORDS.get(base, base)}", spaced)
    elif match["number"] is not None:
        yield Token(Kind.NUMBER, match["number"], spaced)
    elif match["env"] is not None:
        yield Token(Kind.BEGIN if match["edge"] == "begin" else Kind.END, match["name"], spaced)
    elif match["command"] is not None:
        yield _named(_ALIASES.get(match["command"][1:], match["command"]), spaced)
    else:
        text = match.group()
        yield _named("\\\\" if text.startswith("\\\\") else _SIGN_MEANING.get(text, text), spaced)


def _named(text: str, spaced: bool) -> Token:
    if len(text) == 1:
        return Token(Kind.LETTER if text.isalpha() else Kind.SIGN, text, spaced)
    return Token(Kind.COMMAND, text, spaced)


def _argument(text: str, position: int) -> tuple[str, int]:
    """What the braces at `position` hold, and where they end; a single character without braces; all the rest where they never close."""
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


def _of_text(command: str, content: str, spaced: bool) -> Iterator[Token]:
    r"""\text{...}: words, but mathematics where it holds mathematics: a number, a command, \mathrm{e}."""
    plain = content.strip()
    is_mathematics = "\\" in plain or "$" in content or re.fullmatch(r"[-+]?[0-9][0-9.,/]*[%]?|[-+*/=<>,;:().\[\]\s]*", plain) is not None
    if is_mathematics or (command in _MATHEMATICAL_COMMANDS and (len(plain) == 1 or command in ("boxed", "fbox") or plain in _NAMES)):
        yield from (
            Token(token.kind, token.text, token.spaced or (spaced and number == 0)) for number, token in enumerate(_tokens(_tidy(content)))
        )
        return
    link = plain.strip(" ,;.").casefold()
    if link in _LINKS:
        yield Token(Kind.SIGN, ",", spaced)
        return
    head, _, rest = plain.partition(" ")
    if head.strip(",").casefold() in _LINKS and rest:  # \text{and } in front of what it joins
        yield Token(Kind.SIGN, ",", spaced)
        plain = rest
    yield from _word(" ".join(plain.split()), spaced)


def _word(text: str, spaced: bool) -> Iterator[Token]:
    name = text.casefold().strip(" .")
    if name in ("percent", "percentage", "pct"):
        yield Token(Kind.SIGN, "%", spaced)
    elif name in ("degrees", "degree", "deg"):
        yield Token(Kind.SIGN, "°", spaced)
    else:
        yield Token(Kind.WORD, text, spaced)


def _of_run(run: str, spaced: bool, before: str, after: str) -> Iterator[Token]:
    """Bare letters: a name of mathematics, a word, or letters side by side."""
    if run in _NAMES and not (run in UNIT_WORDS and after != "("):
        yield _named(_ALIASES.get(run, f"\\{run}"), spaced)
    elif run.casefold() in _LINKS:
        yield Token(Kind.SIGN, ",", spaced)
    elif _is_word(run, spaced, before, after):
        yield from _word(run, spaced)
    else:
        name = run.rstrip("'")
        for number, letter in enumerate(name):
            primes = run[len(name) :] if number == len(name) - 1 else ""
            yield Token(Kind.LETTER, letter + primes, spaced and number == 0)


def _is_word(run: str, spaced: bool, before: str, after: str) -> bool:
    """Three letters or more, a short word, or a unit behind a number; but "2xyz" and "abc+1" are letters side by side."""
    if len(run) == 1:
        return run in _ONE_LETTER_UNITS and spaced and before in ("", " ") and not after.strip(" .,;")
    if run in _SHORT_WORDS:
        return True
    stands_alone = not (before.strip() and before in "0123456789})+-*/=^_") and not (after and after in "^_+-*/=0123456789'(")
    return len(run) > 4 or (len(run) > 2 and stands_alone)
