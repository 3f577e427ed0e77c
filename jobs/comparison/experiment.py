"""What a comparison consists of: a run for every method and seed, an evaluation of each of its policies, and one of
the base model.

    experiment = resolve(config, source="compare.toml")      # raises UserError for a method that cannot be trained
    experiment.write_files()                                 # OUT/configs/*.toml: what the commands are given

    OUT/configs/   NAME.toml for each run, evaluate.toml for all evaluations
    OUT/runs/      NAME: the directory of a run
    OUT/evaluations/   base and NAME@STEP: the directories of jobs.evaluate
    OUT/logs/      what the commands printed
    OUT/results/   NAME.json for each run that is done with its evaluations, and base.json (`jobs.comparison.kept`)

NAME is COMPARISON-METHOD-SEED. Each directory belongs to a command that a person could have typed, and that guards it:
it takes one configuration, serves one process, and continues what was interrupted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.compare_config import BASE, CompareConfig
from jobs.comparison import kept
from jobs.config import CHANGEABLE_ON_RESUME, RunConfig
from jobs.configuration.files import changed_keys, merged, read_values, validated
from jobs.configuration.toml_text import toml_text
from jobs.configuration.user_error import UserError
from jobs.directory.atomic import replacing
from jobs.directory.job_dir import CONFIG, read_json
from jobs.directory.run_dir import RunDirectory
from jobs.evaluation_config import CHANGEABLE_BETWEEN_STARTS, TAKEN_FROM_A_RUN, EvaluateConfig
from jobs.processes.environment import quieten_libraries, require_placements
from jobs.processes.methods import require_run_methods, require_sampling_methods

EVALUATE = "evaluate"
RESULTS = "results"
REPORTED = "report.json"
"""The last file of an evaluation: it is there once all responses are."""
GIVEN = ("run_dir", "seed", "steps", "evaluation")
"""Keys of a run that the comparison gives."""
OWN_CHECKPOINT_KEYS = ("every", "keep", "keep_every", "storage")
MEANS = (
    *(key for key in CHANGEABLE_ON_RESUME if key not in ("steps", "rollout")),
    *(f"rollout.{key}" for key in ("workers", "threads", "num_gpus", "placement", "kv_cache_gib", "gpu_memory_fraction")),
    *(f"rollout.{key}" for key in ("start_timeout_s", "group_timeout_s", "progress_tokens")),
)
"""Keys of a run that say with which means it is computed, and not what."""
EQUAL = ("model", "task", "prompts_per_step", "responses_per_prompt")
"""What no method may change: the same problems in the same order, the same number of responses to each."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One evaluation: the base model, or the policy that a run had after a step."""

    name: str
    model: str
    """What `jobs.evaluate --model` is given."""
    step: int
    directory: Path
    kept_in: Path
    """The file that keeps what was found."""

    @property
    def is_done(self) -> bool:
        """Whether all responses are there and judged, or what they say is kept. Raises UserError for a damaged file."""
        if (self.directory / REPORTED).is_file():
            return True
        known = kept.read(self.kept_in)
        return known is not None and self.step in known.policies


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One method with one seed."""

    name: str
    method: str
    seed: int
    config: RunConfig
    values: dict[str, Any]
    """What the file of the run holds; the other keys have their defaults."""
    evaluations: tuple[Evaluated, ...]
    """By increasing step."""

    @cached_property
    def directory(self) -> RunDirectory:
        """The run's directory; nothing is made or locked."""
        return RunDirectory(self.config)

    @property
    def kept_in(self) -> Path:
        """The file that keeps what was found."""
        return self.evaluations[0].kept_in

    @property
    def waiting(self) -> list[Evaluated]:
        """The evaluations that are not done."""
        return [one for one in self.evaluations if not one.is_done]

    @property
    def found(self) -> list[Path]:
        """What there is of evaluations of the run, also of steps that are not asked for any more."""
        directory = self.evaluations[0].directory.parent
        return [*([self.kept_in] if self.kept_in.exists() else []), *sorted(directory.glob(f"{self.name}@*"))]

    @property
    def may_differ(self) -> tuple[str, ...]:
        """Keys that may differ between runs of one method. Where the learning rate decays, the steps of a run decide
        what its policies have seen of the decay."""
        return (*MEANS, *(() if self.config.learner.decay_steps else ("steps",)))

    @property
    def has_policies(self) -> bool:
        """Whether the policies of all evaluations that are not done are there."""
        there = {*self.directory.checkpoints.steps(), self.directory.policy_step}
        return all(one.step in there for one in self.waiting)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole comparison."""

    config: CompareConfig
    out: Path
    """The absolute path of the comparison's directory."""
    base: Evaluated
    runs: tuple[ComparedRun, ...]
    """All methods with the first seed, then with the second: what is there early compares methods."""
    shared: RunConfig
    """The base configuration with `common`: what every method starts from."""
    evaluation: EvaluateConfig
    """What all evaluations have in common."""

    @property
    def name(self) -> str:
        """The comparison's name."""
        return self.out.name

    @property
    def evaluations(self) -> Iterator[Evaluated]:
        """All evaluations, that of the base model first."""
        yield self.base
        for run in self.runs:
            yield from run.evaluations

    def run_file(self, run: ComparedRun) -> Path:
        """Return the file that `jobs.train` is given."""
        return self.out / "configs" / f"{run.name}.toml"

    @property
    def evaluation_file(self) -> Path:
        """The file that `jobs.evaluate` is given."""
        return self.out / "configs" / f"{EVALUATE}.toml"

    def log_file(self, name: str) -> Path:
        """Return where the output of the command called `name` goes."""
        return self.out / "logs" / f"{name}.log"

    def write_files(self) -> None:
        """Write what the commands are given."""
        for directory in ("configs", "runs", "evaluations", "logs", RESULTS):
            (self.out / directory).mkdir(exist_ok=True)
        for run in self.runs:
            _write(self.run_file(run), run.values)
        _write(self.evaluation_file, evaluation_values(self.config, self.shared))

    def require_same_configurations(self) -> None:
        """Raise UserError for a run or an evaluation that was begun with another configuration: commands refuse to
        continue one, but what is done is not given to a command again."""
        for one in self.evaluations:
            config = self.evaluation.model_copy(update={"models": (one.model,)})
            _require_same_directory(one.directory, config, CHANGEABLE_BETWEEN_STARTS)
        if (known := kept.read(self.base.kept_in)) is not None:
            _require_same(self.base.kept_in, known.evaluation, self.evaluation_of(BASE), CHANGEABLE_BETWEEN_STARTS)
        for run in self.runs:
            if run.directory.has_begun():
                _require_same_directory(run.directory.path, run.config, run.may_differ)
            if (known := kept.read(run.kept_in)) is not None:
                _require_same(run.kept_in, known.config or {}, run.config, run.may_differ)
                _require_same(run.kept_in, known.evaluation, self.evaluation_of(run.name), CHANGEABLE_BETWEEN_STARTS)

    def evaluation_of(self, name: str) -> EvaluateConfig:
        """Return what all policies of the run `name` are evaluated with, or the base model if that is its name. Where
        its policies lie does not matter."""
        return self.evaluation.model_copy(update={"models": (self.base.model if name == BASE else name,)})


