from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from actors.bonus import REST, TENSORS, BonusScorer, step_rows
from actors.replay import Replay
from bonus.base import Scores
from bonus.config import BonusConfig
from bonus.kinds import KINDS
from bonus.scoring import score_step
from bonus.state import init_state
from buffers.config import ReplayConfig
from buffers.extensions import ExtensionError
from buffers.records import GroupOutcome
from buffers.replay import InsertResult
from buffers.schema import (
    concat_groups,
    from_record_batch,
    split_groups,
    to_record_batch,
    with_features,
    with_outcome,
    with_scores,
    with_verdicts,
)
from learners.checkpoint import CheckpointManager
from tests.bonus.outside import Told
from tests.learners.samples import make_request, make_rollout, make_verdict

GROUP_SIZE, DIM, RIDGE = 4, 6, 0.5
MEMORIES: list[dict[str, Any]] = [{"memory": "none", "ridge": "auto"}, {"memory": "run", "forgetting": 0.9}, {"memory": "prompt"}]
LENGTHS = (3, 1, 5, 0)
"""Tokens of each response of a group: the last is empty and has no feature."""


def make_scorer(*, seed: int = 11, **bonus: Any) -> BonusScorer:
    base = {"dim": DIM} if "kind" in bonus or "terms" in bonus else {"dim": DIM, "gate": "always"}
    return BonusScorer(bonus=BonusConfig(**{**base, **bonus}), group_size=GROUP_SIZE, seed=seed)


def make_group(
    group_id: int,
    *,
    problem: str | None = None,
    task: str = "sums",
    lengths: Sequence[int] = LENGTHS,
    versions: Sequence[Sequence[int]] | None = None,
    dim: int = DIM,
    seed: int | None = None,
) -> pa.RecordBatch:
    """One encoded and verified group: every response has a feature of its own and is right or wrong by chance, the
    first is right."""
    rng = np.random.default_rng(group_id if seed is None else seed)
    request = make_request(group_id, num_responses=len(lengths))
    request = replace(request, problem=replace(request.problem, task=task, problem_id=problem or f"p{group_id}"))
    tokens = [[*[5 + n] * (length - 1), 2] if length else [] for n, length in enumerate(lengths)]  # 2: they ended
    rollouts = [make_rollout([4], ids, versions=versions[n] if versions else None) for n, ids in enumerate(tokens)]
    batch = to_record_batch("run", request, rollouts, worker_id="w0")
    features = (rng.normal(size=dim) + rng.normal(size=(len(lengths), dim))).astype(np.float32)
    rewards = [1.0, *rng.integers(0, 2, len(lengths) - 1).astype(float)]
    return with_verdicts(with_features(batch, features, [length > 0 for length in lengths]), [make_verdict(reward) for reward in rewards])


def step_batch(step: int, *, problems: Sequence[str] = ("p0", "p1"), **settings: Any) -> pa.RecordBatch:
    """One group a problem; the same problems come again in every step."""
    first = len(problems) * step
    return concat_groups([make_group(first + n, problem=problem, **settings) for n, problem in enumerate(problems)])


def column(batch: pa.RecordBatch, name: str) -> list[Any]:
    return batch.column(name).to_pylist()


def valid_features(batch: pa.RecordBatch) -> list[NDArray[np.float64]]:
    """The features of each group, empty responses left out, (K', D)."""
    rows = column(batch, "feature")
    return [
        np.array([row for row in rows[first : first + GROUP_SIZE] if row is not None], np.float64).reshape(-1, DIM)
        for first in range(0, len(rows), GROUP_SIZE)
    ]


