"""Steps and pools from plain arrays, for a trainer of your own: this folder without the rest of the system
(docs/library.md).

    bonus = bonus_of(BonusConfig(kind="outcome_batch"))                          # bonus.methods, bonus.config
    state = bonus.init_state()
    scores, state = bonus.score(step_of(rewards=rewards, answers=answers), state)
    rewards = rewards + 0.1 * scores.bonus_GK.numpy()

    order_N = order_pool("repexp", pool_of(features=features), SelectionConfig(dim=64))        # bonus.orders

An array may be a NumPy array, a torch tensor or nested lists. Legend: G groups, K responses, T tokens, D features, N
candidates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bonus.base import StepRows
from bonus.orders import Pool

Array = Any
"""What `torch.as_tensor` takes."""


def step_of(
    *,
    rewards: Array,
    correct: Array | None = None,
    features: Array | None = None,
    answers: Sequence[Sequence[str | None]] | None = None,
    responses: Sequence[Sequence[Sequence[int]]] | None = None,
    logprobs: Array | None = None,
    lengths: Array | None = None,
    ended: Array | None = None,
    lags: Array | None = None,
    keys: Sequence[str] | None = None,
    step: int = 1,
    seed: int = 0,
) -> StepRows:
    """Return a step as a bonus takes it: `features` G x K x D, `logprobs` G x K x T and 0 after a response's end,
    the token ids of `responses`, all else G x K. What is left out is made up: a response is correct if its reward is
    above 0, `lengths` counts the tokens of `responses`, or is 1 without them, every response `ended` by itself, and
    none is stale. A response of length 0 is empty. `keys` names the problem of
    each group; left out, every group is of a problem of its own. Count `step` up from 1. Raises ValueError for a
    shape that does not fit, and for log-probs of unknown length. Tensors may be on any device and have a gradient: they
    are detached and come to the CPU."""
    rewards_GK = _array(rewards).double()
    if rewards_GK.dim() != 2:
        raise ValueError(f"rewards must be G x K, got {tuple(rewards_GK.shape)}")
    logprobs_GKT = None if logprobs is None else _array(logprobs).double()
    if lengths is None and responses is not None:
        lengths = [[len(tokens) for tokens in group] for group in responses]
    if lengths is None and logprobs_GKT is not None:
        raise ValueError("logprobs need lengths (or responses): a log-prob of 0 may be a certain token, or none")
    lengths_GK = _array(torch.ones(rewards_GK.shape) if lengths is None else lengths).long()
    rows = StepRows(
        step=step,
        seed=seed,
        keys_G=[f"step {step}/group {group}" for group in range(len(rewards_GK))] if keys is None else list(keys),
        rewards_GK=rewards_GK,
        correct_GK=rewards_GK > 0 if correct is None else _array(correct).bool(),
        valid_GK=lengths_GK > 0,
        lengths_GK=lengths_GK,
        ended_GK=torch.ones_like(rewards_GK, dtype=torch.bool) if ended is None else _array(ended).bool(),
        lags_GK=torch.zeros_like(lengths_GK) if lags is None else _array(lags).long(),
        features_GKD=None if features is None else _array(features).double(),
        answers_GK=answers,
        responses_GK=responses,
        logprobs_GKT=logprobs_GKT,
    )
    _require_shapes(rows)
    return rows


def pool_of(
    *,
    features: Array,
    mean_logprobs: Array | None = None,
    lengths: Array | None = None,
    answers: Sequence[str | None] | None = None,
) -> Pool:
    """Return the candidates of one prompt as `bonus.orders.order_pool` takes them: `features` N x D, all else N. A
    candidate of length 0 is empty, and its feature is not read. An order reads what it is about and nothing else, so
    what is left out is made up: mean log-probs 0, lengths 1, no answers. Raises ValueError for features or lengths of
    another shape; `order_pool` checks the rest."""
    features_ND = _array(features).double()
    if features_ND.dim() != 2:
        raise ValueError(f"features must be N x D, got {tuple(features_ND.shape)}")
    num = len(features_ND)
    lengths_N = torch.ones(num).long() if lengths is None else _array(lengths).long()
    if lengths_N.shape != (num,):
        raise ValueError(f"lengths must be of {num} candidates, got {tuple(lengths_N.shape)}")
    return Pool(
        features_ND=features_ND,
        valid_N=lengths_N > 0,
        mean_logprob_N=torch.zeros(num).double() if mean_logprobs is None else _array(mean_logprobs).double(),
        lengths_N=lengths_N,
        answers=[None] * num if answers is None else answers,
    )


def _array(values: Array) -> Tensor:
    return torch.as_tensor(values).detach().cpu()


def _require_shapes(rows: StepRows) -> None:
    shape = tuple(rows.rewards_GK.shape)
    for name, lists_GK in (("answers", rows.answers_GK), ("responses", rows.responses_GK)):
        if lists_GK is not None and [len(lists) for lists in lists_GK] != [shape[1]] * shape[0]:
            raise ValueError(f"{name} must be {shape[0]} sequences of {shape[1]} {name}")
    for name, values in vars(rows).items():
        if isinstance(values, Tensor) and tuple(values.shape[:2]) != shape:
            raise ValueError(f"{name} has shape {tuple(values.shape)}, but rewards have {shape}")
    if len(rows.keys_G) != shape[0]:
        raise ValueError(f"{len(rows.keys_G)} keys for {shape[0]} groups")
