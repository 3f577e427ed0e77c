"""Pseudo-counts from flipped coins, as a bonus. Legend: G groups, K responses, D projected size, N responses of a step
that are not empty, H inputs of the regression, C coins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.covariance import RIDGE_FLOOR
from bonus.draws import drawn_by_group, generator_for
from bonus.elliptical import center
from bonus.kinds import KINDS
from bonus.shaping import shaped_for


@dataclass(frozen=True, kw_only=True, eq=False)
class Flips:
    """The regression's sums over all responses of a run, float64. Sums of two shards may be added in any order."""

    gram_HH: Tensor  # sum of phi phi'
    flips_HC: Tensor  # sum of phi c'
    responses: int  # how many were absorbed, each once
    energy: float  # sum of ||x||^2, behind ridge="auto"


def init_flips(num_inputs: int, coins: int) -> Flips:
    """Return the sums before the first response."""
    zeros_HH, zeros_HC = (torch.zeros(num_inputs, width, dtype=torch.float64) for width in (num_inputs, coins))
    return Flips(gram_HH=zeros_HH, flips_HC=zeros_HC, responses=0, energy=0.0)


def absorb(flips: Flips, inputs_NH: Tensor, coins_NC: Tensor) -> Flips:
    """Return the sums with N more responses."""
    return Flips(
        gram_HH=flips.gram_HH + inputs_NH.mT @ inputs_NH,
        flips_HC=flips.flips_HC + inputs_NH.mT @ coins_NC,
        responses=flips.responses + len(inputs_NH),
        energy=flips.energy + float(inputs_NH.square().sum()),
    )


def merge(a: Flips, b: Flips) -> Flips:
    """Add two shards: the sum is what one that absorbed both histories has."""
    return Flips(**{name: value + vars(b)[name] for name, value in vars(a).items()})


def inverse_counts(flips: Flips, inputs_GKH: Tensor, *, ridge: float) -> Tensor:
    """Return ||f(x)||^2 / C with f(x) = (lam*I + sum of phi phi')^-1 (sum of phi c')' phi(x), the ridge regression from
    responses to their coins. Its expectation over the coins is phi' S^-1 (S - lam*I) S^-1 phi with S = lam*I + sum of
    phi phi': the leverage phi' S^-1 phi less lam * ||S^-1 phi||^2, and for lam -> 0 the leverage itself."""
    identity_HH = torch.eye(len(flips.gram_HH), dtype=torch.float64)
    weights_HC = torch.cholesky_solve(flips.flips_HC, torch.linalg.cholesky(ridge * identity_HH + flips.gram_HH))
    predicted_GKC: Tensor = inputs_GKH @ weights_HC
    return predicted_GKC.square().mean(dim=2)


def hidden_units(centered_GKD: Tensor, hidden: int, *, seed: int) -> Tensor:
    """Return sqrt(2/H) * relu(W x) with H = `hidden` random rows of W ~ N(0, 1), or x itself for 0. This keeps the mean
    energy: E ||phi(x)||^2 = ||x||^2."""
    if not hidden:
        return centered_GKD
    weights_DH = torch.randn(centered_GKD.shape[2], hidden, generator=generator_for("coin_flip", seed), dtype=torch.float64)
    units_GKH: Tensor = (centered_GKD @ weights_DH).relu() * math.sqrt(2.0 / hidden)
    return units_GKH


class CoinFlipBonus:
    """An estimate of 1/sqrt(N), N the responses so far whose features are like this one's (MERCI, arXiv:2510.16614;
    Lobel et al. 2023, arXiv:2306.03186):

        c_i in {-1, +1}^C, flipped once for each response;    f = argmin sum_i ||c_i - f(x_i)||^2
        b_i = sqrt(||f(x_i)||^2 / C),    since a state that came N times has f = mean of its coins, of variance 1/N

    The equations were read on notes of MERCI that quote them, not in the paper. The authors train a network on the
    states of all tokens, filter the largest, and normalise the root of their mean variance over the group. Ours is one
    state for a response, the group-centered feature, and a regression that is solved exactly: linear, or behind one
    layer of fixed random units (`hidden`). So there is no learning rate, the order of responses does not matter, and
    shards add up. The step is absorbed first. With one group a step a linear network gives the elliptical bonus of
    memory="run" without forgetting: for a small ridge the expectation of b^2 over the coins is the leverage
    (`inverse_counts`). The coins add noise to it. A response's coins depend on the seed, the step, its problem and its
    place."""

    needs = KINDS["coin_flip"]

    def __init__(self, config: BonusConfig) -> None:
        self._config = config

    def init_state(self) -> Flips:
        return init_flips(self._config.coin_flip.hidden or self._config.dim, self._config.coin_flip.coins)

    def score(self, step: StepRows, state: Flips) -> tuple[Scores, Flips]:
        assert step.features_GKD is not None, "coin_flip needs features"
        settings, valid_GK = self._config.coin_flip, step.valid_GK
        inputs_GKH = hidden_units(center(step.features_GKD, valid_GK), settings.hidden, seed=step.seed)
        shape = (valid_GK.shape[1], settings.coins)
        coins_GKC = 2.0 * drawn_by_group(step, "coin_flip", lambda generator: torch.randint(2, shape, generator=generator)).double() - 1.0
        flips = absorb(state, inputs_GKH[valid_GK], coins_GKC[valid_GK])
        mean_energy = flips.energy / max(flips.responses, 1)
        ridge = max(mean_energy, RIDGE_FLOOR) if self._config.ridge == "auto" else self._config.ridge
        inverse_GK = torch.where(valid_GK, inverse_counts(flips, inputs_GKH, ridge=ridge), 0.0)
        metrics = {"ridge": ridge, "remembered_responses": float(flips.responses)}
        if valid_GK.any():
            metrics["inverse_count"] = float(inverse_GK[valid_GK].mean())
        bonus_GK = shaped_for(step, inverse_GK.sqrt(), self._config)
        return Scores(bonus_GK=bonus_GK, metrics=metrics, detail={"inverse_count": inverse_GK}), flips

    def state_dict(self, state: Flips) -> dict[str, Any]:
        return dict(vars(state))

    def from_state_dict(self, saved: Mapping[str, Any]) -> Flips:
        """Raises TypeError for missing or unknown parts, ValueError for a state of another size."""
        flips, expected = Flips(**saved), self.init_state()
        if (flips.gram_HH.shape, flips.flips_HC.shape) != (expected.gram_HH.shape, expected.flips_HC.shape):
            raise ValueError(f"the sums are {tuple(flips.flips_HC.shape)} (inputs x coins), this run has {tuple(expected.flips_HC.shape)}")
        return flips
