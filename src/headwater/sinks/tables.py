"""A sink whose target is a database: one table per stream, the cursor in the same transaction as the rows.

What differs between databases is a `Database`: how a transaction is opened and how rows are put into a table. All
else, from the cursor's compare-and-set to what happens when a unique index objects, is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from headwater.config import SinkConfig
from headwater.contracts.model import Contract
from headwater.contracts.types import FieldType
from headwater.errors import RowRefused, SinkError
from headwater.faults import failpoint
from headwater.mapping.evolve import conform, default_scalar
from headwater.mapping.fold import fold
from headwater.model import Cursor, Events
from headwater.protocols import Guarantee, SinkState
from headwater.sinks import placing, shaping
from headwater.sinks.books import STREAMS, Books, Entry, Transaction
from headwater.sinks.options import Options
from headwater.sinks.upsert import Table, quoted

EXPIRY_EVERY = 3600.0
"""Seconds between two looks for guards that have served their time."""


class Refused(Exception):
    """The target refuses some row of a batch; the transaction is void."""


class Database(Protocol):
    """How rows get into one kind of database. Data has the columns of `table.columns`, or the key and the order.

    Errors of the target are translated: `Refused` for what single rows are to blame for, `Busy` and `NotConnected`
    for what goes away, `SinkError` for the rest.
    """

    def transaction(self) -> AbstractContextManager[Any]:
        """Commits at the end; on an exception nothing of it is left."""

    def snapshot(self) -> AbstractContextManager[Any]:
        """A transaction that reads, on a connection of its own."""

    def stamp(self) -> object:
        """Equal as long as nobody has written to the target; None if that cannot be known."""

    def type_of(self, parsed: FieldType) -> str: ...
    def create(self, transaction: Any, table: Table) -> None: ...
    def add_column(self, transaction: Any, table: Table, name: str, default: pa.Scalar | None) -> None: ...
    def widen(self, transaction: Any, table: Table, name: str) -> None: ...
    def append(self, transaction: Any, table: Table, data: pa.RecordBatch) -> None: ...
    def upsert(self, transaction: Any, table: Table, data: pa.RecordBatch) -> None: ...
    def patch(self, transaction: Any, table: Table, data: pa.RecordBatch, missing: dict[str, pa.Array]) -> pa.Array:
        """Update rows that lack columns (`missing`: which rows lack it, by column). Returns the numbers of those that
        found no row to be completed from."""

    def stale(self, transaction: Any, table: Table, data: pa.RecordBatch) -> pa.Array:
        """Which rows are no newer than the table's: partial rows must not be completed from them."""

    def delete(self, transaction: Any, table: Table, data: pa.RecordBatch) -> None: ...
    def expire(self, transaction: Any, table: Table, before: float) -> None: ...
    def read(self, transaction: Any, table: Table) -> Iterator[pa.RecordBatch]: ...
    def close(self) -> None: ...


