"""`repexp answers RUN_DIR`: read a run's answers, best or worst first, from its rollout log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from rich.table import Table

from buffers.rollout_log import RolloutLog
from buffers.schema import ROLLOUT_SCHEMA
from jobs.configuration.files import path_of
from jobs.configuration.user_error import UserError, answering, refusing
from jobs.screens.terminal import plain, terminal

COLUMNS = ("step", "reward", "bonus", "advantage", "question", "response_text", "reference_answer")


def select_answers(rows: pa.Table, *, sort_by: str, worst: bool, limit: int) -> pa.Table:
    """Return the first `limit` rows trained on, sorted by `sort_by`: largest first, or smallest for `worst`."""
    trained = rows.filter(pc.equal(rows["outcome"], "trained"))
    order = "ascending" if worst else "descending"
    return trained.sort_by([(sort_by, order), ("step", "descending")]).slice(0, min(limit, trained.num_rows))


def main(arguments: Sequence[str] | None = None) -> int:
    return answering(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="repexp answers", description="Read the answers of a run.")
    parser.add_argument("run_dir")
    parser.add_argument("--by", choices=("advantage", "reward", "bonus"), default="advantage", help="what to sort by")
    parser.add_argument("--worst", action="store_true", help="smallest first")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only these steps, both included")
    parser.add_argument("-n", type=int, default=10, help="how many")
    options = parser.parse_args(arguments)
    if options.n < 1:
        raise UserError(f"-n {options.n}: at least 1 answer must be asked for")
    shown = ROLLOUT_SCHEMA.empty_table().select([*COLUMNS, "outcome"])
    for rows in _steps(path_of(options.run_dir), options.steps):
        rows = pa.concat_tables([shown, rows.select(shown.column_names)])
        shown = select_answers(rows, sort_by=options.by, worst=options.worst, limit=options.n)
    table = Table(*(name.replace("_", " ") for name in COLUMNS), show_lines=False)
    for row in shown.to_pylist():
        table.add_row(*(plain(_cell(row[name])) for name in COLUMNS))
    terminal().print(table)
    return 0


def _steps(run_dir: Path, steps: Sequence[int] | None) -> Iterator[pa.Table]:
    """Yield the rows of one step after the other: all of a long run need not fit into memory."""
    log = RolloutLog(fs.LocalFileSystem(), str(run_dir / "rollouts"))
    with refusing(OSError, ValueError):
        found = log.steps()
    if not found:
        raise UserError(f"{run_dir} has no rollouts: give the directory of a run, for example runs/quickstart")
    wanted = [step for step in found if steps is None or steps[0] <= step <= steps[1]]
    if not wanted:
        raise UserError(f"{run_dir} has rollouts of steps {found[0]} to {found[-1]}, none of {steps}")
    try:
        for step in wanted:
            yield log.read([step])
    except (ValueError, OSError) as error:
        raise UserError(f"{error} (--steps FIRST LAST leaves steps out)") from None


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value).strip()


if __name__ == "__main__":
    sys.exit(main())
