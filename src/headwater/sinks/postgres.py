"""PostgreSQL as a target. URLs are libpq's own: `postgresql://user@host/database`.

One connection does everything of a batch in one transaction: Arrow is copied into a temporary table, and statements
bring the table up to date from there. Transactions of one sink wait for one another (an advisory lock), so the one
that comes second sees the first one's cursor, and is stopped by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from headwater.config import SinkBatch, SinkConfig
from headwater.contracts.model import validated
from headwater.contracts.types import FieldType
from headwater.drivers.postgres import connect_adbc, literal
from headwater.errors import ConfigError, SinkError, SourceError
from headwater.faults import failpoint
from headwater.sinks import postgres_types as types
from headwater.sinks import shaping, upsert
from headwater.sinks.options import Options
from headwater.sinks.postgres_errors import translated
from headwater.sinks.postgres_ingest import PgTransaction
from headwater.sinks.postgres_upsert import by_key, placed
from headwater.sinks.tables import TableSink
from headwater.sinks.upsert import Table, listed, newer, quoted, same_key, triple

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi

BATCH = SinkBatch(events=25_000, age=0.5)

LONGEST_NAME = 63
"""Bytes of an identifier; PostgreSQL would cut longer ones off without a word."""

SETTINGS = (
    "SELECT set_config('search_path', ?, false), set_config('client_min_messages', 'warning', false),"
    " set_config('jit', 'off', false), set_config('temp_buffers', '32MB', false),"
    " set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
    " ELSE current_setting('synchronous_commit') END, false),"
    " set_config('lock_timeout', CASE current_setting('lock_timeout') WHEN '0' THEN '30s'"
    " ELSE current_setting('lock_timeout') END, false)"
)
"""A cursor that was told to be durable must be; a lock that somebody holds is told of after half a minute."""

WRITING = (
    "SELECT set_config('enable_hashjoin', 'off', false), set_config('enable_mergejoin', 'off', false),"
    " set_config('idle_in_transaction_session_timeout',"
    " CASE current_setting('idle_in_transaction_session_timeout') WHEN '0' THEN '5min'"
    " ELSE current_setting('idle_in_transaction_session_timeout') END, false)"
)
"""For who writes. The rows of a batch are looked up by key, never found by reading the whole table: the planner, which
knows nothing of the batch, would. A process that stands still within a transaction must not keep its heir waiting."""


class PostgresOptions(Options):
    schema_name: str = Field("public", alias="schema", min_length=1)
    """Where the tables go. Made if it is missing."""


def open_sink(*, name: str, pipeline: str, config: SinkConfig, directory: str) -> TableSink:
    options = validated(PostgresOptions, config.options, where=f"sink {name}: options")
    database = Postgres(name, pipeline, config.url.get_secret_value(), options.schema_name)
    rest = {key: value for key, value in config.options.items() if key != "schema"}
    return TableSink(name, pipeline, config.model_copy(update={"options": rest}), database)


class Postgres:
    """See `tables.Database` for what each method promises."""

    def __init__(self, sink: str, pipeline: str, url: str, schema: str) -> None:
        self._url = url
        self._schema = schema
        self._application = f"headwater {pipeline} sink {sink}"
        self._lock = literal(f"{pipeline} {sink} {schema}")
        self._user, self._database, self._place = _address(sink, url)
        self._writer: dbapi.Connection | None = None
        self._reader: dbapi.Connection | None = None

    # transactions

    @contextmanager
    def transaction(self) -> Iterator[PgTransaction]:
        with self._translated():
            transaction = PgTransaction(self._opened(), self._schema)
            try:
                transaction.execute("BEGIN")
                transaction.execute(f"SELECT pg_advisory_xact_lock(hashtextextended({self._lock}, 0))")
                yield transaction
                failpoint("sink.postgres.before_commit")
                transaction.execute("COMMIT")
            except BaseException:
                self._roll_back(transaction)
                raise

    def _opened(self) -> dbapi.Connection:
        if self._writer is None:
            self._writer = self._connected()
            transaction = PgTransaction(self._writer, self._schema)
            transaction.execute(WRITING)
            if not transaction.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (self._schema,)):
                transaction.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(self._schema)}")
        return self._writer

    def _roll_back(self, transaction: PgTransaction) -> None:
        """A connection that cannot even do that is given up; the server undoes what it began."""
        try:
            transaction.execute("ROLLBACK")
        except _errors():
            self._forget_writer()

    def _forget_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @contextmanager
    def snapshot(self) -> Iterator[PgTransaction]:
        """Connecting takes the driver some 50 ms, so that an idle connection is kept for the next who reads."""
        with self._translated():
            connection, self._reader = self._reader or self._connected(), None
            try:
                transaction = PgTransaction(connection, self._schema)
                transaction.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield transaction
                transaction.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            self._keep(connection)

    def _keep(self, connection: dbapi.Connection) -> None:
        if self._reader is not None:
            connection.close()
        else:
            self._reader = connection

    def _connected(self) -> dbapi.Connection:
        try:
            connection = connect_adbc(self._url, application=self._application)
        except SourceError as error:
            raise SinkError(error.message, hint=error.hint) from error
        try:
            PgTransaction(connection, self._schema).execute(SETTINGS, (quoted(self._schema),))
        except BaseException:
            connection.close()
            raise
        return connection

    def stamp(self) -> object:
        """Whatever would tell of another writer asks the server, as the cursor itself does."""
        return None

    def close(self) -> None:
        self._forget_writer()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _errors() as error:
            raise translated(error, self._place, self._grant) from error
        except pa.ArrowInvalid as error:
            raise SinkError(f"{self._place}: a value cannot be converted: {error}") from error

    def _grant(self) -> str:
        user, schema, database = map(quoted, (self._user, self._schema, self._database))
        return (
            f"as the database's owner: CREATE SCHEMA IF NOT EXISTS {schema}; GRANT USAGE, CREATE ON SCHEMA {schema} "
            f"TO {user}; GRANT TEMPORARY ON DATABASE {database} TO {user}; the tables must belong to {user}"
        )

    # tables

    def type_of(self, parsed: FieldType) -> str:
        return types.type_of(parsed)

    def create(self, transaction: PgTransaction, table: Table) -> None:
        self._check_name(table)
        transaction.execute(upsert.create(table, lambda name: types.declared(table, name), primary=True))
        if table.guarded:
            transaction.execute(upsert.create_guard(table, lambda name: types.declared(table, name), primary=True))

    def _check_name(self, table: Table) -> None:
        name = table.guard if table.guarded else table.name
        if len(name) > LONGEST_NAME:
            raise SinkError(
                f"{self._place}: stream {table.contract.stream} needs the name `{name}` of {len(name)} bytes, and "
                f"PostgreSQL holds {LONGEST_NAME}",
                hint="give the stream a shorter name",
            )

    def add_column(self, transaction: PgTransaction, table: Table, name: str, default: pa.Scalar | None) -> None:
        """A default is a note in the catalog, not a new copy of every row; it is taken away again at once."""
        target, column = quoted(table.name), quoted(name)
        added = f"ALTER TABLE {target} ADD COLUMN {column} {types.declared(table, name)}"
        if default is None:
            transaction.execute(added)
            return
        value = pa.record_batch({name: types.stored(table, name, pa.array([default.as_py()], default.type))})
        with transaction.given(table, value) as batch:
            ((text,),) = transaction.execute(f"SELECT {column}::text FROM {batch}")
        transaction.execute(f"{added} DEFAULT {literal(text)}")
        transaction.execute(f"ALTER TABLE {target} ALTER COLUMN {column} DROP DEFAULT")
        if not table.current:
            transaction.execute(f"UPDATE {target} SET {column} = NULL WHERE _op IN ('d', 't')")

    def widen(self, transaction: PgTransaction, table: Table, name: str) -> None:
        kind = types.declared(table, name)
        transaction.execute(f"ALTER TABLE {quoted(table.name)} ALTER COLUMN {quoted(name)} TYPE {kind}")

    # rows

    def append(self, transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> None:
        transaction.ingest(table.name, types.all_stored(table, data), temporary=False)

    def upsert(self, transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> None:
        if data.num_rows:
            placed(transaction, table, data)

    def patch(
        self, transaction: PgTransaction, table: Table, data: pa.RecordBatch, missing: dict[str, pa.Array]
    ) -> pa.Array:
        marks = {name: f"_lacks_{number}" for number, name in enumerate(table.fields.names) if name not in table.key}
        given = types.all_stored(table, data)
        for name, mark in marks.items():
            lacks = missing.get(name, pa.repeat(pa.scalar(False), data.num_rows))
            given = given.append_column(mark, lacks)
        given = given.append_column("_row", shaping.numbers(data))
        sets = ", ".join(f"{quoted(n)} = {_kept(n, marks)}" for n in table.values)
        alive = " AND NOT t._deleted" if table.soft else ""
        with transaction.given(table, given) as batch:
            homeless = transaction.numbers(_homeless(table, batch))
            failpoint("sink.postgres.before_patch")
            transaction.execute(
                f"UPDATE {quoted(table.name)} t SET {sets} FROM {batch} b "
                f"WHERE {same_key(table, 't', 'b')} AND {newer('b', 't')}{alive}"
            )
        return homeless

    def stale(self, transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> pa.Array:
        asked = types.all_stored(table, data.select([*table.key, *upsert.CURRENT.names]))
        with transaction.given(table, asked.append_column("_row", shaping.numbers(data))) as batch:
            found = transaction.numbers(
                f"SELECT b._row FROM {batch} b JOIN {quoted(table.name)} t ON {same_key(table, 't', 'b')} "
                f"WHERE {triple('t')} >= {triple('b')}"
            )
        return pc.is_in(shaping.numbers(data), found)

    def delete(self, transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> None:
        if not data.num_rows:
            return
        with transaction.given(table, types.all_stored(table, by_key(table, data))) as batch:
            (self._delete_softly if table.soft else self._delete)(transaction, table, batch)

    def _delete(self, transaction: PgTransaction, table: Table, batch: str) -> None:
        transaction.execute(
            f"DELETE FROM {quoted(table.name)} t USING {batch} b "
            f"WHERE {same_key(table, 't', 'b')} AND {newer('b', 't')}"
        )
        failpoint("sink.postgres.after_removal")
        kept = listed((*table.key, *upsert.CURRENT.names))
        _merge(transaction, table, table.guard, f"SELECT {kept}, now() FROM {batch}", ("_at",))

    def _delete_softly(self, transaction: PgTransaction, table: Table, batch: str) -> None:
        kept = listed((*table.key, *upsert.CURRENT.names))
        rows = f"SELECT {kept}, true, _at FROM {batch}"
        _merge(transaction, table, table.name, rows, ("_deleted", "_deleted_at"))

    def expire(self, transaction: PgTransaction, table: Table, before: float) -> None:
        transaction.execute(f"DELETE FROM {quoted(table.guard)} WHERE _at < to_timestamp(?)", (before,))

    def read(self, transaction: PgTransaction, table: Table) -> Iterator[pa.RecordBatch]:
        names = table.columns.names if not table.current else (*upsert.CURRENT.names, *table.fields.names)
        chosen = ", ".join("strpos('cudrt', _op) AS _op" if n == "_op" else quoted(n) for n in names)
        schema = pa.schema([table.columns.field(name) for name in names])
        for batch in transaction.read(upsert.select(table).format(columns=chosen)):
            yield pa.RecordBatch.from_arrays([self._loaded(table, batch, f) for f in schema], schema=schema)

    def _loaded(self, table: Table, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        array = batch.column(field.name)
        try:
            return array.cast(field.type) if field.name in types.OWN else types.loaded(array, table.types[field.name])
        except pa.ArrowInvalid as error:
            raise SinkError(
                f"{self._place}: column {table.name}.{field.name} holds values that Headwater did not write: {error}",
                hint="`headwater sink rebuild` fills it again",
            ) from error


def _errors() -> type[Exception]:
    from adbc_driver_manager import Error

    return Error


def _address(sink: str, url: str) -> tuple[str, str, str]:
    """User and database, and the place as messages name it: no part of the URL that could be a secret."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = conninfo_to_dict(url)
    except ProgrammingError:  # its text repeats the URL
        raise ConfigError(
            f"sink {sink}: its `url` is no address of a PostgreSQL server",
            hint="write postgresql://user@host:5432/database; special characters in a password are written %40",
        ) from None
    user = str(given.get("user", "the sink's user"))
    database = str(given.get("dbname", user))
    host, port = given.get("host", given.get("service", "localhost")), given.get("port", 5432)
    return user, database, f"PostgreSQL {database} at {host}:{port}"


