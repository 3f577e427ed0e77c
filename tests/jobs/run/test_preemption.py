from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray._private import state as ray_state
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.run import preemption
from jobs.run.preemption import draining_nodes

NODE = "ab" * 28
BOUND_S = 30.0


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_has_warned", False)


def stub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def get_draining_nodes() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray_state, "state", SimpleNamespace(get_draining_nodes=get_draining_nodes))


def test_deadlines_come_in_seconds_and_an_unknown_one_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, {NODE: 1_700_000_000_250, "cd" * 28: 0})
    assert draining_nodes() == {NODE: 1_700_000_000.25, "cd" * 28: 0.0}


def test_no_node_is_about_to_leave(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stub(monkeypatch, {})
    assert draining_nodes() == {}
    assert not caplog.records


@pytest.mark.parametrize("answer", [RuntimeError("the head is gone"), "not a mapping"])
def test_a_failure_is_no_notice_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Exception | str
) -> None:
    stub(monkeypatch, answer)
    with caplog.at_level(logging.WARNING):
        assert draining_nodes() == draining_nodes() == {}
    (record,) = caplog.records
    assert type(answer if isinstance(answer, Exception) else AttributeError()).__name__ in record.getMessage()


def test_a_ray_without_the_function_is_no_notice_and_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ray_state, "state", object())
    assert draining_nodes() == draining_nodes() == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# ---- a real cluster of two nodes ----


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Address of the head of a cluster on this machine, and the hex id of its second node. Ray is initialized; nothing
    is left."""
    directory = tempfile.mkdtemp(prefix="rxp-", dir="/tmp")  # short: the path of a socket has at most 107 characters
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", directory)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster()
    try:
        for _ in range(2):
            node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster.address, node.node_id
    finally:
        ray.shutdown()
        cluster.shutdown()
        left = [process for process in psutil.Process().children(recursive=True) if process not in before]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=BOUND_S)
        shutil.rmtree(directory, ignore_errors=True)


@ray.remote(num_cpus=1)
class Busy:
    """Ray ends a node that is to leave as soon as it has nothing to do."""

    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_a_node_that_is_to_be_preempted_is_reported_with_its_deadline(two_nodes: tuple[str, str]) -> None:
    address, node_id = two_nodes
    busy = Busy.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()  # type: ignore[attr-defined]
    assert ray.get(busy.node_id.remote(), timeout=BOUND_S) == node_id
    assert draining_nodes() == {}
    deadline_ms = int((time.time() + 600) * 1000)
    is_accepted, why_not = ray._raylet.GcsClient(address=address).drain_node(
        node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "a test", deadline_ms
    )
    assert is_accepted, why_not
    give_up = time.monotonic() + BOUND_S
    while not (found := draining_nodes()):
        assert time.monotonic() < give_up, f"no notice in {BOUND_S} s"
    assert found == {node_id: deadline_ms / 1000}
