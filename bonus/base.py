"""The interface of an exploration bonus: what it is given, what it returns, and what it carries from step to step.

    state = bonus.init_state()
    for step in steps:                               # one `StepRows` a training step, in the order of the steps
        scores, state = bonus.score(step, state)     # scores.bonus_GK; learner.advantage.combine says where it enters

A class with these two methods and the attribute `needs` is a bonus; `bonus.kind = "mypackage.module:MyBonus"` trains
with it. Importing this module does not load torch. Legend: G groups of the step, K responses per group, T tokens of the
longest response, D projected size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from buffers.extensions import ExtensionError, load

if TYPE_CHECKING:
    from torch import Tensor

State = Any  # what a bonus carries from step to step; the owner passes it on and saves it, and never looks inside


class Need(StrEnum):
    """What the run must compute for each response before a bonus can score it."""

    FEATURES = "features"  # projected hidden states, of the source that `bonus.source` names
    ANSWERS = "answers"  # the final answer that the response states, as the task reads it
    RESPONSES = "responses"  # its token ids
    LOGPROBS = "logprobs"  # the log-prob of each token under the policy that sampled it


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRows:
    """One step's responses, verified and about to be trained on. What a bonus does not need is None."""

    step: int  # number of the training step, from 1
    seed: int  # The run's seed. A generator seeded with `seed` and `step` draws the same numbers after a resume.
    keys_G: Sequence[str]  # the problem of each group as "task/problem_id", the same whenever the problem comes again
    rewards_GK: Tensor  # float64; NaN where the verifier could not score
    correct_GK: Tensor  # bool
    valid_GK: Tensor  # bool; False for an empty response, which has no tokens and no feature. Its bonus should be 0.
    lengths_GK: Tensor  # int64, in tokens
    lags_GK: Tensor  # int64: policy versions between the response's oldest token and the policy that is trained; 0 for an empty one
    ended_GK: Tensor | None = None  # bool; False where the token limit cut the response off. None: every response ended.
    features_GKD: Tensor | None = None  # float64; 0 for an empty response
    answers_GK: Sequence[Sequence[str | None]] | None = None
    """Equal answers are equal strings, and never cut short; None where a response states no answer."""
    responses_GK: Sequence[Sequence[Sequence[int]]] | None = None  # token ids; none for an empty response
    logprobs_GKT: Tensor | None = None  # float64; 0 after a response's last token, so that a sum over T is the response's log-prob


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a bonus says of a step."""

    bonus_GK: Tensor  # finite numbers, before beta
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers about the step. Each is logged as "bonus/NAME"; leave out what the step does not define."""
    detail: Mapping[str, Tensor] = field(default_factory=dict)
    """Numbers about each response, G x K, written to the rollout log's column `bonus_detail`; NaN is left out."""


class Bonus(Protocol):
    """A number per response that rewards exploration. The state is a value: `score` returns a new one and leaves the
    old one as it was. A mapping of names to tensors and to values that JSON can hold is saved and restored as it is
    (`{}` if nothing is carried). A bonus with another state also has the methods of `SavesState`."""

    needs: frozenset[Need]  # What must be computed for it. Encoders are started only for a bonus that needs FEATURES.

    def init_state(self) -> State:
        """Return the state before the first step."""

    def score(self, step: StepRows, state: State) -> tuple[Scores, State]:
        """Score a step and absorb it. Return its scores and the next state. Steps come once, in order; after a crash
        those since the last checkpoint come again, so equal arguments must give equal results."""


@runtime_checkable
class SavesState(Protocol):
    """What a bonus adds whose state is more than a mapping of tensors and JSON values."""

    def state_dict(self, state: State) -> Mapping[str, Any]:
        """Return `state` as names to tensors and to values that JSON can hold."""

    def from_state_dict(self, saved: Mapping[str, Any]) -> State:
        """Return the state that `state_dict` saved. The next scores are the same, bit for bit."""


def load_bonus(path: str, options: Mapping[str, Any]) -> Bonus:
    """Import the bonus that `path` names and make it with `options`. Raises ExtensionError."""
    bonus: Bonus = load(path, options, key="bonus.kind", options_key="bonus.options", methods=("needs", "init_state", "score"))
    known = ", ".join(Need)
    if isinstance(bonus.needs, str):
        raise ExtensionError(f'bonus.kind = "{path}": needs must be a set such as frozenset({{Need.FEATURES}}), not a string')
    try:
        unknown = sorted(set(bonus.needs) - set(Need))
    except TypeError:
        raise ExtensionError(f'bonus.kind = "{path}": needs = {bonus.needs!r} is not a set of: {known}') from None
    if unknown:
        raise ExtensionError(f'bonus.kind = "{path}": needs names {", ".join(map(repr, unknown))}; it may name: {known}')
    return bonus
