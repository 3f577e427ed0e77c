"""Where Ray meets the components: one local or attached Ray, and one actor for each component.

The components are plain classes (`jobs.processes.description`); `ray.remote` is applied here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.orphans import remove_orphans
from actors.rollout import RolloutWorker
from jobs.configuration.user_error import UserError
from jobs.processes.description import Component
from jobs.processes.handles import CLOSE_TIMEOUT_S, Handle
from jobs.processes.ray_handle import RayHandle
from jobs.processes.supervised import Loads, wait_until_loaded

C = TypeVar("C")

OBJECT_STORE_BYTES = 2 << 30
SPARE_CPUS = 64
"""A private Ray is told that it has this many CPUs beyond those its first actors reserve, so that a run may be
scaled."""
TEMP_ROOT = Path("/tmp")
TEMP_PREFIX = "rx-"


@contextmanager
def ray_session(namespace: str, num_actors: int) -> Iterator[None]:
    """Attach to the cluster that RAY_ADDRESS names, else start a private one that ends with this block.

    The private Ray lives in a short temporary directory, because names of Unix sockets are short. It has no dashboard
    and no token authentication: it listens for this process only."""
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls that were given up: what matters was awaited
    if os.environ.get("RAY_ADDRESS"):
        _attach(namespace)
        try:
            yield
        finally:
            ray.shutdown()
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        remove_orphans(TEMP_ROOT, TEMP_PREFIX)  # of private Rays whose driver was killed
        directory = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=TEMP_ROOT)
    except OSError as error:
        raise UserError(f"{TEMP_ROOT} cannot be used for Ray's own files ({error.strerror}): make it writable") from None
    try:
        _init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, num_actors + 1) + SPARE_CPUS,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            namespace=namespace,
            _temp_dir=directory,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _attach(namespace: str) -> None:
    """Attach to RAY_ADDRESS. Raises UserError with all that Ray says: its first line often lacks the remedy."""
    try:
        _init(namespace=namespace)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be attached to: {' '.join(str(error).split())}") from None


def _init(**options: Any) -> None:
    """Call `ray.init`, and put back our signal handlers, which it replaces."""
    ours = {number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    for number, handler in ours.items():
        signal.signal(number, handler)
        signal.siginterrupt(number, False)


def missing_cpus(num_actors: int) -> str | None:
    """Return a warning where the attached cluster has fewer CPUs than the actors reserve, else None."""
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if cpus >= num_actors:
        return None
    return (
        f"the cluster has {cpus:g} CPUs and this run reserves {num_actors}: what does not fit waits until it grows "
        f"(on one machine: ray start --head --num-cpus {num_actors + 2})"
    )


def launch(component: Component[C]) -> RayHandle[C]:
    """Start one actor. `max_task_retries` stays 0: the controller requeues by id, and Ray's own retries would run a
    call twice.

    The actor has no name of Ray's: a replacement may be made before the lost one's name is free again.
    """
    options: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": component.num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **component.environment}},
    }
    if component.max_concurrency is not None:
        options["max_concurrency"] = component.max_concurrency
    if component.on_this_node:
        node_id = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(**options)(component.cls).remote(*component.args, **component.kwargs, **component.across_processes)
    return RayHandle(actor, component.name)


class Closes(Protocol):
    """A component with processes or engines of its own, which end when it closes."""

    def close(self) -> Any: ...


async def all_ready(workers: Sequence[Handle[RolloutWorker]], others: Sequence[Handle[Loads]], *, timeout_s: float) -> None:
    """Start the engines, and wait until every process that has something to load has loaded it."""
    starting = [worker.call(RolloutWorker.start, timeout_s=timeout_s, waiting_for=f"{worker.name} to start") for worker in workers]
    await asyncio.gather(*starting, *(wait_until_loaded(other, timeout_s=timeout_s) for other in others))


async def close_all(handles: Sequence[Handle[Closes]]) -> None:
    """Let engines and verifier processes end by themselves before Ray ends the actors."""
    closing = [handle.call(Closes.close, timeout_s=CLOSE_TIMEOUT_S, waiting_for=f"{handle.name} to close") for handle in handles]
    await asyncio.gather(*closing, return_exceptions=True)


def namespace(directory: str) -> str:
    return f"repexp-{os.path.basename(os.path.abspath(directory))}"
