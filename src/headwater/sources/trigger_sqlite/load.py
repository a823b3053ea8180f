"""The rows that a stream begins with, or is compared with: chunk by chunk in key order, each in a short transaction.

A chunk is read in the same snapshot as the changes that precede it in the batch, so a row of it is never newer than
what its readers have seen. Keys are compared in the database only (F27): a chunk ends at a key that SQLite itself
found, and how far the load has come is kept as the very values that it stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headwater.drivers.sqlite import Connection, quoted
from headwater.sources.trigger_sqlite.changes import Fetcher, Target
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.shape import Shape
from headwater.sources.trigger_sqlite.sql import Layout, changed_keys


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows between two identities. `end`: the last row's identity, None at the table's end. `count`: rows passed."""

    rows: list[pa.RecordBatch]
    end: tuple[Any, ...] | None
    count: int


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


def read_chunk(
    fetcher: Fetcher, target: Target, after: tuple[Any, ...] | None, rows: int, changed: ChangedSince | None
) -> Chunk:
    """The next chunk of about `rows` rows; inside a read transaction of the caller's."""
    shape = target.shape
    end = end_of_chunk(fetcher.connection, shape, after, rows)
    bound = {f"a{i}": value for i, value in enumerate(after or ())}
    bound |= {f"e{i}": value for i, value in enumerate(end or ())}
    unchanged = changed.sql if changed is not None else None
    statements = [chunk_sql(shape, target.names, unchanged, behind=after is not None, bounded=end is not None)]
    if end is None and after is not None:  # without any bound, the one statement has read them
        statements += filter(None, [keyless_sql(shape, target.names, unchanged)])
    if changed is not None:
        bound["since"] = changed.since
    batches = [batch for statement in statements for batch in _rows(fetcher, target, statement, bound)]
    return Chunk(batches, end, sum(map(len, batches)))


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


def _rows(fetcher: Fetcher, target: Target, statement: str, bound: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    kinds = list(zip(target.names, target.kinds, strict=True))
    used = {name: value for name, value in bound.items() if f":{name}" in statement}
    return fetcher.fetch(statement, used, kinds)


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
