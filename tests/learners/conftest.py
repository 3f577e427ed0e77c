from __future__ import annotations

import pytest
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.learners.exact_norms import exact_forward


def exact_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `tests.learners.exact_norms`."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_forward)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_norm(monkeypatch)
