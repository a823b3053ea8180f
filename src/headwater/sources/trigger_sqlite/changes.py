"""Rows of the change table, and rows of tables, as `Changes`: one record batch a table, straight from the database.

A page of the change table shows the slots of each layout under the names `b.<column>` and `a.<column>`; they become the
structs `before` and `after` without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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

    @property
    def columns(self) -> pa.Schema:
        return self.table.schema(self.names)

    @property
    def kinds(self) -> list[Kind]:
        return [kind_of(column) for name in self.names for column in self.table.columns if column.name == name]


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Typed rows of statements on one connection."""

    connection: Connection
    times: Times

    def fetch(
        self, sql: str, parameters: Mapping[str, Any], kinds: Sequence[tuple[str, Kind]]
    ) -> Iterator[pa.RecordBatch]:
        rows = Rows(kinds, self.times)
        for batch in self.connection.read(sql, parameters, rows.physical, rows=ROWS):
            yield rows.convert(batch)


def numbers_between(connection: Connection, names: Names, low: int, high: int) -> list[int]:
    """The layouts that have changes with ids in (low, high]."""
    rows = connection.execute(
        f"SELECT DISTINCT t FROM {quoted(names.change)} WHERE id > ? AND id <= ? AND t > 0 ORDER BY t", (low, high)
    )
    return [int(number) for (number,) in rows]


def page_sql(names: Names, layout: Layout, target: Target) -> str:
    """The changes of one layout with ids in (:low, :high].

    A column that was not captured yet when a change was written is taken from the row as it is now: whatever changes
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


def page_kinds(target: Target) -> list[tuple[str, Kind]]:
    whole = kind_of_declared("INTEGER")
    sides = [(f"{side}.{n}", kind) for side in "ba" for n, kind in zip(target.names, target.kinds, strict=True)]
    return [("id", whole), ("op", whole), *sides]


def changes_of(page: pa.RecordBatch, target: Target, epoch: int) -> Changes:
    """A page of the change table. `_transaction` and `_time` are null: triggers know statements, not commits."""
    columns, width = target.columns, len(target.names)
    op = page.column(1).cast(pa.int8())
    created, deleted = pc.equal(op, int(Op.CREATE)), pc.equal(op, int(Op.DELETE))
    before = _struct(page.columns[2 : 2 + width], columns, created)
    after = _struct(page.columns[2 + width : 2 + 2 * width], columns, deleted)
    invalid = page.column("_invalid") if "_invalid" in page.schema.names else None
    marks = None if invalid is None else _marks(invalid, op, target.shape.key)
    order = (epoch, page.column(0).cast(pa.uint64()), _repeated(0, pa.uint32(), len(page)))
    return Changes(target.table.id, _batch(op, order, before, after, marks))


def reads_of(rows: pa.RecordBatch, columns: pa.Schema, start: Order) -> pa.RecordBatch:
    """Rows of a table as READ changes, all of commit `start.commit`, numbered from `start.index` in steps of two."""
    count = len(rows)
    after = _struct(rows.columns[: len(columns)], columns, None)
    before = pa.nulls(count, pa.struct(list(columns)))
    index = pa.array(np.arange(start.index, start.index + 2 * count, 2, dtype=np.uint32))
    marks = rows.column("_invalid") if "_invalid" in rows.schema.names else None
    order = (start.epoch, _repeated(start.commit, pa.uint64(), count), index)
    return _batch(_repeated(int(Op.READ), pa.int8(), count), order, before, after, marks)


def _batch(
    op: pa.Array,
    order: tuple[int, pa.Array, pa.Array],
    before: pa.StructArray,
    after: pa.StructArray,
    marks: pa.Array | None,
) -> pa.RecordBatch:
    count = len(op)
    schema = changes_schema(pa.schema(list(after.type)), invalid=marks is not None)
    epoch, commit, index = order
    unknown = [pa.nulls(count, schema.field("_time").type), pa.nulls(count, pa.string())]
    arrays = [op, _repeated(epoch, pa.uint32(), count), commit, index, *unknown, before, after]
    return pa.RecordBatch.from_arrays([*arrays, *([] if marks is None else [marks])], schema=schema)


def _repeated(value: int, kind: pa.DataType, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _struct(arrays: Sequence[pa.Array], columns: pa.Schema, absent: pa.Array | None) -> pa.StructArray:
    return pa.StructArray.from_arrays(list(arrays), fields=list(columns), mask=absent)


def _marks(invalid: pa.Array, op: pa.Array, key: tuple[str, ...]) -> pa.Array:
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
    return _regrouped(flat, counts, len(op))


def _regrouped(flat: pa.StructArray, counts: pa.StructArray, rows: int) -> pa.ListArray:
    sizes = np.zeros(rows, dtype=np.int32)
    sizes[counts.field("values").to_numpy(zero_copy_only=False)] = counts.field("counts").to_numpy(zero_copy_only=False)
    offsets = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=INVALID, mask=pa.array(sizes == 0))


def empty_rows(target: Target) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in target.columns], schema=target.columns)
