"""What the learner passes to its losses: reference, entropy, shaped rewards, denominators. The default numbers have
not changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from buffers.schema import concat_groups, with_features, with_trained_from
from learners.config import LearnerConfig, LossConfig
from learners.forward import load_causal_lm
from learners.losses import LossInputs, LossOutput, policy_loss
from learners.policy_learner import PolicyLearner
from tests.learners.samples import make_group, plain_logprobs, ragged_batch, ragged_groups

GROUP_SIZE = 4
TEMPERATURE = 0.8


def make_learner(model: str, **settings: Any) -> PolicyLearner:
    config = LearnerConfig.model_validate({"dtype": "float32", "lr": 1e-3, "warmup_steps": 0, **settings})
    return PolicyLearner(model, config, temperature=TEMPERATURE, group_size=GROUP_SIZE)


@pytest.mark.parametrize(
    ("settings", "loss", "gradient_norm", "masters"),
    [
        ({}, -0.31755250692367554, 4.447803974151611, 1029.553238033845),
        ({"mini_batches": 2}, -0.6522809863090515 / 2, 5.9266579151153564, 1029.4749032712182),
        ({"loss": {"correction": "none"}}, -0.07442894577980042, 3.0166945457458496, 1029.3926101608722),
    ],
    ids=["default", "two mini-batches", "without correction"],
)
def test_by_default_a_step_is_what_it_was_before_there_were_strategies(
    tiny_model: str, settings: dict[str, Any], loss: float, gradient_norm: float, masters: float
) -> None:
    """The numbers were recorded from the earlier code, whose bonus was added to every advantage. The sum of all squared
    masters after the step stands for the parameters."""
    learner = make_learner(tiny_model, **settings, advantage={"combine": "advantage", "beta": 0.5})
    metrics = learner.step(ragged_batch(3)).metrics
    assert metrics["learner/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["learner/grad_norm"] == pytest.approx(gradient_norm, rel=1e-5)
    state = learner._optimiser.state_dict()
    found = sum(value.double().square().sum().item() for name, value in state.items() if name.startswith("master/"))
    assert found == pytest.approx(masters, rel=1e-7)


# --- the reference ---------------------------------------------------------------------------------------------------


def test_without_a_divergence_no_reference_is_loaded(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def watched(path: str, **options: Any) -> Any:
        loaded.append(path)
        return load_causal_lm(path, **options)

    monkeypatch.setattr("learners.ranks.load_causal_lm", watched)
    assert make_learner(tiny_model)._reference is None and len(loaded) == 1
    assert make_learner(tiny_model, loss={"kl": {"where": "loss", "coefficient": 0.1}})._reference is not None and len(loaded) == 3


@pytest.mark.parametrize("where", ["loss", "reward"])
def test_the_reference_stays_the_initial_policy_and_the_divergence_from_it_is_logged(tiny_model: str, tmp_path: Path, where: str) -> None:
    settings = {"advantage": {"normalise": "mean"}, "loss": {"kl": {"where": where, "coefficient": 0.1}}}
    learner = make_learner(tiny_model, **settings)
    first, second = (learner.step(ragged_batch(3, seed=seed)).metrics["policy/kl_reference"] for seed in range(2))
    assert abs(first) < 1e-6 < 1e-4 < second
    initial = load_causal_lm(tiny_model, dtype="float32").state_dict()
    assert all(torch.equal(value, initial[name]) for name, value in learner._reference.state_dict().items())
    learner.save(tmp_path)
    restored = make_learner(tiny_model, **settings)
    restored.load(tmp_path)
    assert restored.step(ragged_batch(3, seed=2)).metrics["learner/loss"] == learner.step(ragged_batch(3, seed=2)).metrics["learner/loss"]


def test_a_divergence_in_the_loss_holds_the_policy_back(tiny_model: str) -> None:
    """This also holds if no group has signal."""

    def divergence_after(steps: int, **settings: Any) -> float:
        learner = make_learner(tiny_model, lr=1e-2, loss={"kl": {"where": "loss", "estimator": "k2", **settings}})
        return [learner.step(ragged_batch(2, seed=0)).metrics["policy/kl_reference"] for _ in range(steps)][-1]

    assert divergence_after(4, coefficient=5.0) < 0.5 * divergence_after(4, coefficient=1e-6)


@pytest.mark.parametrize("loss", [{"kl": {"where": "loss", "coefficient": 0.1}}, {"entropy_coefficient": 0.1}], ids=str)
def test_groups_without_signal_are_computed_where_they_have_a_gradient(tiny_model: str, loss: dict[str, Any]) -> None:
    batch = make_group(0, [5], [[6, 7], [8], [9, 10], [11]], [1.0] * 4)
    plain, learner = make_learner(tiny_model), make_learner(tiny_model, loss=loss)
    assert "learner/grad_norm" not in plain.step(batch).metrics
    learner.step(ragged_batch(2))  # so that it differs from its reference
    assert learner.step(batch).metrics["learner/grad_norm"] > 0.0


def test_the_divergence_in_the_reward_is_that_of_the_sampler_by_response(tiny_model: str) -> None:
    """With estimator k1, coefficient 0.5 and centering only, the advantages can be worked by hand."""
    learner = make_learner(
        tiny_model,
        advantage={"normalise": "mean", "beta": 0.0},
        loss={"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.5}},
    )
    prompt, responses, behavior = [5, 6], [[7, 8], [9], [10, 11, 12], []], [[-1.0, -2.0], [-0.5], [-3.0, -1.0, -2.0], []]
    with torch.no_grad():
        reference = [plain_logprobs(learner._model, prompt, ids, temperature=TEMPERATURE).sum().item() for ids in responses[:3]] + [0.0]
    rewards = [1.0, 0.0, 1.0, 0.0]
    penalised = torch.tensor([r - 0.5 * (sum(b) - q) for r, b, q in zip(rewards, behavior, reference, strict=True)], dtype=torch.float64)
    report = learner.step(make_group(0, prompt, responses, rewards, behavior=behavior))
    assert report.advantages == pytest.approx((penalised - penalised.mean()).tolist(), abs=1e-5)
    assert report.metrics["reward/mean"] == 0.5  # the task's own


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_bonus_alone_is_said_to_give_signs_only_where_there_would_be_none_without_it(tiny_model: str, beta: float) -> None:
    """Here the whole batch, or a divergence in the reward, gives advantages to equal rewards too."""
    batch = concat_groups([make_group(g, [5], [[6, 7], [8], [9, 10], [11]], [float(g)] * 4, bonuses=[0.3, 0.1, 0.2, 0.0]) for g in (0, 1)])
    for settings in (
        {"advantage": {"normalise": "batch"}},
        {"advantage": {"normalise": "mean"}, "loss": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.5}}},
    ):
        settings["advantage"] |= {"beta": beta}
        metrics = make_learner(tiny_model, **settings).step(batch).metrics
        assert metrics["groups/without_signal"] == 0.0
        assert metrics.get("advantage/bonus_alone") == (0.0 if beta else None)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_the_unlikelier_of_two_right_answers_is_reinforced_more(tiny_model: str) -> None:
    learner = make_learner(tiny_model, advantage={"normalise": "mean", "beta": 0.0, "unlikeliness": 0.4})
    behavior = [[-0.5, -0.5], [-1.5], [-4.0], [-2.0, -3.0]]
    report = learner.step(make_group(0, [5], [[6, 7], [8], [9], [10, 11]], [1.0, 1.0, 0.0, 1.0], behavior=behavior))
    kept = [1 - 0.4 * 3 / 4, 1 - 0.4 * 2 / 4, 0.0, 1.0]  # sums −1, −1.5, −4 and −5: ranks 3, 2, 1, 0
    assert report.advantages == pytest.approx([value - sum(kept) / 4 for value in kept])


def test_an_entropy_bonus_keeps_the_entropy_up(tiny_model: str) -> None:
    def entropy_after(coefficient: float) -> float:
        learner = make_learner(tiny_model, loss={"entropy_coefficient": coefficient})
        return [learner.step(ragged_batch(2, seed=0)).metrics["policy/entropy"] for _ in range(4)][-1]

    assert entropy_after(1.0) > entropy_after(0.0) + 0.02


def test_denominators_count_what_is_not_computed(tiny_model: str) -> None:
    """A second group without signal doubles only the denominators, so the loss is halved, by tokens and by
    responses."""
    with_signal = make_group(0, [5], [[6, 7], [8], [9], []], [1.0, 0.0, 0.0, 0.0])
    beside = make_group(1, [5], [[10], [11, 12], [13], []], [1.0] * 4)
    for aggregation in ({"aggregation": "token_mean"}, {"aggregation": "sequence_mean"}, {"aggregation": "constant", "constant_tokens": 7}):
        losses = [
            make_learner(tiny_model, advantage={"beta": 0.0}, loss=aggregation).step(batch).metrics["learner/loss"]
            for batch in (with_signal, concat_groups([with_signal, beside]))
        ]
        assert losses[1] == pytest.approx(losses[0] / 2, rel=1e-5) and abs(losses[0]) > 1e-3


def test_the_floor_of_mismatch_is_part_of_the_state(tiny_model: str, tmp_path: Path) -> None:
    learner, restored = make_learner(tiny_model), make_learner(tiny_model)
    learner.step(on_policy_batch(learner))
    assert learner._mismatch.floor.level < 1e-4
    learner.save(tmp_path)
    restored.load(tmp_path)
    assert restored._mismatch.floor == learner._mismatch.floor


def on_policy_batch(learner: PolicyLearner) -> pa.RecordBatch:
    """Return a batch whose recorded log-probs are the learner's own, with enough tokens to be measured."""
    groups = []
    for group in ragged_groups(8, seed=3):
        rows = group.to_pylist()
        with torch.no_grad():
            said = [
                plain_logprobs(learner._model, row["prompt_ids"], row["response_ids"], temperature=TEMPERATURE).tolist()
                if row["response_ids"]
                else []
                for row in rows
            ]
        responses = [row["response_ids"] for row in rows]
        groups.append(make_group(rows[0]["group_id"], rows[0]["prompt_ids"], responses, [1.0, 0.0, 0.0, 0.0], behavior=said))
    return concat_groups(groups)


