"""Encoders that come and go, without any model."""

import asyncio

import pytest

from jobs.config import SupervisionConfig
from jobs.processes.encoders import EncoderPool
from jobs.processes.handles import Deadline, LocalHandle
from jobs.processes.restart_budget import RestartBudget
from jobs.processes.supervised import Supervised

BOUND_S = 10.0


class GatedEncoder:
    """Answers once it is let."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.is_ready = asyncio.Event()
        self.is_ready.set()

    async def ready(self) -> int:
        await self.is_ready.wait()
        return 1

    async def encode(self, batch: str) -> tuple[str, float]:
        await self.may_answer.wait()
        return batch, 0.0


class Pool:
    """A pool whose encoders, and the handles around them, are at hand."""

    def __init__(self, size: int) -> None:
        self.encoders: dict[str, GatedEncoder] = {}
        self.killed: list[str] = []
        self.never_ready: set[int] = set()
        self.pool = EncoderPool(self._make, size)

    def _make(self, number: int) -> Supervised:
        name = f"encoder-{number}"
        self.encoders[name] = GatedEncoder()
        if number in self.never_ready:
            self.encoders[name].is_ready.clear()
        handle = LocalHandle(self.encoders[name], name)
        kill = handle.kill
        handle.kill = lambda: (self.killed.append(name), kill())  # type: ignore[method-assign]

        async def nothing(handle: object) -> None: ...

        budget = RestartBudget(name, SupervisionConfig(backoff_s=0.0))
        return Supervised(name, create=lambda: handle, restore=nothing, budget=budget, on_failure=lambda role, error: None)


async def begin(pool: Pool, group_id: int) -> asyncio.Task:
    task = asyncio.create_task(pool.pool.encode(group_id, f"group {group_id}", timeout_s=BOUND_S))
    await asyncio.sleep(0)
    return task


def test_an_encoder_that_leaves_finishes_its_group_and_is_ended():
    async def main() -> None:
        pool = Pool(2)
        under_way = await begin(pool, 1)
        resizing = asyncio.create_task(pool.pool.resize(1, timeout_s=BOUND_S))
        await asyncio.sleep(0)
        assert len(pool.pool) == 1 and not pool.killed
        pool.encoders["encoder-1"].may_answer.set()
        await resizing
        assert await under_way == ("group 1", 0.0)
        assert pool.killed == ["encoder-1"]

    asyncio.run(main())


def test_an_encoder_that_takes_too_long_to_leave_is_named_and_ended_with_its_last_group():
    async def main() -> None:
        pool = Pool(2)
        under_way = await begin(pool, 1)
        with pytest.raises(Deadline, match=r"over 0\.05 s to finish: encoder-1 has 1 groups"):
            await pool.pool.resize(1, timeout_s=0.05)
        assert len(pool.pool) == 1 and not pool.killed
        pool.encoders["encoder-1"].may_answer.set()
        assert await under_way == ("group 1", 0.0)
        assert pool.killed == ["encoder-1"]
        await pool.pool.resize(2, timeout_s=BOUND_S)
        assert list(pool.encoders) == ["encoder-0", "encoder-1", "encoder-2"]

    asyncio.run(main())


def test_new_encoders_are_ended_where_one_of_them_is_not_ready_in_time():
    async def main() -> None:
        pool = Pool(1)
        pool.never_ready = {2}
        with pytest.raises(Deadline, match="encoder-2"):
            await pool.pool.resize(3, timeout_s=0.05)
        assert len(pool.pool) == 1
        assert pool.killed == ["encoder-1", "encoder-2"]

    asyncio.run(main())
