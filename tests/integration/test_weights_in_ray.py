"""Weights through Ray's object store, from a learner's process to a worker's: shared, checked, refused where they are
damaged."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import ray

from actors.config import RolloutConfig, SamplingConfig
from actors.learner import Learner
from jobs.processes.build import launch, ray_session
from jobs.processes.description import rollout_worker
from jobs.processes.failures import FailureKind, kind_of, reason
from jobs.processes.ray_handle import RayHandle
from learners.config import LearnerConfig
from learners.weight_check import WeightsRefused

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

WAIT_S = 120.0
NORM = "model.norm.weight"


class DamagingLearner(Learner):
    """What it publishes first comes to harm on the way."""

    num_published = 0

    def publish(self) -> Any:
        weights, version = super().publish()
        self.num_published += 1
        if self.num_published == 1:
            weights = replace(weights, checksums={**weights.checksums, NORM: 0})
        return weights, version


def test_damaged_weights_are_refused_across_processes_and_whole_ones_taken(tiny_model):
    async def main() -> None:
        config = RolloutConfig(engine="transformers", dtype="float32")
        worker = launch(rollout_worker("rollout-0", config, SamplingConfig(), model=tiny_model, run_id="r", seed=0))
        options = {"temperature": 1.0, "group_size": 4, "reuse_snapshot_buffer": True}
        learner = RayHandle(ray.remote(DamagingLearner).remote(tiny_model, LearnerConfig(dtype="float32"), **options), "learner")

        async def call(handle: RayHandle, method: str, *args: Any, returns: int = 1) -> Any:
            return await handle.call_named(method, args, timeout_s=WAIT_S, waiting_for=method, returns=returns)

        await asyncio.gather(call(worker, "start"), call(learner, "ready"))
        damaged, _ = await call(learner, "publish", returns=2)
        with pytest.raises(WeightsRefused) as refused:
            await call(worker, "update", damaged)
        assert kind_of(refused.value) is FailureKind.INFRASTRUCTURE
        assert f"tensor {NORM} is not as it was published" in reason(refused.value)
        whole, version = await call(learner, "publish", returns=2)
        update = await call(worker, "update", whole)
        assert (update.version, update.nbytes) == (version, ray.get(whole).nbytes)
        mine = ray.get(whole).buffer
        assert not mine.flags.writeable and not mine.flags.owndata, "a reader shares the store's memory"

    with ray_session("weights", []):
        asyncio.run(main())