# --- features, answers, and restrained tokens ------------------------------------------------------------------------


def with_column(batch: pa.RecordBatch, name: str, values: list[Any]) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.set_column(at, batch.schema.field(at), pa.array(values, batch.schema.field(at).type))


RESPONSES = [[6, 7], [8], [9], [10, 11]]


def test_the_reward_times_its_diversity_is_what_counts_and_is_logged_apart(tiny_model: str) -> None:
    """Three of four features are equal, so their distinctness is ⅓, and that of the other 1."""
    batch = make_group(0, [5], RESPONSES, [1.0, 1.0, 0.0, 1.0])
    batch = with_features(batch, np.array([[3, 1], [3, 1], [3, 1], [3, 9]], np.float32), [True] * 4)
    learner = make_learner(tiny_model, advantage={"normalise": "mean", "beta": 0.0, "diversity_product": 1.0})
    report = learner.step(batch)
    kept = [1 / 3, 1 / 3, 0.0, 1.0]
    assert report.advantages == pytest.approx([value - sum(kept) / 4 for value in kept])
    assert report.metrics["reward/mean"] == 0.75, "the task's own"
    assert report.metrics["reward/diversity_product"] == pytest.approx(sum(kept) / 4)
    plain = make_learner(tiny_model, advantage={"beta": 0.0}).step(batch).metrics
    assert "reward/diversity_product" not in plain


