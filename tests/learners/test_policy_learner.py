from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import learners.policy_learner
from buffers.groups import masked_tokens, trained_tokens
from buffers.schema import concat_groups, with_trained_from
from learners.advantages import group_advantages
from learners.config import AdvantageConfig, LearnerConfig, LossConfig
from learners.forward import load_causal_lm
from learners.losses import LossInputs, policy_loss
from learners.packing import PackedTokens
from learners.policy_learner import PolicyLearner
from learners.weights import HEAD
from tests.learners.samples import (
    GradientRecorder,
    assert_equal_gradients,
    gradients,
    in_order,
    make_group,
    plain_logprobs,
    ragged_batch,
    ragged_groups,
)
from tests.tiny_model import make_tiny_model

GROUP_SIZE = 4
TEMPERATURE = 0.8
BUDGETS = (1, 40, 100, 10_000)  # one row a forward pass, some, all at once
PLAIN = AdvantageConfig(beta=0.0)
OF_OPTIMISER_STEPS = {"learner/loss", "learner/grad_norm", "learner/lr"}


def make_learner(model: str, *, group_size: int = GROUP_SIZE, **settings: Any) -> PolicyLearner:
    """Return a float32 learner unless settings say otherwise. Only tests use "float64"; the configuration of a run
    does not offer it."""
    dtype = settings.pop("dtype", "float32")
    config = LearnerConfig(**{"lr": 1e-3, "warmup_steps": 0, **settings}).model_copy(update={"dtype": dtype})
    return PolicyLearner(model, config, temperature=TEMPERATURE, group_size=group_size)


def gradient_of(model: str, batch: pa.RecordBatch, **settings: Any) -> dict[str, Tensor]:
    """Return the gradient of one optimiser step on `batch`, in float64 unless settings say otherwise."""
    learner = make_learner(model, **{"dtype": "float64", **settings})
    recorder = GradientRecorder(learner._model)
    learner._optimiser = recorder  # type: ignore[assignment]
    learner.step(batch)
    (gradient,) = recorder.gradients
    return gradient


def masters_of(learner: PolicyLearner) -> dict[str, Tensor]:
    state = learner._optimiser.state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith("master/")}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and expected
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def plain_gradient(model_path: str, batch: pa.RecordBatch, loss: LossConfig, advantage: AdvantageConfig) -> dict[str, Tensor]:
    """Return the same gradient from one unpadded row per response, with groups without signal, and without packing,
    skipping or splitting."""
    model = load_causal_lm(model_path, dtype="float64")
    plain_loss(model, batch, loss, advantage).backward()
    return gradients(model)


def plain_loss(model: Any, batch: pa.RecordBatch, loss: LossConfig, advantage: AdvantageConfig) -> Tensor:
    """Return the loss from the model's own forward pass, of the tokens that have a part in it."""
    kept = torch.from_numpy(trained_tokens(batch))
    columns = {name: batch.column(name).to_pylist() for name in ("prompt_ids", "response_ids", "behavior_logprobs", "reward", "bonus")}
    rewards = torch.tensor([float("nan") if r is None else r for r in columns["reward"]], dtype=torch.float64)
    bonuses = torch.tensor(columns["bonus"], dtype=torch.float64)
    advantages = group_advantages(rewards.view(-1, GROUP_SIZE), bonuses.view(-1, GROUP_SIZE), advantage).flatten()
    rows = [r for r, response in enumerate(columns["response_ids"]) if response]
    logprob_N = torch.cat(
        [plain_logprobs(model, columns["prompt_ids"][r], columns["response_ids"][r], temperature=TEMPERATURE) for r in rows]
    )
    response_N = torch.tensor([r for r in rows for _ in columns["response_ids"][r]])[kept]
    inputs = LossInputs(
        logprob_N=logprob_N[kept],
        proximal_logprob_N=logprob_N[kept].detach(),
        behavior_logprob_N=torch.tensor([b for r in rows for b in columns["behavior_logprobs"][r]], dtype=torch.float64)[kept],
        advantage_N=advantages[response_N],
        num_tokens=len(response_N),
        response_N=response_N,
        num_responses=len(response_N.unique()),
    )
    return policy_loss(inputs, loss).loss


