"""Which weights a token may come from: fleet and admission together, under random schedules, without a clock and
without workers.

The bound of staleness follows from two facts. A slot is free again only when the weights that its group made are held
by everyone who samples; and nobody begins to sample without the newest. So a group is sampled under no weights older
than those live at its admission, and if none overtakes another it is trained on at most S versions later."""

import random
from dataclasses import dataclass
from itertools import count

import pytest

from buffers.admission import Admission
from buffers.records import Problem
from jobs.config import SupervisionConfig
from jobs.run.fleet import Fleet, WorkerState


class Gone(RuntimeError):
    pass


@dataclass(slots=True)
class Group:
    """Versions of its tokens, whoever sampled them, and who does now."""

    versions: set[int]
    admitted_version: int
    worker: str | None = None
    is_sampled: bool = False


class Simulation:
    """A run of workers that are lost, leave, join and load late, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.num_prompts, self.max_lag = self.rng.randint(1, 3), self.rng.randint(0, 3)
        self.admission = Admission(prompts_per_step=self.num_prompts, group_size=2, max_policy_lag=self.max_lag)
        self.fleet = Fleet("rollout", desired=self.rng.randint(1, 4), config=SupervisionConfig(max_failures=10**6, backoff_s=0.5))
        self.now = 0.0
        self.trained_version = 0
        self.groups: dict[int, Group] = {}
        self.problems = count()
        self.lags: set[int] = set()
        self.fleet.started(self.fleet.plan(self.now).start[0], self.now)

    def admit(self) -> None:
        while self.admission.free_slots and self.rng.random() < 0.8:
            request = self.admission.admit(self._next_problem)
            self.groups[request.group_id] = Group(versions=set(), admitted_version=request.admitted_version)

    def _next_problem(self) -> Problem:
        return Problem(task="t", problem_id=str(next(self.problems)), question="?", answer="!")

    def dispatch(self) -> None:
        waiting = [group for group in self.groups.values() if group.worker is None and not group.is_sampled]
        for group in waiting if self.fleet.serving else ():
            group.worker = self.rng.choice(self.fleet.serving).name

    def sample(self) -> None:
        for group in self.groups.values():
            if group.worker is not None and self.rng.random() < 0.7:
                group.versions.add(self.fleet.members[group.worker].version)
                if self.rng.random() < 0.4:
                    group.worker, group.is_sampled = None, True

    def train(self) -> None:
        """Only when the version before is live, or on its way: the controller hands over one at a time."""
        first = sorted(self.groups)[: self.num_prompts]
        if len(first) < self.num_prompts or not all(self.groups[group_id].is_sampled for group_id in first):
            return
        for group_id in first:
            oldest = min(self.groups.pop(group_id).versions)
            self.lags.add(self.trained_version - oldest)
        self.trained_version += 1
        self.admission.trained(first, version=self.trained_version)
        self.fleet.publish(self.trained_version)

    def publish(self) -> None:
        if self.fleet.is_published_everywhere(self.fleet.newest_version):
            self.admission.published(self.fleet.newest_version)

    def load(self) -> None:
        """Somebody has loaded what was newest when it began, which may have been a while ago."""
        loading = self.fleet.states(WorkerState.STALE, WorkerState.SERVING, WorkerState.DRAINING)
        if loading:
            member = self.rng.choice(loading)
            self.fleet.holds(member.name, self.rng.randint(max(0, member.version), self.fleet.newest_version), self.now)

    def change(self) -> None:
        living = [member for member in self.fleet.members.values() if member.state is not WorkerState.DEAD]
        member = self.rng.choice(living) if living else None
        match self.rng.randrange(5):
            case 0:
                self.fleet.desired = self.rng.randint(1, 4)
            case 1 if member:
                self._let_go_of_groups(member.name)
                self.fleet.lost(member.name, Gone(), "killed", self.now)
            case 2 if member:
                self.fleet.drain(member.name, "its node goes", self.now)
            case 3 if member and member.state is WorkerState.DRAINING:
                self._let_go_of_groups(member.name)
                self.fleet.left(member.name, self.now)
            case 4 if member and member.state is WorkerState.STARTING:
                self.fleet.started(member.name, self.now)

    def _let_go_of_groups(self, name: str) -> None:
        """They go on elsewhere from the tokens they have."""
        for group in self.groups.values():
            if group.worker == name:
                group.worker = None

    def plan(self) -> None:
        self.fleet.plan(self.now)

    def run(self, num_actions: int) -> None:
        actions = [self.admit, self.dispatch, self.sample, self.train, self.publish, self.load, self.change, self.plan]
        for _ in range(num_actions):
            self.now += self.rng.random()
            self.rng.choices(actions, [4, 4, 4, 3, 2, 3, 1, 2])[0]()
            self.check()

    def check(self) -> None:
        self.admission.check_valid()
        self.fleet.check_valid()
        live = self.admission.live_version
        for member in self.fleet.serving:
            assert member.version >= live, f"{member} samples, {live} is live"
        for group_id, group in self.groups.items():
            assert min(group.versions, default=live) >= group.admitted_version, f"group {group_id} was sampled before it was admitted"
        assert max(self.lags, default=0) <= self.max_lag


@pytest.mark.parametrize("block", range(10))
def test_no_token_is_older_than_the_bound_whoever_joins_leaves_or_is_lost(block):
    lags, steps = set(), 0
    for seed in range(block * 25, block * 25 + 25):
        simulation = Simulation(seed)
        simulation.run(400)
        lags |= simulation.lags
        steps += simulation.trained_version
    assert lags == {0, 1, 2, 3} and steps > 50, "the schedules tried nothing"
