"""PostgreSQL: inspection by its catalog, queries as values, and a reader that gives typed rows.

Types are in `postgres_types`, values in `postgres_values`, what is selected in `postgres_select`; connections are
`drivers.postgres`. Rows come through ADBC's COPY, which streams and is fast, and which takes no parameters: values of
a cursor or a key, which the database itself printed, go back as literals of the column's type, and only the database
compares them (F27).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headwater.config import SourceConfig
from headwater.dialects import STORED, Query, Table, postgres_catalog
from headwater.dialects.cursor_parameter import CURSOR, with_cursor
from headwater.dialects.names import no_table, required
from headwater.dialects.postgres_catalog import PgTable
from headwater.dialects.postgres_options import options_of
from headwater.dialects.postgres_select import Selection, converted
from headwater.dialects.postgres_types import PgTypes, kind_named
from headwater.drivers.postgres import (
    adbc_errors,
    connect,
    connect_adbc,
    execute,
    fetched,
    literal,
    prepared,
    quoted,
    translated,
)
from headwater.errors import NotConnected, SourceError
from headwater.model import TableId

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi

APPLICATION = "headwater"
ALIAS = "headwater_rows"
BATCHES = {"adbc.postgresql.batch_size_hint_bytes": str(8 * 2**20)}
"""At the driver's own 16 MB a reader takes 25 MB more memory and is not faster (500,000 rows of 10 columns)."""
_LOWEST = "headwater_lowest"
_STALE = 10.0
"""Seconds after which `check` asks the address again which database it means."""

_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), oid::bigint
FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
"""


def open_dialect(*, config: SourceConfig, directory: str = ".", read_from: str | None = None) -> PostgresDialect:
    """`read_from` is another server to read (a replica)."""
    return PostgresDialect(config, read_from)


class PostgresDialect:
    """See `dialects.Dialect`. Used by one thread."""

    lowest = None  # of what type, a custom query's own `:cursor` says; see `PgTable.lowest`

    def __init__(self, config: SourceConfig, read_from: str | None = None) -> None:
        self.url = read_from or config.url.get_secret_value()
        self._texts = frozenset(options_of(config.options).as_text)
        self._connection = connect(self.url, application=APPLICATION)
        self._types = PgTypes.load(self._connection)
        self._identity = execute(self._connection, _IDENTITY)
        self._checked = time.monotonic()

    def close(self) -> None:
        self._connection.close()

    @property
    def types(self) -> PgTypes:
        return self._types

    def check(self) -> None:
        """A connection of its own asks, from time to time: after a failover the old one may still be there (F80)."""
        if time.monotonic() < self._checked + _STALE:
            return
        with closing(connect(self.url, application=APPLICATION)) as connection:
            if execute(connection, _IDENTITY) != self._identity:
                raise NotConnected(
                    "the address means another database than before",
                    hint="it is opened anew; see `headwater status` for gaps",
                )
        self._types = PgTypes.load(self._connection)
        self._checked = time.monotonic()

    # inspection

    def tables(self) -> list[TableId]:
        return postgres_catalog.tables(self._connection)

    def table(self, table: TableId) -> PgTable:
        found = self._inspected(table)
        if found is not None and not all(self._types.knows(c.oid) for c in found.described):
            self._types = PgTypes.load(self._connection)
            found = self._inspected(table)
        if found is None:
            raise no_table(table, self.tables(), f"database {self._connection.info.dbname}")
        return found

    def _inspected(self, table: TableId) -> PgTable | None:
        return postgres_catalog.table(self._connection, table, self._types, self._texts)

    def describe(self, sql: str) -> pa.Schema:
        columns = self.relation(TableId("", "query"), sql, ()).described
        return pa.schema([column.kind.field(column.name) for column in columns])

    def relation(self, table: TableId, sql: str, key: Sequence[str]) -> PgTable:
        """Names and types are what the server says of the prepared statement; nothing is run."""
        text = with_cursor(sql, "$1", dialect="postgres", others=True)
        described = prepared(self._connection, text)
        if not all(self._types.knows(oid) for _, oid, _ in described.columns):
            self._types = PgTypes.load(self._connection)
        columns = tuple(self._types.column(name, oid, typmod) for name, oid, typmod in described.columns)
        names = [column.name for column in columns]
        for name in names:
            if names.count(name) > 1:
                raise SourceError(f"query of {table} has several columns `{name}`", hint="name each with AS")
        for name in key:
            required(name, columns, f"query of {table}")
        lowest = self._types.kind(described.parameter).lowest
        return PgTable(table, columns, tuple(key), is_view=True, sql=sql.strip().rstrip(";"), kind="v", lowest=lowest)

    # queries

    def whole(self, table: Table, columns: Sequence[str]) -> Query:
        found = _ours(table)
        by = ", ".join(f"{ALIAS}.{quoted(name)}" for name in found.key)
        return self._query(found, columns, f" ORDER BY {by}" if by else "")

    def page(
        self,
        table: Table,
        columns: Sequence[str],
        by: Sequence[str],
        after: Sequence[Any] | None,
        limit: int,
        *,
        descending: bool = False,
    ) -> Query:
        found = _ours(table)
        terms = [self._term(found, name) for name in by]
        where = [f"{term.sql} IS NOT NULL" for term in terms if term.nullable]
        if after is not None:
            values = (term.parsed(value) for term, value in zip(terms, after, strict=True))
            left, right = ", ".join(term.sql for term in terms), ", ".join(values)
            where.append(f"({left}) {'<' if descending else '>'} ({right})")
        order = ", ".join(f"{term.sql} DESC" if descending else term.sql for term in terms)
        rest = f"{' WHERE ' + ' AND '.join(where) if where else ''} ORDER BY {order} LIMIT {int(limit)}"
        return self._query(found, columns, rest, [term.printed for term in terms])

    def nulls(self, table: Table, columns: Sequence[str]) -> Query:
        found = _ours(table)
        tests = " OR ".join(f"{ALIAS}.{quoted(name)} IS NULL" for name in columns) or "false"
        sql = f"SELECT count(*) FROM {found.relation} AS {ALIAS} WHERE {tests}"
        return Query(sql, _parameters(found), pa.schema([kind_named("int8").field("count")]))

    def selection(self, table: Table, columns: Sequence[str], alias: str = ALIAS) -> Selection:
        """What a statement of another's making selects of `table AS alias`, and how its rows are converted."""
        return Selection(_ours(table).chosen(columns), self._types, alias)

    def _query(self, table: PgTable, columns: Sequence[str], rest: str, hidden: Sequence[str] = ()) -> Query:
        selection = self.selection(table, columns)
        shown = [*filter(None, [selection.sql]), *(f"{sql} AS headwater_{n}" for n, sql in enumerate(hidden))]
        sql = f"SELECT {', '.join(shown)} FROM {table.relation} AS {ALIAS}{rest}"
        return Query(sql, _parameters(table), selection.columns, hidden=len(hidden))

    def _term(self, table: PgTable, name: str) -> Term:
        if name != STORED:
            (column,) = table.chosen([name])
            reference = self._types.plain(f"{ALIAS}.{quoted(name)}", column.oid)
            return Term(reference, column.oid, column.nullable, self._types)
        if not table.placed:
            raise SourceError(
                f"{table.id} has no key, and is not stored so that it could be read without one, page after page",
                hint="name the columns that identify a row as `key` of the stream",
            )
        return Term(f"{ALIAS}.ctid", _TID, False, self._types)

    def reader(self, *, statement_timeout: float | None = None) -> PostgresReader:
        return PostgresReader(self.url, statement_timeout)


