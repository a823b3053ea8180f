"""A SQLite database under trigger capture, and a replica of each stream that does what a bus and its router do.

The replica applies a batch and keeps its position in one step, as an append does; it checks the promises of
`protocols.Source` on the way, and fails on the first change that breaks one.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from headwater.config import SourceConfig, StreamConfig
from headwater.model import Batch, Changes, Note, Op, Order, Position, Reload, TableId
from headwater.protocols import Capture, Load
from headwater.sources.trigger_sqlite import TriggerSource, open_source

Row = dict[str, Any]
PIPELINE = "test-1"


def capture(
    table: str,
    columns: Sequence[str],
    key: Sequence[str],
    *,
    stream: str | None = None,
    load: Load | None = None,
) -> Capture:
    config = StreamConfig(source="app", table=table, pattern="trigger")
    return Capture(
        stream or f"s.{table}", TableId("", table), tuple(columns), tuple(key), config, load or Load("initial")
    )


@dataclasses.dataclass(slots=True)
class Replica:
    """One stream: its newest event a key, guarded by order, as a sink in mode `current` keeps it."""

    key: tuple[str, ...]
    columns: tuple[str, ...]
    rows: dict[tuple[Any, ...], Row] = dataclasses.field(default_factory=dict)
    orders: dict[tuple[Any, ...], Order] = dataclasses.field(default_factory=dict)
    history: list[tuple[str, Row | None, Row | None]] = dataclasses.field(default_factory=list)
    seen: set[tuple[Order, str]] = dataclasses.field(default_factory=set)
    staged: dict[tuple[Any, ...], Row] | None = None
    invalid: list[list[Row]] = dataclasses.field(default_factory=list)

    def apply(self, changes: Changes) -> None:
        if changes.reading is not None:
            self._stage(changes)
            return
        for item in changes.data.to_pylist():
            item = {**item, "before": self._mapped(item["before"]), "after": self._mapped(item["after"])}
            order = Order(item["_epoch"], item["_commit"], item["_index"])
            letter = Op(item["_op"]).letter
            assert (order, letter) not in self.seen, f"{order} {letter} came twice"
            self.seen.add((order, letter))
            self._event(letter, order, item["before"], item["after"])
            if item.get("_invalid"):
                self.invalid.append(item["_invalid"])

    def _mapped(self, row: Row | None) -> Row | None:
        """The columns that this stream's mapping reads."""
        return None if row is None else {name: row[name] for name in self.columns}

    def _event(self, letter: str, order: Order, before: Row | None, after: Row | None) -> None:
        self.history.append((letter, before, after))
        if not self.key:
            return
        if letter == "r":
            assert after is not None
            assert self._key(after) not in self.rows, f"read a row that the stream had already: {after}"
        if before is not None and (after is None or self._key(before) != self._key(after)):
            self._set(self._key(before), order, None)
        if after is not None:
            self._set(self._key(after), order, after)

    def _stage(self, changes: Changes) -> None:
        reading = changes.reading
        assert reading is not None
        self.staged = {} if self.staged is None else self.staged
        for item in changes.data.to_pylist():
            item = {**item, "after": self._mapped(item["after"])}
            assert item["_op"] == Op.READ
            assert item["_commit"] == reading.since.commit
            key = self._key(item["after"])
            assert key not in self.staged, f"{key} is in one reading twice"
            self.staged[key] = item["after"]
        if reading.last:
            self._settle(reading.since, reading.reload)

    def _settle(self, since: Order, reload: Reload) -> None:
        staged, self.staged = self.staged or {}, None
        for key in {*staged, *self.rows}:
            overtaken = key in self.orders and self.orders[key] > since
            if not overtaken and (staged.get(key) != self.rows.get(key) or reload is Reload.REBUILD):
                letter = "d" if key not in staged else "u" if key in self.rows else "c"
                self.history.append((letter, self.rows.get(key), staged.get(key)))
                self._set(key, since, staged.get(key))

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)

    def _set(self, key: tuple[Any, ...], order: Order, row: Row | None) -> None:
        if key in self.orders and self.orders[key] > order:
            return
        self.orders[key] = order
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row


