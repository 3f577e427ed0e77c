"""Lives of rollout workers, with scripted workers in this process: what is given to whom, and what becomes of it."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import EngineError, WeightMismatch
from actors.rollout import DataError
from buffers.records import GroupRequest, GroupUsage, Heartbeat, Problem, WeightUpdate
from jobs.config import RunConfig
from jobs.processes.failures import PublicationFailed, first_error
from jobs.processes.handles import ActorDied, DataLost, Deadline, LocalHandle
from jobs.run.books import DropReason
from jobs.run.components import Run
from jobs.run.faults import Listener
from jobs.run.rollouts import Rollouts
from jobs.run.watchdog import Waits
from learners.weight_check import WeightsRefused
from tests.actors.coroutines import run

BOUND_S = 10.0


@dataclass
class Published:
    """Weights, and who finds fault with them."""

    version: int
    refused_by: str | None = None
    is_gone: bool = False
    """With the node that held them."""


class ScriptedWorker:
    """Samples when it is told to. A group's rows are a list of what was done for it, by whom."""

    def __init__(self, name: str, scene: "Scene") -> None:
        self.name = name
        self.scene = scene
        self.version = 0
        self.sampled_tokens = 0
        self.asked: dict[int, tuple[GroupRequest, Any]] = {}
        self.ends: dict[int, asyncio.Future[tuple[Any, int]]] = {}
        self.times_given: Counter[int] = Counter()
        self.resumed: dict[int, Any] = {}
        self.moved = asyncio.Condition()
        self.may_load = scene.may_load
        self.closed = False

    async def start(self) -> str:
        if self.scene.start_error is not None:
            raise self.scene.start_error
        await self.scene.may_start.wait()
        return self.name

    async def generate(self, request: GroupRequest, messages: Any, resume: Any) -> tuple[Any, GroupUsage]:
        group_id = request.group_id
        self.asked[group_id], self.resumed[group_id] = (request, resume), resume
        self.times_given[group_id] += 1
        self.ends[group_id] = asyncio.get_running_loop().create_future()
        await self.scene.note()
        try:
            rows, num_aborted = await self.ends[group_id]
        finally:
            del self.asked[group_id], self.ends[group_id]
        usage = GroupUsage(worker_id=self.name, prompt_tokens=1, response_tokens=4, generate_s=0.1, num_aborted=num_aborted)
        return rows, usage

    async def watch(self, cursor: int, timeout_s: float) -> tuple[Any, Heartbeat]:
        async with self.moved:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.moved.wait_for(lambda: self.sampled_tokens > cursor)
            except TimeoutError:
                pass
        beat = Heartbeat(
            worker_id=self.name,
            version=self.version,
            tokens_by_group=dict.fromkeys(self.asked, self.sampled_tokens),
            sampled_tokens=self.sampled_tokens,
            rss_bytes=2**20,
        )
        return f"progress of {self.name} at {self.sampled_tokens}", beat

    async def update(self, weights: "Published") -> WeightUpdate:
        await self.may_load.wait()
        if self.scene.load_error is not None:
            raise self.scene.load_error
        self.scene.offered.append((self.name, weights.version))
        if weights.is_gone:
            raise DataLost("data that update needs was lost")
        if weights.refused_by == self.name or weights.refused_by == "all":
            raise WeightsRefused(f"version {weights.version}: tensor t is not as it was published")
        self.version = weights.version
        return WeightUpdate(worker_id=self.name, version=weights.version, load_s=0.0, idle_s=0.0)

    async def abort(self, group_id: int) -> None:
        if group_id in self.ends and not self.ends[group_id].done():
            self.ends[group_id].set_result((f"rows of {group_id} by {self.name}", 2))

    async def close(self) -> None:
        await self.scene.may_close.wait()
        self.closed = True

    # ---- what a test does to it ----

    async def sample(self, tokens: int) -> None:
        async with self.moved:
            self.sampled_tokens += tokens
            self.moved.notify_all()

    def finish(self, group_id: int) -> None:
        self.ends[group_id].set_result((f"rows of {group_id} by {self.name}", 0))

    def fail(self, group_id: int, error: Exception) -> None:
        self.ends[group_id].set_exception(error)


