"""The tracker "wandb": a run in Weights & Biases, or on disk for a later `wandb sync`.

    trackers = ["tensorboard", "wandb"]
    [tracker_options.wandb]
    project = "exploration"
    mode = "offline"

The package is optional, and imported only where the tracker is used. Every record is a row of its own with the metric
`step` as its axis, because W&B's own counter takes no record of an earlier step, and evaluations arrive late."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from buffers.extensions import ExtensionError

if TYPE_CHECKING:
    from jobs.directory.trackers import RunInfo

WAIT_S = 60.0
"""How long the start of a run waits for W&B's server, and its end for uploads. What is late stays on disk, for `wandb
sync`."""
ID_FILE = "repexp-id.txt"
CODE = Path(__file__).parents[2]
"""Where W&B looks for the commit of the code."""


class WandB:
    """Writes one W&B run for a run directory, also over resumes."""

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        """What is left out is as WANDB_PROJECT (else "repexp"), WANDB_ENTITY, WANDB_MODE (else "online"),
        WANDB_RUN_GROUP and WANDB_TAGS say. Raises ExtensionError."""
        for key, value in {"project": project, "entity": entity, "group": group}.items():
            if not isinstance(value, str | None):
                raise ExtensionError(f"tracker_options.wandb.{key} = {value!r} must be text")
        if mode not in (None, "online", "offline"):
            raise ExtensionError(f'tracker_options.wandb.mode = {mode!r} must be "online" or "offline"')
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise ExtensionError(f"tracker_options.wandb.tags = {tags!r} must be a list of texts")
        self._chosen: dict[str, Any] = {
            "project": project or os.environ.get("WANDB_PROJECT") or "repexp",
            "mode": mode or os.environ.get("WANDB_MODE") or "online",
            "entity": entity,
            "group": group,
            "tags": list(tags) or None,
        }
        _require_package()
        if self._chosen["mode"] == "online":
            _require_login()

    def start(self, info: RunInfo) -> None:
        """Begin a run, or continue that of the run directory. Nothing is left behind where that fails."""
        if self._chosen["mode"] == "offline":
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # which is read on import, and would look for W&B's server
        import wandb

        waits = {"init_timeout": WAIT_S, "finish_timeout": WAIT_S, "finish_timeout_raises": True}
        settings = wandb.Settings(console="off", quiet=True, git_root=str(CODE), **waits)
        try:
            self._run = wandb.init(
                **self._chosen,
                id=_id_of(info),
                name=info.run_id,
                resume="allow",
                dir=info.run_dir,
                config=dict(info.config),
                settings=settings,
            )
            self._run.define_metric("*", step_metric="step")
        except Exception:
            wandb.teardown()
            raise

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand a record to W&B's own process, which writes and uploads it."""
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        """Wait until all is on disk and, online, uploaded; then end W&B's own process. While an exception passes, the
        run counts as failed."""
        import wandb

        try:
            self._run.finish(exit_code=int(sys.exc_info()[1] is not None))
        finally:
            wandb.teardown()


def _require_package() -> None:
    """Raise ExtensionError where wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ExtensionError(f'trackers has "wandb", and the package is not installed: {sys.executable} -m pip install wandb')


def _require_login() -> None:
    """Raise ExtensionError without credentials: W&B would ask for them once the run has started."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ExtensionError(
            'trackers has "wandb", and no credentials of W&B are here: run `wandb login`, set WANDB_API_KEY, or set '
            'tracker_options.wandb.mode to "offline"'
        )


def _id_of(info: RunInfo) -> str:
    """Return the id of the W&B run: a new one for a fresh start, the same for all that resume it."""
    file = info.run_dir / "wandb" / ID_FILE
    if info.resume_step and file.exists():
        return file.read_text(encoding="utf-8").strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    new_id = secrets.token_hex(8)
    file.write_text(new_id + "\n", encoding="utf-8")
    return new_id
