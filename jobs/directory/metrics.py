"""The one place that writes metrics: `metrics.jsonl` (a line a step), `eval.jsonl` (a line an evaluation) and
TensorBoard.

Names are defined in docs/metrics.md.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from jobs.directory.atomic import replacing
from jobs.directory.rolling import parts, roll

KEPT_RECORDS = 1000
"""Of the first and of the last steps, in memory."""


class MetricsWriter:
    """Appends one record a step; on resume, what came after the restored step is dropped first."""

    def __init__(self, jsonl: Path, tensorboard: Path, *, resume_step: int = 0, max_bytes: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        self._jsonl = jsonl
        self._max_bytes = max_bytes
        if resume_step == 0:
            shutil.rmtree(tensorboard, ignore_errors=True)
        self.evaluated = {int(record["step"]) for record in _keep_until(evaluations_of(jsonl), resume_step)}
        """Steps whose evaluations are there from earlier starts."""
        self.history = _keep_until(jsonl, resume_step)
        """The first records and the last ones: what a summary is about."""
        self._board = SummaryWriter(str(tensorboard), purge_step=resume_step + 1 if resume_step else None)

    def write_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Of the policy of `step`, which may be one of a while ago."""
        with open(evaluations_of(self._jsonl), "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        record = {"step": step, "time": time.time(), **metrics}
        with open(self._jsonl, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._max_bytes is not None:
            roll(self._jsonl, self._max_bytes)
        self.history.append(record)
        del self.history[KEPT_RECORDS:-KEPT_RECORDS]
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


def evaluations_of(jsonl: Path) -> Path:
    """Where the evaluations of a run are that has its metrics in `jsonl`."""
    return jsonl.with_name("eval.jsonl")


def read_metrics(jsonl: Path) -> list[dict[str, float]]:
    """The records of a run in step order; a half-written last line (the writer was killed) is left out."""
    return [record for part in parts(jsonl) for record in _read(part)]


def _read(part: Path) -> list[dict[str, float]]:
    records: list[dict[str, float]] = []
    for line in part.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _keep_until(jsonl: Path, step: int) -> list[dict[str, float]]:
    """Drop the records of later steps from every file; returns those kept, without the middle of very many."""
    kept: list[dict[str, float]] = []
    for part in parts(jsonl):
        records = [record for record in _read(part) if record["step"] <= step]
        with replacing(part) as staging:
            staging.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        kept += records
    del kept[KEPT_RECORDS:-KEPT_RECORDS]
    return kept
