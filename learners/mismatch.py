"""How far learner and engine disagree about the tokens that were sampled, and what kind of fault a disagreement looks
like. Axis: N tokens.

    d_t = log-prob of token t by the learner − log-prob recorded by the engine

Tokens sampled by an older policy differ because the policy has moved. Those of the very policy that is trained (lag 0)
differ by numeric noise alone, which is the floor; unless something is wrong:

    monitor = MismatchMonitor()                 # one a learner; its state is saved with the learner's
    metrics = monitor.observe(tokens)           # of one step; {"mismatch/alarm_temperature": 1.0, "mismatch/engine_temperature": 1.3}

What tells the causes apart (`diagnose`):

| cause            | signature at lag 0                                                                                               |
|------------------|------------------------------------------------------------------------------------------------------------------|
| wrong temperature| d is proportional to log-prob + entropy, the first-order effect of a temperature                                 |
| re-tokenisation  | some tokens are far off while others, just as uncertain, agree as well as ever                                   |
| dropped tensor   | every token is affected, by a divergence that no update of a policy makes                                        |
| stale weights    | above the floor of earlier steps, by as much as an update moves the policy: tokens of lag 0 look like lag 1      |
| numeric noise    | none of these, and from the first step on                                                                        |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

BAND = (0.9, 1.1)
"""A token whose probability ratio learner / engine lies outside counts as mismatched."""
LAGS_APART = 4
"""Tokens of lags 0 to 3 are measured apart, older ones together."""
MIN_TOKENS = 100
"""Tokens of lag 0 without which nothing is said about causes."""

NOISE_LEVEL = 0.15
"""Mean |d| that numeric formats explain: bfloat16 against bfloat16 gives 0.03 to 0.05."""
FLOOR_FACTOR, FLOOR_LEVEL = 10.0, 0.01
"""Above so many times the floor of earlier steps, and this, the mean |d| has risen (of two float32 implementations it
is 1e-5)."""
TEMPERATURE_FIT, TEMPERATURE_SLOPES = 0.7, (0.03, 0.75)
"""Share of the energy of d that a temperature must explain; the smallest relative error of a temperature worth a word,
and the largest that is no broken model (of temperature infinity)."""
EXTREME, AGREEING, UNCERTAIN, MIN_UNCERTAIN = 2.0, 0.05, 0.1, 20
"""The largest |d| from which tokens may be others than those sampled; the 20th percentile of |d| over its mean below
which a fifth of the tokens agree as well as ever all the same; the entropy from which a token counts for that (where
nothing is open, all models agree), and how many must. Tokens that are mixed up leave those before them alone, so that
the figure is below 0.02; else it is above 0.12."""
TENSOR_DIVERGENCE = 0.15
"""Mean of exp(d) − 1 − d, an estimate of KL(engine ‖ learner) in nats a token, from which the engine holds another
model."""
MOVEMENT_FACTOR = 4.0
"""... unless the policy itself was seen to move a quarter of that in one version."""


class Cause(StrEnum):
    """What a disagreement looks like. The value is how its metric is called."""

    NOISE = "noise"
    TEMPERATURE = "temperature"
    STALE_WEIGHTS = "stale_weights"
    DROPPED_TENSOR = "dropped_tensor"
    RETOKENISATION = "retokenisation"


@dataclass(frozen=True, kw_only=True)
class MismatchTokens:
    """Columns of the computed tokens of one step, (N,) float64."""

    logprob_N: np.ndarray
    """By the learner, under the weights the step was begun with."""
    difference_N: np.ndarray
    """d_t."""
    entropy_N: np.ndarray
    """Of the learner's next-token distribution, in nats."""
    lag_N: np.ndarray
    """Versions between sampling and training."""
    oldest_lag_N: np.ndarray
    """Lag of the oldest token of the token's response. Where it is not 0 the engine's KV cache is of older weights."""

    def where(self, keep_N: np.ndarray) -> MismatchTokens:
        return MismatchTokens(**{name: getattr(self, name)[keep_N] for name in self.__dataclass_fields__})

    def __len__(self) -> int:
        return len(self.difference_N)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What earlier steps have shown. Both are of tokens whose engine was found in order."""

    level: float = float("inf")
    """Lowest mean |d| at lag 0."""
    movement: float = 0.0
    """Largest mean of exp(d) − 1 − d at lag 1: how far the policy moves in a version."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """`cause` is None where all is in order; `engine_temperature` relative to the learner's, with cause TEMPERATURE."""

    cause: Cause | None
    engine_temperature: float | None = None


