"""Which model a person means, and the same one again when a job goes on.

    model = find_model("quickstart@20")        # ConfigError with the mend; nothing is touched
    pins = PinnedModels(directory)
    pinned = pins.pin(model)                   # a local path that stays, whatever the run does meanwhile
    pinned.label, pinned.path

A run that goes on writes newer checkpoints and removes older ones. So the policy is linked (or copied) into the job's
directory once, and `models.json` says which one it is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.cluster.runs import LOCAL_RUNS, STORAGE, local_runs
from jobs.config import ConfigError, RunConfig
from jobs.directory.atomic import replacing
from jobs.directory.job_dir import CONFIG, LOCK, read_json
from jobs.directory.run_dir import RunDirectory
from learners.checkpoint import CheckpointError
from learners.config import LearnerConfig
from learners.models import EMBEDDED, ModelError, check_model, resolve_model
from learners.precision import resolve_dtype

PINS, POLICIES = "models.json", "policies"
_STEP = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as a person named it. `run` and `step` are None for one that is not of a run."""

    name: str
    label: str
    model: str
    """What `learners.models` makes a directory of; for a run, the model it began with."""
    run: RunDirectory | None = None
    settings: dict[str, Any] | None = None
    """The run's configuration as it was written."""
    learner: LearnerConfig | None = None
    """The run's learner."""
    step: int | None = None

    def describe(self) -> str:
        """One line for people."""
        if self.run is None:
            return self.label
        return f"{self.label}: the {'exported policy' if self.run.policy_step == self.step else 'checkpoint'} in {self.run.path}"


def find_models(names: Sequence[str]) -> list[EvaluatedModel]:
    """As `find_model`, each with a label of its own."""
    models = [find_model(name) for name in names]
    labels = [model.label for model in models]
    return [replace(model, label=model.name) if labels.count(model.label) > 1 else model for model in models]


def find_model(name: str) -> EvaluatedModel:
    """The embedded alias, a run, a model directory or a hub id. Raises ConfigError."""
    if name not in EMBEDDED:
        match = _STEP.fullmatch(name)
        if (directory := _run_directory(name)) is not None:
            return _of_run(name, directory, None)
        if match and (directory := _run_directory(match[1])) is not None:
            return _of_run(name, directory, int(match[2]))
        if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith(f"{LOCAL_RUNS}/")):
            raise ConfigError(_unknown(name))
        if (Path(name) / LOCK).is_file():
            raise ConfigError(f"model '{name}' is the directory of a job that is not a training run")
    try:
        check_model(name)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    return EvaluatedModel(name=name, label=Path(name).resolve().name if Path(name).is_dir() else name, model=name)


def _unknown(name: str) -> str:
    runs = ", ".join(directory.name for directory in local_runs()[:5]) or "none here"
    return (
        f"model '{name}' is neither an embedded alias ({', '.join(EMBEDDED)}), a run ({runs}), a model directory, nor a hub id OWNER/NAME"
    )


def _run_directory(name: str) -> Path | None:
    """The directory of the training run of that name, if there is one."""
    for directory in (Path(name), Path(LOCAL_RUNS) / name, Path(STORAGE).expanduser() / name):
        if (directory / LOCK).is_file() and (directory / CONFIG).is_file() and "run_dir" in read_json(directory / CONFIG):
            return directory
    return None


