"""DuckDB as a target. URLs: `duckdb:file.duckdb`, relative to the configuration.

The file is opened, written and closed for each batch, so that other programs can read it in between; `hold: true`
keeps it open. The tables have no primary key: finding the rows of a batch by a hash join over the key's column is
several times faster than DuckDB's index, and needs no memory that grows with the table. A row's key stays unique
because each batch holds a key once, and because the cursor lets only one writer through.
"""

from __future__ import annotations

import datetime
import importlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headwater.config import SinkBatch, SinkConfig
from headwater.contracts.types import FieldType
from headwater.errors import Busy, ConfigError, HeadwaterError, MissingExtra, NotConnected, SinkError
from headwater.faults import failpoint
from headwater.sinks import duckdb_types as types
from headwater.sinks import shaping, upsert
from headwater.sinks.tables import Refused, TableSink
from headwater.sinks.upsert import Table, listed, newer, quoted, same_key

if TYPE_CHECKING:
    import duckdb

BATCH = SinkBatch(events=100_000, age=1.0)

READ_ROWS = 65_536


def open_sink(*, name: str, pipeline: str, config: SinkConfig, directory: str) -> TableSink:
    path = path_of(config.url.get_secret_value(), directory, "duckdb")
    return TableSink(name, pipeline, config, DuckDB(path, hold=config.hold, memory_limit=config.memory_limit))


def path_of(url: str, directory: str, scheme: str) -> Path:
    """`scheme:file`, `scheme:///file` (relative) and `scheme:////file` (absolute)."""
    text = url[len(scheme) + 1 :]
    if text.startswith("///"):
        text = text[3:]
    if not text or text.startswith("//") or "?" in text:
        raise ConfigError(f"`{url}` names no file", hint=f"write {scheme}:warehouse.{scheme}")
    return Path(directory) / os.path.expanduser(text)


