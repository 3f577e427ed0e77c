"""What an evaluation leaves of one problem: how often each answer was given and found right, lengths, likelihoods. All
statistics of an evaluation follow from these counts, which take some hundred bytes where responses take thousands.

    counts = [count(candidates) for candidates in problems]
    json.dumps([one.record() for one in counts])"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from jobs.analysis.candidate_table import Candidates
from jobs.analysis.pass_at_k import FloatArray


@dataclass(frozen=True, kw_only=True)
class ProblemCounts:
    """One problem. Means are over its responses, and None where none counts."""

    problem_id: str
    verdicts: Mapping[str, int]
    """The number of responses by status, of those that occur."""
    answers: tuple[tuple[str | None, int, int], ...]
    """Each final answer, None for those without one, with the number of scored responses that give it, and the number
    of these that are correct. In the order in which they came."""
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
        return sum(num for _, num, _ in self.answers)

    @property
    def num_correct(self) -> int:
        """The number of responses that are right."""
        return sum(num_correct for _, _, num_correct in self.answers)

    def record(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ProblemCounts:
        """Return what `record` gave. Raises KeyError and TypeError for anything else."""
        answers = tuple((answer, int(num), int(num_correct)) for answer, num, num_correct in record["answers"])
        return cls(**{field.name: record[field.name] for field in fields(cls)} | {"answers": answers})


def count(candidates: Candidates) -> ProblemCounts:
    """Return the counts of one problem. Raises ValueError for responses without a verdict."""
    statuses = [status for status in candidates.statuses if status is not None]
    if len(statuses) < candidates.size:
        raise ValueError(f"not all responses to problem {candidates.problem_id} of task {candidates.task} have a verdict")
    scored, correct = Counter[str | None](), Counter[str | None]()
    for answer, status, is_correct in zip(candidates.answers, statuses, candidates.correct_N, strict=True):
        if status.is_scored:
            scored[answer] += 1
            correct[answer] += bool(is_correct)
    tokens_N, base_N = candidates.num_tokens_N, candidates.base_mean_logprob_N
    return ProblemCounts(
        problem_id=candidates.problem_id,
        verdicts=dict(Counter(status.value for status in statuses)),
        answers=tuple((answer, num, correct[answer]) for answer, num in scored.items()),
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