def resolve(config: CompareConfig, *, source: str) -> Experiment:
    """Return the comparison that `config` describes, with every run checked as `jobs.train` checks it. `source` names
    its file in messages. Raises UserError, ModelError and ExtensionError."""
    if not config.methods:
        raise UserError(f"{source}: methods is empty: name at least the baseline, for example [methods.{config.baseline}]")
    out = Path(config.out).absolute()
    start = merged(read_values(RunConfig, config.config), _own(config.common, source, "common"))
    if start.get("checkpoint", {}).get("storage") is not None:
        raise UserError(f"{config.config}: checkpoint.storage is for one run, and a comparison has several: leave it out")
    shared = _run_config(start, config, out / "shared", config.seeds[0], f"{source}, common")
    runs = tuple(_run(config, out, start, method, seed, source) for seed in config.seeds for method in config.methods)
    for run in runs:
        _require_equal(run, shared, source)
    quieten_libraries()  # before a module of the user's own may import what reads it
    for run in runs[: len(config.methods)]:  # all seeds have the same methods
        require_run_methods(run.config)
        require_placements(run.config)
    evaluation = validated(EvaluateConfig, evaluation_values(config, shared), source=f"{source}, evaluation")
    require_sampling_methods(evaluation.task, evaluation.rollout, evaluation.sampling)
    return Experiment(
        config=config,
        out=out,
        base=Evaluated(name=BASE, model=shared.model, step=0, directory=out / "evaluations" / BASE, kept_in=out / RESULTS / f"{BASE}.json"),
        runs=runs,
        shared=shared,
        evaluation=evaluation,
    )


