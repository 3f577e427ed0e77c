"""What an evaluation leaves of one problem: how often its answers were given and found right, lengths, likelihoods. All
statistics of an evaluation follow from these counts, which take some hundred bytes where responses take thousands.

    counts = [count(candidates) for candidates in problems]"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from buffers.records import VerdictStatus
from jobs.analysis.candidate_table import Candidates
from jobs.analysis.pass_at_k import FloatArray

OPTIONAL = ("entropy", "base_logprob", "base_loglikelihood", "base_logprob_correct")
"""Means that are None where no response counts."""
Times = tuple[int, int]
"""How many scored responses there are, and how many of them are correct."""


@dataclass(frozen=True, kw_only=True)
class ProblemCounts:
    """One problem. Means are over its responses."""

    problem_id: str
    verdicts: Mapping[VerdictStatus, int]
    """The number of responses by status, of those that occur."""
    answers: tuple[Times, ...]
    """One for each final answer, in the order in which they came. Which answers these are is not kept."""
    without_answer: Times
    tokens: float
    """Mean length, with the end-of-turn token."""
    truncated: float
    """Share of responses that reached the limit."""
    entropy: float | None
    """Σ −log p / number of tokens, over all tokens of all responses; p is the probability of sampling a token."""
    base_logprob: float | None
    """Mean over responses of the mean log-prob of their tokens under the base model."""
    base_loglikelihood: float | None
    """Mean over responses of the log-likelihood of the whole response under the base model."""
    base_logprob_correct: float | None
    """`base_logprob` over the correct responses."""

    @property
    def num_samples(self) -> int:
        """The number of responses."""
        return sum(self.verdicts.values())

    @property
    def num_scored(self) -> int:
        """The number of responses that are right or wrong."""
        return sum(times for times, _ in (*self.answers, self.without_answer))

    @property
    def num_correct(self) -> int:
        """The number of responses that are right."""
        return sum(times_correct for _, times_correct in (*self.answers, self.without_answer))


def count(candidates: Candidates) -> ProblemCounts:
    """Return the counts of one problem. Raises ValueError for responses without a verdict."""
    statuses = [status for status in candidates.statuses if status is not None]
    if len(statuses) < candidates.size:
        raise ValueError(f"not all responses to problem {candidates.problem_id} of task {candidates.task} have a verdict")
    scored, correct = Counter[str | None](), Counter[str | None]()
    for answer, status, is_correct in zip(candidates.answers, statuses, candidates.correct_N, strict=True):
        scored[answer] += status.is_scored
        correct[answer] += bool(is_correct)
    tokens_N, base_N = candidates.num_tokens_N, candidates.base_mean_logprob_N
    return ProblemCounts(
        problem_id=candidates.problem_id,
        verdicts=dict(Counter(statuses)),
        answers=tuple((times, correct[answer]) for answer, times in scored.items() if answer is not None and times),
        without_answer=(scored[None], correct[None]),
        tokens=float(tokens_N.mean()),
        truncated=float(candidates.truncated_N.mean()),
        entropy=_entropy(candidates),
        base_logprob=_mean_of_known(base_N),
        base_loglikelihood=_mean_of_known(base_N * tokens_N),
        base_logprob_correct=_mean_of_known(base_N[candidates.correct_N]),
    )


def _entropy(candidates: Candidates) -> float | None:
    known_N = ~np.isnan(candidates.mean_logprob_N)
    num_tokens = candidates.num_tokens_N[known_N].sum()
    return float(-(candidates.mean_logprob_N * candidates.num_tokens_N)[known_N].sum() / num_tokens) if num_tokens else None


def _mean_of_known(values: FloatArray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
