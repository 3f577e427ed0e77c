"""Long answers are trained on as often as they are sampled: whole runs whose engines sleep by a heavy-tailed
distribution of lengths. The learner is the real one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks.sleeping import Lengths
from buffers.records import Problem, Verdict, VerdictStatus
from jobs.directory.events import EventKind
from jobs.offline.replay_from import replay_from
from tasks.base import Task
from tests.jobs.components_fixture import LocalRun, assert_same_state, small_config

pytestmark = pytest.mark.whole

NUM_PROBLEMS, STEPS, GROUPS_PER_STEP, GROUP_SIZE = 64, 48, 8, 2
LENGTHS = {"kind": "lognormal", "group_size": GROUP_SIZE, "mean_tokens": 12.0}


class Few(Task):
    """A task of so few problems that a run goes through all of them several times."""

    name = "few"

    def problems(self, split: str) -> Iterator[Problem]:
        for number in range(NUM_PROBLEMS):
            yield Problem(task=self.name, problem_id=f"few/{number}", question=f"{number}?", answer="")

    def verify(self, problem: Problem, response: str) -> Verdict:
        return Verdict(status=VerdictStatus.INCORRECT, reward=0.0)


def trained_run(model: str, directory: Path, prepare: Callable[[LocalRun], None] = lambda run: None, **values: Any) -> LocalRun:
    """Train the run with two workers of eight lanes, which take about as long for a step's groups as its learner."""
    engine = {"engine": "benchmarks.sleeping:SleepingEngine", "engine_options": {"token_s": 0.002, "again": "same", **LENGTHS}}
    config = small_config(
        model,
        directory,
        steps=STEPS,
        prompts_per_step=GROUPS_PER_STEP,
        responses_per_prompt=GROUP_SIZE,
        max_attempts=2,
        task={"name": "tests.jobs.run.test_late:Few"},
        sampling={"max_response_tokens": 400},
        rollout={"workers": 2, "max_sequences": 8 * GROUP_SIZE, **engine},
        bonus={"enabled": False},
        checkpoint={"every": STEPS},
        learner={"advantage": {"beta": 0.0}, "lr": 1e-4},
        **values,
    )
    run = LocalRun(config)
    prepare(run)
    assert run.train() == STEPS
    run.books.check_valid()
    return run


def lengths_of(run: LocalRun) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of all groups that were sampled, and of those that were trained on."""
    problems = {event["group_id"]: event["problem_id"] for event in run.noted(EventKind.ADMITTED)}
    draws = Lengths(**LENGTHS)
    sampled = [event["group_id"] for event in run.noted(EventKind.COMPLETED)]
    trained = [group_id for event in run.noted(EventKind.BATCH) for group_id in event["group_ids"]]
    found = [np.array([draws.of(problems[group_id])[0] for group_id in ids]) for ids in (sampled, trained)]
    return found[0], found[1]


def largest_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance: the largest between the two distributions."""
    at = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize("late", ["mask", "wait"])
@pytest.mark.parametrize("lag", [1, 2, 4])
def test_what_is_trained_on_is_as_long_as_what_is_sampled_and_no_problem_is_left_out(tiny_model, tmp_path, lag, late):
    run = trained_run(tiny_model, tmp_path, max_policy_lag=lag, late=late)
    sampled, trained = lengths_of(run)
    assert largest_distance(sampled, trained) < 0.05
    assert np.quantile(trained, [0.5, 0.9]) == pytest.approx(np.quantile(sampled, [0.5, 0.9]), rel=0.15)
    assert trained.mean() == pytest.approx(sampled.mean(), rel=0.1)
    ledger = run.admission.ledger
    assert ledger.quarantined == 0 and ledger.dropped <= (0.01 * len(sampled) if late == "mask" else 0)
    handed_out = Counter(run.problems_handed_out())
    assert Counter(problem for problem, _ in run.outcomes().elements()) == handed_out, "a problem was lost or doubled"
    unfinished = Counter(request.problem.problem_id for request in run.admission.in_flight)
    unfinished += Counter(entry["problem"]["problem_id"] for entry in run.admission.state_dict()["waiting"])
    assert Counter(run.trained_problems()) == handed_out - unfinished, "each is trained on once an epoch"
    for row in run.logged():
        first, newest = row["trained_from_version"], row["step"] - 1
        assert all(newest - version <= lag for version in row["version_values"] if first is None or version >= first)
    counts = run.books.tokens.counts()
    assert counts["masked"] == 0 or late == "mask"
    assert counts["masked"] > 0 or (lag, late) != (1, "mask"), "the schedule tried nothing"


def test_dropping_trains_on_short_answers_more_than_on_long_ones(tiny_model, tmp_path):
    """The bias that the other two do not have, so that the test above can fail. No problem is given up all the same."""
    run = trained_run(tiny_model, tmp_path, max_policy_lag=1, late="drop")
    sampled, trained = lengths_of(run)
    assert trained.mean() < 0.8 * sampled.mean() and largest_distance(sampled, trained) > 0.08
    assert run.admission.ledger.dropped_by_reason["stale"] > 0.05 * len(trained)
    assert not run.admission.quarantined


def test_saved_rollouts_with_tokens_too_old_and_a_learner_that_comes_back_train_the_same_policy(tiny_model, tmp_path):
    """The rollout log says which tokens were too old, so whoever trains on it again leaves out the same ones."""

    def lose_the_learner(run: LocalRun) -> None:
        run.on_report = lambda step: run.handles["learner"].kill() if step in (STEPS // 3, STEPS - 1) else None

    run = trained_run(tiny_model, tmp_path, lose_the_learner, max_policy_lag=1, late="mask", supervision={"backoff_s": 0.0})
    assert len(run.parts["learner"]) == 3 and run.books.tokens.counts()["masked"] > 0
    again = run.config.model_copy(update={"run_dir": str(tmp_path / "again")})
    assert replay_from(again, Path(run.config.run_dir)).same_steps == STEPS
    state = tmp_path / f"again/state/step_{STEPS:06d}/learner"
    found = {f"policy/{name}": tensor for name, tensor in load_file(state / "policy/model.safetensors").items()}
    found |= {f"optimiser/{name}": tensor for name, tensor in load_file(state / "optimiser.safetensors").items() if name != "rng"}
    assert_same_state(found, run.state(tmp_path / "state"))
