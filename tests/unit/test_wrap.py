"""Wrappers pass everything on, and add one thing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from headwater.buses.memory import MemoryBus
from headwater.config import SinkConfig
from headwater.errors import NotConnected
from headwater.mapping.stream import StreamMapping
from headwater.model import Batch, Cursor, Mapped, Position
from headwater.pipeline import capture, deliver
from headwater.protocols import Capture, Declaration, Load
from headwater.sinks.memory import MemorySink, Target
from headwater.sources.memory import MemoryDatabase, MemorySource
from headwater.wrap import Faulty, Metered, MeteredSink, Prefetching
from tests import mapping_rows
from tests.streams import ITEM, append, events, rows_of


@pytest.fixture
def database() -> MemoryDatabase:
    made = MemoryDatabase()
    table = made.create("enrollment", mapping_rows.COLUMNS, key=("id",))
    for number in range(20):
        made.put(table, {"id": number, "mode": "audit", "price": 1.0})
    return made


def source(database: MemoryDatabase) -> MemorySource:
    stream, names = "learning.enrollment", tuple(mapping_rows.COLUMNS.names)
    load = Load("initial", skip=True)
    wanted = Capture(stream, mapping_rows.TABLE, names, ("id",), mapping_rows.config(), load)
    return MemorySource("lms/trigger", database, [wanted], 1)


def test_what_is_metered_is_what_was_confirmed(database: MemoryDatabase) -> None:
    """A batch counts once it is durable, not when it is read."""
    inner = source(database)
    seen: list[tuple[int, Position | None]] = []
    metered = Metered(inner, lambda batch: seen.append((len(batch), inner.confirmed)))
    for batch in metered.read(None, follow=False):
        assert len(seen) == 0 or seen[-1][1] != batch.position
        metered.confirm(batch.position)
    assert seen
    assert all(confirmed is not None for _, confirmed in seen)


def test_every_batch_survives_a_network_that_fails_half_of_the_time(database: MemoryDatabase) -> None:
    """What was yielded but not appended is yielded again, the same; nothing twice."""
    mapping = mapping_rows.mapping()
    bus = MemoryBus()
    bus.declare([Declaration(mapping_rows.contract(), "lms/trigger", "f")])
    table = mapping_rows.TABLE
    failures = 0
    first = next(source(database).read(None, follow=False))
    bus.append(mapped(mapping, first), source="lms/trigger", position=first.position)
    for number in range(30):
        database.put(table, {"id": 100 + number, "mode": "honor", "price": 2.0})
    for seed in range(1000):
        faulty = Faulty(source(database), lambda: NotConnected("the network is away"), 0.5, seed)
        try:
            capture(faulty, lambda batch: mapped(mapping, batch), bus, follow=False)
        except NotConnected:
            failures += 1
            continue
        break
    found = [row["id"] for part in bus.read(mapping.stream, after=None, follow=False) for row in rows_of(part)]
    assert found == list(range(100, 130))
    assert failures > 5


def mapped(mapping: StreamMapping, batch: Batch) -> Mapped:
    return Mapped(events=[part for changes in batch.changes for part in mapping.apply(changes)[0]])


def test_a_metered_sink_counts_what_is_durable_and_is_a_sink_in_all_else() -> None:
    bus = MemoryBus()
    bus.declare([Declaration(ITEM, "shop/trigger", "f")])
    append(bus, events([{"op": "c", "at": (1, n, 0), "id": n} for n in range(5)]))
    counts: list[int] = []
    config = SinkConfig.model_validate({"url": "memory:wrap"})
    inner = MemorySink("copy", "tests", config, Target())
    sink = MeteredSink(inner, counts.append)
    sink.prepare(ITEM)
    assert deliver(bus, "shop.item", sink, follow=False, limit=2) == 5
    assert counts == [2, 2, 1]
    assert sink.cursor("shop.item") == inner.cursor("shop.item")
    assert ids(sink.state("shop.item").rows) == [0, 1, 2, 3, 4]
    place = Cursor(bus.streams()["shop.item"].incarnation, (2,))
    sink.move("shop.item", place)
    assert inner.cursor("shop.item") == place
    sink.clear("shop.item")
    assert inner.cursor("shop.item") is None
    sink.close()


def ids(rows: Iterator[pa.RecordBatch]) -> list[int]:
    return sorted(number for batch in rows for number in batch.column("id").to_pylist())


class Slow:
    """A source of `count` batches of 100 bytes that says how far it was read, and fails behind them if asked."""

    name = "slow"

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.read_so_far = 0
        self.stopped = threading.Event()
        self._count, self._error = count, error

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        for number in range(self._count):
            self.read_so_far += 1
            yield Batch((), Position(1, number, b""), nbytes=100)
        if self._error is not None:
            raise self._error
        if follow:
            self.stopped.wait(30)

    def stop(self) -> None:
        self.stopped.set()


def ahead(source: Slow, budget: int = 250) -> Iterator[Batch]:
    return Prefetching(source, budget).read(None, follow=True)  # type: ignore[arg-type]


def test_reading_ahead_gives_the_same_batches_and_ends_with_the_source() -> None:
    source = Slow(20)
    found = Prefetching(source, 250).read(None, follow=False)  # type: ignore[arg-type]
    assert [batch.position.commit for batch in found] == list(range(20))


def test_reading_ahead_stops_at_its_budget() -> None:
    source = Slow(20)
    batches = ahead(source)
    next(batches)
    deadline = time.monotonic() + 60
    while source.read_so_far < 3 and time.monotonic() < deadline:
        pass
    assert source.read_so_far == 3, "two wait, the third has no room"
    batches.close()  # type: ignore[attr-defined]
    assert source.stopped.is_set()
    assert source.read_so_far == 3


def test_an_error_of_the_source_comes_behind_the_batches_before_it() -> None:
    batches = ahead(Slow(2, NotConnected("away")))
    assert [next(batches).position.commit for _ in range(2)] == [0, 1]
    with pytest.raises(NotConnected, match="away"):
        next(batches)


def test_whoever_stops_reading_ends_the_thread_that_reads_ahead() -> None:
    batches = ahead(Slow(1))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "slow read"]
