"""A process that Ray's own memory monitor ends, with real Ray whose limit is far below what this machine uses."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator

import pytest
import ray

from jobs.processes.handles import ActorDied
from jobs.processes.ray_handle import RayHandle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

BOUND_S = 60.0


class Sleeper:
    """Answers after the time is over."""

    def sleep(self) -> None:
        time.sleep(BOUND_S)


@pytest.fixture
def full_machine() -> Iterator[None]:
    directory = tempfile.mkdtemp(prefix="rxq-", dir="/tmp")  # short: the path of a socket has at most 107 characters
    limits = {"memory_monitor_refresh_ms": 100, "memory_usage_threshold": 0.001}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=directory, _system_config=limits)
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(directory, ignore_errors=True)


def test_it_counts_as_lost_like_any_other(full_machine: None) -> None:
    handle = RayHandle(ray.remote(Sleeper).remote(), "encoder")
    with pytest.raises(
        ActorDied, match=r"was ended by Ray while the run waited for a feature, because the memory of its node was nearly full"
    ):
        asyncio.run(handle.call(Sleeper.sleep, timeout_s=BOUND_S, waiting_for="a feature"))
