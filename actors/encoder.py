"""The hidden-state encoder: a frozen model that turns responses into features. Several may share the work.

    batch, encode_s = await encoder.encode(batch)      # whole groups, from any number of callers at once

The batches of waiting callers are encoded together, up to `tokens_per_batch`. Rows are sorted by length over all of
them, and a group's shared prompt is computed once (`learners.packing`). At most `max_waiting` calls wait inside; later
ones wait for a place. A training run has encoders only if its bonus needs features (`bonus.base.Need`); `actors.bonus`
scores them. Axes: R responses, N tokens, H hidden, D projected."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from actors.config import EncoderConfig
from actors.features import Projector
from bonus.config import BonusConfig
from buffers.schema import list_column_arrays, with_features
from learners.batches import read_groups
from learners.forward import last_hidden_states, load_causal_lm
from learners.packing import GroupTokens, micro_batches, pack, prefix_tree
from learners.threads import resolve_threads

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")
"""What the decoders of transformers call the norm behind their last layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    batch: pa.RecordBatch
    num_tokens: int
    done: asyncio.Future[tuple[pa.RecordBatch, float]]


class HiddenStateEncoder:
    """A frozen copy of the initial policy. A bonus configuration projects its features; else they are the states."""

    def __init__(
        self,
        *,
        model: str,
        config: EncoderConfig,
        group_size: int | None,
        seed: int = 0,
        bonus: BonusConfig | None = None,
        device: str = "cpu",
        alone: bool = False,
    ) -> None:
        """With `group_size` None each call brings one group. With `alone` each call is encoded by itself, so that a
        feature depends on its own group only. Raises ValueError for a layer that the model does not have."""
        torch.set_num_threads(resolve_threads(config.threads))
        self._config = config
        self._group_size = group_size
        self._device = torch.device(device)
        self._model: Any = load_causal_lm(model, dtype=config.dtype, device=device).requires_grad_(False)
        keep_layers(self._model, config.layer)
        self._projector = Projector(bonus, hidden_size=self._model.config.hidden_size, seed=seed) if bonus else None
        self._alone = alone
        self._waiting: list[_Job] = []
        self._room = asyncio.Semaphore(config.max_waiting)
        self._working: asyncio.Task[None] | None = None

    async def encode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, float]:
        """Return `batch` (whole groups) with its features, and the seconds spent on it. An empty response gets a null
        feature. Raises what went wrong with any of the calls that were encoded together."""
        async with self._room:
            job = _Job(batch=batch, num_tokens=self._num_tokens(batch), done=asyncio.get_running_loop().create_future())
            self._waiting.append(job)
            if self._working is None or self._working.done():
                self._working = asyncio.create_task(self._encode_waiting())
            try:
                return await job.done
            finally:
                if job in self._waiting:  # the caller gave up before its turn
                    self._waiting.remove(job)

    async def _encode_waiting(self) -> None:
        """Encode until no call waits: a task of its own, so that a caller that gives up cancels no other's work."""
        while self._waiting:
            jobs = self._take()
            try:
                results = await asyncio.to_thread(self._encode_jobs, jobs)
            except Exception as error:  # a seam: every caller gets it
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
            else:
                for job, result in zip(jobs, results, strict=True):
                    if not job.done.done():
                        job.done.set_result(result)

    def _take(self) -> list[_Job]:
        """Take waiting calls in order of arrival: at least one, and further ones that fit the token budget."""
        taken = [self._waiting.pop(0)]
        budget = 0 if self._alone else self._config.tokens_per_batch - taken[0].num_tokens
        while self._waiting and self._waiting[0].num_tokens <= budget:
            taken.append(self._waiting.pop(0))
            budget -= taken[-1].num_tokens
        return taken

    def _encode_jobs(self, jobs: Sequence[_Job]) -> list[tuple[pa.RecordBatch, float]]:
        """Return the answer to each job. The seconds are divided among them by tokens."""
        started = time.monotonic()
        groups = [read_groups(job.batch, self._size_of(job.batch)) for job in jobs]
        pooled_RH, valid_R = self.pooled_states([group for part in groups for group in part])
        num_rows = [job.batch.num_rows for job in jobs]
        parts = zip(jobs, pooled_RH.split(num_rows), valid_R.split(num_rows), strict=True)
        encoded = [with_features(job.batch, self._project(job.batch, pooled), valid.numpy()) for job, pooled, valid in parts]
        per_token_s = (time.monotonic() - started) / sum(job.num_tokens for job in jobs)
        return [(batch, per_token_s * job.num_tokens) for job, batch in zip(jobs, encoded, strict=True)]

    @torch.inference_mode()
    def pooled_states(self, groups: Sequence[GroupTokens]) -> tuple[Tensor, Tensor]:
        """Return each response's state, pooled over its tokens, (R, H) float64, and whether it has any, (R,) bool."""
        lengths_R = torch.tensor([len(ids) for group in groups for ids in group.responses])
        sum_RH = torch.zeros(len(lengths_R), self._model.config.hidden_size, dtype=torch.float64)
        for branches in micro_batches(prefix_tree(groups, own_states=True), max_tokens=self._config.tokens_per_batch):
            packed = pack(branches)
            hidden_NH = last_hidden_states(self._model, packed.to(self._device))[packed.own_N].cpu().double()
            if self._config.pooling == "last":
                hidden_NH = hidden_NH * (packed.offset_N == lengths_R[packed.response_N] - 1)[:, None]
            sum_RH.index_add_(0, packed.response_N, hidden_NH)
        return (sum_RH if self._config.pooling == "last" else sum_RH / lengths_R.clamp(min=1)[:, None]), lengths_R > 0

    def ready(self) -> int:
        """Return the hidden size once the model is loaded."""
        return int(self._model.config.hidden_size)

    def _num_tokens(self, batch: pa.RecordBatch) -> int:
        num_prompt, num_response = (len(list_column_arrays(batch, name)[0]) for name in ("prompt_ids", "response_ids"))
        return num_prompt // self._size_of(batch) + num_response  # each group's prompt once

    def _size_of(self, batch: pa.RecordBatch) -> int:
        return batch.num_rows if self._group_size is None else self._group_size

    def _project(self, batch: pa.RecordBatch, pooled_RH: Tensor) -> np.ndarray:
        if self._projector is None:
            return pooled_RH.numpy().astype(np.float32)
        problems, versions = batch.column("problem_id").to_pylist(), batch.column("admitted_version").to_pylist()
        firsts = range(0, batch.num_rows, self._size_of(batch))
        parts = pooled_RH.split(self._size_of(batch))
        features = [self._projector(pooled_KH, problems[row], versions[row]) for pooled_KH, row in zip(parts, firsts, strict=True)]
        return torch.cat(features).numpy().astype(np.float32)


def keep_layers(model: Any, layer: int) -> None:
    """Cut `model` in place, so that its decoder ends with the states of `layer`. With L layers, −1 or L means after the
    last layer and the final norm. 1 to L − 1 (or −2 for L − 1, and so on) means after that layer, without the norm; 0
    means the embeddings. Later layers are dropped, so a lower one costs less. Raises ValueError for any other layer,
    and where it is not known how to cut a model of this architecture."""
    decoder, num_layers = model.get_decoder(), int(model.config.num_hidden_layers)
    position = layer if layer >= 0 else num_layers + 1 + layer
    if not 0 <= position <= num_layers:
        known = f"0 (embeddings) to {num_layers}, or −1 to −{num_layers + 1} from the end"
        raise ValueError(f"encoder.layer = {layer}: the model has layers {known}")
    if position == num_layers:
        return
    norm = next((name for name in FINAL_NORMS if isinstance(getattr(decoder, name, None), torch.nn.Module)), None)
    if norm is None or not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise ValueError(f"encoder.layer = {layer}: {type(decoder).__name__} cannot be cut there; −1, the last layer, goes with any model")
    decoder.layers = decoder.layers[:position]
    setattr(decoder, norm, torch.nn.Identity())
