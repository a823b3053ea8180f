"""What is wrong with which change: the first thing found of each row, kept by the row's number in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Rows = npt.NDArray[np.int64]
LONGEST = 200
"""Characters of a value that a reason repeats."""


class Findings:
    """Collects reasons. `bad` marks the rows that have one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._bad: npt.NDArray[np.bool_] | None = None
        self._rows: list[Rows] = []
        self._reasons: list[pa.Table] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        if self._bad is None:
            self._bad = np.zeros(self.count, dtype=bool)
        return self._bad

    def add(self, rows: Rows, field: str | pa.Array, expected: str | pa.Array, got: str | pa.Array) -> None:
        """Reasons for `rows`; arrays have one item a row. A row that has a reason already keeps it."""
        rows = np.asarray(rows, dtype=np.int64)
        fresh = ~self.bad[rows]
        fresh[fresh] = _first_of_each(rows[fresh])
        if not fresh.any():
            return
        kept = pa.array(np.flatnonzero(fresh))
        columns = [_spread(item, len(rows)).take(kept) for item in (field, expected, got)]
        self._rows.append(rows[fresh])
        self._reasons.append(pa.table(columns, names=["field", "expected", "got"]))
        self.bad[rows[fresh]] = True

    def good(self, rows: Rows) -> npt.NDArray[np.bool_] | None:
        """Which of `rows` have no reason; None where that is all of them."""
        if not self._rows:
            return None
        good: npt.NDArray[np.bool_] = ~self.bad[rows]
        return None if good.all() else good

    def rows(self) -> Rows:
        """The rows with a reason, rising."""
        return np.flatnonzero(self.bad)

    def reasons(self) -> pa.Table:
        """field, expected and got of `rows()`, in that order."""
        order = np.argsort(np.concatenate(self._rows), kind="stable")
        return pa.concat_tables(self._reasons).combine_chunks().take(pa.array(order))


def _first_of_each(rows: Rows) -> npt.NDArray[np.bool_]:
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    return first


def _spread(item: str | pa.Array, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(item, pa.string()), count) if isinstance(item, str) else item.cast(pa.string())


def as_text(values: pa.Array) -> pa.Array:
    """Values as a person would write them, shortened; for the few rows that are wrong."""
    kind: Any = values.type
    if pa.types.is_null(kind):
        return pa.repeat(pa.scalar("null"), len(values))
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array([str(value)[:LONGEST] for value in values], pa.string())
    return pc.utf8_slice_codeunits(values.cast(pa.string()), 0, LONGEST).fill_null("null")
