"""The error of predicting a fixed random network, as a bonus. Legend: G groups, K responses, D projected size, N
responses of a step that are not empty, H hidden units and outputs, P parameters of the predictor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.draws import generator_for
from bonus.elliptical import check_features
from bonus.kinds import KINDS

CLIP = 5.0  # standardised features are clipped here, as in the source
RELATIVE_ZERO = 1e-12  # a variance up to this fraction of the squared mean is rounding
FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8  # Adam's


@dataclass(frozen=True, kw_only=True, eq=False)
class RndState:
    """The predictor with its optimiser, and what features and errors were like, float64."""

    parameters_P: Tensor
    first_moment_P: Tensor
    second_moment_P: Tensor
    updates: int  # of Adam
    responses: int  # how many were absorbed, each once
    feature_sum_D: Tensor
    feature_square_sum_D: Tensor
    error_sum: float
    error_square_sum: float


def network(parameters_P: Tensor, features_ND: Tensor, width: int) -> Tensor:
    """Return relu(x A + a) B + b with the parts of `parameters_P`, in the order A, a, B, b. All layers have H units."""
    dim = features_ND.shape[1]
    first, bias, second, last = parameters_P.split([dim * width, width, width * width, width])
    hidden_NH: Tensor = (features_ND @ first.view(dim, width) + bias).relu()
    outputs_NH: Tensor = hidden_NH @ second.view(width, width) + last
    return outputs_NH


def random_parameters(dim: int, width: int, *names: object) -> Tensor:
    """Return weights ~ N(0, 2 / inputs) and biases of 0, for `network`. Equal `names` give equal weights."""
    generator = generator_for("rnd", *names)
    parts = []
    for inputs in (dim, width):
        parts.append(torch.randn(inputs * width, generator=generator, dtype=torch.float64) * (2.0 / inputs) ** 0.5)
        parts.append(torch.zeros(width, dtype=torch.float64))
    return torch.cat(parts)


def init_rnd(dim: int, width: int) -> RndState:
    """Return the state before the first step, with a predictor that begins the same in every run."""
    predictor_P, zeros_D = random_parameters(dim, width, "predictor"), torch.zeros(dim, dtype=torch.float64)
    return RndState(
        parameters_P=predictor_P,
        first_moment_P=torch.zeros_like(predictor_P),
        second_moment_P=torch.zeros_like(predictor_P),
        updates=0,
        responses=0,
        feature_sum_D=zeros_D,
        feature_square_sum_D=zeros_D,
        error_sum=0.0,
        error_square_sum=0.0,
    )


def standardised(features_ND: Tensor, state: RndState) -> Tensor:
    """Return (x - mean) / std over all responses so far, clipped to [-5, 5]; 0 where a feature never varied."""
    mean_D = state.feature_sum_D / max(state.responses, 1)
    variance_D = (state.feature_square_sum_D / max(state.responses, 1) - mean_D.square()).clamp(min=0.0)
    varies_D = variance_D > RELATIVE_ZERO * mean_D.square()
    return torch.where(varies_D, (features_ND - mean_D) / torch.where(varies_D, variance_D, 1.0).sqrt(), 0.0).clamp(-CLIP, CLIP)


def absorbed_features(state: RndState, features_ND: Tensor) -> RndState:
    """Return `state` with N more features in its mean and deviation."""
    return replace(
        state,
        responses=state.responses + len(features_ND),
        feature_sum_D=state.feature_sum_D + features_ND.sum(dim=0),
        feature_square_sum_D=state.feature_square_sum_D + features_ND.square().sum(dim=0),
    )


def trained(state: RndState, inputs_ND: Tensor, targets_NH: Tensor, *, updates: int, lr: float) -> RndState:
    """Return `state` after `updates` of Adam (Kingma, Ba 2015) on the mean squared error over all N responses."""
    parameters_P, first_P, second_P, count = state.parameters_P, state.first_moment_P, state.second_moment_P, state.updates
    for _ in range(updates if len(inputs_ND) else 0):
        with torch.enable_grad():
            leaf_P = parameters_P.detach().requires_grad_()
            loss = (network(leaf_P, inputs_ND, targets_NH.shape[1]) - targets_NH).square().mean()
            (gradient_P,) = torch.autograd.grad(loss, leaf_P)
        count += 1
        first_P = FIRST_DECAY * first_P + (1 - FIRST_DECAY) * gradient_P
        second_P = SECOND_DECAY * second_P + (1 - SECOND_DECAY) * gradient_P.square()
        size_P = (second_P / (1 - SECOND_DECAY**count)).sqrt() + EPSILON
        parameters_P = parameters_P - lr * first_P / (1 - FIRST_DECAY**count) / size_P
    return replace(state, parameters_P=parameters_P, first_moment_P=first_P, second_moment_P=second_P, updates=count)


class RndBonus:
    """The error of a predictor on what it was trained on seldom (i-MENTOR, arXiv:2505.17621; Burda et al. 2018,
    arXiv:1810.12894):

        e_i = mean over outputs of (g(x_i) - h(x_i))^2,    h a fixed random network, g one trained to predict it
        b_i = decay^(t - 1) * e_i / std(e)    for a wrong response, 0 for a correct one

    Of i-MENTOR the abstract and four reviews were read, not the equations. Taken from there: one error for a whole
    response, for wrong answers only. Not verified: the networks, the normalisation and the decay, which are ours. It
    adds the bonus after the advantage is computed, which is combine = "advantage" here but for the group mean. Input is
    the frozen projected feature, standardised over the run as in the source of RND. The errors are those of the
    predictor before it is trained on the step, and std is over all errors so far. All responses train it, the correct
    ones too. The target is drawn with the run's seed. Two predictors cannot be added, so this state has no merge."""

    needs = KINDS["rnd"]

    def __init__(self, config: BonusConfig) -> None:
        self._dim, self._config = config.dim, config.rnd

    def init_state(self) -> RndState:
        return init_rnd(self._dim, self._config.width)

    def score(self, step: StepRows, state: RndState) -> tuple[Scores, RndState]:
        assert step.features_GKD is not None, "rnd needs features"
        check_features(step.features_GKD, step.valid_GK)
        settings, valid_GK = self._config, step.valid_GK
        features_ND = step.features_GKD[valid_GK].double()
        state = absorbed_features(state, features_ND)
        inputs_ND = standardised(features_ND, state)
        targets_NH = network(random_parameters(self._dim, settings.width, "target", step.seed), inputs_ND, settings.width)
        error_N = (network(state.parameters_P, inputs_ND, settings.width) - targets_NH).square().mean(dim=1)
        error_sum, square_sum = state.error_sum + float(error_N.sum()), state.error_square_sum + float(error_N.square().sum())
        state = replace(state, error_sum=error_sum, error_square_sum=square_sum)
        error_GK = torch.zeros(valid_GK.shape, dtype=torch.float64).masked_scatter(valid_GK, error_N)
        strength = settings.decay ** (step.step - 1) / error_std(state)
        bonus_GK = torch.where(valid_GK & ~step.correct_GK, strength * error_GK, 0.0)
        metrics = {"remembered_responses": float(state.responses)}
        if len(error_N):
            metrics["prediction_error"] = float(error_N.mean())
        scores = Scores(bonus_GK=bonus_GK, metrics=metrics, detail={"prediction_error": error_GK})
        return scores, trained(state, inputs_ND, targets_NH, updates=settings.updates, lr=settings.lr)

    def state_dict(self, state: RndState) -> dict[str, Any]:
        return dict(vars(state))

    def from_state_dict(self, saved: Mapping[str, Any]) -> RndState:
        """Raises TypeError for missing or unknown parts, ValueError for networks of another size."""
        state, expected = RndState(**saved), self.init_state()
        if (state.parameters_P.shape, state.feature_sum_D.shape) != (expected.parameters_P.shape, expected.feature_sum_D.shape):
            raise ValueError(f"the saved predictor has {len(state.parameters_P)} parameters, this run's {len(expected.parameters_P)}")
        return state


def error_std(state: RndState) -> float:
    """Return the standard deviation of all errors so far; 1 where they do not vary."""
    mean = state.error_sum / max(state.responses, 1)
    variance = state.error_square_sum / max(state.responses, 1) - mean * mean
    return math.sqrt(variance) if variance > RELATIVE_ZERO * mean * mean else 1.0
