"""A few problems to read: what the models answered, right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.candidate_table import Candidates
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.reports.text import QUESTION_LIMIT, TEXT_LIMIT, visible_text

NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One model's responses to a problem. `correct` and `other` are the first correct and the first other text."""

    model: str
    num_correct: int
    num_scored: int
    majority: str | None
    """The most frequent final answer; among equally frequent ones, the first."""
    majority_share: float
    """Its share of all responses."""
    correct: str | None
    other: str | None
    other_status: str | None


@dataclass(frozen=True, kw_only=True)
class EvaluationExample:
    """One problem, and what every model answered."""

    problem_id: str
    question: str
    reference_answer: str
    answers: tuple[Answers, ...]


def choose_problems(outcomes: Sequence[ProblemOutcomes]) -> tuple[str, ...]:
    """Return the problems whose shares of correct responses differ most between the models; of one model, those nearest
    to one half. Ties go to the first problem. All models have the same problems in the same order."""
    scored_MP = np.stack([one.num_scored_P for one in outcomes])
    rate_MP = np.stack([one.num_correct_P for one in outcomes]) / np.maximum(scored_MP, 1)
    interest_P = np.ptp(rate_MP, axis=0) if len(outcomes) > 1 else -np.abs(rate_MP[0] - 0.5)
    order = np.argsort(-np.where((scored_MP > 0).all(axis=0), interest_P, -1.0), kind="stable")
    return tuple(outcomes[0].problem_ids[row] for row in order[:NUM_EXAMPLES])


def example_of(responses: Mapping[str, Candidates]) -> EvaluationExample:
    """Return the example of one problem, from the responses of every model."""
    first = next(iter(responses.values()))
    return EvaluationExample(
        problem_id=visible_text(first.problem_id, QUESTION_LIMIT),
        question=visible_text(first.question, QUESTION_LIMIT),
        reference_answer=visible_text(first.reference_answer, TEXT_LIMIT),
        answers=tuple(_answers(label, candidates) for label, candidates in responses.items()),
    )


def _answers(label: str, candidates: Candidates) -> Answers:
    stated = [answer for answer in candidates.answers if answer is not None]
    majority = max(dict.fromkeys(stated), key=stated.count, default=None)
    correct_N = candidates.correct_N.tolist()
    other = correct_N.index(False) if False in correct_N else None
    status = None if other is None else candidates.statuses[other]
    return Answers(
        model=label,
        num_correct=sum(correct_N),
        num_scored=sum(status is not None and status.is_scored for status in candidates.statuses),
        majority=None if majority is None else visible_text(majority, TEXT_LIMIT),
        majority_share=stated.count(majority) / candidates.size if majority is not None else 0.0,
        correct=visible_text(candidates.texts[correct_N.index(True)], TEXT_LIMIT) if any(correct_N) else None,
        other=None if other is None else visible_text(candidates.texts[other], TEXT_LIMIT),
        other_status=None if status is None else status.value,
    )
