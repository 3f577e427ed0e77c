"""Counts of the final answers of a run, and the bonus for rare ones. Legend: G groups, K responses.

    counts = absorb(counts, keys_G, answers_GK, max_bytes=...)     # the step first,
    counts_GK = counts_of(counts, keys_G, answers_GK)              # then what it counts

A problem is known by its key, "task/problem_id"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.elliptical import group_mean_and_std
from bonus.kinds import KINDS
from bonus.outcome_batch import Answers

Baseline = Literal["none", "mean", "constant"]
NUMBER_BYTES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerCounts:
    """How often each problem got each final answer, as a value."""

    of_problem: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by key; the least recently used problem is first
    num_evicted: int = 0
    """Problems forgotten over the run to make room. One that comes back starts from nothing, and may count again."""


def absorb(counts: AnswerCounts, keys_G: Sequence[str], answers_GK: Answers, *, max_bytes: int) -> AnswerCounts:
    """Return `counts` with the step's answers added, None left out. Then the least recently used problems, but never
    this step's, are evicted down to `max_bytes` (`nbytes`)."""
    of_problem = dict(counts.of_problem)
    for key, answers in zip(keys_G, answers_GK, strict=True):
        known = dict(of_problem.pop(key, {}))
        for answer in answers:
            if answer is not None:
                known[answer] = known.get(answer, 0) + 1
        if known:
            of_problem[key] = known
    size, num_evicted = nbytes(of_problem), counts.num_evicted
    for key in list(of_problem):
        if size <= max_bytes or key in keys_G:  # this step's problems are the most recently used: nothing to evict follows them
            break
        size -= nbytes({key: of_problem.pop(key)})
        num_evicted += 1
    return AnswerCounts(of_problem=of_problem, num_evicted=num_evicted)


def nbytes(of_problem: Mapping[str, Mapping[str, int]]) -> int:
    """Return the bytes of all keys and answers, and 8 for each number, without what Python's objects take besides."""
    answers = sum(len(answer.encode()) + NUMBER_BYTES for known in of_problem.values() for answer in known)
    return answers + sum(len(key.encode()) for key in of_problem)


def counts_of(counts: AnswerCounts, keys_G: Sequence[str], answers_GK: Answers) -> Tensor:
    """Return N(x, a) of each response, float64; 0 for a response without an answer."""
    pairs = zip(keys_G, answers_GK, strict=True)
    numbers = [[counts.of_problem.get(key, {}).get(answer, 0) if answer is not None else 0 for answer in answers] for key, answers in pairs]
    return torch.tensor(numbers, dtype=torch.float64)


def merge(a: AnswerCounts, b: AnswerCounts) -> AnswerCounts:
    """Add two shards, with b's problems the more recently used. The next `absorb` bounds the sum."""
    merged = {key: known for key, known in a.of_problem.items() if key not in b.of_problem}
    for key, known in b.of_problem.items():
        before = a.of_problem.get(key, {})
        merged[key] = {answer: before.get(answer, 0) + known.get(answer, 0) for answer in {**before, **known}}
    return AnswerCounts(of_problem=merged, num_evicted=a.num_evicted + b.num_evicted)


def ucb(counts_GK: Tensor, valid_GK: Tensor, *, baseline: Baseline, constant: float) -> Tensor:
    """Return min(1, N^-1/2), and 0 where N = 0, less the baseline, which is subtracted from empty responses too."""
    raw_GK = torch.where(counts_GK > 0, counts_GK.clamp(min=1.0).rsqrt(), 0.0)
    if baseline == "mean":
        raw_GK = raw_GK - group_mean_and_std(raw_GK, valid_GK)[0]
    elif baseline == "constant":
        raw_GK = raw_GK - constant
    return raw_GK


class OutcomeUcbBonus:
    """A bonus for final answers that the problem seldom got in this run (historical exploration of arXiv:2509.06941):

        b_i = min(1, N(x, a_i)^-1/2)    less nothing ("UCB"), the group's mean ("UCB-Mean") or b_0 ("UCB-Con", 0.5)

    N(x, a) counts answer a to problem x over the run. The equations were read on a secondary page that quotes them, not
    in the paper. Not verified: whether N includes the step that is scored. Here it does, so N >= 1, equal answers of
    one group share their bonus, and the bonus says something where a problem comes once. A response without an answer
    is not counted and gets N^-1/2 = 0, so that saying nothing is never new. The counts are bounded in bytes, which is
    ours. The paper adds the bonus to a normalised advantage without centering it. An advantage that subtracts the
    group's mean cancels all three baselines: then they train alike. So that it does, a baseline is subtracted from an
    empty response too."""

    needs = KINDS["outcome_ucb"]

    def __init__(self, config: BonusConfig) -> None:
        self._config = config.outcome_ucb

    def init_state(self) -> AnswerCounts:
        return AnswerCounts()

    def score(self, step: StepRows, state: AnswerCounts) -> tuple[Scores, AnswerCounts]:
        assert step.answers_GK is not None, "outcome_ucb needs final answers"
        counts = absorb(state, step.keys_G, step.answers_GK, max_bytes=self._config.memory_mib * 2**20)
        counts_GK = counts_of(counts, step.keys_G, step.answers_GK)
        bonus_GK = ucb(counts_GK, step.valid_GK, baseline=self._config.baseline, constant=self._config.constant)
        metrics = {
            "remembered_prompts": float(len(counts.of_problem)),
            "remembered_answers": float(sum(map(len, counts.of_problem.values()))),
            "remembered_mib": nbytes(counts.of_problem) / 2**20,
            "evicted_prompts": float(counts.num_evicted),
        }
        return Scores(bonus_GK=bonus_GK, metrics=metrics, detail={"count": counts_GK}), counts

    def state_dict(self, state: AnswerCounts) -> dict[str, Any]:
        return {"of_problem": {key: dict(known) for key, known in state.of_problem.items()}, "num_evicted": state.num_evicted}

    def from_state_dict(self, saved: Mapping[str, Any]) -> AnswerCounts:
        """Raises TypeError for missing or unknown parts."""
        return AnswerCounts(**saved)
