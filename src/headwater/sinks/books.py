"""The sinks' own tables in a target: which stream's table is whose, and how far it has come.

Both are keyed by pipeline and sink, so that neighbours in one file never touch one another. The statements are plain
enough for DuckDB and SQLite alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headwater.contracts.model import Contract
from headwater.errors import SinkError
from headwater.model import Cursor
from headwater.sinks.placing import WATERMARK
from headwater.sinks.upsert import Table

CURSORS = "headwater_cursor"
STREAMS = "headwater_stream"
FORMAT = 1

_CREATE = (
    f"""CREATE TABLE IF NOT EXISTS {CURSORS} (
        pipeline VARCHAR NOT NULL, sink VARCHAR NOT NULL, stream VARCHAR NOT NULL, "partition" INTEGER NOT NULL,
        incarnation VARCHAR NOT NULL, "offset" BIGINT NOT NULL,
        PRIMARY KEY (pipeline, sink, stream, "partition"))""",
    f"""CREATE TABLE IF NOT EXISTS {STREAMS} (
        table_name VARCHAR NOT NULL PRIMARY KEY, pipeline VARCHAR NOT NULL, sink VARCHAR NOT NULL,
        stream VARCHAR NOT NULL, format INTEGER NOT NULL, mode VARCHAR NOT NULL, soft INTEGER NOT NULL,
        version INTEGER NOT NULL, key_fields VARCHAR NOT NULL, fields VARCHAR NOT NULL,
        floor_epoch BIGINT, floor_commit BIGINT, floor_index BIGINT)""",
)


class Transaction(Protocol):
    """One transaction in a target."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...
    def has(self, table: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """What a target says of one of its tables. `fields`: contract types by name, as text."""

    table: str
    pipeline: str
    sink: str
    stream: str
    mode: str
    soft: bool
    version: int
    key: tuple[str, ...]
    fields: dict[str, str]
    floor: WATERMARK | None
    """The order of the last truncate: whatever is not above it is void."""

    @property
    def owner(self) -> str:
        return f"stream {self.stream} of sink {self.sink} in pipeline {self.pipeline}"


class Books:
    """The entries of one sink of one pipeline."""

    def __init__(self, pipeline: str, sink: str) -> None:
        self.pipeline = pipeline
        self.sink = sink

    def create(self, transaction: Transaction) -> None:
        for statement in _CREATE:
            transaction.execute(statement)

    def cursor(self, transaction: Transaction, stream: str) -> Cursor | None:
        if not transaction.has(CURSORS):
            return None
        rows = transaction.execute(
            f'SELECT incarnation, "offset" FROM {CURSORS} WHERE pipeline = ? AND sink = ? AND stream = ? '
            'ORDER BY "partition"',
            self._of(stream),
        )
        return Cursor(rows[0][0], tuple(int(row[1]) for row in rows)) if rows else None

    def move(self, transaction: Transaction, stream: str, cursor: Cursor | None) -> None:
        self.replace(transaction, stream, self.cursor(transaction, stream), cursor)

    def replace(self, transaction: Transaction, stream: str, stored: Cursor | None, cursor: Cursor | None) -> None:
        """`stored`: what `cursor` found in this transaction. Rows are updated in place, so that two writers of one
        cursor collide in the database, too."""
        if cursor is None or (stored is not None and len(stored.offsets) != len(cursor.offsets)):
            transaction.execute(
                f"DELETE FROM {CURSORS} WHERE pipeline = ? AND sink = ? AND stream = ?", self._of(stream)
            )
        if cursor is None:
            return
        for partition, offset in enumerate(cursor.offsets):
            if stored is not None and len(stored.offsets) == len(cursor.offsets):
                transaction.execute(
                    f'UPDATE {CURSORS} SET incarnation = ?, "offset" = ? '
                    'WHERE pipeline = ? AND sink = ? AND stream = ? AND "partition" = ?',
                    (cursor.incarnation, offset, *self._of(stream), partition),
                )
            else:
                transaction.execute(
                    f"INSERT INTO {CURSORS} VALUES (?, ?, ?, ?, ?, ?)",
                    (*self._of(stream), partition, cursor.incarnation, offset),
                )

    def entry(self, transaction: Transaction, table: str) -> Entry | None:
        if not transaction.has(STREAMS):
            return None
        rows = transaction.execute(f"SELECT * FROM {STREAMS} WHERE table_name = ?", (table,))
        return _entry(rows[0]) if rows else None

    def enter(self, transaction: Transaction, table: Table) -> None:
        contract = table.contract
        transaction.execute(
            f"INSERT INTO {STREAMS} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)",
            (table.name, *self._of(contract.stream), FORMAT, table.mode, int(table.soft), contract.version,
             json.dumps(table.key), fields_of(contract)),
        )  # fmt: skip

    def renew(self, transaction: Transaction, table: Table) -> None:
        """Record that the table has the shape of a newer contract."""
        transaction.execute(
            f"UPDATE {STREAMS} SET version = ?, fields = ? WHERE table_name = ?",
            (table.contract.version, fields_of(table.contract), table.name),
        )

    def raise_floor(self, transaction: Transaction, table: str, floor: WATERMARK) -> None:
        transaction.execute(
            f"UPDATE {STREAMS} SET floor_epoch = ?, floor_commit = ?, floor_index = ? WHERE table_name = ?",
            (*floor, table),
        )

    def remove(self, transaction: Transaction, entry: Entry) -> None:
        transaction.execute(f"DELETE FROM {STREAMS} WHERE table_name = ?", (entry.table,))
        self.move(transaction, entry.stream, None)

    def owns(self, entry: Entry, stream: str) -> bool:
        return (entry.pipeline, entry.sink, entry.stream) == self._of(stream)

    def _of(self, stream: str) -> tuple[str, str, str]:
        return self.pipeline, self.sink, stream


def fields_of(contract: Contract) -> str:
    return json.dumps({name: str(spec.parsed) for name, spec in contract.all_fields.items()})


def _entry(row: tuple[Any, ...]) -> Entry:
    name, pipeline, sink, stream, written, mode, soft, version, key, fields, *floor = row
    if written > FORMAT:
        raise SinkError(
            f"table {name} was written by a newer Headwater (format {written}, known is {FORMAT})",
            hint="upgrade Headwater",
        )
    return Entry(
        name, pipeline, sink, stream, mode, bool(soft), version, tuple(json.loads(key)), json.loads(fields),
        None if floor[0] is None else (int(floor[0]), int(floor[1]), int(floor[2])),
    )  # fmt: skip
