"""A component that is lost, replaced and restored, with plain objects for processes."""

import asyncio

import pytest

from jobs.config import SupervisionConfig
from jobs.processes.handles import ActorDied, Deadline, LocalHandle
from jobs.processes.restart_budget import RestartBudget
from jobs.processes.supervised import CallGivenUp, Supervised
from tests.actors.coroutines import begin, run

CONFIG = SupervisionConfig(max_failures=3, backoff_s=0.0)


class Counter:
    """Counts in memory: what is lost with it must be restored."""

    def __init__(self) -> None:
        self.total = 0
        self.hold: asyncio.Event | None = None
        self.hangs_at: int | None = None
        self.entered = asyncio.Event()

    async def add(self, number: int) -> int:
        self.entered.set()
        if number == self.hangs_at:
            await asyncio.Event().wait()
        if self.hold is not None:
            await self.hold.wait()
        self.total += number
        return self.total

    async def fail(self) -> None:
        raise KeyError("its own error")


class Scene:
    """A supervised counter, the processes made for it, and what was restored to them."""

    def __init__(self, *, durable: int = 0) -> None:
        self.made: list[Counter] = []
        self.handles: list[LocalHandle] = []
        self.losses: list[tuple[str, Exception]] = []
        self.durable = durable
        self.broken_restores = 0
        self.supervised = Supervised(
            "counter",
            create=self._create,
            restore=self._restore,
            budget=RestartBudget("counter", CONFIG),
            on_failure=lambda role, error: self.losses.append((role, error)),
        )

    def _create(self) -> LocalHandle:
        self.made.append(Counter())
        self.handles.append(LocalHandle(self.made[-1], "counter"))
        return self.handles[-1]

    async def _restore(self, handle: LocalHandle) -> None:
        if self.broken_restores:
            self.broken_restores -= 1
            handle.kill()
        await handle.call(Counter.add, self.durable, timeout_s=5, waiting_for="what was durable")

    async def add(self, number: int, *, timeout_s: float = 5) -> int:
        return await self.supervised.call(Counter.add, number, timeout_s=timeout_s, waiting_for="the sum")


def test_a_call_that_was_under_way_is_made_again_on_a_restored_process():
    async def scenario() -> None:
        scene = Scene(durable=10)
        scene.made[0].hold = asyncio.Event()
        adding = await begin(scene.add(1))
        await scene.made[0].entered.wait()
        scene.handles[0].kill()
        assert await adding == 11
        assert [type(error) for _, error in scene.losses] == [ActorDied]
        assert len(scene.made) == 2

    run(scenario())


def test_a_process_that_hangs_is_killed_and_replaced():
    async def scenario() -> None:
        scene = Scene()
        scene.made[0].hold = asyncio.Event()
        assert await scene.add(1, timeout_s=0.05) == 1
        assert [type(error) for _, error in scene.losses] == [Deadline]
        with pytest.raises(ActorDied):
            await scene.handles[0].call(Counter.add, 1, timeout_s=5, waiting_for="the dead")

    run(scenario())


def test_many_calls_that_meet_one_loss_make_one_replacement():
    async def scenario() -> None:
        scene = Scene()
        scene.made[0].hold = asyncio.Event()
        adding = [await begin(scene.add(1)) for _ in range(5)]
        await scene.made[0].entered.wait()
        scene.handles[0].kill()
        assert sorted(await asyncio.gather(*adding)) == [1, 2, 3, 4, 5]
        assert (len(scene.made), len(scene.losses)) == (2, 1)

    run(scenario())


def test_a_replacement_that_dies_while_it_is_restored_is_replaced_too():
    async def scenario() -> None:
        scene = Scene(durable=10)
        scene.broken_restores = 2
        scene.handles[0].kill()
        assert await scene.add(1) == 11
        assert (len(scene.made), len(scene.losses)) == (4, 3)

    run(scenario())


@pytest.mark.parametrize("how", ["cancelled", "refused"])
def test_a_process_that_was_not_restored_serves_nobody(how):
    """The call that replaces it is cancelled, or its state cannot be read just then: the next one restores another."""

    async def scenario() -> None:
        scene = Scene(durable=10)
        restore, entered = scene._restore, asyncio.Event()

        async def restore_in_vain(handle: LocalHandle) -> None:
            entered.set()
            scene.supervised._restore = restore
            if how == "refused":
                raise OSError("the disk does not answer")
            await asyncio.Event().wait()

        scene.supervised._restore = restore_in_vain
        scene.handles[0].kill()
        adding = await begin(scene.add(1))
        await entered.wait()
        if how == "cancelled":
            adding.cancel()
        with pytest.raises((asyncio.CancelledError, OSError)):
            await adding
        assert await scene.add(2) == 12
        assert len(scene.made) == 3

    run(scenario())


def test_too_many_losses_in_a_row_raise_the_last_one():
    async def scenario() -> None:
        scene = Scene()
        scene.broken_restores = 100
        scene.handles[0].kill()
        with pytest.raises(ActorDied, match="what was durable"):
            await scene.add(1)
        assert len(scene.losses) == CONFIG.max_failures + 1

    run(scenario())


def test_a_call_that_costs_too_many_processes_is_given_up_and_leaves_one_that_works():
    async def scenario() -> None:
        scene = Scene()
        create = scene._create

        def create_one_that_hangs_when_asked_for_7() -> LocalHandle:
            handle = create()
            scene.made[-1].hangs_at = 7
            return handle

        scene.supervised._max_tries = 2
        scene.supervised._create = create_one_that_hangs_when_asked_for_7
        scene.made[0].hangs_at = 7
        with pytest.raises(CallGivenUp, match=r"2 times a process was lost with the sum; the last time: counter\.add took over"):
            await scene.add(7, timeout_s=0.02)
        assert await scene.add(1) == 1
        assert len(scene.made) == 3

    run(scenario())


def test_a_call_that_works_clears_the_count():
    async def scenario() -> None:
        scene = Scene()
        for _ in range(2 * CONFIG.max_failures):
            scene.handles[-1].kill()
            await scene.add(1)
        assert len(scene.losses) == 2 * CONFIG.max_failures

    run(scenario())


def test_an_error_of_its_own_is_no_loss():
    async def scenario() -> None:
        scene = Scene()
        with pytest.raises(KeyError, match="its own error"):
            await scene.supervised.call(Counter.fail, timeout_s=5, waiting_for="an error")
        assert scene.losses == []

    run(scenario())
