from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from bonus.base import Need, Scores, StepRows
from bonus.config import BonusConfig
from bonus.contract import score_checked, state_from_files, state_to_files, try_out
from buffers.extensions import ExtensionError
from tests.bonus.outside import Told

GROUPS, RESPONSES = 2, 3
ZEROS_GK = torch.zeros(GROUPS, RESPONSES)
KIND = "mine:Told"


def make_step() -> StepRows:
    whole_GK = torch.zeros(GROUPS, RESPONSES, dtype=torch.int64)
    true_GK = torch.ones(GROUPS, RESPONSES, dtype=torch.bool)
    return StepRows(
        step=1,
        seed=0,
        keys_G=["sums/a", "sums/b"],
        rewards_GK=ZEROS_GK.double(),
        correct_GK=true_GK,
        valid_GK=true_GK,
        lengths_GK=whole_GK + 1,
        ended_GK=true_GK,
        lags_GK=whole_GK,
    )


def told(scores: Any = None, *, state: Any = None) -> Told:
    bonus = Told()
    bonus.scores, bonus.state = scores, state
    return bonus


def test_scores_are_float64_whatever_they_were() -> None:
    given = Scores(bonus_GK=ZEROS_GK.int() + 2, metrics={"level": torch.tensor(1.5)}, detail={"times": ZEROS_GK.half()})
    scores, state = score_checked(told(given, state={"n": 1}), make_step(), None, kind=KIND)
    assert scores.bonus_GK.dtype == scores.detail["times"].dtype == torch.float64
    assert (scores.bonus_GK.tolist(), dict(scores.metrics), state) == ([[2.0] * 3] * 2, {"level": 1.5}, {"n": 1})


def with_nan() -> torch.Tensor:
    bonus_GK = ZEROS_GK.clone()
    bonus_GK[1, 2] = torch.nan
    return bonus_GK


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"score must return \(Scores, state\), not NoneType"),
        ((ZEROS_GK, {}), r"score must return \(Scores, state\), not tuple"),
        (Scores(bonus_GK=torch.zeros(3, 2)), r"bonus_GK has shape \(3, 2\); 2 groups of 3 responses need a tensor of shape \(2, 3\)"),
        (Scores(bonus_GK=[[0.0] * 3] * 2), r"bonus_GK is a list; 2 groups of 3 responses"),  # type: ignore[arg-type]
        (Scores(bonus_GK=with_nan()), r"the bonus of group 1, response 2 is nan"),
        (Scores(bonus_GK=ZEROS_GK, detail={"times": torch.zeros(2)}), r"detail\['times'\] has shape \(2,\)"),
        (Scores(bonus_GK=ZEROS_GK, metrics={"level": float("inf")}), r"the metric 'level' is inf: leave out"),
    ],
)
def test_scores_that_do_not_fit_are_one_line_that_names_the_bonus(answer: Any, message: str) -> None:
    with pytest.raises(ExtensionError, match=rf'^bonus\.kind = "{KIND}": .*{message}') as caught:
        score_checked(told(answer), make_step(), None, kind=KIND)
    assert "\n" not in str(caught.value)


def test_detail_may_be_undefined() -> None:
    scores, _ = score_checked(told(Scores(bonus_GK=ZEROS_GK, detail={"x": with_nan()})), make_step(), None, kind=KIND)
    assert scores.detail["x"].isnan().sum() == 1


def through_files(bonus: Any, state: Any, directory: Path) -> Any:
    tensors, rest = state_to_files(bonus, state, kind=KIND)
    save_file(tensors, directory / "state.safetensors")
    return state_from_files(bonus, load_file(directory / "state.safetensors"), json.loads(json.dumps(rest)))


@pytest.mark.parametrize("state", [{}, {"counts": {"sums/a": {"12": 3}}, "names": ["a"], "level": 0.1, "none": None}], ids=str)
def test_a_plain_state_comes_back_as_it_was(state: dict[str, Any], tmp_path: Path) -> None:
    assert through_files(told(), state, tmp_path) == state


def test_tensors_of_a_plain_state_come_back_bit_for_bit_also_views_of_one_another(tmp_path: Path) -> None:
    base = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    restored = through_files(told(), {"all": base, "rows": base[:2], "turned": base.mT, "n": 2}, tmp_path)
    assert restored.keys() == {"all", "rows", "turned", "n"} and restored["n"] == 2
    assert torch.equal(restored["all"], base) and torch.equal(restored["rows"], base[:2]) and torch.equal(restored["turned"], base.mT)