class Scene:
    """Rollouts over scripted workers; it is their observer too.

    async with Scene(workers=2) as scene: ...
    """

    def __init__(self, *, workers: int = 1, lanes: int = 2, **supervision: Any) -> None:
        self.deterministic = supervision.pop("deterministic", False)
        settings = {"heartbeat_s": 0.02, "hang_timeout_s": BOUND_S, "backoff_s": 0.0, "drain_timeout_s": BOUND_S, **supervision}
        config = RunConfig.model_validate(
            {
                "responses_per_prompt": 2,
                "deterministic": self.deterministic,
                "rollout": {"max_sequences": 2 * lanes, "group_timeout_s": supervision.pop("group_timeout_s", BOUND_S)},
                "supervision": {name: value for name, value in settings.items() if name != "group_timeout_s"},
            }
        )
        self.workers: dict[str, ScriptedWorker] = {}
        self.handles: dict[str, LocalHandle] = {}
        self.may_be_placed, self.may_start = asyncio.Event(), asyncio.Event()
        self.may_load, self.may_close = asyncio.Event(), asyncio.Event()
        for event in (self.may_be_placed, self.may_start, self.may_load, self.may_close):
            event.set()
        self.start_error: Exception | None = None
        self.load_error: Exception | None = None
        self.send_away_when_given = False
        self.done: list[tuple[int, Any]] = []
        self.drops: list[tuple[int, str]] = []
        self.losses: list[tuple[str, list[int]]] = []
        self.stalls: list[tuple[int, str]] = []
        self.offered: list[tuple[str, int]] = []
        self.refusals: list[tuple[str, int, int]] = []
        self.learner_publishes: list[Published] = []
        self._changed = asyncio.Condition()
        task = SimpleNamespace(prompt=lambda problem: [])
        self.waits = Waits()
        books = SimpleNamespace(admission=SimpleNamespace(capacity=100), dispatched=self.dispatched, beat=self.beat)
        books.returned = lambda request, worker, usage: None
        books.worker_ended = lambda worker: None
        parts = SimpleNamespace(config=config, task=task, launch=self.launch, books=books, waits=self.waits)
        parts.components = SimpleNamespace(rollout_worker=lambda number: f"rollout-{number}")
        parts.listener = Listener(stepped=lambda *_: None, note=lambda kind, **fields: self._note_soon())
        parts.faults = SimpleNamespace(note=self.noted, process_lost=self.lost)
        parts.call = lambda handle, method, *args, **options: Run.call(parts, handle, method, *args, **options)
        parts.placed = lambda handle, loop: Run.placed(parts, handle, loop)
        parts.weights = self.weights
        parts.generate = lambda handle, request, resume=None, **options: Run.generate(parts, handle, request, resume, **options)
        self.rollouts = Rollouts(parts, self, desired=workers)

    async def __aenter__(self) -> "Scene":
        self.running = asyncio.create_task(self.rollouts.run_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])

    def launch(self, name: str) -> LocalHandle:
        self.workers[name] = ScriptedWorker(name, self)
        self.handles[name] = LocalHandle(self.workers[name], name)
        self.handles[name].placed = self._placed  # type: ignore[method-assign]
        return self.handles[name]

    async def _placed(self) -> str | None:
        await self.may_be_placed.wait()
        return None

    async def weights(self) -> tuple[Published, int]:
        """What the learner hands out, call by call."""
        weights = self.learner_publishes.pop(0)
        return weights, weights.version

    def submit(self, *group_ids: int) -> None:
        for group_id in group_ids:
            problem = Problem(task="t", problem_id=f"p{group_id}", question="?", answer="!")
            self.rollouts.submit(GroupRequest(group_id=group_id, problem=problem, num_responses=2, admitted_version=0))

    def who_has(self, group_id: int) -> str | None:
        return next((name for name, worker in self.workers.items() if group_id in worker.asked and name in self.rollouts.workers), None)

    def state(self, name: str) -> str:
        return self.rollouts.fleet.members[name].state.value

    async def until(self, condition: Any) -> Any:
        """Until something that was noted makes it true."""
        async with self._changed, asyncio.timeout(BOUND_S):
            while not (found := condition()):
                await self._changed.wait()
            return found

    async def until_given(self, group_id: int, *, but: str | None = None) -> ScriptedWorker:
        name = await self.until(lambda: (found := self.who_has(group_id)) and found != but and found)
        return self.workers[name]

    async def until_serving(self, num: int) -> None:
        await self.until(lambda: len(self.rollouts.fleet.serving) == num)

    async def note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _note_soon(self) -> None:
        self._noting = asyncio.ensure_future(self.note())

    # ---- jobs.run.rollouts.Observer ----

    def sampled(self, sampled: Any) -> None:
        self.done.append((sampled.request.group_id, sampled.batch))
        self._note_soon()

    def dropped(self, work: Any, why: DropReason, error: Exception | None) -> None:
        self.drops.append((work.request.group_id, why))
        self._note_soon()

    def updated(self, update: WeightUpdate) -> None:
        self._note_soon()

    # ---- what a run is told ----

    def dispatched(self, request: GroupRequest, worker: str, *, tries: int, resumed_tokens: int) -> None:
        if self.send_away_when_given:
            self._leaving = asyncio.ensure_future(self.rollouts.drain(worker, "its node is about to go", within_s=BOUND_S))
            self.send_away_when_given = False

    def beat(self, worker: str, beat: Heartbeat) -> None:
        self._note_soon()

    def noted(self, role: str, name: str, error: Exception) -> None:
        if role == "group":
            self.stalls.append((int(name), str(error)))
            return
        assert role == "publication"
        assert "tensor t is not as it was published" in str(error) or isinstance(error, DataLost)
        self.refusals.append((name, self.rollouts.newest[0], self.rollouts.fleet.members[name].version))
        self._note_soon()

    def lost(self, worker: str, error: Exception) -> None:
        self.losses.append((worker, sorted(self.rollouts.workers[worker].groups)))


