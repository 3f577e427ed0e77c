"""What a start looks at in a run's directory and its checkpoints before anything is started. It finds from where the
run goes on, and whether it may."""

from __future__ import annotations

from jobs.configuration.user_error import UserError
from jobs.directory.job_dir import CONFIG, read_json
from jobs.directory.metrics import evaluations_of, read_metrics
from jobs.directory.run_dir import RunDirectory
from jobs.processes.failures import reason
from jobs.sampling.training_evaluation import TrainingEvaluation
from learners.checkpoint import CheckpointError
from tasks.stream import ProblemStream


def require_own_storage(run: RunDirectory, storage: str | None) -> None:
    """Raise UserError for a `checkpoint.storage` that cannot be read or written, or that is another run's."""
    if storage is None:
        return
    try:
        latest = run.checkpoints.latest()
        owner = run.run_id if latest is None else run.checkpoints.meta(latest).get("run_id", run.run_id)
    except CheckpointError as error:
        raise UserError(f"checkpoint.storage = {storage!r}: {error}") from None
    except OSError as error:
        raise UserError(
            f"checkpoint.storage = {storage!r} cannot be read ({reason(error)}): let this process read there, or choose another place"
        ) from None
    if owner != run.run_id:
        raise UserError(f"checkpoint.storage = {storage!r} holds the checkpoints of run '{owner}': give this run an address of its own")
    try:
        run.checkpoints.require_writable()
    except CheckpointError as error:
        raise UserError(f"checkpoint.storage = {storage!r}: {error}") from None


def require_known_history(run: RunDirectory) -> None:
    """Raise UserError for a run whose checkpoints are in another place than the one asked for. It would begin again at
    step 0, and forget what it has logged."""
    file, storage = run.path / CONFIG, run.config.checkpoint.storage
    if not file.is_file() or not run.has_begun() or run.checkpoints.latest() is not None:
        return
    before = read_json(file).get("checkpoint", {}).get("storage")
    if before == storage:
        return
    known = RunDirectory(run.config.model_copy(update={"checkpoint": run.config.checkpoint.model_copy(update={"storage": before})}))
    try:
        latest = known.checkpoints.latest()
    except (CheckpointError, OSError):
        latest = None
    if latest is not None:
        raise UserError(
            f"{run.path} has its checkpoints in {known.checkpoints.uri}, up to step {latest}, and checkpoint.storage = {storage!r} has "
            "none: copy them there, or leave checkpoint.storage as it was"
        )


def start_step_of(run: RunDirectory, resume: str) -> int:
    latest = run.checkpoints.latest()
    if resume == "latest" and latest is None:
        raise UserError(f"--resume latest: {run.path} has no complete checkpoint; leave --resume out to start at step 0")
    if resume == "never" and latest is not None:
        raise UserError(f"--resume never: {run.path} has a checkpoint of step {latest}; choose another with --set run_dir=...")
    return latest or 0


def lacks_evaluation(run: RunDirectory, step: int, evaluation: TrainingEvaluation | None) -> bool:
    """Return whether the policy of `step` is to be evaluated and was not: the run was stopped amid its last one."""
    if evaluation is None or not evaluation.is_due(step):
        return False
    return step not in {record["step"] for record in read_metrics(evaluations_of(run.metrics))}


def require_saved_stream(run: RunDirectory, start_step: int, stream: ProblemStream) -> None:
    """Raise UserError where the problems are not those of the checkpoint, before anything is started."""
    if not start_step:
        return
    try:
        stream.load_state_dict(run.checkpoints.meta(start_step)["stream"])
    except (ValueError, CheckpointError) as error:
        raise UserError(
            f"{run.path} cannot go on from step {start_step}: {error}: give the run the problems it began with, or choose another with "
            "--set run_dir=..."
        ) from None
