import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from bonus.config import BonusConfig, SelectionConfig

every_config = pytest.mark.parametrize("config", [BonusConfig, SelectionConfig])


@pytest.mark.parametrize("memory", ["prompt", "run"])
@pytest.mark.parametrize(
    ("settings", "named"), [({"redraw_projection": True}, "redraw_projection=True"), ({"source": "policy"}, "source='policy'")]
)
def test_a_space_that_moves_is_refused_with_a_memory_and_both_values_are_named(settings: dict, named: str, memory: str) -> None:
    with pytest.raises(ValidationError, match=rf"{named}.*memory='{memory}'"):
        BonusConfig(memory=memory, **settings)


@pytest.mark.parametrize("settings", [{"redraw_projection": True}, {"source": "policy"}, {"memory": "prompt"}, {"memory": "run"}])
def test_either_of_the_two_alone_is_accepted(settings: dict) -> None:
    BonusConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 0.01},
        {"ridge": 0.0},
        {"ridge": float("inf")},
        {"ridge": "automatic"},
        {"dim": 0},
        {"forgetting": 0.0},
        {"forgetting": 1.1},
        {"memory": "group"},
        {"prompt_memory_mib": 0},
        {"staleness_discount": 0.0},
        {"staleness_discount": 1.1},
    ],
)
def test_unknown_keys_and_impossible_values_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        BonusConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"lam": 1.0}, {"ridge": 0.0}, {"center": "group"}, {"quality": "reward"}, {"quality_exponent": -1.0}, {"max_clusters": 0}, {"dim": 0}],
)
def test_impossible_selections_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        SelectionConfig(**settings)


def test_quality_names_the_order_that_a_selection_stands_for() -> None:
    assert SelectionConfig().order == "repexp"
    assert SelectionConfig(quality="logprob").order == "quality"


@every_config
def test_a_config_does_not_change(config: type[BaseModel]) -> None:
    with pytest.raises(ValidationError):
        config().dim = 64


@every_config
def test_every_field_says_what_it_means(config: type[BaseModel]) -> None:
    assert all(field.description for field in config.model_fields.values())


@every_config
def test_a_config_survives_a_round_trip_through_plain_values(config: type[BaseModel]) -> None:
    values = config(ridge=0.01, dim=128)
    assert config.model_validate(values.model_dump()) == values


def test_the_config_imports_without_torch_or_numpy() -> None:
    code = "import sys, bonus.config; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
