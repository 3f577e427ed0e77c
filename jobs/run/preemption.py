"""Ray's notices that a node is about to leave. Only this module knows the private function that they come from."""

from __future__ import annotations

import logging

import ray

_log = logging.getLogger(__name__)
_has_warned = False


def draining_nodes() -> dict[str, float]:
    """Return the nodes that are to leave the cluster (hex ids), and the Unix time in seconds at which each leaves; 0.0
    where that is not known.

    Ray does not end a node's processes at that time: the cluster that announced it does. The call asks the head over
    the network, so make it from a thread, and only where Ray is initialized. Where Ray cannot say, return nothing and
    warn once a process. The source is `ray._private.state.state.get_draining_nodes`, which Ray Train uses too (Ray
    2.60, ray/train/v2/_internal/execution/preemption.py)."""
    global _has_warned
    try:
        deadlines_ms: dict[str, int] = ray._private.state.state.get_draining_nodes()
        return {node_id: deadline_ms / 1000.0 for node_id, deadline_ms in deadlines_ms.items()}
    except Exception as error:  # a private function may change, and a run can do without its answer
        if not _has_warned:
            _has_warned = True
            _log.warning("notices of nodes about to leave cannot be read: %s: %s", type(error).__name__, error)
        return {}
