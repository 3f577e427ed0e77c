from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError, RuntimeEnvSetupError, WorkerCrashedError

from actors.learner import Learner
from jobs.processes.handles import ActorDied, Deadline
from jobs.processes.ray_handle import RayHandle


def dying(error: Exception) -> Any:
    """An actor whose every call ends so."""

    async def fail() -> None:
        raise error

    return SimpleNamespace(ready=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=fail)))


async def death_of(error: Exception) -> str:
    with pytest.raises(ActorDied) as caught:
        await RayHandle(dying(error), "learner").call(Learner.ready, timeout_s=10, waiting_for="the learner to load its model")
    return str(caught.value)


def test_what_went_wrong_in_a_constructor_is_said_in_one_line() -> None:
    trace = "Traceback (most recent call last):\n  File x\nlearners.supported.ModelUnsupported: FalconForCausalLM mixes"
    cause = RayTaskError("Learner.__init__", trace, ValueError(), proctitle="learner", pid=1, ip="127.0.0.1")
    said = asyncio.run(death_of(ActorDiedError(cause)))
    assert said == "the learner could not be made: learners.supported.ModelUnsupported: FalconForCausalLM mixes"


def test_a_process_that_is_gone_is_said_to_be() -> None:
    assert asyncio.run(death_of(ActorDiedError())) == "the learner process died while the run waited for the learner to load its model"


def test_a_process_that_ray_ended_for_want_of_memory_is_gone_like_any_other() -> None:
    """Ray raises another class of error for it, and so it does for the other ways in which an actor may die."""
    said = "the learner process was ended by Ray while the run waited for the learner to load its model, "
    assert asyncio.run(death_of(OutOfMemoryError("1 worker was killed"))) == f"{said}because the memory of its node was nearly full"
    for error in (NodeDiedError("the node is gone"), WorkerCrashedError()):
        assert asyncio.run(death_of(error)) == "the learner process died while the run waited for the learner to load its model"
    assert asyncio.run(death_of(RuntimeEnvSetupError("no disk"))) == "the learner could not be made: no disk"


def test_a_process_that_never_answered_is_told_with_the_node_that_it_needs() -> None:
    """Once it has answered it has a node, and is only slow."""
    may_answer = asyncio.Event()

    async def answer() -> int:
        await may_answer.wait()
        return 7

    async def scenario() -> None:
        actor = SimpleNamespace(ready=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=answer)))
        handle = RayHandle(actor, "learner", needs="a node with 1 CPU and 1 GPU")
        said = "learner.ready took over 0.01 s: waited for the learner to load its model"
        with pytest.raises(Deadline) as before:
            await handle.call(Learner.ready, timeout_s=0.01, waiting_for="the learner to load its model")
        assert str(before.value) == f"{said}; its process has not answered yet, and needs a node with 1 CPU and 1 GPU"
        may_answer.set()
        assert await handle.call(Learner.ready, timeout_s=10, waiting_for="the learner") == 7
        may_answer.clear()
        with pytest.raises(Deadline) as after:
            await handle.call(Learner.ready, timeout_s=0.01, waiting_for="the learner to load its model")
        assert str(after.value) == said

    asyncio.run(scenario())
