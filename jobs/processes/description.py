"""What each component of a run is made of: one description, used by Ray (`jobs.processes.build`) and in tests without
Ray.

    components = TrainingComponents(config, model, run_id="quickstart", log_directory="runs/quickstart/rollouts")
    handle = launch(components.learner())                     # an actor
    learner = components.learner().make()                     # an object in this process

Each process gets the threads of its role (`jobs.processes.threads`): more threads than cores, or spinning ones, cost a
factor of two to ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from actors.bonus import BonusScorer
from actors.config import EncoderConfig, RolloutConfig, SamplingConfig, ScorerConfig, VerifierConfig
from actors.encoder import HiddenStateEncoder
from actors.engines import Repeats, environment_of, facts_of
from actors.learner import Learner
from actors.learner_rank import LearnerRank
from actors.replay import Replay
from actors.rollout import PooledFeatures, RolloutWorker
from actors.scorer import ResponseScorer
from actors.verifier import VerifierPool
from jobs.config import RunConfig
from jobs.processes.handles import Handle
from jobs.processes.needs import Needs, needs_of
from jobs.processes.threads import with_threads
from learners.threads import Threads, resolve_threads
from tasks.config import TaskConfig

C = TypeVar("C")

SEED_STEP = 7919
BESIDE_THE_DRIVER = Needs(role="replay and bonus", on_this_node=True)
CONCURRENT_CALLS = 1000
"""Calls that a process with a queue of its own takes in: an engine's requests, an encoder's `max_waiting`."""


@dataclass(frozen=True, kw_only=True)
class Component(Generic[C]):
    """A component: the class, its arguments, and what its process needs."""

    cls: type[C]
    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    across_processes: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments that are right only where results are copied on their way out of the process."""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)
    max_concurrency: int | None = None
    """Calls that run at once. None: one after the other."""

    def make(self) -> C:
        """Return the component as an object in this process."""
        return self.cls(*self.args, **self.kwargs)


class Launch(Protocol):
    """Starts a component's process. The handle is there at once, the process is ready later."""

    def __call__(self, component: Component[C], /) -> Handle[C]: ...


class LaunchTogether(Protocol):
    """Starts the processes of components of which none can work without the others."""

    def __call__(self, components: Sequence[Component[C]], /) -> Sequence[Handle[C]]: ...


class TrainingComponents:
    """The components of a training run."""

    def __init__(self, config: RunConfig, model: str, *, run_id: str, log_directory: str) -> None:
        self._config = with_threads(config)
        self._model = model
        self._run_id = run_id
        self._log_directory = log_directory
        self._from_policy = config.feature_source == "policy"

    def rollout_worker(self, number: int) -> Component[RolloutWorker]:
        """Return a worker. Where an engine samples by the keys of requests, all workers have one seed: a group is then
        the same on each of them."""
        config = self._config
        spread = 0 if config.deterministic or facts_of(config.rollout).repeats is Repeats.ALWAYS else SEED_STEP * number
        return rollout_worker(
            f"rollout-{number}",
            config.rollout,
            config.sampling,
            prompt=config.prompt,
            model=self._model,
            run_id=self._run_id,
            seed=config.seed + spread,
            features=PooledFeatures(bonus=config.bonus, projection_seed=config.seed) if self._from_policy else None,
            isolated=config.isolates_groups,
        )

    def evaluation_worker(self) -> Component[RolloutWorker]:
        """Return a worker for evaluations, without what training needs of one."""
        config = self._config
        options = {"prompt": config.prompt, "model": self._model, "run_id": self._run_id, "seed": config.seed}
        return rollout_worker("evaluation", config.rollout, config.sampling, **options)

    def encoder(self, number: int) -> Component[HiddenStateEncoder]:
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

    def learner(self) -> Component[Learner]:
        """Return the learner of a run with one rank."""
        return self._learner(Learner, "learner")

    def learner_rank(self, rank: int) -> Component[LearnerRank]:
        """Return one rank of a learner of several (`jobs.processes.learner_group`)."""
        return self._learner(LearnerRank, f"learner-{rank}", rank)

    def _learner(self, cls: type[C], name: str, *args: Any) -> Component[C]:
        config = self._config
        kwargs: dict[str, Any] = {
            "temperature": config.sampling.temperature,
            "group_size": config.responses_per_prompt,
            "device": _device(config.learner.num_gpus),
            "total_steps": config.steps,
            "weight_transfer": config.rollout.weight_transfer,
            "kept_versions": config.max_policy_lag + 1,
            "kept_every": config.evaluation.every,
        }
        return Component(
            cls=cls,
            name=name,
            args=(*args, self._model, config.learner),
            kwargs=kwargs,
            across_processes={"reuse_snapshot_buffer": True},
            environment=_threads(config.learner.threads),
            needs=needs_of("learner", config.learner),
        )

    def bonus(self) -> Component[BonusScorer]:
        config = self._config
        kwargs = {"bonus": config.bonus, "group_size": config.responses_per_prompt, "seed": config.seed}
        return Component(cls=BonusScorer, name="bonus", kwargs=kwargs, environment=_threads(1), needs=BESIDE_THE_DRIVER)

    def verifier(self) -> Component[VerifierPool]:
        config = self._config
        concurrency = config.prompts_per_step + 1
        return verifier_pool(config.task, config.verifier, max_concurrency=concurrency, final_answers=config.needs_answers)

    def replay(self) -> Component[Replay]:
        config = self._config
        kwargs: dict[str, Any] = {
            "group_size": config.responses_per_prompt,
            "prompts_per_step": config.prompts_per_step,
            "max_policy_lag": config.max_policy_lag,
            "late": config.late,
            "config": config.replay,
            "rewards": config.reward,
            "max_response_tokens": config.sampling.max_response_tokens,
            "log_directory": self._log_directory,
        }
        return Component(cls=Replay, name="replay", kwargs=kwargs, needs=BESIDE_THE_DRIVER)