def mixed_batch() -> pa.RecordBatch:
    """Return groups with and without signal, with one response that is not scored and with empty responses."""
    without_signal = make_group(7, [9, 10], [[11, 12], [13], [14, 15, 16], []], [1.0, 1.0, 1.0, 1.0], bonuses=[0.3, 0.1, 0.2, 0.0])
    unscored = make_group(8, [20], [[21, 22, 23], [24], [25, 26], [27]], [1.0, None, 0.0, 0.0])
    return concat_groups([*ragged_groups(3), without_signal, unscored])


# --- the gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", ["truncated_is", "none"])
@pytest.mark.parametrize("advantage", [PLAIN, AdvantageConfig(), AdvantageConfig(combine="reward", normalise="mean", beta=0.01)], ids=str)
def test_the_gradient_is_that_of_plain_rows_whatever_the_token_budget(
    tiny_model: str, exact_norms: None, correction: str, advantage: AdvantageConfig
) -> None:
    loss = LossConfig.model_validate({"correction": correction})
    expected = plain_gradient(tiny_model, mixed_batch(), loss, advantage)
    for budget in BUDGETS:
        found = gradient_of(tiny_model, mixed_batch(), loss=loss, advantage=advantage, tokens_per_micro_batch=budget)
        assert_equal_gradients(found, expected, atol=1e-9)


