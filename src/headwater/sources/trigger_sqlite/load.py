"""The rows that a stream begins with, or is compared with: chunk by chunk in key order, each in a short transaction.

A chunk is read in the same snapshot as the changes that precede it in the batch, so a row of it is never newer than
what its readers have seen. Keys are compared in the database only (F27): a chunk ends at a key that SQLite itself
found, and how far the load has come is kept as the very values that it stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headwater.dialects.sqlite_rows import Times
from headwater.drivers.sqlite import Connection, quoted
from headwater.model import Changes, Order, Reading, Reload
from headwater.protocols import Capture
from headwater.sources.settling import DONE, LOADING, READING
from headwater.sources.trigger_sqlite.changes import Target, reads_of, rows_of
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.position import StreamLoad
from headwater.sources.trigger_sqlite.shape import Shape
from headwater.sources.trigger_sqlite.sql import Layout, changed_keys

Identity = tuple[Any, ...]
"""The values that identify a row, as SQLite gives them."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of a load: its changes, and how far the load has come with them."""

    changes: tuple[Changes, ...]
    progress: StreamLoad

    @property
    def last(self) -> bool:
        return self.progress.state == DONE


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads chunks on one connection, inside the caller's read transactions."""

    connection: Connection
    times: Times
    names: Names
    layouts: tuple[Layout, ...]

    def chunk(self, capture: Capture, target: Target, progress: StreamLoad, rows: int, epoch: int) -> Chunk:
        """The next chunk of about `rows` rows. The last part of a reading may be empty, but is there."""
        changed = None
        if progress.state == LOADING:
            layouts = [layout for layout in self.layouts if layout.table == capture.table.name]
            changed = changed_since(self.names, layouts, target.shape, progress.since)
        end = end_of_chunk(self.connection, target.shape, progress.after, rows)
        found = self._read(target, progress.after, end, changed)
        if end is None and progress.state == READING and not found:
            found = [_nothing(target)]
        count = progress.count + sum(map(len, found))
        step = tuple(_labelled(capture, target, progress, found, Order(epoch, progress.start), last=end is None))
        if end is None:
            return Chunk(step, StreamLoad(progress.token, progress.table, DONE, progress.start))
        return Chunk(step, dataclasses.replace(progress, after=end, count=count))

    def _read(
        self, target: Target, after: Identity | None, end: Identity | None, changed: ChangedSince | None
    ) -> list[pa.RecordBatch]:
        shape = target.shape
        left_out = changed.sql if changed is not None else None
        statements = [chunk_sql(shape, target.names, left_out, behind=after is not None, bounded=end is not None)]
        if end is None and after is not None:  # without any bound, the one statement has read them
            statements += filter(None, [keyless_sql(shape, target.names, left_out)])
        bound: dict[str, Any] = {f"a{i}": value for i, value in enumerate(after or ())}
        bound |= {f"e{i}": value for i, value in enumerate(end or ())}
        if changed is not None:
            bound["since"] = changed.since
        return [batch for sql in statements for batch in self._rows(target, sql, bound)]

    def _rows(self, target: Target, sql: str, bound: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        used = {name: value for name, value in bound.items() if f":{name}" in sql}
        return rows_of(sql, target, self.times).read(self.connection, used)


def _labelled(
    capture: Capture,
    target: Target,
    progress: StreamLoad,
    found: Sequence[pa.RecordBatch],
    since: Order,
    *,
    last: bool,
) -> Iterator[Changes]:
    ordinal = progress.count
    for number, batch in enumerate(found, 1):
        reading = None
        if progress.state == READING:
            reading = Reading(Reload(progress.reload), since, last and number == len(found))
        data = reads_of(batch, target.columns, dataclasses.replace(since, index=2 * ordinal))
        yield Changes(capture.table, data, stream=capture.stream, reading=reading)
        ordinal += len(batch)


def _nothing(target: Target) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in target.columns], schema=target.columns)


def end_of_chunk(
    connection: Connection, shape: Shape, after: Sequence[Any] | None, rows: int
) -> tuple[Any, ...] | None:
    """The identity of the row that is `rows` behind `after`; None when there are not so many."""
    keys = _keys(shape)
    where, bound = _behind(shape, after)
    found = connection.execute(
        f"SELECT {keys} FROM {quoted(shape.table)}{where} ORDER BY {keys} LIMIT 1 OFFSET {rows - 1}", bound
    )
    return tuple(found[0]) if found else None


def chunk_sql(shape: Shape, names: Sequence[str], unchanged: str | None, *, behind: bool, bounded: bool) -> str:
    """Rows with identities in (:a0.., :e0..]. `unchanged`: SQL that gives the identities to be left out."""
    tests = []
    if behind:
        tests.append(f"({_keys(shape)}) > ({_marks('a', shape)})")
    if bounded:
        tests.append(f"({_keys(shape)}) <= ({_marks('e', shape)})")
    tests += _left_out(shape, unchanged)
    columns = ", ".join(map(quoted, names))
    where = f" WHERE {' AND '.join(tests)}" if tests else ""
    return f"SELECT {columns} FROM {quoted(shape.table)}{where} ORDER BY {_keys(shape)}"


def keyless_sql(shape: Shape, names: Sequence[str], unchanged: str | None) -> str | None:
    """Rows whose primary key is partly NULL, which SQLite allows in ordinary tables; no comparison finds them."""
    nullable = [part.name for part in shape.identity if part.nullable]
    if not nullable:
        return None
    tests = [f"({' OR '.join(f'{name} IS NULL' for name in nullable)})", *_left_out(shape, unchanged)]
    return f"SELECT {', '.join(map(quoted, names))} FROM {quoted(shape.table)} WHERE {' AND '.join(tests)}"


@dataclass(frozen=True, slots=True)
class ChangedSince:
    """The identities that changes behind `since` name: their rows come as changes."""

    sql: str
    since: int


def changed_since(names: Names, layouts: Sequence[Layout], shape: Shape, since: int) -> ChangedSince | None:
    """Over every layout that knows the table's identity; None without one."""
    key = shape.key or ("",)
    known = [layout for layout in layouts if set(key) <= set(layout.columns)]
    if not known:
        return None
    return ChangedSince(" UNION ALL ".join(changed_keys(names, layout, shape) for layout in known), since)


def _left_out(shape: Shape, unchanged: str | None) -> list[str]:
    """NOT IN is NULL, not true, for a row whose key is NULL: such a row was not left out by anybody."""
    return [f"(({_keys(shape)}) NOT IN ({unchanged})) IS NOT 0"] if unchanged else []


def _behind(shape: Shape, after: Sequence[Any] | None) -> tuple[str, dict[str, Any]]:
    if after is None:
        # Rows with a NULL in the key sort first and would be taken for the beginning.
        present = " AND ".join(f"{part.name} IS NOT NULL" for part in shape.identity if part.nullable)
        return (f" WHERE {present}" if present else ""), {}
    values = {f"a{i}": value for i, value in enumerate(after)}
    return f" WHERE ({_keys(shape)}) > ({_marks('a', shape)})", values


def _keys(shape: Shape) -> str:
    """Under the collation of the key's own index, so that it is the index that is walked."""
    return ", ".join(f"{p.name} COLLATE {quoted(p.collation)}" if p.collation else p.name for p in shape.identity)


def _marks(prefix: str, shape: Shape) -> str:
    return ", ".join(f":{prefix}{i}" for i in range(len(shape.identity)))