class DuckDB:
    """See `tables.Database` for what each method promises."""

    def __init__(self, path: Path, *, hold: bool, memory_limit: str) -> None:
        self._path = path
        self._hold = hold
        self._memory_limit = memory_limit
        self._duckdb: Any = _client()
        self._held: duckdb.DuckDBPyConnection | None = None

    # transactions

    @contextmanager
    def transaction(self) -> Iterator[DuckTransaction]:
        with self._translated(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield DuckTransaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                self._roll_back(connection)
                raise

    def _roll_back(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute("ROLLBACK")
        except self._duckdb.Error:  # a failed COMMIT has rolled back already; there is nothing more to undo
            return

    @contextmanager
    def snapshot(self) -> Iterator[DuckTransaction]:
        if self._held is None and not self._path.exists():
            yield DuckTransaction(None)
            return
        with self._translated(), self._reader() as connection:
            connection.execute("BEGIN")
            yield DuckTransaction(connection)

    def stamp(self) -> object:
        if self._held is not None:
            return "held"
        return tuple(_stat(path) for path in (self._path, Path(f"{self._path}.wal")))

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._held is not None:
            yield self._held
            return
        connection = self._opened()
        if self._hold:
            self._held = connection
            yield connection
            return
        try:
            yield connection
            failpoint("sink.duckdb.before_close")
        finally:
            connection.close()

    @contextmanager
    def _reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own. Read-only where this process does not hold the file for writing."""
        if self._held is not None:
            connection = self._held.cursor()
        else:
            try:
                connection = self._opened(read_only=True)
            except self._duckdb.ConnectionException:
                connection = self._opened()
        try:
            yield connection
        finally:
            connection.close()

    def _opened(self, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        if not self._path.parent.is_dir():
            raise NotConnected(f"there is no folder {self._path.parent} for the DuckDB file {self._path.name}")
        connection: duckdb.DuckDBPyConnection = self._duckdb.connect(str(self._path), read_only=read_only)
        try:
            connection.execute(f"SET memory_limit = '{_limit(self._memory_limit)}'")
            connection.execute(f"SET threads = {min(4, os.cpu_count() or 1)}")
            connection.execute("SET preserve_insertion_order = false")
            connection.execute("SET TimeZone = 'UTC'")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._duckdb.Error as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> HeadwaterError | Refused:
        text = str(error)
        if isinstance(error, (self._duckdb.ConstraintException, self._duckdb.DataError)):
            return Refused(text)
        if "Could not set lock" in text or isinstance(error, self._duckdb.ConnectionException):
            return Busy(
                f"{self._path} is held by another program: {_holder(text)}",
                hint="it is tried again; other programs should open the file read-only, and not for long",
            )
        if "conflict" in text.lower() and isinstance(error, self._duckdb.TransactionException):
            return Busy(f"{self._path}: another writer was faster: {text}")
        if "No space left" in text or "Could not write" in text:
            return NotConnected(
                f"{self._path}: the disk is full: {text}", hint="free space; nothing was written by half"
            )
        if "Permission denied" in text or "Read-only file system" in text:
            return NotConnected(f"{self._path}: {text}", hint="check the file and its folder's permissions")
        if isinstance(error, self._duckdb.OutOfMemoryException):
            return SinkError(
                f"{self._path}: {self._memory_limit} of memory do not suffice: {text}", hint="raise `memory_limit`"
            )
        return SinkError(f"{self._path}: {text}", hint="if the file is damaged or no DuckDB file, move it away")

    # tables

    def type_of(self, parsed: FieldType) -> str:
        return types.type_of(parsed)

    def create(self, transaction: DuckTransaction, table: Table) -> None:
        transaction.execute(upsert.create(table, _type_in(table), primary=False))
        if table.guarded:
            transaction.execute(upsert.create_guard(table, _type_in(table), primary=False))

    def add_column(self, transaction: DuckTransaction, table: Table, name: str, default: pa.Scalar | None) -> None:
        kind = types.type_of(table.types[name])
        transaction.execute(f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(name)} {kind}")
        if default is not None:
            where = "" if table.current else " WHERE _op NOT IN ('d', 't')"
            with transaction.given(pa.record_batch({"value": types.stored(pa.array([default.as_py()], default.type))})):
                transaction.execute(
                    f"UPDATE {quoted(table.name)} SET {quoted(name)} = (SELECT value FROM headwater_batch){where}"
                )

    def widen(self, transaction: DuckTransaction, table: Table, name: str) -> None:
        kind = types.type_of(table.types[name])
        transaction.execute(f"ALTER TABLE {quoted(table.name)} ALTER COLUMN {quoted(name)} TYPE {kind}")

    # rows

    def append(self, transaction: DuckTransaction, table: Table, data: pa.RecordBatch) -> None:
        with transaction.given(_stored(data)):
            names = table.columns.names
            chosen = ", ".join("substr('cudrt', _op, 1)" if name == "_op" else quoted(name) for name in names)
            transaction.execute(
                f"INSERT INTO {quoted(table.name)} ({listed(names)}) SELECT {chosen} FROM headwater_batch"
            )

    def upsert(self, transaction: DuckTransaction, table: Table, data: pa.RecordBatch) -> None:
        if not data.num_rows:
            return
        with transaction.given(_stored(data)):
            self._upsert(transaction, table, "headwater_batch b")

    def _upsert(self, transaction: DuckTransaction, table: Table, rows: str) -> None:
        """`rows`: a relation `b` of whole rows. What stays in the table afterwards is as new as the batch, or newer."""
        name = quoted(table.name)
        guarded = ""
        if table.guarded and transaction.execute(f"SELECT 1 FROM {quoted(table.guard)} LIMIT 1"):
            guarded = (
                f" AND NOT EXISTS (SELECT 1 FROM {quoted(table.guard)} g "
                f"WHERE {same_key(table, 'g', 'b')} AND {upsert.triple('g')} >= {upsert.triple('b')})"
            )
        transaction.execute(
            f"DELETE FROM {name} t USING {rows} WHERE {same_key(table, 't', 'b')} AND {newer('b', 't')}{guarded}"
        )
        failpoint("sink.duckdb.after_removal")
        transaction.execute(
            f"INSERT INTO {name} ({listed(table.columns.names)}) SELECT {_columns(table, 'b')} FROM {rows} "
            f"WHERE NOT EXISTS (SELECT 1 FROM {name} t WHERE {same_key(table, 't', 'b')}){guarded}"
        )

    def patch(
        self, transaction: DuckTransaction, table: Table, data: pa.RecordBatch, missing: dict[str, pa.Array]
    ) -> pa.Array:
        """Rows are completed from the table first, and then written like any other."""
        batch = _stored(data)
        for name, lacks in missing.items():
            batch = batch.append_column(f"_lacks_{name}", lacks)
        batch = batch.append_column("_row", pa.array(range(data.num_rows), pa.int64()))
        alive = " AND NOT t._deleted" if table.soft else ""
        chosen = ", ".join(_completed(name, name in missing) for name in table.columns.names)
        joined = f"FROM headwater_batch b LEFT JOIN {quoted(table.name)} t ON {same_key(table, 't', 'b')}{alive}"
        with transaction.given(batch):
            transaction.execute(
                "CREATE OR REPLACE TEMP TABLE headwater_whole AS "
                f"SELECT {chosen}, b._row, t._epoch IS NULL AS _homeless {joined}"
            )
        homeless = transaction.execute(
            f"SELECT b._row FROM headwater_whole b WHERE b._homeless{self._unguarded(table)} ORDER BY 1"
        )
        transaction.execute("DELETE FROM headwater_whole WHERE _homeless")
        self._upsert(transaction, table, "headwater_whole b")
        transaction.execute("DROP TABLE headwater_whole")
        return pa.array([row[0] for row in homeless], pa.int64())

    def stale(self, transaction: DuckTransaction, table: Table, data: pa.RecordBatch) -> pa.Array:
        asked = data.select([*table.key, *upsert.CURRENT.names]).append_column("_row", shaping.numbers(data))
        with transaction.given(_stored(asked)):
            found = transaction.execute(
                f"SELECT b._row FROM headwater_batch b JOIN {quoted(table.name)} t ON {same_key(table, 't', 'b')} "
                f"WHERE {upsert.triple('t')} >= {upsert.triple('b')}"
            )
        return shaping.among(data, [row[0] for row in found])

    def _unguarded(self, table: Table) -> str:
        """That a row `b` is newer than what is known of its deletion."""
        place, alive = (table.guard, "") if table.guarded else (table.name, " AND g._deleted")
        return (
            f" AND NOT EXISTS (SELECT 1 FROM {quoted(place)} g WHERE {same_key(table, 'g', 'b')} "
            f"AND {upsert.triple('g')} >= {upsert.triple('b')}{alive})"
        )

    def delete(self, transaction: DuckTransaction, table: Table, data: pa.RecordBatch) -> None:
        if not data.num_rows:
            return
        with transaction.given(_stored(data)):
            (self._delete_softly if table.soft else self._delete)(transaction, table)

    def _delete(self, transaction: DuckTransaction, table: Table) -> None:
        for name in (table.name, table.guard):
            transaction.execute(
                f"DELETE FROM {quoted(name)} t USING headwater_batch b "
                f"WHERE {same_key(table, 't', 'b')} AND {newer('b', 't')}"
            )
        kept = (*table.key, *upsert.CURRENT.names)
        transaction.execute(
            f"INSERT INTO {quoted(table.guard)} ({listed(kept)}, _at) "
            f"SELECT {listed(kept)}, now() FROM headwater_batch b "
            f"WHERE NOT EXISTS (SELECT 1 FROM {quoted(table.guard)} t WHERE {same_key(table, 't', 'b')})"
        )

    def _delete_softly(self, transaction: DuckTransaction, table: Table) -> None:
        name, kept = quoted(table.name), (*table.key, *upsert.CURRENT.names)
        transaction.execute(
            f"UPDATE {name} t SET _deleted = true, _deleted_at = b._at, _epoch = b._epoch, _commit = b._commit, "
            f"_index = b._index FROM headwater_batch b WHERE {same_key(table, 't', 'b')} AND {newer('b', 't')}"
        )
        transaction.execute(
            f"INSERT INTO {name} ({listed(kept)}, _deleted, _deleted_at) SELECT {listed(kept)}, true, _at "
            f"FROM headwater_batch b WHERE NOT EXISTS (SELECT 1 FROM {name} t WHERE {same_key(table, 't', 'b')})"
        )

    def expire(self, transaction: DuckTransaction, table: Table, before: float) -> None:
        at = datetime.datetime.fromtimestamp(before, datetime.UTC)
        transaction.execute(f"DELETE FROM {quoted(table.guard)} WHERE _at < ?", (at,))

    def read(self, transaction: DuckTransaction, table: Table) -> Iterator[pa.RecordBatch]:
        names = table.columns.names if not table.current else (*upsert.CURRENT.names, *table.fields.names)
        chosen = ", ".join("instr('cudrt', _op)::TINYINT AS _op" if n == "_op" else quoted(n) for n in names)
        schema = pa.schema([table.columns.field(name) for name in names])
        for batch in transaction.read(upsert.select(table).format(columns=chosen)):
            arrays = [types.loaded(batch.column(f.name), f.type) for f in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


class DuckTransaction:
    """One transaction; without a connection, one in a file that is not there."""

    def __init__(self, connection: duckdb.DuckDBPyConnection | None) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(sql, list(parameters)).fetchall()

    def has(self, table: str) -> bool:
        if self._connection is None:
            return False
        found = self.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_catalog = current_database() "
            "AND table_schema = current_schema() AND table_name = ?",
            (table,),
        )
        return bool(found)

    @contextmanager
    def given(self, data: pa.RecordBatch) -> Iterator[None]:
        """`headwater_batch` is the data, within."""
        assert self._connection is not None
        self._connection.register("headwater_batch", data)
        yield
        self._connection.unregister("headwater_batch")  # after an error the transaction is void, and refuses even this

    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        assert self._connection is not None
        yield from self._connection.sql(sql).to_arrow_reader(READ_ROWS)


def _client() -> Any:
    try:
        return importlib.import_module("duckdb")
    except ImportError as error:
        raise MissingExtra(
            "the DuckDB sink needs the `duckdb` library", hint="pip install 'headwater[engine]'"
        ) from error


def _limit(text: str) -> str:
    if not re.fullmatch(r"\s*\d+(\.\d+)?\s*([KMGT]i?)?B\s*", text, re.IGNORECASE):
        raise ConfigError(f"`memory_limit: {text}` is no size", hint="write 200MB or 2GB")
    return text


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _holder(text: str) -> str:
    """The program and pid, as DuckDB tells them."""
    found = re.search(r"held in (.+?\(PID \d+\))", text)
    return found[1] if found else text


def _type_in(table: Table) -> Callable[[str], str]:
    return lambda name: types.OWN[name] if name in types.OWN else types.type_of(table.types[name])


def _stored(data: pa.RecordBatch) -> pa.RecordBatch:
    arrays = [types.stored(column) for column in data.columns]
    return pa.RecordBatch.from_arrays(arrays, names=data.schema.names)


def _columns(table: Table, relation: str) -> str:
    return ", ".join(f"{relation}.{quoted(name)}" for name in table.columns.names)


def _completed(name: str, lacking: bool) -> str:
    if not lacking:
        return f"b.{quoted(name)}"
    return f"CASE WHEN b.{quoted('_lacks_' + name)} THEN t.{quoted(name)} ELSE b.{quoted(name)} END AS {quoted(name)}"
