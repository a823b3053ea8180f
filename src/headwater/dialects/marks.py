"""Marks of values that their columns' types cannot hold: what becomes the `_invalid` of a batch (`model.INVALID`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.model import INVALID


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of invalid values: for each, its row's number and the mark."""

    rows: pa.Array
    marks: pa.Array


def marked(column: str, expected: str, rows: np.ndarray, got: pa.Array) -> Marks:
    """The marks of one column. `rows`: the numbers of the rows; `got`: their values as text."""
    same = [pa.repeat(pa.scalar(text, pa.string()), len(rows)) for text in (column, expected)]
    marks = pa.StructArray.from_arrays([*same, got], fields=list(INVALID.value_type))
    return Marks(pa.array(rows, pa.int64()), marks)


def marks_in(invalid: pa.Array) -> Marks:
    """The marks of an `_invalid` column."""
    return Marks(pc.list_parent_indices(invalid).cast(pa.int64()), invalid.flatten())


def invalid_column(marks: Sequence[Marks], rows: int) -> pa.Array:
    """All marks as one list per row; null for rows without any."""
    numbers = np.concatenate([m.rows.to_numpy() for m in marks])
    order = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers, minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.concat_arrays([m.marks for m in marks]).take(pa.array(order))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=INVALID, mask=pa.array(counts == 0))
