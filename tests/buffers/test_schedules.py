"""Admission and replay together, under random schedules: what a controller may do, in any order, with a restart in the
middle."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import count

import numpy as np
import pyarrow as pa
import pytest

from buffers.admission import Admission
from buffers.config import Late, ReplayConfig
from buffers.groups import group_ids, token_versions, trained_tokens, validate_groups
from buffers.records import GroupRequest, Problem, Rollout
from buffers.replay import InsertResult, ReplayBuffer
from buffers.schema import to_record_batch

MakeRollout = Callable[..., Rollout]
GROUP_SIZE = 2


class Simulation:
    """A run without engines: random durations, token versions, losses and restarts, all from one seed."""

    def __init__(self, seed: int, make_rollout: MakeRollout, late: Late) -> None:
        self.rng = random.Random(seed)
        self.late = late
        self.num_masked = self.num_stale = 0
        self.make_rollout = make_rollout
        self.prompts_per_step = self.rng.randint(1, 3)
        self.max_policy_lag = self.rng.randint(0, 3)
        self.max_attempts = self.rng.randint(1, 4)
        self.max_bytes = self.rng.choice([1 << 20, self.prompts_per_step * 800])
        self.learner_version = 0
        self.problem_ids = count()
        self.sampling: dict[int, GroupRequest] = {}
        self.finished: dict[int, pa.RecordBatch] = {}
        self.sampled_ids: Counter[int] = Counter()
        self.trained_problems: Counter[str] = Counter()
        self.admission, self.replay = self.fresh()

    def fresh(self) -> tuple[Admission, ReplayBuffer]:
        admission = Admission(
            prompts_per_step=self.prompts_per_step,
            group_size=GROUP_SIZE,
            max_policy_lag=self.max_policy_lag,
            max_attempts=self.max_attempts,
        )
        config = ReplayConfig(max_bytes=self.max_bytes)
        return admission, ReplayBuffer(group_size=GROUP_SIZE, max_policy_lag=self.max_policy_lag, config=config, late=self.late)

    def next_problem(self) -> Problem:
        return Problem(task="t", problem_id=str(next(self.problem_ids)), question="?", answer="!")

    def admit(self) -> None:
        if self.admission.free_slots:
            request = self.admission.admit(self.next_problem)
            self.sampling[request.group_id] = request

    def finish(self, *, fresh: bool = False) -> None:
        if not self.sampling:
            return
        request = self.sampling.pop(self.rng.choice(sorted(self.sampling)))
        live = self.admission.live_version
        oldest = live if fresh else max(0, request.admitted_version - 1)  # a worker may even have lagged at admission
        rollouts = []
        for _ in range(GROUP_SIZE):
            num = self.rng.choice([0, 1, 5])
            versions = sorted(self.rng.randint(oldest, live) for _ in range(num))
            rollouts.append(self.make_rollout(versions, seed=self.rng.randrange(1000)))
        self.finished[request.group_id] = to_record_batch("run", request, rollouts, worker_id="w")

    def insert(self) -> None:
        if not self.finished:
            return
        group_id = self.rng.choice(sorted(self.finished))
        held = self.replay.held_ids
        result = self.replay.insert(self.finished[group_id], version=self.learner_version)
        if result is InsertResult.FULL:
            assert self.replay.held_ids == held
            return
        batch = self.finished.pop(group_id)
        if result is InsertResult.STALE:
            self.drop_stale(group_id)
        elif self.rng.random() < 0.2:  # its answer was lost
            assert self.replay.insert(batch, version=self.learner_version) is InsertResult.DUPLICATE

    def evict(self) -> None:
        for batch in self.replay.evict(version=self.learner_version):
            self.drop_stale(int(group_ids(batch)[0]))

    def drop_stale(self, group_id: int) -> None:
        self.num_stale += 1
        assert self.admission.drop(group_id, "stale", is_failure=False) is None, "being late gives no problem up"

    def train(self) -> bool:
        batch = self.replay.sample(self.prompts_per_step, version=self.learner_version)
        if batch is None:
            return False
        self.check_batch(batch)
        self.learner_version += 1
        self.admission.trained(group_ids(batch), version=self.learner_version)
        self.trained_problems.update(batch.column("problem_id").to_pylist()[::GROUP_SIZE])
        return True

    def check_batch(self, batch: pa.RecordBatch) -> None:
        validate_groups(batch, GROUP_SIZE)
        ids = group_ids(batch).tolist()
        assert ids == sorted(ids)
        assert len(ids) == self.prompts_per_step
        self.sampled_ids.update(ids)
        is_trained, lags = trained_tokens(batch), self.learner_version - token_versions(batch)
        assert np.array_equal(is_trained, lags <= self.max_policy_lag), "the bound holds for what is trained on, and no more is masked"
        self.num_masked += int((~is_trained).sum())
        assert self.late == "mask" or is_trained.all()

    def publish(self) -> None:
        self.admission.published(self.rng.randint(self.admission.live_version, self.learner_version))

    def lose(self) -> None:
        candidates = sorted(self.sampling.keys() | self.finished.keys())
        if candidates:
            group_id = self.rng.choice(candidates)
            self.sampling.pop(group_id, None)
            self.finished.pop(group_id, None)
            self.admission.drop(group_id, "worker lost")

    def restart(self) -> None:
        saved, rows = json.dumps(self.admission.state_dict()), self.replay.state_dict()
        self.admission, self.replay = self.fresh()
        self.replay.load_state_dict(rows)
        self.admission.load_state_dict(json.loads(saved), held=self.replay.held_ids)
        self.sampling.clear()
        self.finished.clear()
        assert self.admission.live_version == self.learner_version

    def check(self) -> None:
        self.admission.check_valid()
        self.replay.check_valid()
        known = self.sampling.keys() | self.finished.keys() | set(self.replay.held_ids)
        assert known == {request.group_id for request in self.admission.in_flight}
        assert set(self.sampled_ids.values()) <= {1}, "a group was sampled twice"
        assert set(self.trained_problems.values()) <= {1}, "a problem was trained on twice"
        ledger = self.admission.ledger
        assert ledger.outstanding <= self.admission.capacity
        assert ledger.released + ledger.trained == len(self.sampled_ids)
        seen = ledger.in_flight + ledger.waiting + ledger.quarantined + len(self.trained_problems)
        assert self.next_unused_problem() == seen, "a problem was lost or doubled"

    def next_unused_problem(self) -> int:
        value = next(self.problem_ids)
        self.problem_ids = count(value)
        return value

    def run(self, num_actions: int) -> None:
        actions = [self.admit, self.finish, self.insert, self.train, self.publish, self.evict, self.lose, self.restart]
        weights = [6, 6, 6, 3, 3, 1, 0.5, 0.3]
        for number in range(num_actions):
            self.rng.choices(actions, weights)[0]()
            self.admission.check_valid()
            if number % 4 == 3:
                self.check()

    def fair_round(self) -> bool:
        """Everyone does their part once: whatever happened before, this must train."""
        self.admission.published(self.learner_version)
        self.evict()
        while self.admission.free_slots:
            self.admit()
        while self.sampling:
            self.finish(fresh=True)
        for _ in range(20 * len(self.finished)):
            self.insert()
        return self.train()


@pytest.mark.parametrize("late", ["mask", "wait", "drop"])
@pytest.mark.parametrize("block", range(10))
def test_no_schedule_breaks_an_invariant_or_stops_progress(block: int, late: Late, make_rollout: MakeRollout) -> None:
    num_masked = num_stale = 0
    for seed in range(block * 25, block * 25 + 25):
        simulation = Simulation(seed, make_rollout, late)
        simulation.run(120)
        assert any(simulation.fair_round() for _ in range(2 + simulation.max_policy_lag)), f"seed {seed}: no step could be trained"
        simulation.check()
        num_masked, num_stale = num_masked + simulation.num_masked, num_stale + simulation.num_stale
    assert num_stale > 0 and (num_masked > 0) == (late == "mask"), "the schedules tried nothing"


def test_one_seed_is_one_run(make_rollout: MakeRollout) -> None:
    first, second = Simulation(7, make_rollout, "mask"), Simulation(7, make_rollout, "mask")
    first.run(200)
    second.run(200)
    assert first.sampled_ids == second.sampled_ids
    assert first.admission.state_dict() == second.admission.state_dict()
    assert first.replay.state_dict()["rows"].equals(second.replay.state_dict()["rows"])
