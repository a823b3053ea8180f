"""What a statement selects of a table's columns, and its rows as Arrow: native where ADBC is exact, else text.

Used with any FROM and WHERE, by query capture and by the snapshots of log capture alike (F24).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from headwater.dialects.marks import invalid_column
from headwater.dialects.postgres_types import Kind, PgColumn, PgTypes, kind_of_field
from headwater.dialects.postgres_values import Converted, from_adbc, from_wire
from headwater.drivers.postgres import quoted

Way = Callable[[pa.Array, Kind, str], Converted]


class Selection:
    """Columns of one table. `sql`: the select list, its columns named by `alias`. `columns`: the row schema."""

    def __init__(self, columns: Iterable[PgColumn], types: PgTypes, alias: str) -> None:
        chosen = tuple(columns)
        self.sql = ", ".join(f"{_selected(c, types, alias)} AS {quoted(c.name)}" for c in chosen)
        self.columns = pa.schema([column.kind.field(column.name) for column in chosen])

    @property
    def codes(self) -> list[tuple[str, str]]:
        """Name and wire code of each column, in a binary COPY of the statement (see `pgcopy.CopyDecoder`)."""
        return [(field.name, _code(kind_of_field(field))) for field in self.columns]

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What ADBC gives for the statement as a batch of `columns`, with `_invalid` at the end where needed."""
        return converted(batch, self.columns)

    def convert_copied(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Likewise of what a binary COPY gives, decoded by `codes`."""
        return converted(batch, self.columns, way=from_wire)


def _selected(column: PgColumn, types: PgTypes, alias: str) -> str:
    reference = f"{alias}.{quoted(column.name)}"
    shown = types.plain if column.kind.native else types.printed
    return shown(reference, column.oid)


def _code(kind: Kind) -> str:
    if not kind.native:
        return "text"
    if pa.types.is_decimal128(kind.type):
        return f"{kind.wire}({kind.type.precision},{kind.type.scale})"
    return kind.wire


def converted(
    batch: pa.RecordBatch, columns: pa.Schema, hidden: Sequence[str] = (), way: Way = from_adbc
) -> pa.RecordBatch:
    """A batch as one of `columns` (whose fields name their kinds), then `hidden` texts, then `_invalid`.

    `way`: from what the values come.
    """
    names, arrays, marks = list(columns.names), [], []
    for field, array in zip(columns, batch.columns, strict=False):
        values, found = way(array, kind_of_field(field), field.name)
        arrays.append(values)
        marks += [found] if found is not None else []
    names += hidden
    arrays += batch.columns[len(columns) :]
    if marks:
        names.append("_invalid")
        arrays.append(invalid_column(marks, batch.num_rows))
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
