"""Where Ray meets the components: one local or attached Ray, and one actor for each owner of a resource.

The classes are plain; `ray.remote` is applied here and nowhere else. Each process gets the threads its role was given,
never the machine's core count: more threads than cores, or spinning ones, cost a factor of two to ten."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.bonus import BonusScorer
from actors.config import EncoderConfig, RolloutConfig, SamplingConfig, ScorerConfig, VerifierConfig
from actors.encoder import HiddenStateEncoder
from actors.learner import Learner
from actors.learner_rank import LearnerRank
from actors.orphans import remove_orphans
from actors.replay import Replay
from actors.rollout import RolloutWorker
from actors.scorer import ResponseScorer
from actors.verifier import VerifierPool
from actors.vllm_engine import engine_environment
from jobs.config import RunConfig
from jobs.processes.handles import Handle
from jobs.processes.learner_group import LearnerGroup
from jobs.processes.ray_handle import RayHandle
from tasks.config import TaskConfig

OBJECT_STORE_BYTES = 2 << 30
SPARE_CPUS = 64
"""CPUs a private Ray believes to have beyond those its first actors reserve: a run on one machine may be scaled up
too."""
SEED_STEP = 7919
TEMP_ROOT = Path("/tmp")
TEMP_PREFIX = "rx-"
ENCODER_CONCURRENCY = 1000
"""Calls an encoder's process takes in; how many wait inside the encoder is `encoder.max_waiting`."""


@contextmanager
def ray_session(namespace: str, num_actors: int) -> Iterator[None]:
    """Attach to the cluster that RAY_ADDRESS names, else start a private one that ends with this block.

    The private one lives in a short temporary directory (Unix sockets have short names), without a dashboard, and
    without token authentication: it listens for this process only."""
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls that were given up: what matters was awaited
    if os.environ.get("RAY_ADDRESS"):
        _init(namespace=namespace)
        try:
            yield
        finally:
            ray.shutdown()
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    remove_orphans(TEMP_ROOT, TEMP_PREFIX)  # of private Rays whose driver was killed
    directory = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=TEMP_ROOT)
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


