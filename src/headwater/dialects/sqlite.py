"""SQLite: inspection by pragmas, queries as values, and a reader that gives typed rows.

Types are in `sqlite_types`, values in `sqlite_rows`; the connection is `drivers.sqlite`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

import pyarrow as pa

from headwater.config import SourceConfig
from headwater.dialects import STORED, Column, ForeignKey, Query, Table
from headwater.dialects.cursor_parameter import with_cursor
from headwater.dialects.names import no_table, required
from headwater.dialects.sqlite_file import OpenedFile
from headwater.dialects.sqlite_rows import IntegerTimes, Rows, Times
from headwater.dialects.sqlite_types import RAW, kind_of, kind_of_declared, kind_of_field
from headwater.drivers.sqlite import Connection, path_of, quoted
from headwater.errors import ConfigError, SourceError
from headwater.model import TableId

_OPTIONS = ("busy_timeout", "integer_times")
_UNITS = ("seconds", "milliseconds", "microseconds")


def open_dialect(*, config: SourceConfig, directory: str = ".", read_from: str | None = None) -> SqliteDialect:
    """`read_from` is another file to read (a replica); `directory` is where relative paths start."""
    return SqliteDialect(config, directory, read_from)


class SqliteDialect:
    """See `dialects.Dialect`. Used by one thread."""

    lowest = float("-inf")  # numbers sort before text, and -Inf before every number (datatype3.html, section 4.1)

    def __init__(self, config: SourceConfig, directory: str = ".", read_from: str | None = None) -> None:
        _check_options(config.options)
        self.path = path_of(read_from or config.url.get_secret_value(), directory)
        self.times = Times(config.timezone, cast("IntegerTimes | None", config.options.get("integer_times")))
        self._busy_timeout = float(config.options.get("busy_timeout", 5.0))
        self._connection = self.connect()
        self._file = OpenedFile(self.path)

    def connect(self, *, readonly: bool = True, statement_timeout: float | None = None) -> Connection:
        """A further connection to the same file."""
        return Connection(
            self.path, readonly=readonly, busy_timeout=self._busy_timeout, statement_timeout=statement_timeout
        )

    def close(self) -> None:
        self._connection.close()

    def check(self) -> None:
        self._file.check()

    # inspection

    def tables(self) -> list[TableId]:
        found = self._connection.execute(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual')"
            " AND lower(substr(name, 1, 7)) <> 'sqlite_' AND lower(substr(name, 1, 9)) <> 'headwater' ORDER BY name"
        )
        return [TableId("", name) for (name,) in found]

    def table(self, table: TableId) -> Table:
        with self._connection.transaction():  # all of it as it is at one moment, whatever others do to the schema
            return self._inspected(table)

    def _inspected(self, table: TableId) -> Table:
        name, is_view = self._found(table)
        columns, key = self._columns(name, is_view)
        return Table(
            TableId("", name),
            columns,
            key,
            unique=self._indexes(name, unique=True),
            indexes=((key,) if key else ()) + self._indexes(name, unique=False),
            foreign_keys=self._foreign_keys(name),
            rows=None if is_view else self._estimate(name),
            is_view=is_view,
        )

    def describe(self, sql: str) -> pa.Schema:
        columns = self.relation(TableId("", "query"), sql, ()).columns
        return pa.schema([kind_of(column).field(column.name) for column in columns])

    def relation(self, table: TableId, sql: str, key: Sequence[str]) -> Table:
        """Names are the statement's own; types come from a temporary view, which knows the columns' declared types."""
        text = with_cursor(sql, "NULL", dialect="sqlite", others=False)  # a view takes no parameters
        with closing(self.connect(readonly=False)) as connection:
            connection.execute(f"CREATE TEMP VIEW headwater_described AS {text}")
            found = connection.execute("SELECT name, type FROM pragma_table_xinfo('headwater_described') ORDER BY cid")
        columns = tuple(self._column(name, declared or "") for name, declared in found)
        for name in key:
            required(name, columns, f"query of {table}")
        return Table(table, columns, tuple(key), is_view=True, sql=sql.strip().rstrip(";"))

    def _found(self, table: TableId) -> tuple[str, bool]:
        rows = self._connection.execute("SELECT name, type = 'view' FROM sqlite_schema WHERE type IN ('table', 'view')")
        for name, is_view in rows:
            if name.lower() == table.name.lower():  # SQLite's own rule for ASCII letters
                return name, bool(is_view)
        raise no_table(table, self.tables(), str(self.path))

    def _columns(self, name: str, is_view: bool) -> tuple[tuple[Column, ...], tuple[str, ...]]:
        found = self._connection.execute(
            'SELECT name, type, "notnull", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(:name)'
            " WHERE hidden <> 1 ORDER BY cid",
            {"name": name},
        )
        keys = [column for _, column in sorted((pk, column) for column, _, _, _, pk, _ in found if pk)]
        json = frozenset() if is_view else self._json_columns(name)
        columns = tuple(
            self._column(
                column,
                declared,
                nullable=not notnull and not (keys == [column] and declared.upper() == "INTEGER"),
                generated=hidden in (2, 3),
                has_default=bool(default),
                json=column in json,
            )
            for column, declared, notnull, default, _, hidden in found
        )
        return columns, tuple(keys)

    def _column(self, name: str, declared: str, *, nullable: bool = True, json: bool = False, **more: bool) -> Column:
        kind = kind_of_declared(declared, django=self._is_django, json=json)
        return Column(name, declared, kind.type, kind.contract, nullable, **more)

    @property
    def _is_django(self) -> bool:
        return bool(self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'django_migrations'"))

    def _json_columns(self, name: str) -> frozenset[str]:
        """Columns with CHECK (json_valid(column)), as Django's JSONField makes them."""
        ((sql,),) = self._connection.execute(
            "SELECT sql FROM sqlite_schema WHERE name = :name AND type = 'table'", {"name": name}
        )
        return _checked_as_json(sql) if "json_valid" in (sql or "").lower() else frozenset()

    def _indexes(self, name: str, *, unique: bool) -> tuple[tuple[str, ...], ...]:
        """Whole (not partial) indexes over plain columns; the primary key's own left out."""
        listed = self._connection.execute(
            "SELECT name FROM pragma_index_list(:name) WHERE NOT partial AND origin <> 'pk' AND \"unique\" >= :unique"
            " ORDER BY seq DESC",
            {"name": name, "unique": int(unique)},
        )
        found = []
        for (index,) in listed:
            columns = self._connection.execute(
                "SELECT name FROM pragma_index_info(:index) ORDER BY seqno", {"index": index}
            )
            if all(column is not None for (column,) in columns):
                found.append(tuple(column for (column,) in columns))
        return tuple(found)

    def _foreign_keys(self, name: str) -> tuple[ForeignKey, ...]:
        found = self._connection.execute(
            'SELECT id, "table", "from", "to" FROM pragma_foreign_key_list(:name) ORDER BY id, seq', {"name": name}
        )
        grouped: dict[int, list[tuple[str, str, str | None]]] = {}
        for number, parent, column, reference in found:
            grouped.setdefault(number, []).append((parent, column, reference))
        return tuple(self._foreign_key(parts) for parts in grouped.values())

    def _foreign_key(self, parts: Sequence[tuple[str, str, str | None]]) -> ForeignKey:
        parent = parts[0][0]
        references = tuple(reference for _, _, reference in parts if reference is not None)
        if len(references) < len(parts):  # without columns it is the parent's primary key that is meant
            found = self._connection.execute(
                "SELECT name FROM pragma_table_xinfo(:name) WHERE pk ORDER BY pk", {"name": parent}
            )
            references = tuple(column for (column,) in found)
        return ForeignKey(tuple(column for _, column, _ in parts), TableId("", parent), references)

    def _estimate(self, name: str) -> int | None:
        """The highest rowid, which is found at once, where there is one."""
        rowid = self._rowid(name)
        if rowid is None:
            return None
        ((highest,),) = self._connection.execute(f"SELECT max({rowid}) FROM {quoted(name)}")
        return int(highest or 0)

    def _rowid(self, name: str) -> str | None:
        """A name under which the table shows its rowid; none for a view and for WITHOUT ROWID."""
        listed = self._connection.execute(
            "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND name = :name", {"name": name}
        )
        if not listed or listed[0][0] == "view" or listed[0][1]:
            return None
        taken = self._connection.execute("SELECT lower(name) FROM pragma_table_xinfo(:name)", {"name": name})
        return next((word for word in ("rowid", "_rowid_", "oid") if (word,) not in taken), None)

    # queries

    def whole(self, table: Table, columns: Sequence[str]) -> Query:
        by = [_sorted_by(table, name) for name in table.key]
        order = f" ORDER BY {', '.join(by)}" if by else ""
        names = ", ".join(map(quoted, columns))
        return Query(f"SELECT {names} FROM {_relation(table)}{order}", {}, _fields(table, columns))

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
        terms, nullable = self._terms(table, by)
        where = [f"{term} IS NOT NULL" for term, null in zip(terms, nullable, strict=True) if null]
        values = dict(zip((f"headwater_{n}" for n in range(len(terms))), after or (), strict=False))
        if after is not None:
            sign, marks = "<" if descending else ">", ", ".join(f":{name}" for name in values)
            where.append(f"({', '.join(terms)}) {sign} ({marks})")
        order = ", ".join(f"{term} DESC" if descending else term for term in terms)
        # A column of the result may not take the place of the table's own in WHERE: it is only seen under another name.
        shown = [*map(quoted, columns), *(f"{term} AS headwater_{n}" for n, term in enumerate(terms))]
        sql = (
            f"SELECT {', '.join(shown)} FROM {_relation(table)}"
            f"{' WHERE ' + ' AND '.join(where) if where else ''} ORDER BY {order} LIMIT {int(limit)}"
        )
        return Query(sql, values, _fields(table, columns), hidden=len(terms))

    def nulls(self, table: Table, columns: Sequence[str]) -> Query:
        tests = " OR ".join(f"{quoted(name)} IS NULL" for name in columns) or "0"
        sql = f"SELECT count(*) FROM {_relation(table)} WHERE {tests}"
        return Query(sql, {}, pa.schema([kind_of_declared("INTEGER").field("count")]))

    def _terms(self, table: Table, by: Sequence[str]) -> tuple[list[str], list[bool]]:
        """What a page is ordered by, as SQL, and for each whether it may be NULL."""
        pairs = [self._term(table, name) for name in by]
        return [term for term, _ in pairs], [nullable for _, nullable in pairs]

    def _term(self, table: Table, name: str) -> tuple[str, bool]:
        if name != STORED:
            return _sorted_by(table, name), required(name, table.columns, f"table {table.id}").nullable
        rowid = None if table.sql is not None else self._rowid(table.id.name)
        if rowid is None:
            raise SourceError(
                f"{table.id} has no key and no rowid to read it by, page after page",
                hint="name the columns that identify a row as `key` of the stream",
            )
        return rowid, False

    def reader(self, *, statement_timeout: float | None = None) -> SqliteReader:
        return SqliteReader(self.connect(statement_timeout=statement_timeout), self.times)


