"""The router on a bus in memory: streams that stand still, keys that wait, readings, truncates, errors."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater import kept, router
from headwater.buses.memory import MemoryBus
from headwater.contracts.model import Contract
from headwater.errors import BusFull
from headwater.model import Batch, Changes, Order, Position, Reading, Reload, TableId
from headwater.protocols import Declaration
from headwater.quarantine import replay
from headwater.router import Route, Router
from tests import mapping_rows as rows
from tests.streams import rows_of

STREAM = "learning.enrollment"
OTHER = "learning.copy"
SOURCE = "lms/trigger"


class World:
    """One router over a table with two streams, and the bus behind it."""

    def __init__(self, directory: Path, settings: dict[str, Any] | None = None, **contract: Any) -> None:
        self.bus = MemoryBus()
        self.directory = directory
        first = self.route(rows.contract(**contract), settings or {})
        self.routes = [first, self.route(rows.contract(stream=OTHER), {})]
        self.bus.declare([Declaration(route.contract, SOURCE, "f") for route in self.routes])
        self.commit = 0
        self.begin()

    def route(self, contract: Contract, settings: dict[str, Any]) -> Route:
        strict = contract.kind == "event" and settings.get("order", "strict") == "strict"
        return Route(contract.stream, rows.TABLE, rows.mapping(settings, contract), contract, strict)

    def begin(self) -> None:
        """The capture starts anew."""
        self.router = Router(self.bus, self.routes, self.directory)
        self.router.drain()

    def take(self, *changes: Changes) -> None:
        """One batch, appended."""
        self.commit += 1
        position = Position(1, self.commit, b"")
        self.bus.append(self.router(Batch(changes, position)), source=SOURCE, position=position)

    def events(self, stream: str = STREAM) -> list[tuple[Any, ...]]:
        parts = self.bus.read(stream, after=None, follow=False)
        return [(r["op"], r["id"], r["mode"], r["at"][1:]) for part in parts for r in rows_of(part)]

    def load_notes(self) -> list[str]:
        return [placed.note.text for placed in self.bus.notes(STREAM) if placed.note.kind == "load"]

    def rejected(self) -> list[tuple[str | None, str, Order]]:
        return [(row.key, row.got, row.order) for row in self.bus.rejected(STREAM)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.router.close()


def put(commit: int, *ids: int, mode: str | None = "audit", letter: str = "c") -> Changes:
    return rows.changes(
        [rows.change(letter, None, _row(i, mode), _commit=commit, _index=2 * n) for n, i in enumerate(ids)]
    )


def change(letter: str, commit: int, before: Any = None, after: Any = None, index: int = 0) -> rows.Row:
    return rows.change(letter, before, after, _commit=commit, _index=index)


def _row(number: int, mode: str | None = "audit") -> dict[str, Any]:
    return {"id": number, "mode": mode, "price": 1.0}


def part(
    commit: int, *ids: int, last: bool, since: int = 0, mode: str = "audit", reload: Reload = Reload.DIFFERENCE
) -> Changes:
    """A part of a reading of the first stream."""
    made = put(commit, *ids, mode=mode, letter="r")
    return dataclasses.replace(made, stream=STREAM, reading=Reading(reload, Order(1, since, 2**32 - 1), last))


# a transaction too large for memory


class Stored:
    """Changes made while they are asked for; `alive` counts those that somebody still holds.

    `allocated`: Arrow's bytes at most, when the next is asked for.
    """

    def __init__(self, *pieces: Changes, truncates: bool = False) -> None:
        self.truncates = truncates
        self.alive: list[weakref.ref[Any]] = []
        self.most = self.allocated = 0
        self.nbytes = sum(piece.data.nbytes for piece in pieces)
        self._pieces = pieces

    def __iter__(self) -> Iterator[Changes]:
        for piece in self._pieces:
            made = dataclasses.replace(piece, data=piece.data.take(list(range(len(piece)))))
            self.alive.append(weakref.ref(made.data))
            self.most = max(self.most, sum(ref() is not None for ref in self.alive))
            self.allocated = max(self.allocated, pa.total_allocated_bytes())
            yield made
            del made

    def counts(self) -> list[tuple[TableId, str | None, int]]:
        return [(piece.table, None, len(piece)) for piece in self._pieces]


def stored_take(world: World, stored: Stored) -> None:
    batch = Batch(stored, Position(1, 9, b""))
    assert len(batch) == sum(number for _, _, number in stored.counts())
    mapped = world.router(batch)
    for _ in mapped.events:
        pass
    del mapped


def test_a_stored_transaction_is_mapped_piece_by_piece_and_appended_as_one(world: World) -> None:
    batch = Batch(Stored(put(1, 1), put(1, 2), put(1, 3)), Position(1, 1, b""))
    world.bus.append(world.router(batch), source=SOURCE, position=batch.position)
    assert [event[:2] for event in world.events()] == [("c", 1), ("c", 2), ("c", 3)]
    assert world.events() == world.events(OTHER)
    stored = Stored(*(put(1, number) for number in range(50)))
    stored_take(world, stored)
    assert stored.most <= 3, "the pieces before are given back"


def test_a_stored_transaction_with_a_truncate_deletes_what_it_wrote_before(world: World) -> None:
    truncate = rows.changes([change("t", 2, index=4)])
    batch = Batch(Stored(put(2, 1), truncate, put(2, 2), truncates=True), Position(1, 2, b""))
    world.bus.append(world.router(batch), source=SOURCE, position=batch.position)
    assert [event[:2] for event in world.events()] == [("c", 1), ("d", 1), ("c", 2)]


def test_f40_what_a_truncate_in_a_stored_transaction_deletes_is_not_held_in_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MEMORY", 0)
    world.take(put(1, 99999))
    truncates = [rows.changes([change("t", 2, index=place)]) for place in (1000, 30000)]
    first = [_created(start, 50) for start in range(0, 1000, 50)]
    second = [_created(start, 500) for start in range(2000, 22000, 500)]
    before = pa.total_allocated_bytes()
    stored = Stored(*first, truncates[0], *second, truncates[1], put(3, 50000), truncates=True)
    gone = []
    for part in world.router(Batch(stored, Position(1, 2, b""))).events:
        gone += [row["id"] for row in rows_of(part) if part.stream == STREAM and row["op"] == "d"]
    assert stored.allocated - before < stored.nbytes / 4
    assert sorted(gone[:1001]) == [*range(1000), 99999]
    assert sorted(gone[1001:]) == list(range(2000, 22000))
    assert list(world.directory.iterdir()) == []


def _created(start: int, count: int) -> Changes:
    return rows.changes([change("c", 2, None, _row(n), index=n) for n in range(start, start + count)])


def test_rejected_and_parked_changes_of_a_stored_transaction_are_appended_with_it(tmp_path: Path) -> None:
    world = World(tmp_path, fields={**rows.FIELDS, "mode": {"type": "string", "enum": ["audit"]}})
    world.bus.pause(OTHER, "maintenance")
    batch = Batch(Stored(put(1, 1), put(1, 2, mode="wrong")), Position(1, 1, b""))
    world.bus.append(world.router(batch), source=SOURCE, position=batch.position)
    assert [row[0] for row in world.rejected()] == ['{"id":2}']
    assert world.bus.streams()[OTHER].parked == 2


def test_a_stored_transaction_that_cannot_be_mapped_does_not_fill_the_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "HELD_BYTES", 100)
    world.bus.pause(STREAM, "maintenance")
    with pytest.raises(BusFull, match="cannot be mapped now"):
        stored_take(world, Stored(*(put(1, number) for number in range(50))))


def test_a_second_truncate_reads_only_what_came_since_the_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.take(put(1, 1, 2), rows.changes([change("t", 1, index=4)]), put(2, 3))
    world.take(put(3, 4), rows.changes([change("t", 3, index=2)]), put(4, 5))
    places: list[Any] = []
    read = world.bus.read

    def watched(stream: str, **settings: Any) -> Any:
        places.append(settings["after"])
        return read(stream, **settings)

    monkeypatch.setattr(world.bus, "read", watched)
    world.take(put(5, 6), rows.changes([change("t", 5, index=2)]))
    monkeypatch.undo()
    assert [place.offset for place in places] == [5, 5], "one for each stream of the table"
    assert [event[:2] for event in world.events()] == [
        *(("c", 1), ("c", 2), ("d", 1), ("d", 2), ("c", 3)),
        *(("c", 4), ("d", 3), ("d", 4), ("c", 5)),
        *(("c", 6), ("d", 5), ("d", 6)),
    ]


# streams that stand still


def test_a_paused_stream_parks_while_the_other_of_its_table_goes_on(world: World) -> None:
    world.take(put(1, 1))
    world.bus.pause(STREAM, "maintenance")
    world.take(put(2, 2))
    assert world.events() == [("c", 1, "audit", (1, 0))]
    assert world.events(OTHER) == [("c", 1, "audit", (1, 0)), ("c", 2, "audit", (2, 0))]
    assert world.bus.streams()[STREAM].parked == 1


def test_a_stream_that_resumes_maps_what_was_parked_before_what_comes(world: World) -> None:
    world.bus.pause(STREAM, "maintenance")
    world.take(put(1, 1), put(2, 2))
    world.bus.resume(STREAM)
    world.take(put(3, 3))
    assert world.events() == [], "asked to resume, it stands still until the parked changes are mapped"
    world.begin()
    world.take(put(4, 4))
    assert [event[1] for event in world.events()] == [1, 2, 3, 4]
    assert world.bus.streams()[STREAM].paused is None


def test_a_drain_that_is_told_to_stop_leaves_the_rest_parked(world: World) -> None:
    world.bus.pause(STREAM, "maintenance")
    world.take(put(1, 1), put(2, 2))
    world.bus.resume(STREAM)
    world.router.stop()
    world.router.drain()
    assert world.bus.streams()[STREAM].parked == 2
    world.begin()
    assert [event[1] for event in world.events()] == [1, 2]


def test_the_first_change_that_stops_a_stream_stops_it_alone_and_is_parked_with_all_that_follow(tmp_path: Path) -> None:
    fields = {**rows.FIELDS, "mode": {"type": "string", "enum": ["audit"]}}
    world = World(tmp_path, {"on_invalid": "stop"}, fields=fields)
    world.take(put(1, 1), put(2, 2, mode="wrong"), put(3, 3))
    assert [event[1] for event in world.events()] == [1]
    assert [event[1] for event in world.events(OTHER)] == [1, 2, 3]
    state = world.bus.streams()[STREAM]
    assert state.parked == 2
    assert "`mode`" in (state.paused or "")
    world.bus.resume(STREAM)
    world.begin()
    assert world.bus.streams()[STREAM].parked == 2, "it breaks still, stands still again and has lost nothing"


# readings


def test_a_reading_becomes_the_difference(world: World) -> None:
    world.take(put(1, 1, 2))
    world.take(part(5, 2, mode="honor", last=False, since=4), part(5, last=True, since=4))
    assert world.events()[2:] == [("u", 2, "honor", (5, 0)), ("d", 1, None, (5, 1))]


def test_a_reading_sees_the_live_changes_of_its_own_batch(world: World) -> None:
    world.take(put(1, 1))
    world.take(put(2, 2), part(5, 1, 2, last=True, since=4))
    assert [event[:2] for event in world.events()] == [("c", 1), ("c", 2)]


def test_a_reading_of_which_a_part_came_while_the_stream_stood_still_deletes_nothing(world: World) -> None:
    """F6: paused and resumed between two parts; the rest of the reading says nothing of the rows that were missed."""
    world.take(put(1, 1, 2, 3))
    world.take(part(5, 1, last=False, since=4))
    world.bus.pause(STREAM, "maintenance")
    world.take(part(5, 2, last=False, since=4))
    world.bus.resume(STREAM)
    world.take(part(5, 3, last=True, since=4))
    assert [event[:2] for event in world.events()] == [("c", 1), ("c", 2), ("c", 3)]
    assert world.load_notes() == ["owed-0 difference 1"]
    assert world.router.owed == {STREAM}


def test_a_reading_that_is_owed_is_noted_once_however_often_polls_come(world: World) -> None:
    world.bus.pause(STREAM, "maintenance")
    for poll in range(3):
        world.take(part(5 + poll, 1, last=True, since=4 + poll))
    assert world.load_notes() == ["owed-0 difference 1"]


def test_a_rebuild_that_is_owed_stays_a_rebuild(world: World) -> None:
    world.bus.pause(STREAM, "maintenance")
    world.take(part(5, 1, last=True, since=4, reload=Reload.REBUILD))
    assert world.load_notes() == ["owed-0 rebuild 1"]


def test_rows_of_a_reading_that_break_the_contract_are_not_gone_and_quarantined_once(tmp_path: Path) -> None:
    world = World(tmp_path, fields={**rows.FIELDS, "mode": {"type": "string", "enum": ["audit"]}})
    world.take(put(1, 1, 2))
    for commit in (5, 6):
        reading = part(commit, 1, last=False, since=commit - 1)
        world.take(reading, part(commit, 2, mode="wrong", last=True, since=commit - 1))
    assert [event[:2] for event in world.events()] == [("c", 1), ("c", 2)]
    assert [row[0] for row in world.rejected()] == ['{"id":2}']


def test_a_row_without_a_key_is_quarantined_once_however_often_it_is_read(tmp_path: Path) -> None:
    world = World(tmp_path, {"fields": {"id": "nullif(id, 7)"}})
    for commit in (5, 6):
        world.take(part(commit, 7, last=True, since=commit - 1))
    assert len(world.rejected()) == 1


def test_a_reading_that_cannot_be_compared_stops_its_stream_alone(world: World) -> None:
    """The source has a key twice: found when the reading ends."""
    world.take(put(1, 1))
    world.take(part(5, 1, last=False, since=4), part(6, 1, last=True, since=4), put(7, 9))
    state = world.bus.streams()[STREAM]
    assert "several rows" in (state.paused or "")
    assert [event[1] for event in world.events(OTHER)] == [1, 9]
    assert world.load_notes() == ["owed-0 difference 1"]


# keys that wait

EVENT: dict[str, Any] = {
    "kind": "event",
    "fields": {**rows.FIELDS, "mode": {"type": "string", "enum": ["audit", "honor"]}},
}


def test_later_events_of_a_key_wait_behind_a_quarantined_one_and_others_do_not(tmp_path: Path) -> None:
    world = World(tmp_path, **EVENT)
    world.take(put(1, 1, mode="wrong"))
    world.take(put(2, 1, 2, mode="honor"))
    assert world.events() == [("c", 2, "honor", (2, 2))]
    assert [row[:2] for row in world.rejected()] == [('{"id":1}', "wrong"), ('{"id":1}', "it waits")]


def test_they_wait_within_one_batch_too(tmp_path: Path) -> None:
    """One batch may hold several record batches of one table."""
    world = World(tmp_path, **EVENT)
    world.take(put(1, 1, mode="wrong"), put(2, 1, mode="honor"))
    assert world.events() == []
    assert [row[1] for row in world.rejected()] == ["wrong", "it waits"]


def test_an_earlier_event_of_the_key_does_not_wait(tmp_path: Path) -> None:
    world = World(tmp_path, **EVENT)
    changes = [change("c", 1, after=_row(1)), change("u", 1, _row(1), _row(1, "wrong"), index=2)]
    world.take(rows.changes([*changes, change("u", 1, _row(1, "wrong"), _row(1, "honor"), index=4)]))
    assert world.events() == [("c", 1, "audit", (1, 0))]
    assert [row[1:] for row in world.rejected()] == [("wrong", Order(1, 1, 2)), ("it waits", Order(1, 1, 4))]


def test_what_waits_is_replayed_in_the_order_of_the_changes(tmp_path: Path) -> None:
    world = World(tmp_path, **EVENT)
    modes = ["wrong", "honor", "wronger", "audit"]
    world.take(rows.changes([change("c", 1, after=_row(1, mode), index=2 * n) for n, mode in enumerate(modes)]))
    assert world.events() == []
    relaxed = world.route(rows.contract(kind="event"), {})
    done = replay(world.bus, relaxed)
    assert (len(done.appended), done.waiting) == (4, [])
    assert [event[2] for event in world.events()] == modes


def test_a_change_of_key_waits_whole_and_comes_once(tmp_path: Path) -> None:
    """Its delete must wait for the old key; were its create let through, replay would append it again."""
    world = World(tmp_path, **EVENT)
    world.take(put(1, 1, mode="wrong"))
    world.take(rows.changes([change("u", 2, _row(1), _row(5)), change("u", 2, _row(5), _row(5, "honor"), index=2)]))
    assert world.events() == []
    assert json.loads(world.rejected()[-1][0] or "") == {"id": 5}, "the new key waits from there on"
    replay(world.bus, world.route(rows.contract(kind="event"), {}))
    assert [event[:3] for event in world.events()] == [
        ("c", 1, "wrong"),
        ("d", 1, None),
        ("c", 5, "audit"),
        ("u", 5, "honor"),
    ]


# truncates


def test_a_truncate_becomes_the_deletes_of_what_lived_at_its_place(world: World) -> None:
    world.take(put(1, 1, 2))
    changes = [
        change("c", 2, after=_row(3)),
        change("t", 2, index=2),
        change("c", 2, after=_row(1, "honor"), index=4),
        change("c", 2, after=_row(9), index=6),
    ]
    world.take(rows.changes(changes))
    assert world.events()[2:] == [
        ("c", 3, "audit", (2, 0)),
        ("d", 1, None, (2, 2)),
        ("d", 2, None, (2, 2)),
        ("d", 3, None, (2, 2)),
        ("c", 1, "honor", (2, 4)),
        ("c", 9, "audit", (2, 6)),
    ]


def test_a_second_truncate_deletes_only_what_came_behind_the_first(world: World) -> None:
    world.take(put(1, 1))
    world.take(rows.changes([change("t", 2), change("c", 2, after=_row(4), index=2), change("t", 2, index=4)]))
    assert world.events()[1:] == [("d", 1, None, (2, 0)), ("c", 4, "audit", (2, 2)), ("d", 4, None, (2, 4))]


def test_the_deletes_of_a_truncate_have_ids_of_their_own(world: World) -> None:
    from headwater.mapping.hashing import event_ids

    world.take(put(1, 1, 2, 3))
    world.take(rows.changes([change("t", 2)]))
    ids = [i for p in world.bus.read(STREAM, after=None, follow=False) for i in event_ids(p).to_pylist()]
    assert len(set(ids)) == 6
