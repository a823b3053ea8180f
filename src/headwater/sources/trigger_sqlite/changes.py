"""Rows of the change table, and rows of tables, as `Changes`: one record batch a table, straight from the database.

A page of the change table shows the slots of each layout under the names `b.<column>` and `a.<column>`; they become the
structs `before` and `after` without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects import Table
from headwater.dialects.sqlite_rows import Rows, Times
from headwater.dialects.sqlite_types import Kind, kind_of, kind_of_declared
from headwater.drivers.sqlite import Connection, quoted
from headwater.model import INVALID, Changes, Op, Order, changes_schema
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.shape import Shape
from headwater.sources.trigger_sqlite.sql import Layout

ROWS = 50_000
"""Rows of one record batch at the most."""


@dataclass(frozen=True, slots=True)
class Target:
    """A table as it is captured now: what its changes look like, whichever layout they were written under."""

    table: Table
    names: tuple[str, ...]
    shape: Shape
    columns: pa.Schema
    kinds: tuple[Kind, ...]


def target_of(table: Table, names: Sequence[str], shape: Shape) -> Target:
    kinds = tuple(kind_of(column) for name in names for column in table.columns if column.name == name)
    return Target(table, tuple(names), shape, table.schema(names), kinds)


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL, and how its rows become typed ones."""

    sql: str
    rows: Rows

    def read(self, connection: Connection, parameters: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """Batches of logical types, with `_invalid` where a value does not fit."""
        for batch in connection.read(self.sql, parameters, self.rows.physical, rows=ROWS):
            yield self.rows.convert(batch)


def rows_of(sql: str, target: Target, times: Times) -> Statement:
    """A statement that gives rows of the table itself."""
    return Statement(sql, Rows(list(zip(target.names, target.kinds, strict=True)), times))


def page_of(names: Names, layout: Layout, target: Target, times: Times) -> Statement:
    """The changes of one layout with ids in (:low, :high]."""
    return Statement(_page_sql(names, layout, target), Rows(_page_kinds(target), times))


def numbers_between(connection: Connection, names: Names, low: int, high: int) -> list[int]:
    """The layouts that have changes with ids in (low, high]."""
    rows = connection.execute(
        f"SELECT DISTINCT t FROM {quoted(names.change)} WHERE id > ? AND id <= ? AND t > 0 ORDER BY t", (low, high)
    )
    return [int(number) for (number,) in rows]


def _page_sql(names: Names, layout: Layout, target: Target) -> str:
    """A column that was not captured yet when a change was written is taken from the row as it is now: whatever changes
    it later comes as a change of its own.
    """
    missing = [c for c in target.names if layout.slot(c) is None]
    befores = ["NULL" if layout.slot(c) is None else f"c.o{layout.slot(c)}" for c in target.names]
    afters = [f"r.{quoted(c)}" if layout.slot(c) is None else f"c.n{layout.slot(c)}" for c in target.names]
    join = f" LEFT JOIN {_present(layout, target)}" if missing else ""
    return (
        f"SELECT c.id, c.op, {', '.join(befores + afters)} FROM {quoted(names.change)} AS c{join} "
        f"WHERE c.id > :low AND c.id <= :high AND c.t = {layout.number} ORDER BY c.id"
    )


def _present(layout: Layout, target: Target) -> str:
    names = target.shape.key or ("",)
    slots = [layout.slot(name) for name in names]
    pairs = [
        part.same(f"r.{part.name}", "NULL" if slot is None else f"c.n{slot}")
        for part, slot in zip(target.shape.identity, slots, strict=True)
    ]
    return f"{quoted(target.shape.table)} AS r ON {' AND '.join(pairs)}"


def _page_kinds(target: Target) -> list[tuple[str, Kind]]:
    whole = kind_of_declared("INTEGER")
    sides = [(f"{side}.{n}", kind) for side in "ba" for n, kind in zip(target.names, target.kinds, strict=True)]
    return [("id", whole), ("op", whole), *sides]


@lru_cache(maxsize=256)
def _schema(columns: pa.Schema, invalid: bool) -> tuple[pa.Schema, list[pa.Field]]:
    """Of changes, and the columns as fields: made once, which counts in batches of one row."""
    return changes_schema(columns, invalid=invalid), list(columns)


def changes_of(page: pa.RecordBatch, target: Target, epoch: int) -> Changes:
    """A page of the change table. `_transaction` and `_time` are null: triggers know statements, not commits."""
    columns, width = target.columns, len(target.names)
    ids, op = page.column(0).to_numpy().view(np.uint64), page.column(1).to_numpy().astype(np.int8)
    before = _struct(page.columns[2 : 2 + width], columns, op == Op.CREATE)
    after = _struct(page.columns[2 + width : 2 + 2 * width], columns, op == Op.DELETE)
    invalid = page.column("_invalid") if "_invalid" in page.schema.names else None
    marks = None if invalid is None else _marks(invalid, len(page), target.shape.key)
    index = np.zeros(len(page), np.uint32)
    return Changes(target.table.id, _batch(columns, op, (epoch, ids, index), (before, after), marks))


def reads_of(rows: pa.RecordBatch, columns: pa.Schema, start: Order) -> pa.RecordBatch:
    """Rows of a table as READ changes, all of commit `start.commit`, numbered from `start.index` in steps of two."""
    count = len(rows)
    after = _struct(rows.columns[: len(columns)], columns, None)
    before = pa.nulls(count, pa.struct(list(columns)))
    index = np.arange(start.index, start.index + 2 * count, 2, dtype=np.uint32)
    marks = rows.column("_invalid") if "_invalid" in rows.schema.names else None
    order = (start.epoch, np.full(count, start.commit, np.uint64), index)
    return _batch(columns, np.full(count, Op.READ, np.int8), order, (before, after), marks)


def _batch(
    columns: pa.Schema,
    op: npt.NDArray[np.int8],
    order: tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint32]],
    states: tuple[pa.StructArray, pa.StructArray],
    marks: pa.Array | None,
) -> pa.RecordBatch:
    # From NumPy arrays: from Python values Arrow is several times slower, which counts in batches of one row.
    count = len(op)
    schema, _ = _schema(columns, marks is not None)
    epoch, commit, index = order
    head = [pa.array(values) for values in (op, np.full(count, epoch, np.uint32), commit, index)]
    unknown = [pa.nulls(count, schema.field("_time").type), pa.nulls(count, pa.string())]
    tail = [*states] if marks is None else [*states, marks]
    return pa.RecordBatch.from_arrays([*head, *unknown, *tail], schema=schema)


