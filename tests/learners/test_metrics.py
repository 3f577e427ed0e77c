"""Metrics of a step, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from buffers.schema import concat_groups
from learners.losses import LossInputs, LossOutput
from learners.metrics import StepStatistics, lag_metrics, reward_metrics
from learners.mismatch import mismatch_metrics
from tests.learners.samples import make_group

GROUPS = concat_groups(
    [
        make_group(
            0,
            [5],
            [[7, 2], [7, 8, 9]],
            [1.0, 0.0],
        ),
        make_group(
            1,
            [5, 6],
            [[7, 2], [2]],
            [1.0, 1.0],
        ),
        make_group(
            2,
            [5],
            [[7], []],
            [0.0, None],
        ),
        make_group(
            3,
            [5],
            [[7, 7, 7], [2]],
            [0.0, 0.0],
        ),
    ]
)
WITHOUT_BONUS = torch.tensor([[0.7, -0.7], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[0.7, -0.7], [0.0, 0.0], [0.0, 0.0], [-0.1, 0.1]], dtype=torch.float64)

EXPECTED = {
    "reward/mean": 3 / 7,  # seven were scored
    "reward/pass@1": 3 / 8,  # what could not be scored is no success
    "reward/pass@K": 2 / 4,
    "groups/all_correct": 1 / 4,
    "groups/all_wrong": 2 / 4,
    "advantage/bonus_alone": 1 / 4,  # the last group
    "groups/without_signal": 2 / 4,
    "verifier/unscored": 1 / 8,
    "advantage/abs_mean": 1.6 / 8,
    "response/tokens_mean": 13 / 8,
    "response/truncated": 4 / 8,  # did not end with the end-of-turn token
}


def test_reward_metrics_worked_by_hand() -> None:
    assert reward_metrics(GROUPS, ADVANTAGES, WITHOUT_BONUS) == pytest.approx(EXPECTED, rel=1e-12)


def test_reward_metrics_of_a_slice_are_those_of_its_rows() -> None:
    found = reward_metrics(GROUPS.slice(2, 4), ADVANTAGES[1:3])
    assert found == pytest.approx(reward_metrics(concat_groups([GROUPS.slice(2, 4)]), ADVANTAGES[1:3]), rel=1e-12)
    assert found["response/tokens_mean"] == 4 / 4
    assert found["reward/mean"] == pytest.approx(2 / 3)


def test_a_batch_nobody_could_score_has_no_figure_of_rewards_and_says_so() -> None:
    found = reward_metrics(make_group(0, [5], [[7], [8]], [None, None]), torch.zeros(1, 2))
    assert found["verifier/unscored"] == 1.0
    assert not [name for name in found if name.startswith(("reward/", "groups/all_"))]


def test_a_group_nobody_could_score_is_not_all_wrong() -> None:
    batch = concat_groups([make_group(0, [5], [[7], [8]], [None, None]), make_group(1, [5], [[7], [8]], [1.0, 1.0])])
    found = reward_metrics(batch, torch.zeros(2, 2))
    assert (found["groups/all_wrong"], found["groups/all_correct"], found["reward/pass@1"]) == (0.0, 1.0, 0.5)


def test_lag_is_counted_over_tokens() -> None:
    assert lag_metrics(3, np.array([3, 2, 3, 3, 1])) == {"policy/lag_mean": 3 / 5, "policy/lag_max": 2.0}
    assert lag_metrics(3, np.array([], np.int64)) == {}


def add(
    statistics: StepStatistics, ratios: list[float], versions: list[int], *, loss: float = 0.0, clipped: list[bool], entropy: list[float]
) -> None:
    """Add tokens whose probability ratio learner / engine is `ratios`."""
    behavior_N = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    proximal_N = behavior_N + torch.tensor(ratios, dtype=torch.float64).log()
    inputs = LossInputs(
        logprob_N=torch.full_like(proximal_N, -9.0),  # is not looked at
        proximal_logprob_N=proximal_N,
        behavior_logprob_N=behavior_N,
        advantage_N=torch.ones_like(proximal_N),
        num_tokens=len(ratios),
    )
    output = LossOutput(
        loss=torch.tensor(loss), clipped_N=torch.tensor(clipped), is_weight_N=torch.tensor(ratios, dtype=torch.float64).clamp(max=2)
    )
    statistics.add(inputs, output, torch.tensor(entropy), torch.tensor(versions), torch.tensor(versions), num_computed=10)


@pytest.fixture
def statistics() -> StepStatistics:
    """Return the statistics of five tokens in two micro-batches of a step from version 3."""
    statistics = StepStatistics(version=3)
    add(statistics, [1.05, 1.2, 0.85], [3, 2, 3], loss=0.25, clipped=[False, True, False], entropy=[1.0, 2.0, 3.0])
    add(statistics, [1.0, 4.0], [3, 1], loss=0.5, clipped=[False, False], entropy=[0.0, 1.0])
    return statistics


def test_token_statistics_worked_by_hand(statistics: StepStatistics) -> None:
    logs = [math.log(1.05), math.log(1.2), -math.log(0.85), 0.0, math.log(4.0)]
    expected = {
        "learner/clipped": 1 / 5,
        "learner/is_weight_mean": (1.05 + 1.2 + 0.85 + 1.0 + 2.0) / 5,
        "learner/masked": 0.0,
        "policy/entropy": 7 / 5,
        "mismatch/mean": sum(logs) / 5,
        "mismatch/surprise": 2.0 - 4 / 3 - (math.log(1.05) + math.log(0.85)) / 3,  # of three at lag 0, their entropies are 1, 3 and 0
        "mismatch_lag0/mean": (math.log(1.05) - math.log(0.85)) / 3,
        "mismatch_lag0/share": 3 / 5,
        "mismatch_lag1/max": math.log(1.2),
        "mismatch_lag2/max": math.log(4.0),
    }
    found = statistics.metrics()
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert found.keys() - expected.keys() == mismatch_metrics(statistics.tokens()).keys() - expected.keys()
    assert (statistics.num_computed_tokens, statistics.loss) == (20, 0.75)


def test_what_a_correction_masks_and_the_divergence_from_a_reference_are_measured() -> None:
    statistics = StepStatistics(version=0)
    tokens = torch.zeros(4, dtype=torch.float64)
    inputs = LossInputs(
        logprob_N=tokens,
        proximal_logprob_N=tokens,
        behavior_logprob_N=tokens,
        advantage_N=tokens,
        num_tokens=4,
        response_N=torch.tensor([0, 0, 1, 1]),
    )
    output = LossOutput(
        loss=torch.tensor(0.0),
        clipped_N=tokens.bool(),
        is_weight_N=torch.tensor([0.0, 1.0, 0.0, 0.0]),
        kl_N=torch.tensor([0.1, 0.2, 0.3, 0.6]),
    )
    statistics.add(inputs, output, tokens, torch.tensor([0, 0, -1, 0]), torch.tensor([0, 0, -1, -1]), num_computed=4)
    assert statistics.metrics()["learner/masked"] == 0.75
    assert statistics.metrics()["policy/kl_reference"] == pytest.approx(0.3)
    assert statistics.tokens().oldest_lag_N.tolist() == [0, 0, 1, 1]


def test_without_a_token_of_the_newest_version_there_is_no_noise_floor() -> None:
    statistics = StepStatistics(version=1)
    add(statistics, [1.0], [0], clipped=[False], entropy=[1.0])
    found = statistics.metrics()
    assert found["mismatch/mean"] == 0.0
    assert not [name for name in found if name.startswith("mismatch_lag0")]


def test_where_nothing_was_computed_there_is_no_mismatch() -> None:
    assert StepStatistics(version=3).metrics() == {}
