"""Roles on the nodes that they are placed on: a cluster of several nodes on this machine, with real Ray."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.processes.build import launch, launch_together, ray_session
from jobs.processes.description import Component, TrainingComponents, needs_of_run
from jobs.processes.handles import ActorDied, Deadline
from jobs.processes.needs import Needs
from jobs.processes.ray_handle import RayHandle
from learners.placement import Placement
from tests.integration.processes import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

BOUND_S = 120.0
CHUNK, NUM_CHUNKS = 64 << 10, 16
"""Bytes that travel at once from one node to another, and how many times that the weights have."""
ROLLOUT = {"accelerator_type": "L4", "label_selector": {"pool": "in(spot, cheap)"}}
LEARNER = {"label_selector": {"pool": "!spot", "role": "learner"}, "resources": {"fast_disk": 1}}


class SmallCluster:
    """A head that has no label, and two nodes for one role each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.cluster = Cluster()
        dumps = {"debug_dump_period_milliseconds": 200, "object_manager_default_chunk_size": CHUNK}
        self.head = self.add(3, _system_config=dumps, include_dashboard=False)
        self.spot = self.add(2, labels={"pool": "spot"}, resources={"accelerator_type:L4": 1})
        self.learner = self.add(3, labels={"role": "learner"}, resources={"fast_disk": 2})

    def add(self, cpus: int, **options: Any) -> str:
        """Add a node and return its id."""
        node_id: str = self.cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, **options).node_id
        return node_id

    def chunks_sent_by(self, node_id: str) -> int:
        """Return the chunks of objects that a node has sent to others. All nodes write one file, in turn."""
        (file,) = self._directory.glob("ray/session_2*/logs/debug_state.txt")

        def state() -> str | None:
            text = file.read_text()
            return text if f"Node ID: {node_id}" in text else None

        text = wait_until(state, timeout_s=BOUND_S, what=f"the state of node {node_id}")
        sent = re.search(r"ObjectManagerService\.grpc_client\.Push\.OnReplyReceived - (\d+) total", text)
        return int(sent[1]) if sent else 0


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[SmallCluster]:
    directory = tempfile.mkdtemp(prefix="rxq-", dir="/tmp")  # short: the path of a socket has at most 107 characters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", directory)
        patch.delenv("RAY_ADDRESS", raising=False)
        small = SmallCluster(Path(directory))
        patch.setenv("RAY_ADDRESS", small.cluster.address)
        try:
            yield small
        finally:
            small.cluster.shutdown()
            shutil.rmtree(directory, ignore_errors=True)


class Tiny:
    """In place of a learner or a rollout worker: a process without torch."""

    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def group(self) -> str | None:
        found: str | None = ray.get_runtime_context().get_placement_group_id()
        return found

    def publish(self) -> tuple[Any, int]:
        return np.zeros(NUM_CHUNKS * CHUNK, dtype=np.uint8), 7

    def update(self, weights: Any) -> int:
        return int(weights.nbytes)


def tiny(role: str, **placement: Any) -> Component[Tiny]:
    return Component(cls=Tiny, name=f"{role}-0", needs=Needs(role=role, placement=Placement(**placement)))


def test_roles_land_where_they_are_placed_and_weights_travel_once_to_a_node(small_cluster):
    config = RunConfig.model_validate({"rollout": {"workers": 2, "placement": ROLLOUT}, "learner": {"ranks": 2, "placement": LEARNER}})
    components = TrainingComponents(config, "", run_id="r", log_directory="")
    rollout, rank = (
        Component(cls=Tiny, name=real.name, needs=real.needs) for real in (components.rollout_worker(0), components.learner_rank(0))
    )

    async def call(handle: RayHandle[Tiny], method: Callable[..., Any], *args: Any, returns: int = 1) -> Any:
        return await handle.call(method, *args, timeout_s=BOUND_S, waiting_for="the test", returns=returns)

    async def scenario() -> None:
        workers, ranks = [launch(rollout) for _ in range(2)], launch_together([rank] * 2)
        assert [await handle.placed() for handle in (*workers, *ranks)] == [small_cluster.spot] * 2 + [small_cluster.learner] * 2
        (group,) = {await call(handle, Tiny.group) for handle in ranks}
        assert {await call(handle, Tiny.group) for handle in workers} == {None}

        weights, _ = await call(ranks[0], Tiny.publish, returns=2)
        before = small_cluster.chunks_sent_by(small_cluster.learner)
        loaded = await asyncio.gather(*(call(worker, Tiny.update, weights) for worker in workers))
        assert loaded == [NUM_CHUNKS * CHUNK] * 2
        sent = wait_until(
            lambda: now if (now := small_cluster.chunks_sent_by(small_cluster.learner) - before) >= NUM_CHUNKS else 0,
            timeout_s=BOUND_S,
            what="the chunks that were sent to be counted",
        )
        assert sent <= NUM_CHUNKS + 1, "the weights travelled more than once"  # one more: the header of the object

        for handle in ranks:
            handle.kill()
        wait_until(
            lambda: placement_group_table()[group]["state"] == "REMOVED", timeout_s=BOUND_S, what="the ranks to give back their room"
        )

    warnings: list[str] = []
    with ray_session("placement", needs_of_run(config), warn=warnings.append):
        asyncio.run(scenario())
    assert warnings == []