def _init(**options: Any) -> None:
    """`ray.init`, which puts a handler of its own in the place of what the process does on SIGTERM; ours are put
    back."""
    ours = {number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    for number, handler in ours.items():
        signal.signal(number, handler)
        signal.siginterrupt(number, False)


def missing_cpus(num_actors: int) -> str | None:
    """What to say where the cluster attached to has fewer CPUs than the actors reserve; None where it has enough."""
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if cpus >= num_actors:
        return None
    return (
        f"the cluster has {cpus:g} CPUs and this run reserves {num_actors}: what does not fit waits until it grows "
        f"(on one machine: ray start --head --num-cpus {num_actors + 2})"
    )


class RayFactory:
    """Makes the actors of a training run (`jobs.run.components.Factory`)."""

    def __init__(self, config: RunConfig, model: str, *, run_id: str, log_directory: str) -> None:
        self._config = config
        self._model = model
        self._run_id = run_id
        self._log_directory = log_directory
        self._from_policy = config.bonus.feature_source == "policy"

    def rollout_worker(self, number: int) -> RayHandle:
        """Groups that are drawn by the keys of their requests are the same on whichever worker, with one seed for
        all."""
        config = self._config
        spread = 0 if config.deterministic or config.rollout.engine == "transformers" else SEED_STEP * number
        return rollout_worker(
            number,
            config.rollout,
            config.sampling,
            model=self._model,
            run_id=self._run_id,
            seed=config.seed + spread,
            pool_states=self._from_policy,
            bonus=config.bonus if self._from_policy else None,
            projection_seed=config.seed,
            isolated=config.isolates_groups,
        )

    def evaluation_worker(self) -> RayHandle:
        """Another engine, without what training needs of one."""
        config = self._config
        options: dict[str, Any] = {"model": self._model, "run_id": self._run_id, "seed": config.seed}
        return rollout_worker(0, config.rollout, config.sampling, name="evaluation", **options)

    def encoder(self, number: int) -> RayHandle:
        config = self._config
        return encoder(
            number,
            config.encoder,
            model=self._model,
            group_size=config.responses_per_prompt,
            seed=config.seed,
            bonus=config.bonus,
            alone=config.encodes_alone,
        )

    def learner(self) -> Handle:
        ranks = self._config.learner.ranks
        if ranks == 1:
            return self._learner_process(Learner, "learner")
        return LearnerGroup([self._learner_process(LearnerRank, f"learner-{rank}", rank) for rank in range(ranks)])

    def _learner_process(self, cls: type, name: str, *args: Any) -> RayHandle:
        config = self._config
        return _actor(
            cls,
            name,
            _threads(config.learner.threads),
            *args,
            self._model,
            config.learner,
            temperature=config.sampling.temperature,
            group_size=config.responses_per_prompt,
            device="cuda" if config.learner.num_gpus else "cpu",
            reuse_snapshot_buffer=True,
            weight_transfer=config.rollout.weight_transfer,
            kept_versions=config.max_policy_lag + 1,
            kept_every=config.evaluation.every,
            num_gpus=config.learner.num_gpus,
        )

    def bonus(self) -> RayHandle:
        config = self._config
        return _actor(
            BonusScorer,
            "bonus",
            _threads(1),
            bonus=config.bonus,
            group_size=config.responses_per_prompt,
            seed=config.seed,
            on_this_node=True,
        )

    def verifier(self) -> RayHandle:
        config = self._config
        concurrency = config.prompts_per_step + 1
        return verifier_pool(config.task, config.verifier, max_concurrency=concurrency, final_answers=config.bonus.needs_answers)

    def replay(self) -> RayHandle:
        config = self._config
        return _actor(
            Replay,
            "replay",
            {},
            group_size=config.responses_per_prompt,
            prompts_per_step=config.prompts_per_step,
            max_policy_lag=config.max_policy_lag,
            config=config.replay,
            rewards=config.reward,
            max_response_tokens=config.sampling.max_response_tokens,
            log_directory=self._log_directory,
            on_this_node=True,
        )


async def all_ready(workers: Sequence[Handle], others: Sequence[Handle], *, timeout_s: float) -> None:
    """Start the engines, and wait until every process that has something to load has loaded it."""
    starting = [worker.call("start", timeout_s=timeout_s, waiting_for=f"{worker.name} to start") for worker in workers]
    starting += [other.call("ready", timeout_s=timeout_s, waiting_for=f"the {other.name} to load its model") for other in others]
    await asyncio.gather(*starting)


async def close_all(handles: Sequence[Handle]) -> None:
    """Let engines and verifier processes end by themselves before Ray ends the actors."""
    await asyncio.gather(
        *(handle.call("close", timeout_s=20, waiting_for=f"{handle.name} to close") for handle in handles), return_exceptions=True
    )


def rollout_worker(index: int, config: RolloutConfig, sampling: SamplingConfig, *, name: str | None = None, **options: Any) -> RayHandle:
    """`options` are the other arguments of `RolloutWorker`."""
    name = name or f"rollout-{index}"
    return _actor(
        RolloutWorker,
        name,
        engine_environment(config),
        worker_id=name,
        config=config,
        sampling=sampling,
        num_gpus=config.num_gpus,
        max_concurrency=1000,
        **options,
    )


def encoder(index: int, config: EncoderConfig, **options: Any) -> RayHandle:
    """`options` are the other arguments of `HiddenStateEncoder`. Concurrent calls are what it batches."""
    return _actor(
        HiddenStateEncoder,
        f"encoder-{index}",
        _threads(config.threads),
        config=config,
        device="cuda" if config.num_gpus else "cpu",
        num_gpus=config.num_gpus,
        max_concurrency=ENCODER_CONCURRENCY,
        **options,
    )


def scorer(config: ScorerConfig, *, model: str) -> RayHandle:
    return _actor(
        ResponseScorer,
        "scorer",
        _threads(config.threads),
        model=model,
        config=config,
        device="cuda" if config.num_gpus else "cpu",
        num_gpus=config.num_gpus,
    )


def verifier_pool(task: TaskConfig, config: VerifierConfig, *, max_concurrency: int, final_answers: bool = False) -> RayHandle:
    return _actor(VerifierPool, "verifier", {}, task, config, max_concurrency=max_concurrency, final_answers=final_answers)


def num_actors(config: RunConfig) -> int:
    """Processes of a training run that reserve a CPU each."""
    encoders = config.encoder.replicas if config.bonus.feature_source == "encoder" else 0
    return config.rollout.workers + config.learner.ranks + 2 + config.bonus.enabled + encoders + (config.evaluation.every > 0)


def namespace(directory: str) -> str:
    return f"repexp-{os.path.basename(os.path.abspath(directory))}"


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def _actor(
    cls: type,
    name: str,
    environment: Mapping[str, str],
    *args: Any,
    num_gpus: float = 0,
    max_concurrency: int | None = None,
    on_this_node: bool = False,
    **kwargs: Any,
) -> RayHandle:
    """One actor. `max_task_retries` stays 0: the controller requeues by id, Ray's own retries would run a call twice.

    Without a name of Ray's: a replacement may be made before the lost one's name is free again.
    """
    options: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}},
    }
    if max_concurrency is not None:
        options["max_concurrency"] = max_concurrency
    if on_this_node:  # it reads and writes the run directory
        node_id = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return RayHandle(ray.remote(**options)(cls).remote(*args, **kwargs), name)
