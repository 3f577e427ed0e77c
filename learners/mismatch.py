"""How far learner and engine disagree about the sampled tokens, and which fault such a disagreement indicates.

Axis: N tokens.

    d_t = log-prob of token t by the learner − log-prob recorded by the engine

Tokens of an older policy differ because the policy has moved. Tokens of the policy that is trained (lag 0) differ only
by numeric noise, which is the floor, unless there is a fault:

    monitor = MismatchMonitor()                 # one for each learner; its state is saved with the learner's
    metrics = monitor.observe(tokens)           # of one step, such as {"mismatch/alarm_temperature": 1.0}

`diagnose` tells the causes apart:

| cause             | signature at lag 0                                                                           |
|-------------------|----------------------------------------------------------------------------------------------|
| wrong temperature | d is proportional to log-prob + entropy, the first-order effect of a temperature             |
| re-tokenization   | some tokens are far off, while others that are just as uncertain agree as well as ever       |
| dropped tensor    | every token is affected, by a divergence that no update of a policy makes                    |
| stale weights     | above the floor of earlier steps by about one update: tokens of lag 0 look like lag 1        |
| numeric noise     | none of these, and from the first step on                                                    |"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

BAND = (0.9, 1.1)
"""A token counts as mismatched if its probability ratio learner / engine is outside."""
LAGS_APART = 4
"""Tokens of lag 0, 1 and 2 are measured apart. Tokens of lag 3 and older are measured together."""
MIN_TOKENS = 100
"""With fewer tokens of lag 0 no cause is named."""

NOISE_LEVEL = 0.15
"""The mean |d| that numeric formats explain. Two bfloat16 implementations differ by 0.03 to 0.05."""
FLOOR_FACTOR, FLOOR_LEVEL = 10.0, 0.01
"""The mean |d| has risen if it is above this multiple of the floor of earlier steps, and above this level. Two
float32 implementations differ by 1e-5."""
TEMPERATURE_FIT, TEMPERATURE_SLOPES = 0.7, (0.03, 0.75)
"""The share of the energy of d that a temperature must explain. The smallest relative error of a temperature that is
reported, and the largest that does not mean a broken model (of infinite temperature)."""
EXTREME, AGREEING, UNCERTAIN, MIN_UNCERTAIN = 2.0, 0.05, 0.1, 20
"""Thresholds of re-tokenization. EXTREME: the largest |d| must reach it. AGREEING: the 20th percentile of |d| over its
mean must be below it, because a fifth of the tokens still agrees. UNCERTAIN: only tokens with a larger entropy count,
since all models agree where the next token is certain. MIN_UNCERTAIN: the number of such tokens that are needed. Tokens
that are mixed up do not affect those before them, so the ratio is below 0.02 there; otherwise it is above 0.12."""
TENSOR_DIVERGENCE = 0.15
"""From this mean of exp(d) − 1 − d on, the engine holds another model. The mean estimates KL(engine ‖ learner) in nats
per token."""
MOVEMENT_FACTOR = 4.0
"""The mean must also be at least this multiple of the largest movement of the policy in one version."""


class Cause(StrEnum):
    """What a disagreement looks like. The value is part of the metric's name."""

    NOISE = "noise"
    TEMPERATURE = "temperature"
    STALE_WEIGHTS = "stale_weights"
    DROPPED_TENSOR = "dropped_tensor"
    RETOKENISATION = "retokenisation"


@dataclass(frozen=True, kw_only=True)
class MismatchTokens:
    """Columns of the computed tokens of a step, (N,) float64. `logprob_N` is the learner's, under the weights that the
    step began with; `difference_N` is d_t; `entropy_N` is that of the learner's next-token distribution, in nats."""

    logprob_N: np.ndarray
    difference_N: np.ndarray
    entropy_N: np.ndarray
    lag_N: np.ndarray
    """The number of versions between sampling and training."""
    oldest_lag_N: np.ndarray
    """The lag of the oldest token of the token's response. If it is not 0, the engine's KV cache has older weights."""

    def where(self, keep_N: np.ndarray) -> MismatchTokens:
        """Return the columns of the tokens to keep."""
        return MismatchTokens(**{name: getattr(self, name)[keep_N] for name in self.__dataclass_fields__})

    def __len__(self) -> int:
        return len(self.difference_N)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Of earlier steps without a fault: the lowest mean |d| at lag 0, and the largest mean of exp(d) − 1 − d at lag 1,
    which is how far the policy moves in one version."""

    level: float = float("inf")
    movement: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """`cause` is None if there is no fault. `engine_temperature`, relative to the learner's, comes with TEMPERATURE."""

    cause: Cause | None
    engine_temperature: float | None = None


def mismatch_metrics(tokens: MismatchTokens) -> dict[str, float]:
    """Return figures over all tokens and by lag, and the surprise (docs/metrics.md); nothing without tokens."""
    if not len(tokens):
        return {}
    found = _figures("mismatch", tokens.difference_N)
    for lag in range(LAGS_APART):
        at_lag = np.minimum(tokens.lag_N, LAGS_APART - 1) == lag
        if at_lag.any():
            found |= _figures(f"mismatch_lag{lag}", tokens.difference_N[at_lag]) | {f"mismatch_lag{lag}/share": float(at_lag.mean())}
    if (at_lag_zero := tokens.lag_N == 0).any():
        found["mismatch/surprise"] = -float((tokens.logprob_N + tokens.entropy_N)[at_lag_zero].mean())
    return found


