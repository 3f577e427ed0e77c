"""Stand-ins for what needs a GPU: an engine and a learner that sleep. All other parts of a run are the real ones.

    [rollout]
    engine = "benchmarks.sleeping:SleepingEngine"
    engine_options = { kind = "lognormal", group_size = 4, mean_tokens = 10.0, token_s = 0.1 }

    components = SleepingComponents(config, model, step_s=1.0, run_id="run", log_directory="rollouts")

The lengths of a group's responses depend on a seed and on the group alone, so that whoever knows both knows them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from actors.engine import EngineSetup, NewTokens, SampleRequest
from actors.learner import Learner
from buffers.records import FinishReason, StepReport
from buffers.rollout_log import RolloutLog
from jobs.config import RunConfig
from jobs.processes.description import Component, TrainingComponents
from learners.weights import WeightSnapshot

LOG = "log:"
TOGETHER_S = 0.001
"""Tokens that are due within this time come from one engine step."""
ANY_TOKEN, ANY_LOGPROB = 20, -1.0


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many tokens each response of a group has.

    fixed      every response has `mean_tokens`
    lognormal  the group's length is drawn with this mean; all its responses have it, so it is the slowest one's, too
    log:DIR    the lengths of a group drawn from the rollout log in DIR, whose groups have at least `group_size` rows
    """

    kind: str
    group_size: int
    mean_tokens: float = 10.0
    sigma: float = 1.0
    """The standard deviation of the logarithm."""
    seed: int = 0
    logged: Sequence[Sequence[int]] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        if self.kind.startswith(LOG):
            object.__setattr__(self, "logged", logged_lengths(self.kind.removeprefix(LOG), self.group_size))
        elif self.kind not in ("fixed", "lognormal"):
            raise ValueError(f'lengths are "fixed", "lognormal" or "{LOG}DIR", not "{self.kind}"')

    def of(self, name: str) -> list[int]:
        """Return the tokens of each response of the group that `name` identifies."""
        rng = np.random.default_rng(zlib.crc32(f"{self.seed}/{name}".encode()))
        if self.logged:
            return list(self.logged[int(rng.integers(len(self.logged)))])
        log_factor = rng.normal(-0.5 * self.sigma**2, self.sigma) if self.kind == "lognormal" else 0.0
        return [max(1, round(self.mean_tokens * float(np.exp(log_factor))))] * self.group_size

    @property
    def mean_longest(self) -> float:
        """The mean tokens of a group's longest response."""
        return float(np.mean([max(group) for group in self.logged])) if self.logged else self.mean_tokens


def logged_lengths(directory: str, group_size: int) -> list[list[int]]:
    """Return the response lengths of every group in a rollout log. Raise ValueError where there are none."""
    log = RolloutLog(fs.LocalFileSystem(), directory)
    found: dict[int, list[int]] = {}
    for row in log.read().select(["group_id", "response_ids"]).to_pylist():
        found.setdefault(row["group_id"], []).append(max(1, len(row["response_ids"])))
    groups = [lengths[:group_size] for _, lengths in sorted(found.items()) if len(lengths) >= group_size]
    if not groups:
        raise ValueError(f"{directory} holds no group of {group_size} responses: name the rollouts directory of a run")
    return groups


def name_of_group(*, group_id: int, problem_id: str, again: str) -> str:
    """Return what the lengths of a group depend on: where `again` is "same", a problem that is tried again is as long
    as before."""
    return problem_id if again == "same" else str(group_id)


@dataclass(slots=True)
class _Running:
    num_sampled: int
    num_tokens: int
    next_at: float


class SleepingEngine:
    """Samples a token of each response every `token_s` seconds, and computes nothing. Responses do not slow each other
    down. It takes new weights between two tokens, as a real engine does."""

    def __init__(self, token_s: float, again: str = "new", **lengths: Any) -> None:
        self._token_s = token_s
        self._again = again
        self._lengths = Lengths(**lengths)
        self._running: dict[str, _Running] = {}
        self._limit = 0

    def start(self, setup: EngineSetup) -> None:
        self._limit = setup.sampling.max_response_tokens

    def add(self, request: SampleRequest) -> None:
        group, _, rest = request.key.partition(":")
        problem_id, _, _, index = rest.rsplit("/", 3)
        name = name_of_group(group_id=int(group), problem_id=problem_id, again=self._again)
        num_tokens = min(self._limit, self._lengths.of(name)[int(index)])
        num_sampled = len(request.sampled.token_ids) if request.sampled else 0
        self._running[request.key] = _Running(num_sampled, max(num_tokens, num_sampled + 1), time.monotonic() + self._token_s)

    def step(self) -> list[NewTokens]:
        if not self._token_s:
            return [self._tokens(key, running.num_tokens - running.num_sampled) for key, running in list(self._running.items())]
        time.sleep(max(0.0, min(running.next_at for running in self._running.values()) - time.monotonic()))
        now = time.monotonic() + TOGETHER_S
        due = [(key, int((now - running.next_at) / self._token_s) + 1) for key, running in self._running.items() if running.next_at <= now]
        return [self._tokens(key, count) for key, count in due]

    def _tokens(self, key: str, count: int) -> NewTokens:
        running = self._running[key]
        count = min(count, running.num_tokens - running.num_sampled)
        running.num_sampled += count
        running.next_at += count * self._token_s
        has_ended = running.num_sampled == running.num_tokens
        if has_ended:
            del self._running[key]
        reason = FinishReason.STOP if has_ended else None
        return NewTokens(key=key, token_ids=[ANY_TOKEN] * count, logprobs=[ANY_LOGPROB] * count, finish_reason=reason)

    def abort(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._running[key]

    def load(self, snapshot: WeightSnapshot) -> None:
        """Take the weights, of which there is nothing to keep."""

    def reset(self, seed: int, *, keep_cache: bool = False) -> None:
        """Nothing is cached, and the seed is that of the lengths."""


class SleepingLearner(Learner):
    """A learner whose step takes `step_s` seconds and leaves the weights as they are. It publishes and saves as any."""

    def __init__(self, *args: Any, step_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._step_s = step_s

    def step(self, batch: pa.RecordBatch, version: int | None = None) -> StepReport:
        if version is not None and version != self.version:
            raise ValueError(f"the learner is at version {self.version}, the batch is for version {version}")
        time.sleep(self._step_s)
        self.version += 1
        return StepReport(version=self.version, metrics={"time/learn_s": self._step_s}, advantages=(0.0,) * batch.num_rows)


class SleepingComponents(TrainingComponents):
    """The components of a run whose learner sleeps. Its engine is named in the configuration."""

    def __init__(self, config: RunConfig, model: str, *, step_s: float, run_id: str, log_directory: str) -> None:
        super().__init__(config, model, run_id=run_id, log_directory=log_directory)
        self._step_s = step_s

    def learner(self) -> Component[Any]:
        component = super().learner()
        return replace(component, cls=SleepingLearner, kwargs={**component.kwargs, "step_s": self._step_s})
