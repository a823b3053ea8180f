"""A source in memory: tables that a test writes to, captured as if by a log. The simplest that keeps each promise.

    database = MemoryDatabase()
    table = database.create("customer", pa.schema([("id", pa.int64()), ("name", pa.string())]), key=("id",))
    database.commit(Write(Op.CREATE, table, None, {"id": 1, "name": "Ada"}))

A configuration reaches it as `{url: "memory:", options: {database: database}}`.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headwater.config import SourceConfig, StreamConfig
from headwater.errors import ConfigError, SourceError
from headwater.model import (
    Batch,
    Changes,
    Note,
    Op,
    Order,
    Position,
    Reading,
    SourceState,
    TableId,
    changes_schema,
    utc_now,
)
from headwater.protocols import Capture, Guarantee, Source

Row = Mapping[str, Any]
_END = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Write:
    """One row-level change; `before` and `after` are whole rows."""

    op: Op
    table: TableId
    before: Row | None
    after: Row | None


@dataclass(slots=True)
class _Table:
    schema: pa.Schema
    key: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)


class MemoryDatabase:
    """Tables and the log of what was committed to them; any thread."""

    def __init__(self) -> None:
        self._tables: dict[TableId, _Table] = {}
        self._log: list[tuple[datetime.datetime, tuple[Write, ...]]] = []
        self.changed = threading.Condition()

    def create(self, name: str, schema: pa.Schema, key: Sequence[str] = ()) -> TableId:
        table = TableId("", name)
        self._tables[table] = _Table(schema, tuple(key))
        return table

    def commit(self, *writes: Write) -> int:
        """All or nothing; the number of the commit."""
        with self.changed:
            for write in writes:
                self._apply(write)
            self._log.append((utc_now(), writes))
            self.changed.notify_all()
            return len(self._log)

    def put(self, table: TableId, *rows: Row) -> int:
        """Insert rows, or update those whose key is there; one commit."""
        with self.changed:
            found = {self._key(table, row): row for row in self._tables[table].rows}
            before = [found.get(self._key(table, row)) for row in rows]
            writes = [
                Write(Op.CREATE if old is None else Op.UPDATE, table, old, row)
                for old, row in zip(before, rows, strict=True)
            ]
            return self.commit(*writes)

    def rows(self, table: TableId) -> list[Row]:
        with self.changed:
            return list(self._tables[table].rows)

    def table(self, table: TableId) -> tuple[pa.Schema, tuple[str, ...]]:
        """Its row schema and its key."""
        if table not in self._tables:
            raise SourceError(f"there is no table `{table}`", hint=f"tables are {', '.join(map(str, self._tables))}")
        return self._tables[table].schema, self._tables[table].key

    @property
    def head(self) -> int:
        """The number of the newest commit."""
        return len(self._log)

    def entry(self, number: int) -> tuple[datetime.datetime, tuple[Write, ...]]:
        """When a commit was made, and what it wrote."""
        return self._log[number - 1]

    def _key(self, table: TableId, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self._tables[table].key)

    def _apply(self, write: Write) -> None:
        rows = self._tables[write.table].rows
        if write.op is Op.TRUNCATE:
            rows.clear()
        if write.before is not None:
            rows.remove(write.before)
        if write.after is not None:
            rows.append(write.after)


def open_source(
    *, name: str, pipeline: str, config: SourceConfig, captures: Sequence[Capture], epoch: int, config_dir: str
) -> Source:
    database = config.options.get("database")
    if not isinstance(database, MemoryDatabase):
        raise ConfigError(f"source `{name}`: the option `database` is a MemoryDatabase")
    return MemorySource(name, database, captures, epoch)


def guarantee(config: StreamConfig, *, keyed: bool, key: tuple[str, ...] = ()) -> Guarantee:
    return Guarantee("exactly_once", "every", "seen")


class MemorySource:
    """See `protocols.Source`."""

    def __init__(self, name: str, database: MemoryDatabase, captures: Sequence[Capture], epoch: int) -> None:
        self.name = name
        self.broken: dict[str, SourceError] = {}
        self._database = database
        self._captures = {capture.stream: capture for capture in captures}
        self._epoch = epoch
        self._stopping = False
        self.confirmed: Position | None = None
        """For tests: the newest position that was confirmed."""

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        end = None if follow else self._database.head
        self._epoch = max(self._epoch, after.epoch if after is not None else 0)
        loads: dict[str, str] = json.loads(after.token) if after is not None else {}
        done = after.commit if after is not None else 0
        wanting = [c for c in self._captures.values() if loads.get(c.stream) != c.load.token]
        if wanting and not self._stopping:
            here = self._database.commit()  # a commit of its own, so that rows read have an order of their own
            if after is not None:
                yield from self._live(done, here - 1, [c for c in self._captures.values() if c not in wanting], loads)
            for capture in wanting:
                yield from self._load(capture, loads, here)
            done = here
        yield from self._live(done, end, list(self._captures.values()), loads)

    def _live(self, done: int, end: int | None, captures: list[Capture], loads: dict[str, str]) -> Iterator[Batch]:
        while self._wait(done, end):
            done += 1
            changes = tuple(self._changes(done, captures))
            yield Batch(changes, self._position(done, loads), _nbytes(changes))

    def confirm(self, position: Position) -> None:
        self.confirmed = position

    def state(self, stream: str) -> SourceState:
        capture = self._captures[stream]
        with self._database.changed:
            head, rows = self._database.head, self._database.rows(capture.table)
        return SourceState(Order(self._epoch, head, _END), iter([self._read(capture, rows, head, None)]))

    def stop(self) -> None:
        with self._database.changed:
            self._stopping = True
            self._database.changed.notify_all()

    def close(self) -> None:
        self.stop()

    def _wait(self, done: int, end: int | None) -> bool:
        """Whether there is a commit behind `done`; waits for one when `end` is None."""
        with self._database.changed:
            self._database.changed.wait_for(lambda: self._stopping or end is not None or self._database.head > done)
            limit = self._database.head if end is None else end
            return not self._stopping and done < limit

    def _load(self, capture: Capture, loads: dict[str, str], done: int) -> Iterator[Batch]:
        """Rows as they were at commit `done`, so that what follows in the log fits on."""
        load = capture.load
        before = self._position(done - 1, loads)
        loads[capture.stream] = load.token
        note = Note(capture.stream, "loaded", "all rows were read")
        rows = [] if load.skip else self._rows_at(capture, done)
        reading = None if load.reload is None else Reading(load.reload, Order(self._epoch, done - 1, _END), last=False)
        half = len(rows) // 2
        parts = [rows[:half], rows[half:]] if reading is not None else [rows]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            mark = None if reading is None else Reading(reading.reload, reading.since, last)
            changes = (self._read(capture, part, done, mark, first=number * half),)
            position = self._position(done, loads) if last else before
            yield Batch(changes, position, _nbytes(changes), (note,) if last else ())

    def _rows_at(self, capture: Capture, done: int) -> list[Row]:
        table = _Table(*self._database.table(capture.table))
        replay = MemoryDatabase()
        replay._tables[capture.table] = table
        for number in range(1, done + 1):
            for write in self._database.entry(number)[1]:
                if write.table == capture.table:
                    replay._apply(write)
        return table.rows

    def _read(
        self, capture: Capture, rows: Sequence[Row], commit: int, reading: Reading | None, first: int = 0
    ) -> Changes:
        schema = self._schema(capture)
        data = [
            self._record(Op.READ, commit, 2 * (first + number), None, _narrow(row, schema))
            for number, row in enumerate(rows)
        ]
        batch = pa.RecordBatch.from_pylist(data, schema=changes_schema(schema))
        return Changes(capture.table, batch, capture.stream, reading)

    def _changes(self, commit: int, captures: Sequence[Capture]) -> Iterator[Changes]:
        time, writes = self._database.entry(commit)
        for capture in captures:
            schema = self._schema(capture)
            data = [
                self._record(w.op, commit, 2 * number, _narrow(w.before, schema), _narrow(w.after, schema), time)
                for number, w in enumerate(writes)
                if w.table == capture.table
            ]
            if data:
                batch = pa.RecordBatch.from_pylist(data, schema=changes_schema(schema))
                yield Changes(capture.table, batch, capture.stream)

    def _record(
        self, op: Op, commit: int, index: int, before: Row | None, after: Row | None, *time: datetime.datetime
    ) -> dict[str, Any]:
        return {
            "_op": op.value,
            "_epoch": self._epoch,
            "_commit": commit,
            "_index": index,
            "_time": next(iter(time), None),
            "before": before,
            "after": after,
        }

    def _schema(self, capture: Capture) -> pa.Schema:
        schema, _ = self._database.table(capture.table)
        return pa.schema([schema.field(name) for name in capture.columns])

    def _position(self, commit: int, loads: Mapping[str, str]) -> Position:
        return Position(self._epoch, commit, json.dumps(loads).encode())


def _narrow(row: Row | None, schema: pa.Schema) -> Row | None:
    return None if row is None else {name: row[name] for name in schema.names}


def _nbytes(changes: Sequence[Changes]) -> int:
    return sum(int(c.data.nbytes) for c in changes)
