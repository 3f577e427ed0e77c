"""The statistics of one model on one set of problems.

    statistics = evaluate_candidates(candidates_by_problem(table), ks=(1, 2, 4, 8), seed=0)
    statistics.metrics()                # {"eval/pass@1": 0.43, …}: what a training run logs

All statistics are means over problems. Which problems were asked is what varies, so every interval is the percentile
bootstrap of `jobs.analysis.bootstrap`: B seeded resamples of the problems with replacement, the same for every
statistic. The sampling noise within a problem is part of the difference between problems and needs no second level.
Legend: P problems, K = 1 … number of samples, B resamples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from buffers.records import VerdictStatus
from jobs.analysis.bootstrap import CONFIDENCE, NUM_RESAMPLES, Curve, Estimate, mean_curve, mean_estimate, resample_counts
from jobs.analysis.candidate_table import Candidates
from jobs.analysis.order_statistics import curve_ks, listed_ks
from jobs.analysis.outcomes import ProblemOutcomes, problem_outcomes
from jobs.analysis.pass_at_k import FloatArray


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """The numbers of one model. `docs/evaluation.md` defines each of them."""

    num_problems: int
    num_samples: int
    """The number of responses to all problems."""
    ks: tuple[int, ...]
    """The values of k that tables show; curves have more."""
    pass_at_k: Curve | None
    """This and the next two are None where no response could be scored."""
    majority_at_k: Curve | None
    distinct_at_k: Curve | None
    all_correct: Estimate | None
    """The share of problems whose scored responses are all correct."""
    all_wrong: Estimate | None
    """The share of problems whose scored responses are all wrong."""
    tokens: Estimate | None
    truncated: Estimate | None
    entropy: Estimate | None
    """In nats for each token; None where no token was sampled."""
    base_logprob: Estimate | None
    """Per token. None without a base model, like the next two; the last is over problems with a correct response."""
    base_loglikelihood: Estimate | None
    base_logprob_correct: Estimate | None
    verdicts: Mapping[str, int]
    unscored: float
    """The share of responses whose verdict is timeout or error."""
    num_problems_unscored: int
    """The number of problems without any scored response, which no statistic of verdicts includes."""
    num_problems_short: int
    """The number of problems with some scored responses, but fewer than samples."""
    confidence: float
    num_resamples: int
    seed: int

    def metrics(self) -> dict[str, float]:
        """Return what a training run logs, without what is unknown."""
        curves = {"eval/pass@{}": self.pass_at_k, "eval/maj@{}": self.majority_at_k}
        points = {name.format(k): curve.at(k) for name, curve in curves.items() if curve is not None for k in self.ks}
        estimates = {
            **points,
            "eval/distinct_answers": None if self.distinct_at_k is None else self.distinct_at_k.at(self.ks[-1]),
            "eval/all_correct": self.all_correct,
            "eval/all_wrong": self.all_wrong,
            "eval/tokens_mean": self.tokens,
            "eval/truncated": self.truncated,
            "eval/entropy": self.entropy,
        }
        values = {name: estimate.value for name, estimate in estimates.items() if estimate is not None}
        for name, point in points.items():
            if point is not None and point.low is not None and point.high is not None and name.startswith("eval/pass@"):
                values |= {name.replace("@", "_low@"): point.low, name.replace("@", "_high@"): point.high}
        return values | {"eval/unscored": self.unscored, "eval/problems": float(self.num_problems)}

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)


def evaluate_candidates(
    problems: Iterable[Candidates], *, ks: Sequence[int] = (), num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> ModelStatistics:
    """Return the statistics of `problems`. With `ks` empty, the tables have 1, 2, 4, … and all responses. Raises
    ValueError as `problem_outcomes` does."""
    problems = tuple(problems)
    max_k = max((candidates.size for candidates in problems), default=1)
    return evaluate_outcomes(problem_outcomes(problems, max_k=max_k), ks=ks, num_resamples=num_resamples, seed=seed)


def evaluate_outcomes(
    outcomes: ProblemOutcomes, *, ks: Sequence[int] = (), num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> ModelStatistics:
    """Return the statistics of `outcomes`, as `evaluate_candidates` does."""
    resampled = _Resampled(num_resamples, seed)
    listed = listed_ks(outcomes.max_k, ks)
    dense = curve_ks(outcomes.max_k, listed)
    scored_P = outcomes.scored_P
    n_S, c_S = outcomes.num_scored_P[scored_P], outcomes.num_correct_P[scored_P]
    num_unscored = sum(outcomes.verdicts[status] for status in VerdictStatus if not status.is_scored)
    return ModelStatistics(
        num_problems=outcomes.num_problems,
        num_samples=int(outcomes.num_samples_P.sum()),
        ks=listed,
        pass_at_k=resampled.curve(dense, outcomes.pass_PK),
        majority_at_k=resampled.curve(dense, outcomes.majority_PK),
        distinct_at_k=resampled.curve(dense, outcomes.distinct_PK),
        all_correct=resampled.mean((c_S == n_S).astype(np.float64)),
        all_wrong=resampled.mean((c_S == 0).astype(np.float64)),
        tokens=resampled.mean(outcomes.tokens_P),
        truncated=resampled.mean(outcomes.truncated_P),
        entropy=resampled.mean(outcomes.entropy_P),
        base_logprob=resampled.mean(outcomes.base_logprob_P),
        base_loglikelihood=resampled.mean(outcomes.base_loglikelihood_P),
        base_logprob_correct=resampled.mean(outcomes.base_logprob_correct_P),
        verdicts=outcomes.verdicts,
        unscored=num_unscored / int(outcomes.num_samples_P.sum()),
        num_problems_unscored=int((~scored_P).sum()),
        num_problems_short=int((n_S < outcomes.num_samples_P[scored_P]).sum()),
        confidence=CONFIDENCE,
        num_resamples=num_resamples,
        seed=seed,
    )


@dataclass(frozen=True)
class _Resampled:
    """Means over the problems that have a value, with their intervals."""

    num_resamples: int
    seed: int

    def mean(self, values_P: FloatArray) -> Estimate | None:
        known = values_P[~np.isnan(values_P)]
        return mean_estimate(known, resample_counts(len(known), self.num_resamples, self.seed)) if len(known) else None

    def curve(self, ks: Sequence[int], values_PK: FloatArray) -> Curve | None:
        known = values_PK[~np.isnan(values_PK).any(axis=1)]
        chosen = known[:, np.asarray(ks) - 1]
        return mean_curve(ks, chosen, resample_counts(len(known), self.num_resamples, self.seed)) if len(known) else None
