"""A run that says how it is and does what it is asked for, in this process."""

import asyncio
from types import SimpleNamespace

import pytest

import jobs.run.control
from actors.verifier import ResizeError
from jobs.config import AutoscaleConfig, RunConfig
from jobs.directory.events import EventKind
from jobs.directory.run_state import Desired, read_status, write_desired
from jobs.run.autoscale import Meter
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


# ---- what it does with a controller, which is made up here ----


class MadeUp:
    """A controller of which the wishes and the waiting shares are given."""

    def __init__(self, *, desired: int, serving: int) -> None:
        self.scaled: list[tuple[str, int]] = []
        self.stopped = False
        self.now = 0.0
        self.meter = Meter(clock=lambda: self.now)
        self.run = SimpleNamespace(encoders=(), step=0)
        self.rollouts = SimpleNamespace(desired=desired, fleet=SimpleNamespace(serving=[None] * serving), lane_idle_share=lambda: self.idle)
        self.idle = 0.0

    def stop(self) -> None:
        self.stopped = True

    async def scale(self, role: str, count: int, *, by: str) -> None:
        self.scaled.append((role, count))
        if role == "rollout":
            self.rollouts.desired = count


def control_of(tmp_path, **values) -> Control:
    return Control(tmp_path, "test", RunConfig.model_validate({"run_dir": str(tmp_path), **values}), warn=print)


def test_an_old_wish_for_workers_does_not_undo_what_autoscaling_did(tmp_path):
    async def scenario() -> None:
        control, controller = control_of(tmp_path), MadeUp(desired=1, serving=1)
        wishes = Desired(rollout=2, serial=1)
        write_desired(tmp_path, wishes)
        await control._read_desired(controller)
        assert controller.scaled == [("rollout", 2)]
        controller.rollouts.desired = 6  # by autoscaling
        write_desired(tmp_path, wishes.model_copy(update={"verifier": 4, "serial": 2}))
        await control._read_desired(controller)
        control.desired = control.desired.model_copy(update={"verifier": None})  # which could not be met
        write_desired(tmp_path, wishes.model_copy(update={"verifier": 4, "serial": 2, "stop": True}))
        await control._read_desired(controller)
        assert controller.scaled == [("rollout", 2)] and controller.stopped and control.desired.verifier is None

    asyncio.run(scenario())


def test_the_same_wish_for_workers_is_obeyed_again(tmp_path):
    async def scenario() -> None:
        control, controller = control_of(tmp_path), MadeUp(desired=1, serving=1)
        for serial in (1, 2):
            write_desired(tmp_path, Desired(rollout=2, serial=serial))
            await control._read_desired(controller)
            controller.rollouts.desired = 5
        assert controller.scaled == [("rollout", 2)] * 2

    asyncio.run(scenario())


def test_a_worker_that_finds_no_place_does_not_keep_idle_workers(tmp_path):
    async def scenario() -> None:
        control = control_of(tmp_path, autoscale=AutoscaleConfig(policy="queue", max_workers=8, interval_s=10).model_dump())
        controller = MadeUp(desired=4, serving=3)
        controller.idle = 0.9
        for _ in range(30):
            await control._autoscale(controller)
            controller.now += 1.0
        assert controller.scaled == [("rollout", 3)], "fewer, though one has not started"
        busy = MadeUp(desired=4, serving=3)
        with busy.meter.learner_waits():
            for _ in range(30):
                await control._autoscale(busy)
                busy.now += 1.0
        assert busy.scaled == [], "no more are asked for while one starts"

    asyncio.run(scenario())


def test_a_change_of_size_under_way_ends_with_the_run(tmp_path):
    """Else it would call Ray after Ray was shut down, which starts another one."""

    async def scenario() -> None:
        control = control_of(tmp_path)
        ended = asyncio.Event()

        async def change() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def obey(controller) -> None:
            control._changing = asyncio.create_task(change())
            await asyncio.Event().wait()

        control._obey, control.export, control.enter = obey, lambda: None, lambda *args, **options: None
        loop = asyncio.create_task(control.loop(MadeUp(desired=1, serving=1)))
        await asyncio.sleep(0.05)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        assert ended.is_set()

    asyncio.run(scenario())


def test_what_was_asked_for_in_an_earlier_start_and_is_not_configured_is_told(tmp_path):
    write_desired(tmp_path, Desired(rollout=2, verifier=1, serial=1))
    (told,) = control_of(tmp_path, rollout={"workers": 6}).wishes()
    assert told.startswith("the run is to have 2 of role rollout, as repexp scale asked for before, and not 6: delete ")
    assert control_of(tmp_path, rollout={"workers": 2}).wishes() == []
