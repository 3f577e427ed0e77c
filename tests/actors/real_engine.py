"""A vLLM engine in the test's own process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineSetup
from actors.step_loop import RunningRequests
from learners.forward import load_causal_lm
from learners.weights import WeightSnapshot, take_snapshot

EMBEDDING = "model.embed_tokens.weight"
MAX_SEQUENCES = 8
MAX_BATCHED_TOKENS = 128


@contextmanager
def vllm_engine(
    model_path: str, sampling: SamplingConfig, *, rollout: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[RunningRequests]:
    """Start a float32 engine that decodes few responses at once and takes in prompts in pieces.

    What it changes in this process is undone at the end. `rollout` has further keys of the configuration.
    """
    from actors.vllm_engine import VllmEngine

    environment, threads = dict(os.environ), torch.get_num_threads()
    settings = {"dtype": "float32", "kv_cache_gib": 1, "max_sequences": MAX_SEQUENCES, "max_batched_tokens": MAX_BATCHED_TOKENS}
    config = RolloutConfig(engine="vllm", **settings, **(rollout or {}))
    engine = VllmEngine()
    engine.start(EngineSetup(model=model_path, config=config, sampling=sampling, seed=0, **options))
    try:
        yield RunningRequests(engine)
    finally:
        engine._engine.engine_core.shutdown()
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)


def perturbed_model(path: str, scale: float) -> Any:
    """The model in float32 with normal noise of this scale on every weight, also the embedding and so a tied head."""
    model = load_causal_lm(path, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def snapshot_of(model: Any, version: int) -> WeightSnapshot:
    return take_snapshot(model.named_parameters(), version=version, tied_to=EMBEDDING)
