"""Saved groups of rollouts, from a run or from elsewhere, as a run would hold them.

    rows = SavedRows(config, Path("runs/a"))    # a run, its rollouts/, a .jsonl or .parquet file, a directory of such
    for group in rows.groups():                 # one batch of responses_per_prompt rows each, in the order of the files

The rollout log of a run has everything. Plain rows have the columns below: one row for each response, the responses of
a group adjacent.

| column                          | meaning                                                                            |
|---------------------------------|------------------------------------------------------------------------------------|
| prompt_ids, response_ids        | token ids, as sampled                                                              |
| logprobs (or behavior_logprobs) | log-probs under the sampler, one for each response token                           |
| reward                          | a number, or null for an unscored response; not needed when it is given again      |
| group_id                        | any value; without it, rows of one problem_id or of one prompt are a group         |
| version                         | the policy version that sampled: one number, or one for each token; without it 0   |
| response_text, question, answer | what a verifier needs to give rewards again                                        |
| task, problem_id, feature       | as in the rollout log                                                              |
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from buffers.records import FinishReason, GroupRequest, Problem, Rollout, Verdict, VerdictStatus
from buffers.rollout_log import RolloutLog
from buffers.schema import list_column_arrays, split_groups, to_record_batch, with_features, with_verdicts
from jobs.config import RunConfig
from jobs.configuration.user_error import UserError, refusing
from jobs.offline.trainer import read_step
from learners.model_check import ModelFacts
from tasks.base import TaskError
from tasks.data.files import SUFFIXES, DataFile, Row

LOGPROBS = ("logprobs", "behavior_logprobs")
REQUIRED = ("prompt_ids", "response_ids")
REWARDED, VERIFIED = ("reward",), ("response_text", "answer")
"""Columns that plain rows need as well: where rewards are taken as they are, and where they are given again."""
OPTIONAL = ("reward", "group_id", "problem_id", "task", "question", "answer", "response_text", "version", "feature")


class SavedRows:
    """Reads one file after the other, each once."""

    def __init__(self, config: RunConfig, source: Path, *, rescore: bool = False) -> None:
        """With `rescore`, rows need what a verifier needs, not rewards. Raises UserError without anything to read."""
        self._config, self._source = config, source
        self._rewarded_by = VERIFIED if rescore else REWARDED
        self._log = _rollout_log(source)
        self._files = [] if self._log is not None else _files(source)
        if self._log is None and not self._files:
            raise UserError(
                f"--replay-from {source}: neither the directory of a run with rollouts/ in it, nor a file or directory of "
                f"{' or '.join(SUFFIXES)} files"
            )

    def groups(self) -> Iterator[pa.RecordBatch]:
        """Yield one batch for each group. Raises UserError, with file and row, for rows that cannot be trained on."""
        if self._log is not None:
            return self._logged(self._log)
        return self._plain()

    def missing_steps(self) -> tuple[int, ...]:
        """Return the steps before the last saved one whose rollouts are gone: a log keeps no more than its cap."""
        saved = self._log.steps() if self._log is not None else []
        return tuple(sorted(set(range(1, max(saved, default=0))) - set(saved)))

    def _logged(self, log: RolloutLog) -> Iterator[pa.RecordBatch]:
        for step in log.steps():
            batch = read_step(log, step, f"--replay-from {self._source}")
            yield from split_groups(batch) if batch.num_rows else []

    def _plain(self) -> Iterator[pa.RecordBatch]:
        ids = itertools.count()
        for file in self._files:
            try:
                rows = _read(DataFile(task="replay", path=file), rewarded_by=self._rewarded_by)
                for group in _grouped(rows, self._config.responses_per_prompt):
                    yield self._group(next(ids), group)
            except TaskError as error:
                raise UserError(f"--replay-from {self._source}: {str(error).removeprefix('task replay: ')}") from None

    def _group(self, group_id: int, rows: Sequence[Row]) -> pa.RecordBatch:
        first = rows[0].values
        prompt = _integers(rows[0], "prompt_ids")
        other = next((row for row in rows if row.values["prompt_ids"] != first["prompt_ids"]), None)
        if other is not None:
            raise other.error("column 'prompt_ids' is not that of the other rows of its group")
        if not prompt:
            raise rows[0].error("column 'prompt_ids' is empty")
        rollouts = [self._rollout(row, prompt) for row in rows]
        for row in rows:
            row.require_sound("question")
            row.require_sound("answer", is_answer=True)
            row.require_sound("feature")
        problem = Problem(
            task=_text(first, "task", self._config.task.name),
            problem_id=_text(first, "problem_id", str(group_id)),
            question=_text(first, "question"),
            answer=_text(first, "answer"),
        )
        version = min((value for rollout in rollouts for value in rollout.version_values), default=0)
        request = GroupRequest(group_id=group_id, problem=problem, num_responses=len(rows), admitted_version=version)
        batch = to_record_batch("saved", request, rollouts, worker_id="saved")
        batch = with_verdicts(batch, [_verdict(row) for row in rows])
        return _with_features(batch, rows)

    def _rollout(self, row: Row, prompt: tuple[int, ...]) -> Rollout:
        response, logprobs = _integers(row, "response_ids"), _log_probabilities(row)
        starts, values = _versions(row, len(response))
        try:
            (text := _text(row.values, "response_text")).encode()
        except UnicodeEncodeError:
            row.require_sound("response_text")
        if len(logprobs) != len(response):
            raise row.error(f"{len(response)} response_ids but {len(logprobs)} log-probs")
        return Rollout(
            prompt_ids=prompt,
            response_ids=response,
            behavior_logprobs=logprobs,
            version_starts=starts,
            version_values=values,
            finish_reason=FinishReason.LENGTH if len(response) >= self._config.sampling.max_response_tokens else FinishReason.STOP,
            response_text=text,
        )


def require_computable(batch: pa.RecordBatch, facts: ModelFacts, source: Path) -> None:
    """Raise UserError for a token id that the model does not have, which usually means rows of another model, and for
    a prompt with its response that is longer than the model allows."""
    vocabulary, limit = facts.num_embeddings, facts.limit
    if limit is not None:
        prompts, responses = (list_column_arrays(batch, name)[1] for name in REQUIRED)
        longest = int((np.diff(prompts) + np.diff(responses)).max(initial=0))
        if longest > limit.tokens:
            raise UserError(
                f"--replay-from {source}: problem {batch.column('problem_id')[0]} has {longest} tokens of prompt and response, and model "
                f"{facts.path} allows {limit.tokens} ({limit.key}): leave these rows out, or set model"
            )
    for name in REQUIRED:
        ids = batch.column(name).flatten().to_numpy()
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise UserError(f"--replay-from {source}: token id {wrong} in '{name}', but the model has {vocabulary}: set model")


def _rollout_log(source: Path) -> RolloutLog | None:
    """Return the log of a run directory or of its rollouts/; None where it holds no step. Raises UserError."""
    for directory in (source / "rollouts", source):
        log = RolloutLog(fs.LocalFileSystem(), str(directory))
        with refusing(OSError, ValueError):
            if directory.is_dir() and log.steps():
                return log
    return None


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix in SUFFIXES else []
    return sorted(path for path in source.glob("*") if path.suffix in SUFFIXES) if source.is_dir() else []


def _read(file: DataFile, *, rewarded_by: Sequence[str]) -> list[Row]:
    present = file.columns()
    logprobs = next((name for name in LOGPROBS if name in present), None)
    if logprobs is None and present:
        raise file.error(
            f"no column '{LOGPROBS[0]}' (or '{LOGPROBS[1]}'), only {', '.join(present)}: without what the sampler said of its tokens "
            "nothing can be corrected"
        )
    if "version_starts" in present:
        raise file.error("these are the rows of one step of a rollout log: name its directory, whose steps are read in order")
    required = [*REQUIRED, logprobs or LOGPROBS[0], *rewarded_by]
    return file.rows([*required, *(name for name in OPTIONAL if name in present and name not in required)])


def _grouped(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Yield adjacent rows of one key, `size` at a time. Raises TaskError where some are left over."""
    for _, run in itertools.groupby(rows, key=_key):
        adjacent = list(run)
        if len(adjacent) % size:
            raise adjacent[0].error(f"a group of {len(adjacent)} rows begins here, but responses_per_prompt = {size}")
        yield from (adjacent[first : first + size] for first in range(0, len(adjacent), size))


