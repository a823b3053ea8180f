"""What every source must do: a suite that an adapter passes before it is called one.

    import pytest
    from headwater.testing.sources import SourceConformance

    class TestMySource(SourceConformance):
        @pytest.fixture
        def world(self, tmp_path):
            with MyWorld(tmp_path) as world:
                yield world

A `World` is a database with one table and a capture of it: it writes rows and opens sources, nothing else.
`worlds` gives those of the adapters that come with Headwater.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from headwater import plugins
from headwater.config import SourceConfig, StreamConfig
from headwater.model import Batch, Changes, Op, Order, Position, Reload, TableId
from headwater.protocols import Capture, Load, Source
from headwater.sources.memory import MemoryDatabase, Write

STREAM = "suite.row"
TABLE = TableId("", "row")
COLUMNS = ("id", "name")
WAIT = 30.0
"""Seconds after which a wait for another thread has failed."""

FIRST = Order(0, 0)

Rows = dict[int, str]


class World(Protocol):
    """A table `row (id, name)` with key `id`, captured into `suite.row`."""

    every: bool
    """Whether each intermediate state is promised."""

    def put(self, rows: Rows) -> None:
        """Insert or update, in one commit."""

    def delete(self, *ids: int) -> None:
        """In one commit."""

    def rows(self) -> Rows:
        """What the table holds now."""

    def open(self, load: Load) -> Source:
        """A source as after a restart of the process."""

    def close(self) -> None: ...


class MemoryWorld:
    every = True

    def __init__(self, directory: Path) -> None:
        self.database = MemoryDatabase()
        self.table = self.database.create("row", pa.schema([("id", pa.int64()), ("name", pa.string())]), ["id"])

    def put(self, rows: Rows) -> None:
        self.database.put(self.table, *({"id": key, "name": name} for key, name in rows.items()))

    def delete(self, *ids: int) -> None:
        gone = [row for row in self.database.rows(self.table) if row["id"] in ids]
        self.database.commit(*(Write(Op.DELETE, self.table, row, None) for row in gone))

    def rows(self) -> Rows:
        return {row["id"]: row["name"] for row in self.database.rows(self.table)}

    def open(self, load: Load) -> Source:
        config = SourceConfig.model_validate({"url": "memory:", "options": {"database": self.database}})
        return opened("memory", "log", config, StreamConfig(source="db", table="row", pattern="log"), load)

    def close(self) -> None:
        pass


class SqliteWorld:
    """`stream`: the stream's configuration beyond table and pattern."""

    def __init__(self, directory: Path, pattern: str, **stream: Any) -> None:
        self.every = pattern == "trigger"
        self._pattern = pattern
        self._stream = StreamConfig.model_validate({"source": "db", "table": "row", "pattern": pattern, **stream})
        self._clock = itertools.count()
        self.path = directory / "suite.db"
        self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, name TEXT, at TIMESTAMP NOT NULL)")
        self._connection.execute("CREATE INDEX row_at ON row (at)")

    def put(self, rows: Rows) -> None:
        second = next(self._clock)
        at = f"2024-01-01 {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO row VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET name = excluded.name, at = excluded.at",
                [(key, name, at) for key, name in rows.items()],
            )

    def delete(self, *ids: int) -> None:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM row WHERE id = ?", [(key,) for key in ids])

    def rows(self) -> Rows:
        return dict(self._connection.execute("SELECT id, name FROM row"))

    def open(self, load: Load) -> Source:
        config = SourceConfig.model_validate(f"sqlite:///{self.path}")
        return opened("sqlite", self._pattern, config, self._stream, load)

    def close(self) -> None:
        self._connection.close()


def opened(
    scheme: str, pattern: str, config: SourceConfig, stream: StreamConfig, load: Load, table: TableId = TABLE
) -> Source:
    """A source of the one capture that the suite knows."""
    capture = Capture(STREAM, table, COLUMNS, ("id",), stream, load)
    factory = plugins.source_factory(scheme, pattern)
    return factory(name="db/suite", pipeline="suite", config=config, captures=(capture,), epoch=1, config_dir=".")


