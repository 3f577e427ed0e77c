r"""Find the questions of a training set that are questions of a test set, however their LaTeX is spelled.

    leaked = contaminated(train_questions, test_questions)      # indices into train_questions

Questions are compared by their letters and digits alone, without case, layout commands and the markup of mathematics:
"$x^{2}$", "\(x^2\)" and "x²" are the same. Questions that differ only in their signs count as the same too; a training
set loses little by that. A training question that continues after a whole test question ("... Please give m + n.") is
that test question as well."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["contaminated", "normalised_question"]

_MIN_PREFIX_CHARS = 40
"""A test question of at least this length is also found at the start of a training question."""

_LAYOUT = re.compile(
    r"""
    \\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|quad|qquad|hfill|hspace\*?|vspace\*?|noindent|medskip|bigskip|smallskip)
        (?![A-Za-z])
  | \\(?:text(?:bf|it|rm|normal|up)?|mbox|math(?:rm|bf|it|sf|bb|cal)?|operatorname|emph)(?=\s*\{)
  | \\(?:begin|end)\s*\{[A-Za-z*]*\}(?:\{[lcr|]*\})?
  | \[asy\].*?\[/asy\]
    """,
    re.VERBOSE | re.DOTALL,
)
_SAME_COMMANDS = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\leq(?:slant)?(?![a-z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![a-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-z])"), r"\\ne"),
    (re.compile(r"\\(?:ldots|cdots|dotsc|dotsb|dots)(?![a-z])"), ""),
    (re.compile(r"\\(?:cdot|times|ast)(?![a-z])"), ""),
    (re.compile(r"\\(?:overline|bar|vec|overrightarrow|widehat|hat)(?![a-z])"), ""),
)
_OTHER = re.compile(r"[^a-z0-9α-ω]+")


def normalised_question(text: str) -> str:
    """Return the letters and digits of a question, which are equal for two spellings of one question."""
    text = _LAYOUT.sub(" ", text)
    for pattern, same in _SAME_COMMANDS:
        text = pattern.sub(same, text)
    return _OTHER.sub("", unicodedata.normalize("NFKC", text).casefold())


def contaminated(questions: Sequence[str], references: Iterable[str]) -> frozenset[int]:
    """Return the indices of the `questions` that are, or begin with, one of the `references`."""
    whole = {normalised_question(reference) for reference in references} - {""}
    starts: dict[str, list[str]] = defaultdict(list)
    for reference in whole:
        if len(reference) >= _MIN_PREFIX_CHARS:
            starts[reference[:_MIN_PREFIX_CHARS]].append(reference)

    def is_one(question: str) -> bool:
        found = normalised_question(question)
        return found in whole or any(found.startswith(reference) for reference in starts.get(found[:_MIN_PREFIX_CHARS], ()))

    return frozenset(index for index, question in enumerate(questions) if is_one(question))
