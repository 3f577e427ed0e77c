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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray._private import parameter
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.orphans import remove_orphans
from actors.rollout import RolloutWorker
from jobs.configuration.user_error import UserError
from jobs.processes.description import Component
from jobs.processes.handles import CLOSE_TIMEOUT_S, Handle
from jobs.processes.needs import Needs, missing_room
from jobs.processes.ray_handle import RayHandle
from jobs.processes.supervised import Loads, wait_until_loaded

C = TypeVar("C")

OBJECT_STORE_BYTES = 2 << 30
SPARE_CPUS = 64
"""A private Ray is told that it has this many CPUs beyond those its first actors reserve, so that a run may be
scaled."""
METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Variables of ports that Ray fixes. A private Ray takes any free ones instead: the fixed ones are for a cluster's
head."""
TEMP_ROOT = Path("/tmp")
TEMP_PREFIX = "rx-"


@contextmanager
def ray_session(namespace: str, needs: Sequence[Needs], *, warn: Callable[[str], None] = print, json_logs: bool = False) -> Iterator[None]:
    """Attach to the cluster that RAY_ADDRESS names, else start a private one that ends with this block. `needs` are
    those of all processes that start first: where there is no room for them, a cluster may grow, so `warn` is told, and
    a private Ray raises UserError. With `json_logs`, the logs that Ray keeps of this job's processes are JSON lines.

    The private Ray lives in a short temporary directory, because names of Unix sockets are short. It has no dashboard
    and no token authentication: it listens for this process only, and on no port that another Ray expects to be
    free."""
    logs = {"logging_config": ray.LoggingConfig(encoding="JSON", log_level="WARNING")} if json_logs else {}
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls that were given up: what matters was awaited
    if os.environ.get("RAY_ADDRESS"):
        _attach(namespace=namespace, **logs)
        try:
            for line in missing_room(needs, can_grow=True):
                warn(line)
            yield
        finally:
            ray.shutdown()
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for variable in METRICS_PORTS:
        os.environ.setdefault(variable, "0")
    try:
        remove_orphans(TEMP_ROOT, TEMP_PREFIX)  # of private Rays whose driver was killed
        directory = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=TEMP_ROOT)
    except OSError as error:
        raise UserError(f"{TEMP_ROOT} cannot be used for Ray's own files ({error.strerror}): make it writable") from None
    try:
        _start(
            num_cpus=max(os.cpu_count() or 1, len(needs) + 1) + SPARE_CPUS,
            object_store_memory=OBJECT_STORE_BYTES,
            namespace=namespace,
            _temp_dir=directory,
            **logs,
        )
        missing_room(needs, can_grow=False)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _start(**options: Any) -> None:
    """Start a private Ray. Raises UserError where Ray gives up, as it does after 30 s on a busy machine."""
    try:
        with _free_agent_port():
            _init(address="local", include_dashboard=False, **options)
    except Exception as error:  # a seam: Ray raises Exception itself, among others
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Ray did not start on this machine ({reason}): is it busy? Start again when it is less so") from None


def _attach(**options: Any) -> None:
    """Attach to RAY_ADDRESS. Raises UserError with all that Ray says: its first line often lacks the remedy."""
    try:
        _init(**options)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be attached to: {' '.join(str(error).split())}") from None


def _init(**options: Any) -> None:
    """Call `ray.init`, and put back our signal handlers, which it replaces."""
    ours = {number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    for number, handler in ours.items():
        signal.signal(number, handler)
        signal.siginterrupt(number, False)


@contextmanager
def _free_agent_port() -> Iterator[None]:
    """Let a Ray that this block starts use any free port for its dashboard agent. The default port stays free for the
    head of a cluster on this machine, which takes no job without it. `ray.init` has no argument for this."""
    params = parameter.RayParams
    parameter.RayParams = partial(params, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = params


def launch(component: Component[C], *, group: PlacementGroup | None = None, place: int = -1) -> RayHandle[C]:
    """Start one actor; with `group`, in its bundle number `place`. `max_task_retries` stays 0: the controller requeues
    by id, and Ray's own retries would run a call twice.

    The actor has no name of Ray's: a replacement may be made before the lost one's name is free again.
    """
    options: dict[str, Any] = {
        **component.needs.options(),
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **component.environment}},
    }
    if component.max_concurrency is not None:
        options["max_concurrency"] = component.max_concurrency
    if component.needs.on_this_node:
        node_id = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place)
    actor = ray.remote(**options)(component.cls).remote(*component.args, **component.kwargs, **component.across_processes)
    return RayHandle(actor, component.name, needs=str(component.needs), group=group)


def launch_together(components: Sequence[Component[C]]) -> list[RayHandle[C]]:
    """Start actors of which none can work without the others: all of them have room at once or none has any, and they
    are on as few nodes as possible. Where one of them is killed, all are."""
    bundles = [component.needs.resources for component in components]
    labels = [component.needs.placement.label_selector for component in components]
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
    return [launch(component, group=group, place=place) for place, component in enumerate(components)]


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
