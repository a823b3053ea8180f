"""SQLite as a target. URLs: `sqlite:copy.db`, relative to the configuration.

Rows are bound to one upsert statement, value by value, without a copy of the batch in between. A file that the sink
makes is put into WAL mode, so that others read while it writes; a file that was there keeps its mode.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headwater.config import SinkBatch, SinkConfig
from headwater.contracts.types import FieldType
from headwater.drivers.sqlite import Connection, ConstraintError, StatementError
from headwater.drivers.sqlite_errors import FULL
from headwater.errors import ConfigError, NotConnected, SinkError
from headwater.faults import failpoint
from headwater.sinks import shaping, upsert
from headwater.sinks import sqlite_types as types
from headwater.sinks.tables import Refused, TableSink
from headwater.sinks.upsert import Table, listed, newer, quoted, same_key, triple

BATCH = SinkBatch(events=50_000, age=0.5)

READ_ROWS = 65_536
IO_ERROR = 10

OWN = {
    "_op": FieldType("string"),
    "_epoch": FieldType("int64"),
    "_commit": FieldType("int64"),
    "_index": FieldType("int64"),
    "_time": FieldType("timestamp"),
    "_offset": FieldType("int64"),
    "_unchanged": FieldType("string"),
    "_deleted": FieldType("bool"),
    "_deleted_at": FieldType("timestamp"),
    "_at": FieldType("float64"),
}
"""Headwater's columns as contract types. SQLite's integers are signed: a commit number above 2^63-1 is refused."""


def open_sink(*, name: str, pipeline: str, config: SinkConfig, directory: str) -> TableSink:
    return TableSink(name, pipeline, config, SQLite(_path(config.url.get_secret_value(), directory)))


def _path(url: str, directory: str) -> Path:
    text = url.split(":", 1)[1]
    text = text[3:] if text.startswith("///") else text
    if not text or text.startswith("//") or "?" in text:
        raise ConfigError(f"`{url}` names no file", hint="write sqlite:copy.db")
    return (Path(directory) / os.path.expanduser(text)).absolute()


class SQLite:
    """See `tables.Database` for what each method promises."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Connection | None = None
        self._inode: int | None = None

    # transactions

    @contextmanager
    def transaction(self) -> Iterator[LiteTransaction]:
        with self._translated():
            connection = self._opened()
            with connection.transaction("IMMEDIATE"):
                yield LiteTransaction(connection)

    def _opened(self) -> Connection:
        """The connection is kept, but not when the file was replaced beneath it."""
        if self._connection is not None and self._inode == _inode(self._path):
            return self._connection
        self.close()
        if not self._path.parent.is_dir():
            raise NotConnected(f"there is no folder {self._path.parent} for the SQLite file {self._path.name}")
        new = not self._path.exists()
        self._connection = Connection(self._path, create=True)
        if new:
            self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._inode = _inode(self._path)
        return self._connection

    @contextmanager
    def snapshot(self) -> Iterator[LiteTransaction]:
        if not self._path.exists():
            yield LiteTransaction(None)
            return
        with self._translated(), Connection(self._path) as connection, connection.transaction():
            yield LiteTransaction(connection)

    def stamp(self) -> object:
        """Asking the file itself is as cheap as any stamp."""
        return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ConstraintError as error:
            raise Refused(error.message) from error
        except StatementError as error:
            if error.code & 0xFF in (FULL, IO_ERROR):
                raise NotConnected(
                    f"{error.message}: the disk is full or failing", hint="free space; nothing was written by half"
                ) from error
            raise SinkError(error.message, hint=error.hint) from error
        except pa.ArrowInvalid as error:
            raise SinkError(f"{self._path}: a value cannot be converted: {error}") from error

    # tables

    def type_of(self, parsed: FieldType) -> str:
        return types.declared(parsed)

    def create(self, transaction: LiteTransaction, table: Table) -> None:
        kind = _declared_in(table)
        transaction.execute(upsert.create(table, kind, primary=True))
        if table.guarded:
            transaction.execute(upsert.create_guard(table, kind, primary=True))

    def add_column(self, transaction: LiteTransaction, table: Table, name: str, default: pa.Scalar | None) -> None:
        parsed = table.types[name]
        transaction.execute(f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(name)} {types.declared(parsed)}")
        if default is not None:
            where = "" if table.current else " WHERE _op NOT IN ('d', 't')"
            values = _Values()
            values.add("value", pa.array([default.as_py()], default.type), parsed)
            sql = f"UPDATE {quoted(table.name)} SET {quoted(name)} = {values.expressions['value']}{where}"
            transaction.write(sql, values)

    def widen(self, transaction: LiteTransaction, table: Table, name: str) -> None:
        """Values carry their own types; a column that would have to change its affinity is refused."""
        found = dict(transaction.execute("SELECT name, type FROM pragma_table_info(?)", (table.name,)))[name]
        if found != (wanted := types.declared(table.types[name])):
            raise SinkError(
                f"{self._path}: column {table.name}.{name} is {found or 'untyped'} and would have to become {wanted}",
                hint="SQLite cannot change a column's type; `headwater sink rebuild` makes the table anew",
            )

    # rows

    def append(self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch) -> None:
        values = _values(table, data)
        transaction.write(_insert(table.name, table.columns.names, values), values)

    def upsert(self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch) -> None:
        if not data.num_rows:
            return
        values = _values(table, data)
        insert = _insert(table.name, table.columns.names, values, self._unguarded(transaction, table, values))
        sets = ", ".join(f"{quoted(n)} = excluded.{quoted(n)}" for n in table.values)
        transaction.write(
            f"{insert} ON CONFLICT ({listed(table.key)}) DO UPDATE SET {sets} "
            f"WHERE {newer('excluded', quoted(table.name))}",
            values,
        )

    def _unguarded(self, transaction: LiteTransaction, table: Table, values: _Values) -> str:
        """That no delete of the key is as new as the row that is bound."""
        if not table.guarded or not transaction.execute(f"SELECT 1 FROM {quoted(table.guard)} LIMIT 1"):
            return ""
        return (
            f"NOT EXISTS (SELECT 1 FROM {quoted(table.guard)} g WHERE {_key_is(table, values, 'g')} "
            f"AND {triple('g')} >= {_bound_order(values)})"
        )

    def patch(
        self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch, missing: dict[str, pa.Array]
    ) -> pa.Array:
        homeless = self._homeless(transaction, table, data)
        values = _values(table, data)
        for name, lacks in missing.items():
            values.add(f"_lacks_{name}", lacks, FieldType("bool"))
        given = values.expressions
        sets = ", ".join(
            f"{quoted(n)} = CASE WHEN {given['_lacks_' + n]} THEN {quoted(n)} ELSE {given[n]} END"
            if n in missing else f"{quoted(n)} = {given[n]}"
            for n in table.values
        )  # fmt: skip
        alive = " AND NOT _deleted" if table.soft else ""
        transaction.write(
            f"UPDATE {quoted(table.name)} AS t SET {sets} "
            f"WHERE {_key_is(table, values, 't')} AND {triple('t')} < {_bound_order(values)}{alive}",
            values,
        )
        return homeless

    def stale(self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch) -> pa.Array:
        self._ask(transaction, table, data)
        found = transaction.execute(
            f"SELECT _row FROM headwater_asked b JOIN {quoted(table.name)} t ON {same_key(table, 't', 'b')} "
            f"WHERE {triple('t')} >= {triple('b')}"
        )
        transaction.execute("DROP TABLE headwater_asked")
        return shaping.among(data, [row[0] for row in found])

    def _ask(self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch) -> None:
        """Keys and orders as a temporary table."""
        values = _Values()
        for name in (*table.key, *upsert.CURRENT.names):
            values.add(name, data.column(name), _type(table, name))
        values.add("_row", shaping.numbers(data), FieldType("int64"))
        transaction.execute(f"CREATE TEMP TABLE headwater_asked ({listed(values.expressions)})")
        transaction.write(_insert("headwater_asked", list(values.expressions), values), values)

    def _homeless(self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch) -> pa.Array:
        """The rows whose key the table does not have, and whose delete is not known either."""
        self._ask(transaction, table, data)
        place, alive, dead = (
            (table.guard, "", "") if table.guarded else (table.name, " AND NOT t._deleted", " AND g._deleted")
        )
        found = transaction.execute(
            f"SELECT _row FROM headwater_asked b WHERE NOT EXISTS (SELECT 1 FROM {quoted(table.name)} t "
            f"WHERE {same_key(table, 't', 'b')}{alive}) AND NOT EXISTS (SELECT 1 FROM {quoted(place)} g "
            f"WHERE {same_key(table, 'g', 'b')} AND {triple('g')} >= {triple('b')}{dead}) ORDER BY 1"
        )
        transaction.execute("DROP TABLE headwater_asked")
        return pa.array([row[0] for row in found], pa.int64())

    def delete(self, transaction: LiteTransaction, table: Table, data: pa.RecordBatch) -> None:
        if not data.num_rows:
            return
        values = _Values()
        for name in data.schema.names[:-1]:
            values.add(name, data.column(name), _type(table, name))
        if table.soft:
            values.add("_deleted_at", data.column("_at"), OWN["_deleted_at"])
            self._delete_softly(transaction, table, values)
        else:
            values.add("_at", pa.repeat(pa.scalar(time.time()), data.num_rows), OWN["_at"])
            self._delete(transaction, table, values)

    def _delete(self, transaction: LiteTransaction, table: Table, values: _Values) -> None:
        transaction.write(
            f"DELETE FROM {quoted(table.name)} AS t WHERE {_key_is(table, values, 't')} "
            f"AND {triple('t')} < {_bound_order(values)}",
            values,
        )
        failpoint("sink.sqlite.after_removal")
        sets = ", ".join(f"{name} = excluded.{name}" for name in (*upsert.CURRENT.names, "_at"))
        transaction.write(
            f"{_insert(table.guard, list(values.expressions), values)} ON CONFLICT ({listed(table.key)}) "
            f"DO UPDATE SET {sets} WHERE {newer('excluded', quoted(table.guard))}",
            values,
        )

    def _delete_softly(self, transaction: LiteTransaction, table: Table, values: _Values) -> None:
        values.expressions["_deleted"] = "1"
        sets = ", ".join(f"{n} = excluded.{n}" for n in (*upsert.CURRENT.names, "_deleted", "_deleted_at"))
        transaction.write(
            f"{_insert(table.name, list(values.expressions), values)} ON CONFLICT ({listed(table.key)}) "
            f"DO UPDATE SET {sets} WHERE {newer('excluded', quoted(table.name))}",
            values,
        )

    def expire(self, transaction: LiteTransaction, table: Table, before: float) -> None:
        transaction.execute(f"DELETE FROM {quoted(table.guard)} WHERE _at < ?", (before,))

    def read(self, transaction: LiteTransaction, table: Table) -> Iterator[pa.RecordBatch]:
        names = table.columns.names if not table.current else (*upsert.CURRENT.names, *table.fields.names)
        chosen, columns = [], []
        for name in names:
            parsed = _type(table, name)
            expression = "instr('cudrt', _op)" if name == "_op" else quoted(name)
            columns.append(pa.field(name, pa.int64() if name == "_op" else types.physical(parsed)))
            if parsed.name in types.FLOATS:
                expression = f"CASE WHEN {expression} = 'NaN' THEN NULL ELSE {expression} END"
                chosen.append(f"{quoted(name)} = 'NaN'")
                columns.append(pa.field(f"_nan_{name}", pa.int64()))
                columns[-2:] = reversed(columns[-2:])
            chosen.append(expression)
        schema = pa.schema([table.columns.field(name) for name in names])
        sql = upsert.select(table).format(columns=", ".join(chosen))
        for batch in transaction.read(sql, pa.schema(columns)):
            arrays = [self._decoded(table, batch, field) for field in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _decoded(self, table: Table, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        if "_invalid" in batch.schema.names:
            raise SinkError(
                f"{self._path}: table {table.name} holds values that Headwater did not write: "
                f"{batch.column('_invalid').drop_null()[0].as_py()[0]}",
                hint="`headwater sink rebuild` fills it again",
            )
        array, parsed = batch.column(field.name), _type(table, field.name)
        if parsed.name in types.FLOATS:
            array = pc.if_else(
                pc.fill_null(pc.equal(batch.column(f"_nan_{field.name}"), 1), False), float("nan"), array
            )
        if field.name.startswith("_") and parsed.name in ("int64", "string"):
            return array.cast(field.type)
        return types.decoded(array, parsed)


@dataclass(slots=True)
class _Values:
    """The columns to bind, and the SQL expression that stands for each of them."""

    arrays: list[pa.Array] = field(default_factory=list)
    expressions: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, array: pa.Array, parsed: FieldType) -> None:
        value = types.encoded(array, parsed)
        expression = self._bound(value)
        if parsed.name in types.FLOATS and (mask := types.not_numbers(value)) is not None:
            expression = f"CASE WHEN {self._bound(mask.cast(pa.int64()))} THEN 'NaN' ELSE {expression} END"
        self.expressions[name] = expression

    def _bound(self, array: pa.Array) -> str:
        self.arrays.append(array)
        return f"?{len(self.arrays)}"

    def batch(self, used: int) -> pa.RecordBatch:
        """The first `used` columns: SQLite numbers parameters up to the highest that a statement names."""
        return pa.RecordBatch.from_arrays(self.arrays[:used], names=[str(i) for i in range(used)])


class LiteTransaction:
    """One transaction; without a connection, one in a file that is not there."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(sql, tuple(parameters))

    def has(self, table: str) -> bool:
        if self._connection is None:
            return False
        return bool(self.execute("SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?", (table,)))

    def write(self, sql: str, values: _Values) -> None:
        assert self._connection is not None
        used = max(map(int, re.findall(r"\?(\d+)", sql)))
        self._connection.write_batch(sql, values.batch(used))

    def read(self, sql: str, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        assert self._connection is not None
        yield from self._connection.read(sql, (), columns, rows=READ_ROWS)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _type(table: Table, name: str) -> FieldType:
    return OWN[name] if name in OWN else table.types[name]


def _declared_in(table: Table) -> Callable[[str], str]:
    return lambda name: types.declared(_type(table, name))


def _values(table: Table, data: pa.RecordBatch) -> _Values:
    values = _Values()
    for name in table.columns.names:
        array = data.column(name)
        if name == "_op":
            array = shaping.LETTERS.take(pc.subtract(array, pa.scalar(1, pa.int8())))
        elif name in ("_epoch", "_commit", "_index", "_offset"):
            array = array.cast(pa.int64())
        values.add(name, array, _type(table, name))
    return values


def _insert(table: str, names: Sequence[str], values: _Values, where: str = "") -> str:
    given = ", ".join(values.expressions[name] for name in names)
    rows = f"SELECT {given} WHERE {where}" if where else f"VALUES ({given})"
    return f"INSERT INTO {quoted(table)} ({listed(names)}) {rows}"


def _key_is(table: Table, values: _Values, relation: str) -> str:
    return " AND ".join(f"{relation}.{quoted(k)} = {values.expressions[k]}" for k in table.key)


def _bound_order(values: _Values) -> str:
    return "(" + ", ".join(values.expressions[name] for name in upsert.CURRENT.names) + ")"