def worlds(adapter: str, path: Path, url: str = "") -> dict[str, Callable[[], World]]:
    """The worlds of one adapter, by a name for each: an adapter may have several ways to capture.

    `path`: an empty directory; `url`: an empty database, for those of a server.
    """
    from headwater.testing.postgres_worlds import postgres_worlds

    def query(**stream: Any) -> Callable[[], World]:
        return lambda: SqliteWorld(path, "query", every=0.01, **stream)

    known: dict[str, dict[str, Callable[[], World]]] = {
        "memory+log": {"log": lambda: MemoryWorld(path)},
        "sqlite+trigger": {"trigger": lambda: SqliteWorld(path, "trigger")},
        "sqlite+query": {
            "bulk": query(page_size=2),
            "timestamp": query(cursor="at", page_size=2, look_back=2, reconcile_deletes=0),
            "timestamp without look-back": query(cursor="at", page_size=3, look_back=0, reconcile_deletes=0),
            "id": query(cursor="id", reconcile_deletes=0),
            "sql": query(
                table=None,
                query="SELECT id, name, at FROM row WHERE at > :cursor",
                key=("id",),
                cursor="at",
                look_back=3,
                reconcile_deletes=0,
            ),
        },
        **postgres_worlds(url),
    }
    return known[adapter]


