"""What every known bonus has in common: empty responses, a state that is a value, saved and restored bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bonus.base import Need
from bonus.config import BonusConfig
from bonus.kinds import KEEP_FEATURES, KINDS, READS
from bonus.methods import bonus_of
from tests.bonus.steps import KIND, all_equal, bonuses_of, make_step, through_files

SETTINGS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "dim": 6} for kind in KINDS},
    "elliptical, run": {"dim": 6, "memory": "run", "gate": "always"},
    "logdet, prompt": {"kind": "logdet", "dim": 6, "memory": "prompt", "gate": "always"},
    "coin_flip, hidden": {"kind": "coin_flip", "dim": 6, "gate": "always", "coin_flip": {"hidden": 16}},
    "random, always": {"kind": "random", "gate": "always"},
    "outcome_ucb, mean": {"kind": "outcome_ucb", "outcome_ucb": {"baseline": "mean"}},
    "outcome_ucb, constant": {"kind": "outcome_ucb", "outcome_ucb": {"baseline": "constant", "constant": 0.25}},
    "surprise, decay": {"kind": "surprise", "surprise": {"decay": 0.5, "scale": 0.1}},
    "all": {"dim": 6, "terms": [{"kind": kind, "weight": 0.5 + place} for place, kind in enumerate(KINDS)]},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


@every_setting
def test_an_empty_response_gets_nothing_and_is_not_read(settings: dict[str, Any]) -> None:
    step = make_step()
    assert step.features_GKD is not None and step.logprobs_GKT is not None
    broken_GKD = torch.where(step.valid_GK[..., None], step.features_GKD, torch.nan)
    (found,), _ = bonuses_of(bonus_of(BonusConfig(**settings)), [step])
    (same,), _ = bonuses_of(bonus_of(BonusConfig(**settings)), [replace(step, features_GKD=broken_GKD)])
    assert torch.equal(found, same)
    subtracted = settings.get("outcome_ucb", {}).get("baseline", "none") != "none"  # from an empty response too
    assert (found[~step.valid_GK] < 0 if subtracted else found[~step.valid_GK] == 0).all()
    assert found[step.valid_GK].unique().numel() > 1


@every_setting
def test_a_step_without_any_token_is_survived(settings: dict[str, Any]) -> None:
    step = make_step()
    assert step.features_GKD is not None and step.logprobs_GKT is not None and step.answers_GK is not None
    empty = replace(
        step,
        valid_GK=torch.zeros_like(step.valid_GK),
        correct_GK=torch.zeros_like(step.valid_GK),
        lengths_GK=torch.zeros_like(step.lengths_GK),
        features_GKD=torch.zeros_like(step.features_GKD),
        logprobs_GKT=step.logprobs_GKT[:, :, :0],
        answers_GK=[[None] * 4] * 3,
        responses_GK=[[[]] * 4] * 3,
    )
    found, _ = bonuses_of(bonus_of(BonusConfig(**settings)), [empty, make_step(2)])
    assert (found[0] == found[0][0, 0]).all()  # a subtracted constant is left, and makes no contrast
    assert found[1].any()


@every_setting
def test_a_response_that_was_not_scored_is_no_obstacle(settings: dict[str, Any]) -> None:
    step = make_step()
    assert step.rewards_GK.isnan().any()
    (found,), _ = bonuses_of(bonus_of(BonusConfig(**settings)), [step])
    assert found.isfinite().all()


@every_setting
def test_a_restored_state_goes_on_bit_for_bit_and_scoring_leaves_the_old_one(settings: dict[str, Any]) -> None:
    bonus = bonus_of(BonusConfig(**settings))
    _, state = bonuses_of(bonus, [make_step(1), make_step(2)])
    restored = through_files(bonus, state)
    assert all_equal(state, restored)
    before = through_files(bonus, state)
    scores, after = bonus.score(make_step(3), state)
    assert all_equal(state, before), "scoring changed the state it was given"
    again, after_again = bonus_of(BonusConfig(**settings)).score(make_step(3), restored)
    assert torch.equal(scores.bonus_GK, again.bonus_GK) and dict(scores.metrics) == dict(again.metrics)
    assert all_equal(after, after_again)


@every_setting
def test_the_order_of_groups_within_a_step_does_not_matter(settings: dict[str, Any]) -> None:
    step, order = make_step(), [2, 0, 1]
    assert step.features_GKD is not None and step.logprobs_GKT is not None
    assert step.answers_GK is not None and step.responses_GK is not None
    turned = replace(
        step,
        keys_G=[step.keys_G[group] for group in order],
        answers_GK=[step.answers_GK[group] for group in order],
        responses_GK=[step.responses_GK[group] for group in order],
        **{
            name: getattr(step, name)[order]
            for name in ("rewards_GK", "correct_GK", "valid_GK", "lengths_GK", "ended_GK", "lags_GK", "features_GKD", "logprobs_GKT")
        },
    )
    (found,), _ = bonuses_of(bonus_of(BonusConfig(**settings)), [step])
    (other,), _ = bonuses_of(bonus_of(BonusConfig(**settings)), [turned])
    torch.testing.assert_close(found[order], other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_a_bonus_needs_is_computed(kind: str) -> None:
    config = BonusConfig(kind=kind)
    from_features = Need.FEATURES in KINDS[kind]
    assert config.feature_source == ("encoder" if from_features else None)
    assert config.needs_answers == (kind in ("outcome_ucb", "outcome_batch"))
    given = {Need.FEATURES: "features_GKD", Need.ANSWERS: "answers_GK", Need.RESPONSES: "responses_GK", Need.LOGPROBS: "logprobs_GKT"}
    without = replace(make_step(), **{name: None for need, name in given.items() if need not in config.needs})
    bonuses_of(bonus_of(BonusConfig(kind=kind, dim=6)), [without])


def test_terms_need_what_one_of_them_needs() -> None:
    config = BonusConfig(terms=[{"kind": "outcome_batch"}, {"kind": "surprise"}])
    assert (config.needs, config.feature_source) == ({Need.ANSWERS, Need.LOGPROBS}, None)
    assert BonusConfig(terms=[{"kind": "random"}, {"kind": "cosine"}], source="policy").feature_source == "policy"


def test_every_known_bonus_says_which_keys_it_reads() -> None:
    assert READS.keys() == KINDS.keys() >= KEEP_FEATURES
    assert {key for keys in READS.values() for key in keys} <= BonusConfig.model_fields.keys()
    assert KIND not in KINDS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "outcome_batch", "gate": "always"}, r"bonus\.gate = 'always' has no effect with bonus\.kind = \"outcome_batch\""),
        ({"kind": "random", "ridge": 0.1}, r'bonus\.ridge = 0\.1 has no effect .* it is for "elliptical", "logdet", "coin_flip" alone'),
        ({"kind": "logdet", "estimator": "leave_one_out"}, r"bonus\.estimator = 'leave_one_out' has no effect"),
        ({"kind": "cosine", "rnd": {"width": 8}}, r'bonus\.rnd has no effect with bonus\.kind = "cosine": it is for "rnd" alone'),
        ({"surprise": {"cap": 2}}, r'bonus\.surprise has no effect with bonus\.kind = "elliptical"'),
        ({"terms": [{"kind": "random"}, {"kind": "rnd"}], "memory": "run"}, r"bonus\.memory = 'run' .* bonus\.terms of random \+ rnd"),
        ({"kind": "rnd", "source": "policy"}, r'bonus\.source = "policy" contradicts "rnd"'),
        ({"kind": "coin_flip", "redraw_projection": True}, r'bonus\.redraw_projection = true contradicts "coin_flip"'),
        ({"terms": [{"kind": "rnd"}], "source": "policy"}, r'bonus\.source = "policy" contradicts "rnd"'),
        ({"terms": [{"kind": "random"}, {"kind": "random"}]}, r"each kind may stand there once"),
        ({"terms": [{"kind": "random"}], "kind": "rnd"}, r"bonus\.kind and bonus\.options have no effect beside bonus\.terms"),
        ({"terms": [{"kind": "random", "options": {"a": 1}}]}, r"bonus\.options are for a class of your own"),
        ({"terms": [{"kind": "rnd", "weight": 0}]}, "greater than 0"),
        ({"terms": [{"kind": "rnb"}]}, "did you mean 'rnd'"),
        ({"terms": [{"kind": "rnd", "widht": 1}]}, "Extra inputs"),
        ({"kind": "outcome_ucb", "outcome_ucb": {"constant": 0.2}}, r'outcome_ucb\.constant = 0\.2 has no effect with .*baseline = "none"'),
        ({"kind": "rnd", "rnd": {"depth": 3}}, "Extra inputs"),
    ],
    ids=str,
)
def test_keys_without_effect_and_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BonusConfig(**settings)


def test_keys_of_any_term_are_accepted() -> None:
    config = BonusConfig(
        terms=[{"kind": "elliptical", "weight": 0.01}, {"kind": "outcome_ucb"}], memory="run", outcome_ucb={"baseline": "mean"}
    )
    assert config.label == "elliptical + outcome_ucb"
    assert BonusConfig.model_validate(config.model_dump(mode="json")) == config
