"""What an order picks first, as far as it is known without a verifier: lengths, likelihood, different answers, and how
similar the picks are. Random choice is exact here too. Legend: N candidates of one prompt, D feature size, M picks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.analysis.candidate_table import Candidates
from jobs.analysis.order_statistics import IntArray
from jobs.analysis.pass_at_k import FloatArray, pass_at_k

FIRST_PICKS = 8


@dataclass(frozen=True, kw_only=True)
class Picks:
    """Means over prompts of the first picks, or of all candidates where there are fewer; None for what is unknown."""

    num_picks: int
    mean_tokens: float
    truncated_share: float
    mean_logprob: float | None
    different_answers: float | None
    similarity: float | None
    """The mean cosine of two picks, each feature less the mean over the prompt's candidates."""


def picks_of_order(problems: Sequence[Candidates], order: str | None) -> Picks:
    """Describe the first eight picks of `order`, or for None what random choice of eight is expected to give."""
    chosen = [np.arange(candidates.size) if order is None else candidates.picks(order)[:FIRST_PICKS] for candidates in problems]
    pairs = list(zip(problems, chosen, strict=True))
    has_answers = any(answer is not None for candidates in problems for answer in candidates.answers)
    different = [
        _expected_different_answers(candidates) if order is None else len({candidates.answers[row] for row in rows.tolist()} - {None})
        for candidates, rows in pairs
    ]
    return Picks(
        num_picks=FIRST_PICKS,
        mean_tokens=float(np.mean([candidates.num_tokens_N[rows].mean() for candidates, rows in pairs])),
        truncated_share=float(np.mean([candidates.truncated_N[rows].mean() for candidates, rows in pairs])),
        mean_logprob=mean_of_known([mean_of_known(candidates.mean_logprob_N[rows]) for candidates, rows in pairs]),
        different_answers=float(np.mean(different)) if has_answers else None,
        similarity=mean_of_known([mean_similarity(candidates, rows) for candidates, rows in pairs]),
    )


def mean_of_known(values: Sequence[float | None] | FloatArray) -> float | None:
    """Return the mean of the values that are neither None nor NaN, or None without any."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else None


def unit_features(candidates: Candidates) -> FloatArray | None:
    """Return (N, D): centered features at unit length, 0 for a missing one or the mean itself; None without any."""
    if candidates.features_ND is None:
        return None
    features_ND = candidates.features_ND.astype(np.float64)
    centered_ND = np.nan_to_num(features_ND - np.nanmean(features_ND, axis=0))
    length_N1 = np.linalg.norm(centered_ND, axis=1, keepdims=True)
    return np.divide(centered_ND, length_N1, out=np.zeros_like(centered_ND), where=length_N1 > 0)


def mean_similarity(candidates: Candidates, rows_M: IntArray) -> float | None:
    """Return the mean cosine of pairs of `rows_M`: (|Σ u|² − m) / (m (m − 1)) of m unit features u; None for m < 2."""
    unit_ND = unit_features(candidates)
    if unit_ND is None:
        return None
    has_feature_M = unit_ND[rows_M].any(axis=1)
    num = int(has_feature_M.sum())
    total_D = unit_ND[rows_M].sum(axis=0)
    return float((total_D @ total_D - num) / (num * (num - 1))) if num > 1 else None


def _expected_different_answers(candidates: Candidates) -> float:
    """Return the expectation for eight random candidates: an answer counts with the chance that it is drawn."""
    counts = Counter(answer for answer in candidates.answers if answer is not None)
    return sum(pass_at_k(candidates.size, count, min(FIRST_PICKS, candidates.size)) for count in counts.values())
