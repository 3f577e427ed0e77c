"""The rollout log: every consumed group as plain Parquet rows, one file a step. DuckDB and pandas read it, and so does
training without an engine."""

import posixpath
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from buffers.records import GroupOutcome
from buffers.schema import ROLLOUT_SCHEMA, check_schema, conform

_STEP_FILE = re.compile(r"step_(\d{6,})\.parquet")
_PARTIAL_SUFFIX = ".partial"


class RolloutLogError(RuntimeError):
    """A step could not be written, for instance to a full disk. The message names the file and the reason."""


class RolloutLog:
    """Writes and reads `DIRECTORY/step_000012.parquet`. A file is whole or not there.

    log = RolloutLog(filesystem, f"{run_directory}/rollouts")
    log.truncate(restored_step)  # on resume: steps after the checkpoint will be written again
    for step in range(restored_step + 1, last_step + 1):
        ...
        log.append(step, [trained_batch, *stale_batches])
    table = log.read()
    batch = log.batch(step, GroupOutcome.TRAINED)  # what that step was trained on, row for row, bit for bit
    log.prune(max_bytes, keep_after=checkpoint_step)  # the oldest steps go while the log is too large

    Only reading a file checks its schema version. So a run that began under an older version is resumed beside its old
    files, and a reader of one of them gets an error that says so."""

    def __init__(self, filesystem: fs.FileSystem, directory: str) -> None:
        self._filesystem = filesystem
        self._directory = directory.rstrip("/")
        self._sizes: dict[int, int] | None = None  # bytes by step, from the first question on

    def append(self, step: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Write the rows of one step, replacing what an earlier attempt at the same step wrote. The rows appear under
        the final name by a rename, so neither a reader nor a crash of this process ever meets half a file. Raises
        RolloutLogError where the write fails: an earlier attempt's rows stay, and the space of this one is freed."""
        for batch in batches:
            check_schema(batch.schema)
        table = pa.Table.from_batches(batches, schema=ROLLOUT_SCHEMA)
        path = self._path(step)
        try:
            self._filesystem.create_dir(self._directory, recursive=True)
            with self._filesystem.open_output_stream(path + _PARTIAL_SUFFIX) as sink:
                pq.write_table(table, sink, compression="zstd")
            self._filesystem.move(path + _PARTIAL_SUFFIX, path)
        except OSError as error:
            with suppress(OSError):
                self._filesystem.delete_file(path + _PARTIAL_SUFFIX)
            raise RolloutLogError(f"the rollout log of step {step} cannot be written ({path}): {str(error).splitlines()[0]}") from error
        if self._sizes is not None:
            self._sizes[step] = self._size(step)

    def truncate(self, after_step: int) -> None:
        """Remove the files of later steps, and every file that was left half-written."""
        self._sizes = None
        for name in self._names():
            match = _STEP_FILE.fullmatch(name.removesuffix(_PARTIAL_SUFFIX))
            if match and (name.endswith(_PARTIAL_SUFFIX) or int(match[1]) > after_step):
                self._filesystem.delete_file(posixpath.join(self._directory, name))

    def steps(self) -> list[int]:
        """Return the steps that are logged. Raises OSError and ValueError for a directory that cannot be listed."""
        return sorted(int(match[1]) for name in self._names() if (match := _STEP_FILE.fullmatch(name)))

    @property
    def nbytes(self) -> int:
        """Bytes of the log on disk."""
        return sum(self._all_sizes().values())

    def prune(self, max_bytes: int, *, keep_after: int) -> int:
        """Remove the oldest steps, none after `keep_after`, while the log exceeds `max_bytes`. Return how many."""
        sizes = self._all_sizes()
        before = len(sizes)
        for step in sorted(sizes):
            if step > keep_after or self.nbytes <= max_bytes:
                break
            self._filesystem.delete_file(self._path(step))
            del sizes[step]
        return before - len(sizes)

    def _all_sizes(self) -> dict[int, int]:
        if self._sizes is None:
            self._sizes = {step: self._size(step) for step in self.steps()}
        return self._sizes

    def _size(self, step: int) -> int:
        return int(self._filesystem.get_file_info(self._path(step)).size)

    def read(self, steps: Iterable[int] | None = None) -> pa.Table:
        """Return the rows of `steps` (by default all), in step order. Raises FileNotFoundError for a step that was not
        logged, ValueError for a file that is damaged or of another major schema version."""
        tables = [self._read_step(step) for step in (self.steps() if steps is None else steps)]
        return pa.concat_tables(tables) if tables else ROLLOUT_SCHEMA.empty_table()

    def columns(self, step: int, names: Sequence[str]) -> pa.Table:
        """Return these columns of `step`, of whatever schema version the file is; those that it lacks are null. Reading
        a few columns is far faster than all: features are most of a file. Raises FileNotFoundError for a step that was
        not logged, ValueError for a file that is damaged or has a column of another type."""
        with self._filesystem.open_input_file(self._path(step)) as source:
            try:
                file = pq.ParquetFile(source)
                found = file.read(columns=[name for name in names if name in file.schema_arrow.names])
                kinds = pa.schema([pa.field(name, ROLLOUT_SCHEMA.field(name).type) for name in names])
                have = [found[name] if name in found.column_names else pa.nulls(len(found), kinds.field(name).type) for name in names]
                return pa.table(have, names=list(names)).cast(kinds)
            except (ValueError, OSError) as error:
                raise ValueError(f"{self._path(step)}: {' '.join(str(error).split())}") from None

    def has(self, step: int) -> bool:
        return bool(self._filesystem.get_file_info(self._path(step)).type == fs.FileType.File)

    def batch(self, step: int, outcome: GroupOutcome) -> pa.RecordBatch:
        """Return the rows of `step` with this outcome, in the order of the log, as one batch. For TRAINED it is the
        batch that the step was trained on, with its bonuses and rewards, in the same order. Raises FileNotFoundError
        for a step that was not logged, ValueError for a file that is damaged or of another major schema version."""
        rows = self._read_step(step)
        none = pa.RecordBatch.from_pylist([], schema=ROLLOUT_SCHEMA)
        return pa.concat_batches([none, *rows.filter(pc.equal(rows["outcome"], outcome.value)).to_batches()])

    def _read_step(self, step: int) -> pa.Table:
        with self._filesystem.open_input_file(self._path(step)) as source:
            try:
                file = pq.ParquetFile(source)
                check_schema(file.schema_arrow)
                return conform(file.read())
            except (ValueError, OSError) as error:  # Arrow's errors are both
                reason = " ".join(str(error).split())
                raise ValueError(f"{self._path(step)}: {reason}") from None

    def _path(self, step: int) -> str:
        return posixpath.join(self._directory, f"step_{step:06d}.parquet")

    def _names(self) -> list[str]:
        try:
            return [info.base_name for info in self._filesystem.get_file_info(fs.FileSelector(self._directory, allow_not_found=True))]
        except UnicodeDecodeError:
            raise ValueError(f"{self._directory} has a file whose name is not UTF-8: rename it") from None