def leverages(centered: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    leverage: NDArray[np.float64] = np.einsum("kd,de,ke->k", centered, np.linalg.inv(sigma), centered)
    return leverage


def bonuses_of(batch: pa.RecordBatch) -> list[float]:
    """Of the responses that have a feature; the others must have 0."""
    pairs = list(zip(column(batch, "bonus"), column(batch, "feature"), strict=True))
    assert all(bonus == 0.0 for bonus, feature in pairs if feature is None)
    return [bonus for bonus, feature in pairs if feature is not None]


# --- what a bonus is --------------------------------------------------------------------------------------------------


def test_without_memory_a_bonus_is_the_leverage_in_its_own_group() -> None:
    scorer = make_scorer(ridge=RIDGE)
    for step in range(2):
        batch = step_batch(step)
        expected = []
        for rows in valid_features(batch):
            centered = rows - rows.mean(axis=0)
            expected += leverages(centered, RIDGE * np.eye(DIM) + centered.T @ centered).tolist()
        np.testing.assert_allclose(bonuses_of(scorer.score(batch, step)[0]), expected, rtol=1e-9)


def test_with_memory_run_the_groups_of_a_step_share_what_earlier_steps_left() -> None:
    scorer = make_scorer(ridge=RIDGE, memory="run", forgetting=0.9)
    moment = np.zeros((DIM, DIM))
    for step in range(4):
        batch = step_batch(step)
        centered = [rows - rows.mean(axis=0) for rows in valid_features(batch)]
        expected = [leverages(rows, RIDGE * np.eye(DIM) + moment + rows.T @ rows) for rows in centered]
        np.testing.assert_allclose(bonuses_of(scorer.score(batch, step)[0]), np.concatenate(expected), rtol=1e-9)
        moment = 0.9 * moment + sum(rows.T @ rows for rows in centered)


def test_with_memory_prompt_a_response_is_compared_with_all_of_its_prompt_so_far() -> None:
    """The same problem id in another task is another prompt."""
    scorer = make_scorer(ridge=RIDGE, memory="prompt")
    seen: dict[str, list[NDArray[np.float64]]] = {}
    for step, (task, problems) in enumerate(
        [("sums", ("p0", "p1")), ("sums", ("p1", "p2")), ("words", ("p1", "p0")), ("sums", ("p1", "p0"))]
    ):
        batch = step_batch(step, problems=problems, task=task)
        expected = []
        for problem, rows in zip(problems, valid_features(batch), strict=True):
            history = seen.setdefault(f"{task}/{problem}", [])
            history.append(rows)
            together = np.concatenate(history)
            mean = together.mean(axis=0)
            scatter = (together - mean).T @ (together - mean)
            expected += leverages(rows - mean, RIDGE * np.eye(DIM) + scatter).tolist()
        np.testing.assert_allclose(bonuses_of(scorer.score(batch, step)[0]), expected, rtol=1e-9)
    assert sorted(len(history) for history in seen.values()) == [1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    "bonus",
    [
        {"memory": "none", "ridge": "auto"},
        {"memory": "run", "forgetting": 0.9, "gate": "group_has_correct"},
        {"memory": "run", "ridge": 2.0, "gate": "correct_only", "estimator": "leave_one_out"},
        {"memory": "prompt", "normalise": "std", "staleness_discount": 0.5},
    ],
    ids=str,
)
def test_bonuses_and_metrics_of_a_run_are_those_of_score_step(bonus: dict[str, Any]) -> None:
    scorer, config, state = make_scorer(**bonus), BonusConfig(**{"dim": DIM, "gate": "always", **bonus}), init_state(DIM)
    for step in range(3):
        batch = step_batch(step)
        rows = [row if row is not None else [0.0] * DIM for row in column(batch, "feature")]
        expected, state = score_step(
            torch.tensor(rows, dtype=torch.float64).view(2, GROUP_SIZE, DIM),
            torch.tensor([status == "correct" for status in column(batch, "verdict_status")]).view(2, GROUP_SIZE),
            torch.tensor([length > 0 for length in LENGTHS]).expand(2, -1),
            state,
            config,
            lengths_GK=torch.tensor(LENGTHS).expand(2, -1),
            keys_G=["sums/p0", "sums/p1"],
            lags_GK=torch.tensor([step if length else 0 for length in LENGTHS]).expand(2, -1),  # all tokens are of version 0
        )
        scored, metrics = scorer.score(batch, step)
        assert any(column(scored, "bonus"))
        assert column(scored, "bonus") == expected.bonus_GK.flatten().tolist()
        assert metrics["bonus/ridge"] == expected.ridge
        assert metrics["bonus/mean"] == expected.diagnostics.bonus_mean
        assert metrics["bonus/spread"] == expected.diagnostics.spread
        assert metrics["bonus/num_empty"] == 2
        assert all(math.isfinite(value) for value in metrics.values())
        assert scorer.ready() == step + 1


def test_the_gate_reads_the_verdicts() -> None:
    scored, _ = make_scorer(gate="correct_only").score(step_batch(0), 0)
    kept = [bonus != 0 for bonus in column(scored, "bonus")]
    correct = [status == "correct" for status in column(scored, "verdict_status")]
    assert kept == [right and length > 0 for right, length in zip(correct, 2 * LENGTHS, strict=True)]
    assert 0 < sum(correct[:3] + correct[4:7]) < 6


def test_the_oldest_token_decides_how_stale_a_response_is() -> None:
    """Trained at version 6, discount 0.5: lags are 6 - 3, 6 - 6, 6 - 2, and an empty response has none."""
    group = make_group(0, versions=[[3, 5, 6], [6], [2, 2, 4, 4, 6], []])
    fresh, _ = make_scorer().score(group, 6)
    stale, _ = make_scorer(staleness_discount=0.5).score(group, 6)
    factors = [stale / fresh for stale, fresh in zip(column(stale, "bonus")[:3], column(fresh, "bonus")[:3], strict=True)]
    assert factors == [0.5**3, 1.0, 0.5**4]
    assert column(stale, "bonus")[3] == 0.0
    assert detail(stale, "leverage") == detail(fresh, "leverage")


def test_a_group_of_empty_responses_is_survived() -> None:
    for bonus in MEMORIES:
        scored, metrics = make_scorer(**bonus).score(make_group(0, lengths=(0, 0, 0, 0)), 0)
        assert column(scored, "bonus") == [0.0] * GROUP_SIZE
        assert metrics["bonus/num_empty"] == GROUP_SIZE
        assert all(math.isfinite(value) for value in metrics.values())


def test_a_slice_is_scored_as_its_rows() -> None:
    group = split_groups(step_batch(0, problems=("p0", "p1", "p2")))[1]
    found, _ = make_scorer().score(group, 0)
    assert column(found, "bonus") == column(make_scorer().score(concat_groups([group]), 0)[0], "bonus")


# --- what is written beside it ----------------------------------------------------------------------------------------

WRITTEN = ("bonus", "bonus_detail")
DETAIL = ("leverage", "group_spread", "group_saturation_distance", "group_effective_rank", "group_length_correlation")


def detail(batch: pa.RecordBatch, name: str) -> list[float | None]:
    """What the bonus says of each row under this name; None where it says nothing."""
    return [dict(row).get(name) for row in column(batch, "bonus_detail")]


def test_nothing_but_the_columns_of_the_bonus_is_changed() -> None:
    batch = step_batch(0)
    scored, _ = make_scorer().score(batch, 0)
    kept = [name for name in batch.schema.names if name not in WRITTEN]
    assert scored.select(kept).equals(batch.select(kept))
    assert scored.schema.equals(batch.schema)


def test_the_log_says_what_each_group_s_bonuses_were_made_of() -> None:
    """With a gate and a normalisation, which the leverage and the numbers of the group are before."""
    batch = step_batch(0)
    scored, _ = make_scorer(ridge=RIDGE, gate="correct_only", normalise="zscore").score(batch, 0)
    for number, rows in enumerate(valid_features(batch)):
        group = scored.slice(number * GROUP_SIZE, GROUP_SIZE)
        centered = rows - rows.mean(axis=0)
        sigma = RIDGE * np.eye(DIM) + centered.T @ centered
        leverage = leverages(centered, sigma)
        np.testing.assert_allclose(detail(group, "leverage"), [*leverage, 0.0], rtol=1e-9)
        assert all(dict(row).keys() == set(DETAIL) for row in column(group, "bonus_detail"))
        expected = {
            "group_spread": leverage.std(ddof=1),
            "group_saturation_distance": 1 - 1 / len(rows) - leverage.mean(),
            "group_effective_rank": np.trace(sigma) ** 2 / np.trace(sigma @ sigma),
            "group_length_correlation": np.corrcoef(leverage, LENGTHS[:3])[0, 1],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(detail(group, name), [value] * GROUP_SIZE, rtol=1e-5, err_msg=name)


def test_what_a_group_does_not_define_is_left_out() -> None:
    """One response has no spread, and nothing to correlate its length with."""
    scored, _ = make_scorer().score(make_group(0, lengths=(3, 0, 0, 0)), 0)
    assert detail(scored, "leverage") == [0.0] * GROUP_SIZE
    assert [detail(scored, name).count(None) for name in DETAIL] == [0, 4, 4, 0, 4]


def test_remembered_prompts_are_counted_and_bounded() -> None:
    """At D = 128 a prompt takes 8·(128² + 128 + 1) bytes and its key, so seven fit into 1 MiB."""
    scorer = make_scorer(memory="prompt", dim=128, prompt_memory_mib=1)
    found = []
    for step in range(3):
        problems = [f"p{4 * step + n}" for n in range(4)]
        _, metrics = scorer.score(step_batch(step, problems=problems, dim=128), step)
        found.append((metrics["bonus/remembered_prompts"], metrics["bonus/evicted_prompts"]))
        assert 0 < metrics["bonus/remembered_mib"] <= 1
    assert found == [(4, 0), (7, 1), (7, 5)]


@pytest.mark.parametrize("memory", ["none", "run"])
def test_without_prompt_memory_there_are_no_metrics_of_it(memory: str) -> None:
    _, metrics = make_scorer(memory=memory).score(step_batch(0), 0)
    assert not [name for name in metrics if "prompts" in name or "mib" in name]


def test_the_warning_of_a_bonus_without_signal_is_given_once_also_across_a_restart(tmp_path: Path) -> None:
    """A ridge far above the features' energy flattens every leverage to nearly 0."""
    scorer = make_scorer(ridge=1e9)
    assert [scorer.score(step_batch(step), step)[1].get("bonus/no_signal_warning") for step in range(2)] == [1.0, None]
    scorer.save(tmp_path)
    restored = make_scorer(ridge=1e9)
    restored.load(tmp_path)
    assert "bonus/no_signal_warning" not in restored.score(step_batch(2), 2)[1]
    assert "bonus/no_signal_warning" not in make_scorer().score(step_batch(0), 0)[1]


# --- bonuses of one's own ---------------------------------------------------------------------------------------------

OUTSIDE = "tests.bonus.outside"


def with_answers(batch: pa.RecordBatch, answers: Sequence[str | None]) -> pa.RecordBatch:
    verdicts = [verdict for group in from_record_batch(batch) for verdict in group.verdicts]
    stated = [replace(verdict, final_answer=answer) for verdict, answer in zip(verdicts, answers, strict=True) if verdict]
    return with_verdicts(batch, stated)


def test_a_bonus_from_features_is_given_each_response_s_feature() -> None:
    batch = step_batch(0)
    scored, metrics = make_scorer(kind=f"{OUTSIDE}:Distance").score(batch, 0)
    rows = np.array([row or [0.0] * DIM for row in column(batch, "feature")]).reshape(2, GROUP_SIZE, DIM)
    distances = np.linalg.norm(rows - rows.mean(axis=1, keepdims=True), axis=2) * (np.array(LENGTHS) > 0)
    np.testing.assert_allclose(column(scored, "bonus"), distances.flatten(), rtol=1e-12)
    assert metrics == {"bonus/mean": pytest.approx(distances[:, :3].mean())}
    assert column(scored, "bonus_detail") == [[]] * 8


def test_a_bonus_from_final_answers_remembers_them_over_steps_and_restarts(tmp_path: Path) -> None:
    """Bare groups: no feature was ever computed. The same problem in another task is another problem."""
    scorer = make_scorer(kind=f"{OUTSIDE}:AnswerCounts", options={"scale": 2.0})
    first = with_answers(step_batch(0), ["5", "5", "7", None, "5", "6", "6", None])
    scored, metrics = scorer.score(undo_features(first), 0)
    assert column(scored, "bonus") == pytest.approx([2 / 2**0.5, 2 / 2**0.5, 2, 0, 2, 2 / 2**0.5, 2 / 2**0.5, 0])
    assert detail(scored, "times") == [2, 2, 1, 0, 1, 2, 2, 0]
    assert metrics["bonus/num_answers"] == 4
    scorer.save(tmp_path)
    restored = make_scorer(kind=f"{OUTSIDE}:AnswerCounts", options={"scale": 2.0})
    restored.load(tmp_path)
    assert restored.ready() == 1
    second = with_answers(step_batch(1), ["7", "5", None, None, "8", None, None, None])
    for each in (scorer, restored):
        assert detail(each.score(second, 1)[0], "times") == [2, 3, 0, 0, 1, 0, 0, 0]
    other_task = with_answers(step_batch(2, task="words"), ["7", "5", None, None, "8", None, None, None])
    assert detail(scorer.score(other_task, 2)[0], "times") == [1, 1, 0, 0, 1, 0, 0, 0]


def undo_features(batch: pa.RecordBatch) -> pa.RecordBatch:
    at = batch.schema.get_field_index("feature")
    return batch.set_column(at, batch.schema.field(at), pa.nulls(batch.num_rows, batch.schema.field(at).type))


def test_a_bonus_from_log_probs_is_given_those_of_the_sampler() -> None:
    rng = np.random.default_rng(0)
    behavior = [(-rng.random(length)).astype(np.float32).tolist() for length in LENGTHS]
    request = make_request(0, num_responses=GROUP_SIZE)
    rollouts = [make_rollout([4], [5] * length, behavior=row) for length, row in zip(LENGTHS, behavior, strict=True)]
    batch = with_verdicts(to_record_batch("run", request, rollouts, worker_id="w0"), [make_verdict(1.0)] * GROUP_SIZE)
    surprise = np.array([-np.mean(row) for row in behavior[:3]])
    scored, _ = make_scorer(kind=f"{OUTSIDE}:Surprise").score(batch, 0)
    np.testing.assert_allclose(column(scored, "bonus"), [*(surprise - surprise.mean()), 0.0], rtol=1e-6)
    as_slice = concat_groups([step_batch(0), batch]).slice(2 * GROUP_SIZE)
    assert column(make_scorer(kind=f"{OUTSIDE}:Surprise").score(as_slice, 0)[0], "bonus") == column(scored, "bonus")


def test_rewards_verdicts_lags_and_the_number_of_the_step_are_there_for_every_bonus() -> None:
    group = make_group(0, versions=[[3, 5, 6], [6], [2, 2, 4, 4, 6], []])
    group = with_verdicts(group, [make_verdict(1.0), make_verdict(None), make_verdict(0.25), make_verdict(0.0)])
    rows = step_rows(group, BonusConfig(), frozenset(), group_size=GROUP_SIZE, version=6, step=7, seed=11)
    assert (rows.step, rows.seed, list(rows.keys_G)) == (7, 11, ["sums/p0"])
    np.testing.assert_array_equal(rows.rewards_GK.numpy(), [[1.0, np.nan, 0.25, 0.0]])
    assert rows.correct_GK.tolist() == [[True, False, False, False]]
    assert rows.valid_GK.tolist() == [[True, True, True, False]]
    assert (rows.lengths_GK.tolist(), rows.lags_GK.tolist()) == ([[3, 1, 5, 0]], [[3, 0, 4, 0]])
    assert (rows.features_GKD, rows.answers_GK, rows.logprobs_GKT) == (None, None, None)


@pytest.mark.parametrize(
    "bonus",
    [
        *({"kind": kind} for kind in (*KINDS, f"{OUTSIDE}:AnswerCounts", f"{OUTSIDE}:Surprise")),
        {"terms": [{"kind": kind} for kind in KINDS], "memory": "run"},
    ],
    ids=str,
)
def test_the_log_brings_back_the_state_of_any_bonus(bonus: dict[str, Any], tmp_path: Path) -> None:
    whole, fresh = LoggedRun(tmp_path / "log", **bonus), make_scorer(**bonus)
    for version in range(3):
        whole.step(version)
    assert fresh.absorb_log(str(tmp_path / "log"), 3) == 3
    assert saved_state(fresh, tmp_path / "fresh") == saved_state(whole.scorer, tmp_path / "whole")


def test_a_state_of_other_terms_is_refused(tmp_path: Path) -> None:
    terms = make_scorer(terms=[{"kind": "random"}, {"kind": "outcome_batch"}])
    terms.save(tmp_path)
    make_scorer(terms=[{"kind": "random", "weight": 2.0}, {"kind": "outcome_batch"}]).load(tmp_path)  # a weight is no state
    with pytest.raises(ValueError, match=r'the saved state is of bonus\.kind = "random \+ outcome_batch", this run has "elliptical"'):
        make_scorer().load(tmp_path)


def test_scores_of_another_shape_name_the_bonus_and_leave_the_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(kind=f"{OUTSIDE}:Told")
    monkeypatch.setattr(Told, "scores", Scores(bonus_GK=torch.zeros(GROUP_SIZE, 2)))
    with pytest.raises(ExtensionError, match=r'bonus\.kind = "tests\.bonus\.outside:Told": bonus_GK has shape \(4, 2\); 2 groups of 4'):
        scorer.score(step_batch(0), 0)
    assert scorer.ready() == 0


def test_a_state_that_cannot_be_saved_is_found_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "scores", Scores(bonus_GK=torch.zeros(2, GROUP_SIZE)))
    monkeypatch.setattr(Told, "state", {"seen": {1, 2}})
    with pytest.raises(ExtensionError, match="JSON cannot hold 'seen'"):
        make_scorer(kind=f"{OUTSIDE}:Told").score(step_batch(0), 0)


# --- what is kept -----------------------------------------------------------------------------------------------------


def saved_state(scorer: BonusScorer, directory: Path) -> tuple[bytes, dict[str, Any]]:
    """Everything that decides the next bonuses, as it is stored."""
    directory.mkdir(exist_ok=True)
    scorer.save(directory)
    return (directory / TENSORS).read_bytes(), json.loads((directory / REST).read_text())["state"]


@pytest.mark.parametrize("bonus", MEMORIES, ids=str)
def test_a_state_saved_and_restored_gives_the_same_next_bonuses(bonus: dict[str, Any], tmp_path: Path) -> None:
    straight, restored, fresh = (make_scorer(**bonus) for _ in range(3))
    for step in range(3):
        straight.score(step_batch(step), step)
    manager = CheckpointManager(str(tmp_path), keep=1)
    manager.commit(3, straight.save_part(manager, 3, "bonus"), {})
    restored.load_part(manager, 3, "bonus")
    assert restored.ready() == 3
    for step in range(3, 6):
        found, found_metrics = restored.score(step_batch(step), step)
        expected, expected_metrics = straight.score(step_batch(step), step)
        assert found.equals(expected)
        assert found_metrics == expected_metrics
        assert column(fresh.score(step_batch(step), step)[0], "bonus") != column(expected, "bonus")


def test_a_state_made_with_another_projection_is_refused(tmp_path: Path) -> None:
    make_scorer(seed=11).save(tmp_path)
    with pytest.raises(ValueError, match="projection seed 11, this run has 12"):
        make_scorer(seed=12).load(tmp_path)


def test_the_state_of_another_bonus_is_refused(tmp_path: Path) -> None:
    make_scorer().save(tmp_path)
    with pytest.raises(
        ValueError, match=r'saved state is of bonus\.kind = "elliptical", this run has "tests\.bonus\.outside:AnswerCounts"'
    ):
        make_scorer(kind=f"{OUTSIDE}:AnswerCounts").load(tmp_path)


@pytest.mark.parametrize("bonus", [*MEMORIES, {"ridge": 1e9}], ids=str)
def test_a_state_from_before_bonuses_had_kinds_is_read(bonus: dict[str, Any], tmp_path: Path) -> None:
    """Its JSON has the warning beside the state, and the number of steps in the covariance alone."""
    straight, restored = make_scorer(**bonus), make_scorer(**bonus)
    for step in range(2):
        straight.score(step_batch(step), step)
    straight.save(tmp_path)
    saved = json.loads((tmp_path / REST).read_text())
    old = {"state": saved["state"], "projection_seed": saved["projection_seed"], "warned": saved["state"].pop("warned")}
    assert old["warned"] == (bonus.get("ridge") == 1e9)
    (tmp_path / REST).write_text(json.dumps(old))
    restored.load(tmp_path)
    assert restored.ready() == 2
    (found, found_metrics), (expected, expected_metrics) = (scorer.score(step_batch(2), 2) for scorer in (restored, straight))
    assert found.equals(expected) and found_metrics == expected_metrics


class LoggedRun:
    """Two groups a step through replay, as a run does: draw, score, train, log. Every step also drops a group that came
    too late."""

    def __init__(self, directory: Path, **bonus: Any) -> None:
        self.scorer = make_scorer(**bonus)
        self.log_directory = directory
        self._replay = Replay(
            group_size=GROUP_SIZE, prompts_per_step=2, max_policy_lag=1, late="drop", config=ReplayConfig(), log_directory=str(directory)
        )

    def step(self, version: int) -> None:
        """Train version `version` to the next."""
        for number, (problem, age) in enumerate((("p0", 0), (f"p{1 + version % 3}", 1), ("late", 2))):
            sampled = max(0, version - age)
            versions = [[sampled] * (length - 1) + [version] * min(length, 1) for length in LENGTHS]
            group = make_group(3 * version + number, problem=problem, versions=versions)
            rewards = [1.0 if status == "correct" else 0.0 for status in column(group, "verdict_status")]
            verdicts = [replace(make_verdict(reward), final_answer=str(reward)) for reward in rewards]
            result = self._replay.insert(group, verdicts, version)
            assert result is (InsertResult.STALE if problem == "late" and version >= 2 else InsertResult.ACCEPTED)
        batch, drawn = self._replay.sample(2, version)
        assert batch is not None and len(drawn.group_ids) == 2
        scored, _ = self.scorer.score(batch, version)
        self._replay.log(version + 1, scored, [0.0] * batch.num_rows)


@pytest.mark.parametrize("bonus", [*MEMORIES, {"memory": "run", "ridge": 0.3, "staleness_discount": 0.5}], ids=str)
def test_a_snapshot_and_the_log_since_give_the_state_of_the_uninterrupted_run(bonus: dict[str, Any], tmp_path: Path) -> None:
    whole = LoggedRun(tmp_path / "log", **bonus)
    early = make_scorer(**bonus)
    for version in range(6):
        whole.step(version)
        if version == 1:
            whole.scorer.save(tmp_path)
            early.load(tmp_path)
    assert early.ready() == 2
    assert set(pq.read_table(whole.log_directory)["outcome"].to_pylist()) == {"trained", "stale"}
    assert early.absorb_log(str(whole.log_directory), 6) == 6
    assert saved_state(early, tmp_path / "early") == saved_state(whole.scorer, tmp_path / "whole")
    found, expected = (scorer.score(step_batch(7), 6)[0] for scorer in (early, whole.scorer))
    assert found.equals(expected)


def test_a_log_is_absorbed_from_the_first_step_and_up_to_the_one_asked_for(tmp_path: Path) -> None:
    whole, fresh = LoggedRun(tmp_path / "log", memory="run"), make_scorer(memory="run")
    for version in range(3):
        whole.step(version)
    state = saved_state(whole.scorer, tmp_path / "whole")
    whole.step(3)
    assert fresh.absorb_log(str(whole.log_directory), 3) == 3
    assert saved_state(fresh, tmp_path / "fresh") == state
    assert fresh.absorb_log(str(whole.log_directory), 3) == 3
    assert saved_state(fresh, tmp_path / "fresh") == state  # what is known already is not absorbed twice


def test_a_step_that_was_not_logged_is_refused(tmp_path: Path) -> None:
    whole, fresh = LoggedRun(tmp_path, memory="run"), make_scorer(memory="run")
    for version in range(3):
        whole.step(version)
    (tmp_path / "step_000002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="step_000002"):
        fresh.absorb_log(str(tmp_path), 3)
    assert fresh.ready() == 1


def test_stale_rows_of_the_log_are_not_absorbed(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "log", memory="run")
    batch, dropped = step_batch(0), make_group(99)
    run.scorer.score(batch, 0)
    log = run._replay._log
    assert log is not None
    scored = with_scores(batch, [0.0] * batch.num_rows)
    log.append(1, [with_outcome(dropped, 1, GroupOutcome.STALE), with_outcome(scored, 1, GroupOutcome.TRAINED)])
    fresh = make_scorer(memory="run")
    fresh.absorb_log(str(run.log_directory), 1)
    assert saved_state(fresh, tmp_path / "fresh") == saved_state(run.scorer, tmp_path / "whole")
