"""Rows of a captured table as SQL selects them, through ADBC, and as READ changes.

A statement selects a column as it is where ADBC reads it exactly, else the text that the server prints of it: the same
decision, by the same type mapper, as for the log (F24).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.dialects.postgres_select import Selection
from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import adbc_errors, connect, connect_adbc, execute, fetched, translated
from headwater.errors import SourceError
from headwater.model import Op, TableId, changes_schema
from headwater.sources.log_postgres.tables import describe

if TYPE_CHECKING:
    import psycopg
    from adbc_driver_manager import dbapi

_INDICES = 2**31
"""Even numbers in a `_index`."""


@dataclass(frozen=True, slots=True)
class Connector:
    """How loads reach the database. `application`: what the connections are called there."""

    url: str
    application: str

    def sql(self) -> psycopg.Connection:
        connection = connect(self.url, application=self.application)
        try:
            execute(connection, _SESSION)
        except BaseException:
            connection.close()
            raise
        return connection

    def arrow(self) -> dbapi.Connection:
        connection = connect_adbc(self.url, application=self.application)
        try:
            for _ in batches_of(connection, _SESSION):
                pass
        except BaseException:
            connection.close()
            raise
        return connection


_SESSION = """
SELECT pg_catalog.set_config(name, CASE name WHEN 'row_security' THEN 'off' ELSE '0' END, false)
FROM pg_catalog.pg_settings
WHERE name IN ('row_security', 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',
               'idle_session_timeout', 'transaction_timeout')
"""
"""No time-out of the role ends a load; and a policy that hides rows is an error, instead of a load that lacks them."""


ALIAS = "headwater_rows"
"""What a statement calls the table, so that no column is taken for another's."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A table as it is now, and the columns that are read of it.

    `source`: what a FROM names; a plain table's own rows only, for those of its children are other tables'. `key`: the
    columns that identify a row, with their types' oids. `unique`: an index says that the key is never null nor twice.
    """

    table: TableId
    oid: int
    source: str
    selection: Selection
    key: tuple[tuple[str, int], ...]
    unique: bool
    types: PgTypes

    @property
    def sql(self) -> str:
        """The statement of all rows."""
        return f"SELECT {self.selection.sql} FROM {self.source} AS {ALIAS}"

    @property
    def key_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.key)

    @property
    def width(self) -> int:
        return len(self.selection.columns)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What `selection.sql` gave as typed rows, perhaps with `_invalid`; columns behind it are left out."""
        return self.selection.convert(batch.select(range(self.width)))


_WAY_OUT = "it was dropped or renamed: bring it back, or change the configuration; then start again"

_UNIQUE = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid = %s::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (
          SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS k(number)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
          WHERE NOT a.attnotnull OR a.attname <> ALL (%s::name[])))
"""


def shape_of(
    connection: psycopg.Connection,
    table: TableId,
    names: Sequence[str],
    key: Sequence[str],
    types: PgTypes,
    texts: frozenset[str] = frozenset(),
) -> Shape:
    """`names`: the columns to read; `texts`: those of `schema.table.column` that are text by declared choice.

    Raises `SourceError` when the table or one of the columns is gone.
    """
    described = describe(connection, [table]).get(table)
    if described is None:
        raise SourceError(f"there is no table {table}", hint=_WAY_OUT)
    for name in (*names, *key):
        if name not in described.columns:
            raise SourceError(f"table {table} has no column `{name}`", hint=_WAY_OUT)
    ((unique,),) = execute(connection, _UNIQUE, [described.oid, list(key)])
    columns = [types.column(name, *described.columns[name]) for name in names]
    chosen = [column.as_text() if f"{table}.{column.name}" in texts else column for column in columns]
    return Shape(
        table,
        described.oid,
        described.sql if described.leaf.kind == "p" else f"ONLY {described.sql}",
        Selection(chosen, types, ALIAS),
        tuple((name, described.columns[name][0]) for name in key),
        bool(key) and bool(unique),
        types,
    )


def batches_of(connection: dbapi.Connection, sql: str) -> Iterator[pa.RecordBatch]:
    """What a statement gives, as ADBC makes it; one that has been begun must be read to its end."""
    failures: tuple[type[Exception], ...] = (*adbc_errors(), OSError)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            yield from fetched(cursor)
    except failures as error:
        raise translated(error, "") from error


def run(connection: dbapi.Connection, *statements: str) -> None:
    """Statements without rows."""
    try:
        with connection.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)
    except adbc_errors() as error:
        raise translated(error, "") from error


def asked(connection: dbapi.Connection, sql: str) -> tuple[Any, ...]:
    """The one row of a statement."""
    (row,) = pa.Table.from_batches(batches_of(connection, sql)).to_pylist()
    return tuple(row.values())


@dataclass(frozen=True, slots=True)
class Start:
    """The place in the order of a load's first row, and the number from which its rows are counted."""

    epoch: int
    commit: int
    number: int


def below(commit: int) -> int:
    """A place in the order above every commit before `commit`, and nobody's: commits stand at multiples of eight.

    (WAL records are aligned; see MAXALIGN in PostgreSQL's xlogrecord.h.) The seven places beside it are free too.
    """
    return ((commit - 1) & ~7) + 1


def behind(commit: int) -> int:
    """Likewise, above `commit` and below every later one."""
    return (commit & ~7) + 1


def beside(commits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Likewise, right below these: a load's rows may stand `behind` the commit that ends where one of them begins."""
    return commits - np.uint64(3)


def reads_of(rows: pa.RecordBatch, start: Start) -> pa.RecordBatch:
    """Rows of a table, with or without `_invalid`, as READ changes."""
    numbers = np.arange(start.number, start.number + len(rows), dtype=np.uint64)
    commits = np.uint64(start.commit) + numbers // np.uint64(_INDICES)
    indices = (numbers % np.uint64(_INDICES)).astype(np.uint32) * np.uint32(2)
    return reads_at(rows, start.epoch, commits, indices)


def reads_at(
    rows: pa.RecordBatch, epoch: int, commits: np.ndarray[Any, Any], indices: np.ndarray[Any, Any]
) -> pa.RecordBatch:
    """The same, each row at a place of its own."""
    count = len(rows)
    invalid = "_invalid" in rows.schema.names
    columns = pa.schema([f.remove_metadata() for f in rows.schema if f.name != "_invalid"])
    schema = changes_schema(columns, invalid=invalid)
    arrays = [
        pa.array(np.full(count, Op.READ, np.int8)),
        pa.array(np.full(count, epoch, np.uint32)),
        pa.array(commits.astype(np.uint64)),
        pa.array(indices.astype(np.uint32)),
        pa.nulls(count, schema.field("_time").type),
        pa.nulls(count, pa.string()),
        pa.nulls(count, schema.field("before").type),
        pa.StructArray.from_arrays(rows.columns[: len(columns)], fields=list(columns)),
    ]
    if invalid:
        arrays.append(rows.column("_invalid"))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