def _of_run(name: str, directory: Path, step: int | None) -> EvaluatedModel:
    """The policy of `step`; without one the newest: exported at the end, or of the newest checkpoint."""
    settings = read_json(directory / CONFIG)
    try:
        config = RunConfig.model_validate(settings | {"run_dir": str(directory)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"run {directory} was written by another version: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    run = RunDirectory(config)
    try:
        steps = run.checkpoints.steps()
    except CheckpointError as error:
        raise ConfigError(f"run {directory}: {error}") from None
    there = sorted({*steps, *([] if run.policy_step is None else [run.policy_step])})
    if not there:
        raise ConfigError(f"run {directory} has neither a policy nor a checkpoint yet: wait for its first checkpoint")
    if step is not None and step not in there:
        raise ConfigError(f"run {directory} has no policy of step {step}: there are those of {', '.join(map(str, there))}")
    chosen = there[-1] if step is None else step
    label = f"{run.run_id} step {chosen}"
    return EvaluatedModel(name=name, label=label, model=config.model, run=run, settings=settings, learner=config.learner, step=chosen)


# ---- the same again ----


@dataclass(frozen=True, kw_only=True)
class PinnedModel:
    """A model that stays what it is."""

    label: str
    path: str
    step: int | None
    digest: str | None
    """Of the names, sizes and times of a directory's files, where it is not ours."""


class PinnedModels:
    """`OUT/models.json`, and `OUT/policies/` for what comes from runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / PINS
        saved = read_json(self._file) if self._file.is_file() else {}
        self._pinned = {name: PinnedModel(**values) for name, values in saved.items()}

    def known(self, name: str) -> PinnedModel | None:
        """What an earlier start of the job pinned under this name."""
        return self._pinned.get(name)

    def pin(self, model: EvaluatedModel) -> PinnedModel:
        """Raises ConfigError for a model that cannot be had, or is another one than when the job began."""
        pinned = self.known(model.name)
        if pinned is None:
            pinned = self._pin(model)
            self._pinned[model.name] = pinned
            with replacing(self._file) as staging:
                staging.write_text(json.dumps({name: asdict(one) for name, one in self._pinned.items()}, indent=1))
        elif not Path(pinned.path).is_dir() or (pinned.digest is not None and pinned.digest != _digest(Path(pinned.path))):
            raise ConfigError(
                f"model '{model.name}' ({pinned.path}) is gone or was changed since this job began: give it back, or choose another --out"
            )
        return pinned

    def release(self) -> None:
        """Give back the space of what was copied, once nothing is left to do with it."""
        shutil.rmtree(self._directory / POLICIES, ignore_errors=True)

    def _pin(self, model: EvaluatedModel) -> PinnedModel:
        if model.run is not None:
            path, digest = self._keep_policy(model), None
        else:
            try:
                path = resolve_model(model.model)
            except ModelError as error:
                raise ConfigError(str(error)) from None
            digest = _digest(Path(path)) if Path(model.model).is_dir() else None
        return PinnedModel(label=model.label, path=str(Path(path).absolute()), step=model.step, digest=digest)

    def _keep_policy(self, model: EvaluatedModel) -> str:
        run, step = model.run, model.step
        assert run is not None and step is not None
        target = self._directory / POLICIES / sha256(model.name.encode()).hexdigest()[:16]

        def keep(policy: Path) -> None:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(policy, target, copy_function=_link_or_copy)

        try:
            if run.policy_step == step:
                keep(run.policy)
            elif model.learner is not None and model.learner.lora.enabled:
                run.checkpoints.restore(step, "learner/adapter", lambda adapter: _merge(model, adapter, target))
            else:
                run.checkpoints.restore(step, "learner/policy", keep)
        except (CheckpointError, ModelError, OSError, shutil.Error) as error:
            raise ConfigError(f"the policy of step {step} of {run.path} cannot be had: {error}") from None
        return str(target)


def _merge(model: EvaluatedModel, adapter: Path, target: Path) -> None:
    """A checkpoint of adapters has no policy, but what to make it of."""
    from learners.lora import LoraError, write_merged

    assert model.learner is not None
    dtype = resolve_dtype(model.learner.dtype, on_gpu=model.learner.num_gpus > 0)
    shutil.rmtree(target, ignore_errors=True)
    try:
        write_merged(adapter, str(target), base=resolve_model(model.model), dtype=dtype)
    except LoraError as error:
        raise ConfigError(str(error)) from None


def _link_or_copy(source: str, target: str) -> None:
    """Files of a policy are never written to again: a hard link holds them when the run removes its own."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _digest(directory: Path) -> str:
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir() if path.is_file())
    return sha256(json.dumps(files).encode()).hexdigest()