class TableSink:
    """`Sink` over a `Database`."""

    def __init__(self, name: str, pipeline: str, config: SinkConfig, database: Database) -> None:
        self.name = name
        self.guarantee = Guarantee("exactly_once")
        self._config = config
        self._options = Options.of(name, config)
        self._database = database
        self._books = Books(pipeline, name)
        self._tables: dict[str, Table] = {}
        self._floors: dict[str, placing.WATERMARK | None] = {}
        self._believed: dict[str, Cursor | None] = {}
        self._stamp: object = None
        self._expired: dict[str, float] = {}

    # the target's shape

    def prepare(self, contract: Contract) -> None:
        table = Table(contract, self._config.mode, self._config.deletes == "soft")
        shaping.check_keyed(self.name, table)
        with self._database.transaction() as transaction:
            self._books.create(transaction)
            entry = self._books.entry(transaction, table.name)
            if entry is None:
                self._create(transaction, table)
            else:
                self._adopt(transaction, table, entry)
        self._tables[contract.stream] = table
        self._floors[contract.stream] = None if entry is None else entry.floor

    def _create(self, transaction: Transaction, table: Table) -> None:
        if transaction.has(table.name):
            raise SinkError(
                f"sink {self.name}: stream {table.contract.stream} needs a table `{table.name}`, and the target has "
                "one that Headwater did not make",
                hint="rename or drop that table, or give the sink another file",
            )
        self._books.move(transaction, table.contract.stream, None)
        self._database.create(transaction, table)
        self._books.enter(transaction, table)

    def _adopt(self, transaction: Transaction, table: Table, entry: Entry) -> None:
        stream = table.contract.stream
        if not self._books.owns(entry, stream):
            raise SinkError(
                f"sink {self.name}: stream {stream} needs the table `{table.name}`, which belongs to {entry.owner}",
                hint="rename the stream, or give one of the two sinks another file",
            )
        if not transaction.has(table.name):
            raise SinkError(
                f"sink {self.name}: table `{table.name}` of stream {stream} was dropped behind Headwater's back",
                hint=f"`headwater sink rebuild {self.name} {stream}` makes and fills it again",
            )
        shaping.check_same(self.name, table, (entry.mode, entry.soft, entry.key))
        if entry.version <= table.contract.version:
            self._evolve(transaction, table, entry)

    def _evolve(self, transaction: Transaction, table: Table, entry: Entry) -> None:
        """New columns are filled as `conform` fills older events; types only ever widen; nothing is dropped."""
        for name, spec in table.contract.all_fields.items():
            if name not in entry.fields:
                default = None if spec.default is None else default_scalar(spec)
                self._database.add_column(transaction, table, name, default)
        for name in shaping.check_widening(self.name, table.contract, entry.fields):
            self._database.widen(transaction, table, name)
        self._books.renew(transaction, table)

    # the cursor

    def cursor(self, stream: str) -> Cursor | None:
        stamp = self._database.stamp()
        if stream not in self._believed or stamp is None or stamp != self._stamp:
            self._believed[stream] = self._stored(stream)
            self._stamp = self._database.stamp()
        return self._believed[stream]

    def _stored(self, stream: str) -> Cursor | None:
        with self._database.snapshot() as transaction:
            return self._books.cursor(transaction, stream)

    def move(self, stream: str, cursor: Cursor | None) -> None:
        with self._database.transaction() as transaction:
            self._books.create(transaction)
            self._books.move(transaction, stream, cursor)
        self._note(stream, cursor)

    def clear(self, stream: str) -> None:
        """Drops the table; one that is prepared is made again at once."""
        name = placing.table_name(stream)
        with self._database.transaction() as transaction:
            entry = self._books.entry(transaction, name)
            if entry is not None and self._books.owns(entry, stream):
                transaction.execute(f"DROP TABLE IF EXISTS {quoted(name)}")
                transaction.execute(f"DROP TABLE IF EXISTS {quoted('headwater_deleted_' + name)}")
                self._books.remove(transaction, entry)
            failpoint("sink.clear.before_commit")
        self._note(stream, None)
        if (table := self._tables.pop(stream, None)) is not None:
            self.prepare(table.contract)

    def _note(self, stream: str, cursor: Cursor | None) -> None:
        self._believed[stream] = cursor
        self._stamp = self._database.stamp()

    # writing

    def write(self, events: Events) -> None:
        table = shaping.check_version(self.name, self._tables.get(events.stream), events)
        try:
            self._write_whole(table, events)
        except Refused as refusal:
            self._write_parts(table, events, refusal)

    def _write_parts(self, table: Table, events: Events, refusal: Refused) -> None:
        """Half by half, down to single commits and single rows where it must be: rows that exchange a unique value
        pass in the order of the source, and what the target does not object to stays in large transactions."""
        if not placing.divisible(events):
            raise self._refused(table, events, refusal) from refusal
        for half in placing.halved(events):
            try:
                self._write_whole(table, half)
            except Refused as objection:
                self._write_parts(table, half, objection)

    def _refused(self, table: Table, events: Events, refusal: Refused) -> RowRefused:
        rows = "" if len(events) == 1 else f"one of {len(events)} rows from "
        named = rows + placing.named_row(events, table.key)
        return RowRefused(
            f"sink {self.name}, {named}: table `{table.name}` refuses it: {refusal}",
            hint="everything before it is written; correct the table (a unique index of your own?) and it goes on",
        )

    def _write_whole(self, table: Table, events: Events) -> None:
        with self._database.transaction() as transaction:
            stored = self._books.cursor(transaction, events.stream)
            if not placing.moves(self.name, events, stored, self._believed.get(events.stream, stored)):
                self._believed[events.stream] = events.cursor
                return
            if events.cursor is not None:
                self._books.replace(transaction, events.stream, stored, events.cursor)
            failpoint("sink.write.after_cursor")
            floor = self._apply(transaction, table, events)
            failpoint("sink.write.before_commit")
        failpoint("sink.write.after_commit")
        self._floors[events.stream] = floor
        if events.cursor is not None:
            self._note(events.stream, events.cursor)

    def _apply(self, transaction: Any, table: Table, events: Events) -> placing.WATERMARK | None:
        """Returns the floor that holds afterwards."""
        data = conform(events.data, table.contract, events.type)
        if not table.current:
            self._database.append(transaction, table, shaping.history(table, data, events))
            return None
        floor = self._floors[events.stream]
        if floor is not None:
            data = data.filter(placing.above(data, floor))
        if "_unchanged" in data.schema.names:
            data = data.filter(pc.invert(self._database.stale(transaction, table, data)))
        data = fold(data, table.key)
        if (truncation := placing.truncation(data)) is not None:
            floor, data = truncation, data.slice(1)
            self._truncate(transaction, table, floor)
        deleted = placing.deletes(data)
        self._database.delete(transaction, table, shaping.deleted(table, data.filter(deleted)))
        failpoint("sink.write.after_deletes")
        self._upsert(transaction, table, data.filter(pc.invert(deleted)), events)
        self._expire(transaction, table)
        return floor

    def _truncate(self, transaction: Any, table: Table, floor: placing.WATERMARK) -> None:
        at = "(_epoch, _commit, _index) <= (?, ?, ?)"
        transaction.execute(f"DELETE FROM {quoted(table.name)} WHERE {at}", floor)
        self._books.raise_floor(transaction, table.name, floor)

    def _upsert(self, transaction: Any, table: Table, data: pa.RecordBatch, events: Events) -> None:
        if "_unchanged" not in data.schema.names:
            self._database.upsert(transaction, table, shaping.rows(table, data))
            return
        partial = pc.greater(pc.fill_null(pc.list_value_length(data.column("_unchanged")), 0), 0)
        self._database.upsert(transaction, table, shaping.rows(table, data.filter(pc.invert(partial))))
        self._patch(transaction, table, data.filter(partial), events)

    def _patch(self, transaction: Any, table: Table, data: pa.RecordBatch, events: Events) -> None:
        missing = shaping.lacking(data, list(table.contract.fields))
        homeless = self._database.patch(transaction, table, shaping.rows(table, data), missing)
        if not len(homeless):
            return
        row = homeless[0].as_py()
        names = [name for name, lacks in missing.items() if lacks[row].as_py()]
        named = placing.named_row(replace(events, data=data), table.key, row)
        raise RowRefused(
            f"sink {self.name}, {named}: the event does not carry {', '.join(names)}, and table "
            f"`{table.name}` has no row of that key to keep them from",
            hint=f"the sink lacks earlier events: `headwater sink rebuild {self.name} {events.stream}`",
        )

    def _expire(self, transaction: Any, table: Table) -> None:
        now = time.time()
        if table.guarded and now - self._expired.get(table.name, 0.0) > EXPIRY_EVERY:
            self._database.expire(transaction, table, now - self._options.guards)
            self._expired[table.name] = now

    # reading

    def state(self, stream: str) -> SinkState:
        reading = self._read(stream)
        return SinkState(next(reading), reading)

    def _read(self, stream: str) -> Iterator[Cursor | pa.RecordBatch | None]:
        """The cursor, then the rows: one generator, so that whoever drops it closes the transaction."""
        with self._database.snapshot() as transaction:
            yield self._books.cursor(transaction, stream)
            table = self._tables.get(stream)
            if table is None:
                raise shaping.unprepared(self.name, stream)
            if transaction.has(STREAMS) and transaction.has(table.name):
                yield from self._database.read(transaction, table)

    def close(self) -> None:
        self._database.close()
