import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from bonus.base import Need
from bonus.config import KINDS, BonusConfig
from bonus.elliptical_bonus import EllipticalBonus
from bonus.methods import BONUSES, bonus_of, require_methods
from buffers.extensions import ExtensionError
from tests.bonus.outside import Told

ROOT = Path(__file__).parents[2]
OUTSIDE = "tests.bonus.outside"


def test_every_known_bonus_is_made_and_says_what_the_configuration_says_of_it() -> None:
    assert BONUSES.keys() == KINDS.keys()
    for kind, needs in KINDS.items():
        assert bonus_of(BonusConfig(kind=kind)).needs == needs == BonusConfig(kind=kind).needs


def test_the_default_is_the_elliptical_bonus_from_an_encoder() -> None:
    assert isinstance(bonus_of(BonusConfig()), EllipticalBonus)
    assert BonusConfig().feature_source == "encoder"
    assert BonusConfig(source="policy").feature_source == "policy"
    assert not BonusConfig().needs_answers


@pytest.mark.parametrize(("name", "needs"), [("Distance", Need.FEATURES), ("AnswerCounts", Need.ANSWERS), ("Surprise", Need.LOGPROBS)])
def test_a_class_of_ones_own_says_what_it_needs(name: str, needs: Need) -> None:
    config = BonusConfig(kind=f"{OUTSIDE}:{name}")
    assert config.needs == {needs}
    assert config.feature_source == ("encoder" if needs is Need.FEATURES else None)
    assert config.needs_answers == (needs is Need.ANSWERS)
    require_methods(config)


def test_a_class_of_ones_own_is_made_once_to_say_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a process that the configuration is sent to, which need not import the class; and it leaves no trace."""
    made = []
    monkeypatch.setattr(Told, "__init__", lambda self: made.append(self))
    config, fresh = BonusConfig(kind=f"{OUTSIDE}:Told"), BonusConfig(kind=f"{OUTSIDE}:Told")
    assert config.needs == frozenset()
    for each in (config, pickle.loads(pickle.dumps(config))):
        assert (each.needs, each.feature_source, each.needs_answers) == (frozenset(), None, False)
    assert len(made) == 1
    assert config == fresh and config.model_dump() == fresh.model_dump() and BonusConfig.model_validate(config.model_dump()) == fresh


def test_a_bonus_that_is_off_needs_nothing_and_is_not_imported() -> None:
    config = BonusConfig(enabled=False, kind="nowhere:Bonus")
    assert (config.needs, config.feature_source, config.needs_answers) == (frozenset(), None, False)
    require_methods(config)


def test_options_make_the_class() -> None:
    assert vars(bonus_of(BonusConfig(kind=f"{OUTSIDE}:AnswerCounts", options={"scale": 3.0}))) == {"_scale": 3.0}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("AnswerCount", {}, r'bonus\.kind = "tests.bonus.outside:AnswerCount": .* did you mean \'AnswerCounts\'\?'),
        ("WithoutScore", {}, r'bonus\.kind = "tests.bonus.outside:WithoutScore": WithoutScore has no score'),
        ("AnswerCounts", {"scales": 1}, r"with bonus\.options = \{'scales': 1\}: .*unexpected keyword argument 'scales'"),
        ("NeedsLogits", {}, r"needs names 'logits'; it may name: features, answers, responses, logprobs"),
        ("NeedsNumber", {}, r"needs = 3 is not a set of: features, answers, responses, logprobs"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_key(name: str, options: dict, message: str) -> None:
    with pytest.raises(ExtensionError, match=message) as caught:
        require_methods(BonusConfig(kind=f"{OUTSIDE}:{name}", options=options))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ExtensionError, match="there is no module nowhere"):
        require_methods(BonusConfig(kind="nowhere:Bonus"))


def test_a_kind_is_known_or_a_path_and_a_known_one_takes_no_options() -> None:
    with pytest.raises(ValidationError, match="did you mean 'elliptical'"):
        BonusConfig(kind="eliptical")
    with pytest.raises(ValidationError, match=r'bonus\.options are for a class of your own, and bonus\.kind = "elliptical"'):
        BonusConfig(options={"scale": 1})