def test_groups_go_to_free_lanes_lowest_id_first():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=2) as scene:
            scene.submit(7, 3, 5)
            worker = await scene.until_given(5)
            assert sorted(worker.asked) == [3, 5]
            worker.finish(3)
            await scene.until_given(7)
            assert scene.done == [(3, "rows of 3 by rollout-0")]

    run(scenario())


def test_groups_of_a_lost_worker_go_on_elsewhere_from_what_is_safe():
    async def scenario() -> None:
        async with Scene(workers=2, lanes=1) as scene:
            scene.submit(0)
            first = await scene.until_given(0)
            await first.sample(10)
            await scene.until(
                lambda: scene.rollouts.workers[first.name].beat and scene.rollouts.workers[first.name].beat.sampled_tokens == 10
            )
            scene.handles[first.name].kill()
            second = await scene.until_given(0, but=first.name)
            request, resume = second.asked[0]
            assert request.group_id == 0
            assert resume == f"progress of {first.name} at 10"
            assert scene.losses == [(first.name, [0])]
            second.finish(0)
            await scene.until(lambda: scene.done)
            await scene.until_serving(2)
            assert "rollout-2" in scene.rollouts.workers, "the lost one is replaced"

    run(scenario())


def test_a_group_that_was_not_in_the_last_report_begins_anew():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, heartbeat_s=BOUND_S) as scene:
            scene.submit(0)
            first = await scene.until_given(0)
            scene.handles[first.name].kill()
            second = await scene.until_given(0, but=first.name)
            assert second.asked[0][1] is None

    run(scenario())


