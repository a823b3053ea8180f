"""How the trigger pattern reaches the database: psycopg for SQL, ADBC for rows, and one snapshot for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from headwater.drivers.postgres import adbc_errors, connect, connect_adbc, execute, fetched, literal, translated
from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    import psycopg
    from adbc_driver_manager import dbapi


@dataclass(frozen=True, slots=True)
class Connector:
    """`application`: what the connections are called in `pg_stat_activity`."""

    url: str
    application: str

    def sql(self) -> psycopg.Connection:
        return connect(self.url, application=self.application)

    def rows(self) -> RowReader:
        return RowReader(connect_adbc(self.url, application=self.application))


class RowReader:
    """An ADBC connection; each error is ours."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection

    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        """What a statement gives, as ADBC makes it; to be read to its end, or the connection closed."""
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql)
                yield from fetched(cursor)
        except adbc_errors() as error:
            raise translated(error, "") from error

    def all(self, sql: str) -> pa.RecordBatch | None:
        """The rows of a statement in one batch; None without any."""
        batches = [batch for batch in self.read(sql) if len(batch)]
        if len(batches) < 2:
            return batches[0] if batches else None
        return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]

    def run(self, *statements: str) -> None:
        """Statements without rows."""
        try:
            with self._connection.cursor() as cursor:
                for sql in statements:
                    cursor.execute(sql)
        except adbc_errors() as error:
            raise translated(error, "") from error

    def begin(self, snapshot: str) -> None:
        """Begin a transaction that sees what the exported `snapshot` sees."""
        self.run(f"{REPEATABLE} READ ONLY", f"SET TRANSACTION SNAPSHOT {literal(snapshot)}")

    def end(self) -> None:
        self.run("COMMIT")

    def close(self) -> None:
        self._connection.close()


REPEATABLE = "BEGIN ISOLATION LEVEL REPEATABLE READ"


@contextmanager
def transaction(connection: psycopg.Connection, begin: str = "BEGIN") -> Iterator[None]:
    """Commits at the end, rolls back on an exception; each error is ours."""
    execute(connection, begin)
    try:
        yield
    except BaseException:
        with suppress(HeadwaterError):
            execute(connection, "ROLLBACK")
        raise
    execute(connection, "COMMIT")