class SqliteReader:
    """See `dialects.Reader`."""

    def __init__(self, connection: Connection, times: Times) -> None:
        self._connection = connection
        self._times = times

    def read(self, query: Query, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Hidden columns come as `_by0`, `_by1`, ... before `_invalid`, as `VARIANT`."""
        kinds = [(field.name, kind_of_field(field)) for field in query.columns]
        kinds += [(f"_by{n}", RAW) for n in range(query.hidden)]
        converter = Rows(kinds, self._times)
        for batch in self._connection.read(query.sql, query.parameters, converter.physical, rows=rows):
            yield converter.convert(batch)

    def interrupt(self) -> None:
        self._connection.interrupt()

    def close(self) -> None:
        self._connection.close()


def physical_rows(columns: Sequence[Column], times: Times) -> Rows:
    """How columns of a table are read and converted, for a pattern that keeps copies of their stored values."""
    return Rows([(column.name, kind_of(column)) for column in columns], times)


def _relation(table: Table) -> str:
    return f"({table.sql}\n)" if table.sql is not None else quoted(table.id.name)


def _fields(table: Table, columns: Sequence[str]) -> pa.Schema:
    found = [required(name, table.columns, f"table {table.id}") for name in columns]
    return pa.schema([kind_of(column).field(column.name) for column in found])


def _sorted_by(table: Table, name: str) -> str:
    """A key is unique under its column's own collation; of other columns, values that differ must also compare so."""
    if table.sql is None and name in table.key:
        return quoted(name)
    return f"{quoted(name)} COLLATE BINARY"


def _checked_as_json(sql: str) -> frozenset[str]:
    from sqlglot import exp, parse_one
    from sqlglot.errors import SqlglotError

    try:
        tree = parse_one(sql, read="sqlite")
    except SqlglotError:  # a spelling that the parser does not know; the column is then the string that it is
        return frozenset()
    calls = [*tree.find_all(exp.Anonymous)]
    return frozenset(
        column.name for call in calls if call.name.lower() == "json_valid" for column in call.find_all(exp.Column)
    )


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"options are {', '.join(_OPTIONS)}"
            raise ConfigError(f"a SQLite source has no option `{name}`", hint=hint)
        if name == "integer_times" and value not in _UNITS:
            raise ConfigError(f"option `integer_times`: `{value}` is not one of {', '.join(_UNITS)}")
