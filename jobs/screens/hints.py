"""Metrics that call for action, in words: what they mean, and what to change."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.config import RunConfig
from learners.mismatch import Cause

_ALARM = "mismatch/alarm_"

DAMPED_BELOW = 1e-5
"""With combine = "reward", a bonus whose weighted spread is less loses a tenth of its weight and more."""

_MISMATCH = {
    Cause.TEMPERATURE: "the engine samples at about {temperature:.2f} times the learner's temperature (to first order: further off it is "
    "understated): set sampling.temperature to the "
    "engine's, and let it report log-probs of after the temperature",
    Cause.RETOKENISATION: "some tokens are far off while others agree as well as ever: the ids trained on are not those sampled; pass "
    "on token ids, never text that is encoded again",
    Cause.DROPPED_TENSOR: "all tokens are far off: the engine holds another model; compare its tensors with the learner's (a tied head, a "
    "renamed or unloaded tensor)",
    Cause.STALE_WEIGHTS: "tokens said to be of this version differ like those of an older one: the engine has not taken the last weights",
    Cause.NOISE: "engine and learner compute too differently: give rollout.dtype and learner.dtype one format, or correct for it with "
    'learner.loss.correction = "masked_is"',
}


def no_signal_warnings(step: int, metrics: Mapping[str, float], config: RunConfig) -> list[str]:
    """Return what each known bonus means that says of itself that it orders nothing, and what to change. "ties" scales
    any bonus where it decides. "reward" does so while beta times the spread is far above what `std` adds to its divisor
    (`learners.advantages.EPSILON`)."""
    advantage = config.learner.advantage
    if advantage.combine in ("ties", "positive_ties"):
        return []
    prefixes = [config.bonus.prefix_of(part) for part in config.bonus.parts if part.kind in ("elliptical", "logdet")]
    weak = [prefix for prefix in prefixes if f"{prefix}/no_signal_warning" in metrics]
    if advantage.combine == "reward":
        weighted = {prefix: advantage.beta * metrics[f"{prefix}/spread"] for prefix in weak}
        return [_damped(step, value) for value in weighted.values() if value < DAMPED_BELOW]
    return [_no_signal(step, prefix, metrics, config) for prefix in weak]


def _damped(step: int, weighted_spread: float) -> str:
    return (
        f"step {step}: the exploration bonus is damped: beta times its median spread within a group is {weighted_spread:.1e}, and the "
        '1e-6 in the divisor of the rewards hides it: set learner.advantage.combine = "ties" with beta = 1 (docs/algorithm.md)'
    )


def _no_signal(step: int, prefix: str, metrics: Mapping[str, float], config: RunConfig) -> str:
    fix = 'set bonus.ridge = "auto"' if config.bonus.ridge != "auto" else "check bonus.dim and the encoder"
    return (
        f"step {step}: the exploration bonus carries no signal: its median spread within a group is {metrics[f'{prefix}/spread']:.1e} "
        f"(below 1e-3) at ridge {metrics[f'{prefix}/ridge']:.3g}; {fix} (docs/algorithm.md)"
    )


class MismatchAdvice:
    """Explains each alarm of `learners.mismatch` once."""

    def __init__(self) -> None:
        self._said: set[Cause] = set()

    def new(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return texts for those of the step's alarms that were not explained before."""
        causes = [Cause(name.removeprefix(_ALARM)) for name in metrics if name.startswith(_ALARM)]
        texts = [_mismatch(step, cause, metrics) for cause in causes if cause not in self._said]
        self._said.update(causes)
        return texts


def _mismatch(step: int, cause: Cause, metrics: Mapping[str, float]) -> str:
    what = _MISMATCH[cause].format(temperature=metrics.get("mismatch/engine_temperature", float("nan")))
    return (
        f"step {step}: the log-probs of engine and learner differ by {metrics['mismatch_lag0/mean']:.2g} on average, "
        f"{metrics['mismatch_lag0/max']:.2g} at most, under the same weights: {what} (docs/losses.md)"
    )
