"""What the responses of a model say about each problem. Every statistic of an evaluation is a mean of these numbers. A
response that could not be scored (verdict timeout or error) is neither right nor wrong: it is left out of n and of
every vote, and counted. Where a problem has fewer than k scored responses, its values at k are those at n, a lower
bound of pass@k; a problem without any has no values (NaN). Lengths and log-probs are those of all responses. Legend: P
problems, K = 1 … max_k, N responses to a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from buffers.records import VerdictStatus
from jobs.analysis.candidate_table import Candidates
from jobs.analysis.majority import majority_curve
from jobs.analysis.order_statistics import IntArray
from jobs.analysis.pass_at_k import FloatArray, pass_at_k_curves
from jobs.analysis.problem_counts import OPTIONAL, ProblemCounts, count


@dataclass(frozen=True, kw_only=True, eq=False)
class ProblemOutcomes:
    """One row for each problem. Means are over a problem's responses, and NaN where no response counts."""

    problem_ids: tuple[str, ...]
    num_samples_P: IntArray
    num_scored_P: IntArray
    """n, the responses that could be scored."""
    num_correct_P: IntArray
    """c, the responses that are correct."""
    pass_PK: FloatArray
    """pass@k, unbiased."""
    majority_PK: FloatArray
    """maj@k, exact (`jobs.analysis.majority`)."""
    distinct_PK: FloatArray
    """Expected number of different final answers among k scored responses, exact."""
    tokens_P: FloatArray
    """Mean length, with the end-of-turn token."""
    truncated_P: FloatArray
    """Share of responses that reached the limit."""
    entropy_P: FloatArray
    """Σ −log p / number of tokens, over all tokens of all responses; p is the probability of sampling a token."""
    base_logprob_P: FloatArray
    """Mean over responses of the mean log-prob of their tokens under the base model."""
    base_loglikelihood_P: FloatArray
    """Mean over responses of the log-likelihood of the whole response under the base model."""
    base_logprob_correct_P: FloatArray
    """`base_logprob_P` over the correct responses."""
    verdicts: Mapping[str, int]
    """The number of responses by status, over all problems."""

    @property
    def num_problems(self) -> int:
        """P."""
        return len(self.problem_ids)

    @property
    def max_k(self) -> int:
        """The largest k."""
        return int(self.pass_PK.shape[1])

    @property
    def scored_P(self) -> NDArray[np.bool_]:
        """Whether a problem has at least one scored response."""
        return self.num_scored_P > 0


def problem_outcomes(problems: Iterable[Candidates], *, max_k: int) -> ProblemOutcomes:
    """Return the outcomes of `problems`; of an iterator, one problem lies in memory at a time. Raises ValueError
    without problems, for responses without a verdict, and for more responses than `jobs.analysis.majority` takes."""
    return outcomes_of(map(count, problems), max_k=max_k)


def outcomes_of(problems: Iterable[ProblemCounts], *, max_k: int) -> ProblemOutcomes:
    """Return the outcomes of problems that are counted. Raises ValueError as `problem_outcomes`."""
    problem_ids, rows, verdicts = [], [], Counter[str]()
    for counts in problems:
        problem_ids.append(counts.problem_id)
        rows.append(_row(counts, max_k))
        verdicts.update(counts.verdicts)
    if not rows:
        raise ValueError("there are no problems to evaluate")
    known_verdicts = {status.value: verdicts[status.value] for status in VerdictStatus}
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return ProblemOutcomes(problem_ids=tuple(problem_ids), verdicts=known_verdicts, **columns)


def _row(counts: ProblemCounts, max_k: int) -> dict[str, Any]:
    return {
        "num_samples_P": counts.num_samples,
        "num_scored_P": counts.num_scored,
        "num_correct_P": counts.num_correct,
        **_curves(counts, max_k),
        "tokens_P": counts.tokens,
        "truncated_P": counts.truncated,
        **{f"{name}_P": _or_nan(getattr(counts, name)) for name in OPTIONAL},
    }


def _curves(counts: ProblemCounts, max_k: int) -> dict[str, FloatArray]:
    num = counts.num_scored
    if not num:
        return dict.fromkeys(("pass_PK", "majority_PK", "distinct_PK"), np.full(max_k, np.nan))
    groups = [(None, *counts.without_answer), *((str(number), *times) for number, times in enumerate(counts.answers))]
    answers = [answer for answer, times, _ in groups for _ in range(times)]
    correct_S = np.array([place < times_correct for _, times, times_correct in groups for place in range(times)])
    stated = [times for times, _ in counts.answers]
    return {
        "pass_PK": pass_at_k_curves([num], [counts.num_correct], max_k)[0],
        "majority_PK": majority_curve(answers, correct_S, max_k),
        "distinct_PK": pass_at_k_curves([num] * len(stated), stated, max_k).sum(axis=0) if stated else np.zeros(max_k),
    }


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
