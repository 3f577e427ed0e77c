"""A policy-gradient step over padded rows with transformers and torch alone, written without thinking of speed.

A response is one row with its whole prompt, padded on the right to the longest row of the batch. A forward pass has as
many rows as the token budget allows, and the logits of every position. AdamW runs on float32 masters with clipping. The
loss is the learner's at its first optimizer step: truncated importance sampling, and a token mean over the batch. The
learner is measured against this loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from learners.config import LearnerConfig
from learners.precision import resolve_dtype


class PaddedLoop:
    """The loop. `step(batch, advantages)` is one training step on the rows of `batch`."""

    def __init__(self, model_path: str, config: LearnerConfig, *, temperature: float, device: str) -> None:
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, resolve_dtype(config.dtype, on_gpu=device != "cpu"))
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self._config = config
        self._temperature = temperature
        self._device = device
        self._names = [name for name, _ in self._model.named_parameters()]
        self._parameters = list(self._model.parameters())
        self._masters = [p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float()) for p in self._parameters]
        groups = [
            {"params": [m for m in self._masters if m.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [m for m in self._masters if m.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def step(self, batch: pa.RecordBatch, advantages: Sequence[float]) -> None:
        self.accumulate(batch, advantages)
        torch.nn.utils.clip_grad_norm_(self._masters, self._config.max_grad_norm)
        self._adamw.step()
        self._adamw.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)

    def gradient(self, batch: pa.RecordBatch, advantages: Sequence[float]) -> dict[str, Tensor]:
        """Return the gradient of the step that `step` would make, in float32."""
        self.accumulate(batch, advantages)
        found = {name: master.grad for name, master in zip(self._names, self._masters, strict=True) if master.grad is not None}
        self._adamw.zero_grad()
        return found

    def accumulate(self, batch: pa.RecordBatch, advantages: Sequence[float]) -> None:
        """Sum the gradient of the whole batch into the masters."""
        rows = batch.select(["prompt_ids", "response_ids", "behavior_logprobs"]).to_pylist()
        longest = max(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
        num_tokens = sum(len(row["response_ids"]) for row in rows)
        per_pass = max(1, self._config.tokens_per_micro_batch // longest)
        for first in range(0, len(rows), per_pass):
            self._accumulate_rows(rows[first : first + per_pass], advantages[first : first + per_pass], longest, num_tokens)

    def _accumulate_rows(self, rows: Sequence[dict[str, Any]], advantages: Sequence[float], longest: int, num_tokens: int) -> None:
        ids_BL = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention_BL, trained_BL = torch.zeros_like(ids_BL), torch.zeros_like(ids_BL, dtype=torch.bool)
        behavior_BL = torch.zeros(len(rows), longest)
        for b, row in enumerate(rows):
            start, stop = len(row["prompt_ids"]), len(row["prompt_ids"]) + len(row["response_ids"])
            ids_BL[b, :stop] = torch.tensor(row["prompt_ids"] + row["response_ids"])
            attention_BL[b, :stop] = 1
            trained_BL[b, start:stop] = True
            behavior_BL[b, start:stop] = torch.tensor(row["behavior_logprobs"])
        ids_BL, attention_BL, trained_BL, behavior_BL = (t.to(self._device) for t in (ids_BL, attention_BL, trained_BL, behavior_BL))
        advantage_B1 = torch.tensor(advantages, dtype=torch.float32, device=self._device)[:, None]
        logits_BLV = self._model(input_ids=ids_BL, attention_mask=attention_BL, use_cache=False).logits[:, :-1].float() / self._temperature
        logprob_BL = torch.log_softmax(logits_BLV, dim=-1).gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
        weight_BL = torch.exp(logprob_BL.detach() - behavior_BL[:, 1:]).clamp(max=self._config.loss.is_cap)
        ratio_BL = torch.exp(logprob_BL - logprob_BL.detach())
        loss = -(weight_BL * ratio_BL * advantage_B1 * trained_BL[:, 1:]).sum() / num_tokens
        loss.backward()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is not master:
                master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
                parameter.grad = None
