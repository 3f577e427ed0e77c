"""A handful of prompts to read: what the novelty order picked first, and why."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.candidate_table import CandidatePool
from jobs.analysis.order_statistics import Outcomes, random_first_correct
from jobs.analysis.pass_at_k import FloatArray
from jobs.analysis.picks import unit_features

SHOWN_PICKS = 5
EXAMPLES_OF_A_KIND = 3
TEXT_LIMIT, QUESTION_LIMIT = 700, 1500

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional controls, by which text can be made to look like other text."""

HELPED, HURT, FIRST = "helped", "hurt", "first"


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One candidate as the order met it."""

    place: int
    index: int
    score: float | None
    """The novelty that it was picked for, given the picks before it."""
    status: str | None
    answer: str | None
    mean_logprob: float | None
    num_tokens: int
    truncated: bool
    text: str
    nearest_place: int | None
    """The earlier pick whose feature is most like this one's, and the cosine of the two (less the pool's mean)."""
    similarity: float | None


@dataclass(frozen=True, kw_only=True)
class ExploreExample:
    """One prompt. `first_correct` and `random_first_correct` count verifications; None without a correct candidate or
    all verdicts."""

    kind: str
    task: str
    problem_id: str
    question: str
    reference_answer: str
    order: str
    first_correct: int | None
    random_first_correct: float | None
    picks: tuple[Pick, ...]


def choose_examples(pools: Sequence[CandidatePool], outcomes: Outcomes | None, order: str) -> tuple[ExploreExample, ...]:
    """By rule: the three prompts where `order` needs the smallest share of random choice's verifications, then the
    three of the largest.

    Ties go to the prompt that comes first. Where there are none of either kind, or that is unknown (`outcomes` None, or
    not of whole pools), the first three prompts. `outcomes` are those of `pools`, in their order."""
    helped_and_hurt = () if outcomes is None or outcomes.num_correct_P is None else _helped_and_hurt(pools, outcomes, order)
    return helped_and_hurt or tuple(_example(pool, order, FIRST, None, None) for pool in pools[:EXAMPLES_OF_A_KIND])


def _helped_and_hurt(pools: Sequence[CandidatePool], outcomes: Outcomes, order: str) -> tuple[ExploreExample, ...]:
    assert outcomes.num_correct_P is not None
    expected_P = random_first_correct(outcomes.num_candidates_P, outcomes.num_correct_P)
    first_P = outcomes.first_correct[order]
    solvable = np.flatnonzero(outcomes.solvable_P)
    by_gain = sorted(solvable, key=lambda p: first_P[p] / expected_P[p])
    helped = [(HELPED, p) for p in by_gain if first_P[p] < expected_P[p]][:EXAMPLES_OF_A_KIND]
    by_loss = sorted(solvable, key=lambda p: -first_P[p] / expected_P[p])
    hurt = [(HURT, p) for p in by_loss if first_P[p] > expected_P[p]][:EXAMPLES_OF_A_KIND]
    return tuple(_example(pools[p], order, kind, int(first_P[p]), float(expected_P[p])) for kind, p in helped + hurt)


def _example(pool: CandidatePool, order: str, kind: str, first: int | None, expected: float | None) -> ExploreExample:
    return ExploreExample(
        kind=kind,
        task=visible_text(pool.task, QUESTION_LIMIT),
        problem_id=visible_text(pool.problem_id, QUESTION_LIMIT),
        question=visible_text(pool.question, QUESTION_LIMIT),
        reference_answer=visible_text(pool.reference_answer, TEXT_LIMIT),
        order=order,
        first_correct=first,
        random_first_correct=expected,
        picks=first_picks(pool, order),
    )


def first_picks(pool: CandidatePool, order: str) -> tuple[Pick, ...]:
    """The first five candidates of `order`."""
    rows = pool.picks(order)[:SHOWN_PICKS].tolist()
    unit_ND = unit_features(pool)
    scores = pool.scores.get(order)
    picks = []
    for place, row in enumerate(rows, start=1):
        nearest, similarity = (None, None) if unit_ND is None else _nearest(unit_ND[row], unit_ND[rows[: place - 1]])
        status, answer = pool.statuses[row], pool.answers[row]
        picks.append(
            Pick(
                place=place,
                index=row,
                score=None if scores is None else _known(scores[row]),
                status=None if status is None else status.value,
                answer=None if answer is None else visible_text(answer, TEXT_LIMIT),
                mean_logprob=_known(pool.mean_logprob_N[row]),
                num_tokens=int(pool.num_tokens_N[row]),
                truncated=bool(pool.truncated_N[row]),
                text=visible_text(pool.texts[row], TEXT_LIMIT),
                nearest_place=nearest,
                similarity=similarity,
            )
        )
    return tuple(picks)


def _nearest(own_D: FloatArray, earlier_MD: FloatArray) -> tuple[int | None, float | None]:
    """Place and cosine of the most similar earlier pick; None for the first pick and where there is no feature."""
    if not len(earlier_MD) or not own_D.any():
        return None, None
    cosine_M = earlier_MD @ own_D
    nearest = int(np.argmax(cosine_M))
    return nearest + 1, float(cosine_M[nearest])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def visible_text(text: str, limit: int) -> str:
    """`text` at most `limit` characters long, with characters that control or reorder what a screen shows spelled out.

    Escaping for HTML is not done here.
    """
    rest = len(text) - limit
    shown = "".join(char if char in "\n\t" or not _interferes(char) else f"\\u{{{ord(char):x}}}" for char in text[:limit])
    return f"{shown} … ({rest} more characters)" if rest > 0 else shown


def _interferes(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in REORDERING
