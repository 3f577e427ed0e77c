import subprocess
import sys

import pytest
from pydantic import ValidationError

from bonus.config import BonusConfig


def test_a_redrawn_projection_is_refused_with_run_memory_and_both_values_are_named() -> None:
    with pytest.raises(ValidationError, match=r"redraw_projection=True.*memory='run'"):
        BonusConfig(redraw_projection=True, memory="run")


@pytest.mark.parametrize("settings", [{"redraw_projection": True}, {"memory": "run"}])
def test_either_of_the_two_alone_is_accepted(settings: dict) -> None:
    BonusConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"lam": 0.01}, {"ridge": 0.0}, {"ridge": float("inf")}, {"ridge": "automatic"}, {"dim": 0}, {"forgetting": 0.0}, {"forgetting": 1.1}],
)
def test_unknown_keys_and_impossible_values_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        BonusConfig(**settings)


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        BonusConfig().dim = 64


def test_every_field_says_what_it_means() -> None:
    assert all(field.description for field in BonusConfig.model_fields.values())


def test_a_config_survives_a_round_trip_through_plain_values() -> None:
    config = BonusConfig(ridge=0.01, dim=128)
    assert BonusConfig.model_validate(config.model_dump()) == config


def test_the_config_imports_without_torch_or_numpy() -> None:
    code = "import sys, bonus.config; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
