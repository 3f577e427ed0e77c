"""Which model a name means, and how a job that is started again finds the same model.

    model = find_model("quickstart@20")        # raises UserError, which says what to do; nothing is touched
    pins = PinnedModels(directory)
    pinned = pins.pin(model)                   # a local path that stays, whatever the run does meanwhile
    pinned.label, pinned.path

A live run writes new checkpoints and removes old ones. So the policy is linked (or copied) into the job's directory
once, and `models.json` says which one it is."""

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

from jobs.cluster.runs import LOCAL_RUNS, local_runs, run_places
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError, refusing
from jobs.directory.atomic import replacing
from jobs.directory.job_dir import CONFIG, LOCK, read_json
from jobs.directory.model_card import README
from jobs.directory.run_dir import RunDirectory
from learners.checkpoint import CheckpointError
from learners.models import EMBEDDED, ModelError, check_model, model_here, resolve_model
from learners.precision import resolve_dtype

PINS, POLICIES = "models.json", "policies"
_STEP = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as a person named it. `run` and `step` are None for a model that no run has trained."""

    name: str
    label: str
    model: str
    """What `learners.models` turns into a directory; for a run, its initial model."""
    run: RunDirectory | None = None
    settings: dict[str, Any] | None = None
    """The run's configuration as it was written."""
    step: int | None = None

    def directory(self) -> str | None:
        """Return a directory with the model, or with the model that its run began with: config and tokenizer are the
        same. None where neither is here. Raises ModelError for a hub id that cannot be fetched."""
        if self.run is None:
            return resolve_model(self.model)
        return str(self.run.policy) if self.run.policy_step == self.step else model_here(self.model)

    def describe(self) -> str:
        """Return one line for people."""
        if self.run is None:
            return self.label
        return f"{self.label}: the {'exported policy' if self.run.policy_step == self.step else 'checkpoint'} in {self.run.path}"


def find_models(names: Sequence[str]) -> list[EvaluatedModel]:
    """Find all models, and give each a label of its own."""
    models = [find_model(name) for name in names]
    labels = [model.label for model in models]
    return [replace(model, label=model.name) if labels.count(model.label) > 1 else model for model in models]


def find_model(name: str) -> EvaluatedModel:
    """Find the embedded alias, a run, a model directory or a hub id. Raises UserError and ModelError."""
    if name not in EMBEDDED:
        match = _STEP.fullmatch(name)
        if (directory := _run_directory(name)) is not None:
            return _of_run(name, directory, None)
        if match and (directory := _run_directory(match[1])) is not None:
            return _of_run(name, directory, int(match[2]))
        if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith(f"{LOCAL_RUNS}/")):
            runs = ", ".join(directory.name for directory in local_runs()[:5]) or "none here"
            aliases = ", ".join(EMBEDDED)
            raise UserError(
                f"model '{name}' is neither an embedded alias ({aliases}), a run ({runs}), a model directory, nor a hub id OWNER/NAME"
            )
        if (Path(name) / LOCK).is_file():
            raise UserError(f"model '{name}' is the directory of a job that is not a training run")
    check_model(name)
    return EvaluatedModel(name=name, label=Path(name).resolve().name if Path(name).is_dir() else name, model=name)


def _run_directory(name: str) -> Path | None:
    for directory in (Path(name), *(place / name for place in run_places())):
        if (directory / LOCK).is_file() and (directory / CONFIG).is_file() and "run_dir" in read_json(directory / CONFIG):
            return directory
    return None