def _kept(name: str, marks: dict[str, str]) -> str:
    if name not in marks:
        return f"b.{quoted(name)}"
    return f"CASE WHEN b.{marks[name]} THEN t.{quoted(name)} ELSE b.{quoted(name)} END"


def _homeless(table: Table, batch: str) -> str:
    """The rows whose key the table does not have, and whose delete is not known either."""
    place, alive, dead = (
        (table.guard, "", "") if table.guarded else (table.name, " AND NOT t._deleted", " AND g._deleted")
    )
    return (
        f"SELECT b._row FROM {batch} b WHERE NOT EXISTS (SELECT 1 FROM {quoted(table.name)} t "
        f"WHERE {same_key(table, 't', 'b')}{alive}) AND NOT EXISTS (SELECT 1 FROM {quoted(place)} g "
        f"WHERE {same_key(table, 'g', 'b')} AND {triple('g')} >= {triple('b')}{dead}) ORDER BY 1"
    )


def _merge(transaction: PgTransaction, table: Table, place: str, rows: str, more: Sequence[str]) -> None:
    """`rows`: a query for keys, orders and the columns of `more`, which replace what is older."""
    changed = (*upsert.CURRENT.names, *more)
    sets = ", ".join(f"{name} = excluded.{name}" for name in changed)
    transaction.execute(
        f"INSERT INTO {quoted(place)} AS t ({listed((*table.key, *changed))}) {rows} "
        f"ON CONFLICT ({listed(table.key)}) DO UPDATE SET {sets} WHERE {newer('excluded', 't')}"
    )
