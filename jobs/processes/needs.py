"""What each process reserves, and which nodes it may run on: in Ray's words, in ours, and beside the nodes there are.

    needs = needs_of("rollout", config.rollout)
    options = needs.options()                                         # of a Ray actor (`jobs.processes.build`)
    for line in missing_room([needs, needs], can_grow=True): ...      # "2 rollout processes need a node with ..."

A process that no node has room for waits until one joins. On a cluster that is right, so it is a warning there. No node
joins a private Ray, so there it is refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from jobs.configuration.user_error import UserError
from learners.placement import Placement

ACCELERATOR = "accelerator_type:"
"""Ray gives a node with GPUs one of the resource with this prefix and the GPU's name."""
A_BIT = 0.001
"""What Ray itself reserves of that resource for its option `accelerator_type`."""
_AMONG = re.compile(r"in\((.*)\)")
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What each process of a role needs of its node."""

    role: str = ""
    num_gpus: float = 0.0
    placement: Placement = field(default_factory=Placement)
    on_this_node: bool = False
    """Whether it reads and writes the run directory, and so must be on the driver's node."""

    @property
    def resources(self) -> dict[str, float]:
        """Return what it reserves, by Ray's names."""
        kind = self.placement.accelerator_type
        gpus = {"GPU": self.num_gpus} if self.num_gpus else {}
        accelerator = {f"{ACCELERATOR}{kind}": A_BIT} if kind else {}
        return {"CPU": 1.0, **gpus, **accelerator, **self.placement.resources}

    @property
    def is_choosy(self) -> bool:
        """Return whether it matters which node it runs on."""
        return self.on_this_node or self.resources.keys() != {"CPU"} or bool(self.placement.label_selector)

    def options(self) -> dict[str, Any]:
        """Return what a Ray actor is told of it."""
        others = {name: amount for name, amount in self.resources.items() if name not in ("CPU", "GPU")}
        return {"num_cpus": 1, "num_gpus": self.num_gpus, "resources": others, "label_selector": self.placement.label_selector}

    def __str__(self) -> str:
        """Return the node in words, such as "a node with 1 CPU, 1 GPU, L4 and zone = b"."""
        parts = [_accelerator(name) or f"{amount:g} {name}" for name, amount in self.resources.items()]
        parts += [f"{key} = {value}" for key, value in self.placement.label_selector.items()]
        listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
        return f"{'the node of the driver' if self.on_this_node else 'a node'} with {listed}"


def needs_of(role: str, section: Any) -> Needs:
    """Return what a process of `role` needs, by its section of the configuration."""
    return Needs(role=role, num_gpus=getattr(section, "num_gpus", 0.0), placement=section.placement)


def missing_room(asked: Sequence[Needs], *, can_grow: bool) -> list[str]:
    """Return a line for all that the nodes have no room for, though nothing else ran on them. `asked` has the needs of
    every process. Raise UserError with the first line where no node can join."""
    lines = shortages(asked, ray.nodes(), this_node=ray.get_runtime_context().get_node_id())
    if lines and not can_grow:
        raise UserError(f"{lines[0]} on this machine: ask for less, or attach to a cluster (RAY_ADDRESS)")
    return [f"{line} on the cluster so far: the run waits for more nodes" for line in lines]


def shortages(asked: Sequence[Needs], nodes: Sequence[Mapping[str, Any]], *, this_node: str) -> list[str]:
    """Return the beginning of a line for each role that has no room on `nodes` (of `ray.nodes`) even alone, and for
    each other resource of which all roles together reserve more than there is."""
    alive = [node for node in nodes if node["Alive"]]
    numbers = Counter(needs.role for needs in asked)
    lines, named = [], set()
    for role, needs in {needs.role: needs for needs in asked if needs.is_choosy}.items():
        room, number = sum(_room(node, needs, this_node) for node in alive), numbers[role]
        if room < number:
            who = f"{number} {role} processes need" if number > 1 else f"1 {role} process needs"
            lines.append(f"{who} {needs}{_present(needs, alive)}, and there is room for {room or 'none'}")
            named |= needs.resources.keys() - {"CPU"}
    for name in sorted({name for needs in asked for name in needs.resources} - named):
        reserved = math.fsum(needs.resources.get(name, 0.0) for needs in asked)
        present = math.fsum(node["Resources"].get(name, 0.0) for node in alive)
        if reserved > present + _ROUNDING:
            hint = " (ray start --num-cpus)" if name == "CPU" else ""
            lines.append(f"all processes reserve {reserved:g} {name}, and there are {present:g}{hint}")
    return lines


def _room(node: Mapping[str, Any], needs: Needs, this_node: str) -> int:
    """Return for how many such processes an empty node has room."""
    if needs.on_this_node and node["NodeID"] != this_node:
        return 0
    if not all(_selects(selector, node["Labels"].get(key)) for key, selector in needs.placement.label_selector.items()):
        return 0
    return min(math.floor(node["Resources"].get(name, 0.0) / amount + _ROUNDING) for name, amount in needs.resources.items())


def _selects(selector: str, label: str | None) -> bool:
    """Return whether a label, or None for a node without it, is one that Ray's selector takes."""
    if selector.startswith("!"):
        return not _selects(selector[1:], label)
    among = _AMONG.fullmatch(selector)
    return label in ([value.strip() for value in among[1].split(",")] if among else [selector])


def _present(needs: Needs, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Return in words what the nodes have of what is asked by name: a misspelt name then shows."""
    found = {key: {node["Labels"][key] for node in nodes if key in node["Labels"]} for key in needs.placement.label_selector}
    if any(map(_accelerator, needs.resources)):
        found["GPU"] = {kind for node in nodes for name in node["Resources"] if (kind := _accelerator(name))}
    listed = [f"{key}: {', '.join(sorted(values)) or 'none'}" for key, values in found.items()]
    return f" (the nodes have {'; '.join(listed)})" if listed else ""


def _accelerator(resource: str) -> str:
    """Return the GPU that a resource stands for, "" for any other resource."""
    return resource.removeprefix(ACCELERATOR) if resource.startswith(ACCELERATOR) else ""
