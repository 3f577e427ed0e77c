"""The vocabulary: frozen, keyword-only records that cross the boundaries between components. Only the standard library
is imported here, so tasks, actors and jobs can share these records without Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """The reason why a response ended."""

    STOP = "stop"  # the policy sampled its end-of-turn token
    LENGTH = "length"  # max_response_tokens was reached
    ABORTED = "aborted"  # the engine was told to drop it; its tokens so far are kept


class VerdictStatus(StrEnum):
    """What the verifier found. The first four judge the response; the last two say that there is no judgement."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"  # the response states no answer: scored as not correct
    MALFORMED = "malformed"  # it states one that is not of the form asked for, or cannot be read: scored as not correct
    TIMEOUT = "timeout"  # the deadline passed: not scored, never counted as wrong
    ERROR = "error"  # the verifier failed: not scored, never counted as wrong

    @property
    def is_scored(self) -> bool:
        return self not in (VerdictStatus.TIMEOUT, VerdictStatus.ERROR)

    @classmethod
    def _missing_(cls, value: object) -> VerdictStatus | None:
        """Read "unparsed", the status in logs from before NO_ANSWER and MALFORMED were told apart."""
        return cls.NO_ANSWER if value == "unparsed" else None


class GroupOutcome(StrEnum):
    """The fate of a group that was offered to replay."""

    TRAINED = "trained"
    STALE = "stale"  # too much of it was sampled more than max_policy_lag versions before it could be trained on
    FILTERED = "filtered"  # its rewards were all alike, so another problem took its place (dynamic sampling)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of a task. `problem_id` is stable across processes, machines and runs."""

    task: str
    problem_id: str
    question: str
    answer: str
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The verifier's finding on one response. `reward` is None if the response could not be scored."""

    status: VerdictStatus
    reward: float | None
    answer: str | None = None  # what was read out of the response, cut short
    detail: str | None = None
    elapsed_s: float = 0.0
    final_answer: str | None = None  # `Task.final_answer`, whole; there at least where the verifier pool was asked for it

    @property
    def whole_answer(self) -> str | None:
        """The answer that was read, as far as the verdict has it."""
        return self.answer if self.final_answer is None else self.final_answer

    def __post_init__(self) -> None:
        if (self.reward is None) is self.status.is_scored:
            raise ValueError(f"a verdict '{self.status}' cannot carry reward {self.reward!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRequest:
    """One admitted group: sample `num_responses` responses to `problem`. `group_id` counts admissions and never repeats
    within a run. `attempt` counts the failures of earlier groups of this problem; being late is no failure.
    `admitted_version` is the newest live policy version when the slot was taken. `place` counts the groups that were
    admitted under that version before."""

    group_id: int
    problem: Problem
    num_responses: int
    admitted_version: int
    attempt: int = 0
    place: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled response, token for token as sampled (never re-tokenized). `version_starts[i]` is the index of the
    first response token that was sampled under policy version `version_values[i]` (run-length form: starts strictly
    increase from 0). `response_ids` and `behavior_logprobs` have the same length T; T = 0 is allowed."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...]
    version_starts: tuple[int, ...]
    version_values: tuple[int, ...]
    finish_reason: FinishReason
    response_text: str
    generate_s: float = 0.0

    def __post_init__(self) -> None:
        tokens, log_probs = len(self.response_ids), len(self.behavior_logprobs)
        if tokens != log_probs:
            raise ValueError(f"{tokens} response tokens but {log_probs} behavior log-probs: a length mismatch is never padded")
        if len(self.version_starts) != len(self.version_values):
            raise ValueError("version_starts and version_values must have one entry a run each")
        if self.response_ids and (not self.version_starts or self.version_starts[0] != 0):
            raise ValueError("the first token has no policy version")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupUsage:
    """Token counts of one generated group, and the seconds since the worker got the request. `resumed_tokens` of the
    `response_tokens` were sampled before, by another worker. `num_aborted` responses are unfinished. `sampled_tokens`
    counts every token that the worker has sampled up to here, for any group."""

    worker_id: str
    prompt_tokens: int
    response_tokens: int
    generate_s: float
    resumed_tokens: int = 0
    num_aborted: int = 0
    sampled_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """A rollout worker's progress: the version it holds, tokens reported by group, and all tokens it ever sampled."""

    worker_id: str
    version: int
    tokens_by_group: Mapping[int, int]
    sampled_tokens: int
    rss_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightUpdate:
    """One load of weights into an engine. The weights were checked for `check_s` seconds while the engine sampled, and
    loaded for `load_s` seconds in which it sampled nothing. The engine had no work for `idle_s` seconds since the last
    load. `nbytes` is the weights' size."""

    worker_id: str
    version: int
    load_s: float
    idle_s: float
    check_s: float = 0.0
    nbytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """The result of one training step: the version it made, metrics (docs/metrics.md), and one advantage a row."""

    version: int
    metrics: Mapping[str, float]
    advantages: tuple[float, ...]
