"""A run that says how it is and does what it is asked for, in this process."""

import asyncio

import pytest

import jobs.run.control
from actors.verifier import ResizeError
from jobs.directory.events import EventKind
from jobs.directory.run_state import Desired, read_status, write_desired
from jobs.run.control import Control
from tests.jobs.components_fixture import BOUND_S, CoinJudge, LocalRun, small_config

pytestmark = pytest.mark.whole


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(jobs.run.control, "TICK_S", 0.01)


class Watched:
    """A LocalRun with its Control; `asked` are wishes by the step after which they are written."""

    def __init__(self, model, tmp_path, asked=(), around=None, **settings):
        self.run = LocalRun(small_config(model, tmp_path, **settings), around=around)
        self.path = self.run.directory.path
        self.path.mkdir(parents=True, exist_ok=True)
        self.warnings = []
        self.control = Control(self.path, "test", self.run.config, warn=self.warnings.append)
        self.seen = []
        self.asked = dict(asked)
        self.run.on_report = self._on_report

    def _on_report(self, step):
        self.control.stepped(self.run.reports[-1][1])
        self.seen.append(read_status(self.path))
        if step in self.asked:
            write_desired(self.path, self.asked[step])

    def train(self):
        async def scenario():
            async with asyncio.timeout(BOUND_S):
                trainer = self.run.trainer
                return await trainer.train(0, alongside=[self.control.loop(trainer)])

        return asyncio.run(scenario())


def test_status_tells_step_workers_queues_and_tokens(tiny_model, tmp_path):
    watched = Watched(tiny_model, tmp_path, steps=6)
    assert watched.train() == 6
    watched.control.write()
    status = read_status(watched.path)
    assert (status.step, status.steps, status.trained_version) == (6, 6, 6)
    assert status.desired == {"rollout": 1, "verifier": 1, "encoder": 1}
    assert {worker.role for worker in status.workers} == {"rollout", "encoder"}
    assert status.tokens["generated"] > 0
    assert set(status.queues) == {"requests", "sampling", "sampled", "held", "free_slots"}
    assert status.metrics["reward/mean"] == watched.run.reports[-1][1]["reward/mean"]
    watched.run.check_valid()


def test_a_wish_for_workers_is_met_and_kept(tiny_model, tmp_path):
    watched = Watched(tiny_model, tmp_path, {2: Desired(rollout=3), 30: Desired(rollout=1)}, steps=60, checkpoint={"every": 1000})
    assert watched.train() == 60
    most = max(len(watched.run.parts["rollout"]), 0)
    assert most == 3
    assert watched.control.desired.rollout == 1
    assert watched.run.trainer.rollouts.desired == 1
    watched.run.check_valid()


def test_a_wish_for_verifiers_that_cannot_be_met_is_tried_once_each_time_it_is_asked_and_costs_no_verifier_pool(tiny_model, tmp_path):
    asked = []

    async def failing(name, method, args, proceed):
        if method == "resize":
            asked.extend(args)
            raise ResizeError("none of 99 new verifier workers was ready")
        return await proceed()

    wishes = {2: Desired(verifier=99), 30: Desired(verifier=99, serial=1)}
    watched = Watched(tiny_model, tmp_path, wishes, around=failing, steps=60, checkpoint={"every": 1000})
    assert watched.train() == 60
    watched.run.check_valid()
    assert asked == [99, 99]
    assert len(watched.run.parts["verifier"]) == 1
    assert (
        watched.warnings
        == ["the number of verifiers or encoders could not be changed: none of 99 new verifier workers was ready (infrastructure)"] * 2
    )
    assert read_status(watched.path).desired["verifier"] == 1


def test_a_verifier_pool_that_is_lost_is_made_anew_with_the_size_last_met(tiny_model, tmp_path):
    asked = []

    class Pool(CoinJudge):
        def resize(self, num_workers):
            asked.append(num_workers)
            if num_workers == 99:
                raise ResizeError("none of 99 new verifier workers was ready")

    run = LocalRun(small_config(tiny_model, tmp_path, supervision={"backoff_s": 0.0}), judge=Pool())

    async def scenario():
        await run.run.resize_verifier(2)
        with pytest.raises(ResizeError):
            await run.run.resize_verifier(99)
        run.handles["verifier"].kill()
        await run.run.resize_verifier(3)

    asyncio.run(scenario())
    assert asked == [2, 99, 2, 3]


def test_a_wish_to_stop_writes_a_checkpoint_and_is_forgotten_by_the_next_start(tiny_model, tmp_path):
    watched = Watched(tiny_model, tmp_path, {2: Desired(stop=True, rollout=2)}, steps=100_000, checkpoint={"every": 100_000})
    step = watched.train()
    assert 2 <= step < 100_000
    assert watched.run.checkpoints.latest() == step
    again = Control(watched.path, "test", watched.run.config, warn=print)
    assert again.desired == Desired(rollout=2)


def test_wishes_that_cannot_be_read_are_told_and_change_nothing(tiny_model, tmp_path):
    watched = Watched(tiny_model, tmp_path, steps=4)
    watched.asked = {}
    report = watched.run.on_report

    def damage(step):
        report(step)
        (watched.path / "desired.json").write_text("{")

    watched.run.on_report = damage
    assert watched.train() == 4
    assert any("desired.json is damaged" in warning for warning in watched.warnings)


def test_a_status_that_cannot_be_written_stops_nothing(tiny_model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    watched = Watched(tiny_model, tmp_path, steps=3)
    monkeypatch.setattr(jobs.run.control, "write_status", full)
    assert watched.train() == 3
    assert "status.json cannot be written: No space left on device" in watched.warnings


def test_autoscaling_adds_workers_while_the_learner_waits_for_groups(tiny_model, tmp_path):
    """Each worker samples one group at a time, slowly; the bounds hold, and the log says who wanted what."""

    async def slow(name, method, args, proceed):
        if method == "generate":
            await asyncio.sleep(0.2)
        return await proceed()

    settings = {"autoscale": {"policy": "queue", "max_workers": 3, "interval_s": 0.3}, "rollout": {"max_sequences": 4}, "steps": 15}
    watched = Watched(tiny_model, tmp_path, around=slow, checkpoint={"every": 100}, **settings)
    assert watched.train() == 15
    watched.run.check_valid()
    wanted = [fields["count"] for kind, fields in watched.run.events if kind is EventKind.DESIRED]
    assert wanted[:2] == [2, 3]
    assert max(wanted) == 3
    assert {fields["by"] for kind, fields in watched.run.events if kind is EventKind.DESIRED} == {"autoscale"}