def _figures(prefix: str, difference_N: np.ndarray) -> dict[str, float]:
    absolute, ratio = np.abs(difference_N), np.exp(difference_N)
    return {
        f"{prefix}/mean": float(absolute.mean()),
        f"{prefix}/p95": float(np.quantile(absolute, 0.95)),
        f"{prefix}/max": float(absolute.max()),
        f"{prefix}/outside_band": float(((ratio < BAND[0]) | (ratio > BAND[1])).mean()),
        f"{prefix}/ess": effective_sample_share(difference_N),
    }


def effective_sample_share(difference_N: np.ndarray) -> float:
    """Return (Σ w)² / (N · Σ w²) <= 1, w = exp d: the share of unweighted samples worth as much (Kish 1965)."""
    weight_N = np.exp(difference_N - difference_N.max())  # a common factor cancels
    return float(weight_N.sum() ** 2 / (len(weight_N) * np.square(weight_N).sum()))


def diagnose(tokens: MismatchTokens, floor: Floor) -> Diagnosis:
    """Return what the disagreement of `tokens` looks like. The whole response of each must be of lag 0. Patterns are
    tested first, then the size. The result is deterministic. Below the thresholds it is blind: an engine that is wrong
    by less than numeric noise is not found."""
    if _only_some_tokens_disagree(tokens):
        return Diagnosis(cause=Cause.RETOKENISATION)
    slope, explained = _temperature_fit(tokens)
    if explained >= TEMPERATURE_FIT and TEMPERATURE_SLOPES[0] <= abs(slope) <= TEMPERATURE_SLOPES[1]:
        return Diagnosis(cause=Cause.TEMPERATURE, engine_temperature=1 / (1 - slope))
    level, divergence = float(np.abs(tokens.difference_N).mean()), _divergence(tokens.difference_N)
    if level <= min(NOISE_LEVEL, max(FLOOR_FACTOR * floor.level, FLOOR_LEVEL)):
        return Diagnosis(cause=None)
    if divergence >= max(TENSOR_DIVERGENCE, MOVEMENT_FACTOR * floor.movement):
        return Diagnosis(cause=Cause.DROPPED_TENSOR)
    return Diagnosis(cause=Cause.STALE_WEIGHTS if level > 2 * floor.level else Cause.NOISE)


def _only_some_tokens_disagree(tokens: MismatchTokens) -> bool:
    absolute_U = np.abs(tokens.difference_N[tokens.entropy_N > UNCERTAIN])
    is_mixed = len(absolute_U) >= MIN_UNCERTAIN and absolute_U.max() >= EXTREME
    return bool(is_mixed and np.quantile(absolute_U, 0.2) <= AGREEING * absolute_U.mean())


def _temperature_fit(tokens: MismatchTokens) -> tuple[float, float]:
    """Return the slope of d against log-prob + entropy through 0, and the share of Σ d² that it explains. With T the
    learner's and T' the engine's temperature and κ = T/T', the engine's log-prob is κ·l − log Σ_v p_v^κ. To first order
    in κ − 1 this gives d = (1 − κ)·(l + H)."""
    pattern_N, energy = tokens.logprob_N + tokens.entropy_N, float(np.square(tokens.difference_N).sum())
    scale = float(np.square(pattern_N).sum())
    if not energy or not scale:
        return 0.0, 0.0
    slope = float(tokens.difference_N @ pattern_N) / scale
    return slope, slope**2 * scale / energy


def _divergence(difference_N: np.ndarray) -> float:
    return float((np.expm1(difference_N) - difference_N).mean())


class MismatchMonitor:
    """Examines the tokens of every step and remembers the floor."""

    def __init__(self) -> None:
        self.floor = Floor()

    def observe(self, tokens: MismatchTokens) -> dict[str, float]:
        """Return the step's alarm as metrics; nothing without a fault, or with too few tokens of lag 0 to tell."""
        clean = tokens.where(tokens.oldest_lag_N == 0)
        if len(clean) < MIN_TOKENS:
            return {}
        diagnosis = diagnose(clean, self.floor)
        if diagnosis.cause in (None, Cause.NOISE):
            level, moved = float(np.abs(clean.difference_N).mean()), tokens.where(tokens.oldest_lag_N == 1).difference_N
            movement = _divergence(moved) if len(moved) >= MIN_TOKENS else 0.0
            self.floor = Floor(level=min(self.floor.level, level), movement=max(self.floor.movement, movement))
        if diagnosis.cause is None:
            return {}
        alarm = {f"mismatch/alarm_{diagnosis.cause}": 1.0}
        if diagnosis.engine_temperature is not None:
            alarm["mismatch/engine_temperature"] = diagnosis.engine_temperature
        return alarm

    def state_dict(self) -> dict[str, Tensor]:
        return {"mismatch/floor": torch.tensor([self.floor.level, self.floor.movement], dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the floor. A state that was saved before there was a monitor changes nothing."""
        if (saved := state.get("mismatch/floor")) is not None:
            self.floor = Floor(level=float(saved[0]), movement=float(saved[1]))
