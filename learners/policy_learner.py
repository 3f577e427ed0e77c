"""The learner's core: one batch of whole groups in, one optimiser step (or a few), one new policy version out.

    learner = PolicyLearner(model_path, config, temperature=1.0, group_size=8)
    report = learner.step(batch)            # Arrow batch of whole groups, scored
    snapshot = learner.snapshot()           # weights of the new version, for the engines

Departures from GRPO as published, each set in the config: asymmetric clipping, token mean over the whole batch,
truncated importance sampling against the behavior log-probs, no KL term, groups without signal skipped (exactly: they
add 0, unless the loss has a divergence or an entropy, which every token adds to). Axes: G groups, K responses, N
response tokens of one micro-batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from buffers.groups import validate_groups
from buffers.records import StepReport
from buffers.schema import list_column_arrays
from learners.advantages import group_advantages
from learners.ahead import ahead
from learners.config import LearnerConfig
from learners.export import save_model
from learners.forward import response_logprobs
from learners.layers import run_layers
from learners.lora import ADAPTER, Adapters, require_base
from learners.loss.kl import KL_ESTIMATORS
from learners.losses import LossInputs, policy_loss
from learners.metrics import TokenStatistics, lag_metrics, reward_metrics
from learners.mismatch import MismatchMonitor
from learners.optimiser import MasterAdamW
from learners.packing import Branch, GroupTokens, PackedTokens, PassCost, grow, micro_batches, pack
from learners.ranks import OneRank, Ranks, in_step, share
from learners.rewards import kl_penalised_rewards, unlikeliness_rewards
from learners.sharding import Deferred, whole_tensors
from learners.tensor_file import TensorFile, layout_of, write_tensors
from learners.weights import WeightSnapshot, take_snapshot

IDLE = grow([GroupTokens(prompt_ids=np.zeros(1, np.int64), responses=[np.zeros(1, np.int64)])])
"""What a rank computes, for nothing, while the others compute more than it has."""


class PolicyLearner:
    """Owns the policy's weights and their optimiser. `version` counts the batches trained on.

    With several `ranks` each has such an object, and all are called alike (`learners.ranks`).
    """

    def __init__(
        self,
        model_path: str,
        config: LearnerConfig,
        *,
        temperature: float,
        group_size: int,
        device: str = "cpu",
        reuse_snapshot_buffer: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """`reuse_snapshot_buffer`: a snapshot is only valid until the next; right where each is serialised at once, as
        by Ray."""
        torch.set_num_threads(config.threads)
        self._config = config
        self._temperature = temperature
        self._group_size = group_size
        self._device = torch.device(device)
        self._ranks: Ranks = ranks or OneRank()
        self._model = self._ranks.load(model_path, dtype=config.dtype, device=device)
        self._adapters = Adapters.attach(self._model, config.lora, base=model_path) if config.lora.enabled else None
        has_reference = config.loss.kl.where != "off"
        self._reference = self._frozen(model_path) if has_reference and self._adapters is None else None
        self._optimiser = MasterAdamW(self._model.named_parameters(), config)
        run_layers(self._model, recomputed=config.activation_checkpointing, compiled=config.compile)
        self._cost = PassCost.of(self._model)
        self._mismatch = MismatchMonitor()
        self._model_path = model_path
        self._reuse_snapshot_buffer = reuse_snapshot_buffer
        self._snapshot_buffer: np.ndarray | None = None
        self.version = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank answers for all."""
        return self._ranks.rank == 0

    def step(self, batch: pa.RecordBatch, version: int | None = None) -> StepReport:
        """Train on `batch`, whose rewards and bonuses are set, and advance `version` by one.

        `version`: the one that `batch` is to be trained on by, if the caller says; ValueError where the learner has
        another, so that no batch is trained on twice, and for a batch that is empty or is not made of well-formed whole
        groups. Raises FloatingPointError on a gradient that is not finite: nothing of that mini-batch is applied, the
        version stays."""
        if version is not None and version != self.version:
            raise ValueError(f"the learner is at version {self.version}, the batch is for version {version}")
        started = time.monotonic()
        if not batch.num_rows:
            raise ValueError("the batch has no groups: there is nothing to train on")
        validate_groups(batch, self._group_size)
        groups = read_groups(batch, self._group_size)
        reference = self._reference_logprobs(batch, groups) if self._config.loss.kl.where != "off" else None
        advantages_GK, without_bonus_GK = self._advantages(batch, reference)
        parts = self._parts(advantages_GK)
        statistics = TokenStatistics(version=self.version)
        proximal = self._flat_logprobs(self._model, batch, groups, [part.trained for part in parts]) if len(parts) > 1 else None
        lookup = TokenLookup.of(batch, proximal, reference)
        norms = [self._optimiser_step(lookup, groups, part, advantages_GK, statistics) for part in parts]
        statistics = TokenStatistics.merged(self._ranks.gather(statistics))
        self.version += 1
        elapsed_s = time.monotonic() - started
        metrics = {
            **reward_metrics(batch, advantages_GK, without_bonus_GK),
            **lag_metrics(self.version - 1, token_versions(batch)),
            **statistics.metrics(),
            **self._mismatch.observe(statistics.tokens()),
            **self._optimiser_metrics(statistics.loss, [norm for norm in norms if norm is not None]),
            "learner/optimiser_steps": float(self._optimiser.num_steps),
            "learner/tokens_per_s": statistics.num_computed_tokens / elapsed_s,
            "time/learn_s": elapsed_s,
        }
        return StepReport(version=self.version, metrics=metrics, advantages=tuple(advantages_GK.flatten().tolist()))

    def _optimiser_metrics(self, loss: float, norms: Sequence[float]) -> dict[str, float]:
        """Means over the batch's optimiser steps; nothing where there was none."""
        if not norms:
            return {}
        return {
            "learner/loss": loss / len(norms),
            "learner/grad_norm": float(np.mean(norms)),
            "learner/lr": self._optimiser.last_learning_rate,
        }

    def _parts(self, advantages_GK: Tensor) -> list[MiniBatch]:
        """What each optimiser step is made of: at least a group."""
        num_groups = len(advantages_GK)
        with_signal_G = advantages_GK.ne(0).any(dim=-1).numpy() | self._config.loss.trains_without_advantage
        parts = np.array_split(np.arange(num_groups), min(self._config.mini_batches, num_groups))
        return [MiniBatch(groups=part.tolist(), trained=part[with_signal_G[part]].tolist()) for part in parts]

    def _advantages(self, batch: pa.RecordBatch, reference: np.ndarray | None) -> tuple[Tensor, Tensor | None]:
        """(G, K), and what they would be without the bonus, if there is one. `reference`: log-probs of all response
        tokens under the reference, flat in row order."""

        def column(name: str) -> Tensor:
            values = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            return torch.from_numpy(values).view(-1, self._group_size)

        config = self._config
        rewards_GK = column("reward")
        if config.advantage.unlikeliness:
            logprobs_GK = sum_by_row(batch, TokenLookup.of(batch).behavior).view_as(rewards_GK)
            rewards_GK = unlikeliness_rewards(rewards_GK, logprobs_GK, config.advantage.unlikeliness)
        if config.loss.kl.where == "reward":
            assert reference is not None
            log_ratio = torch.from_numpy(TokenLookup.of(batch).behavior - reference)
            kl_GK = sum_by_row(batch, KL_ESTIMATORS[config.loss.kl.estimator](log_ratio).numpy()).view_as(rewards_GK)
            rewards_GK = kl_penalised_rewards(rewards_GK, kl_GK, config.loss.kl.coefficient)
        bonuses_GK, advantage = torch.nan_to_num(column("bonus")), config.advantage
        without = group_advantages(rewards_GK, bonuses_GK, advantage.model_copy(update={"beta": 0.0})) if advantage.beta else None
        return group_advantages(rewards_GK, bonuses_GK, advantage), without

    def _optimiser_step(
        self,
        lookup: TokenLookup,
        groups: Sequence[GroupTokens],
        part: MiniBatch,
        advantages_GK: Tensor,
        statistics: TokenStatistics,
    ) -> float | None:
        """One optimiser step on `part`, if it has a gradient; the loss's denominators count all of its responses and
        tokens, of whatever rank."""
        lengths = [len(ids) for g in part.groups for ids in groups[g].responses]
        loss = self._config.loss
        advantage_R = advantages_GK.flatten()
        for micro_batch, packed in ahead(self._pack, self._my_micro_batches(groups, part.trained)):
            logprob_N, entropy_N = self._ranks.compute(
                response_logprobs,
                self._model,
                packed,
                temperature=self._temperature,
                logits_bytes=self._logits_bytes,
                entropy_gradient=loss.entropy_coefficient > 0,
            )
            if micro_batch is None:
                (0 * logprob_N.sum()).backward()
                continue
            tokens = lookup.gather(packed, logprob_N)
            inputs = LossInputs(
                logprob_N=logprob_N,
                proximal_logprob_N=logprob_N.detach() if tokens.proximal_N is None else tokens.proximal_N,
                behavior_logprob_N=tokens.behavior_N,
                advantage_N=advantage_R[packed.response_N.cpu()].to(logprob_N),
                num_tokens=sum(lengths),
                response_N=packed.response_N,
                num_responses=sum(length > 0 for length in lengths),
                reference_logprob_N=tokens.reference_N,
                entropy_N=entropy_N,
            )
            output = policy_loss(inputs, loss)
            output.loss.backward()
            statistics.add(inputs, output, entropy_N.detach(), tokens.version_N, num_computed=packed.num_tokens)
        return self._optimiser.step()

    def _reference_logprobs(self, batch: pa.RecordBatch, groups: Sequence[GroupTokens]) -> np.ndarray:
        """Flat in row order: under the frozen copy, or under the model without its adapters, which is the same."""
        everything = [range(len(groups))]
        if self._adapters is None:
            return self._flat_logprobs(self._reference, batch, groups, everything)
        with self._adapters.off():
            return self._flat_logprobs(self._model, batch, groups, everything)

    @torch.no_grad()
    def _flat_logprobs(
        self, model: Any, batch: pa.RecordBatch, groups: Sequence[GroupTokens], parts: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Log-probs of the response tokens of the groups in `parts` (flat, in row order, float64; 0 elsewhere) under
        `model` as it is now.

        Part by part in the micro-batches of an optimiser step on it: a token's rounding depends on those it is computed
        with."""
        lookup = TokenLookup.of(batch)
        flat = np.zeros(len(lookup.behavior), np.float64)
        for part in parts:
            for micro_batch, packed in ahead(self._pack, self._my_micro_batches(groups, part)):
                logprob_N, _ = self._ranks.compute(
                    response_logprobs, model, packed, temperature=self._temperature, logits_bytes=self._logits_bytes
                )
                if micro_batch is not None:
                    flat[lookup.positions(packed)] = logprob_N.double().cpu().numpy()
        everyones: np.ndarray = np.sum(self._ranks.gather(flat), axis=0)
        return everyones

    def _my_micro_batches(self, groups: Sequence[GroupTokens], chosen: Sequence[int]) -> Iterator[list[Branch] | None]:
        """This rank's share of the groups `chosen`; None for each that another rank has more."""
        mine = {chosen[i] for i in share([self._cost.of_pass(grow([groups[g]])) for g in chosen], self._ranks)}
        branches = grow([_only(group, keep=g in mine) for g, group in enumerate(groups)])
        return in_step(micro_batches(branches, max_tokens=self._config.tokens_per_micro_batch, cost=self._cost), self._ranks)

    @property
    def _logits_bytes(self) -> int:
        return int(self._config.logits_mib * 2**20)

    def _pack(self, micro_batch: list[Branch] | None) -> tuple[list[Branch] | None, PackedTokens]:
        """It, and on this rank's device what is computed of it, or in its place."""
        return micro_batch, pack(micro_batch or IDLE).to(self._device)

    @property
    def weight_dtype(self) -> torch.dtype | None:
        """What weights are published in; None: each in its own."""
        return self._ranks.weight_dtype

    def named_weights(self) -> tuple[list[tuple[str, Tensor | Deferred]], str | None]:
        """The policy's tensors, or this rank's parts of them, adapters merged, and the name of the one that is the
        output head too, if one is."""
        embedding = self._model.get_input_embeddings().weight
        head = self._model.get_output_embeddings().weight
        named = list(self._model.named_parameters()) if self._adapters is None else self._adapters.named_weights()
        return named, next((name for name, tensor in named if tensor is embedding), None) if embedding is head else None

    def give_weights(self) -> None:
        """Of a rank that has no use for them: what the first one needs for a snapshot."""
        with whole_tensors(self.named_weights()[0], self.weight_dtype):
            pass

    def snapshot(self) -> WeightSnapshot:
        """The weights of the current version, as published to the engines."""
        named, tied_to = self.named_weights()
        snapshot = take_snapshot(named, version=self.version, tied_to=tied_to, into=self._snapshot_buffer, dtype=self.weight_dtype)
        if self._reuse_snapshot_buffer:
            self._snapshot_buffer = snapshot.buffer
        return snapshot

    def save_policy(self, directory: str | None) -> None:
        """The policy as a Hugging Face directory with its tokenizer, loadable with `from_pretrained`; written by the
        first rank. None: to give what the others ask for, and write nothing. With adapters these too, in `adapter/`
        within it."""
        if self.is_first and directory is not None:
            save_model(self._model, self.snapshot(), directory, tokenizer=self._model_path)
            if self._adapters is not None:
                self._adapters.save(Path(directory) / ADAPTER)
        else:
            self.give_weights()

    def save(self, directory: Path | None) -> None:
        """Everything a restored learner needs: `policy/` (Hugging Face), or `adapter/` (peft) for a frozen model, and
        `optimiser.safetensors` (masters, moments, RNG).

        Neither depends on the number of ranks. None: see `save_policy`.
        """
        state = {
            **self._optimiser.state_dict(),
            **self._mismatch.state_dict(),
            "version": torch.tensor(self.version),
            "rng": torch.get_rng_state(),
        }
        layout = layout_of(state)
        with whole_tensors((name, state[name]) for name in layout) as tensors:
            if self._adapters is None:
                self.save_policy(None if directory is None else str(directory / "policy"))
            elif directory is not None:
                self._adapters.save(directory / ADAPTER)
            if directory is not None and self.is_first:
                write_tensors(directory / "optimiser.safetensors", layout, tensors)

    def load(self, directory: Path) -> None:
        """What any number of ranks has saved. Raises CheckpointError where it is adapters of another model."""
        if self._adapters is not None:
            require_base(directory / ADAPTER, self._model_path)
        with TensorFile(directory / "optimiser.safetensors") as state:
            self._optimiser.load_state_dict(state)
            self._mismatch.load_state_dict(state)
            self.version = int(state["version"])
            torch.set_rng_state(state["rng"])

    def _frozen(self, model_path: str) -> Any:
        """The initial policy, never to be trained: what divergences are measured from."""
        return self._ranks.load(model_path, dtype=self._config.dtype, device=str(self._device)).requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class MiniBatch:
    """What one optimiser step is made of: its groups, which all count in the denominators, and those of them that have
    a gradient."""

    groups: Sequence[int]
    trained: Sequence[int]


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
    proximal_N: Tensor | None
    reference_N: Tensor | None
    version_N: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLookup:
    """Flat per-token columns of a batch; token t of row r lies at starts[r] + t."""

    behavior: np.ndarray
    proximal: np.ndarray | None
    reference: np.ndarray | None
    versions: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, batch: pa.RecordBatch, proximal: np.ndarray | None = None, reference: np.ndarray | None = None) -> TokenLookup:
        behavior, offsets = list_column_arrays(batch, "behavior_logprobs")
        starts = offsets - offsets[0]
        flat = behavior[offsets[0] : offsets[-1]]
        return cls(behavior=flat, proximal=proximal, reference=reference, versions=token_versions(batch), starts=starts[:-1])

    def positions(self, packed: PackedTokens) -> np.ndarray:
        positions: np.ndarray = self.starts[packed.response_N.cpu().numpy()] + packed.offset_N.cpu().numpy()
        return positions

    def gather(self, packed: PackedTokens, like: Tensor) -> TokensOfPass:
        at = self.positions(packed)

        def column(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values[at]).to(like)

        return TokensOfPass(
            behavior_N=torch.from_numpy(self.behavior[at]).to(like),
            proximal_N=column(self.proximal),
            reference_N=column(self.reference),
            version_N=torch.from_numpy(self.versions[at]),
        )


def sum_by_row(batch: pa.RecordBatch, values: np.ndarray) -> Tensor:
    """(R,) float64: sums of flat per-token `values` over the response tokens of each row, in their order: copies have
    equal sums."""
    _, offsets = list_column_arrays(batch, "response_ids")
    rows = np.repeat(np.arange(batch.num_rows), np.diff(offsets))
    return torch.from_numpy(np.bincount(rows, weights=values, minlength=batch.num_rows))


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