def test_what_is_saved_is_a_copy() -> None:
    state = {"total": torch.ones(2)}
    tensors, _ = state_to_files(told(), state, kind=KIND)
    tensors["total"].zero_()
    assert state["total"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "its state is a NoneType, not a mapping"),
        ({1: 2}, "its state is a dict, not a mapping of names"),
        ({"counts": {1: 2}}, "JSON cannot hold 'counts' of its state as it is, a dict"),
        ({"seen": {1, 2}}, "JSON cannot hold 'seen'"),
        ({"pair": (1, 2)}, "JSON cannot hold 'pair' of its state as it is, a tuple"),
        ({"net": {"weight": {1, 2}}}, "JSON cannot hold 'net'"),
    ],
    ids=str,
)
def test_a_state_that_would_not_come_back_is_refused_and_the_remedy_named(state: Any, message: str) -> None:
    with pytest.raises(ExtensionError, match=rf'^bonus\.kind = "{KIND}": {message}.*state_dict and from_state_dict'):
        state_to_files(told(), state, kind=KIND)


class Rich(Told):
    """Its state is a set of pairs."""

    def state_dict(self, state: Any) -> dict[str, Any]:
        return {"pairs": sorted(map(list, state))}

    def from_state_dict(self, saved: Mapping[str, Any]) -> Any:
        return {tuple(pair) for pair in saved["pairs"]}


def test_a_richer_state_is_saved_by_the_bonus_itself(tmp_path: Path) -> None:
    state = {("a", 1), ("b", 2)}
    assert through_files(Rich(), state, tmp_path) == state


def test_a_state_of_dicts_and_lists_with_tensors_inside_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "seen": {"task/1": {"7": {"count": 2, "total_D": torch.arange(3.0)}, "9": {"count": 1, "total_D": torch.ones(3)}}},
        "seen/task/1/7/total_D": torch.zeros(1),
        "layers": [torch.ones(2), {"bias": torch.zeros(2)}, 3],
        "steps": 4,
        "total_D": torch.full((2,), 5.0),
    }
    restored = through_files(told(), state, tmp_path)
    assert restored.keys() == state.keys() and restored["steps"] == 4
    assert restored["seen"]["task/1"]["9"]["count"] == 1
    pairs = [
        (restored["seen"]["task/1"]["7"]["total_D"], torch.arange(3.0)),
        (restored["seen"]["task/1"]["9"]["total_D"], torch.ones(3)),
        (restored["seen/task/1/7/total_D"], torch.zeros(1)),
        (restored["layers"][0], torch.ones(2)),
        (restored["layers"][1]["bias"], torch.zeros(2)),
        (restored["total_D"], torch.full((2,), 5.0)),
    ]
    assert all(torch.equal(found, expected) for found, expected in pairs)


class Careless:
    needs = frozenset({Need.FEATURES})

    def __init__(self, how: str) -> None:
        self.how = how

    def init_state(self) -> dict:
        return {}

    def score(self, step: StepRows, state: dict) -> tuple[Scores, dict]:
        norm_GK = step.features_GKD.norm(dim=2)
        if self.how == "raises":
            return Scores(bonus_GK=norm_GK.clamp(max=torch.tensor("much"))), state
        if self.how == "wrong shape":
            return Scores(bonus_GK=norm_GK[:, 0]), state
        if self.how == "not finite":
            return Scores(bonus_GK=norm_GK / step.lengths_GK), state
        return Scores(bonus_GK=norm_GK), {"seen": {1, 2}} if self.how == "state" else state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"a made-up step could not be scored: TypeError: .* \(.*test_contract\.py, line \d+\)$"),
        ("wrong shape", r"bonus_GK has shape \(2,\); 2 groups of 4 responses"),
        ("not finite", r"the bonus of group 0, response 3 is nan"),
        ("state", r"JSON cannot hold 'seen'"),
    ],
)
def test_what_a_bonus_cannot_do_is_found_before_a_run_starts(how: str, message: str) -> None:
    with pytest.raises(ExtensionError, match=message) as refusal:
        try_out(Careless(how), kind=KIND, dim=4)
    assert "\n" not in str(refusal.value)
    try_out(Careless("well"), kind=KIND, dim=4)


def test_keys_of_the_elliptical_bonus_are_refused_beside_another() -> None:
    with pytest.raises(ValidationError, match=r"bonus\.gate = 'correct_only' has no effect with bonus\.kind"):
        BonusConfig(kind="mypackage.bonus:Mine", gate="correct_only")
