"""The rollouts of a run as a page carries them: columns, compressed, the newest steps that fit.

    data = pack_rollouts(log, pieces, max_bytes=25_000_000)
    data.texts, data.numbers                           # base64 of gzip: a JSON record, and arrays one after the other
    data.notes                                         # what was left out, in sentences

The record `texts` names the arrays of `numbers` in their order, with type and length. Shape suffixes: N responses, G
groups, T response tokens of all responses."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from buffers.rollout_log import RolloutLog
from buffers.schema import ROLLOUT_SCHEMA
from jobs.configuration.characters import spelled_out
from jobs.configuration.user_error import one_line
from jobs.reports.run.tokens import INCOMPLETE, TokenPieces

COLUMNS = tuple(name for name in ROLLOUT_SCHEMA.names if name not in ("run_id", "feature", "final_answer", "verify_s", "worker_id"))
GROUP_TEXTS = ("task", "problem_id", "question", "reference_answer")
TEXTS = ("response_text", "verdict_answer", "verdict_detail")
LABELS = ("verdict_status", "finish_reason", "outcome")
"""Columns of few different texts: the page gets a number for each row, and the texts once."""
FLOATS = ("reward", "bonus", "advantage", "reward_format", "reward_length", "generate_s")
TOKEN_BYTES, TEXT_SHARE, ROW_BYTES = 3.0, 0.25, 20.0
"""What a token, a character and a row add to a page, measured: base64 of what gzip leaves."""
LOGPROB_UNIT, UNKNOWN_LOGPROB = 0.001, 2**16 - 1
"""Log-probs are multiples of this, negative, in 16 bits."""
TRIED = 20


@dataclass(frozen=True, kw_only=True)
class PackedRollouts:
    """What the page carries, and how much it is."""

    texts: str
    numbers: str
    num_responses: int
    notes: tuple[str, ...]


def pack_rollouts(log: RolloutLog, pieces: TokenPieces | None, *, max_bytes: int) -> PackedRollouts:
    """Pack the newest groups of `log` that need about `max_bytes` of a page, at least one."""
    rows, notes = _newest(log, max_bytes)
    if pieces is None and len(rows):
        notes.append("No tokenizer of this run is on this machine: responses are shown as text, without their tokens.")
    elif pieces is not None and not _explains(pieces, rows):
        notes.append("The tokenizer on this machine is not the run's: responses are shown as text, without their tokens.")
        pieces = None
    group_N = _group_of_row(rows)
    first_G = np.flatnonzero(np.diff(group_N, prepend=-1))
    texts: dict[str, Any] = {name: _texts(rows[name].take(pa.array(first_G))) for name in GROUP_TEXTS}
    texts |= {name: _texts(rows[name]) for name in TEXTS}
    numbers: dict[str, NDArray[Any]] = {"group": group_N.astype(np.uint32), "index": _integers(rows["index"])}
    for name in ("step", "group_id", "admitted_version", "attempt"):
        numbers[name] = _integers(rows[name].take(pa.array(first_G)))
    for name in LABELS:
        encoded = rows[name].combine_chunks().dictionary_encode()
        texts[name] = _texts(encoded.dictionary)
        numbers[f"{name}_index"] = _integers(encoded.indices)
    details = _details(rows["bonus_detail"])
    texts["details"] = [spelled_out(name) for name in details]
    numbers |= {name: _floats(rows[name]) for name in FLOATS}
    numbers |= {f"detail {place}": values for place, values in enumerate(details.values())}
    numbers["trained_from"] = _integers(rows["trained_from_version"])
    token_texts, token_numbers = _tokens(rows, first_G, pieces)
    texts |= token_texts
    layout, packed = _arrays(numbers | token_numbers)
    texts["arrays"] = layout
    return PackedRollouts(
        texts=_compressed(json.dumps(texts, separators=(",", ":")).encode()),
        numbers=_compressed(packed),
        num_responses=len(rows),
        notes=tuple(notes),
    )


def _newest(log: RolloutLog, max_bytes: int) -> tuple[pa.Table, list[str]]:
    """Return the newest groups that fit, oldest first, and what is missing."""
    notes: list[str] = []
    tables: list[pa.Table] = []
    try:
        steps = log.steps()
    except (OSError, ValueError) as error:
        steps, notes = [], [f"The rollouts cannot be listed: {one_line(str(error))}."]
    if not steps and not notes:
        notes.append("There are no rollouts (yet), or the run keeps none.")
    room = float(max_bytes)
    for step in reversed(steps):
        try:
            table = log.columns(step, COLUMNS)
        except FileNotFoundError:
            continue  # the run removes its oldest steps where the log has a cap
        except (OSError, ValueError) as error:
            notes.append(f"Step {step} cannot be read: {one_line(str(error))}.")
            continue
        fitting = _fitting(table, room, at_least_one=not tables)
        tables.append(table.slice(0, fitting))
        room -= float(_cost(tables[-1]).sum())
        if fitting < len(table):
            kept = (
                f"{fitting} of {len(table)} responses of step {step} and all later ones are" if fitting else f"those after step {step} are"
            )
            notes.append(f"The page would be too large with the rollouts of all {len(steps)} steps: {kept} here (--max-mb).")
            break
    rows = pa.concat_tables(tables[::-1]) if tables else pa.table({name: [] for name in COLUMNS}, schema=_schema())
    return rows, notes


def _schema() -> pa.Schema:
    return pa.schema([ROLLOUT_SCHEMA.field(name).with_nullable(True) for name in COLUMNS])


def _cost(rows: pa.Table) -> NDArray[np.float64]:
    """Return about how many bytes each row takes on the page."""
    lengths = [np.asarray(pc.fill_null(pc.list_value_length(rows["response_ids"]), 0))]
    texts = [np.asarray(pc.fill_null(pc.binary_length(rows[name]), 0)) for name in TEXTS]
    return np.asarray(ROW_BYTES + TOKEN_BYTES * lengths[0] + TEXT_SHARE * sum(texts), float)


def _fitting(rows: pa.Table, room: float, *, at_least_one: bool) -> int:
    """Return how many rows fit, in whole groups."""
    fits_N = np.cumsum(_cost(rows)) <= room
    if fits_N.all():
        return len(rows)
    starts = np.flatnonzero(np.diff(_group_of_row(rows), prepend=-1))
    whole = starts[starts <= int(fits_N.argmin())]
    if whole[-1] == 0 and at_least_one:
        return int(starts[1]) if len(starts) > 1 else len(rows)
    return int(whole[-1])


def _group_of_row(rows: pa.Table) -> NDArray[np.int64]:
    """Return which group each row belongs to, counted from 0. A group is adjacent rows of one id and step."""
    id_N, step_N = _integers(rows["group_id"]), _integers(rows["step"])
    is_new_N = (np.diff(id_N, prepend=-1) != 0) | (np.diff(step_N, prepend=-1) != 0)
    return np.cumsum(is_new_N) - 1


def _explains(pieces: TokenPieces, rows: pa.Table) -> bool:
    """Return whether the tokens of a few responses are their texts."""
    places = np.unique(np.linspace(0, max(0, len(rows) - 1), TRIED).astype(int))[: len(rows)]
    tried = rows.select(["response_ids", "response_text"]).take(pa.array(places)).to_pylist()
    told = [pieces.explains(row["response_ids"] or [], row["response_text"] or "") for row in tried]
    return sum(told) * 2 >= len(told)


def _tokens(rows: pa.Table, first_G: NDArray[np.int64], pieces: TokenPieces | None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the texts of the different tokens, and which token stands where, with its log-prob and version."""
    if pieces is None:
        return {"pieces": []}, {}
    (ids_T, starts_N), (prompt_ids, prompt_starts_G) = _lists(rows["response_ids"]), _lists(rows["prompt_ids"].take(pa.array(first_G)))
    logprob_T, _ = _lists(rows["behavior_logprobs"])
    (version_starts, runs_N), (version_values, _) = _lists(rows["version_starts"]), _lists(rows["version_values"])
    unit_T = np.nan_to_num(-logprob_T / LOGPROB_UNIT, nan=UNKNOWN_LOGPROB, posinf=UNKNOWN_LOGPROB)
    ids, begins = np.concatenate([ids_T, prompt_ids]).astype(np.int64), np.concatenate([starts_N, len(ids_T) + prompt_starts_G[1:]])
    texts, place = _token_texts(ids, begins, pieces)
    special = np.unique(place[np.isin(ids, [one for one in np.unique(ids).tolist() if pieces.is_special(one)])]).tolist()
    numbers: dict[str, NDArray[Any]] = {
        "token": place[: len(ids_T)],
        "token_start": starts_N.astype(np.uint32),
        "logprob": np.clip(np.rint(unit_T), 0, UNKNOWN_LOGPROB).astype(np.uint16),
        "run_start": runs_N.astype(np.uint32),
        "run_token": version_starts.astype(np.uint32),
        "run_version": version_values.astype(np.int32),
        "prompt": place[len(ids_T) :],
        "prompt_start": prompt_starts_G.astype(np.uint32),
    }
    return {"pieces": texts, "special": special}, numbers