def _key(row: Row) -> str:
    return str(next((row.values[key] for key in ("group_id", "problem_id") if row.values.get(key) is not None), row.values["prompt_ids"]))


def _text(values: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a value as text. 0 is a value; what is missing or empty is `default`."""
    value = values.get(name)
    return default if value is None or value == "" else str(value)


def _integers(row: Row, name: str) -> tuple[int, ...]:
    values = row.values[name]
    if not isinstance(values, list) or not all(isinstance(value, int) and 0 <= value < 2**31 for value in values):
        raise row.error(f"column '{name}' is no list of token ids")
    return tuple(values)


def _versions(row: Row, num_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return starts and values of runs of one version."""
    given = row.values.get("version") or 0
    versions = given if isinstance(given, list) else [given] * num_tokens
    if len(versions) != num_tokens or not all(isinstance(version, int) and version >= 0 for version in versions):
        raise row.error(f"column 'version' is {given!r}, not a whole number from 0, nor one a token")
    starts = tuple(t for t in range(num_tokens) if t == 0 or versions[t] != versions[t - 1])
    return starts, tuple(versions[t] for t in starts)


def _log_probabilities(row: Row) -> tuple[float, ...]:
    values = next(row.values[name] for name in LOGPROBS if name in row.values)
    if not isinstance(values, list) or not all(isinstance(one, (int, float)) and np.isfinite(one) and one <= 1e-3 for one in values):
        raise row.error("the log-probs are no list of numbers of at most 0")
    return tuple(map(float, values))


def _verdict(row: Row) -> Verdict:
    reward = row.values.get("reward")
    if reward is None:
        return Verdict(status=VerdictStatus.ERROR, reward=None)
    if not isinstance(reward, (int, float)) or not np.isfinite(reward):
        raise row.error(f"column 'reward' is {reward!r}, not a number")
    return Verdict(status=VerdictStatus.CORRECT if reward >= 1 else VerdictStatus.INCORRECT, reward=float(reward))


def _with_features(batch: pa.RecordBatch, rows: Sequence[Row]) -> pa.RecordBatch:
    features: list[Any] = [row.values.get("feature") for row in rows]
    for row, feature in zip(rows, features, strict=True):
        if feature is not None and not (isinstance(feature, list) and all(isinstance(value, (int, float)) for value in feature)):
            raise row.error("column 'feature' is no list of numbers")
    dim = next((len(feature) for feature in features if feature), 0)
    if not dim:
        return batch
    wrong = next((row for row, feature in zip(rows, features, strict=True) if feature and len(feature) != dim), None)
    if wrong is not None:
        raise wrong.error(f"column 'feature' has not the {dim} numbers of the other rows of its group")
    values = np.array([feature or [0.0] * dim for feature in features], np.float32)
    try:
        return with_features(batch, values, [bool(feature) for feature in features])
    except ValueError as error:
        raise rows[0].error(str(error)) from None
