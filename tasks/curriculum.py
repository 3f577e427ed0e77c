"""Curriculum by measured pass rate: training meets most often the problems that the policy solves half of the time.

    curriculum = Curriculum(config, seed)
    for position, problem in enumerate(candidates):
        if curriculum.accepts(problem, position):          # with probability `weight(problem)`
            ...                                            # train on it, then
            curriculum.observe(problem, num_correct=3, num_scored=8, recurs=True)

Candidates come in the order that they would have without a curriculum, and some are passed over. So a problem is met in
proportion to its weight and at most once an epoch. It never starves, because no weight is below the floor.

The pass rate of a problem, or of a kind of problems (`bucket`), is a share of correct responses in which older
observations count less. A few responses say little, so k = `prior_responses` imagined responses pull each rate towards
what is known without them: 1/2 for a kind, and the rate of the kind for a problem:

    p_kind = (c + k / 2) / (n + k),    p = (c' + k p_kind) / (n' + k),    weight = floor + (1 - floor) 4 p (1 - p)

Here c of n responses are correct in the kind, and c' of n' in the problem. 4p(1 - p) is the variance of a binary
reward, in units of its maximum, and the learning signal of a group grows with it. A kind never observed has weight 1.

Whether a candidate is accepted is a function of (seed, position, state), and the state is exact in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from pydantic import Field

from tasks.base import Problem, Section

__all__ = ["Curriculum", "CurriculumConfig", "PassRate", "bucket", "expected_rate", "sampling_weight"]

_MAX_BUCKETS = 1_000


class CurriculumConfig(Section):
    """Whether problems are chosen by how often the policy solves them (`tasks.curriculum` has the equations)."""

    enabled: bool = False
    """False: problems come in the task's order, whatever their rates."""
    floor: float = Field(default=0.1, ge=0.01, le=1)
    """Smallest weight: that of problems which are always or never solved. 1 means no curriculum. At worst, 1 / floor
    candidates are drawn for each problem."""
    decay: float = Field(default=0.95, gt=0, le=1)
    """Factor on the weight of a kind's earlier groups at each new one: 0.95 remembers about 20 groups."""
    problem_decay: float = Field(default=0.5, gt=0, le=1)
    """Factor on the weight of a problem's earlier groups at each new one, which comes an epoch later."""
    prior_responses: float = Field(default=4.0, gt=0)
    """k: the weight, in responses, of what is known of the problem's kind."""
    max_problems: int = Field(default=20_000, ge=1)
    """How many problems have their rates kept. The least recently observed is forgotten. Only problems of finite tasks
    recur, so only their rates are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRate:
    """Numbers of correct and of scored responses, in which older ones count less."""

    correct: float = 0.0
    scored: float = 0.0

    def observed(self, *, correct: int, scored: int, decay: float) -> PassRate:
        return PassRate(correct=self.correct * decay + correct, scored=self.scored * decay + scored)

    def towards(self, rate: float, prior_responses: float) -> float:
        """Return the share of correct responses, with `prior_responses` more of the given rate."""
        return (self.correct + prior_responses * rate) / (self.scored + prior_responses)


def bucket(problem: Problem) -> str:
    """Return the kind of a problem: its task and, if the task distinguishes kinds, `meta["kind"]`."""
    return f"{problem.task}/{problem.meta['kind']}" if "kind" in problem.meta else problem.task


def expected_rate(problem: PassRate, kind: PassRate, *, prior_responses: float) -> float:
    """Return p of the module's equation."""
    return problem.towards(kind.towards(0.5, prior_responses), prior_responses)


def sampling_weight(rate: float, *, floor: float) -> float:
    """Return the probability that a candidate of this rate is accepted: `floor` at 0 and 1, and 1 at 1/2."""
    return floor + (1 - floor) * 4 * rate * (1 - rate)


class Curriculum:
    """The rates of problems and kinds, and the choice by them. The object is not thread-safe."""

    def __init__(self, config: CurriculumConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._buckets = _Rates(config.decay, _MAX_BUCKETS)
        self._problems = _Rates(config.problem_decay, config.max_problems)

    def accepts(self, problem: Problem, position: int) -> bool:
        """Return whether the candidate at `position` is accepted."""
        return Random(f"{self._seed}/curriculum/{position}").random() < self.weight(problem)

    def weight(self, problem: Problem) -> float:
        kind, own = self._buckets.get(bucket(problem)), self._problems.get(_key(problem))
        return sampling_weight(expected_rate(own, kind, prior_responses=self._config.prior_responses), floor=self._config.floor)

    def observe(self, problem: Problem, *, num_correct: int, num_scored: int, recurs: bool) -> None:
        """Record the verdicts of a group: `num_correct` of `num_scored` scored responses were correct. `recurs` says
        whether the problem will be met again. Raises ValueError unless 0 <= num_correct <= num_scored."""
        if not 0 <= num_correct <= num_scored:
            raise ValueError(f"{num_correct} correct of {num_scored} scored responses to '{problem.problem_id}'")
        if num_scored == 0:
            return
        self._buckets.observe(bucket(problem), correct=num_correct, scored=num_scored)
        if recurs:
            self._problems.observe(_key(problem), correct=num_correct, scored=num_scored)

    def rates(self) -> dict[str, float]:
        """Return the share of correct responses of each kind, in the order of names."""
        return {name: rate.correct / rate.scored for name, rate in sorted(self._buckets.items())}

    def state_dict(self) -> dict[str, Any]:
        return {"buckets": self._buckets.state(), "problems": self._problems.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. Raises ValueError if its rates are not shares of scored responses."""
        self._buckets.load(state["buckets"])
        self._problems.load(state["problems"])


class _Rates:
    """Rates by key. It keeps at most `most` of them and forgets the least recently observed."""

    def __init__(self, decay: float, most: int) -> None:
        self._decay = decay
        self._most = most
        self._rates: dict[str, PassRate] = {}  # the least recently observed first

    def get(self, key: str) -> PassRate:
        return self._rates.get(key, PassRate())

    def items(self) -> list[tuple[str, PassRate]]:
        return list(self._rates.items())

    def observe(self, key: str, *, correct: int, scored: int) -> None:
        rate = self._rates.pop(key, PassRate())
        self._rates[key] = rate.observed(correct=correct, scored=scored, decay=self._decay)
        if len(self._rates) > self._most:
            del self._rates[next(iter(self._rates))]

    def state(self) -> list[list[str | float]]:
        return [[key, rate.correct, rate.scored] for key, rate in self._rates.items()]

    def load(self, state: list[tuple[str, float, float]]) -> None:
        """Restore saved rates: the most recently observed, if more were saved than are kept here."""
        rates = {key: PassRate(correct=float(correct), scored=float(scored)) for key, correct, scored in state[-self._most :]}
        if any(not 0 <= rate.correct <= rate.scored or rate.scored == 0 for rate in rates.values()):
            raise ValueError("a saved pass rate is no share of scored responses")
        self._rates = rates


def _key(problem: Problem) -> str:
    """Return a key that is unique among all tasks; ids are unique within one."""
    return f"{problem.task}:{problem.problem_id}"
