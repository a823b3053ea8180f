"""A bus against a plain list: any sequence of operations, restarts and upkeep included, gives what the list gives."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headwater.buses.embedded import EmbeddedBus, appending, files, merging, segments
from headwater.errors import CursorMismatch
from headwater.model import Cursor, Events, Mapped, Op, Order, Parked
from headwater.testing.buses import Bench, changes, declaration, events, position, rejected, rows_of

STREAMS = ("shop.order", "shop.customer")
streams = st.sampled_from(STREAMS)
batches = st.lists(
    st.tuples(streams, st.integers(1, 2), st.lists(st.integers(0, 5), max_size=6)), min_size=0, max_size=5
)


class BusModel(RuleBasedStateMachine):
    """The model: rows by stream, and what waits."""

    scheme = "embedded"

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.bench = Bench(self.scheme, self.directory)
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in STREAMS}
        self.parked: dict[str, list[int]] = {name: [] for name in STREAMS}
        self.rejected: dict[str, list[int]] = {name: [] for name in STREAMS}
        self.cursors: dict[tuple[str, str], int] = {}
        self.old: dict[str, set[str]] = {name: set() for name in STREAMS}
        self.commit = 0

    @initialize()
    def open(self) -> None:
        self.bus = self.bench.open()
        self.declare()

    def teardown(self) -> None:
        self.bench.__exit__()
        shutil.rmtree(self.directory)

    def declare(self) -> None:
        self.bus.declare([declaration(name) for name in STREAMS])

    def made(self, parts: list[tuple[str, int, list[int]]]) -> list[Events]:
        found = []
        for stream, version, keys in parts:
            self.commit += 1
            rows = [
                {"id": key, "name": f"n{self.commit}", "commit": self.commit, "index": number, "op": Op.UPDATE}
                for number, key in enumerate(keys)
            ]
            found.append(events(rows, stream, version))
        return found

    def take(self, parts: list[Events]) -> None:
        for part in parts:
            self.rows[part.stream] += part.data.to_pylist()

    @rule(parts=batches)
    def append(self, parts: list[tuple[str, int, list[int]]]) -> None:
        made = self.made(parts)
        self.bus.append(Mapped(iter(made)), source="s", position=position(self.commit))
        self.take(made)
        assert self.bus.position("s") == position(self.commit)

    @rule(parts=batches)
    def append_fails(self, parts: list[tuple[str, int, list[int]]]) -> None:
        before = self.bus.position("s")
        made = self.made(parts)

        def broken() -> Any:
            yield from made
            raise RuntimeError

        with pytest.raises(RuntimeError):
            self.bus.append(Mapped(broken()), source="s", position=position(10**6))
        assert self.bus.position("s") == before

    @rule(stream=streams)
    def park_and_reject(self, stream: str) -> None:
        self.commit += 1
        mapped = Mapped(
            parked=(Parked(stream, changes(self.commit)),), rejected=(rejected(self.commit, stream=stream),)
        )
        self.bus.append(mapped, source="s", position=position(self.commit))
        self.parked[stream].append(self.commit)
        self.rejected[stream].append(self.commit)

    @rule(stream=streams, parts=batches)
    def settle(self, stream: str, parts: list[tuple[str, int, list[int]]]) -> None:
        made = self.made(parts)
        parked = [number for number, _ in self.bus.parked(stream)][:1]
        waiting = [row.number for row in self.bus.rejected(stream)][-1:]
        self.bus.settle(Mapped(made), parked=parked, rejected=waiting)
        self.take(made)
        self.parked[stream] = self.parked[stream][1:]
        self.rejected[stream] = self.rejected[stream][:-1]

    @rule(stream=streams, start=st.integers(0, 40), limit=st.none() | st.integers(1, 7))
    def read_from(self, stream: str, start: int, limit: int | None) -> None:
        rows = self.rows[stream]
        incarnation = self.bus.streams()[stream].incarnation
        if start > len(rows):
            with pytest.raises(CursorMismatch):
                list(self.bus.read(stream, after=Cursor(incarnation, (start,)), follow=False))
            return
        parts = list(self.bus.read(stream, after=Cursor(incarnation, (start,)), follow=False, limit=limit))
        assert rows_of(parts) == list(enumerate(rows))[start:]
        assert limit is None or all(len(part) <= limit for part in parts)
        places = [start, *(part.cursor.offset for part in parts if part.cursor)]
        assert [part.after.offset for part in parts if part.after] == places[:-1]
        assert places[-1] == len(rows)

    @rule(stream=streams, share=st.floats(0, 1))
    def commit_cursor(self, stream: str, share: float) -> None:
        offset = int(len(self.rows[stream]) * share)
        self.bus.commit("g", stream, Cursor(self.bus.streams()[stream].incarnation, (offset,)))
        self.cursors["g", stream] = offset

    @rule(stream=streams, commit=st.integers(0, 60), index=st.integers(0, 6))
    def find_order(self, stream: str, commit: int, index: int) -> None:
        order = Order(1, commit, index)
        later = [Order(row["_epoch"], row["_commit"], row["_index"]) > order for row in self.rows[stream]]
        expected = later.index(True) if True in later else len(later)
        assert self.bus.offset_after(stream, order) == expected

    @rule(stream=streams)
    def drop(self, stream: str) -> None:
        self.old[stream].add(self.bus.streams()[stream].incarnation)
        self.bus.drop(stream)
        self.declare()
        self.rows[stream], self.parked[stream], self.rejected[stream] = [], [], []
        self.cursors.pop(("g", stream), None)
        for incarnation in self.old[stream]:
            with pytest.raises(CursorMismatch):
                self.bus.read(stream, after=Cursor(incarnation, (0,)), follow=False)

    @rule()
    def reopen(self) -> None:
        self.bus = self.bench.reopened(self.bus)

    @precondition(lambda self: isinstance(self.bus, EmbeddedBus))
    @rule()
    def maintain(self) -> None:
        assert isinstance(self.bus, EmbeddedBus)
        while self.bus.maintain(budget=0):
            pass
        assert self.bus.check() == []

    @invariant()
    def the_bus_is_the_list(self) -> None:
        if not hasattr(self, "bus"):
            return
        states = self.bus.streams()
        for stream, rows in self.rows.items():
            assert rows_of(self.bus.read(stream, after=None, follow=False)) == list(enumerate(rows))
            assert states[stream].head == len(rows)
            newest = max((Order(row["_epoch"], row["_commit"], row["_index"]) for row in rows), default=None)
            assert states[stream].order == newest
            parked = [part.data.column("_commit")[0].as_py() for _, part in self.bus.parked(stream)]
            assert parked == self.parked[stream]
            assert [row.order.commit for row in self.bus.rejected(stream)] == self.rejected[stream]
            cursor = self.bus.cursor("g", stream)
            assert (cursor.offset if cursor else None) == self.cursors.get(("g", stream))


class MemoryModel(BusModel):
    scheme = "memory"


LIMITS = settings(max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))


def test_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sizes at which every branch is taken within a few rows."""
    monkeypatch.setattr(segments, "PIECE_ROWS", 4)
    monkeypatch.setattr(appending, "FILE_BYTES", 2_000)
    monkeypatch.setattr(files, "MOST_BYTES", 5_000)
    monkeypatch.setattr(merging, "FAN", 3)
    run_state_machine_as_test(BusModel, settings=LIMITS)


def test_memory() -> None:
    run_state_machine_as_test(MemoryModel, settings=LIMITS)
