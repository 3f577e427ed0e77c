"""What a response is rewarded with besides being right: named shaping terms, all off by default, so that a reward is 1
or 0.

    r = r_task − format_penalty · [no answer of the form asked for] − overlong_penalty · max(0, T − (T_max − B)) / B

T is the response's number of tokens, T_max the most it may have, B = `overlong_tokens`. The last term is the soft
overlong punishment of DAPO (arXiv:2503.14476, equation 13): 0 up to T_max − B, then growing to its full size at T_max.
A response that could not be scored has no reward and none of the terms."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from buffers.records import Verdict, VerdictStatus

__all__ = ["RewardConfig", "RewardTerms", "reward_terms"]

_FORMLESS = (VerdictStatus.NO_ANSWER, VerdictStatus.MALFORMED)


class RewardConfig(BaseModel):
    """Shaping of rewards. They are kept and logged apart from the task's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    format_penalty: float = Field(default=0.0, ge=0)
    """What a response loses that states no answer, or none of the form asked for (verdicts no_answer and malformed)."""
    overlong_tokens: int = Field(default=0, ge=0)
    """B: a response loses reward over the last so many tokens before `sampling.max_response_tokens`. 0: it does not."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """What it has lost at `sampling.max_response_tokens`. Without `overlong_tokens` this has no effect."""

    @property
    def is_shaped(self) -> bool:
        """Whether there is any term besides the task's own."""
        return self.format_penalty > 0 or self.overlong_tokens > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTerms:
    """What a response's reward is the sum of. All None where it could not be scored."""

    task: float | None
    format: float | None
    length: float | None

    @property
    def total(self) -> float | None:
        if self.task is None or self.format is None or self.length is None:
            return None
        return self.task + self.format + self.length


def reward_terms(verdict: Verdict, num_tokens: int, max_tokens: int, config: RewardConfig) -> RewardTerms:
    """The reward of a response of `num_tokens` out of at most `max_tokens`, by its terms."""
    if verdict.reward is None:
        return RewardTerms(task=None, format=None, length=None)
    over = max(0, num_tokens - (max_tokens - config.overlong_tokens)) if config.overlong_tokens else 0
    return RewardTerms(
        task=verdict.reward,
        format=-config.format_penalty if verdict.status in _FORMLESS else 0.0,
        length=-config.overlong_penalty * over / config.overlong_tokens if over else 0.0,
    )
