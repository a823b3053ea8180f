"""Rows that the compiled loop makes ready at once: `model.Changes.data` straight from messages.

A recipe is worked out once for each description of a table. Where there is none, or where a value is not plain, the
rows are decoded column by column, and the source converts them; both ways come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headwater import native

OPS = {
    ("i2", pa.int32()): 0,
    ("i4", pa.int32()): 1,
    ("f4", pa.float32()): 1,
    ("i8", pa.int64()): 2,
    ("f8", pa.float64()): 2,
    ("oid", pa.int64()): 3,
    ("bool", pa.bool_()): 4,
    ("text", pa.string()): 8,
    ("bytes", pa.binary()): 9,
    ("jsonb", pa.string()): 10,
    ("uuid", pa.string()): 11,
}
"""Wire code and Arrow type -> how the compiled loop writes the value."""

DAYS, MOMENT, DECIMAL = 5, 6, 7


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a column that counts time. `shift`: is added to what the server counts; `lowest`, `highest`: of the sums."""

    shift: int
    lowest: int
    highest: int


Column = tuple[str, pa.DataType, Moments | None]
"""Wire code, the array's type, and of moments how they count."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """`schema`: of the batch. `specs`: one row of numbers per column. `epoch`: of all changes."""

    schema: pa.Schema
    specs: memoryview
    epoch: int
    _make: Callable[..., pa.RecordBatch | None]

    @classmethod
    def of(cls, columns: Sequence[Column], schema: pa.Schema, epoch: int) -> Recipe | None:
        """None if a column has another type, or where nothing is compiled. `columns`: of `after`, in its sequence."""
        module = native.compiled("headwater.wire.pgoutput_native")
        specs = [_spec(*column) for column in columns]
        found = [spec for spec in specs if spec is not None]
        if module is None or not columns or len(found) < len(specs):
            return None
        return cls(schema, np.array(found, np.int64).data, epoch, module.batch)

    def batch(
        self, data: memoryview, places: memoryview, rows: NDArray[np.int64], transactions: NDArray[np.int64]
    ) -> pa.RecordBatch | None:
        """None if a value is not plain. `rows`: of the table, `transactions`: of all, as `pgoutput_cy` writes them;
        no value among `places` is unchanged."""
        return self._make(data, places, rows, transactions, self.specs, self.epoch, self.schema)


def _spec(code: str, kind: pa.DataType, moments: Moments | None) -> tuple[int, int, int, int] | None:
    if moments is not None:
        return DAYS if code == "date" else MOMENT, moments.shift, moments.lowest, moments.highest
    if code == "numeric" and pa.types.is_decimal128(kind):
        return DECIMAL, kind.precision, kind.scale, 0
    op = OPS.get((code, kind))
    return None if op is None else (op, 0, 0, 0)
