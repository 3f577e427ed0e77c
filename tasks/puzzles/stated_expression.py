r"""The arithmetic expression that a response states. Reading it takes linear time and never raises.

    stated = stated_expression("First 1 + 2 = 3. So the answer is $(1 + 2) \\times 8 = 24$.")
    stated                            # r"(1 + 2) \times 8 = 24"
    read_expression(stated).text      # "(1 + 2) * 8"

The stated-expression rule. Of the answer part of a response (`tasks.judging`), the answer is the first of
these that exists:
1. the content of the last closed <answer>...</answer> that is not blank;
2. the content of the last closed \boxed{...} that is not blank;
3. the first run behind the last "####", "answer is" or "answer:" that has one on its line (on the next, if blank);
4. the last run of the response.

A run consists of numbers, signs, brackets and "=" on one line. Runs of two numbers or more come before single numbers,
in 3 and in 4. Whatever touches a run belongs to it, and so do "^" and "!" anywhere: "sqrt(9) * 8" and "2^3" are runs
that cannot be read. List marks ("- ", "2. ") and math delimiters do not belong to it.

Of an equation ("(1 + 2) * 8 = 24", "24 = ...") the first side that is an expression of two numbers or more is the
answer. A side that is a mere number counts only if no other side has digits. Delimiters, bold marks and a full stop
around the answer are dropped."""

import re
from collections.abc import Iterator

from tasks.answers import canonical_text, last_boxed
from tasks.base import DEFAULT_JUDGING, JudgingConfig
from tasks.numerals import with_ascii_digits
from tasks.puzzles.exact_expression import MAX_CHARS, TOKEN, Expression, ExpressionError, parse

__all__ = ["final_expression", "last_tagged", "read_expression", "stated_expression"]

_TAG = re.compile(r"<(/?+)answer\s*+>", re.IGNORECASE)
_MARK = re.compile(r"####|answer[ \t*_]*+(?:is\b|[:=])", re.IGNORECASE)
_BETWEEN_MARK_AND_ANSWER = " \t\r\n*_:"
_LIST_MARK = re.compile(r"[ \t]*+(?:(?:[-*•]|[0-9]{1,3}[.)])[ \t]++)?+")
_PART = re.compile(
    rf"""
      (?P<delimiter> \\[()\[\]] | [$`] )
    | {TOKEN.pattern}
    | (?P<equals> [=＝] )
    | (?P<strange> [\^!√] )
    | (?P<word> \\[A-Za-z]*+ | \w++ )
    | (?P<other> . )
    """,
    re.VERBOSE,
)
_AROUND = r"[\s$`\"'“”‘’] | \*\* | \\displaystyle(?![A-Za-z])"
_BEFORE = re.compile(rf"(?: {_AROUND} | \\[(\[] )*+", re.VERBOSE)
_AFTER = re.compile(rf"(?: {_AROUND} | \\[)\]\\] | [.;] )++ \Z", re.VERBOSE)
_DIGIT = re.compile("[0-9]")
_EQUALS = re.compile(r"&?=|＝")


def stated_expression(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the answer that `response` states, whether it is an expression or not, or None."""
    text = with_ascii_digits(judging.answer_part(response))
    tagged = last_tagged(text)
    boxed = last_boxed(text if tagged is None else tagged)
    if boxed is not None or tagged is not None:
        return tagged if boxed is None else boxed
    return _marked_run(text) or _last_run(text)


def final_expression(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the stated answer as `Expression.text`, else as `tasks.answers.canonical_text`; None without one."""
    stated = stated_expression(response, judging)
    if stated is None:
        return None
    try:
        return read_expression(stated).text
    except ExpressionError:
        return canonical_text(stated)


def read_expression(stated: str) -> Expression:
    """Parse a stated answer. Raises ExpressionError if it is not an expression."""
    if len(stated) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    numbers: list[Expression] = []
    errors: dict[bool, ExpressionError] = {}  # the first of a side with digits, and of one without
    for side in map(_bare, _EQUALS.split(_bare(stated))):
        try:
            expression = parse(side)
        except ExpressionError as error:
            errors.setdefault(_DIGIT.search(side) is not None, error)
        else:
            if len(expression.numbers) > 1:
                return expression
            numbers.append(expression)
    if True in errors or not numbers:
        raise errors.get(True) or errors[False]
    return numbers[0]


def last_tagged(text: str) -> str | None:
    """Return the content of the last closed <answer>...</answer> that is not blank, or None."""
    start: int | None = None
    found = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            if text[start : tag.start()].strip():
                found = (start, tag.start())
            start = None
    return None if found is None else text[found[0] : found[1]]


def _bare(text: str) -> str:
    text = text[_BEFORE.match(text).end() :]  # type: ignore[union-attr]  # it matches the empty string
    after = _AFTER.search(text)
    return text[: after.start()] if after else text


def _marked_run(text: str) -> str | None:
    """Return the run behind the last mark that has one. Each search ends at the next mark, so it is linear."""
    for segment in reversed(_MARK.split(text)[1:]):
        runs = list(_runs(segment.lstrip(_BETWEEN_MARK_AND_ANSWER).partition("\n")[0]))
        if runs:
            return next((run for run, num_numbers in runs if num_numbers > 1), runs[0][0])
    return None


def _last_run(text: str) -> str | None:
    number: str | None = None
    for line in reversed(text.splitlines()):
        for run, num_numbers in reversed(list(_runs(line))):
            if num_numbers > 1:
                return run
            number = number or run
    return number


def _runs(line: str) -> Iterator[tuple[str, int]]:
    """Yield the runs of one line that have a number, from left to right, with how many they have."""
    if not _DIGIT.search(line):
        return
    start: int | None = None  # start of the open run
    end = 0  # end of its last part
    num_numbers = 0
    word_start = word_end = -1  # the last word outside a run
    ends_in_word = False
    for part in _PART.finditer(line, _LIST_MARK.match(line).end()):  # type: ignore[union-attr]  # it matches the empty string
        kind = part.lastgroup
        if kind == "space":
            continue
        belongs = kind in ("number", "sign", "equals", "strange")
        continues = part.start() == end if kind == "word" or (belongs and ends_in_word) else belongs
        if start is not None and not continues:
            if num_numbers:
                yield line[start:end], num_numbers
            start, num_numbers, ends_in_word = None, 0, False
        if start is None and belongs:
            start = word_start if word_end == part.start() else part.start()
        if start is None:
            if kind == "word":
                word_start, word_end = part.span()
        else:
            end, ends_in_word = part.end(), kind == "word"
            num_numbers += kind == "number"
    if start is not None and num_numbers:
        yield line[start:end], num_numbers
