"""One transaction in PostgreSQL over the Arrow driver: statements, and data that is copied in for them to use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headwater.sinks import postgres_types as types
from headwater.sinks.upsert import Table, quoted

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi

PIECE = 256 * 1024
"""Bytes that are handed to the driver at a time."""


class PgTransaction:
    """One transaction on a connection in autocommit, whose `BEGIN` and `COMMIT` are statements like others."""

    def __init__(self, connection: dbapi.Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._filled: set[str] = set()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(_numbered(sql), tuple(parameters) or None)
            return list(cursor.fetchall()) if cursor.description else []

    def affected(self, sql: str) -> int:
        """The number of rows that a statement changed."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return int(cursor.rowcount)

    def has(self, table: str) -> bool:
        found = self.execute(
            "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = ? AND c.relname = ? AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            (self._schema, table),
        )
        return bool(found)

    def ingest(self, table: str, data: pa.RecordBatch, *, temporary: bool) -> None:
        place: dict[str, Any] = {"temporary": True} if temporary else {"db_schema_name": self._schema}
        with self._connection.cursor() as cursor:
            cursor.adbc_ingest(table, _in_pieces(data), mode="append", **place)

    @contextmanager
    def given(self, table: Table, data: pa.RecordBatch) -> Iterator[str]:
        """The name of a temporary table that holds the data, within.

        It is made once for each shape and session, and emptied by each commit: making one for each batch would leave
        the server's catalog full of dead rows.
        """
        columns = ", ".join(f"{quoted(name)} {_handed(table, name)}" for name in data.schema.names)
        name = f"headwater_batch_{hashlib.blake2b(columns.encode(), digest_size=8).hexdigest()}"
        if name in self._filled:
            self.execute(f"TRUNCATE {name}")
        else:
            self.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({columns}) ON COMMIT DELETE ROWS")
        self._filled.add(name)
        self.ingest(name, data, temporary=True)
        yield name

    def numbers(self, sql: str) -> pa.Array:
        """A query's one column, int64."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            found: pa.ChunkedArray = cursor.fetch_arrow_table().column(0)
        return found.combine_chunks().cast(pa.int64())

    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            yield from cursor.fetch_record_batch()


def _in_pieces(data: pa.RecordBatch) -> pa.RecordBatchReader:
    """The driver writes each batch into memory and then sends it: the server takes one piece while the next is made."""
    rows = max(1, PIECE * data.num_rows // max(1, data.nbytes))
    pieces = (data.slice(start, rows) for start in range(0, data.num_rows, rows))
    return pa.RecordBatchReader.from_batches(data.schema, pieces)


def _numbered(sql: str) -> str:
    """`?` as PostgreSQL's `$1`, outside of quotes."""
    parts = re.split(r"('[^']*'|\"[^\"]*\"|\?)", sql)
    count = 0
    for place, part in enumerate(parts):
        if part == "?":
            count += 1
            parts[place] = f"${count}"
    return "".join(parts)


def _handed(table: Table, name: str) -> str:
    return "boolean" if name.startswith("_lacks_") else types.declared(table, name)
