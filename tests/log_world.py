"""A PostgreSQL database under log capture, and what a reader makes of its batches, for the tests of the log source."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from headwater.config import SourceConfig, StreamConfig
from headwater.drivers.postgres import connect, execute
from headwater.model import Batch, Note, Op, Position, TableId
from headwater.protocols import Capture, Load
from headwater.sources.log_postgres import LogSource, Names, open_source
from headwater.sources.log_postgres.position import Place, place_of

WAIT = 120.0
"""Seconds; only what never comes is waited for so long, on however busy a machine."""
NAMES = Names("test", "db")

Row = dict[str, Any]


def captured(
    table: str, columns: str, key: str = "id", *, stream: str = "", load: Load | None = None, kind: str = "fact"
) -> Capture:
    """`columns`, `key`: names separated by spaces."""
    schema, _, name = table.rpartition(".")
    return Capture(
        stream or f"s.{name}",
        TableId(schema or "public", name),
        tuple(columns.split()),
        tuple(key.split()),
        StreamConfig(source="db", table=table, pattern="log"),
        load or Load("initial"),
        kind,
        identifying=tuple(key.split()),
    )


class World:
    """`sql` runs statements, each a transaction of its own. `taken`: every change that came, in sequence."""

    def __init__(self, url: str, *captures: Capture, directory: str = "/tmp", **options: Any) -> None:
        self.url = url
        self.captures = captures
        self.options = options
        self.directory = directory
        self.position: Position | None = None
        self.taken: list[Row] = []
        self.notes: list[Note] = []
        self.batches = 0

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        with connect(self.url, application="test") as connection:
            for statement in statements:
                rows = execute(connection, statement)
        return rows

    def open(self, **options: Any) -> LogSource:
        config = SourceConfig.model_validate({"url": self.url, "options": {**self.options, **options}})
        return open_source(
            name="db/log",
            pipeline="test",
            config=config,
            captures=self.captures,
            epoch=1,
            config_dir=self.directory,
        )

    @property
    def place(self) -> Place:
        assert self.position is not None
        return place_of(self.position, "db/log")

    def take(self, batch: Batch) -> list[Row]:
        """As a bus would: changes and position in one step."""
        assert self.position is None or self.position.commit <= batch.position.commit, "positions rise"
        rows = [
            {"stream": changes.stream, "table": changes.table, **row}
            for changes in batch.changes
            for row in changes.data.to_pylist()
        ]
        self.taken += rows
        self.notes += batch.notes
        self.position = batch.position
        self.batches += 1
        return rows

    def catch_up(self, *, confirm: bool = True, batches: int | None = None, **options: Any) -> list[Row]:
        """What comes until the log's end; `batches`: cut off after so many, as by a crash."""
        found: list[Row] = []
        with contextlib.closing(self.open(**options)) as source:
            with contextlib.closing(cast(Any, source.read(self.position, follow=False))) as reading:
                for number, batch in enumerate(reading, 1):
                    found += self.take(batch)
                    if batches is not None and number >= batches:
                        break
                    if confirm:
                        source.confirm(batch.position)
        return found

    @contextlib.contextmanager
    def following(self, **options: Any) -> Iterator[Following]:
        source = self.open(**options)
        following = Following(self, source)
        try:
            yield following
        finally:
            following.end()

    def slot(self) -> tuple[Any, ...] | None:
        """Confirmed LSN and the reader's process."""
        rows = self.sql(
            f"SELECT confirmed_flush_lsn::text, active_pid FROM pg_replication_slots WHERE slot_name = '{NAMES.slot}'"
        )
        return rows[0] if rows else None


class Following:
    """`read` with `follow` on a thread of its own; batches are taken by the test's."""

    def __init__(self, world: World, source: LogSource) -> None:
        self.source = source
        self._world = world
        self._batches: queue.Queue[Batch | BaseException | None] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for batch in self.source.read(self._world.position, follow=True):
                self._batches.put(batch)
                self._go_on.acquire()  # a spooled batch is read while the source stands still
                self.source.confirm(batch.position)
            self._batches.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._batches.put(error)

    @property
    def buffered(self) -> int:
        """Bytes that have arrived and wait to be taken."""
        session = self.source._session
        assert session is not None
        assert session._log is not None
        return session._log.stream._held

    def next(self, timeout: float = WAIT) -> list[Row]:
        """The rows of the next batch; raises what ended the source."""
        batch = self._batches.get(timeout=timeout)
        if isinstance(batch, BaseException):
            raise batch
        assert batch is not None, "the source has ended"
        rows = self._world.take(batch)
        self._go_on.release()
        return rows

    def until(self, reached: Callable[[list[Row]], bool]) -> list[Row]:
        """Batches until `reached` says so of all their rows."""
        rows: list[Row] = []
        deadline = time.monotonic() + WAIT
        while not reached(rows):
            rows += self.next(max(0.01, deadline - time.monotonic()))
        return rows

    def end(self) -> None:
        self.source.stop()
        for _ in range(1000):
            self._go_on.release()
        self._thread.join(WAIT)
        assert not self._thread.is_alive(), "stop() wakes a waiting read"
        self.source.close()


def letters(rows: Sequence[Row]) -> list[tuple[str, Row | None]]:
    """Letter and row: the new one, or of a delete the old one."""
    return [(Op(row["_op"]).letter, row["after"] or row["before"]) for row in rows]


def wait_until(reached: Callable[[], bool], timeout: float = WAIT) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