def test_who_has_no_node_is_named_at_once_and_starts_when_one_joins(small_cluster):
    component = tiny("encoder", label_selector={"pool": "late"})
    needs = "a node with 1 CPU and pool = late"
    warnings: list[str] = []

    async def scenario() -> None:
        handle = launch(component)
        with pytest.raises(Deadline, match=re.escape(f"has not answered yet, and needs {needs}")):
            await handle.call(Tiny.where, timeout_s=0.5, waiting_for="the test")
        joined = small_cluster.add(1, labels={"pool": "late"})
        async with asyncio.timeout(BOUND_S):
            assert await handle.placed() == joined

    with ray_session("late", [component.needs], warn=warnings.append):
        asyncio.run(scenario())
    expected = f"1 encoder process needs {needs} (the nodes have pool: spot), and there is room for none"
    assert warnings == [f"{expected} on the cluster so far: the run waits for more nodes"]


def test_of_those_that_need_each_other_all_have_room_or_none(small_cluster):
    """Two of three would fit. They would hold what another run's learner may need, and compute nothing."""

    async def scenario() -> None:
        together = launch_together([tiny("learner", resources={"fast_disk": 1})] * 3)
        for handle in together:
            with pytest.raises(Deadline):
                await handle.call(Tiny.where, timeout_s=0.5, waiting_for="the test")
        assert ray.available_resources()["fast_disk"] == 2
        for handle in together:
            handle.kill()
        handles = launch_together([tiny("learner", resources={"fast_disk": 1})] * 2)
        for handle in handles:
            assert await handle.call(Tiny.where, timeout_s=BOUND_S, waiting_for="the test") == small_cluster.learner

    with ray_session("together", []):
        asyncio.run(scenario())


def test_ray_takes_the_nodes_for_a_selector_that_we_say_it_takes(small_cluster):
    """A node without the label is taken by "!". Ray says at once what the one node that may be taken cannot hold."""
    nodes = {"spot": small_cluster.spot, "head": small_cluster.head}
    selectors = ("spot", "!spot", "in(spot, late)", "!in(spot, late)")
    asked = {
        f"{name}{number}": tiny(f"{name}{number}", label_selector={"pool": selector, "ray.io/node-id": nodes[name]})
        for number, selector in enumerate(selectors)
        for name in nodes
    }
    taken = {"spot0", "head1", "spot2", "head3"}

    async def scenario() -> None:
        for role, component in asked.items():
            handle = launch(component)
            if role in taken:
                assert await handle.call(Tiny.where, timeout_s=BOUND_S, waiting_for="the test") == nodes[role[:-1]]
            else:
                with pytest.raises(ActorDied, match=r"process can never be placed: it needs a node with 1 CPU, pool = "):
                    await handle.call(Tiny.where, timeout_s=BOUND_S, waiting_for="the test")
            handle.kill()

    warnings: list[str] = []
    with ray_session("selectors", [component.needs for component in asked.values()], warn=warnings.append):
        asyncio.run(scenario())
    without_room = {warning.split()[1] for warning in warnings if " process needs " in warning}
    assert without_room == asked.keys() - taken


def test_a_private_ray_refuses_at_once_what_it_can_never_have(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    began = time.monotonic()
    with pytest.raises(UserError) as refused, ray_session("private", [tiny("rollout", resources={"tpu_slice": 1}).needs]):
        pass
    assert time.monotonic() - began < BOUND_S
    expected = "1 rollout process needs a node with 1 CPU and 1 tpu_slice, and there is room for none on this machine: "
    assert str(refused.value) == f"{expected}ask for less, or attach to a cluster (RAY_ADDRESS)"