def mismatch_metrics(tokens: MismatchTokens) -> dict[str, float]:
    """Figures over all tokens and by lag, and the surprise; empty without tokens. Names are defined in
    docs/metrics.md."""
    if not len(tokens):
        return {}
    found = _figures("mismatch", tokens.difference_N)
    oldest = LAGS_APART - 1
    for lag in range(LAGS_APART):
        at_lag = tokens.lag_N >= lag if lag == oldest else tokens.lag_N == lag
        if at_lag.any():
            found |= _figures(f"mismatch_lag{lag}", tokens.difference_N[at_lag]) | {f"mismatch_lag{lag}/share": float(at_lag.mean())}
    at_lag_zero = tokens.lag_N == 0
    if at_lag_zero.any():
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
    """(Σ w)² / (N · Σ w²) with w = exp d: the share of samples that as many unweighted ones would be worth (Kish 1965).
    1 at most."""
    weight_N = np.exp(difference_N - difference_N.max())  # a common factor cancels
    return float(weight_N.sum() ** 2 / (len(weight_N) * np.square(weight_N).sum()))


def diagnose(tokens: MismatchTokens, floor: Floor) -> Diagnosis:
    """What the disagreement of `tokens`, all of lag 0 with their whole response, looks like, the patterns first, then
    the size.

    Deterministic, and blind below its thresholds: where the engine is wrong by less than numeric noise nothing is
    found."""
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
    if len(absolute_U) < MIN_UNCERTAIN or absolute_U.max() < EXTREME:
        return False
    return bool(np.quantile(absolute_U, 0.2) <= AGREEING * absolute_U.mean())


def _temperature_fit(tokens: MismatchTokens) -> tuple[float, float]:
    """Slope of d by log-prob + entropy through 0, and the share of Σ d² that it explains.

    With T the learner's and T' the engine's temperature and κ = T/T', the engine's log-prob is κ·l − log Σ_v p_v^κ, so
    to first order in κ − 1 d = (1 − κ)·(l + H)."""
    pattern_N, energy = tokens.logprob_N + tokens.entropy_N, float(np.square(tokens.difference_N).sum())
    scale = float(np.square(pattern_N).sum())
    if not energy or not scale:
        return 0.0, 0.0
    slope = float(tokens.difference_N @ pattern_N) / scale
    return slope, slope**2 * scale / energy


def _divergence(difference_N: np.ndarray) -> float:
    return float((np.expm1(difference_N) - difference_N).mean())


class MismatchMonitor:
    """Looks at every step's tokens and remembers the floor."""

    def __init__(self) -> None:
        self.floor = Floor()

    def observe(self, tokens: MismatchTokens) -> dict[str, float]:
        """The step's alarm as metrics; empty while all is in order, or with too few tokens of lag 0 to tell."""
        clean = tokens.where(tokens.oldest_lag_N == 0)
        if len(clean) < MIN_TOKENS:
            return {}
        diagnosis = diagnose(clean, self.floor)
        if diagnosis.cause in (None, Cause.NOISE):
            self._learn(clean, tokens.where(tokens.oldest_lag_N == 1))
        if diagnosis.cause is None:
            return {}
        alarm = {f"mismatch/alarm_{diagnosis.cause}": 1.0}
        if diagnosis.engine_temperature is not None:
            alarm["mismatch/engine_temperature"] = diagnosis.engine_temperature
        return alarm

    def _learn(self, clean: MismatchTokens, one_version_old: MismatchTokens) -> None:
        movement = _divergence(one_version_old.difference_N) if len(one_version_old) >= MIN_TOKENS else 0.0
        self.floor = Floor(
            level=min(self.floor.level, float(np.abs(clean.difference_N).mean())), movement=max(self.floor.movement, movement)
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"mismatch/floor": torch.tensor([self.floor.level, self.floor.movement], dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """A state saved before there was a monitor leaves it as new."""
        if (saved := state.get("mismatch/floor")) is not None:
            self.floor = Floor(level=float(saved[0]), movement=float(saved[1]))
