"""The reward of a response: that of its verdict, and optional terms that shape it.

    r = r_task − format_penalty · [no answer of the form asked for] − overlong_penalty · max(0, T − (T_max − B)) / B

T is the number of tokens of the response, T_max the largest allowed number, and B = `overlong_tokens`. The last term is
the soft overlong punishment of DAPO (arXiv:2503.14476, equation 13): it is 0 up to T_max − B tokens and grows linearly
to its full size at T_max. With overlong_of = "correct" only a correct response loses by it, as in Arora and Zanette's
length penalty (arXiv:2502.04463). All terms are off by default, so a reward is 1 or 0. An unscored response has no
terms."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tasks.base import Section, Verdict, VerdictStatus

__all__ = ["RewardConfig", "RewardTerms", "reward_terms"]

_FORMLESS = (VerdictStatus.NO_ANSWER, VerdictStatus.MALFORMED)


class RewardConfig(Section):
    """Terms that shape the reward. They are kept and logged apart from the task's own."""

    format_penalty: float = Field(default=0.0, ge=0)
    """What a response loses if it states no answer of the form asked for (verdicts no_answer and malformed)."""
    overlong_tokens: int = Field(default=0, ge=0)
    """B: a response loses reward over the last B tokens before `sampling.max_response_tokens`. 0: it loses none."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """What it has lost at `sampling.max_response_tokens`. This has no effect without `overlong_tokens`."""
    overlong_of: Literal["all", "correct"] = "all"
    """Which responses lose it. With "all", a group without a right answer learns only to be short. With "correct" it
    learns nothing from length, and a right answer is worth most if it ends. Then an `overlong_penalty` of 1 with
    `overlong_tokens` of 1 counts a right answer only if it ends before the limit."""

    @property
    def is_shaped(self) -> bool:
        """Whether any term besides the task's own is on."""
        return self.format_penalty > 0 or self.overlong_tokens > 0

    @property
    def stays_at_least_0(self) -> bool:
        """Whether no term takes a reward below 0, if the task's own is 1 where correct and at least 0 elsewhere."""
        return not self.is_shaped or (not self.format_penalty and self.overlong_of == "correct" and self.overlong_penalty <= 1)

    @property
    def stays_0_or_1(self) -> bool:
        """Whether rewards stay 0 or 1 where the task's own are."""
        return not self.is_shaped or (self.stays_at_least_0 and self.overlong_penalty == self.overlong_tokens == 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTerms:
    """The terms whose sum is the reward of a response. All are None if it could not be scored."""

    task: float | None
    format: float | None
    length: float | None

    @property
    def total(self) -> float | None:
        if self.task is None or self.format is None or self.length is None:
            return None
        return self.task + self.format + self.length


def reward_terms(verdict: Verdict, num_tokens: int, max_tokens: int, config: RewardConfig) -> RewardTerms:
    """Return the terms of the reward of a response with `num_tokens` tokens, of which `max_tokens` are allowed."""
    if verdict.reward is None:
        return RewardTerms(task=None, format=None, length=None)
    is_spared = config.overlong_of == "correct" and verdict.status is not VerdictStatus.CORRECT
    over = max(0, num_tokens - (max_tokens - config.overlong_tokens)) if config.overlong_tokens and not is_spared else 0
    return RewardTerms(
        task=verdict.reward,
        format=-config.format_penalty if verdict.status in _FORMLESS else 0.0,
        length=-config.overlong_penalty * over / config.overlong_tokens if over else 0.0,
    )