def test_uniqueness_is_told_the_answers_and_features_of_the_batch(tiny_model: str) -> None:
    batch = with_column(make_group(0, [5], RESPONSES, [1.0, 1.0, 0.0, 0.0]), "final_answer", ["7", "7", "1", None])
    batch = with_features(batch, np.array([[3, 1], [9, 9], [3, 1], [0, 0]], np.float32), [True, True, True, False])
    uniqueness = {"estimator": "uniqueness", "normalise": "mean", "beta": 0.0}
    by_answers = make_learner(tiny_model, advantage=uniqueness).step(batch).advantages
    assert by_answers == pytest.approx([0.25, 0.25, -0.5, -0.5])
    by_features = make_learner(tiny_model, advantage={**uniqueness, "cluster_by": "features"}).step(batch).advantages
    assert by_features == pytest.approx([0.25, 0.5, -0.25, -0.5])


@pytest.mark.parametrize("term", ["kl_cov", "clip_cov"])
@pytest.mark.parametrize("mini_batches", [2, 3])
def test_the_same_tokens_are_restrained_however_a_batch_is_split(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, term: str, mini_batches: int
) -> None:
    """They are chosen among all tokens of an optimizer step."""
    batch = concat_groups(ragged_groups(6, seed=1))
    settings = {"covariance": {"term": term, "share": 0.1, **({"band": (0.0, 9.0)} if term == "clip_cov" else {})}}

    def chosen(budget: int) -> tuple[list[tuple[int, float]], Mapping[str, float]]:
        """Return the step of each token that is restrained, and the log-prob that was recorded of it."""
        found: list[tuple[int, float]] = []
        learner = make_learner(tiny_model, mini_batches=mini_batches, loss=settings, tokens_per_micro_batch=budget)

        def watched(inputs: LossInputs, config: LossConfig) -> LossOutput:
            assert inputs.chosen_N is not None
            found.extend((learner._optimiser.num_steps, logprob) for logprob in inputs.behavior_logprob_N[inputs.chosen_N].tolist())
            return policy_loss(inputs, config)

        monkeypatch.setattr("learners.policy_learner.policy_loss", watched)
        metrics = learner.step(batch).metrics
        return sorted(found), metrics

    (together, metrics), (apart, _) = chosen(4096), chosen(1)
    assert together == apart and len({step for step, _ in together}) == mini_batches
    assert 0 < metrics["learner/restrained"] <= 0.25 and abs(metrics["learner/covariance"]) < 1.0


