"""Every loss through the learner, in float64: the gradient is that of plain rows, however the batch is split, packed
and ordered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from buffers.schema import concat_groups
from learners.advantages import NORMALISERS, AdvantageInputs, kl_penalised_rewards, unlikeliness_rewards
from learners.config import LearnerConfig
from learners.forward import load_causal_lm
from learners.loss.aggregation import AGGREGATIONS
from learners.loss.corrections import CORRECTIONS
from learners.loss.kl import KL_ESTIMATORS
from learners.loss.surrogates import SURROGATES
from learners.losses import LossInputs, policy_loss
from learners.methods import estimated_advantages
from learners.policy_learner import PolicyLearner
from tests.learners.samples import assert_equal_gradients, gradients, in_order, make_group, plain_logprobs, ragged_groups
from tests.tiny_model import make_tiny_model

GROUP_SIZE = 4
TEMPERATURE = 0.8

PROCESS_FAILURES: dict[str, dict[str, Any]] = {
    **{name: {"surrogate": name, "correction": "none"} for name in SURROGATES},  # against the behavior policy ratios differ from 1
    **{name: {"correction": name} for name in CORRECTIONS},
    "trust_region_mask": {"correction": "trust_region_mask", "trust_region_max": 9.0, "trust_region_mean": 3.0},
    **{name: {"aggregation": name, "constant_tokens": 9 if name == "constant" else 0} for name in AGGREGATIONS},
    **{
        f"kl {name} in the loss": {"kl": {"where": "loss", "estimator": name, "coefficient": 0.5}} for name in KL_ESTIMATORS if name != "k1"
    },
    "kl in the reward": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.5}},
    "entropy": {"entropy_coefficient": 0.3},
    "clip_cov": {"covariance": {"term": "clip_cov", "share": 1.0, "band": (0.1, 5.0)}},  # all of a band: a draw would depend on the order
    "dual clip": {"correction": "none", "dual_clip": 1.01},
    "sequence_masked_is, wide": {"correction": "sequence_masked_is", "mask_band": (0.0, 50.0)},
    "sequence_truncated_is, geometric": {"correction": "sequence_truncated_is", "sequence_ratio": "geometric"},
    "all at once": {
        "surrogate": "gspo",
        "gspo_clip_high": 0.5,
        "correction": "sequence_truncated_is",
        "aggregation": "sequence_mean",
        "kl": {"where": "loss", "coefficient": 0.5},
        "entropy_coefficient": 0.3,
    },
}
ADVANTAGES: dict[str, dict[str, Any]] = {
    **{name: {"normalise": name} for name in NORMALISERS},
    "unlikeliness": {"unlikeliness": 0.25},
    "added": {"combine": "advantage", "beta": 0.5},
    "maxrl": {"estimator": "maxrl"},
    "pass_at_k": {"estimator": "pass_at_k", "pass_k": 2, "combine": "advantage"},
}
CONFIGS = {
    **{name: {"loss": values} for name, values in PROCESS_FAILURES.items()},
    "kl in the reward": {"loss": PROCESS_FAILURES["kl in the reward"], "advantage": {"normalise": "mean"}},
    **{f"advantage {name}": {"advantage": values} for name, values in ADVANTAGES.items()},
}


def batch_of_all_kinds() -> pa.RecordBatch:
    """Return ragged groups, one without contrast, one that is not scored throughout, and a response that occurs
    twice."""
    same = make_group(7, [9, 10], [[11, 12], [13], [14, 15, 16], []], [1.0, 1.0, 1.0, 1.0])
    unscored = make_group(8, [20], [[21, 22, 23], [24], [25, 26], [25, 26]], [1.0, None, 0.0, 1.0])
    return concat_groups([*ragged_groups(2, longest=8), same, unscored])


def config_of(name: str, **values: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({**CONFIGS[name], **values}).model_copy(update={"dtype": "float64"})


class Bench:
    """One learner for all configurations. Its optimiser applies nothing, and its reference is another model."""

    def __init__(self, policy: str, reference: str) -> None:
        config = config_of("kl k2 in the loss")
        self._learner = PolicyLearner(policy, config, temperature=TEMPERATURE, group_size=GROUP_SIZE)
        self.model, self.reference = self._learner._model, load_causal_lm(reference, dtype="float64")
        self._learner._optimiser = self  # type: ignore[assignment]
        self.last_learning_rate, self.num_steps = 0.0, 0
        self._gradient: dict[str, Tensor] = {}

    def step(self, share: float = 1.0) -> float:
        self._gradient = gradients(self.model)
        self.model.zero_grad()
        return 1.0

    def gradient(self, config: LearnerConfig, batch: pa.RecordBatch) -> dict[str, Tensor]:
        self._learner._config = config
        self._learner._reference = self.reference if config.loss.kl.where != "off" else None
        self._learner.step(batch)
        return self._gradient

    def plain_gradient(self, config: LearnerConfig, batch: pa.RecordBatch) -> dict[str, Tensor]:
        """Return the gradient from one unpadded row per response, without packing, skipping or splitting, with all
        tokens in one call of the loss."""
        rows = batch.select(["prompt_ids", "response_ids", "behavior_logprobs", "reward", "bonus"]).to_pylist()
        spoken = [r for r, row in enumerate(rows) if row["response_ids"]]

        def logprobs(model: Any, r: int) -> Tensor:
            return plain_logprobs(model, rows[r]["prompt_ids"], rows[r]["response_ids"], temperature=TEMPERATURE)

        def by_group(values: list[float | None]) -> Tensor:
            return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64).view(-1, GROUP_SIZE)

        with torch.no_grad():
            reference = {r: logprobs(self.reference, r) for r in spoken}
        behavior = [torch.tensor(row["behavior_logprobs"], dtype=torch.float64) for row in rows]
        rewards_GK = by_group([row["reward"] for row in rows])
        if config.advantage.unlikeliness:
            rewards_GK = unlikeliness_rewards(rewards_GK, by_group([b.sum().item() for b in behavior]), config.advantage.unlikeliness)
        if config.loss.kl.where == "reward":
            kl = KL_ESTIMATORS[config.loss.kl.estimator]
            sums = [kl(b - reference[r]).sum().item() if r in reference else 0.0 for r, b in enumerate(behavior)]
            rewards_GK = kl_penalised_rewards(rewards_GK, by_group(sums), config.loss.kl.coefficient)
        known = AdvantageInputs(rewards_GK=rewards_GK, bonuses_GK=by_group([row["bonus"] for row in rows]))
        advantages = estimated_advantages(known, config.advantage).flatten()
        logprob = {r: logprobs(self.model, r) for r in spoken}
        entropy = [self._entropies(rows[r]) for r in spoken] if config.loss.entropy_coefficient else []
        logprob_N = torch.cat([logprob[r] for r in spoken])
        behavior_N, advantage_N = (
            torch.cat([behavior[r] for r in spoken]),
            torch.cat([advantages[r].expand(len(logprob[r])) for r in spoken]),
        )
        low, high = config.loss.covariance.band
        covariance_N = (advantage_N - advantage_N.mean()) * (behavior_N - behavior_N.mean())
        inputs = LossInputs(
            logprob_N=logprob_N,
            proximal_logprob_N=logprob_N.detach(),
            behavior_logprob_N=behavior_N,
            advantage_N=advantage_N,
            num_tokens=len(logprob_N),
            response_N=torch.tensor([r for r in spoken for _ in logprob[r]]),
            num_responses=len(spoken),
            reference_logprob_N=torch.cat([reference[r] for r in spoken]),
            entropy_N=torch.cat(entropy) if entropy else None,
            chosen_N=(covariance_N > low) & (covariance_N < high),
        )
        policy_loss(inputs, config.loss).loss.backward()
        found = gradients(self.model)
        self.model.zero_grad()
        return found

    def _entropies(self, row: dict[str, Any]) -> Tensor:
        ids = torch.tensor([[*row["prompt_ids"], *row["response_ids"]]])
        logits = self.model(input_ids=ids, use_cache=False).logits[0, len(row["prompt_ids"]) - 1 : -1]
        logprobs = (logits / TEMPERATURE).log_softmax(-1)
        return -(logprobs.exp() * logprobs).sum(-1)


@pytest.fixture(scope="module")
def bench(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    from tests.learners.conftest import exact_norm

    with pytest.MonkeyPatch.context() as patch:
        exact_norm(patch)
        yield Bench(tiny_model, make_tiny_model(tmp_path_factory.mktemp("reference"), seed=5))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_is_that_of_plain_rows_however_the_batch_is_split_and_ordered(bench: Bench, name: str) -> None:
    batch = batch_of_all_kinds()
    expected = bench.plain_gradient(config_of(name), batch)
    rows = np.arange(batch.num_rows).reshape(-1, GROUP_SIZE)
    rng = np.random.default_rng(0)
    shuffled = in_order(batch, rng.permuted(rng.permutation(rows), axis=1))
    for budget, given in ((1, shuffled), (60, batch)):
        found = bench.gradient(config_of(name, tokens_per_micro_batch=budget), given)
        assert_equal_gradients(found, expected, atol=1e-9)


def test_every_configuration_has_a_gradient_of_its_own(bench: Bench) -> None:
    """Otherwise one of them would do nothing here. Names that mean the same configuration are listed."""
    batch = batch_of_all_kinds()
    by_norm: dict[str, set[str]] = {}
    for name in CONFIGS:
        norm = sum(float(gradient.square().sum()) for gradient in bench.gradient(config_of(name), batch).values())
        by_norm.setdefault(f"{norm:.8g}", set()).add(name)
    alike = [names for names in by_norm.values() if len(names) > 1]
    assert sorted(map(sorted, alike)) == [["advantage std", "token_mean", "truncated_is"], ["clip", "none"]]
