"""A few problems to read: what the models answered, right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.candidate_table import CandidatePool
from jobs.analysis.outcomes import ProblemOutcomes
from jobs.reports.explore.examples import QUESTION_LIMIT, TEXT_LIMIT, visible_text

NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One model's responses to a problem. The texts are those of the first correct and of the first other response;
    None without one."""

    model: str
    num_correct: int
    num_scored: int
    majority: str | None
    """The most frequent final answer, the first of those that are as frequent."""
    majority_share: float
    """Of all responses."""
    correct: str | None
    other: str | None
    other_status: str | None


@dataclass(frozen=True, kw_only=True)
class EvaluationExample:
    """One problem."""

    problem_id: str
    question: str
    reference_answer: str
    answers: tuple[Answers, ...]


def choose_problems(outcomes: Sequence[ProblemOutcomes]) -> tuple[str, ...]:
    """By rule: the problems that models differ most on, by their share of correct responses; of one model, those
    nearest to one half.

    Ties go to the problem that comes first. Every model has the same problems, in the same order.
    """
    scored_MP = np.stack([one.num_scored_P for one in outcomes])
    rate_MP = np.stack([one.num_correct_P for one in outcomes]) / np.maximum(scored_MP, 1)
    interest_P = np.ptp(rate_MP, axis=0) if len(outcomes) > 1 else -np.abs(rate_MP[0] - 0.5)
    order = np.argsort(-np.where((scored_MP > 0).all(axis=0), interest_P, -1.0), kind="stable")
    return tuple(outcomes[0].problem_ids[row] for row in order[:NUM_EXAMPLES])


def example_of(pools: Mapping[str, CandidatePool]) -> EvaluationExample:
    """The example of one problem, from its pools by model."""
    first = next(iter(pools.values()))
    return EvaluationExample(
        problem_id=visible_text(first.problem_id, QUESTION_LIMIT),
        question=visible_text(first.question, QUESTION_LIMIT),
        reference_answer=visible_text(first.reference_answer, TEXT_LIMIT),
        answers=tuple(_answers(label, pool) for label, pool in pools.items()),
    )


def _answers(label: str, pool: CandidatePool) -> Answers:
    stated = [answer for answer in pool.answers if answer is not None]
    majority = max(dict.fromkeys(stated), key=stated.count, default=None)
    correct_N = pool.correct_N.tolist()
    other = correct_N.index(False) if False in correct_N else None
    status = None if other is None else pool.statuses[other]
    return Answers(
        model=label,
        num_correct=sum(correct_N),
        num_scored=sum(status is not None and status.is_scored for status in pool.statuses),
        majority=None if majority is None else visible_text(majority, TEXT_LIMIT),
        majority_share=stated.count(majority) / pool.size if majority is not None else 0.0,
        correct=visible_text(pool.texts[correct_N.index(True)], TEXT_LIMIT) if any(correct_N) else None,
        other=None if other is None else visible_text(pool.texts[other], TEXT_LIMIT),
        other_status=None if status is None else status.value,
    )
