"""A learner of several real processes, compared with a learner of one."""

from __future__ import annotations

import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from buffers.schema import concat_groups
from learners.fsdp import Rendezvous, ShardedRanks, interface_of, local_address_towards
from learners.ranks import OneRank, RankLost, is_rank_lost
from tests.learners import rank_work
from tests.learners.rank_processes import RankFailed, on_ranks, rank_processes
from tests.learners.samples import assert_equal_gradients, make_group, ragged_batch, ragged_groups
from tests.learners.test_loss_invariance import CONFIGS, batch_of_all_kinds
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.whole

TIMED = ("learner/tokens_per_s", "time/learn_s")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model that divergences are measured from. Measured from the policy itself they would be 0."""
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


def assert_all_gradients_equal(
    size: int, model: str, reference: str, batch: pa.RecordBatch, all_settings: list[dict[str, Any]], **made: Any
) -> None:
    """Check gradients to 1e-9 in float64, on every rank, for each of the settings. Only the learner of several ranks
    is made with `made`."""
    expected = rank_work.gradients(OneRank(), model, reference, batch, all_settings)
    for found in on_ranks(size, rank_work.gradients, model, reference, batch, all_settings, made):
        for of_rank, of_one in zip(found, expected, strict=True):
            for gradient, plain in zip(of_rank, of_one, strict=True):
                assert_equal_gradients(gradient, plain, atol=1e-9)


# --- the gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, pytest.param(2, marks=pytest.mark.long)])
def test_the_gradient_is_that_of_one_process_for_every_loss(tiny_model: str, other_model: str, exact_norms: None, size: int) -> None:
    """Not all of the five groups have signal in every loss, so ranks have unequal parts."""
    assert len(CONFIGS) > 20
    batch = concat_groups([*ragged_groups(1, seed=5, first_id=20), batch_of_all_kinds()])
    assert_all_gradients_equal(size, tiny_model, other_model, batch, list(CONFIGS.values()))


def test_micro_batches_that_ranks_have_more_or_less_of_change_nothing(tiny_model: str, other_model: str, exact_norms: None) -> None:
    settings = [*({"tokens_per_micro_batch": budget} for budget in (1, 60)), {"logits_mib": 0.002}]
    penalised = {
        "tokens_per_micro_batch": 40,
        "mini_batches": 2,
        "advantage": {"normalise": "mean"},
        "loss": {"kl": {"where": "reward", "estimator": "k1", "coefficient": 0.5}},
    }
    assert_all_gradients_equal(2, tiny_model, other_model, batch_of_all_kinds(), [*settings, {"mini_batches": 2}, penalised])


def test_ranks_restrain_the_same_tokens(tiny_model: str, other_model: str, exact_norms: None) -> None:
    """A share of a band is drawn, and the draw must not depend on the rank."""
    terms: list[dict[str, Any]] = [{"term": "clip_cov", "share": 0.1, "band": (0.1, 5.0)}, {"term": "kl_cov", "share": 0.1}]
    settings = [{"mini_batches": 2, "loss": {"covariance": term}} for term in terms]
    assert_all_gradients_equal(2, tiny_model, other_model, batch_of_all_kinds(), settings)


def test_a_rank_without_any_group_takes_part(tiny_model: str, other_model: str, exact_norms: None) -> None:
    settings = [{}, {"tokens_per_micro_batch": 1}, CONFIGS["all at once"]]
    assert_all_gradients_equal(3, tiny_model, other_model, ragged_batch(1), settings)


def test_activations_computed_again_have_the_same_gradient_on_ranks(tiny_model: str, other_model: str, exact_norms: None) -> None:
    settings = [{"tokens_per_micro_batch": 60}, CONFIGS["all at once"]]
    batch = batch_of_all_kinds()
    assert_all_gradients_equal(2, tiny_model, other_model, batch, settings, activation_checkpointing=True)


def test_a_head_that_is_not_tied_is_divided_too(tmp_path: Path, other_model: str, exact_norms: None) -> None:
    assert_all_gradients_equal(2, make_tiny_model(tmp_path, tied=False), other_model, ragged_batch(2), [{}])


# --- steps -----------------------------------------------------------------------------------------------------------


def assert_moved_alike(found: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor], *, within: float) -> None:
    """Check that the difference is at most `within` of the distance that training moved, as norms over all tensors.

    Single entries cannot be compared: AdamW divides a gradient by its size, so if it is nearly 0, its rounding moves
    the weight as far as any gradient.
    """
    assert found.keys() == expected.keys() == before.keys() and expected

    def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return float(torch.cat([(one[name] - other[name]).flatten() for name in before]).norm())

    assert distance(expected, before) > 1e-4
    assert distance(found, expected) <= within * distance(expected, before)


@pytest.mark.parametrize("settings", [{"mini_batches": 2, "tokens_per_micro_batch": 60}, {"dtype": "bfloat16"}], ids=str)
def test_steps_are_those_of_one_process(tiny_model: str, settings: dict[str, Any]) -> None:
    settings = {"lr": 1e-5, "warmup_steps": 2, **settings}
    one = rank_work.train(OneRank(), tiny_model, settings, range(4))
    first, other = on_ranks(2, rank_work.train, tiny_model, settings, range(4))
    coarse = settings.get("dtype") == "bfloat16"
    for found, expected in zip(first["reports"], one["reports"], strict=True):
        assert (found.version, found.advantages) == (expected.version, expected.advantages)
        assert found.metrics.keys() == expected.metrics.keys()
        for name in expected.metrics.keys() - set(TIMED):
            assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=2e-2 if coarse else 1e-4, abs=1e-6), name
    untrained = rank_work.train(OneRank(), tiny_model, settings, [])["masters"]
    assert_moved_alike(first["masters"], one["masters"], untrained, within=0.1 if coarse else 1e-3)
    assert first["weights"].keys() == one["weights"].keys()
    for found, expected in zip(other["reports"], first["reports"], strict=True):  # ranks agree to the bit
        assert {k: v for k, v in found.metrics.items() if k not in TIMED} == {k: v for k, v in expected.metrics.items() if k not in TIMED}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_rank_holds_its_part_and_the_first_publishes_the_bits_of_one_process(tiny_model: str, dtype: str) -> None:
    one = rank_work.train(OneRank(), tiny_model, {"dtype": dtype}, [])
    found = on_ranks(3, rank_work.train, tiny_model, {"dtype": dtype}, [])
    assert not one["is_in_parts"] and all(rank["is_in_parts"] for rank in found)
    assert sum(rank["held"] for rank in found) == one["held"] and max(rank["held"] for rank in found) < 0.5 * one["held"]
    assert found[0]["fingerprint"] == one["fingerprint"]
    assert np.array_equal(found[0]["buffer"], one["buffer"])
    assert {tensor.dtype for tensor in found[0]["weights"].values()} == {getattr(torch, dtype)}


def test_a_batch_without_signal_changes_nothing_on_any_rank(tiny_model: str) -> None:
    found = on_ranks(2, train_without_signal, tiny_model)
    assert found == [(0.0, True, 1)] * 2


def train_without_signal(ranks: ShardedRanks, model: str) -> tuple[float, bool, int]:
    """Return the number of optimiser steps, whether the weights are unchanged, and the version."""
    learner = rank_work.make_learner(ranks, model, advantage={"beta": 0.0}, mini_batches=2)
    before = [rank_work._local(parameter).clone() for parameter in learner._model.parameters()]
    batch = concat_groups([make_group(i, [5], [[6], [7], [8, 9], [10]], [1.0] * 4) for i in range(2)])
    report = learner.step(batch)
    same = all(torch.equal(rank_work._local(now), then) for now, then in zip(learner._model.parameters(), before, strict=True))
    return report.metrics["learner/optimiser_steps"], same, report.version


def test_a_gradient_that_is_not_finite_is_refused_by_all_ranks_which_then_go_on(tiny_model: str) -> None:
    assert on_ranks(2, train_on_infinity, tiny_model) == [(True, 0, 1)] * 2


def train_on_infinity(ranks: ShardedRanks, model: str) -> tuple[bool, int, int]:
    """One group is infinite, so only one rank has the infinity."""
    learner = rank_work.make_learner(ranks, model, advantage={"normalise": "mean", "beta": 0.0})
    infinite = make_group(9, [5], [[6], [7], [8], [9]], [1e200, 0.0, 0.0, 0.0])
    try:
        learner.step(concat_groups([infinite, *ragged_groups(1)]))
        raised = False
    except FloatingPointError:
        raised = True
    version = learner.version
    return raised, version, learner.step(ragged_batch(2)).version


# --- checkpoints -----------------------------------------------------------------------------------------------------


def saved_bits(directory: Path) -> dict[str, Tensor]:
    policy = load_file(directory / "policy" / "model.safetensors")
    return {**load_file(directory / "optimiser.safetensors"), **{f"policy/{name}": value for name, value in policy.items()}}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(expected) > 10
    assert not [name for name in expected if found[name].dtype != expected[name].dtype or not torch.equal(found[name], expected[name])]


BFLOAT16 = {"dtype": "bfloat16", "lr": 1e-5, "warmup_steps": 5}
"""With it, published weights and masters have different bits."""


def test_a_checkpoint_goes_from_two_ranks_to_one_to_four(tiny_model: str, tmp_path: Path) -> None:
    straight = rank_work.train(OneRank(), tiny_model, BFLOAT16, range(3), save=tmp_path / "straight")

    on_ranks(2, save_after, tiny_model, [0], tmp_path / "two")
    rank_work.train(OneRank(), tiny_model, BFLOAT16, [], load=tmp_path / "two", save=tmp_path / "copy of two")
    assert_same_bits(saved_bits(tmp_path / "copy of two"), saved_bits(tmp_path / "two"))

    rank_work.train(OneRank(), tiny_model, BFLOAT16, [1], load=tmp_path / "two", save=tmp_path / "one")
    on_ranks(4, save_before_and_after, tiny_model, [2], tmp_path / "copy of one", tmp_path / "four", tmp_path / "one")
    assert_same_bits(saved_bits(tmp_path / "copy of one"), saved_bits(tmp_path / "one"))

    found, expected = (saved_bits(tmp_path / name) for name in ("four", "straight"))
    assert found.keys() == expected.keys()
    assert (int(found["version"]), int(found["num_steps"])) == (3, 3)
    masters = [name for name in expected if name.startswith("master/")]
    assert len(masters) == len(straight["masters"])
    untrained = rank_work.train(OneRank(), tiny_model, BFLOAT16, [])["masters"]
    assert_moved_alike({n: found[n] for n in masters}, {n: expected[n] for n in masters}, untrained, within=0.1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "four" / "policy")
    assert model.dtype == torch.bfloat16  # as it computes, not as its masters are
    assert all(torch.equal(parameter, found[f"policy/{name}"]) for name, parameter in model.named_parameters())


def test_restored_into_as_many_ranks_the_next_steps_are_bit_for_bit_equal(tiny_model: str, tmp_path: Path) -> None:
    on_ranks(2, save_before_and_after, tiny_model, [1, 2], tmp_path / "half", tmp_path / "straight")
    on_ranks(2, save_after, tiny_model, [1, 2], tmp_path / "resumed", tmp_path / "half")
    assert_same_bits(saved_bits(tmp_path / "resumed"), saved_bits(tmp_path / "straight"))


def save_after(ranks: ShardedRanks, model: str, seeds: list[int], save: Path, load: Path | None = None) -> None:
    save.mkdir(exist_ok=True)
    rank_work.train(ranks, model, BFLOAT16, seeds, load=load, save=save)


def save_before_and_after(ranks: ShardedRanks, model: str, seeds: list[int], before: Path, after: Path, load: Path | None = None) -> None:
    """Save twice: `before` is after a step on seed 0, or what is in `load`."""
    learner = rank_work.make_learner(ranks, model, **BFLOAT16)
    if load is None:
        learner.step(ragged_batch(3, seed=0))
    else:
        learner.load(load)
    before.mkdir(exist_ok=True)
    learner.save(before)
    for seed in seeds:
        learner.step(ragged_batch(3, seed=seed))
    after.mkdir(exist_ok=True)
    learner.save(after)


def test_where_the_first_rank_cannot_write_no_other_waits_for_it(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "optimiser.safetensors").mkdir()  # no file can be written there
    first, other = on_ranks(2, save_and_step, tiny_model, tmp_path)
    assert first == ("IsADirectoryError", 1)
    assert other == (None, 1)


def save_and_step(ranks: ShardedRanks, model: str, directory: Path) -> tuple[str | None, int]:
    learner = rank_work.make_learner(ranks, model)
    error = None
    try:
        learner.save(directory)
    except OSError as raised:
        error = type(raised).__name__
    return error, learner.step(ragged_batch(2)).version


# --- ranks that go away ----------------------------------------------------------------------------------------------


def step_until_it_ends(ranks: ShardedRanks, model: str) -> str:
    """Return how it ended."""
    learner = rank_work.make_learner(ranks, model)
    try:
        for _ in range(100_000):
            learner.step(ragged_batch(2))
    except RuntimeError as error:
        assert is_rank_lost(error), repr(error)
        return "lost"
    return "went on"


@pytest.mark.parametrize(
    ("number", "limit_s"),
    [pytest.param(signal.SIGKILL, 5.0, id="killed"), pytest.param(signal.SIGSTOP, 3.0 + 5.0, id="stopped", marks=pytest.mark.long)],
)
def test_a_rank_that_goes_away_in_a_step_ends_the_others_steps_in_time(tiny_model: str, number: int, limit_s: float) -> None:
    with rank_processes(2, step_until_it_ends, tiny_model, collective_timeout_s=3.0) as (first, other):
        time.sleep(2.0)  # it steps
        began = time.monotonic()
        other.signal(number)
        assert first.result() == "lost"
        assert time.monotonic() - began < limit_s


def test_a_rank_that_never_comes_is_not_waited_for_beyond_the_time() -> None:
    rendezvous = Rendezvous.open(timeout_s=1.0)
    began = time.monotonic()
    with pytest.raises(RankLost, match="rank 1, rank 2 of the learner did not come within 1 s"):
        ShardedRanks.join(rendezvous, rank=0, size=3, device="cpu", collective_timeout_s=600.0)
    assert time.monotonic() - began < 10


def test_a_meeting_that_is_not_there_is_named() -> None:
    rendezvous = Rendezvous.open(timeout_s=1.0)
    address = rendezvous.address
    del rendezvous
    with pytest.raises(RankLost, match=f"first rank is not to be had at {address}"):
        Rendezvous.at(address, timeout_s=0.5)


def test_a_failure_of_ones_own_is_not_taken_for_a_lost_rank() -> None:
    assert not is_rank_lost(RuntimeError("shape '[2]' is invalid for input of size 3"))
    assert not is_rank_lost(KeyError("gloo"))
    with pytest.raises(RankFailed, match="ZeroDivisionError"):
        on_ranks(2, divide_by_zero)


def divide_by_zero(ranks: ShardedRanks) -> float:
    return 1 / 0


def test_the_interface_is_that_of_the_address() -> None:
    assert local_address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


def test_reports_of_steps_are_plain_values(tiny_model: str) -> None:
    """Reports are sent between processes."""
    (report,) = rank_work.train(OneRank(), tiny_model, {}, [0])["reports"]
    assert pickle.loads(pickle.dumps(report)) == report
