"""The policy loss: a pure function of per-token tensors. Axis: N response tokens of one micro-batch.

    output = policy_loss(inputs, config)     # of one micro-batch; losses and gradients of micro-batches add up
    output.loss.backward()

Its parts have their equations and sources in `learners.loss.surrogates`, `learners.loss.corrections`,
`learners.loss.aggregation` and `learners.loss.kl`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.config import LossConfig
from learners.loss import covariance
from learners.loss.aggregation import AGGREGATIONS, Denominators
from learners.loss.kl import KL_ESTIMATORS
from learners.loss.surrogates import RatioInputs, SurrogateOutput
from learners.methods import correction_of, surrogate_of


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Everything that the loss of one micro-batch needs. A micro-batch holds whole responses. Tensors are (N,)."""

    logprob_N: Tensor
    """Under the current parameters, with gradient."""
    proximal_logprob_N: Tensor
    """Under the parameters that the batch began with. At the first optimiser step it equals `logprob_N` bit for bit,
    because both are computed in the same micro-batches."""
    behavior_logprob_N: Tensor
    """Under the policy, or policies, that sampled the tokens, as the engine recorded it."""
    advantage_N: Tensor
    num_tokens: int
    """The global denominator: the response tokens of all micro-batches of the batch, also of groups without signal."""
    response_N: Tensor | None = None
    """Which response a token belongs to (int64). Needed only if `LossConfig.is_by_response`."""
    num_responses: int = 0
    """The number of responses of the batch that have tokens, counted as `num_tokens` is."""
    reference_logprob_N: Tensor | None = None
    """Under the reference, if there is one. Needed with kl.where = "loss"."""
    entropy_N: Tensor | None = None
    """The entropy of the current next-token distribution, with gradient. Needed with entropy_coefficient > 0."""
    chosen_N: Tensor | None = None
    """Which tokens are restrained (`learners.loss.covariance`), of the whole batch. Needed with a covariance.term."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """The losses of all micro-batches add up to the loss of the batch. The other tensors are (N,), without gradient."""

    loss: Tensor
    clipped_N: Tensor
    is_weight_N: Tensor
    kl_N: Tensor | None = None
    """The estimated divergence from the reference, if there is one."""


def policy_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """Return the loss of one micro-batch:

        loss = −agg_t( w_t · surrogate_t ) + kl.coefficient · agg_t( kl_t ) − entropy_coefficient · agg_t( H_t )

    with agg the aggregation, w the correction, kl the estimator of KL(pi ‖ pi_ref), H the entropy. covariance.term
    "clip_cov" takes the surrogate of chosen tokens away, and "kl_cov" adds covariance.coefficient · agg_t( |log pi −
    log pi_prox| ) over them. By default

        loss = −1/M Σ_t w_t · min(rho_t A_t, clip(rho_t, 1 − clip_low, 1 + clip_high) A_t)
        rho_t = pi(t) / pi_prox(t)        w_t = min(pi_prox(t) / mu(t), is_cap)

    Divergences and entropy are not weighted by w, as in GRPO's published form. They hold the policy at every token,
    whichever policy sampled it; weights would release exactly the tokens that have moved furthest. Raises ValueError if
    the configuration needs an input that is None, or if a method returns tensors of another shape."""
    response_N = inputs.response_N
    if response_N is None:
        if config.is_by_response:
            raise ValueError("this loss is computed by response: it needs LossInputs.response_N and num_responses")
        response_N = torch.zeros(len(inputs.advantage_N), dtype=torch.int64, device=inputs.advantage_N.device)
    over = Denominators(num_tokens=inputs.num_tokens, num_responses=inputs.num_responses, constant_tokens=config.constant_tokens)
    aggregate = AGGREGATIONS[config.aggregation]
    difference_N = (inputs.proximal_logprob_N - inputs.behavior_logprob_N).detach()
    weight_N = correction_of(config)(difference_N, response_N, config)
    anchor_N = inputs.proximal_logprob_N if config.is_corrected else inputs.behavior_logprob_N
    ratios = RatioInputs(logprob_N=inputs.logprob_N, anchor_logprob_N=anchor_N, advantage_N=inputs.advantage_N, response_N=response_N)
    surrogate = surrogate_of(config)(ratios, config)
    _require_per_token(surrogate, weight_N, inputs.advantage_N.shape, config)
    value_N, term = surrogate.value_N, config.covariance.term
    if term == "clip_cov":
        value_N = covariance.restrained_value(value_N, _required(inputs.chosen_N, "chosen_N", 'covariance.term = "clip_cov"'))
    loss = -aggregate(weight_N * value_N, response_N, over)
    if term == "kl_cov":
        chosen_N = _required(inputs.chosen_N, "chosen_N", 'covariance.term = "kl_cov"')
        penalty_N = covariance.penalty(inputs.logprob_N, inputs.proximal_logprob_N, chosen_N)
        loss = loss + config.covariance.coefficient * aggregate(penalty_N, response_N, over)
    reference_N = inputs.reference_logprob_N
    kl_N = None if reference_N is None else KL_ESTIMATORS[config.kl.estimator](inputs.logprob_N - reference_N)
    if config.kl.where == "loss":
        loss = loss + config.kl.coefficient * aggregate(_required(kl_N, "reference_logprob_N", 'kl.where = "loss"'), response_N, over)
    if config.entropy_coefficient:
        entropy_N = _required(inputs.entropy_N, "entropy_N", f"entropy_coefficient = {config.entropy_coefficient}")
        loss = loss - config.entropy_coefficient * aggregate(entropy_N, response_N, over)
    return LossOutput(loss=loss, clipped_N=surrogate.clipped_N.detach(), is_weight_N=weight_N, kl_N=None if kl_N is None else kl_N.detach())


def _require_per_token(surrogate: SurrogateOutput, weight_N: Tensor, shape: torch.Size, config: LossConfig) -> None:
    """Raise ValueError unless both methods returned tensors (N,). Others could be broadcast unseen."""
    named = f'learner.loss.surrogate = "{config.surrogate}"'
    if not isinstance(surrogate, SurrogateOutput):
        raise ValueError(f"{named} returned {type(surrogate).__name__}: it must return a SurrogateOutput")
    for method, what, values_N in (
        (named, "value_N", surrogate.value_N),
        (named, "clipped_N", surrogate.clipped_N),
        (f'learner.loss.correction = "{config.correction}"', "weights", weight_N),
    ):
        found = tuple(values_N.shape) if isinstance(values_N, Tensor) else type(values_N).__name__
        if found != tuple(shape):
            raise ValueError(f"{method} returned {what} of shape {found}: there must be one for each token, (N,) = {tuple(shape)}")


def _required(values_N: Tensor | None, name: str, wanted_by: str) -> Tensor:
    if values_N is None:
        raise ValueError(f"{wanted_by} needs LossInputs.{name}")
    return values_N
