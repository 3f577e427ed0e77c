"""Conversion of Python and numpy values to Arrow arrays and back, mostly without a Python object per token."""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from buffers.groups import list_column_arrays


def offsets_of(lengths: ArrayLike) -> NDArray[np.int32]:
    """Return the list offsets of rows with these lengths, shape [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def list_array(rows: Sequence[Sequence[float]], dtype: type[np.generic]) -> pa.Array:
    """Return a list column of one sequence a row. Raises OverflowError for an integer that `dtype` cannot hold."""
    offsets = offsets_of([len(row) for row in rows])
    values = np.fromiter(chain.from_iterable(rows), dtype=dtype, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def string_array(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def number_array(values: ArrayLike, name: str) -> pa.Array:
    """Return a float64 column of numbers of any shape, read in row-major order. Raises ValueError unless finite."""
    numbers = np.asarray(values, np.float64).reshape(-1)
    if not np.isfinite(numbers).all():
        raise ValueError(f"a value of '{name}' is not finite")
    return pa.array(numbers)


def repeated(value: Any, num: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), num)


def tuples_of(batch: pa.RecordBatch, name: str) -> list[tuple[Any, ...]]:
    """Return a list column as one tuple a row."""
    values, offsets = list_column_arrays(batch, name)
    return [tuple(values[first:last].tolist()) for first, last in pairwise(offsets)]
