"""The learner's core: one batch of whole groups in, one optimiser step (or a few), one new policy version out.

    learner = PolicyLearner(model_path, config, temperature=1.0, group_size=8)
    report = learner.step(batch)            # Arrow batch of whole groups, scored
    snapshot = learner.snapshot()           # weights of the new version, for the engines

Departures from GRPO as published, each set in the config: asymmetric clipping, token mean over the whole batch, truncated
importance sampling against the behaviour log-probs, no KL term, groups without signal skipped (exactly: they add 0).
Axes: G groups, K responses, N response tokens of one micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from buffers.records import StepReport
from buffers.schema import list_column_arrays
from learners.advantages import group_advantages
from learners.config import LearnerConfig
from learners.forward import load_causal_lm, response_logprobs
from learners.losses import LossInputs, policy_loss
from learners.metrics import TokenStatistics, lag_metrics, reward_metrics
from learners.optimiser import MasterAdamW
from learners.packing import Branch, GroupTokens, PackedTokens, PassCost, grow, micro_batches, pack
from learners.weights import WeightSnapshot, take_snapshot


class PolicyLearner:
    """Owns the policy's weights and their optimiser. `version` counts the batches trained on."""

    def __init__(
        self,
        model_path: str,
        config: LearnerConfig,
        *,
        temperature: float,
        group_size: int,
        device: str = "cpu",
        reuse_snapshot_buffer: bool = False,
    ) -> None:
        """`reuse_snapshot_buffer`: a snapshot is only valid until the next; right where each is serialised at once, as by Ray."""
        torch.set_num_threads(config.threads)
        self._config = config
        self._temperature = temperature
        self._group_size = group_size
        self._device = torch.device(device)
        self._model = load_causal_lm(model_path, dtype=config.dtype, device=device)
        self._optimiser = MasterAdamW(self._model.named_parameters(), config)
        self._cost = PassCost.of(self._model)
        self._model_path = model_path
        self._reuse_snapshot_buffer = reuse_snapshot_buffer
        self._snapshot_buffer: np.ndarray | None = None
        self.version = 0

    def step(self, batch: pa.RecordBatch, version: int | None = None) -> StepReport:
        """Train on `batch`, whose rewards and bonuses are set, and advance `version` by one.

        `version`: the one that `batch` is to be trained on by, if the caller says; ValueError where the learner has another, so that
        no batch is trained on twice. Raises FloatingPointError on a gradient that is not finite: nothing of that mini-batch is
        applied, the version stays.
        """
        if version is not None and version != self.version:
            raise ValueError(f"the learner is at version {self.version}, the batch is for version {version}")
        started = time.monotonic()
        advantages_GK = self._advantages(batch)
        groups = read_groups(batch, self._group_size)
        statistics = TokenStatistics(version=self.version)
        num_groups = len(groups)
        parts = np.array_split(np.arange(num_groups), min(self._config.mini_batches, num_groups))
        proximal = self._proximal_logprobs(batch, groups) if len(parts) > 1 else None
        norms = [self._optimiser_step(batch, groups, part, advantages_GK, proximal, statistics) for part in parts]
        self.version += 1
        elapsed_s = time.monotonic() - started
        metrics = {
            **reward_metrics(batch, advantages_GK),
            **lag_metrics(self.version - 1, token_versions(batch)),
            **statistics.metrics(),
            "learner/grad_norm": float(np.mean(norms)),
            "learner/lr": self._optimiser.last_learning_rate,
            "learner/optimiser_steps": float(self._optimiser.num_steps),
            "learner/tokens_per_s": statistics.num_computed_tokens / elapsed_s,
            "time/learn_s": elapsed_s,
        }
        return StepReport(version=self.version, metrics=metrics, advantages=tuple(advantages_GK.flatten().tolist()))

    def _advantages(self, batch: pa.RecordBatch) -> Tensor:
        def column(name: str) -> Tensor:
            values = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            return torch.from_numpy(values).view(-1, self._group_size)

        return group_advantages(column("reward"), torch.nan_to_num(column("bonus")), self._config.advantage)

    def _optimiser_step(
        self,
        batch: pa.RecordBatch,
        groups: Sequence[GroupTokens],
        part: np.ndarray,
        advantages_GK: Tensor,
        proximal: np.ndarray | None,
        statistics: TokenStatistics,
    ) -> float:
        """One optimiser step on the groups `part`; the loss's denominator counts all of their response tokens."""
        chosen = set(part.tolist())
        num_tokens = sum(len(ids) for g in chosen for ids in groups[g].responses)
        with_signal = advantages_GK.ne(0).any(dim=-1).numpy()
        lookup = TokenLookup.of(batch, proximal)
        advantage_R = advantages_GK.flatten()
        kept = [_only(groups[g], keep=g in chosen and bool(with_signal[g])) for g in range(len(groups))]
        for micro_batch in self._micro_batches(kept):
            packed = pack(micro_batch).to(self._device)
            logprob_N, entropy_N = response_logprobs(self._model, packed, temperature=self._temperature)
            tokens = lookup.gather(packed, logprob_N)
            inputs = LossInputs(
                logprob_N=logprob_N,
                proximal_logprob_N=tokens.proximal_N if proximal is not None else logprob_N.detach(),
                behavior_logprob_N=tokens.behavior_N,
                advantage_N=advantage_R[packed.response_N.cpu()].to(logprob_N),
                num_tokens=num_tokens,
            )
            output = policy_loss(inputs, self._config.loss)
            output.loss.backward()
            statistics.add(inputs, output, entropy_N, tokens.version_N, num_computed=packed.num_tokens)
        return self._optimiser.step()

    @torch.no_grad()
    def _proximal_logprobs(self, batch: pa.RecordBatch, groups: Sequence[GroupTokens]) -> np.ndarray:
        """Log-probs of all response tokens (flat, in row order) under the weights the batch is begun with."""
        lookup = TokenLookup.of(batch, None)
        flat = np.zeros_like(lookup.behavior)
        for micro_batch in self._micro_batches(groups):
            packed = pack(micro_batch).to(self._device)
            logprob_N, _ = response_logprobs(self._model, packed, temperature=self._temperature)
            flat[lookup.positions(packed)] = logprob_N.float().cpu().numpy()
        return flat

    def _micro_batches(self, groups: Sequence[GroupTokens]) -> list[list[Branch]]:
        return micro_batches(grow(groups), max_tokens=self._config.tokens_per_micro_batch, cost=self._cost)

    def snapshot(self) -> WeightSnapshot:
        """The weights of the current version, as published to the engines."""
        embedding = self._model.get_input_embeddings().weight
        head = self._model.get_output_embeddings().weight
        named = list(self._model.named_parameters())
        tied_to = next((name for name, tensor in named if tensor is embedding), None) if embedding is head else None
        snapshot = take_snapshot(named, version=self.version, tied_to=tied_to, into=self._snapshot_buffer)
        if self._reuse_snapshot_buffer:
            self._snapshot_buffer = snapshot.buffer
        return snapshot

    def save_policy(self, directory: str) -> None:
        """The policy as a Hugging Face directory with its tokenizer, loadable with `from_pretrained`."""
        from transformers import AutoTokenizer

        Path(directory).mkdir(parents=True, exist_ok=True)
        self._model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(self._model_path).save_pretrained(directory)

    def save(self, directory: Path) -> None:
        """Everything a restored learner needs: `policy/` (Hugging Face) and `optimiser.safetensors` (masters, moments, RNG)."""
        self.save_policy(str(directory / "policy"))
        state = {**self._optimiser.state_dict(), "version": torch.tensor(self.version), "rng": torch.get_rng_state()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "optimiser.safetensors")

    def load(self, directory: Path) -> None:
        state = load_file(directory / "optimiser.safetensors")
        self._optimiser.load_state_dict(state)
        self.version = int(state["version"])
        torch.set_rng_state(state["rng"])


