"""What is said of metrics that call for action."""

from __future__ import annotations

import pytest

from jobs.config import RunConfig
from jobs.screens.hints import MismatchAdvice, no_signal_warning
from learners.mismatch import Cause

FIGURES = {"mismatch_lag0/mean": 0.4321, "mismatch_lag0/max": 2.5}


def test_the_warning_of_a_bonus_without_signal_names_the_step_and_the_mend() -> None:
    config = RunConfig.model_validate({"bonus": {"ridge": 0.01}})
    text = no_signal_warning(3, {"bonus/spread": 2e-4, "bonus/ridge": 0.01}, config)
    assert text.startswith("step 3:") and "2.0e-04" in text and 'set bonus.ridge = "auto"' in text


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
