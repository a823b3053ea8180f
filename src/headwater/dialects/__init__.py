"""What each database is: types, quoting, inspection, queries as values.

A dialect describes; it never captures. `doctor`, `init` and the query sources know databases through it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from headwater.model import TableId

STORED = ""
"""In the place of a column's name: the order in which rows without a key are stored."""


@dataclass(frozen=True, slots=True)
class Column:
    """`type` is the Arrow type that every pattern gives this column's values; `contract` its natural contract type."""

    name: str
    declared: str
    type: pa.DataType
    contract: str
    nullable: bool
    generated: bool = False
    has_default: bool = False


@dataclass(frozen=True, slots=True)
class ForeignKey:
    columns: tuple[str, ...]
    table: TableId
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`key`: the primary key's columns, () without one. `unique`: other unique keys. `indexes`: columns in order."""

    id: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    rows: int | None = None
    is_view: bool = False
    sql: str | None = None
    """A custom query that stands for the table."""

    def column(self, name: str) -> Column | None:
        return next((c for c in self.columns if c.name == name), None)

    def schema(self, names: Sequence[str] | None = None) -> pa.Schema:
        """The row schema of `names` (None: all), in that sequence."""
        chosen = self.columns if names is None else [c for n in names for c in self.columns if c.name == n]
        return pa.schema([pa.field(c.name, c.type) for c in chosen])


@dataclass(frozen=True, slots=True)
class Query:
    """SQL text, its bound parameters, and the row schema of its result.

    The result has `hidden` more columns at its end: exact values of the columns that a page is ordered by, each of
    which a page's `after` takes back.
    """

    sql: str
    parameters: Mapping[str, Any]
    columns: pa.Schema
    hidden: int = 0


class Reader(Protocol):
    """One connection that reads typed rows; one thread, but for `interrupt`."""

    def read(self, query: Query, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Record batches of `query.columns`, at most `rows` each, and `_invalid` (see `model.INVALID`) where needed."""

    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def named(known: Iterable[TableId], text: str) -> TableId:
    """The table that a configuration calls `text`; a name without its schema will do where it is the only one.

    One that is not known comes back as it is written, for the error that says so.
    """
    known = list(known)
    exact = [table for table in known if str(table) == text]
    found = exact or [table for table in known if table.name == text]
    schema, dot, name = text.partition(".")
    return found[0] if len(found) == 1 else TableId(schema, name) if dot else TableId("", text)


class Dialect(Protocol):
    """Opened on one database; closes its connection with `close`.

    `lowest` is a value that every value of a cursor column is above, as a parameter.
    """

    lowest: Any

    def check(self) -> None:
        """Raise `NotConnected` when the address means another database by now than the one that was opened."""

    def tables(self) -> list[TableId]:
        """The application's tables and views; neither the database's own nor Headwater's."""

    def table(self, table: TableId) -> Table:
        """Raises `SourceError` that names the nearest table when there is none of that name."""

    def describe(self, sql: str) -> pa.Schema:
        """The row schema of a custom query (`:cursor` may stand in it)."""

    def reader(self, *, statement_timeout: float | None = None) -> Reader: ...

    def whole(self, table: Table, columns: Sequence[str]) -> Query:
        """Every row, in key order where the table has a key."""

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
        """Keyset pagination: the next `limit` rows by the columns `by`, which are compared in the database only.

        `STORED` in `by` is the order in which the database stores the rows, if it knows one. Rows with NULL in a `by`
        column are on no page.
        """

    def nulls(self, table: Table, columns: Sequence[str]) -> Query:
        """One int64: the number of rows with NULL in any of `columns`."""

    def relation(self, table: TableId, sql: str, key: Sequence[str]) -> Table:
        """A custom query as a table that can be read like any other. `:cursor` may stand in it."""

    def close(self) -> None: ...
