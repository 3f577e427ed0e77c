import asyncio
import threading

import pytest

from jobs.processes.handles import ActorDied, Deadline, LocalHandle

BOUND_S = 20.0


class Target:
    """Counts how many of its calls run at once; each waits to be let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self.together = threading.Barrier(2)
        self.together_async = asyncio.Barrier(2)
        self.running = 0
        self.most_running = 0
        self.order: list[int] = []

    def work(self, number: int) -> int:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.order.append(number)
        self.entered.release()
        assert self.release.wait(BOUND_S)
        self.running -= 1
        return number

    def meet(self) -> int:
        return self.together.wait(BOUND_S)

    async def meet_async(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self.together_async.wait()

    async def never(self) -> None:
        await asyncio.Event().wait()

    def fail(self) -> None:
        raise KeyError("my own error")

    async def time_out(self) -> None:
        raise TimeoutError("the socket did")


def call(handle: LocalHandle, method: str, *args: object, timeout_s: float = BOUND_S):
    return handle.call(getattr(Target, method), *args, timeout_s=timeout_s, waiting_for="the answer to group 7")


def test_deadline_names_who_what_how_long_and_for_what():
    with pytest.raises(Deadline, match=r"^rollout-3\.never took over 0\.05 s: waited for the answer to group 7$"):
        asyncio.run(call(LocalHandle(Target(), "rollout-3"), "never", timeout_s=0.05))


def test_deadline_includes_the_wait_for_a_busy_component():
    target = Target()

    async def scenario() -> None:
        handle = LocalHandle(target, "learner")
        busy = asyncio.create_task(call(handle, "work", 0))
        await asyncio.to_thread(target.entered.acquire, timeout=BOUND_S)
        with pytest.raises(Deadline, match=r"^learner\.work took over 0\.05 s"):
            await call(handle, "work", 1, timeout_s=0.05)
        target.release.set()
        assert await busy == 0

    asyncio.run(scenario())
    assert target.order == [0]  # the call that was given up never ran


def test_sync_methods_run_one_at_a_time_in_order():
    target = Target()

    async def scenario() -> list[int]:
        handle = LocalHandle(target, "learner")
        calls = [asyncio.create_task(call(handle, "work", number)) for number in range(4)]
        assert await asyncio.to_thread(target.entered.acquire, timeout=BOUND_S)
        assert not await asyncio.to_thread(target.entered.acquire, timeout=0.1), "a second call began while the first was running"
        target.release.set()
        return await asyncio.gather(*calls)

    assert asyncio.run(scenario()) == [0, 1, 2, 3]
    assert target.most_running == 1
    assert target.order == [0, 1, 2, 3]


def test_sync_methods_run_side_by_side_up_to_the_handles_concurrency():
    target = Target()

    async def scenario() -> list[int]:
        handle = LocalHandle(target, "verifier", max_concurrency=2)
        calls = [asyncio.create_task(call(handle, "work", number)) for number in range(3)]
        for _ in range(2):
            assert await asyncio.to_thread(target.entered.acquire, timeout=BOUND_S)
        assert not await asyncio.to_thread(target.entered.acquire, timeout=0.1), "a third call began while two were running"
        target.release.set()
        return await asyncio.gather(*calls)

    assert asyncio.run(scenario()) == [0, 1, 2]
    assert target.most_running == 2


def test_sync_methods_of_two_handles_run_side_by_side():
    target = Target()

    async def scenario() -> list[int]:
        return await asyncio.gather(call(LocalHandle(target, "a"), "meet"), call(LocalHandle(target, "b"), "meet"))

    assert sorted(asyncio.run(scenario())) == [0, 1]


def test_async_methods_of_one_handle_run_side_by_side_and_beside_a_sync_one():
    async def scenario() -> None:
        target = Target()
        handle = LocalHandle(target, "rollout-0")
        busy = asyncio.create_task(call(handle, "work", 0))
        await asyncio.gather(call(handle, "meet_async"), call(handle, "meet_async"))
        target.release.set()
        await busy

    asyncio.run(scenario())


def test_error_of_the_component_comes_as_it_is():
    with pytest.raises(KeyError, match="my own error"):
        asyncio.run(call(LocalHandle(Target(), "learner"), "fail"))


def test_timeout_inside_the_component_is_its_own_error_not_a_deadline():
    with pytest.raises(TimeoutError, match="the socket did"):
        asyncio.run(call(LocalHandle(Target(), "learner"), "time_out"))


def test_unknown_method_is_an_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        asyncio.run(call(LocalHandle(Target(), "learner"), "nothing_like_it"))


def test_the_dead_begin_nothing():
    target = Target()
    target.release.set()

    async def scenario() -> None:
        handle = LocalHandle(target, "learner")
        handle.kill()
        with pytest.raises(ActorDied, match=r"^the learner process died while the run waited for the answer to group 7$"):
            await call(handle, "work", 0)

    asyncio.run(scenario())
    assert target.order == []