@pytest.mark.parametrize(
    "error", [ActorDied("killed"), EngineError("the engine failed"), Deadline("hangs")], ids=lambda e: type(e).__name__
)
def test_any_loss_found_by_a_group_is_the_workers(error):
    async def scenario() -> None:
        async with Scene(workers=1, lanes=2) as scene:
            scene.submit(0, 1)
            first = await scene.until_given(1)
            if isinstance(error, Deadline):  # of the watch, not of a group: that is the group's
                scene.workers[first.name].watch = _raises(error)
                await first.sample(1)
            else:
                first.fail(0, error)
            second = await scene.until_given(1, but=first.name)
            await scene.until_given(0, but=first.name)
            assert scene.losses == [(first.name, [0, 1])]
            assert sorted(second.asked) == [0, 1]

    run(scenario())


def _raises(error: Exception) -> Any:
    async def raising(*_: Any) -> None:
        raise error

    return raising


def test_a_worker_that_samples_nothing_is_lost_though_it_answers():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, hang_timeout_s=0.1) as scene:
            scene.submit(0)
            first = await scene.until_given(0)
            await scene.until_given(0, but=first.name)
            assert scene.losses[0] == (first.name, [0])

    run(scenario())


def test_a_worker_without_groups_may_be_idle_for_ever():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, hang_timeout_s=0.05) as scene:
            await scene.until_serving(1)
            beats = 0

            def counted() -> bool:
                nonlocal beats
                beats += 1
                return beats > 10

            await scene.until(counted)
            assert scene.losses == []

    run(scenario())


def test_a_group_that_costs_too_many_workers_is_dropped():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, max_group_tries=2) as scene:
            scene.submit(0)
            last = None
            for _ in range(2):
                worker = await scene.until_given(0, but=last)
                last = worker.name
                scene.handles[last].kill()
            await scene.until(lambda: scene.drops)
            assert scene.drops == [(0, DropReason.LOST)]

    run(scenario())


def test_a_group_may_take_as_long_as_it_grows():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, group_timeout_s=0.5) as scene:
            scene.submit(0)
            worker = await scene.until_given(0)
            for _ in range(20):
                await worker.sample(1)
                await asyncio.sleep(0.05)
            worker.finish(0)
            await scene.until(lambda: scene.done)
            assert worker.times_given[0] == 1 and scene.drops == scene.losses == []

    run(scenario())


def test_a_group_that_does_not_grow_goes_on_with_what_it_has_and_is_dropped_when_that_is_no_use():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, group_timeout_s=0.05, max_group_tries=3) as scene:
            scene.submit(0, 1)
            worker = await scene.until_given(0)
            await worker.sample(4)
            await scene.until(lambda: scene.drops)
            assert (worker.times_given[0], worker.resumed[0]) == (4, f"rows of 0 by {worker.name}"), "the first one sampled some of it"
            assert scene.stalls == 3 * [(0, f"{worker.name} has sampled nothing of group 0 for 0.05 s (rollout.group_timeout_s)")]
            await scene.until(lambda: len(scene.drops) == 2)
            assert scene.drops == [(0, DropReason.TIMEOUT), (1, DropReason.TIMEOUT)]
            assert scene.losses == []

    run(scenario())


def test_a_group_that_cannot_go_on_with_what_it_has_is_dropped_though_each_worker_samples_some_of_it():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, group_timeout_s=0.05, max_group_tries=3, deterministic=True) as scene:
            scene.submit(0)
            worker = await scene.until_given(0)
            await worker.sample(4)
            await scene.until(lambda: scene.drops)
            assert (worker.times_given[0], worker.resumed[0], scene.drops) == (3, None, [(0, DropReason.TIMEOUT)])

    run(scenario())


def test_a_group_whose_worker_cannot_let_go_of_it_goes_on_elsewhere_and_is_not_dropped():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, group_timeout_s=0.2, hang_timeout_s=0.2) as scene:
            scene.submit(0)
            first = await scene.until_given(0)
            first.abort = _never
            second = await scene.until_given(0, but=first.name)
            second.finish(0)
            await scene.until(lambda: scene.done)
            assert (scene.drops, scene.losses) == ([], [(first.name, [0])])

    run(scenario())


