from __future__ import annotations

import pytest
from torch import Tensor, rsqrt
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def exact_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norm rounds to float32 whatever the model's dtype, which would hide errors below 1e-7 behind rounding."""

    def forward(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
        return self.weight * hidden * rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_norm(monkeypatch)