_TID = 27
"""The oid of `tid`, which never changes (pg_type.dat)."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a page is ordered by."""

    sql: str
    oid: int
    nullable: bool
    types: PgTypes

    @property
    def printed(self) -> str:
        return self.types.printed(self.sql, self.oid)

    def parsed(self, text: str) -> str:
        return self.types.parsed(literal(text), self.oid)


def _ours(table: Table) -> PgTable:
    if not isinstance(table, PgTable):
        raise TypeError(f"{table.id} was not described by the PostgreSQL dialect")
    return table


def _parameters(table: PgTable) -> dict[str, Any]:
    return {} if table.sql is None else {_LOWEST: table.lowest}


class PostgresReader:
    """See `dialects.Reader`."""

    def __init__(self, url: str, statement_timeout: float | None) -> None:
        self._connection = connect_adbc(url, application=APPLICATION)
        self._open = threading.Lock()  # one thread interrupts what another is about to close
        self._closed = False
        milliseconds = round((statement_timeout or 0) * 1000)
        with self._errors(), self._connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {milliseconds}")
            cursor.execute("SET default_transaction_read_only = on")

    def read(self, query: Query, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Hidden columns come as `_by0`, `_by1`, ... before `_invalid`, as the texts that the server prints."""
        hidden = [f"_by{n}" for n in range(query.hidden)]
        with self._errors():
            cursor = self._connection.cursor()
        complete = False
        try:
            for batch in self._batches(cursor, _filled(query)):
                for start in range(0, batch.num_rows, rows):
                    yield converted(batch.slice(start, rows), query.columns, hidden)
            complete = True
        finally:
            cursor.close()
            if not complete:
                self._end_statement()

    def _batches(self, cursor: dbapi.Cursor, sql: str) -> Iterator[pa.RecordBatch]:
        with self._errors():
            cursor.adbc_statement.set_options(**BATCHES)
            cursor.execute(sql)
            yield from fetched(cursor)

    def _end_statement(self) -> None:
        """Of rows that are left unread, the next statement would first receive all the rest."""
        with suppress(*adbc_errors()), self._connection.cursor() as cursor:
            self._connection.adbc_cancel()
            cursor.execute("SELECT 1")  # meets the cancellation in the next statement's place

    def interrupt(self) -> None:
        with self._open, self._errors():
            if not self._closed:
                self._connection.adbc_cancel()

    def close(self) -> None:
        with self._open:
            self._closed = True
            self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except adbc_errors() as error:
            raise translated(error, "") from error


def _filled(query: Query) -> str:
    """The statement with a value for `:cursor`, where it is custom."""
    if CURSOR not in query.parameters:
        return query.sql
    value = query.parameters[CURSOR]
    text = query.parameters[_LOWEST] if value is None else str(value)
    return with_cursor(query.sql, literal(text), dialect="postgres", others=True)
