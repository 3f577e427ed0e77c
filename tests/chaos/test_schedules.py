"""Random lives of whole runs: faults of all kinds at random moments, workers that come and go, delays everywhere."""

import asyncio
import random

import pytest

from jobs.directory.events import EventKind
from tests.chaos.chaos_fixture import POLICIES, PROGRESS, Chaos, Fault, How, check_every_token
from tests.jobs.components_fixture import LocalRun, random_delays

pytestmark = pytest.mark.chaos

STEPS = 5
KILLED = (How.BEFORE, How.AFTER, How.TOLD)
ANYTHING = (*KILLED, How.HANGS, How.STALLS)
CALLS = {
    ("rollout", "generate"): ANYTHING,
    ("rollout", "update"): ANYTHING,
    ("rollout", "watch"): ANYTHING,
    ("rollout", PROGRESS): KILLED[1:],
    ("encoder", "encode"): ANYTHING,
    ("verifier", "verify_batch"): ANYTHING,
    ("replay", "insert"): ANYTHING,
    ("replay", "sample"): ANYTHING,
    ("replay", "log"): (*ANYTHING, How.HALFWAY),
    ("replay", "save_part"): (*ANYTHING, How.HALFWAY),
    ("bonus", "score"): ANYTHING,
    ("bonus", "save_part"): (*ANYTHING, How.HALFWAY),
    ("learner", "step"): ANYTHING,
    ("learner", "publish"): ANYTHING,
    ("learner", "save_part"): (*ANYTHING, How.HALFWAY),
    ("learner", "train_log"): KILLED,
    ("bonus", "absorb_log"): KILLED,
    ("replay", "take_over"): KILLED,
}


def random_faults(rng: random.Random) -> list[Fault]:
    chosen = rng.sample(sorted(CALLS), rng.randint(3, 7))
    return [Fault(who=who, method=method, how=rng.choice(CALLS[who, method]), nth=rng.randint(1, 6)) for who, method in chosen]


class Changes:
    """After some of the steps, somebody wants other numbers or takes a process away."""

    def __init__(self, rng: random.Random, run: LocalRun) -> None:
        self._rng = rng
        self._run = run
        self._tasks: list[asyncio.Task[None]] = []
        self.made: list[str] = []

    def make(self, step: int) -> None:
        rng, run, rollouts = self._rng, self._run, self._run.trainer.rollouts
        worker = rng.choice([*rollouts.workers, "nobody"])
        what = rng.choice(["scale", "scale", "drain", "kill", "kill", "encoders", "nothing"])
        self.made.append(what)
        if what == "scale":
            self._do(rollouts.scale(rng.randint(1, 4)))
        elif what == "drain" and worker != "nobody":
            self._do(rollouts.drain(worker, "its node is about to go", within_s=rng.choice([0.0, 0.01, 60.0])))
        elif what == "kill":
            served = len(run.noted(EventKind.WORKER, state="serving"))
            name = rng.choice(sorted(run.handles))
            if served or not name.startswith("rollout"):
                run.handles[name].kill()
        elif what == "encoders":
            self._do(run.run.encoders.resize(rng.randint(1, 3), timeout_s=30.0))

    def _do(self, change) -> None:
        self._tasks.append(asyncio.ensure_future(change))

    def check(self) -> None:
        for task in self._tasks:
            if not task.cancelled():  # with the run's end
                task.result()


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(10, 20))])
def test_no_schedule_loses_or_doubles_anything_or_stops_the_run(config, tmp_path, seed):
    rng = random.Random(f"chaos/{seed}")
    settings = config(
        steps=STEPS,
        max_policy_lag=seed % 3,
        late=POLICIES[seed // 3 % 3],
        seed=seed,
        wait_timeout_s=2.0,
        rollout={"workers": rng.randint(1, 4), "max_sequences": rng.choice([4, 8, 64]), "progress_tokens": rng.choice([1, 3, 32])},
        encoder={"replicas": rng.randint(1, 2)},
        supervision={
            "backoff_s": rng.choice([0.0, 0.01]),
            "heartbeat_s": 0.2,
            "hang_timeout_s": 1.5,
            "drain_timeout_s": rng.choice([0.0, 0.02, 60.0]),
            "max_failures": 20,
            "max_group_tries": rng.choice([2, 20]),
        },
        checkpoint={"every": rng.choice([1, 2, 100]), "learner_every": rng.choice([0, 1])},
    )
    chaos = Chaos(*random_faults(rng), around=random_delays(rng, most_s=0.005))
    run = chaos.start(settings)
    changes = Changes(rng, run)
    run.on_report = changes.make
    assert run.train() == STEPS
    changes.check()
    run.check_valid()
    run.check_restorable(tmp_path)
    assert chaos.fired
    if seed % 4 == 0:
        check_every_token(run, chaos)
    if settings.max_policy_lag == 0 and not run.admission.ledger.dropped:  # then it is a function of its configuration
        undisturbed = LocalRun(config(steps=STEPS, max_policy_lag=0, seed=seed, run_dir=str(tmp_path / "undisturbed")))
        undisturbed.train()
        assert run.samples() == undisturbed.samples()
