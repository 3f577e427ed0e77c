"""Llama's norm rounds to float32 in every dtype, which would hide errors below 1e-7 behind rounding."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def exact_forward(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


def make_norms_exact() -> None:
    """Change the norms of this process, permanently. Tests in their own process use the fixture."""
    LlamaRMSNorm.forward = exact_forward
