"""A vLLM engine in the test's own process, on the embedded model or another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from actors.config import RolloutConfig, SamplingConfig

MAX_SEQUENCES = 8
MAX_BATCHED_TOKENS = 128


@contextmanager
def vllm_engine(model_path: str, sampling: SamplingConfig, **options: Any) -> Iterator[Any]:
    """In float32. It decodes few responses at once and takes in prompts in pieces. What it sets for its process is
    undone behind it."""
    from actors.vllm_engine import VllmEngine

    environment, threads = dict(os.environ), torch.get_num_threads()
    config = RolloutConfig(
        engine="vllm", dtype="float32", kv_cache_gib=1, max_sequences=MAX_SEQUENCES, max_batched_tokens=MAX_BATCHED_TOKENS
    )
    engine = VllmEngine(model_path, config, sampling, seed=0, **options)
    yield engine
    engine._engine.engine_core.shutdown()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