async def _never(*_: Any) -> None:
    await asyncio.Event().wait()


def test_a_problem_that_cannot_be_used_is_dropped_and_its_worker_stays():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1) as scene:
            scene.submit(0, 1)
            (await scene.until_given(0)).fail(0, DataError("the prompt is too long"))
            await scene.until_given(1)
            assert (scene.drops, scene.losses) == ([(0, DropReason.DATA)], [])

    run(scenario())


def test_rows_that_went_with_a_node_are_sampled_anew_by_a_worker_that_stays():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1) as scene:
            scene.submit(0)
            worker = await scene.until_given(0)
            worker.fail(0, DataLost("the rows are gone"))
            await scene.until(lambda: worker.times_given[0] == 2)
            assert worker.asked[0][1] is None
            assert scene.losses == []

    run(scenario())


def test_what_a_worker_told_of_rows_that_are_lost_since_is_not_gone_on_from():
    """It has told of the group, is given it anew from nothing, and is lost before it tells of it again."""

    async def scenario() -> None:
        async with Scene(workers=1, lanes=1, heartbeat_s=BOUND_S) as scene:
            scene.submit(0)
            worker = await scene.until_given(0)
            await worker.sample(10)
            life = scene.rollouts.workers[worker.name]
            await scene.until(lambda: life.beat and life.beat.tokens_by_group == {0: 10})
            worker.fail(0, DataLost("the rows are gone"))
            await scene.until(lambda: worker.times_given[0] == 2)
            scene.handles[worker.name].kill()
            other = await scene.until_given(0, but=worker.name)
            assert other.asked[0][1] is None

    run(scenario())


@pytest.mark.parametrize("error", [KeyError("a bug"), WeightMismatch("not the weights")], ids=lambda e: type(e).__name__)
def test_a_bug_ends_the_run_with_its_own_error(error):
    async def scenario() -> None:
        async with Scene(workers=2, lanes=1) as scene:
            scene.submit(0)
            (await scene.until_given(0)).fail(0, error)
            with pytest.raises(BaseExceptionGroup) as raised:
                await scene.running
            assert raised.value.subgroup(lambda found: found is error)

    run(scenario())


def test_a_worker_that_cannot_start_ends_the_run_at_once_with_its_own_error():
    async def scenario() -> None:
        scene = Scene(workers=1)
        scene.start_error = ValueError("no such model")
        async with scene:
            with pytest.raises(BaseExceptionGroup) as raised:
                await scene.running
            assert raised.value.subgroup(lambda found: found is scene.start_error)

    run(scenario())


def test_a_joiner_is_given_nothing_before_it_holds_the_newest_weights():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1) as scene:
            await scene.until_serving(1)
            await scene.rollouts.publish(1, Published(1))
            await scene.rollouts.published(1)
            scene.may_load.clear()
            await scene.rollouts.scale(2)
            await scene.until(lambda: len(scene.workers) == 2 and scene.state("rollout-1") == "stale")
            scene.submit(0, 1)
            await scene.until_given(0)
            assert scene.who_has(1) is None
            scene.may_load.set()
            assert (await scene.until_given(1)).name == "rollout-1"
            assert scene.workers["rollout-1"].version == 1

    run(scenario())


def test_a_version_is_published_when_all_who_serve_have_it_or_are_gone():
    async def scenario() -> None:
        async with Scene(workers=2) as scene:
            await scene.until_serving(2)
            scene.may_load.clear()
            await scene.rollouts.publish(1, Published(1))
            publishing = asyncio.create_task(scene.rollouts.published(1))
            await asyncio.sleep(0)
            assert not publishing.done()
            for name in list(scene.rollouts.workers):
                scene.handles[name].kill()
            async with asyncio.timeout(BOUND_S):
                await publishing

    run(scenario())


