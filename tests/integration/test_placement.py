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

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from actors.learner import Learner
from actors.rollout import RolloutWorker
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError
from jobs.processes.build import close_all, launch, launch_together, ray_session
from jobs.processes.description import Component, TrainingComponents, needs_of_run
from jobs.processes.handles import ActorDied, Deadline
from jobs.processes.learner_group import LearnerGroup
from jobs.processes.needs import Needs
from jobs.processes.ray_handle import RayHandle
from learners.placement import Placement
from tests.integration.processes import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

BOUND_S = 120.0
CHUNK = 16 << 10
"""Bytes that travel at once from one node to another; the weights of the tiny model are several chunks."""
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


def in_actor(handle: RayHandle[Any], function: Callable[[Any], Any]) -> Any:
    """Return what `function` returns in the process of an actor."""
    return ray.get(handle.actor.__ray_call__.remote(function), timeout=BOUND_S)


def test_roles_land_where_they_are_placed_and_weights_travel_once_to_a_node(small_cluster, tiny_model):
    config = RunConfig.model_validate(
        {
            "rollout": {"engine": "transformers", "dtype": "float32", "workers": 2, "placement": ROLLOUT},
            "learner": {"dtype": "float32", "ranks": 2, "placement": LEARNER},
        }
    )
    components = TrainingComponents(config, tiny_model, run_id="r", log_directory="")
    warnings: list[str] = []

    async def scenario() -> None:
        workers = [launch(components.rollout_worker(number)) for number in range(2)]
        ranks = launch_together([components.learner_rank(rank) for rank in range(2)])
        group = LearnerGroup(ranks)
        nodes = [await handle.placed() for handle in (*workers, *ranks)]
        assert nodes == [small_cluster.spot] * 2 + [small_cluster.learner] * 2
        (placed,) = {in_actor(rank, lambda _: ray.get_runtime_context().get_placement_group_id()) for rank in ranks}
        assert in_actor(workers[0], lambda _: ray.get_runtime_context().get_placement_group_id()) is None

        starting = [worker.call(RolloutWorker.start, timeout_s=BOUND_S, waiting_for="a worker") for worker in workers]
        await asyncio.gather(*starting, group.call(Learner.ready, timeout_s=BOUND_S, waiting_for="the learner"))
        weights, version = await group.call(Learner.publish, timeout_s=BOUND_S, waiting_for="weights", returns=2)
        before = small_cluster.chunks_sent_by(small_cluster.learner)
        loading = [worker.call(RolloutWorker.update, weights, timeout_s=BOUND_S, waiting_for="a load") for worker in workers]
        updates = await asyncio.gather(*loading)
        assert [update.version for update in updates] == [version] * 2
        nbytes = updates[0].nbytes
        assert nbytes > 4 * CHUNK
        least = -(-nbytes // CHUNK)
        sent = wait_until(
            lambda: n if (n := small_cluster.chunks_sent_by(small_cluster.learner) - before) >= least else 0,
            timeout_s=BOUND_S,
            what="what was sent to be counted",
        )
        assert sent <= least + 1, f"{sent} chunks for {nbytes} bytes: the weights travelled more than once"

        group.kill()
        states = lambda: placement_group_table()[placed]["state"]  # noqa: E731
        wait_until(lambda: states() == "REMOVED", timeout_s=BOUND_S, what="the room of the learner to be given back")
        await close_all(workers)

    with ray_session("placement", needs_of_run(config), warn=warnings.append):
        asyncio.run(scenario())
    assert warnings == []


class Tiny:
    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def tiny(role: str, **placement: Any) -> Component[Tiny]:
    return Component(cls=Tiny, name=f"{role}-0", needs=Needs(role=role, placement=Placement(**placement)))


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