@dataclasses.dataclass(slots=True)
class Copy:
    """What a stream holds, as bus and router would have it: batch and position are taken in one step.

    Rows are folded by order. It checks, on the way, what is promised of every batch.
    """

    rows: Rows = dataclasses.field(default_factory=dict)
    position: Position | None = None
    log: list[tuple[str, int, str | None]] = dataclasses.field(default_factory=list)
    """Letter, id, name of every change that is not part of a reading."""
    orders: dict[int, Order] = dataclasses.field(default_factory=dict)
    """Of the newest change of each id."""
    newest: Order = FIRST
    staged: Rows | None = None

    def take(self, batch: Batch) -> None:
        for changes in batch.changes:
            self._take(changes)
        before, after = self.position, batch.position
        if before is not None:
            assert (after.epoch, after.commit) >= (before.epoch, before.commit), "positions rise"
        assert self.newest <= Order(after.epoch, after.commit, 2**32), "a position is not before its changes"
        self.position = after

    def copied(self) -> Copy:
        return dataclasses.replace(self, rows=dict(self.rows), log=list(self.log), orders=dict(self.orders))

    def restarted(self) -> None:
        """A crash leaves nothing of a reading that was under way."""
        self.staged = None

    def _take(self, changes: Changes) -> None:
        if changes.reading is not None:
            self._stage(changes)
            return
        for row in changes.data.to_pylist():
            order, op = Order(row["_epoch"], row["_commit"], row["_index"]), Op(row["_op"])
            assert order.index % 2 == 0, "odd numbers belong to the mapping"
            if op is not Op.READ:
                assert order > self.newest, f"{order} comes after {self.newest}"
                self.newest = order
            self._change(op, order, row["before"], row["after"])

    def _stage(self, changes: Changes) -> None:
        """A reading replaces all rows but those that a later change has overtaken."""
        assert changes.reading is not None
        self.staged = {} if self.staged is None else self.staged
        self.staged |= {row["after"]["id"]: row["after"]["name"] for row in changes.data.to_pylist()}
        if changes.reading.last:
            overtaken = {key for key, order in self.orders.items() if order > changes.reading.since}
            kept = {key: name for key, name in self.rows.items() if key in overtaken}
            self.rows = kept | {key: name for key, name in self.staged.items() if key not in overtaken}
            self.staged = None

    def _change(self, op: Op, order: Order, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        values = after or before or {}
        key = values["id"]
        self.log.append((op.letter, key, None if after is None else after["name"]))
        known = self.orders.get(key, FIRST)
        assert order != known, f"{order} of {key} came twice"
        if order > known:
            self.orders[key] = order
            self.rows.pop(key, None)
            if after is not None:
                self.rows[key] = after["name"]


class SourceConformance:
    """Tests of the promises in `protocols.Source`; `world` is a fixture."""

    initial = Load("initial")

    def test_loads_what_is_there_and_then_follows_it(self, world: World) -> None:
        copy = Copy()
        for write in script(world):
            write()
            self.catch_up(world, copy)
            assert copy.rows == world.rows()

    def test_nothing_is_lost_or_doubled_by_a_restart_at_any_batch(self, world: World) -> None:
        for write in script(world):
            write()
        crashing, steady = Copy(), Copy()
        self.catch_up_crashing(world, crashing)
        self.catch_up(world, steady)
        assert crashing.rows == steady.rows == world.rows()
        assert _told(crashing.log) == _told(steady.log)

    def test_writes_between_batches_and_restarts_arrive(self, world: World) -> None:
        copy = Copy()
        world.put(dict.fromkeys(range(5), "first"))
        for write in script(world):
            self.catch_up(world, copy, batches=1)
            write()
        self.catch_up_crashing(world, copy)
        self.catch_up(world, copy)  # a delete within the load is seen by the first comparison after it
        assert copy.rows == world.rows()

    def test_what_was_not_appended_comes_again(self, world: World) -> None:
        copy = Copy()
        world.put({1: "a", 2: "b"})
        self.catch_up(world, copy)
        world.put({2: "B", 3: "c"})
        copy.log.clear()
        lost, again = copy.copied(), copy
        self.catch_up(world, lost)
        self.catch_up(world, again)
        assert again.rows == lost.rows == {1: "a", 2: "B", 3: "c"}
        assert again.log == lost.log

    def test_every_state_arrives_where_it_is_promised(self, world: World) -> None:
        copy = Copy()
        self.catch_up(world, copy)
        for name in ("a", "b", "c"):
            world.put({1: name})
        world.delete(1)
        self.catch_up(world, copy)
        live = [(letter, name) for letter, _, name in copy.log if letter != "r"]
        if world.every:
            assert live == [("c", "a"), ("u", "b"), ("u", "c"), ("d", None)]
        assert copy.rows == {}

    def test_a_catch_up_ends_at_a_place(self, world: World) -> None:
        """Although somebody goes on writing."""
        copy = Copy()
        world.put(dict.fromkeys(range(10), "a"))
        with contextlib.closing(world.open(self.initial)) as source:
            for number, batch in enumerate(source.read(None, follow=False)):
                copy.take(batch)
                assert number < 100, "it never ends"
                world.put({100 + number: "later"})
        assert set(range(10)) <= set(copy.rows)
        self.catch_up(world, copy)
        assert copy.rows == world.rows()

    def test_nothing_new_is_nothing_new(self, world: World) -> None:
        copy = Copy()
        world.put({1: "a"})
        self.catch_up(world, copy)
        copy.log.clear()
        self.catch_up(world, copy)
        assert copy.log == []
        assert copy.rows == {1: "a"}

    def test_it_follows_and_stops(self, world: World) -> None:
        copy = Copy()
        world.put({1: "a"})
        with following(world.open(self.initial), None) as batches:
            take_until(batches, copy, lambda: copy.rows == {1: "a"})
            world.put({2: "b"})
            world.delete(1)
            take_until(batches, copy, lambda: copy.rows == {2: "b"})

    def test_a_source_that_was_stopped_yields_nothing(self, world: World) -> None:
        world.put({1: "a"})
        with contextlib.closing(world.open(self.initial)) as source:
            source.stop()
            assert [batch for batch in source.read(None, follow=True) if len(batch)] == []

    def test_confirmed_positions_are_resumed_from(self, world: World) -> None:
        copy = Copy()
        for write in script(world):
            write()
            with contextlib.closing(world.open(self.initial)) as source:
                for batch in source.read(copy.position, follow=False):
                    copy.take(batch)
                    source.confirm(batch.position)
            assert copy.rows == world.rows()

    def test_skip_begins_with_what_comes(self, world: World) -> None:
        copy, load = Copy(), Load("initial", skip=True)
        world.put({1: "a", 2: "b"})
        self.catch_up(world, copy, load=load, compared=False)
        world.put({2: "B", 3: "c"})
        self.catch_up(world, copy, load=load)
        assert {2: "B", 3: "c"}.items() <= copy.rows.items()

    def test_a_load_is_carried_out_once_for_each_token(self, world: World) -> None:
        copy = Copy()
        world.put({1: "a"})
        self.catch_up(world, copy)
        world.put({2: "b"})
        load = Load("again", Reload.REBUILD)
        marked = self.catch_up(world, copy, load=load)
        assert [m.reload for m in marked][:1] == [Reload.REBUILD]
        assert [m.last for m in marked if m.reload is Reload.REBUILD].count(True) == 1
        assert copy.rows == {1: "a", 2: "b"}
        marked = self.catch_up(world, copy, load=load)
        assert [m for m in marked if m.reload is Reload.REBUILD] == []

    def test_a_reading_that_was_cut_off_begins_again(self, world: World) -> None:
        copy = Copy()
        world.put(dict.fromkeys(range(6), "a"))
        self.catch_up(world, copy)
        load = Load("again", Reload.DIFFERENCE)
        self.catch_up(world, copy, load=load, batches=1)
        self.catch_up(world, copy, load=load)
        assert copy.rows == dict.fromkeys(range(6), "a")

    def test_state_is_every_row_beside_a_running_read(self, world: World) -> None:
        world.put({1: "a", 2: "b", 3: "c"})
        copy = Copy()
        source = world.open(self.initial)
        with following(source, None) as batches:
            take_until(batches, copy, lambda: len(copy.rows) == 3)
            state = source.state(STREAM)
            found = [row for changes in state.changes for row in changes.data.to_pylist()]
        assert {row["after"]["id"]: row["after"]["name"] for row in found} == {1: "a", 2: "b", 3: "c"}
        assert {row["_op"] for row in found} == {Op.READ}

    # how the suite reads

    def catch_up(
        self, world: World, copy: Copy, *, load: Load | None = None, batches: int | None = None, compared: bool = True
    ) -> list[Any]:
        """Read on from the copy's position; the marks of readings. `batches`: cut off after so many."""
        marks = []
        copy.restarted()
        with contextlib.closing(world.open(load or self.initial)) as source:
            with contextlib.closing(source.read(copy.position, follow=False)) as reading:  # type: ignore[type-var]
                for batch in itertools.islice(reading, batches):
                    marks += [c.reading for c in batch.changes if c.reading is not None]
                    if compared:
                        copy.take(batch)
                    else:
                        copy.position = batch.position
        return marks

    def catch_up_crashing(self, world: World, copy: Copy) -> None:
        """A restart after each batch that brought the position on; a reading comes whole."""
        for _ in range(1000):
            before = copy.position
            copy.restarted()
            with contextlib.closing(world.open(self.initial)) as source:
                with contextlib.closing(source.read(before, follow=False)) as reading:  # type: ignore[type-var]
                    whole = _take_one(reading, copy)
            if whole:
                return
        raise AssertionError("the source never comes to an end")


def _told(log: list[tuple[str, int, str | None]]) -> list[tuple[str, int, str | None]]:
    """Rows that were read first, by id: a load that goes on after a crash may take another way through the table."""
    reads = [entry for entry in log if entry[0] == "r"]
    return [*sorted(reads), *(entry for entry in log if entry[0] != "r")]


def _take_one(reading: Iterator[Batch], copy: Copy) -> bool:
    """Take what brings the position on. True at the end, and after a reading: each restart makes that anew."""
    before = copy.position
    for batch in reading:
        copy.take(batch)
        if copy.staged is None and copy.position != before:
            return any(c.reading is not None for c in batch.changes)
    return True


def script(world: World) -> list[Callable[[], None]]:
    """Writes of every kind, a commit each."""
    return [
        lambda: world.put({1: "a", 2: "b", 3: "c"}),
        lambda: world.put({2: "B"}),
        lambda: world.put({4: "d", 5: "e", 1: "A"}),
        lambda: world.delete(3),
        lambda: world.put(dict.fromkeys(range(10, 20), "many")),
        lambda: world.delete(1, 10, 11),
        lambda: world.put({3: "again", 12: "more"}),
    ]


@contextlib.contextmanager
def following(source: Source, after: Position | None) -> Iterator[queue.Queue[Batch | BaseException]]:
    """`read` with `follow` in a thread of its own; at the end it must come back from `stop`."""
    batches: queue.Queue[Batch | BaseException] = queue.Queue()

    def run() -> None:
        try:
            for batch in source.read(after, follow=True):
                batches.put(batch)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread, which raises it
            batches.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield batches
    finally:
        source.stop()
        thread.join(WAIT)
        source.close()
        assert not thread.is_alive(), "stop() wakes a waiting read"


def take_until(batches: queue.Queue[Batch | BaseException], copy: Copy, reached: Callable[[], bool]) -> None:
    while not reached():
        batch = batches.get(timeout=WAIT)
        if isinstance(batch, BaseException):
            raise batch
        copy.take(batch)


def known() -> Sequence[tuple[str, str]]:
    """(adapter, world) of every source that comes with Headwater."""
    return [(adapter, name) for adapter in plugins.known("sources") for name in worlds(adapter, Path())]