async def let_all_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class CountedLooks(dict):
    """The members of a fleet, with the number of times that one was looked up."""

    num_looks = 0

    def __getitem__(self, name: str) -> Any:
        self.num_looks += 1
        return super().__getitem__(name)


def test_a_change_of_one_worker_wakes_no_other_that_waits_for_newer_weights():
    async def scenario() -> None:
        async with Scene(workers=3) as scene:
            await scene.until_serving(3)
            await let_all_run()
            fleet = scene.rollouts.fleet
            members = fleet.members = CountedLooks(fleet.members)
            await scene.rollouts.note_change()
            await let_all_run()
            assert members.num_looks == 0
            await scene.rollouts.publish(1, Published(1))
            await scene.rollouts.published(1)
            assert sorted(scene.offered) == [(name, 1) for name in sorted(members)]

    run(scenario())


def test_refused_weights_are_published_again_and_the_old_ones_serve_meanwhile():
    async def scenario() -> None:
        async with Scene(workers=2, lanes=1) as scene:
            scene.submit(0, 1)
            await scene.until_given(1)
            scene.learner_publishes = [Published(1, "rollout-1"), Published(1)]
            await scene.rollouts.publish(1, Published(1, "rollout-1"))
            publishing = asyncio.create_task(scene.rollouts.published(1))
            async with asyncio.timeout(BOUND_S):
                await publishing
            assert scene.refusals == [("rollout-1", 1, 0)] * 2
            assert scene.offered.count(("rollout-1", 1)) == 3 and ("rollout-0", 1) in scene.offered
            assert {worker.version for worker in scene.workers.values()} == {1}
            assert scene.losses == [] and len(scene.rollouts.fleet.serving) == 2
            for group_id in (0, 1):  # neither was disturbed
                scene.workers[scene.who_has(group_id)].finish(group_id)
            await scene.until(lambda: len(scene.done) == 2)
            assert all(worker.times_given.total() == 1 for worker in scene.workers.values())

    run(scenario())


def test_weights_that_went_with_a_node_are_published_again_and_cost_no_worker():
    async def scenario() -> None:
        async with Scene(workers=2, max_failures=3) as scene:
            await scene.until_serving(2)
            scene.learner_publishes = [Published(version=1)]
            await scene.rollouts.publish(1, Published(version=1, is_gone=True))
            async with asyncio.timeout(BOUND_S):
                await scene.rollouts.published(1)
            assert {worker.version for worker in scene.workers.values()} == {1}
            assert scene.losses == [] and len(scene.workers) == 2
            assert not scene.learner_publishes

    run(scenario())


def test_a_version_that_is_refused_is_not_live_before_it_is_held():
    async def scenario() -> None:
        async with Scene(workers=2, backoff_s=BOUND_S) as scene:
            await scene.until_serving(2)
            await scene.rollouts.publish(1, Published(1, "rollout-1"))
            publishing = asyncio.create_task(scene.rollouts.published(1))
            await scene.until(lambda: scene.refusals and scene.rollouts.fleet.members["rollout-0"].version == 1)
            assert scene.rollouts.fleet.members["rollout-1"].version == 0
            assert not publishing.done()
            publishing.cancel()

    run(scenario())


def test_weights_that_are_refused_over_and_over_end_the_run_by_name():
    async def scenario() -> None:
        async with Scene(workers=2, max_failures=3) as scene:
            await scene.until_serving(2)
            scene.learner_publishes = [Published(1, "rollout-1") for _ in range(10)]
            await scene.rollouts.publish(1, Published(1, "rollout-1"))
            with pytest.raises(BaseExceptionGroup) as raised:
                await scene.running
            failure = first_error(raised.value)
            assert isinstance(failure, PublicationFailed) and isinstance(failure.__cause__, WeightsRefused)
            assert str(failure) == (
                "rollout-1 refused weights 4 times in a row and still holds version 0; the last time: "
                "version 1: tensor t is not as it was published"
            )
            assert len(scene.refusals) == 4

    run(scenario())