def evaluation_values(config: CompareConfig, shared: RunConfig) -> dict[str, Any]:
    """Return the file of all evaluations. It says everything about task, sampling, engine and verifier, so that nothing
    of a method's own is left to a policy."""
    asked = config.evaluation.model_dump(mode="json")
    sections = shared.model_dump(mode="json", include=set(TAKEN_FROM_A_RUN))
    sections["rollout"] |= asked.pop("rollout")
    return asked | {"wait_timeout_s": shared.wait_timeout_s} | sections


def _run(config: CompareConfig, out: Path, start: dict[str, Any], method: str, seed: int, source: str) -> ComparedRun:
    name = f"{out.name}-{method}-{seed}"
    where = f"{source}, methods.{method}"
    own = _own(config.methods[method], source, f"methods.{method}")
    run_config = _run_config(merged(start, own), config, out / "runs" / name, seed, where)
    evaluations = tuple(
        Evaluated(
            name=f"{name}@{step}",
            model=f"{run_config.run_dir}@{step}",
            step=step,
            directory=out / "evaluations" / f"{name}@{step}",
            kept_in=out / RESULTS / f"{name}.json",
        )
        for step in config.steps
    )
    values = _values_of_run(merged(start, own), config, out / "runs" / name, seed)
    if run_config.prompt.template is not None:  # a run keeps the text: the file may change, and is not where it is run
        values = merged(values, {"prompt": {"template": run_config.prompt.template}})
    return ComparedRun(name=name, method=method, seed=seed, config=run_config, values=values, evaluations=evaluations)


def _run_config(values: dict[str, Any], config: CompareConfig, run_dir: Path, seed: int, source: str) -> RunConfig:
    return validated(RunConfig, _values_of_run(values, config, run_dir, seed), source=source)


def _values_of_run(values: dict[str, Any], config: CompareConfig, run_dir: Path, seed: int) -> dict[str, Any]:
    """Return what a run is given: the steps that are evaluated have a checkpoint, which stays until they are."""
    every = math.gcd(*config.steps)
    checkpoint = values.get("checkpoint", {})
    own = {"every": math.gcd(every, checkpoint.get("every", every)), "keep": 1, "keep_every": every}
    given = {"run_dir": str(run_dir), "seed": seed, "steps": config.steps[-1], "evaluation": {}, "checkpoint": checkpoint | own}
    return values | given


def _own(values: dict[str, Any], source: str, table: str) -> dict[str, Any]:
    """Return the keys of a table of the comparison. Raises UserError for one that is the comparison's to give."""
    wrong = [key for key in GIVEN if key in values]
    wrong += [f"checkpoint.{key}" for key in OWN_CHECKPOINT_KEYS if key in values.get("checkpoint", {})]
    if wrong:
        raise UserError(f"{source}: {table}.{wrong[0]} is given by the comparison to every run: leave it out")
    return values


def _require_equal(run: ComparedRun, shared: RunConfig, source: str) -> None:
    for key in EQUAL:
        ours, theirs = getattr(run.config, key), getattr(shared, key)
        if ours != theirs:
            raise UserError(
                f"{source}: methods.{run.method} changes {key}, and all methods get the same problems and the same number of responses: "
                f"set it under common"
            )


def _require_same_directory(directory: Path, config: RunConfig | EvaluateConfig, changeable: tuple[str, ...]) -> None:
    if (file := directory / CONFIG).is_file():
        _require_same(directory, read_json(file), config, changeable)


def _require_same(place: Path, saved: Mapping[str, Any], config: RunConfig | EvaluateConfig, changeable: tuple[str, ...]) -> None:
    if changed := changed_keys(dict(saved), config, changeable):
        raise UserError(
            f"{place} was begun with another configuration: {', '.join(changed[:3])}; choose another with --set out=DIR, or delete it"
        )


def _write(file: Path, values: dict[str, Any]) -> None:
    with replacing(file) as staging:
        staging.write_text(toml_text(values), encoding="utf-8")
