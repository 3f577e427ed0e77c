"""The scorer: a frozen model that gives the likelihood of responses that any model has sampled.

mean_logprobs = scorer.mean_logprobs(batch)  # one prompt with its responses: a number each, None for an empty one"""

from typing import Any

import pyarrow as pa
import torch

from actors.config import ScorerConfig
from learners.batches import read_groups
from learners.forward import load_causal_lm, response_loglikelihoods
from learners.threads import resolve_threads


class ResponseScorer:
    """A model that is never trained. It takes one call at a time."""

    def __init__(self, *, model: str, config: ScorerConfig, device: str = "cpu") -> None:
        torch.set_num_threads(resolve_threads(config.threads))
        self._config = config
        self._device = torch.device(device)
        self._model: Any = load_causal_lm(model, dtype=config.dtype, device=device).requires_grad_(False)

    def mean_logprobs(self, batch: pa.RecordBatch) -> list[float | None]:
        """Return the mean log-prob, in nats, of each response's tokens at temperature 1, end-of-turn token included.
        `batch` has the columns prompt_ids (the same in all rows) and response_ids."""
        groups = read_groups(batch, batch.num_rows)
        limit = self._config.tokens_per_batch
        sums_and_sizes = response_loglikelihoods(self._model, groups, tokens_per_batch=limit, device=self._device)
        pairs = zip(*(values_R.tolist() for values_R in sums_and_sizes), strict=True)
        return [total / num_tokens if num_tokens else None for total, num_tokens in pairs]

    def ready(self) -> int:
        """Return the number of parameters, which shows that the model is loaded."""
        return sum(parameter.numel() for parameter in self._model.parameters())
