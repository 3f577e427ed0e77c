"""The one place that writes metrics: `metrics.jsonl` (a line a step) and TensorBoard. Names are defined in docs/metrics.md."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from jobs.atomic import replacing


class MetricsWriter:
    """Appends one record a step; on resume, what came after the restored step is dropped first."""

    def __init__(self, jsonl: Path, tensorboard: Path, *, resume_step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self._jsonl = jsonl
        if resume_step == 0:
            shutil.rmtree(tensorboard, ignore_errors=True)
        self.history = _keep_until(jsonl, resume_step)
        self._board = SummaryWriter(str(tensorboard), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        record = {"step": step, "time": time.time(), **metrics}
        with open(self._jsonl, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.history.append(record)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


def read_metrics(jsonl: Path) -> list[dict[str, float]]:
    """The records of a run in step order; a half-written last line (the writer was killed) is left out."""
    records: list[dict[str, float]] = []
    if jsonl.exists():
        for line in jsonl.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _keep_until(jsonl: Path, step: int) -> list[dict[str, float]]:
    kept = [record for record in read_metrics(jsonl) if record["step"] <= step]
    with replacing(jsonl) as staging:
        staging.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    return kept
