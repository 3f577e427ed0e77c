"""The cores of a machine are shared by the processes of a job that compute on CPU, and by nobody else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from actors.config import EncoderConfig, RolloutConfig, ScorerConfig
from jobs.config import RunConfig
from jobs.processes import threads
from jobs.processes.threads import share_of_cores, with_threads
from learners.config import LearnerConfig
from learners.threads import resolve_threads


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The machine's cores, which a test may change."""
    found = [12.0]
    monkeypatch.setattr(threads, "look_at_cores", lambda: found[0])
    return found


def numbers(config: RunConfig) -> tuple[object, object, object]:
    shared = with_threads(config)
    return shared.rollout.threads, shared.learner.threads, shared.encoder.threads


def run_config(**sections: object) -> RunConfig:
    return RunConfig.model_validate({"model": "tiny", "run_dir": "runs/t", **sections})


def test_a_run_shares_the_cores_among_workers_ranks_and_encoders(cores: list[float]) -> None:
    assert numbers(run_config()) == (4, 4, 4)
    assert numbers(run_config(rollout={"workers": 3}, learner={"ranks": 2})) == (2, 2, 2)
    assert numbers(run_config(rollout={"workers": 2, "tensor_parallel": 2})) == (2, 2, 2)
    assert numbers(run_config(bonus={"enabled": False})) == (6, 6, 6)  # without an encoder
    cores[0] = 2.0
    assert numbers(run_config()) == (1, 1, 1)


def test_a_number_stays_and_a_gpu_needs_one(cores: list[float]) -> None:
    assert numbers(run_config(rollout={"threads": 5})) == (5, 4, 4)
    on_gpu = run_config(rollout={"num_gpus": 1.0, "engine": "vllm-async"})
    assert numbers(on_gpu) == (1, 6, 6)


@pytest.mark.parametrize(("found", "sharing", "expected"), [(1.0, 1, 1), (0.5, 1, 1), (3.9, 2, 1), (4.0, 2, 2), (64.0, 1, 64), (2.0, 7, 1)])
def test_auto_is_a_whole_share_of_at_least_one(cores: list[float], found: float, sharing: int, expected: int) -> None:
    cores[0] = found
    for section in (RolloutConfig(), EncoderConfig(), ScorerConfig(), LearnerConfig()):
        assert share_of_cores(section, sharing).threads == expected


def test_an_object_made_alone_has_one_thread() -> None:
    assert resolve_threads("auto") == 1 and resolve_threads(3) == 3


@pytest.mark.parametrize("wrong", [0, -1, "all", 1.5])
def test_other_numbers_of_threads_are_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        LearnerConfig.model_validate({"threads": wrong})
