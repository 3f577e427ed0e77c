"""Calls that mypy must refuse, checked by `make lint`: an "ignore" that hides no error is an error itself."""

from typing import Any

from actors.replay import Replay
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from buffers.records import GroupRequest, GroupUsage
from jobs.processes.handles import Handle


async def calls(worker: Handle[RolloutWorker], verifier: Handle[VerifierPool], request: GroupRequest) -> GroupUsage:
    messages = [{"role": "user", "content": "2 + 2"}]
    deadline: Any = {"timeout_s": 60.0, "waiting_for": "group 7"}

    batch, usage = await worker.call(RolloutWorker.generate, request, messages, returns=2, timeout_s=60.0, waiting_for="group 7")
    await worker.call(RolloutWorker.generate, "group 7", messages, **deadline)  # type: ignore[arg-type, call-arg]
    await worker.call(RolloutWorker.generate, request, **deadline)  # type: ignore[arg-type]
    await worker.call(Replay.held_ids, **deadline)  # type: ignore[arg-type, call-arg]
    await worker.call("generate", request, messages, **deadline)  # type: ignore[call-overload]
    await worker.call(RolloutWorker.generate, request, messages)  # type: ignore[call-overload]
    await verifier.call(VerifierPool.resize, 2, **deadline)
    await verifier.call(VerifierPool.resize, "2", **deadline)  # type: ignore[arg-type]
    number: int = usage  # type: ignore[assignment]
    del batch, number
    return usage