def test_what_two_refuse_is_published_again_once():
    async def scenario() -> None:
        async with Scene(workers=2) as scene:
            await scene.until_serving(2)
            scene.learner_publishes = [Published(1)]
            await scene.rollouts.publish(1, Published(1, "all"))
            async with asyncio.timeout(BOUND_S):
                await scene.rollouts.published(1)
            assert sorted(worker for worker, _, _ in scene.refusals) == ["rollout-0", "rollout-1"]
            assert scene.learner_publishes == []

    run(scenario())


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_learner_that_is_ahead_publishes_newer_weights_instead_unless_the_order_is_fixed(deterministic):
    """The version that was refused is then offered again as it is: here it is whole the second time."""

    async def scenario() -> None:
        async with Scene(workers=1, deterministic=deterministic) as scene:
            await scene.until_serving(1)
            weights = Published(1, "all")
            scene.learner_publishes = [Published(2)]

            def repair(*args: Any) -> None:
                weights.refused_by = None
                scene.noted(*args)

            scene.rollouts.run.faults.note = repair
            await scene.rollouts.publish(1, weights)
            async with asyncio.timeout(BOUND_S):
                await scene.rollouts.published(1)
            assert scene.workers["rollout-0"].version == (1 if deterministic else 2)
            assert scene.rollouts.fleet.newest_version == scene.workers["rollout-0"].version

    run(scenario())


def test_a_version_that_was_passed_over_is_as_good_as_published():
    """The learner was two steps ahead when weights were refused. Then the publication of the step between comes."""

    async def scenario() -> None:
        async with Scene(workers=1) as scene:
            await scene.until_serving(1)
            scene.learner_publishes = [Published(3)]
            await scene.rollouts.publish(1, Published(1, "all"))
            await scene.rollouts.published(3)
            await scene.rollouts.publish(2, Published(2))
            async with asyncio.timeout(BOUND_S):
                await scene.rollouts.published(2)
            assert scene.offered == [("rollout-0", 1), ("rollout-0", 3)]
            assert scene.rollouts.newest[0] == 3

    run(scenario())


def test_a_joiner_that_refuses_weights_serves_once_it_holds_some():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1) as scene:
            await scene.until_serving(1)
            scene.learner_publishes = [Published(1)]
            await scene.rollouts.publish(1, Published(1, "rollout-1"))
            await scene.rollouts.published(1)
            await scene.rollouts.scale(2)
            await scene.until_serving(2)
            assert (scene.refusals, scene.workers["rollout-1"].version) == ([("rollout-1", 1, 0)], 1)

    run(scenario())


def test_shrinking_lets_groups_finish_first():
    async def scenario() -> None:
        async with Scene(workers=2, lanes=1) as scene:
            scene.submit(0, 1)
            await scene.until_given(0)
            await scene.until_given(1)
            await scene.rollouts.scale(1)
            await scene.until(lambda: scene.state("rollout-1") == "draining")
            leaver = scene.workers["rollout-1"]
            (group_id,) = leaver.asked
            scene.submit(2)
            leaver.finish(group_id)
            await scene.until(lambda: scene.state("rollout-1") == "dead")
            assert leaver.closed
            assert scene.done == [(group_id, f"rows of {group_id} by rollout-1")]
            assert scene.who_has(2) is None

    run(scenario())


def test_what_is_not_finished_in_time_is_handed_over_with_its_tokens():
    async def scenario() -> None:
        async with Scene(workers=2, lanes=2, drain_timeout_s=0.0) as scene:
            await scene.until_serving(2)
            scene.submit(0, 1, 2)
            for group_id in range(3):
                await scene.until_given(group_id)
            handed_over = [group_id for group_id in range(3) if scene.who_has(group_id) == "rollout-1"]
            await scene.rollouts.scale(1)
            await scene.until(lambda: scene.state("rollout-1") == "dead")
            stays = scene.workers["rollout-0"]
            for group_id in [group_id for group_id in stays.asked if group_id not in handed_over]:
                stays.finish(group_id)
            for group_id in handed_over:
                assert (await scene.until_given(group_id)) is stays
                assert stays.asked[group_id][1] == f"rows of {group_id} by rollout-1"
                stays.finish(group_id)
            assert handed_over
            assert scene.losses == [] and scene.drops == []

    run(scenario())