def rollout_worker(name: str, config: RolloutConfig, sampling: SamplingConfig, **options: Any) -> Component[RolloutWorker]:
    """Return a worker; `options` are the other arguments of `RolloutWorker`."""
    return Component(
        cls=RolloutWorker,
        name=name,
        kwargs={"worker_id": name, "config": config, "sampling": sampling, **options},
        environment={**_threads(config.threads), **environment_of(config)},
        needs=needs_of("rollout", config),
        max_concurrency=CONCURRENT_CALLS,
    )


def encoder(number: int, config: EncoderConfig, **options: Any) -> Component[HiddenStateEncoder]:
    """Return an encoder; `options` are the other arguments of `HiddenStateEncoder`. Calls at the same time share a
    batch."""
    return Component(
        cls=HiddenStateEncoder,
        name=f"encoder-{number}",
        kwargs={"config": config, "device": _device(config.num_gpus), **options},
        environment=_threads(config.threads),
        needs=needs_of("encoder", config),
        max_concurrency=CONCURRENT_CALLS,
    )


def scorer(config: ScorerConfig, *, model: str) -> Component[ResponseScorer]:
    return Component(
        cls=ResponseScorer,
        name="scorer",
        kwargs={"model": model, "config": config, "device": _device(config.num_gpus)},
        environment=_threads(config.threads),
        needs=needs_of("scorer", config),
    )


def verifier_pool(
    task: TaskConfig, config: VerifierConfig, *, max_concurrency: int, final_answers: bool = False
) -> Component[VerifierPool]:
    return Component(
        cls=VerifierPool,
        name="verifier",
        args=(task, config),
        kwargs={"final_answers": final_answers},
        needs=needs_of("verifier", config),
        max_concurrency=max_concurrency,
    )


def needs_of_run(config: RunConfig) -> list[Needs]:
    """Return the needs of every process that a training run starts with. An evaluation is a rollout worker more."""
    engines = config.rollout.workers + (config.evaluation.every > 0)
    numbers = {"learner": config.learner.ranks, "rollout": engines, "encoder": config.num_encoders, "verifier": 1}
    asked = [needs_of(role, getattr(config, role)) for role, number in numbers.items() for _ in range(number)]
    return asked + [BESIDE_THE_DRIVER] * (1 + config.bonus.enabled)


def _device(num_gpus: float) -> str:
    return "cuda" if num_gpus else "cpu"


def _threads(threads: Threads) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(resolve_threads(threads)), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
