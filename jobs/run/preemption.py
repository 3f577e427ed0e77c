"""Ray's notices that a node is about to go. The only place that knows of the private function they come from."""

from __future__ import annotations

import logging

import ray

_log = logging.getLogger(__name__)
_has_warned = False


def draining_nodes() -> dict[str, float]:
    """Nodes that are to leave the cluster (hex ids), and the Unix time in seconds at which each does; 0.0 where it is
    not known.

    Ray does not end a node's processes at that time: whoever announced it does. The call asks the head over the
    network: make it from a thread, and only where Ray is initialised. Nothing, and one warning a process, where Ray
    cannot say: the source is `ray._private.state.state.get_draining_nodes`, which Ray Train uses too (Ray 2.60,
    ray/train/v2/_internal/execution/preemption.py)."""
    global _has_warned
    try:
        deadlines_ms: dict[str, int] = ray._private.state.state.get_draining_nodes()
        return {node_id: deadline_ms / 1000.0 for node_id, deadline_ms in deadlines_ms.items()}
    except Exception as error:  # what a private function does is nobody's promise, and a run can do without its answer
        if not _has_warned:
            _has_warned = True
            _log.warning("notices of nodes about to leave cannot be read: %s: %s", type(error).__name__, error)
        return {}
