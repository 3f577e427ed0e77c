"""What an order picks first, as far as that is known without a verifier: lengths, likelihood, different answers, how
alike the picks are.

Random choice is exact here too. Legend: N candidates of one prompt, D feature size, M picks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.candidate_table import CandidatePool
from jobs.analysis.order_statistics import IntArray
from jobs.analysis.pass_at_k import FloatArray, pass_at_k

FIRST_PICKS = 8


@dataclass(frozen=True, kw_only=True)
class Picks:
    """Means over prompts of the first picks (of the whole pool where it is smaller). None where the table does not
    say."""

    num_picks: int
    mean_tokens: float
    truncated_share: float
    mean_logprob: float | None
    different_answers: float | None
    similarity: float | None
    """Mean cosine of two picks, of features less their pool's mean."""


def picks_of_order(pools: Sequence[CandidatePool], order: str | None) -> Picks:
    """The first eight picks of `order`, or for None what random choice of eight is expected to give."""
    chosen = [np.arange(pool.size) if order is None else pool.picks(order)[:FIRST_PICKS] for pool in pools]
    pairs = list(zip(pools, chosen, strict=True))
    has_answers = any(answer is not None for pool in pools for answer in pool.answers)
    different = [_expected_different_answers(pool) if order is None else _different_answers(pool, rows) for pool, rows in pairs]
    return Picks(
        num_picks=FIRST_PICKS,
        mean_tokens=float(np.mean([pool.num_tokens_N[rows].mean() for pool, rows in pairs])),
        truncated_share=float(np.mean([pool.truncated_N[rows].mean() for pool, rows in pairs])),
        mean_logprob=mean_of_known([mean_of_known(pool.mean_logprob_N[rows]) for pool, rows in pairs]),
        different_answers=float(np.mean(different)) if has_answers else None,
        similarity=mean_of_known([mean_similarity(pool, rows) for pool, rows in pairs]),
    )


def mean_of_known(values: Sequence[float | None] | FloatArray) -> float | None:
    """Mean of what is neither None nor NaN; None for nothing."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else None


def unit_features(pool: CandidatePool) -> FloatArray | None:
    """(N, D): features less the pool's mean, at unit length; 0 where a candidate has none or is the mean itself. None
    without features."""
    if pool.features_ND is None:
        return None
    features_ND = pool.features_ND.astype(np.float64)
    centered_ND = np.nan_to_num(features_ND - np.nanmean(features_ND, axis=0))
    length_N1 = np.linalg.norm(centered_ND, axis=1, keepdims=True)
    unit_ND: FloatArray = np.divide(centered_ND, length_N1, out=np.zeros_like(centered_ND), where=length_N1 > 0)
    return unit_ND


def mean_similarity(pool: CandidatePool, rows_M: IntArray) -> float | None:
    """Mean cosine over pairs of `rows_M`, (|Σ u|² − m) / (m (m − 1)) over the m unit features u among them; None below
    two."""
    unit_ND = unit_features(pool)
    if unit_ND is None:
        return None
    has_feature_M = unit_ND[rows_M].any(axis=1)
    num = int(has_feature_M.sum())
    total_D = unit_ND[rows_M].sum(axis=0)
    return float((total_D @ total_D - num) / (num * (num - 1))) if num > 1 else None


def _different_answers(pool: CandidatePool, rows_M: IntArray) -> float:
    return len({pool.answers[row] for row in rows_M} - {None})


def _expected_different_answers(pool: CandidatePool) -> float:
    """Among eight random candidates: each answer counts with the chance that one of those who state it is drawn."""
    counts = Counter(answer for answer in pool.answers if answer is not None)
    return sum(pass_at_k(pool.size, count, min(FIRST_PICKS, pool.size)) for count in counts.values())
