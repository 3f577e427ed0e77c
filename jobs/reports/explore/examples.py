"""A few prompts to read: what the novelty order picked first, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.candidate_table import Candidates
from jobs.analysis.order_statistics import Outcomes, random_first_correct
from jobs.analysis.pass_at_k import FloatArray
from jobs.analysis.picks import unit_features
from jobs.reports.text import QUESTION_LIMIT, TEXT_LIMIT, visible_text

SHOWN_PICKS = 5
EXAMPLES_OF_A_KIND = 3
HELPED, HURT, FIRST = "helped", "hurt", "first"
KINDS = {HELPED: "Where it saved most verifications", HURT: "Where it cost most verifications", FIRST: "The first prompts of the table"}


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One candidate, at its place in the order."""

    place: int
    index: int
    score: float | None
    """Its novelty when it was picked, given the picks before it."""
    status: str | None
    answer: str | None
    mean_logprob: float | None
    num_tokens: int
    truncated: bool
    text: str
    nearest_place: int | None
    """The earlier pick with the most similar feature. `similarity` is their cosine, each less the prompt's mean."""
    similarity: float | None


@dataclass(frozen=True, kw_only=True)
class ExploreExample:
    """One prompt. `first_correct` and `random_first_correct` count verifications; they are None without a correct
    candidate or without all verdicts."""

    kind: str
    task: str
    problem_id: str
    question: str
    reference_answer: str
    order: str
    first_correct: int | None
    random_first_correct: float | None
    picks: tuple[Pick, ...]


def choose_examples(problems: Sequence[Candidates], outcomes: Outcomes | None, order: str) -> tuple[ExploreExample, ...]:
    """Return the three prompts where `order` needs the smallest share of random choice's verifications, then the three
    where it needs the largest. Ties go to the prompt that comes first. Where there are none of either kind, or where
    that is unknown (`outcomes` is None, or some candidates have no verdict), the first three prompts are returned.
    `outcomes` are those of `problems`, in the same order."""
    helped_and_hurt = () if outcomes is None or outcomes.num_correct_P is None else _helped_and_hurt(problems, outcomes, order)
    return helped_and_hurt or tuple(_example(candidates, order, FIRST, None, None) for candidates in problems[:EXAMPLES_OF_A_KIND])


def _helped_and_hurt(problems: Sequence[Candidates], outcomes: Outcomes, order: str) -> tuple[ExploreExample, ...]:
    assert outcomes.num_correct_P is not None
    expected_P = random_first_correct(outcomes.num_candidates_P, outcomes.num_correct_P)
    first_P = outcomes.first_correct[order]
    solvable = np.flatnonzero(outcomes.solvable_P)
    by_gain = sorted(solvable, key=lambda p: first_P[p] / expected_P[p])
    helped = [(HELPED, p) for p in by_gain if first_P[p] < expected_P[p]][:EXAMPLES_OF_A_KIND]
    by_loss = sorted(solvable, key=lambda p: -first_P[p] / expected_P[p])
    hurt = [(HURT, p) for p in by_loss if first_P[p] > expected_P[p]][:EXAMPLES_OF_A_KIND]
    return tuple(_example(problems[p], order, kind, int(first_P[p]), float(expected_P[p])) for kind, p in helped + hurt)


def _example(candidates: Candidates, order: str, kind: str, first: int | None, expected: float | None) -> ExploreExample:
    return ExploreExample(
        kind=kind,
        task=visible_text(candidates.task, QUESTION_LIMIT),
        problem_id=visible_text(candidates.problem_id, QUESTION_LIMIT),
        question=visible_text(candidates.question, QUESTION_LIMIT),
        reference_answer=visible_text(candidates.reference_answer, TEXT_LIMIT),
        order=order,
        first_correct=first,
        random_first_correct=expected,
        picks=first_picks(candidates, order),
    )


def first_picks(candidates: Candidates, order: str) -> tuple[Pick, ...]:
    """Return the first five candidates of `order`."""
    rows = candidates.picks(order)[:SHOWN_PICKS].tolist()
    unit_ND = unit_features(candidates)
    scores = candidates.scores.get(order)
    picks = []
    for place, row in enumerate(rows, start=1):
        nearest, similarity = (None, None) if unit_ND is None else _nearest(unit_ND[row], unit_ND[rows[: place - 1]])
        status, answer = candidates.statuses[row], candidates.answers[row]
        picks.append(
            Pick(
                place=place,
                index=row,
                score=None if scores is None else _known(scores[row]),
                status=None if status is None else status.value,
                answer=None if answer is None else visible_text(answer, TEXT_LIMIT),
                mean_logprob=_known(candidates.mean_logprob_N[row]),
                num_tokens=int(candidates.num_tokens_N[row]),
                truncated=bool(candidates.truncated_N[row]),
                text=visible_text(candidates.texts[row], TEXT_LIMIT),
                nearest_place=nearest,
                similarity=similarity,
            )
        )
    return tuple(picks)


def _nearest(own_D: FloatArray, earlier_MD: FloatArray) -> tuple[int | None, float | None]:
    """Return place and cosine of the most similar earlier pick; None for the first pick and without a feature."""
    if not len(earlier_MD) or not own_D.any():
        return None, None
    cosine_M = earlier_MD @ own_D
    nearest = int(np.argmax(cosine_M))
    return nearest + 1, float(cosine_M[nearest])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
