"""What is said of metrics that call for action."""

from __future__ import annotations

import pytest

from jobs.config import RunConfig
from jobs.screens.hints import MismatchAdvice, no_signal_warnings
from learners.mismatch import Cause

ADDED = {"learner": {"advantage": {"combine": "advantage"}}}
FIGURES = {"mismatch_lag0/mean": 0.4321, "mismatch_lag0/max": 2.5}


def test_the_warning_of_a_bonus_without_signal_names_the_step_and_the_mend() -> None:
    config = RunConfig.model_validate({"bonus": {"ridge": 0.01}, **ADDED})
    metrics = {"bonus/no_signal_warning": 1.0, "bonus/spread": 2e-4, "bonus/ridge": 0.01}
    (text,) = no_signal_warnings(3, metrics, config)
    assert text.startswith("step 3:") and "2.0e-04" in text and 'set bonus.ridge = "auto"' in text
    assert no_signal_warnings(4, {"bonus/spread": 2e-4, "bonus/ridge": 0.01}, config) == []
    assert no_signal_warnings(3, metrics, RunConfig()) == []  # it is scaled where it decides


def test_a_bonus_that_the_divisor_of_the_rewards_hides_is_warned_of() -> None:
    metrics = {"bonus/no_signal_warning": 1.0, "bonus/spread": 2e-5, "bonus/ridge": 0.01}
    published = RunConfig.model_validate({"learner": {"advantage": {"combine": "reward", "beta": 0.01}}})
    (text,) = no_signal_warnings(3, metrics, published)
    assert "2.0e-07" in text and 'combine = "ties" with beta = 1' in text
    assert no_signal_warnings(3, metrics | {"bonus/spread": 9e-4 * 10}, published) == []
    stronger = RunConfig.model_validate({"learner": {"advantage": {"combine": "reward", "beta": 1.0}}})
    assert no_signal_warnings(3, metrics, stronger) == []


def test_a_term_without_signal_is_warned_of_and_a_class_of_ones_own_is_not() -> None:
    terms = RunConfig.model_validate({"bonus": {"terms": [{"kind": "logdet"}, {"kind": "outcome_batch"}]}, **ADDED})
    metrics = {"bonus/logdet/no_signal_warning": 1.0, "bonus/logdet/spread": 3e-4, "bonus/logdet/ridge": 9.0}
    (text,) = no_signal_warnings(3, metrics, terms)
    assert "3.0e-04" in text and "ridge 9" in text
    own = RunConfig.model_validate({"bonus": {"kind": "mine:Bonus"}, **ADDED})
    assert no_signal_warnings(3, {"bonus/no_signal_warning": 1.0}, own) == []


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_of_a_mismatch_is_explained_once(cause: Cause) -> None:
    advice = MismatchAdvice()
    metrics = {**FIGURES, f"mismatch/alarm_{cause}": 1.0, "mismatch/engine_temperature": 1.251}
    (text,) = advice.new(3, metrics)
    assert text.startswith("step 3:") and "0.43 on average, 2.5 at most" in text
    assert ("1.25 times" in text) is (cause is Cause.TEMPERATURE)
    assert advice.new(4, metrics) == []
    other = next(other for other in Cause if other is not cause)
    assert len(advice.new(5, {**metrics, f"mismatch/alarm_{other}": 1.0})) == 1


def test_without_an_alarm_there_is_nothing_to_say() -> None:
    assert MismatchAdvice().new(1, {**FIGURES, "bonus/no_signal_warning": 1.0}) == []
