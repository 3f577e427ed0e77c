"""What a model thinks of responses that another has sampled: their log-likelihoods, without gradient.

    loglikelihood_R, num_tokens_R = response_loglikelihoods(model, groups, tokens_per_batch=1024)

Axes: R responses, N response tokens of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learners.forward import response_logprobs
from learners.packing import GroupTokens, grow, micro_batches, pack


@torch.inference_mode()
def response_loglikelihoods(
    model: Any, groups: Sequence[GroupTokens], *, tokens_per_batch: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Σ_t log p(y_t | prompt, y_<t) of each response under `model` as it is (temperature 1), and its number of tokens.

    Returns (loglikelihood_R float64, num_tokens_R int64), responses in the order of `groups`; 0 and 0 for an empty one.
    """
    num_tokens_R = torch.tensor([len(ids) for group in groups for ids in group.responses], dtype=torch.int64)
    loglikelihood_R = torch.zeros(len(num_tokens_R), dtype=torch.float64)
    for branches in micro_batches(grow(groups), max_tokens=tokens_per_batch):
        packed = pack(branches).to(device or torch.device("cpu"))
        logprob_N, _ = response_logprobs(model, packed, temperature=1.0)
        loglikelihood_R.index_add_(0, packed.response_N.cpu(), logprob_N.cpu().double())
    return loglikelihood_R, num_tokens_R
