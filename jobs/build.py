"""Where Ray meets the components: one local or attached Ray, and one actor for each owner of a resource.

The classes are plain; `ray.remote` is applied here and nowhere else. Each process gets the threads its role was given, never
the machine's core count: more threads than cores, or spinning ones, cost a factor of two to ten.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.encoder import HiddenStateEncoder
from actors.learner import Learner
from actors.replay import Replay
from actors.rollout import RolloutWorker
from actors.verifier import VerifierPool
from actors.vllm_engine import engine_environment
from jobs.config import RunConfig
from jobs.ray_handle import RayHandle
from jobs.run import Components

OBJECT_STORE_BYTES = 2 << 30
TEMP_ROOT = Path("/tmp")
TEMP_PREFIX = "rx-"


@contextmanager
def ray_session(config: RunConfig) -> Iterator[None]:
    """Attach to the cluster that RAY_ADDRESS names, else start a private one that ends with this block.

    The private one lives in a short temporary directory (Unix sockets have short names), without a dashboard, and without
    token authentication: it listens for this process only.
    """
    if os.environ.get("RAY_ADDRESS"):
        ray.init(namespace=_namespace(config), log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _remove_orphans()
    directory = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=TEMP_ROOT)
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, _num_actors(config) + 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            namespace=_namespace(config),
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=directory,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _remove_orphans() -> None:
    """Delete the directories of private Rays whose driver was killed: named after its process id, and ours."""
    for directory in TEMP_ROOT.glob(f"{TEMP_PREFIX}*-*"):
        owner = directory.name.removeprefix(TEMP_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and directory.stat().st_uid == os.getuid():
            shutil.rmtree(directory, ignore_errors=True)


async def start_components(config: RunConfig, model: str, *, run_id: str, log_directory: str) -> Components:
    """Create every actor and wait until all can serve. Raises the first actor's own error."""
    workers = [_rollout_worker(config, model, run_id, index) for index in range(config.rollout.workers)]
    learner = _actor(
        Learner,
        "learner",
        _threads(config.learner.threads),
        model,
        config.learner,
        temperature=config.sampling.temperature,
        group_size=config.responses_per_prompt,
        reuse_snapshot_buffer=True,
    )
    encoder = _encoder(config, model) if config.bonus.enabled else None
    verifier = _actor(VerifierPool, "verifier", {}, config.task, config.verifier, max_concurrency=config.prompts_per_step)
    replay = _actor(
        Replay,
        "replay",
        {},
        group_size=config.responses_per_prompt,
        prompts_per_step=config.prompts_per_step,
        max_policy_lag=config.max_policy_lag,
        config=config.replay,
        log_directory=log_directory,
    )
    components = Components(workers=workers, encoder=encoder, verifier=verifier, replay=replay, learner=learner)
    await _all_ready(config, components)
    return components


async def _all_ready(config: RunConfig, components: Components) -> None:
    timeout_s = config.rollout.start_timeout_s
    starting = [worker.call("start", timeout_s=timeout_s, waiting_for=f"{worker.name} to start") for worker in components.workers]
    others = [components.learner, *([components.encoder] if components.encoder else [])]
    starting += [handle.call("ready", timeout_s=timeout_s, waiting_for=f"the {handle.name} to load its model") for handle in others]
    await asyncio.gather(*starting)


async def close_components(components: Components) -> None:
    """Let engines and verifier processes end by themselves before Ray ends the actors."""
    handles = [*components.workers, components.verifier]
    await asyncio.gather(
        *(handle.call("close", timeout_s=20, waiting_for=f"{handle.name} to close") for handle in handles), return_exceptions=True
    )


def _rollout_worker(config: RunConfig, model: str, run_id: str, index: int) -> RayHandle:
    name = f"rollout-{index}"
    return _actor(
        RolloutWorker,
        name,
        engine_environment(config.rollout),
        worker_id=name,
        run_id=run_id,
        model=model,
        config=config.rollout,
        sampling=config.sampling,
        seed=config.seed + 7919 * index,
        num_gpus=config.rollout.num_gpus,
        max_concurrency=1000,
    )


def _encoder(config: RunConfig, model: str) -> RayHandle:
    """Encoding and scoring run in threads of their own, so that a step's bonuses do not wait for features of later groups."""
    return _actor(
        HiddenStateEncoder,
        "encoder",
        _threads(config.encoder.threads),
        model=model,
        config=config.encoder,
        bonus=config.bonus,
        group_size=config.responses_per_prompt,
        seed=config.seed,
        concurrency_groups={"encode": 1, "score": 1},
    )


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def _actor(
    cls: type,
    name: str,
    environment: Mapping[str, str],
    *args: Any,
    num_gpus: float = 0,
    max_concurrency: int | None = None,
    concurrency_groups: dict[str, int] | None = None,
    **kwargs: Any,
) -> RayHandle:
    """One actor. `concurrency_groups` is by method name: each such method runs in threads of its own.

    `max_task_retries` stays 0: the controller requeues by id, Ray's own retries would run a call twice."""
    options: dict[str, Any] = {
        "name": name,
        "num_cpus": 1,
        "num_gpus": num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}},
    }
    if max_concurrency is not None:
        options["max_concurrency"] = max_concurrency
    if concurrency_groups is not None:
        options["concurrency_groups"] = concurrency_groups
    actor = ray.remote(**options)(cls).remote(*args, **kwargs)
    return RayHandle(actor, name, groups={method: method for method in concurrency_groups or {}})


def _num_actors(config: RunConfig) -> int:
    return config.rollout.workers + 3 + int(config.bonus.enabled)


def _namespace(config: RunConfig) -> str:
    return f"repexp-{os.path.basename(os.path.abspath(config.run_dir))}"