def _struct(arrays: Sequence[pa.Array], columns: pa.Schema, absent: npt.NDArray[np.bool_] | None) -> pa.StructArray:
    mask = None if absent is None or not absent.any() else pa.array(absent)
    return pa.StructArray.from_arrays(list(arrays), fields=_schema(columns, False)[1], mask=mask)


def _marks(invalid: pa.Array, rows: int, key: tuple[str, ...]) -> pa.Array:
    """Marks by the columns' own names. What was wrong with a row before the change matters only in its key."""
    parents = pc.list_parent_indices(invalid)
    flat = invalid.flatten()
    names = flat.field("column")
    after = pc.starts_with(names, "a.")
    keyed = pc.is_in(names, pa.array([f"b.{name}" for name in key], pa.string()))
    kept = pc.or_(after, keyed)
    columns = pc.utf8_slice_codeunits(names, 2)
    fields = [columns, flat.field("expected"), flat.field("got")]
    flat = pa.StructArray.from_arrays(fields, fields=list(INVALID.value_type)).filter(kept)
    counts = pc.value_counts(parents.filter(kept))
    return _regrouped(flat, counts, rows)


def _regrouped(flat: pa.StructArray, counts: pa.StructArray, rows: int) -> pa.ListArray:
    sizes = np.zeros(rows, dtype=np.int32)
    sizes[counts.field("values").to_numpy(zero_copy_only=False)] = counts.field("counts").to_numpy(zero_copy_only=False)
    offsets = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=INVALID, mask=pa.array(sizes == 0))