class World:
    """`app` is the application's connection; `replicas` and `position` are what a bus would have made durable."""

    def __init__(self, path: Path, script: str = "", *, journal: str = "wal") -> None:
        self.path = path
        self.app = sqlite3.connect(path, isolation_level=None)
        self.app.execute(f"PRAGMA journal_mode = {journal}")
        self.app.execute("PRAGMA synchronous = OFF")
        self.app.executescript(script)
        self.captures: list[Capture] = []
        self.replicas: dict[str, Replica] = {}
        self.position: Position | None = None
        self.notes: list[Note] = []
        self.batches: list[Batch] = []
        self.epoch = 0
        self.options: dict[str, Any] = {}

    def capture(self, *captures: Capture) -> None:
        self.captures = list(captures)
        for one in captures:
            self.replicas.setdefault(one.stream, Replica(one.key, one.columns)).columns = one.columns

    def source(self, pipeline: str = PIPELINE) -> TriggerSource:
        return open_source(
            name="app/trigger",
            pipeline=pipeline,
            config=SourceConfig(url=SecretStr(f"sqlite:///{self.path}"), options=self.options),
            captures=self.captures,
            epoch=self.epoch,
            config_dir=str(self.path.parent),
        )

    def catch_up(self, *, stop_after: int | None = None, confirm: bool = True) -> list[Batch]:
        """Run until everything is read, or die after so many batches: what was not appended is lost."""
        source = self.source()
        for replica in self.replicas.values():
            replica.staged = None
        batches = []
        try:
            for number, batch in enumerate(source.read(self.position, follow=False)):
                if number == stop_after:
                    break
                self.append(batch, source.broken)
                batches.append(batch)
                if confirm:
                    source.confirm(batch.position)
        finally:
            source.close()
        return batches

    def append(self, batch: Batch, broken: Collection[str] = ()) -> None:
        """What `Bus.append` does, with the router's part."""
        if self.position is not None:
            here = (self.position.epoch, self.position.commit)
            assert (batch.position.epoch, batch.position.commit) >= here, "positions rise"
        for changes in batch.changes:
            for one in self.captures:
                if one.stream in broken or one.table != changes.table:
                    continue  # its mapping would find a column missing, and the stream stop
                if changes.stream in (None, one.stream):
                    self.replicas[one.stream].apply(changes)
        self.position = batch.position
        self.notes += batch.notes
        self.batches.append(batch)

    def rows(self, table: str, columns: Sequence[str], key: Sequence[str]) -> dict[tuple[Any, ...], Row]:
        names = ", ".join('"' + c.replace('"', '""') + '"' for c in columns)
        quoted = '"' + table.replace('"', '""') + '"'
        rows = [dict(zip(columns, row, strict=True)) for row in self.app.execute(f"SELECT {names} FROM {quoted}")]
        return {tuple(row[name] for name in key): row for row in rows}

    def check(self) -> None:
        """Every stream's replica is its table, value by value."""
        for one in self.captures:
            assert self.replicas[one.stream].rows == self.rows(one.table.name, one.columns, one.key), one.stream

    def history(self, stream: str) -> list[tuple[str, Row | None, Row | None]]:
        """What was appended since the last call."""
        found, self.replicas[stream].history = self.replicas[stream].history, []
        return found

    def close(self) -> None:
        self.app.close()


class Following:
    """A source that follows in a thread of its own, appending to the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._source = world.source()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for batch in self._source.read(self._world.position, follow=True):
                self._world.append(batch)
                self._source.confirm(batch.position)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._source.stop()
        self._thread.join()
        self._source.close()
        if self.error is not None:
            raise self.error

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for a condition; polls, with a deadline."""
        done = threading.Event()
        for _ in range(int(seconds / 0.005)):
            if condition() or self.error is not None:
                break
            done.wait(0.005)
        assert self.error is None, self.error
        assert condition(), "the condition did not come true in time"


def worlds(path: Path, script: str = "", *, journal: str = "wal") -> Iterator[World]:
    world = World(path, script, journal=journal)
    try:
        yield world
    finally:
        world.close()