def _token_texts(ids: NDArray[np.int64], begins: NDArray[np.int64], pieces: TokenPieces) -> tuple[list[str], NDArray[np.uint32]]:
    """Return the texts that occur, and which of them each token has. `begins` are where sequences begin in `ids`: those
    with a token that is a part of a character are looked at as a whole."""
    distinct, found = np.unique(ids, return_inverse=True)
    place, place_of = found.astype(np.uint32), dict[str, int]()
    texts = [pieces.text([one])[0] for one in distinct.tolist()]
    partial = np.flatnonzero(np.isin(place, [number for number, text in enumerate(texts) if INCOMPLETE in text]))
    for sequence in np.unique(np.searchsorted(begins, partial, side="right") - 1):
        begin, end = int(begins[sequence]), int(begins[sequence + 1])
        for at, text in enumerate(pieces.text(ids[begin:end].tolist()), start=begin):
            if texts[place[at]] != text:
                place[at] = place_of.setdefault(text, len(texts) + len(place_of))
    return [spelled_out(text) for text in (*texts, *place_of)], place


def _details(column: pa.ChunkedArray) -> dict[str, NDArray[np.float32]]:
    """Return what the bonus says of the responses, an array for each name; NaN where it says nothing."""
    maps = column.combine_chunks()
    if not len(maps.keys):
        return {}
    starts_N = np.asarray(maps.offsets)
    row = np.repeat(np.arange(len(maps)), np.diff(starts_N))
    keys = maps.keys.slice(starts_N[0], starts_N[-1] - starts_N[0]).dictionary_encode()
    values = np.asarray(maps.items.slice(starts_N[0], starts_N[-1] - starts_N[0]), np.float32)
    found = {}
    for number, name in enumerate(keys.dictionary.to_pylist()):
        column_N = np.full(len(maps), np.nan, np.float32)
        is_this = np.asarray(keys.indices) == number
        column_N[row[is_this]] = values[is_this]
        found[name] = column_N
    return found


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the values of all lists, and where each list begins in them, with the end as a last entry."""
    lists = column.combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    return np.asarray(lists.flatten()), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _texts(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    return [None if text is None else spelled_out(text) for text in column.to_pylist()]


def _integers(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
    """Return the numbers; -1 for null."""
    return np.asarray(pc.fill_null(column, -1)).astype(np.int32)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return the numbers; NaN for null."""
    return np.asarray(pc.fill_null(column, float("nan"))).astype(np.float32)


def _arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[list[tuple[str, str, int]], bytes]:
    """Return name, type and length of each array, and all of them, each at a multiple of four bytes."""
    layout, parts = [], []
    for name, array in arrays.items():
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        layout.append((name, str(array.dtype), len(array)))
        parts.append(data + bytes(-len(data) % 4))
    return layout, b"".join(parts)


def _compressed(data: bytes) -> str:
    return b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()