def _of_run(name: str, directory: Path, step: int | None) -> EvaluatedModel:
    """Return the policy of `step`, else the newest: the one exported at the end, or of the newest checkpoint."""
    settings = read_json(directory / CONFIG)
    try:
        config = RunConfig.model_validate(settings | {"run_dir": str(directory)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"run {directory} cannot be read by this version: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    run = RunDirectory(config)
    try:
        steps = run.checkpoints.steps()
    except CheckpointError as error:
        raise UserError(f"run {directory}: {error}") from None
    there = sorted({*steps, *([] if run.policy_step is None else [run.policy_step])})
    if not there:
        raise UserError(f"run {directory} has neither a policy nor a checkpoint yet: wait for its first checkpoint")
    if step is not None and step not in there:
        raise UserError(f"run {directory} has no policy of step {step}: there are those of {', '.join(map(str, there))}")
    chosen = there[-1] if step is None else step
    label = f"{run.run_id} step {chosen}"
    return EvaluatedModel(name=name, label=label, model=config.model, run=run, settings=settings, step=chosen)


@dataclass(frozen=True, kw_only=True)
class PinnedModel:
    """A model that does not change while the job exists."""

    label: str
    path: str
    step: int | None
    digest: str | None
    """Of the names, sizes and times of the files, for a directory that a person named; None for the job's own copy."""


class PinnedModels:
    """The models of a job: `OUT/models.json`, and `OUT/policies/` for the policies of runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / PINS
        saved = read_json(self._file) if self._file.is_file() else {}
        self._pinned = {name: PinnedModel(**values) for name, values in saved.items()}

    def known(self, name: str) -> PinnedModel | None:
        """Return what an earlier start of the job pinned under this name, or None."""
        return self._pinned.get(name)

    def pin(self, model: EvaluatedModel) -> PinnedModel:
        """Pin `model`. Raises UserError for one that cannot be fetched, or that was changed since the job began."""
        pinned = self.known(model.name)
        if pinned is None:
            pinned = self._pin(model)
            self._pinned[model.name] = pinned
            with replacing(self._file) as staging:
                staging.write_text(json.dumps({name: asdict(one) for name, one in self._pinned.items()}, indent=1))
        elif not Path(pinned.path).is_dir() or (pinned.digest is not None and pinned.digest != _digest(Path(pinned.path))):
            raise UserError(
                f"model '{model.name}' ({pinned.path}) is gone or was changed since this job began: give it back, or choose another --out"
            )
        return pinned

    def release(self) -> None:
        """Remove the copies once they are not needed any more."""
        shutil.rmtree(self._directory / POLICIES, ignore_errors=True)

    def _pin(self, model: EvaluatedModel) -> PinnedModel:
        if model.run is not None:
            path, digest = self._keep_policy(model), None
        else:
            with refusing(ModelError):
                path = resolve_model(model.model)
            digest = _digest(Path(path)) if Path(model.model).is_dir() else None
        return PinnedModel(label=model.label, path=str(Path(path).absolute()), step=model.step, digest=digest)

    def _keep_policy(self, model: EvaluatedModel) -> str:
        target = self._directory / POLICIES / sha256(model.name.encode()).hexdigest()[:16]
        copy_policy(model, target)
        return str(target)


def copy_policy(model: EvaluatedModel, target: Path) -> None:
    """Make `target` a directory with the policy of a run: links where that is possible, and merged weights of adapters.
    Raises UserError where it cannot be had."""
    run, step = model.run, model.step
    assert run is not None and step is not None

    def keep(policy: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(policy, target, copy_function=_link_or_copy)

    try:
        if run.policy_step == step:
            keep(run.policy)
        elif run.config.learner.lora.enabled:
            run.checkpoints.restore(step, run.policy_part, lambda adapter: _merge(run, adapter, target))
        else:
            run.checkpoints.restore(step, run.policy_part, keep)
        if not (target / README).is_file():
            (target / README).write_text(run.model_card(step), encoding="utf-8")
    except (CheckpointError, ModelError, OSError, shutil.Error) as error:
        raise UserError(f"the policy of step {step} of {run.path} cannot be had: {error}") from None


def _merge(run: RunDirectory, adapter: Path, target: Path) -> None:
    """Merge a checkpoint of adapters, which holds no policy, into its base model. The card stays."""
    from learners.lora import ADAPTER, LoraError, write_merged

    learner = run.config.learner
    dtype = resolve_dtype(learner.dtype, on_gpu=learner.num_gpus > 0)
    shutil.rmtree(target, ignore_errors=True)
    with refusing(LoraError):
        write_merged(adapter, str(target), base=resolve_model(run.config.model), dtype=dtype)
    shutil.copytree(adapter, target / ADAPTER)  # as the final policy has them
    if (card := target / ADAPTER / README).is_file():
        card.replace(target / README)


def _link_or_copy(source: str, target: str) -> None:
    """Keep a file of a policy. Nothing writes to it again, so a hard link keeps it when the run removes its own."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _digest(directory: Path) -> str:
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir() if path.is_file())
    return sha256(json.dumps(files).encode()).hexdigest()