def test_one_that_is_given_a_group_and_sent_away_before_it_has_begun_to_serve_finishes_it():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1) as scene:
            scene.send_away_when_given = True
            scene.submit(0)
            worker = await scene.until_given(0)
            worker.finish(0)
            await scene.until(lambda: scene.done)

    run(scenario())


def test_a_group_that_was_not_begun_when_it_was_to_be_handed_over_is_asked_for_again():
    async def scenario() -> None:
        async with Scene(workers=2, lanes=1, drain_timeout_s=0.0) as scene:
            scene.submit(0)
            leaver = await scene.until_given(0)
            abort, leaver.abort = leaver.abort, _ignore_once(leaver)
            await scene.rollouts.drain(leaver.name, "its node is about to go", within_s=0.0)
            assert (await scene.until_given(0, but=leaver.name)).asked[0][1] == f"rows of 0 by {leaver.name}"
            assert leaver.abort == abort

    run(scenario())


def _ignore_once(worker: ScriptedWorker) -> Any:
    async def ignore(group_id: int) -> None:
        del worker.abort

    return ignore


def test_a_worker_that_still_starts_can_leave():
    async def scenario() -> None:
        scene = Scene(workers=1)
        async with scene:
            await scene.until_serving(1)
            scene.may_start.clear()
            await scene.rollouts.scale(2)
            await scene.until(lambda: len(scene.workers) == 2)
            await scene.rollouts.scale(1)
            await scene.until(lambda: scene.state("rollout-1") == "dead")
            assert scene.losses == []

    run(scenario())


def test_a_version_does_not_wait_for_a_worker_that_has_left_to_close():
    async def scenario() -> None:
        scene = Scene(workers=2)
        async with scene:
            await scene.until_serving(2)
            scene.may_close.clear()
            scene.workers["rollout-1"].may_load = asyncio.Event()
            await scene.rollouts.publish(1, Published(version=1))
            published = asyncio.create_task(scene.rollouts.published(1))
            await scene.until(lambda: scene.workers["rollout-0"].version == 1)
            await scene.rollouts.scale(1)
            async with asyncio.timeout(BOUND_S / 5):
                await published
            assert not scene.workers["rollout-1"].closed
            scene.may_close.set()

    run(scenario())


def test_a_worker_that_waits_for_the_cluster_to_grow_is_named_and_the_run_does_not_stand_still():
    async def scenario() -> None:
        scene = Scene(workers=1)
        scene.may_be_placed.clear()
        async with scene:
            async with asyncio.timeout(BOUND_S):
                while not scene.waits.current():
                    await asyncio.sleep(0)
            assert [(wait.loop, wait.waiting_for) for wait in scene.waits.current()] == [("start", "rollout-0 to find its resources")]
            assert scene.waits.still_s() == 0.0
            scene.may_be_placed.set()
            await scene.until_serving(1)
            assert scene.waits.current() == []

    run(scenario())


def test_one_on_a_node_that_goes_leaves_and_is_replaced():
    async def scenario() -> None:
        async with Scene(workers=1, lanes=1) as scene:
            scene.submit(0)
            first = await scene.until_given(0)
            await scene.rollouts.drain(first.name, "its node is about to go", within_s=0.0)
            second = await scene.until_given(0, but=first.name)
            assert second.asked[0][1] == f"rows of 0 by {first.name}"
            await scene.until(lambda: scene.state(first.name) == "dead")

    run(scenario())


def test_the_end_closes_every_worker():
    async def scenario() -> None:
        async with Scene(workers=3) as scene:
            await scene.until_serving(3)
        assert all(worker.closed for worker in scene.workers.values())

    run(scenario())
