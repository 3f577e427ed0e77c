"""Order and judge candidates that were sampled before, with other settings. This takes no engine, and no encoder unless
the new settings ask for other features."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from actors.encoder import HiddenStateEncoder
from buffers.records import FinishReason, GroupRequest, Rollout
from buffers.schema import to_record_batch
from jobs.explore_config import ExploreConfig
from jobs.processes.handles import Handle
from jobs.sampling.candidates import problem_of
from jobs.sampling.explorer import Explorer


def needs_encoder(config: ExploreConfig, settings: dict[str, Any] | None) -> bool:
    """Return whether candidates sampled with `settings` have other features than `config` asks for. None: they are yet
    to be sampled."""
    if settings is None:
        return not config.from_engine
    encoder = settings.get("encoder", {})
    old = (encoder.get("layer", -1), encoder.get("pooling", "mean"))
    if old != (config.encoder.layer, config.encoder.pooling):
        return True
    had_engine = settings.get("features", "auto") != "encoder" and old == (-1, "mean")
    return config.features != "auto" and config.from_engine != had_engine


async def reselect(
    tables: Sequence[pa.Table],
    explorer: Explorer,
    encoder: Handle[HiddenStateEncoder] | None,
    config: ExploreConfig,
    done: Callable[[pa.Table], None],
) -> None:
    """Give the candidates of every problem new ranks, the verdicts they lack and, where there is an encoder, new
    features. `tables` holds one table for each problem; `done` takes the result."""
    for number, candidates in enumerate(tables):
        problem = problem_of(candidates)
        if encoder is not None:
            batch, _ = await encoder.call(
                HiddenStateEncoder.encode,
                rollout_batch(candidates, number),
                timeout_s=config.wait_timeout_s,
                waiting_for=f"features of {problem.problem_id}",
            )
            place = candidates.column_names.index("feature")
            candidates = candidates.set_column(place, "feature", pa.chunked_array([batch.column("feature")]))
        await asyncio.to_thread(done, await explorer.finish(problem, candidates))


def rollout_batch(candidates: pa.Table, group_id: int) -> pa.RecordBatch:
    """Return `candidates` as one group of rollouts, which is what an encoder takes."""
    rows = candidates.select(["prompt_ids", "response_ids", "response_logprobs", "finish_reason", "response_text"]).to_pylist()
    rollouts = [
        Rollout(
            prompt_ids=tuple(row["prompt_ids"]),
            response_ids=tuple(row["response_ids"]),
            behavior_logprobs=tuple(row["response_logprobs"]),
            version_starts=(0,) if row["response_ids"] else (),
            version_values=(0,) if row["response_ids"] else (),
            finish_reason=FinishReason(row["finish_reason"]),
            response_text=row["response_text"],
        )
        for row in rows
    ]
    request = GroupRequest(group_id=group_id, problem=problem_of(candidates), num_responses=len(rollouts), admitted_version=0)
    return to_record_batch("explore", request, rollouts, worker_id="pools")
