"""The policy loss: a pure function of per-token tensors. Axis: N response tokens of one micro-batch.

    output = policy_loss(inputs, config)     # of a micro-batch; losses and gradients of micro-batches add up
    output.loss.backward()

It is put together of named parts, each with its equation and source: `learners.loss.surrogates`,
`learners.loss.corrections`, `learners.loss.aggregation`, `learners.loss.kl`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.config import LossConfig
from learners.loss.aggregation import AGGREGATIONS, Denominators
from learners.loss.corrections import CORRECTIONS
from learners.loss.kl import KL_ESTIMATORS
from learners.loss.surrogates import SURROGATES, RatioInputs


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Everything the loss of one micro-batch, which holds whole responses, needs. All (N,)."""

    logprob_N: Tensor
    """Under the current parameters, with gradient."""
    proximal_logprob_N: Tensor
    """Under the parameters the batch was begun with; equal to `logprob_N` at the first optimiser step, to the bit:
    computed in the same micro-batches."""
    behavior_logprob_N: Tensor
    """Under the policy (or policies) that sampled the tokens, as recorded by the engine."""
    advantage_N: Tensor
    num_tokens: int
    """The global denominator: response tokens of the whole batch, over all micro-batches, groups without signal
    included."""
    response_N: Tensor | None = None
    """int64: which response a token is of. Needed where `LossConfig.is_by_response` only."""
    num_responses: int = 0
    """Responses of the whole batch that have tokens, counted as `num_tokens` is."""
    reference_logprob_N: Tensor | None = None
    """Under the reference, where there is one. Needed with kl.where = "loss"."""
    entropy_N: Tensor | None = None
    """Of the next-token distribution under the current parameters, with gradient. Needed with entropy_coefficient > 0
    only."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """`loss` sums to the batch's loss over micro-batches; the other tensors are (N,), without gradient."""

    loss: Tensor
    clipped_N: Tensor
    is_weight_N: Tensor
    kl_N: Tensor | None = None
    """The divergence from the reference as estimated, where there is one."""


def policy_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """The loss of one micro-batch:

        loss = −agg_t( w_t · surrogate_t ) + kl.coefficient · agg_t( kl_t ) − entropy_coefficient · agg_t( H_t )

    with agg the aggregation, w the correction, kl the estimator of KL(pi ‖ pi_ref), H the entropy. By default, w_t =
    min(pi_prox/mu, is_cap):

        loss = −1/M Σ_t w_t · min(rho_t A_t, clip(rho_t, 1 − clip_low, 1 + clip_high) A_t),    rho_t = pi(t) / pi_prox(t)

    Divergence and entropy are not weighted by w: they hold the policy at every token that is seen, whoever sampled it
    (as GRPO's published form does; weighting them would let go of just the tokens that have moved furthest).

    Raises ValueError where the configuration needs an input that is None.
    """
    response_N = inputs.response_N
    if response_N is None:
        if config.is_by_response:
            raise ValueError("this loss is computed by response: it needs LossInputs.response_N and num_responses")
        response_N = torch.zeros(len(inputs.advantage_N), dtype=torch.int64, device=inputs.advantage_N.device)
    over = Denominators(num_tokens=inputs.num_tokens, num_responses=inputs.num_responses, constant_tokens=config.constant_tokens)
    aggregate = AGGREGATIONS[config.aggregation]
    difference_N = (inputs.proximal_logprob_N - inputs.behavior_logprob_N).detach()
    weight_N = CORRECTIONS[config.correction](difference_N, response_N, config)
    surrogate = SURROGATES[config.surrogate](
        RatioInputs(
            logprob_N=inputs.logprob_N,
            anchor_logprob_N=inputs.behavior_logprob_N if config.correction == "none" else inputs.proximal_logprob_N,
            advantage_N=inputs.advantage_N,
            response_N=response_N,
        ),
        config,
    )
    loss = -aggregate(weight_N * surrogate.value_N, response_N, over)
    kl_N = None
    if inputs.reference_logprob_N is not None:
        kl_N = KL_ESTIMATORS[config.kl.estimator](inputs.logprob_N - inputs.reference_logprob_N)
    if config.kl.where == "loss":
        loss = loss + config.kl.coefficient * aggregate(_required(kl_N, "reference_logprob_N", 'kl.where = "loss"'), response_N, over)
    if config.entropy_coefficient:
        entropy_N = _required(inputs.entropy_N, "entropy_N", f"entropy_coefficient = {config.entropy_coefficient}")
        loss = loss - config.entropy_coefficient * aggregate(entropy_N, response_N, over)
    return LossOutput(loss=loss, clipped_N=surrogate.clipped_N.detach(), is_weight_N=weight_N, kl_N=None if kl_N is None else kl_N.detach())


def _required(values_N: Tensor | None, name: str, wanted_by: str) -> Tensor:
    if values_N is None:
        raise ValueError(f"{wanted_by} needs LossInputs.{name}")
    return values_N
