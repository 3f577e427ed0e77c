"""Several bonuses at once."""

from __future__ import annotations

import pytest
import torch

from bonus.config import BonusConfig
from bonus.methods import bonus_of, require_methods
from buffers.extensions import ExtensionError
from tests.bonus.steps import all_equal, bonuses_of, make_step, through_files

OUTSIDE = "tests.bonus.outside"
TERMS = [{"kind": "elliptical", "weight": 0.01}, {"kind": "outcome_ucb", "weight": 0.1}, {"kind": f"{OUTSIDE}:Surprise", "weight": 2.0}]
STEPS = [make_step(number) for number in (1, 2, 3)]


def test_the_sum_is_that_of_the_weighted_bonuses_each_as_if_it_were_alone() -> None:
    found, _ = bonuses_of(bonus_of(BonusConfig(dim=6, memory="run", terms=TERMS)), STEPS)
    alone = [
        bonuses_of(bonus_of(config), STEPS)[0]
        for config in (BonusConfig(dim=6, memory="run"), BonusConfig(kind="outcome_ucb"), BonusConfig(kind=f"{OUTSIDE}:Surprise"))
    ]
    for step, total in enumerate(found):
        torch.testing.assert_close(total, 0.01 * alone[0][step] + 0.1 * alone[1][step] + 2.0 * alone[2][step])


def test_one_term_of_weight_1_is_that_bonus_bit_for_bit() -> None:
    one, _ = bonuses_of(bonus_of(BonusConfig(dim=6, memory="run")), STEPS)
    other, _ = bonuses_of(bonus_of(BonusConfig(dim=6, memory="run", terms=[{"kind": "elliptical"}])), STEPS)
    assert all(map(torch.equal, one, other))


def test_each_is_logged_under_its_own_name() -> None:
    bonus = bonus_of(BonusConfig(dim=6, terms=TERMS))
    scores, _ = bonus.score(STEPS[0], bonus.init_state())
    elliptical = bonus_of(BonusConfig(dim=6))
    alone, _ = elliptical.score(STEPS[0], elliptical.init_state())
    assert {f"elliptical/{name}" for name in alone.metrics} <= scores.metrics.keys()
    assert {"elliptical/mean", "outcome_ucb/mean", "outcome_ucb/remembered_answers", "Surprise/mean"} <= scores.metrics.keys()
    assert all("/" in name for name in scores.metrics)
    assert torch.equal(scores.detail["elliptical"], alone.bonus_GK)
    assert torch.equal(scores.detail["elliptical/leverage"], alone.detail["leverage"])
    assert {"outcome_ucb", "outcome_ucb/count", "Surprise"} <= scores.detail.keys()


def test_all_states_come_back_together() -> None:
    bonus = bonus_of(BonusConfig(dim=6, memory="prompt", terms=TERMS))
    _, state = bonuses_of(bonus, STEPS[:2])
    assert set(state) == {"elliptical", "outcome_ucb", "Surprise"}
    restored = through_files(bonus, state)
    one, two = bonus.score(STEPS[2], state), bonus.score(STEPS[2], restored)
    assert torch.equal(one[0].bonus_GK, two[0].bonus_GK) and all_equal(one[1]["outcome_ucb"], two[1]["outcome_ucb"])


def test_a_state_of_other_terms_is_refused() -> None:
    bonus = bonus_of(BonusConfig(dim=6, terms=TERMS))
    with pytest.raises(ValueError, match=r"the saved state is of \['random'\], this run has \['Surprise', 'elliptical', 'outcome_ucb'\]"):
        bonus.from_state_dict({"random": {}})  # type: ignore[attr-defined]


def test_a_class_of_ones_own_in_a_term_is_tried_out_before_a_run() -> None:
    require_methods(BonusConfig(terms=TERMS))
    with pytest.raises(ExtensionError, match="there is no module nowhere"):
        require_methods(BonusConfig(terms=[{"kind": "random"}, {"kind": "nowhere:Bonus"}]))


def test_a_fault_names_the_term() -> None:
    bonus = bonus_of(BonusConfig(terms=[{"kind": "random"}, {"kind": f"{OUTSIDE}:Told"}]))
    with pytest.raises(ExtensionError, match=rf'^bonus\.kind = "{OUTSIDE}:Told": score must return'):
        bonus.score(STEPS[0], bonus.init_state())