def test_kl_cov_changes_a_step_from_its_second_mini_batch_on(tiny_model: str) -> None:
    def masters(**covariance: Any) -> float:
        learner = make_learner(tiny_model, lr=1e-2, mini_batches=2, loss={"covariance": covariance})
        learner.step(ragged_batch(4))
        return sum(value.double().sum().item() for name, value in learner._optimiser.state_dict().items() if name.startswith("master/"))

    assert masters(term="kl_cov", share=1.0, coefficient=1e-12) == pytest.approx(masters(), rel=1e-6)
    assert masters(term="kl_cov", share=1.0, coefficient=5.0) != pytest.approx(masters(), rel=1e-6)


def test_tokens_that_are_too_old_are_not_restrained_nor_in_the_means(tiny_model: str) -> None:
    versions = [[0, 1], [1], [1], [0, 0]]
    batch = make_group(0, [5], RESPONSES, [1.0, 0.0, 0.0, 0.0], behavior=[[-99.0, -1.0], [-2.0], [-3.0], [-99.0, -99.0]], versions=versions)
    learner = make_learner(tiny_model, advantage={"normalise": "mean", "beta": 0.0}, loss={"covariance": {"term": "clip_cov"}})
    learner.version = 1
    metrics = learner.step(with_trained_from(batch, 1)).metrics
    advantages, logprobs = torch.tensor([0.75, -0.25, -0.25]), torch.tensor([-1.0, -2.0, -3.0])
    expected = ((advantages - advantages.mean()) * (logprobs - logprobs.mean())).mean().item()
    assert metrics["learner/covariance"] == pytest.approx(expected)
