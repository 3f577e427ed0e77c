"""The table of candidates as one record for each problem. Legend: N candidates of one prompt, D feature size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bonus.config import ORDER_NAMES
from buffers.records import FinishReason, VerdictStatus
from jobs.analysis.order_statistics import IntArray, JudgedCandidates
from jobs.analysis.pass_at_k import FloatArray

RANDOM = "random"
FEATURED = ("repexp", "quality")
"""The orders by novelty, which reports describe in detail."""

LABELS: Mapping[str, str] = {
    "repexp": "repexp (novelty)",
    "quality": "quality (novelty × likelihood)",
    RANDOM: "random (exact)",
    "random_draw": "random (one draw)",
}

RANK_PREFIX, SCORE_PREFIX = "rank_", "score_"
REQUIRED = ("task", "problem_id", "question", "reference_answer", "index", "response_ids", "response_text", "finish_reason")
ANSWER_COLUMNS = ("final_answer", "verdict_answer")


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The candidates of one problem, by their sample number. What a table does not say is None or NaN."""

    task: str
    problem_id: str
    question: str
    reference_answer: str
    texts: Sequence[str]
    num_tokens_N: IntArray
    truncated_N: NDArray[np.bool_]
    mean_logprob_N: FloatArray
    base_mean_logprob_N: FloatArray
    """The mean log-prob of a token under a base model."""
    statuses: Sequence[VerdictStatus | None]
    answers: Sequence[str | None]
    """The final answer that each states, where one can be read."""
    features_ND: NDArray[np.float32] | None
    """NaN in the rows of candidates that have none; None where the table has none."""
    ranks: Mapping[str, IntArray]
    scores: Mapping[str, FloatArray]

    @property
    def size(self) -> int:
        """The number of candidates."""
        return len(self.texts)

    @property
    def correct_N(self) -> NDArray[np.bool_]:
        """Whether each was found correct."""
        return np.array([status is VerdictStatus.CORRECT for status in self.statuses])

    @property
    def verified_N(self) -> NDArray[np.bool_]:
        """Whether each has a verdict. One that the verifier gave up (timeout, error) is verified and not correct."""
        return np.array([status is not None for status in self.statuses])

    def picks(self, order: str) -> IntArray:
        """Return (N,): the candidates, in the order they are picked."""
        return np.argsort(self.ranks[order])

    def judged(self) -> JudgedCandidates:
        """Return what statistics of orders need."""
        return JudgedCandidates(verified_N=self.verified_N, correct_N=self.correct_N, ranks=self.ranks)


def label_of(order: str) -> str:
    """Return the name of `order` for people."""
    return LABELS.get(order, order.replace("_", " "))


def order_names(table: pa.Table) -> tuple[str, ...]:
    """Return the orders of the table that rank every candidate, the known ones first."""
    names = [name.removeprefix(RANK_PREFIX) for name in table.column_names if name.startswith(RANK_PREFIX)]
    whole = [name for name in names if not table[RANK_PREFIX + name].null_count]
    places = {name: place for place, name in enumerate(ORDER_NAMES)}
    return tuple(sorted(whole, key=lambda name: (places.get(name, len(places)), name)))


def candidates_by_problem(table: pa.Table) -> tuple[Candidates, ...]:
    """Return one record for each problem, in order of first occurrence; rows may stand in any order. Raises ValueError
    for a missing column, sample numbers other than 0 … N−1, or a rank column that is no permutation of them."""
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise ValueError(f"the pools table lacks the columns {', '.join(missing)}")
    orders = order_names(table)
    return tuple(_candidates(table.take(rows), orders) for rows in _rows_by_problem(table))


def _rows_by_problem(table: pa.Table) -> list[NDArray[np.int64]]:
    keys = list(zip(table["task"].to_pylist(), table["problem_id"].to_pylist(), strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    problem_R = np.array([numbers[key] for key in keys], dtype=np.int64)
    rows_R = np.lexsort((table["index"].to_numpy(), problem_R))
    return np.split(rows_R, np.flatnonzero(np.diff(problem_R[rows_R])) + 1) if len(rows_R) else []


def _candidates(rows: pa.Table, orders: Sequence[str]) -> Candidates:
    task, problem_id = rows["task"][0].as_py(), rows["problem_id"][0].as_py()
    name = f"problem {problem_id} of task {task}"
    _require_permutation(rows["index"].to_numpy(), f"{name}: the sample numbers are")
    ranks = {order: rows[RANK_PREFIX + order].to_numpy().astype(np.int64) for order in orders}
    for order, rank_N in ranks.items():
        _require_permutation(rank_N, f"{name}: {RANK_PREFIX}{order} is")
    scored = [column.removeprefix(SCORE_PREFIX) for column in rows.column_names if column.startswith(SCORE_PREFIX)]
    return Candidates(
        task=task,
        problem_id=problem_id,
        question=rows["question"][0].as_py() or "",
        reference_answer=rows["reference_answer"][0].as_py() or "",
        texts=[text or "" for text in rows["response_text"].to_pylist()],
        num_tokens_N=pc.fill_null(pc.list_value_length(rows["response_ids"]), 0).to_numpy().astype(np.int64),
        truncated_N=np.array([reason == FinishReason.LENGTH for reason in rows["finish_reason"].to_pylist()]),
        mean_logprob_N=_floats(rows, "mean_logprob"),
        base_mean_logprob_N=_floats(rows, "base_mean_logprob"),
        statuses=[None if status is None else VerdictStatus(status) for status in _values(rows, "verdict_status")],
        answers=_answers(rows),
        features_ND=_features(rows, name),
        ranks=ranks,
        scores={order: _floats(rows, SCORE_PREFIX + order) for order in scored},
    )


def _require_permutation(numbers_N: NDArray[Any], what: str) -> None:
    if not np.array_equal(np.sort(numbers_N), np.arange(len(numbers_N))):
        raise ValueError(f"{what} not 0 to {len(numbers_N) - 1}, each once")


def _values(rows: pa.Table, column: str) -> list[Any]:
    return rows[column].to_pylist() if column in rows.column_names else [None] * rows.num_rows


def _floats(rows: pa.Table, column: str) -> FloatArray:
    return np.array([np.nan if value is None else value for value in _values(rows, column)], dtype=np.float64)


def _answers(rows: pa.Table) -> list[str | None]:
    """Return what the task reads out of the texts, or else what the verifier read."""
    for column in ANSWER_COLUMNS:
        values = _values(rows, column)
        if any(value is not None for value in values):
            return values
    return [None] * rows.num_rows


def _features(rows: pa.Table, name: str) -> NDArray[np.float32] | None:
    if "feature" not in rows.column_names or rows["feature"].null_count == rows.num_rows:
        return None
    sizes = set(pc.list_value_length(rows["feature"]).drop_null().to_pylist())
    if len(sizes) != 1:
        raise ValueError(f"{name}: its features have different sizes {sorted(sizes)}")
    features_ND = np.full((rows.num_rows, sizes.pop()), np.nan, dtype=np.float32)
    present_N = np.asarray(rows["feature"].is_valid())
    features_ND[present_N] = np.asarray(pc.list_flatten(rows["feature"]), dtype=np.float32).reshape(-1, features_ND.shape[1])
    return features_ND