def test_float32_gradients_and_masters_do_not_depend_on_the_token_budget(tiny_model: str) -> None:
    """AdamW divides each gradient by its own size, so the rounding of a gradient near 0 shows. Masters are therefore
    compared after a small step."""
    expected = gradient_of(tiny_model, mixed_batch(), dtype="float32")
    masters = []
    for budget in BUDGETS:
        found = gradient_of(tiny_model, mixed_batch(), dtype="float32", tokens_per_micro_batch=budget)
        assert_equal_gradients(found, expected, atol=1e-6)
        learner = make_learner(tiny_model, lr=5e-6, tokens_per_micro_batch=budget)
        learner.step(mixed_batch())
        masters.append(masters_of(learner))
    untrained = masters_of(make_learner(tiny_model))
    assert max(float((masters[0][name] - untrained[name]).abs().max()) for name in untrained) > 4e-6
    for other in masters[1:]:
        for name, master in masters[0].items():
            torch.testing.assert_close(other[name], master, rtol=0.0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_does_not_depend_on_the_order_of_groups_or_responses(tiny_model: str, exact_norms: None, seed: int) -> None:
    expected = gradient_of(tiny_model, mixed_batch())
    rng = np.random.default_rng(seed)
    rows = np.arange(mixed_batch().num_rows).reshape(-1, GROUP_SIZE)
    shuffled = rng.permuted(rng.permutation(rows), axis=1)
    assert shuffled.tolist() != rows.tolist()
    found = gradient_of(tiny_model, in_order(mixed_batch(), shuffled))
    assert_equal_gradients(found, expected, atol=1e-9)


def test_a_slice_trains_as_its_rows_do(tiny_model: str, exact_norms: None) -> None:
    groups = ragged_groups(4)
    found = gradient_of(tiny_model, concat_groups(groups).slice(GROUP_SIZE, 2 * GROUP_SIZE))
    assert_equal_gradients(found, gradient_of(tiny_model, concat_groups(groups[1:3])), atol=1e-9)


def test_groups_without_signal_are_not_computed(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: set[int] = set()
    forward = learners.policy_learner.response_logprobs

    def watched(model: Any, packed: PackedTokens, **options: Any) -> tuple[Tensor, Tensor]:
        computed.update(packed.response_N.tolist())
        return forward(model, packed, **options)

    monkeypatch.setattr(learners.policy_learner, "response_logprobs", watched)
    make_learner(tiny_model, advantage=PLAIN).step(mixed_batch())
    signal = {r for r in range(12) if r % GROUP_SIZE != 3} | {16, 17, 18, 19}  # groups 0 to 2 without their empty ones, and 4
    assert computed == signal


def test_a_batch_without_any_signal_changes_nothing_but_the_version(tiny_model: str) -> None:
    learner = make_learner(tiny_model, advantage=PLAIN)
    before = masters_of(learner)
    report = learner.step(make_group(0, [5], [[6], [7], [8, 9], [10]], [1.0] * 4))
    assert_identical(masters_of(learner), before)
    assert (report.version, learner.version) == (1, 1)
    assert report.metrics["groups/without_signal"] == 1.0
    assert report.metrics["learner/optimiser_steps"] == 0.0
    assert not report.metrics.keys() & OF_OPTIMISER_STEPS
    assert not any(report.advantages)


def test_a_batch_of_empty_responses_is_survived(tiny_model: str) -> None:
    learner = make_learner(tiny_model)
    before = masters_of(learner)
    report = learner.step(make_group(0, [5], [[], [], [], []], [1.0, 0.0, 0.0, None]))
    assert_identical(masters_of(learner), before)
    assert report.version == 1


@pytest.mark.parametrize("group_size", [3, 6, 7])
def test_equal_rewards_that_are_no_binary_fraction_are_no_signal(tiny_model: str, group_size: int) -> None:
    learner = make_learner(tiny_model, advantage=PLAIN, group_size=group_size)
    before = masters_of(learner)
    report = learner.step(make_group(0, [5], [[6 + k] for k in range(group_size)], [0.7] * group_size))
    assert_identical(masters_of(learner), before)
    assert (report.metrics["groups/without_signal"], report.metrics["learner/optimiser_steps"]) == (1.0, 0.0)


def test_the_rate_decays_at_the_end_of_the_run_and_counts_versions(tiny_model: str) -> None:
    """A step without a gradient counts as well."""
    config = LearnerConfig(lr=1e-3, warmup_steps=0, decay_steps=2, dtype="float32", advantage=PLAIN)
    learner = PolicyLearner(tiny_model, config, temperature=TEMPERATURE, group_size=GROUP_SIZE, total_steps=4)
    signal = make_group(0, [5], [[6], [7], [8, 9], [10]], [1.0, 0.0, 0.0, 0.0])
    none = make_group(0, [5], [[6], [7], [8, 9], [10]], [1.0] * 4)
    rates = [learner.step(batch).metrics.get("learner/lr", 0.0) for batch in (signal, none, signal, signal)]
    assert rates == pytest.approx([1e-3, 0.0, 2e-3 / 3, 1e-3 / 3])


def test_what_a_step_without_an_optimiser_step_cannot_say_is_left_out_after_one_that_could(tiny_model: str) -> None:
    learner = make_learner(tiny_model, advantage=PLAIN)
    without = make_group(0, [5], [[6], [7], [8, 9], [10]], [1.0] * 4)
    assert learner.step(ragged_batch(2)).metrics.keys() >= OF_OPTIMISER_STEPS
    assert not learner.step(without).metrics.keys() & OF_OPTIMISER_STEPS


def test_loss_and_gradient_norm_are_means_over_the_optimiser_steps_there_were(tiny_model: str) -> None:
    """Three of four mini-batches are equal; the last has no signal."""
    same = [
        make_group(g, [5], [[6, 7], [8], [9, 10], [11]], [1.0, 0.0, 0.0, 0.0], behavior=[[-4.0] * n for n in (2, 1, 2, 1)])
        for g in range(3)
    ]
    without = make_group(3, [5], [[6], [7], [8, 9], [10]], [1.0] * 4)
    settings: dict[str, Any] = {"advantage": PLAIN, "lr": 1e-12}
    alone = make_learner(tiny_model, **settings).step(same[0]).metrics
    together = make_learner(tiny_model, mini_batches=4, **settings).step(concat_groups([*same, without])).metrics
    for name in ("learner/loss", "learner/grad_norm"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5) and alone[name] != 0
    assert together["learner/optimiser_steps"] == 3


# --- a step ----------------------------------------------------------------------------------------------------------


def test_a_reinforced_response_becomes_likelier_and_the_others_less_likely(tiny_model: str) -> None:
    prompt, responses = [5, 6, 7], [[8, 9, 2], [10, 11], [12, 13, 14], [15]]
    learner = make_learner(tiny_model)

    def logprobs() -> Tensor:
        with torch.no_grad():
            return torch.stack([plain_logprobs(learner._model, prompt, ids, temperature=TEMPERATURE).sum() for ids in responses])

    before = logprobs()
    for _ in range(5):
        with torch.no_grad():
            behavior = [plain_logprobs(learner._model, prompt, ids, temperature=TEMPERATURE).tolist() for ids in responses]
        report = learner.step(make_group(0, prompt, responses, [1.0, 0.0, 0.0, 0.0], behavior=behavior))
        assert report.metrics["learner/clipped"] == 0.0  # on policy nothing is clipped
        assert report.metrics["mismatch/max"] < 1e-4
    change = logprobs() - before
    assert change[0] > 0.5 and (change[1:] < 0).all()


def test_the_report_holds_advantages_in_row_order_and_the_metrics(tiny_model: str) -> None:
    learner = make_learner(tiny_model, advantage=AdvantageConfig(normalise="mean", beta=0.0))
    report = learner.step(make_group(0, [5], [[6], [7, 8], [9], [10]], [1.0, 0.0, None, 0.5]))
    assert report.advantages == (0.5, -0.5, 0.0, 0.0)
    assert report.metrics["reward/mean"] == 0.5
    assert report.metrics["response/tokens_mean"] == 1.25
    assert report.metrics["learner/lr"] == 1e-3
    assert report.metrics["learner/grad_norm"] > 0


def test_lag_is_counted_from_the_version_that_is_trained(tiny_model: str) -> None:
    learner = make_learner(tiny_model)
    learner.step(ragged_batch(1))
    learner.step(ragged_batch(1))
    report = learner.step(make_group(0, [5], [[6, 7], [8], [9], [10]], [1.0, 0.0, 0.0, 0.0], versions=[[0, 2], [2], [1], [2]]))
    assert report.metrics["policy/lag_max"] == 2.0
    assert report.metrics["policy/lag_mean"] == pytest.approx(3 / 5)


def with_old_tokens(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with tokens of versions 0 to 3, of which those before version 2 are too old: in some responses
    none, in some the first ones, in some all, in some those in the middle."""
    rng = np.random.default_rng(0)
    versions = [rng.integers(0, 4, len(ids)) for ids in batch.column("response_ids").to_pylist()]
    versions = [np.sort(row) if r % 4 else row for r, row in enumerate(versions)]
    starts = [[0, *(np.flatnonzero(np.diff(row)) + 1).tolist()] if len(row) else [] for row in versions]
    for name, values in (
        ("version_starts", starts),
        ("version_values", [[int(row[s]) for s in at] for row, at in zip(versions, starts, strict=True)]),
    ):
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, batch.schema.field(place), pa.array(values, batch.schema.field(place).type))
    return with_trained_from(batch, 2)


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"aggregation": "sequence_mean"},
        {"surrogate": "gspo", "aggregation": "sequence_mean"},
        {"correction": "sequence_masked_is", "sequence_ratio": "geometric", "mask_band": (0.5, 2.0)},
    ],
    ids=str,
)
def test_tokens_that_are_too_old_have_no_part_in_the_loss_nor_in_its_denominators(
    tiny_model: str, exact_norms: None, loss: dict[str, Any]
) -> None:
    """Their responses keep their rewards in the baselines of their groups."""
    batch = with_old_tokens(mixed_batch())
    assert masked_tokens(batch).sum() > 0 and (masked_tokens(batch) < masked_tokens(with_trained_from(batch, 9))).all()
    config = LossConfig.model_validate(loss)
    expected = plain_gradient(tiny_model, batch, config, PLAIN)
    for budget in BUDGETS:
        found = gradient_of(tiny_model, batch, loss=config, advantage=PLAIN, tokens_per_micro_batch=budget)
        assert_equal_gradients(found, expected, atol=1e-9)
    learner, whole = make_learner(tiny_model, loss=config), make_learner(tiny_model, loss=config)
    report, of_all = learner.step(batch), whole.step(mixed_batch())
    assert report.advantages == of_all.advantages
    assert report.metrics["late/masked"] == masked_tokens(batch).sum() / len(trained_tokens(batch))
    assert (of_all.metrics["late/masked"], "late/tokens_mean" in of_all.metrics) == (0.0, False)


def test_what_is_too_old_is_no_lag_and_is_not_computed_where_all_of_a_response_is(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    forward = learners.policy_learner.response_logprobs

    def watched(model: Any, packed: PackedTokens, **options: Any) -> tuple[Tensor, Tensor]:
        computed.extend(packed.response_N.tolist())
        return forward(model, packed, **options)

    monkeypatch.setattr(learners.policy_learner, "response_logprobs", watched)
    learner = make_learner(tiny_model)
    for _ in range(2):
        learner.step(ragged_batch(1))
    computed.clear()
    versions = [[0, 1], [0], [1], [2]]
    report = learner.step(with_trained_from(make_group(0, [5], [[6, 7], [8], [9], [10]], [1.0, 0.0, 0.0, 0.0], versions=versions), 1))
    assert sorted(computed) == [0, 2, 3]
    assert (report.metrics["policy/lag_max"], report.metrics["policy/lag_mean"]) == (1.0, pytest.approx(2 / 3))
    assert (report.metrics["late/masked"], report.metrics["late/tokens_mean"]) == (pytest.approx(0.4), 1.5)


def test_mini_batches_with_old_tokens_have_proximal_log_probs_of_the_same_passes(tiny_model: str) -> None:
    learner = make_learner(
        tiny_model, dtype="bfloat16", mini_batches=3, lr=1e-12, loss={"surrogate": "gspo", "aggregation": "sequence_mean"}
    )
    report = learner.step(with_old_tokens(ragged_batch(6)))
    assert report.metrics["learner/clipped"] == 0.0 and report.metrics["late/masked"] > 0.2


def test_a_penalty_in_the_reward_is_that_of_the_whole_response(tiny_model: str) -> None:
    settings: dict[str, Any] = {"loss": {"kl": {"where": "reward", "coefficient": 0.5}}, "advantage": {"normalise": "mean"}}
    batch = ragged_batch(3)
    assert (
        make_learner(tiny_model, **settings).step(with_old_tokens(batch)).advantages
        == make_learner(tiny_model, **settings).step(batch).advantages
    )


@pytest.mark.parametrize(("mini_batches", "num_groups", "steps"), [(1, 4, 1), (2, 4, 2), (3, 4, 3), (8, 4, 4)])
def test_mini_batches_are_optimiser_steps_of_one_version(tiny_model: str, mini_batches: int, num_groups: int, steps: int) -> None:
    learner = make_learner(tiny_model, mini_batches=mini_batches)
    report = learner.step(ragged_batch(num_groups))
    assert report.metrics["learner/optimiser_steps"] == steps
    assert report.version == 1
    assert learner.step(ragged_batch(num_groups)).metrics["learner/optimiser_steps"] == 2 * steps


def test_mini_batches_are_trained_in_turn_each_with_its_own_denominator(tiny_model: str, exact_norms: None) -> None:
    """Without an update between them, two mini-batches have the gradients of their two halves."""
    groups = ragged_groups(4)
    learner = make_learner(tiny_model, dtype="float64", mini_batches=2)
    recorder = GradientRecorder(learner._model)
    learner._optimiser = recorder  # type: ignore[assignment]
    learner.step(concat_groups(groups))
    assert len(recorder.gradients) == 2
    for found, half in zip(recorder.gradients, (groups[:2], groups[2:]), strict=True):
        expected = gradient_of(tiny_model, concat_groups(half))
        assert_equal_gradients(found, expected, atol=1e-6)  # proximal log-probs are kept in float32


def test_the_proximal_policy_is_the_one_the_batch_was_begun_with(tiny_model: str) -> None:
    """Behavior log-probs are those of the first weights, so there is no mismatch, however far the first mini-batch
    moves."""
    model = load_causal_lm(tiny_model, dtype="float32")
    groups = []
    for group_id, prompt in enumerate(([5, 6], [7, 8])):
        responses = [[9, 10], [11], [12, 13, 14], [15]]
        with torch.no_grad():
            behavior = [plain_logprobs(model, prompt, ids, temperature=TEMPERATURE).tolist() for ids in responses]
        groups.append(make_group(group_id, prompt, responses, [1.0, 0.0, 0.0, 0.0], behavior=behavior))
    report = make_learner(tiny_model, mini_batches=2, lr=0.05).step(concat_groups(groups))
    assert report.metrics["mismatch/max"] < 1e-4
    assert report.metrics["learner/clipped"] > 0.2  # the second mini-batch has moved away from it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_proximal_log_probs_are_those_of_the_optimiser_steps_to_the_bit(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """So GSPO, whose range is narrower than rounding, clips nothing if nothing has moved. Only what is trained on is
    computed."""
    computed: dict[bool, list[list[int]]] = {True: [], False: []}
    forward = learners.policy_learner.response_logprobs

    def watched(model: Any, packed: PackedTokens, **options: Any) -> tuple[Tensor, Tensor]:
        computed[torch.is_grad_enabled()].append(packed.response_N.unique().tolist())
        return forward(model, packed, **options)

    monkeypatch.setattr(learners.policy_learner, "response_logprobs", watched)
    without = make_group(16, [9, 10], [[11, 12], [13], [14, 15, 16], []], [1.0] * 4)
    loss = {"surrogate": "gspo", "aggregation": "sequence_mean"}
    learner = make_learner(tiny_model, dtype=dtype, advantage=PLAIN, mini_batches=4, lr=1e-12, tokens_per_micro_batch=100, loss=loss)
    report = learner.step(concat_groups([*ragged_groups(12, seed=1), without]))
    assert report.metrics["learner/clipped"] == 0.0
    assert computed[True] == computed[False] and not {r for part in computed[False] for r in part} & {48, 49, 50, 51}


def test_a_gradient_that_is_not_finite_leaves_weights_and_version(tiny_model: str) -> None:
    settings: dict[str, Any] = {"advantage": AdvantageConfig(normalise="mean", beta=0.0)}
    learner, twin = make_learner(tiny_model, **settings), make_learner(tiny_model, **settings)
    for each in (learner, twin):
        each.step(ragged_batch(2, seed=1))
    with pytest.raises(FloatingPointError, match="optimiser step 2"):
        learner.step(make_group(0, [5], [[6], [7], [8], [9]], [1e200, 0.0, 0.0, 0.0]))  # infinite in float32
    assert learner.version == 1
    assert_identical(masters_of(learner), masters_of(twin))
    for each in (learner, twin):
        each.step(ragged_batch(2, seed=2))
    assert_identical(masters_of(learner), masters_of(twin))


# --- its state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_restored_into_a_fresh_learner_the_next_steps_are_bit_for_bit_equal(tiny_model: str, tmp_path: Path, dtype: str) -> None:
    settings: dict[str, Any] = {"dtype": dtype, "mini_batches": 2, "warmup_steps": 5}
    straight = make_learner(tiny_model, **settings)
    for seed in range(2):
        straight.step(ragged_batch(2, seed=seed))
    straight.save(tmp_path)
    torch.manual_seed(123)  # must not matter: the state of the generator is part of the checkpoint
    restored = make_learner(tiny_model, **settings)
    restored.load(tmp_path)
    assert restored.version == 2
    assert dict(restored.snapshot().fingerprint) == dict(straight.snapshot().fingerprint)
    for seed in range(2, 5):
        found, expected = (each.step(ragged_batch(2, seed=seed)) for each in (restored, straight))
        assert (found.version, found.advantages) == (expected.version, expected.advantages)
        timed = ("learner/tokens_per_s", "time/learn_s")
        assert [(k, v) for k, v in found.metrics.items() if k not in timed] == [
            (k, v) for k, v in expected.metrics.items() if k not in timed
        ]
        assert_identical(masters_of(restored), masters_of(straight))
        assert np.array_equal(restored.snapshot().buffer, straight.snapshot().buffer)


def test_the_random_state_is_restored(tiny_model: str, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    torch.manual_seed(7)
    learner.save(tmp_path)
    expected = torch.rand(3)
    torch.manual_seed(8)
    learner.load(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_policy_is_written_after_the_last_collective(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else other ranks would wait, within `collective_timeout_s`, while the first one writes all of the policy."""
    present: list[bool] = []
    monkeypatch.setattr(
        learners.policy_learner, "save_model", lambda *args, **options: present.append((tmp_path / "optimiser.safetensors").exists())
    )
    make_learner(tiny_model).save(tmp_path)
    assert present == [True]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_saved_policy_is_a_hugging_face_directory_with_the_published_weights(tiny_model: str, tmp_path: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner = make_learner(tiny_model, dtype=dtype)
    learner.step(ragged_batch(2))
    learner.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.dtype == getattr(torch, dtype)
    published = dict(learner.snapshot().tensors())
    assert_identical({name: p.detach() for name, p in model.named_parameters()}, published)
    before = load_file(f"{tiny_model}/model.safetensors")
    assert not torch.equal(published["model.embed_tokens.weight"].float(), before["model.embed_tokens.weight"].to(model.dtype).float())
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").decode([2]) == "</s>"


def test_a_snapshot_of_a_tied_model_fingerprints_the_head_it_does_not_send(tiny_model: str) -> None:
    snapshot = make_learner(tiny_model).snapshot()
    assert HEAD in snapshot.fingerprint
    assert {spec.name for spec in snapshot.index} == set(snapshot.fingerprint) - {HEAD}
    assert snapshot.version == 0


@pytest.mark.parametrize("reuse", [False, True])
def test_every_snapshot_holds_the_weights_of_its_version(tiny_model: str, reuse: bool) -> None:
    config = LearnerConfig(dtype="bfloat16", lr=1e-3, warmup_steps=0)
    learner = PolicyLearner(tiny_model, config, temperature=1.0, group_size=GROUP_SIZE, reuse_snapshot_buffer=reuse)
    first = learner.snapshot()
    fingerprints = []
    for version in range(3):
        snapshot = learner.snapshot()
        assert snapshot.version == version
        assert_identical(dict(snapshot.tensors()), {name: p.detach() for name, p in learner._model.named_parameters()})
        fingerprints.append(dict(snapshot.fingerprint))
        learner.step(ragged_batch(2, seed=version))
    assert fingerprints[0] != fingerprints[1] != fingerprints[2]
    assert (snapshot.buffer is first.buffer) is reuse  # unless told otherwise a snapshot is not overwritten by the next


def test_a_snapshot_of_an_untied_model_sends_its_head(tmp_path: Path) -> None:
    learner = make_learner(make_tiny_model(tmp_path, tied=False))
    snapshot = learner.snapshot()
    assert {spec.name for spec in snapshot.index} == set(snapshot.fingerprint) > {HEAD, "model.embed_tokens.weight"}
    before = dict(snapshot.tensors())[HEAD].clone()
    learner.step(ragged_batch(2))
    assert not torch.equal(dict(learner.snapshot().tensors())[HEAD], before)


# --- what is no batch ------------------------------------------------------------------------------------------------


def test_rows_that_do_not_hold_together_are_refused_before_anything_is_computed(tiny_model: str) -> None:
    learner, batch = make_learner(tiny_model), ragged_batch(2)
    at = batch.schema.get_field_index("behavior_logprobs")
    said = batch.column(at).to_pylist()
    short = batch.set_column(at, batch.schema.field(at), pa.array([said[0][:-1], *said[1:]], batch.schema.field(at).type))
    with pytest.raises(ValueError, match="response_ids and behavior_logprobs differ in length"):
        learner.step(short)
    with pytest.raises(ValueError, match="the batch has no groups"):
        learner.step(batch.slice(0, 0))
    assert learner.version == 0
