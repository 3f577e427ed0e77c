"""The learner's core: a batch of whole groups goes in, the policy makes one optimiser step (or a few), a new version
comes out.

    learner = PolicyLearner(model_path, config, temperature=1.0, group_size=8)
    report = learner.step(batch)            # an Arrow batch of whole groups with rewards and bonuses
    snapshot = learner.snapshot()           # the weights of the new version, for the engines

The defaults differ from GRPO as published in five points, each a key of the configuration: asymmetric clipping; the
mean over all tokens of the batch; truncated importance sampling against the behavior log-probs; no KL term; and groups
without signal are skipped. Skipping is exact, because such a group adds 0 to the gradient. With a divergence or an
entropy in the loss every token adds to it, and no group is skipped. Axes: G groups, K responses, N response tokens of
one micro-batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bonus.base import Need
from buffers.groups import feature_rows, validate_groups
from buffers.records import StepReport
from learners.advantages import AdvantageInputs, kl_penalised_rewards, unlikeliness_rewards
from learners.allocator import keep_freed_memory
from learners.batches import TokenLookup, prefetch, read_groups, sum_by_row, without_responses
from learners.config import LearnerConfig
from learners.diversity import diversity_rewards
from learners.forward import response_logprobs
from learners.layers import run_layers
from learners.lora import ADAPTER, Adapters, require_base
from learners.loss.covariance import chosen_tokens, covariances
from learners.loss.kl import KL_ESTIMATORS
from learners.losses import LossInputs, policy_loss
from learners.methods import estimated_advantages, require_methods
from learners.metrics import StepStatistics, lag_metrics, late_metrics, reward_metrics
from learners.mismatch import MismatchMonitor
from learners.optimiser import MasterAdamW, share_of_rate
from learners.packing import Branch, GroupTokens, PackedTokens, PassCost, micro_batches, pack, prefix_tree
from learners.ranks import OneRank, Ranks, in_lockstep, own_part
from learners.sharding import Deferred, full_tensors
from learners.tensor_file import TensorFile, layout_of, write_tensors
from learners.threads import resolve_threads
from learners.weights import WeightSnapshot, save_model, take_snapshot

DUMMY_BATCH = prefix_tree([GroupTokens(prompt_ids=np.zeros(1, np.int64), responses=[np.zeros(1, np.int64)])])
"""What a rank computes while other ranks have more micro-batches than it has. The result is not used."""


class PolicyLearner:
    """Owns the policy's weights and their optimiser. `version` counts the batches that were trained on. With several
    `ranks` each rank has such an object, and every call is made on all of them (`learners.ranks`)."""

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
        total_steps: int = 0,
    ) -> None:
        """With `reuse_snapshot_buffer` a snapshot is valid only until the next one, which is right if each is
        serialized at once, as Ray does. `total_steps` are those of the run, at whose end the learning rate decays; 0:
        it does not. Raises ExtensionError for a method that cannot be used."""
        require_methods(config)
        torch.set_num_threads(resolve_threads(config.threads))
        if device == "cpu":
            keep_freed_memory()
        self._config = config
        self._total_steps = total_steps
        self._temperature = temperature
        self._group_size = group_size
        self._device = torch.device(device)
        self._ranks: Ranks = ranks or OneRank()
        self._model = self._ranks.load(model_path, dtype=config.dtype, device=device)
        self._adapters = Adapters.attach(self._model, config.lora, base=model_path) if config.lora.enabled else None
        self._reference = None
        if config.loss.kl.where != "off" and self._adapters is None:  # the reference of divergences: a copy that is never trained
            self._reference = self._ranks.load(model_path, dtype=config.dtype, device=device).requires_grad_(False)
        self._optimiser = MasterAdamW(self._model.named_parameters(), config)
        run_layers(self._model, recomputed=config.activation_checkpointing, compiled=config.compile)
        self._cost = PassCost.of(self._model)
        self._mismatch = MismatchMonitor()
        self._model_path = model_path
        self._reuse_snapshot_buffer = reuse_snapshot_buffer
        self._snapshot_buffer: np.ndarray | None = None
        self.version = 0
        self.is_first = self._ranks.rank == 0
        """Whether this rank answers for all."""
        self.weight_dtype = self._ranks.weight_dtype
        """The dtype in which weights are published; None: each tensor in its own."""

    def step(self, batch: pa.RecordBatch, version: int | None = None) -> StepReport:
        """Train on `batch`, whose rewards and bonuses are set, and advance `version` by one. `version` is the version
        that is to train on `batch`, if the caller gives it. Raises ValueError if the learner is at another one, so that
        no batch is trained on twice, and for a batch that is empty or does not hold well-formed whole groups. Raises
        FloatingPointError on a gradient that is not finite: that mini-batch is not applied, and the version stays."""
        if version is not None and version != self.version:
            raise ValueError(f"the learner is at version {self.version}, the batch is for version {version}")
        started = time.monotonic()
        if not batch.num_rows:
            raise ValueError("the batch has no groups: there is nothing to train on")
        validate_groups(batch, self._group_size)
        groups = read_groups(batch, self._group_size)
        lookup = TokenLookup.of(batch)
        if self._config.loss.kl.where != "off":
            lookup = replace(lookup, reference=self._reference_logprobs(lookup.of_all_tokens(), groups))
        advantages = self._advantages(batch, lookup)
        advantages_GK = advantages.advantages_GK
        groups = lookup.trained_part(groups)
        parts = self._mini_batches(advantages_GK)
        if len(parts) > 1:
            lookup = replace(lookup, proximal=self._flat_logprobs(self._model, lookup, groups, [part.trained for part in parts]))
        statistics = StepStatistics(version=self.version)
        results = (self._optimiser_step(lookup, groups, part, advantages_GK, statistics) for part in parts)
        norms = [norm for norm in results if norm is not None]
        statistics = StepStatistics.merged(self._ranks.gather(statistics))
        self.version += 1
        elapsed_s = time.monotonic() - started
        metrics = {
            **reward_metrics(batch, advantages_GK, advantages.without_bonus_GK, advantages.diverse_GK),
            **lag_metrics(self.version - 1, lookup.versions[lookup.trained]),
            **late_metrics(lookup.num_trained(), batch),
            **statistics.metrics(),
            **self._mismatch.observe(statistics.tokens()),
            **({"learner/loss": statistics.loss / len(norms), "learner/grad_norm": float(np.mean(norms))} if norms else {}),
            **({"learner/lr": self._optimiser.last_learning_rate} if norms else {}),
            "learner/optimiser_steps": float(self._optimiser.num_steps),
            "learner/tokens_per_s": statistics.num_computed_tokens / elapsed_s,
            "time/learn_s": elapsed_s,
        }
        return StepReport(version=self.version, metrics=metrics, advantages=tuple(advantages_GK.flatten().tolist()))

    def _mini_batches(self, advantages_GK: Tensor) -> list[MiniBatch]:
        with_signal_G = advantages_GK.ne(0).any(dim=-1).numpy() | self._config.loss.trains_without_advantage
        parts = np.array_split(np.arange(len(advantages_GK)), min(self._config.mini_batches, len(advantages_GK)))
        return [MiniBatch(groups=part.tolist(), trained=part[with_signal_G[part]].tolist()) for part in parts]

    def _advantages(self, batch: pa.RecordBatch, lookup: TokenLookup) -> StepAdvantages:
        def column(name: str) -> Tensor:
            values = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            return torch.from_numpy(values).view(-1, self._group_size)

        config, kl = self._config.advantage, self._config.loss.kl
        rewards_GK = column("reward")
        if config.unlikeliness:
            logprobs_GK = sum_by_row(batch, lookup.behavior).view_as(rewards_GK)
            rewards_GK = unlikeliness_rewards(rewards_GK, logprobs_GK, config.unlikeliness)
        features_GKD = torch.from_numpy(feature_rows(batch)).unflatten(0, rewards_GK.shape) if Need.FEATURES in config.needs else None
        diverse_GK = None
        if config.diversity_product and features_GKD is not None:
            rewards_GK = diverse_GK = diversity_rewards(rewards_GK, features_GKD, config.diversity_product)
        if kl.where == "reward":
            assert lookup.reference is not None
            kl_of_token = KL_ESTIMATORS[kl.estimator](torch.from_numpy(lookup.behavior - lookup.reference)).numpy()
            rewards_GK = kl_penalised_rewards(rewards_GK, sum_by_row(batch, kl_of_token).view_as(rewards_GK), kl.coefficient)
        answers = batch.column("final_answer").to_pylist() if Need.ANSWERS in config.needs else None
        inputs = AdvantageInputs(
            rewards_GK=rewards_GK,
            bonuses_GK=torch.nan_to_num(column("bonus")),
            features_GKD=features_GKD,
            answers_GK=None if answers is None else [answers[i : i + self._group_size] for i in range(0, len(answers), self._group_size)],
        )
        without = replace(inputs, bonuses_GK=torch.zeros_like(inputs.bonuses_GK))
        return StepAdvantages(
            advantages_GK=estimated_advantages(inputs, config),
            without_bonus_GK=estimated_advantages(without, config) if config.beta else None,
            diverse_GK=diverse_GK,
        )

    def _optimiser_step(
        self, lookup: TokenLookup, groups: Sequence[GroupTokens], part: MiniBatch, advantages_GK: Tensor, statistics: StepStatistics
    ) -> float | None:
        """Take one optimiser step on `part`, if it has a gradient, and return the gradient's norm. The loss's
        denominators count all responses and tokens of `part`, whichever rank computes them."""
        lengths = lookup.num_trained().reshape(-1, self._group_size)[part.groups]
        loss, advantage_R = self._config.loss, advantages_GK.flatten()
        if loss.covariance.term != "off":
            lookup = self._restrained(lookup, part, advantage_R, statistics)
        for micro_batch, packed in prefetch(partial(self._pack, lookup), self._own_micro_batches(groups, part.trained)):
            logprob_N, entropy_N = self._logprobs(self._model, packed, entropy_gradient=loss.entropy_coefficient > 0)
            if micro_batch is None:  # the dummy batch: the backward pass is a collective that the other ranks wait for
                (0 * logprob_N.sum()).backward()
                continue
            tokens = lookup.gather(packed, logprob_N)
            inputs = LossInputs(
                logprob_N=logprob_N,
                proximal_logprob_N=logprob_N.detach() if tokens.proximal_N is None else tokens.proximal_N,
                behavior_logprob_N=tokens.behavior_N,
                advantage_N=advantage_R[packed.response_N.cpu()].to(logprob_N),
                num_tokens=int(lengths.sum()),
                response_N=packed.response_N,
                num_responses=int((lengths > 0).sum()),
                reference_logprob_N=tokens.reference_N,
                entropy_N=entropy_N,
                chosen_N=tokens.chosen_N,
            )
            output = policy_loss(inputs, loss)
            output.loss.backward()
            entropy_N = entropy_N.detach()
            statistics.add(inputs, output, entropy_N, tokens.version_N, tokens.oldest_N, num_computed=packed.num_tokens)
        return self._optimiser.step(share_of_rate(self.version, total_steps=self._total_steps, decay_steps=self._config.decay_steps))

    def _restrained(self, lookup: TokenLookup, part: MiniBatch, advantage_R: Tensor, statistics: StepStatistics) -> TokenLookup:
        """Return the lookup with the tokens of `part` that are restrained. Every rank makes the same choice."""
        rows = lookup.rows()
        of_part = lookup.trained & np.isin(rows // self._group_size, part.groups)
        logprob_N = torch.from_numpy(lookup.behavior[of_part]).double()
        covariance_N = covariances(advantage_R[torch.from_numpy(rows[of_part])], logprob_N)
        if len(covariance_N):
            statistics.covariances.append(float(covariance_N.mean()))
        chosen = np.zeros(len(rows), dtype=bool)
        chosen[of_part] = chosen_tokens(covariance_N, self._config.loss.covariance, seed=(self.version, part.groups[0])).numpy()
        return replace(lookup, chosen=chosen)

    def _reference_logprobs(self, lookup: TokenLookup, groups: Sequence[GroupTokens]) -> np.ndarray:
        """Return log-probs, flat in row order, under the frozen copy or the same model without its adapters."""
        everything = [range(len(groups))]
        if self._adapters is None:
            return self._flat_logprobs(self._reference, lookup, groups, everything)
        with self._adapters.off():
            return self._flat_logprobs(self._model, lookup, groups, everything)

    @torch.no_grad()
    def _flat_logprobs(self, model: Any, lookup: TokenLookup, groups: Sequence[GroupTokens], parts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the log-probs of the response tokens of the groups in `parts` under `model` as it is now. The result
        is flat, in row order, float64, and 0 for other groups and for tokens without a part in the loss. Each part is
        computed in the micro-batches of an optimiser step on it, because a token's rounding depends on the tokens
        beside it."""
        flat = np.zeros(len(lookup.behavior), np.float64)
        for part in parts:
            for micro_batch, packed in prefetch(partial(self._pack, lookup), self._own_micro_batches(groups, part)):
                logprob_N, _ = self._logprobs(model, packed, entropy_gradient=False)
                if micro_batch is not None:
                    flat[lookup.positions(packed)] = logprob_N.double().cpu().numpy()
        of_all_ranks: np.ndarray = np.sum(self._ranks.gather(flat), axis=0)
        return of_all_ranks

    def _own_micro_batches(self, groups: Sequence[GroupTokens], chosen: Sequence[int]) -> Iterator[list[Branch] | None]:
        """Yield this rank's part of the `chosen` groups, then None for each micro-batch that another rank has more."""
        own = {chosen[i] for i in own_part([self._cost.of_pass(prefix_tree([groups[g]])) for g in chosen], self._ranks)}
        branches = prefix_tree([group if g in own else without_responses(group) for g, group in enumerate(groups)])
        return in_lockstep(micro_batches(branches, max_tokens=self._config.tokens_per_micro_batch, cost=self._cost), self._ranks)

    def _logprobs(self, model: Any, packed: PackedTokens, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        options: Any = {"temperature": self._temperature, "logits_bytes": int(self._config.logits_mib * 2**20)}
        return self._ranks.compute(response_logprobs, model, packed, entropy_gradient=entropy_gradient, **options)

    def _pack(self, lookup: TokenLookup, micro_batch: list[Branch] | None) -> tuple[list[Branch] | None, PackedTokens]:
        """Return the micro-batch, and what this rank's device computes for it, which for None is the dummy batch."""
        packed = pack(micro_batch or DUMMY_BATCH)
        if micro_batch is not None:
            packed = packed.only(lookup.trained[lookup.positions(packed)])
        return micro_batch, packed.to(self._device)

    def named_weights(self) -> tuple[list[tuple[str, Tensor | Deferred]], str | None]:
        """Return the policy's tensors, with adapters merged, and the name of the tensor that is also the output head.
        On several ranks the tensors are this rank's shards. The name is None for a head of its own."""
        embedding = self._model.get_input_embeddings().weight
        head = self._model.get_output_embeddings().weight
        named = list(self._model.named_parameters()) if self._adapters is None else self._adapters.named_weights()
        return named, next((name for name, tensor in named if tensor is embedding), None) if embedding is head else None

    def give_weights(self) -> None:
        """Take part in the collectives of the first rank's snapshot, and keep nothing."""
        with full_tensors(self.named_weights()[0], self.weight_dtype):
            pass

    def snapshot(self) -> WeightSnapshot:
        """Return the weights of the current version, as they are published to the engines."""
        named, tied_to = self.named_weights()
        snapshot = take_snapshot(named, version=self.version, tied_to=tied_to, into=self._snapshot_buffer, dtype=self.weight_dtype)
        if self._reuse_snapshot_buffer:
            self._snapshot_buffer = snapshot.buffer
        return snapshot

    def save_policy(self, directory: str | None) -> None:
        """Write the policy and its tokenizer for `from_pretrained`, any adapters into `adapter/` there. The first rank
        writes. With None this rank only takes part in the collectives of the others."""
        if self.is_first and directory is not None:
            save_model(self._model, self.snapshot(), directory, tokenizer=self._model_path)
            if self._adapters is not None:
                self._adapters.save(Path(directory) / ADAPTER)
        else:
            self.give_weights()

    def save(self, directory: Path | None) -> None:
        """Write what a learner of any number of ranks is restored from: `policy/` (Hugging Face), or `adapter/` (peft)
        for a frozen model, and `optimiser.safetensors` (masters, moments, RNG). For None see `save_policy`."""
        learned = self._optimiser.state_dict() | self._mismatch.state_dict()
        state = learned | {"version": torch.tensor(self.version), "rng": torch.get_rng_state()}
        layout = layout_of(state)
        to_policy: str | None = None
        try:
            with full_tensors((name, state[name]) for name in layout) as tensors:
                if directory is not None and self.is_first:
                    directory.mkdir(parents=True, exist_ok=True)
                    write_tensors(directory / "optimiser.safetensors", layout, tensors)
            to_policy = None if directory is None else str(directory / "policy")
        finally:  # the last collective comes before the policy is written, so that no rank waits for that
            if self._adapters is None:
                self.save_policy(to_policy)
        if self._adapters is not None and directory is not None:
            self._adapters.save(directory / ADAPTER)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote on any number of ranks. Raises CheckpointError for adapters of another model."""
        if self._adapters is not None:
            require_base(directory / ADAPTER, self._model_path)
        with TensorFile(directory / "optimiser.safetensors") as state:
            self._optimiser.load_state_dict(state)
            self._mismatch.load_state_dict(state)
            self.version = int(state["version"])
            torch.set_rng_state(state["rng"])


@dataclass(frozen=True, kw_only=True)
class MiniBatch:
    """One optimiser step: the groups that its denominators count, and those of them that have a gradient."""

    groups: Sequence[int]
    trained: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class StepAdvantages:
    """The advantages of a step (G, K), and what they were made of."""

    advantages_GK: Tensor
    without_bonus_GK: Tensor | None
    """What they would be without the bonus, if the bonus has a weight."""
    diverse_GK: Tensor | None
    """The rewards times their diversity, if `diversity_product` is on."""
