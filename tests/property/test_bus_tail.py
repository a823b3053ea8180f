"""Readers in the appender's own process get from memory what the store would give them, whatever happens in between."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from headwater import faults
from headwater.buses.embedded import EmbeddedBus, appending, compaction, merging, reading, segments, storing, tail
from headwater.errors import BusError, HistoryGone
from headwater.model import Cursor, Events, Mapped, Op
from headwater.testing.buses import SOURCE, STREAM, Bench, declaration, events, position

COMPACTED, DROPPING = "shop.customer", "shop.basket"
STREAMS: dict[str, dict[str, Any]] = {
    STREAM: {},
    COMPACTED: {"retention": {"compacted": True, "tombstones": 0}},
    DROPPING: {"retention": {"until_consumed": True}},
}
streams = st.sampled_from(sorted(STREAMS))
rows = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([Op.UPDATE, Op.UPDATE, Op.DELETE])), max_size=5)
parts = st.lists(st.tuples(streams, st.integers(1, 2), st.sampled_from(["", "s2"]), rows), max_size=4)
limits = st.none() | st.integers(1, 4)
Run = tuple[tuple[Any, ...], pa.Schema, pa.RecordBatch, list[int]]


def runs(found: list[Events]) -> list[Run]:
    """Adjacent parts of one kind as one: how many appends a reader gets at once is its own affair."""
    made: list[Run] = []
    for part in found:
        assert part.offsets is not None
        assert part.offsets.type == pa.uint64()
        kind = (part.stream, part.version, part.type, part.source, part.seed, part.content_ids)
        offsets = part.offsets.to_pylist()
        if made and made[-1][0] == kind and made[-1][1].equals(part.data.schema, check_metadata=True):
            whole = pa.concat_batches([made[-1][2], part.data])
            made[-1] = (kind, part.data.schema, whole, [*made[-1][3], *offsets])
        else:
            made.append((kind, part.data.schema, part.data, offsets))
    return made


def assert_same(found: list[Events], expected: list[Events]) -> None:
    ours, theirs = runs(found), runs(expected)
    assert [(kind, offsets) for kind, _, _, offsets in ours] == [(kind, offsets) for kind, _, _, offsets in theirs]
    for (_, schema, data, _), (_, stored_schema, stored, _) in zip(ours, theirs, strict=True):
        assert schema.equals(stored_schema, check_metadata=True)
        assert data.equals(stored)


class Beside(RuleBasedStateMachine):
    """One bus that appends and reads, and one that only reads, as in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.bench = Bench("embedded", self.directory)
        self.commit = 0
        self.following: dict[str, tuple[Iterator[Events], Cursor | None]] = {}

    @initialize()
    def open(self) -> None:
        bus = self.bench.open()
        assert isinstance(bus, EmbeddedBus)
        self.bus = bus
        self.declare()
        store = self.bench.open(append=False)
        assert isinstance(store, EmbeddedBus)
        self.store = store

    def teardown(self) -> None:
        faults.set_failpoints("")
        self.following.clear()
        self.bench.__exit__()
        shutil.rmtree(self.directory)

    def declare(self) -> None:
        self.bus.declare([declaration(name, **more) for name, more in STREAMS.items()])

    def made(self, given: list[tuple[str, int, str, list[tuple[int, Op]]]]) -> Mapped:
        found = []
        for stream, version, source, changed in given:
            self.commit += 1
            filled = [
                {"id": key, "name": f"n{self.commit}", "commit": self.commit, "index": number, "op": op}
                for number, (key, op) in enumerate(changed)
            ]
            part = events(filled, stream, version)
            found.append(Events(stream, version, part.data, source=source or SOURCE, seed=part.seed))
        return Mapped(found)

    @rule(given=parts)
    def append(self, given: list[Any]) -> None:
        self.bus.append(self.made(given), source=SOURCE, position=position(self.commit))

    @rule(given=parts, where=st.sampled_from(["bus.*.before_commit", "bus.*.after_commit"]))
    def append_fails(self, given: list[Any], where: str) -> None:
        """Behind the commit it is there all the same; readers are told with the next one."""
        faults.set_failpoints(f"{where}=error:1:1")
        try:
            with pytest.raises(OSError, match="failpoint"):
                self.bus.append(self.made(given), source=SOURCE, position=position(self.commit))
        finally:
            faults.set_failpoints("")
        self.bus.append(Mapped(), source=SOURCE, position=position(self.commit))

    @rule(stream=streams, share=st.floats(0, 1), limit=limits)
    def read(self, stream: str, share: float, limit: int | None) -> None:
        state = self.store.streams()[stream]
        after = Cursor(state.incarnation, (int(state.head * share),))
        try:
            expected = list(self.store.read(stream, after=after, follow=False, limit=limit))
        except HistoryGone:
            with pytest.raises(HistoryGone):
                list(self.bus.read(stream, after=after, follow=False, limit=limit))
            return
        found = list(self.bus.read(stream, after=after, follow=False, limit=limit))
        assert_same(found, expected)
        places = [after, *(part.cursor for part in found)]
        assert [part.after for part in found] == places[:-1]
        assert places[-1] == after.at(state.head)
        assert limit is None or all(len(part) <= limit for part in found)

    @rule(stream=streams, limit=limits)
    def follow(self, stream: str, limit: int | None) -> None:
        """All that there is, and then no further: it would wait."""
        head = self.store.streams()[stream].head
        reader, after = self.following.get(stream) or (
            self.bus.read(stream, after=None, follow=True, limit=limit), None,
        )  # fmt: skip
        if head == (0 if after is None else after.offset) or not self.left(stream, after):
            return
        try:
            expected = list(self.store.read(stream, after=after, follow=False))
        except (HistoryGone, BusError) as error:
            with pytest.raises(type(error)):
                next(reader)
            del self.following[stream]
            return
        found: list[Events] = []
        while not found or found[-1].cursor is None or found[-1].cursor.offset < head:
            found.append(next(reader))
        assert_same(found, expected)
        self.following[stream] = (reader, found[-1].cursor)

    def left(self, stream: str, after: Cursor | None) -> bool:
        """Whether there is anything for it but a hole."""
        try:
            return any(map(len, self.store.read(stream, after=after, follow=False)))
        except BusError:
            return True

    @rule(stream=streams, share=st.floats(0, 1))
    def commit_cursor(self, stream: str, share: float) -> None:
        state = self.bus.streams()[stream]
        self.bus.commit("g", stream, Cursor(state.incarnation, (int(state.head * share),)))

    @rule()
    def maintain(self) -> None:
        while self.bus.maintain(budget=0):
            pass

    @rule(stream=streams)
    def drop(self, stream: str) -> None:
        self.bus.drop(stream)
        self.declare()
        reader, _ = self.following.pop(stream, (None, None))
        if reader is not None:
            with pytest.raises(BusError, match="dropped and made again"):
                next(reader)


@pytest.mark.parametrize("most", [tail.MOST_BYTES, 4_000])
def test_memory_gives_what_the_store_gives(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """With sizes at which every branch is taken within a few rows."""
    monkeypatch.setattr(segments, "PIECE_ROWS", 4)
    monkeypatch.setattr(appending, "FILE_BYTES", 6_000)
    monkeypatch.setattr(storing, "AT_ONCE", 2)
    monkeypatch.setattr(merging, "FAN", 3)
    monkeypatch.setattr(compaction, "CHUNK_ROWS", 4)
    monkeypatch.setattr(tail, "MOST_BYTES", most)
    monkeypatch.setattr(reading, "LOOK", 3600.0)
    limits = settings(max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Beside, settings=limits)
