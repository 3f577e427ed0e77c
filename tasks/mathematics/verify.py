r"""Verdicts on mathematical answers: what a response states, and whether it is the right answer.

    math_verdict(r"... so the area is $\boxed{\tfrac12\text{ cm}^2}$.", gold="0.5")   ->  CORRECT, answer "1/2"

`tasks.mathematics.stated` says which part of a response is its answer.

`math_verdict` may run for long or forever: call it where it can be killed (`actors.verifier`), never in a thread. Its
first symbolic comparison in a process takes two seconds, which `warm_up` takes beforehand."""

import re

from tasks.base import DEFAULT_JUDGING, JudgingConfig, Verdict, VerdictStatus
from tasks.mathematics.equality import canonical, compare, readings
from tasks.mathematics.nodes import Node
from tasks.mathematics.stated import last_box, opens_a_box, stated_answer, stated_in
from tasks.mathematics.symbolic import Unparsable, warm_up
from tasks.mathematics.syntax import Unreadable

__all__ = ["final_math", "is_readable", "last_box", "math_verdict", "stated_answer", "warm_up"]

_MAX_ANSWER_CHARS = 64  # in a verdict


def math_verdict(response: str, gold: str, judging: JudgingConfig = DEFAULT_JUDGING) -> Verdict:
    """Judge a response: CORRECT has reward 1.0, and any other status 0.0. The status is NO_ANSWER if the response
    states nothing, and MALFORMED if its answer cannot be read. `detail` names the rung of the ladder that decided, or
    says why an answer is malformed. If the right answer is not in the grammar, the spellings are compared."""
    response = judging.answer_part(response)
    text = stated_in(response)
    if text is None:
        if opens_a_box(response):
            return Verdict(status=VerdictStatus.MALFORMED, reward=0.0, detail="a box that is not closed, or is empty")
        return Verdict(status=VerdictStatus.NO_ANSWER, reward=0.0)
    if _squashed(text) == _squashed(gold):
        return Verdict(status=VerdictStatus.CORRECT, reward=1.0, answer=_canonical_or_squashed(text)[:_MAX_ANSWER_CHARS], detail="spelling")
    try:
        answers = [reading for text in dict.fromkeys((text, last_box(response) or text)) for reading in readings(text, is_answer=True)]
        finding = compare(_gold_readings(gold), answers, judging.rounding)
    except (Unreadable, Unparsable) as error:
        return Verdict(status=VerdictStatus.MALFORMED, reward=0.0, answer=text[:_MAX_ANSWER_CHARS], detail=str(error)[:200])
    if finding.is_equal:
        status = VerdictStatus.CORRECT
    else:
        status = VerdictStatus.INCORRECT if finding.refusal is None else VerdictStatus.MALFORMED
    detail = finding.refusal or finding.rung.name.lower()
    return Verdict(status=status, reward=float(finding.is_equal), answer=canonical(answers[0])[:_MAX_ANSWER_CHARS], detail=detail[:200])


def final_math(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return what the response states, or None. Equal values have one spelling, as far as known without sympy."""
    text = stated_answer(response, judging)
    return None if text is None else _canonical_or_squashed(text)


def is_readable(answer: str) -> bool:
    """Return whether a right answer is in the grammar."""
    return bool(_gold_readings(answer))


def _gold_readings(gold: str) -> list[Node]:
    try:
        return readings(gold)
    except Unreadable:
        return []


def _canonical_or_squashed(text: str) -> str:
    try:
        return canonical(readings(text)[0])
    except Unreadable:
        return _squashed(text)


def _squashed(text: str) -> str:
    return re.sub(r"\s+|(?<!\\)\$", "", text).rstrip(".")
