"""Rows of the change table, and rows of tables, as `Changes`: one record batch a table, without a row in Python.

A change's texts become values by the type mapper of snapshot and log (F24). A column that was not captured yet when a
change was written is taken from the row as it is now: whatever changes it later comes as a change of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects.marks import Marks, invalid_column
from headwater.dialects.postgres_options import texts_of
from headwater.dialects.postgres_select import Selection
from headwater.dialects.postgres_types import PgColumn
from headwater.dialects.postgres_values import from_text
from headwater.model import INVALID, TIMESTAMP, Changes, Op, Order, changes_schema
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.shape import Shape
from headwater.sources.trigger_postgres.sql import Layout, present_row

if TYPE_CHECKING:
    from headwater.sources.trigger_postgres.connecting import RowReader

ALIAS = "headwater_row"


@dataclass(frozen=True, slots=True)
class Target:
    """A table as it is captured now: what its changes look like, whichever layout they were written under."""

    shape: Shape
    columns: tuple[PgColumn, ...]
    schema: pa.Schema

    @property
    def selection(self) -> Selection:
        return Selection(self.columns, self.shape.types, ALIAS)


def target_of(shape: Shape, names: Sequence[str], texts: frozenset[str]) -> Target:
    """`texts`: the columns, as `schema.table.column`, that are strings by declared choice."""
    as_text, columns = texts_of(shape.id, (column.name for column in shape.columns), texts), []
    for name in names:
        found = shape.column(name)
        column = shape.types.column(name, found.oid, found.typmod)
        columns.append(column.as_text() if name in as_text else column)
    return Target(shape, tuple(columns), pa.schema([pa.field(c.name, c.type) for c in columns]))


def page_sql(names: Names, time: str, where: str) -> str:
    """Changes of chosen transactions, by number. `time`: SQL for the moment of a change `c`."""
    return (
        f"SELECT c.id, c.xid::text::bigint AS xid, {time} AS time, c.t, c.op, c.before, c.after"
        f" FROM {names.change} c WHERE {where} ORDER BY c.id"
    )


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of the change table, and the place of each in its step's order."""

    rows: pa.RecordBatch
    index: npt.NDArray[np.uint32]

    def of(self, chosen: npt.NDArray[np.bool_]) -> Page:
        return Page(self.rows.filter(pa.array(chosen)), self.index[chosen])


def missing(layout: Layout, target: Target) -> list[str]:
    """The columns that are captured now and were not when changes of this layout were written."""
    return [column.name for column in target.columns if layout.slot(column.name) is None]


def present_texts(reader: RowReader, names: Names, layout: Layout, target: Target, page: Page) -> dict[str, pa.Array]:
    """Missing column -> its texts in the rows as they are now, one for each row of the page."""
    wanted, shape = missing(layout, target), target.shape
    known = {c.name: c.oid for c in shape.columns}
    comparable = all(known.get(name) == oid for name, oid in zip(layout.columns, layout.types, strict=True))
    if not wanted or not comparable:
        return {}
    ids = page.rows.column("id")
    batch = reader.all(
        f"SELECT c.id, {shape.printed('r', wanted)} FROM {names.change} c"
        f" JOIN {shape.sql} AS r ON {present_row(shape, layout, 'r', 'c')}"
        f" WHERE c.xid = ANY ({xids_sql(page.rows.column('xid').unique().to_numpy())}) AND c.t = {layout.number}"
    )
    if batch is None:
        return {}
    texts = batch.column(1).take(pc.index_in(ids, batch.column(0)))
    return {name: pc.list_element(texts, i) for i, name in enumerate(wanted)}


def xids_sql(xids: npt.NDArray[np.int64]) -> str:
    return "'{" + ",".join(map(str, xids.tolist())) + "}'::pg_catalog.xid8[]"


def changes_of(page: Page, layout: Layout, target: Target, order: tuple[int, int], now: dict[str, pa.Array]) -> Changes:
    """One layout's part of a page. `order`: epoch and commit."""
    rows, width = page.rows, len(page.rows)
    states, marks = [], []
    for side in ("before", "after"):
        lists = rows.column(side)
        arrays = []
        for column in target.columns:
            slot = layout.slot(column.name)
            absent = now.get(column.name) if side == "after" else None
            texts = pc.list_element(lists, slot) if slot is not None else absent
            texts = pa.nulls(width, pa.string()) if texts is None else texts
            values, found = from_text(texts, column.kind, column.name)
            arrays.append(values)
            # what was wrong with a row before the change matters only in its key
            if found is not None and (side == "after" or column.name in target.shape.key):
                marks.append(found)
        states.append(pa.StructArray.from_arrays(arrays, fields=list(target.schema), mask=lists.is_null()))
    op = rows.column("op").to_numpy().astype(np.int8)
    times, xids = rows.column("time").cast(TIMESTAMP), rows.column("xid").cast(pa.string())
    commits = np.full(width, order[1], np.uint64)
    return Changes(target.shape.id, _batch(target, op, (order[0], commits, page.index), (times, xids), states, marks))


def reads_of(rows: pa.RecordBatch, target: Target, start: Order) -> pa.RecordBatch:
    """Rows of a table as READ changes, all of commit `start.commit`, numbered from `start.index` in steps of two."""
    count, width = len(rows), len(target.columns)
    after = pa.StructArray.from_arrays(rows.columns[:width], fields=list(target.schema))
    states = [pa.nulls(count, after.type), after]
    index = np.arange(start.index, start.index + 2 * count, 2).astype(np.uint32)
    order = (start.epoch, np.full(count, start.commit, np.uint64), index)
    unknown = (pa.nulls(count, TIMESTAMP), pa.nulls(count, pa.string()))
    data = _batch(target, np.full(count, Op.READ, np.int8), order, unknown, states, [])
    if "_invalid" not in rows.schema.names:
        return data
    return data.append_column(pa.field("_invalid", INVALID), rows.column("_invalid"))


def _batch(
    target: Target,
    op: npt.NDArray[np.int8],
    order: tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint32]],
    known: tuple[pa.Array, pa.Array],
    states: list[pa.Array],
    marks: list[Marks],
) -> pa.RecordBatch:
    epoch, commit, index = order
    head = [pa.array(values) for values in (op, np.full(len(op), epoch, np.uint32), commit, index)]
    tail = [*known, *states, *([invalid_column(marks, len(op))] if marks else [])]
    return pa.RecordBatch.from_arrays([*head, *tail], schema=changes_schema(target.schema, invalid=bool(marks)))
