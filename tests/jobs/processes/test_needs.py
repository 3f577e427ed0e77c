"""What a process needs of its node: said to Ray, said to a person, and held against the nodes that there are."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.processes.needs import Needs, shortages
from learners.placement import Placement


def needing(role: str = "rollout", *, num_gpus: float = 0.0, on_this_node: bool = False, **placement: Any) -> Needs:
    return Needs(role=role, num_gpus=num_gpus, placement=Placement(**placement), on_this_node=on_this_node)


def node(name: str = "n", *, alive: bool = True, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    """A node as `ray.nodes` has it; `L4=1` stands for Ray's resource for that GPU."""
    named = {"accelerator_type:L4" if key == "L4" else key: amount for key, amount in resources.items()}
    return {"Alive": alive, "NodeID": name, "Labels": labels or {}, "Resources": named}


def lines(asked: list[Needs], *nodes: dict[str, Any]) -> list[str]:
    return shortages(asked, nodes, this_node="head")


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (needing(), "a node with 1 CPU"),
        (needing(on_this_node=True), "the node of the driver with 1 CPU"),
        (needing(num_gpus=0.5), "a node with 1 CPU and 0.5 GPU"),
        (
            needing(num_gpus=2, accelerator_type="L4", label_selector={"zone": "in(a, b)", "spot": "!yes"}, resources={"disk": 3}),
            "a node with 1 CPU, 2 GPU, L4, 3 disk, zone = in(a, b) and spot = !yes",
        ),
    ],
)
def test_it_is_said_in_words(needs, words):
    assert str(needs) == words


def test_it_is_said_to_ray():
    assert needing().options() == {"num_cpus": 1, "num_gpus": 0.0, "resources": {}, "label_selector": {}}
    told = needing(num_gpus=1, accelerator_type="L4", label_selector={"zone": "a"}, resources={"disk": 3}).options()
    resources = {"accelerator_type:L4": 0.001, "disk": 3.0}
    assert told == {"num_cpus": 1, "num_gpus": 1, "resources": resources, "label_selector": {"zone": "a"}}


def test_nothing_is_said_where_all_has_room():
    asked = [needing(num_gpus=0.5, accelerator_type="L4")] * 4 + [needing("learner", label_selector={"zone": "b"})]
    assert lines(asked, node(CPU=4, GPU=2, L4=1), node(CPU=1, labels={"zone": "b"})) == []


def test_a_role_without_a_node_is_named_with_what_it_needs_and_what_the_nodes_have():
    asked = [needing(label_selector={"zone": "c"})] * 2
    nodes = [node(CPU=9, labels={"zone": "a"}), node(CPU=9, labels={"zone": "b"}), node(CPU=9)]
    said = "2 rollout processes need a node with 1 CPU and zone = c (the nodes have zone: a, b), and there is room for none"
    assert lines(asked, *nodes) == [said]
    no_gpu = "1 learner process needs a node with 1 CPU, 1 GPU and H100 (the nodes have GPU: L4), and there is room for none"
    assert lines([needing("learner", num_gpus=1, accelerator_type="H100")], node(CPU=1, GPU=1, L4=1)) == [no_gpu]


def test_an_accelerator_that_ray_does_not_know_is_asked_for_as_a_resource():
    (line,) = lines([needing(resources={"accelerator_type:Mine": 0.001})], node(CPU=1, GPU=1, L4=1))
    assert line == "1 rollout process needs a node with 1 CPU and Mine (the nodes have GPU: L4), and there is room for none"


def test_a_role_that_has_room_in_part_is_told_for_how_many():
    (line,) = lines([needing(num_gpus=1)] * 3, node(CPU=8, GPU=1), node(CPU=1, GPU=8))
    assert line == "3 rollout processes need a node with 1 CPU and 1 GPU, and there is room for 2"


def test_what_all_roles_reserve_together_is_counted_too():
    assert lines([needing()] * 5, node(CPU=3), node(CPU=1)) == ["all processes reserve 5 CPU, and there are 4 (ray start --num-cpus)"]
    asked = [needing(num_gpus=1), needing("learner", num_gpus=1)]
    assert lines(asked, node(CPU=4, GPU=1)) == ["all processes reserve 2 GPU, and there are 1"]


def test_shares_that_make_a_whole_fit():
    assert lines([needing(num_gpus=0.1)] * 10, node(CPU=99, GPU=1)) == []


def test_what_the_driver_needs_beside_it_is_looked_for_there_alone():
    asked = [needing("replay and bonus", on_this_node=True)] * 2
    assert lines(asked, node("head", CPU=2)) == []
    (line,) = lines(asked, node("head", CPU=1), node(CPU=9))
    assert line == "2 replay and bonus processes need the node of the driver with 1 CPU, and there is room for 1"


def test_a_dead_node_has_no_room():
    assert len(lines([needing(resources={"disk": 1})], node(CPU=1, disk=1, alive=False), node(CPU=1))) == 1


@pytest.mark.parametrize(
    ("selector", "taken"),
    [("a", {"a"}), ("!a", {"b", "c", None}), ("in(a, b)", {"a", "b"}), ("in(a,b)", {"a", "b"}), ("!in(a, b)", {"c", None})],
)
def test_a_selector_takes_the_labels_that_it_takes_in_ray(selector, taken):
    """A node without the label is taken by "!", as Ray does (tests/integration/test_placement.py)."""
    found = {
        label
        for label in ("a", "b", "c", None)
        if not lines([needing(label_selector={"zone": selector})], node(CPU=1, labels={"zone": label} if label else {}))
    }
    assert found == taken