def read_groups(batch: pa.RecordBatch, group_size: int) -> list[GroupTokens]:
    """Token ids of the groups of `batch`, which holds K adjacent rows a group."""
    prompts, prompt_offsets = list_column_arrays(batch, "prompt_ids")
    responses, response_offsets = list_column_arrays(batch, "response_ids")

    def row(values: np.ndarray, offsets: np.ndarray, index: int) -> np.ndarray:
        return values[offsets[index] : offsets[index + 1]].astype(np.int64)

    return [
        GroupTokens(
            prompt_ids=row(prompts, prompt_offsets, first),
            responses=[row(responses, response_offsets, first + k) for k in range(group_size)],
        )
        for first in range(0, batch.num_rows, group_size)
    ]


def _only(group: GroupTokens, *, keep: bool) -> GroupTokens:
    """The group, or the same number of empty responses: flat response indices stay as they are."""
    return group if keep else GroupTokens(prompt_ids=group.prompt_ids, responses=[ids[:0] for ids in group.responses])


@dataclass(frozen=True, kw_only=True)
class TokensOfPass:
    """Per-token columns of one micro-batch."""

    behavior_N: Tensor
    proximal_N: Tensor
    version_N: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLookup:
    """Flat per-token columns of a batch; token t of row r lies at starts[r] + t."""

    behavior: np.ndarray
    proximal: np.ndarray
    versions: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, batch: pa.RecordBatch, proximal: np.ndarray | None) -> TokenLookup:
        behavior, offsets = list_column_arrays(batch, "behavior_logprobs")
        starts = offsets - offsets[0]
        flat = behavior[offsets[0] : offsets[-1]]
        return cls(behavior=flat, proximal=flat if proximal is None else proximal, versions=token_versions(batch), starts=starts[:-1])

    def positions(self, packed: PackedTokens) -> np.ndarray:
        positions: np.ndarray = self.starts[packed.response_N.cpu().numpy()] + packed.offset_N.cpu().numpy()
        return positions

    def gather(self, packed: PackedTokens, like: Tensor) -> TokensOfPass:
        at = self.positions(packed)
        return TokensOfPass(
            behavior_N=torch.from_numpy(self.behavior[at]).to(like),
            proximal_N=torch.from_numpy(self.proximal[at]).to(like),
            version_N=torch.from_numpy(self.versions[at]),
        )


def token_versions(batch: pa.RecordBatch) -> np.ndarray:
    """Policy version of every response token of `batch`, flat in row order (int64)."""
    _, token_offsets = list_column_arrays(batch, "response_ids")
    starts, run_offsets = list_column_arrays(batch, "version_starts")
    values, _ = list_column_arrays(batch, "version_values")
    lengths = np.diff(token_offsets)
    runs = [
        np.repeat(values[a:b], np.diff(np.append(starts[a:b], length)))
        for a, b, length in zip(run_offsets[:-1], run_offsets[1:], lengths, strict=True)
    ]
    return np.concatenate(runs).astype(np.int64) if runs else np.zeros(0, dtype=np.int64)
