"""Query capture under random writes, late commits and crashes: every row arrives, and no state of it arrives twice."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config import SourceConfig, StreamConfig
from headwater.model import Batch, Changes, Op, Order, Position, TableId
from headwater.protocols import Capture, Load, Source
from headwater.sources.query import open_source

MODEST = settings(deadline=None, max_examples=60)

KEYS = st.integers(1, 8)
put = st.tuples(st.just("put"), st.lists(KEYS, min_size=1, max_size=5, unique=True), st.integers(0, 9))
delete = st.tuples(st.just("delete"), st.lists(KEYS, min_size=1, max_size=3, unique=True), st.just(0))
read = st.tuples(st.just("read"), st.builds(list[int]), st.integers(1, 4))
steps = st.lists(st.one_of(put, put, delete, read, read), max_size=25)


class Table:
    """`t (id, at, v)`: `at` is a clock in seconds; each write has a `v` of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME NOT NULL, v INTEGER)")
        self.clock = itertools.count(100, 3)
        self.values = itertools.count()

    def put(self, keys: list[int], late: int) -> None:
        at = next(self.clock) - late
        text = f"2024-01-01 {at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}"
        self.connection.execute("BEGIN")
        for key in keys:
            self.connection.execute("INSERT OR REPLACE INTO t VALUES (?, ?, ?)", (key, text, next(self.values)))
        self.connection.execute("COMMIT")

    def delete(self, keys: list[int]) -> None:
        self.connection.executemany("DELETE FROM t WHERE id = ?", [(key,) for key in keys])

    def rows(self) -> dict[int, int]:
        return dict(self.connection.execute("SELECT id, v FROM t"))

    def source(self, **stream: Any) -> Source:
        config = StreamConfig.model_validate({"source": "db", "table": "t", "pattern": "query", **stream})
        capture = Capture("q.s", TableId("", "t"), ("id", "v"), ("id",), config, Load("initial"))
        source = SourceConfig.model_validate(f"sqlite:///{self.path}")
        return open_source(name="q", pipeline="p", config=source, captures=(capture,), epoch=1, config_dir=".")


class Stream:
    """What the bus would hold: a batch and its position are taken together."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.rows: dict[int, int] = {}
        self.events: set[tuple[int, int]] = set()
        self.newest = Order(0, 0)
        self.staged: dict[int, int] = {}

    def take(self, batch: Batch) -> None:
        for changes in batch.changes:
            self._take(changes)
        self.position = batch.position

    def _take(self, changes: Changes) -> None:
        rows = changes.data.to_pylist()
        if changes.reading is not None:
            self.staged |= {row["after"]["id"]: row["after"]["v"] for row in rows}
            if changes.reading.last:
                self.rows, self.staged = self.staged, {}
            return
        for row in rows:
            order = Order(row["_epoch"], row["_commit"], row["_index"])
            event = (row["after"]["id"], row["after"]["v"])
            assert order > self.newest
            assert event not in self.events, f"{Op(row['_op']).letter} {event} came twice"
            self.newest = order
            self.events.add(event)
            self.rows[event[0]] = event[1]


def run(table: Table, stream: Stream, count: int | None, **config: Any) -> None:
    """Read on; after `count` batches the process dies."""
    stream.staged = {}
    with closing(table.source(**config)) as source:
        reading: Iterator[Batch] = source.read(stream.position, follow=False)
        for batch in itertools.islice(reading, count):
            stream.take(batch)
        reading.close()  # type: ignore[attr-defined]


@MODEST
@given(steps, st.integers(1, 4), st.sampled_from([0, 10, 1000]))
def test_f60_f61_nothing_is_lost_or_doubled(
    script: list[tuple[str, list[int], int]], page_size: int, look_back: int
) -> None:
    config = {"cursor": "at", "page_size": page_size, "look_back": look_back}
    with tempfile.TemporaryDirectory() as directory:
        table, stream = Table(Path(directory, "t.db")), Stream()
        with closing(table.connection):
            for kind, keys, number in script:
                if kind == "put":
                    table.put(keys, late=0 if look_back == 0 else number)
                elif kind == "delete":
                    table.delete(keys)
                else:
                    run(table, stream, number, **config)
            run(table, stream, None, **config)
            run(table, stream, None, **config)
            rows = table.rows()
            assert {key: stream.rows.get(key) for key in rows} == rows


@MODEST
@given(steps, st.integers(1, 4), st.sampled_from([{}, {"cursor": "at", "reconcile_deletes": 0}]))
def test_with_comparisons_deletes_arrive_too(
    script: list[tuple[str, list[int], int]], page_size: int, config: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        table, stream = Table(Path(directory, "t.db")), Stream()
        with closing(table.connection):
            for kind, keys, number in script:
                if kind == "put":
                    table.put(keys, late=50 * number)
                elif kind == "delete":
                    table.delete(keys)
                else:
                    run(table, stream, number, page_size=page_size, **config)
            run(table, stream, None, page_size=page_size, **config)
            run(table, stream, None, page_size=page_size, **config)
            assert stream.rows == table.rows()
