"""Merging, dropping by age and compaction on a real file: what is kept, what readers see, who is waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.buses.embedded import EmbeddedBus, compaction, merging, streams
from headwater.errors import BusFull, HistoryGone
from headwater.mapping.fold import fold
from headwater.model import UNCHANGED, Cursor, Events, Mapped, Op
from headwater.testing.buses import (
    OTHER,
    SOURCE,
    STREAM,
    Bench,
    commits_of,
    declaration,
    events,
    numbered,
    position,
    rows_of,
)

DAY = 86_400 * 10**6


class Clock:
    """Stands in for the bus's clock: microseconds since 1970."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(streams, "micros", clock)
    return clock


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench("embedded", str(tmp_path)) as bench:
        yield bench


def opened(bench: Bench, groups: tuple[str, ...] = (), **retention: Any) -> EmbeddedBus:
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(groups=groups, retention=retention)])
    return bus


def append(bus: EmbeddedBus, *parts: Events) -> None:
    for part in parts:
        bus.append(Mapped([part]), source=SOURCE, position=position(1))


def upkeep(bus: EmbeddedBus) -> None:
    while bus.maintain(budget=0):
        pass
    assert bus.check() == []


def read(bus: EmbeddedBus, after: Cursor | None = None) -> list[tuple[int, dict[str, Any]]]:
    return rows_of(bus.read(STREAM, after=after, follow=False))


def at(bus: EmbeddedBus, offset: int) -> Cursor:
    return Cursor(bus.streams()[STREAM].incarnation, (offset,))


def segment_count(bus: EmbeddedBus) -> int:
    with bus._store.snapshot() as connection:
        return int(connection.execute("SELECT count(*) FROM segment").fetchone()[0])


def state_of(rows: list[tuple[int, dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """The newest row of each key, as plain Python sees it."""
    newest: dict[int, dict[str, Any]] = {}
    for _, row in sorted(rows, key=lambda item: (item[1]["_epoch"], item[1]["_commit"], item[1]["_index"])):
        newest[row["id"]] = row
    return {key: row for key, row in newest.items() if row["_op"] != Op.DELETE}


# merging


def test_merging_changes_nothing_that_a_reader_sees(bench: Bench) -> None:
    bus = opened(bench)
    for commit in range(300):
        append(bus, numbered(commit))
    before = read(bus)
    moments = [bus.offset_at(STREAM, streams.to_time(micro)) for micro in _append_times(bus)]
    upkeep(bus)
    assert segment_count(bus) < 30
    assert read(bus) == before
    assert moments == list(range(300))
    assert [bus.offset_at(STREAM, streams.to_time(micro)) for micro in _append_times(bus)] == moments
    for offset in (0, 1, 15, 16, 255, 299):
        assert read(bus, at(bus, offset)) == before[offset:]


def _append_times(bus: EmbeddedBus) -> list[int]:
    """When each event was appended, from what the bus stores of events without a time of their own."""
    found: list[int] = []
    with bus._store.snapshot() as connection:
        rows = connection.execute(
            "SELECT g.base, g.next, g.shape, g.appended, r.data FROM segment g JOIN records r ON r.segment = g.id"
            " ORDER BY g.base"
        )
        for base, end, shape, appended, data in rows:
            schema = bus._shapes.schema(connection, shape)
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
            if "_appended" in schema.names:
                found += batch.column("_appended").to_pylist()
            else:
                found += [appended] * (end - base)
    return found


def test_merging_keeps_shapes_apart(bench: Bench) -> None:
    bus = opened(bench)
    for commit in range(20):
        append(bus, numbered(commit))
    for commit in range(20, 40):
        append(bus, Events(STREAM, 2, numbered(commit).data, source=SOURCE))
    before = [(part.version, part.data.to_pylist()) for part in bus.read(STREAM, after=None, follow=False)]
    upkeep(bus)
    assert segment_count(bus) == 2
    assert [(p.version, p.data.to_pylist()) for p in bus.read(STREAM, after=None, follow=False)] == before


def test_a_reader_between_two_segments_neither_misses_nor_repeats(bench: Bench) -> None:
    bus = opened(bench)
    for commit in range(100):
        append(bus, numbered(commit))
    reading = bus.read(STREAM, after=None, follow=False, limit=3)
    seen = commits_of([next(reading), next(reading)])
    upkeep(bus)
    assert segment_count(bus) < 20
    assert seen + commits_of(reading) == list(range(100))


def test_an_event_is_rewritten_a_few_times_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = opened(bench)
    rewritten = 0
    merge = merging._merge

    def counted(shop: Any, run: list[Any]) -> bool:
        nonlocal rewritten
        rewritten += sum(kept.count for kept in run)
        return merge(shop, run)

    monkeypatch.setattr(merging, "_merge", counted)
    for commit in range(1000):
        append(bus, numbered(commit))
        bus.maintain(budget=60)
    assert rewritten <= 4 * 1000
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(1000))


# age, until consumed


def test_age_drops_old_segments_and_says_so(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, age="7d")
    append(bus, numbered(0, 1), numbered(2))
    cursor = at(bus, 1)
    clock.now += 8 * DAY
    append(bus, numbered(3))
    upkeep(bus)
    assert read(bus)[0][0] == 3
    state = bus.streams()[STREAM]
    assert (state.first, state.head, state.complete) == (3, 4, False)
    with pytest.raises(HistoryGone, match=r"offset 1 is no longer kept; the oldest is 3 \(retention: age 604800 s\)"):
        bus.read(STREAM, after=cursor, follow=False)
    clock.now += 8 * DAY
    upkeep(bus)
    state = bus.streams()[STREAM]
    assert (state.first, state.head, state.nbytes) == (4, 4, 0)
    append(bus, numbered(4))
    assert read(bus, at(bus, 4))[0][0] == 4


def test_merging_leaves_age_its_grain(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, age="16d")
    for commit in range(64):
        append(bus, numbered(commit))
        bus.maintain(budget=60)
        clock.now += DAY // 10
    clock.now += 12 * DAY
    upkeep(bus)
    found = commits_of(bus.read(STREAM, after=None, follow=False))
    assert found == list(range(found[0], 64))
    assert 24 - 10 <= found[0] <= 25, "a segment outlives the age by a sixteenth of it at the most"


def test_until_consumed_waits_for_each_declared_group(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, ("billing", "stock"), age="1d", until_consumed=True)
    append(bus, numbered(0), numbered(1), numbered(2))
    clock.now += 2 * DAY
    bus.commit("billing", STREAM, at(bus, 3))
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [0, 1, 2]
    (held,) = bus.held_back()
    assert (held.group, held.stream, held.offset, held.unread) == ("stock", STREAM, 0, 3)
    assert held.command == f"headwater bus release stock --stream {STREAM}"
    bus.commit("stock", STREAM, at(bus, 2))
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [2]
    bus.release("stock", STREAM)
    upkeep(bus)
    assert read(bus) == []
    assert bus.held_back() == []


def test_until_consumed_alone_drops_what_all_have_read(bench: Bench) -> None:
    bus = opened(bench, ("billing",), until_consumed=True)
    append(bus, numbered(0), numbered(1))
    upkeep(bus)
    assert len(read(bus)) == 2
    bus.commit("billing", STREAM, at(bus, 1))
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [1]


def test_until_consumed_with_nobody_declared_drops_nothing(bench: Bench) -> None:
    bus = opened(bench, until_consumed=True)
    append(bus, numbered(0))
    upkeep(bus)
    assert len(read(bus)) == 1


def test_a_full_stream_names_the_group_that_holds_it_back(bench: Bench) -> None:
    bus = opened(bench, ("billing",), until_consumed=True, max_bytes=1500)
    append(bus, numbered(1))
    with pytest.raises(BusFull, match=r"nothing dropped; group `billing` has read `shop.order` up to 0 of 1") as full:
        append(bus, numbered(*range(200)))
    assert "`headwater bus release billing --stream shop.order`" in full.value.hint


def test_a_reader_under_way_is_told_when_its_place_is_dropped(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, age="1d")
    append(bus, numbered(0), numbered(1), numbered(2))
    reading = bus.read(STREAM, after=None, follow=True, limit=1)
    assert commits_of([next(reading)]) == [0]
    clock.now += 2 * DAY
    upkeep(bus)
    with pytest.raises(HistoryGone, match="offset 1"):
        next(reading)


# compaction


def _updates(commits: range, keys: int) -> Events:
    return events([{"id": c % keys, "name": f"v{c}", "commit": c, "op": Op.UPDATE} for c in commits])


def test_compaction_keeps_the_newest_of_each_key_and_its_offset(bench: Bench) -> None:
    bus = opened(bench, compacted=True)
    for start in range(0, 60, 5):
        append(bus, _updates(range(start, start + 5), keys=7))
    before = read(bus)
    upkeep(bus)
    after = read(bus)
    assert [offset for offset, _ in after] == [*range(48, 60)]  # 48..54 are the newest before the last segment
    assert set(map(str, after)) <= set(map(str, before))
    assert state_of(after) == state_of(before)
    state = bus.streams()[STREAM]
    assert (state.first, state.head, state.complete) == (48, 60, True)
    assert read(bus, at(bus, 50)) == [row for row in after if row[0] >= 50]
    for start in range(60, 120, 5):
        append(bus, _updates(range(start, start + 5), keys=9))
    before = read(bus)
    upkeep(bus)
    assert state_of(read(bus)) == state_of(before)
    assert len(read(bus)) < len(before)


def test_compaction_goes_by_order_not_by_offset(bench: Bench) -> None:
    bus = opened(bench, compacted=True)
    rows = [(1, 50, "late"), (1, 20, "early"), (2, 30, "a"), (2, 10, "b")]
    for key, commit, name in rows:
        append(bus, events([{"id": key, "name": name, "commit": commit}]))
    append(bus, events([{"id": 9, "commit": 99}]))
    upkeep(bus)
    assert [(offset, row["name"]) for offset, row in read(bus)] == [(0, "late"), (2, "a"), (4, None)]


def test_deletes_stay_for_their_time_and_until_each_group_has_passed(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, ("billing",), compacted=True, tombstones="1d")
    append(bus, events([{"id": 1, "name": "x", "commit": 1}]), events([{"id": 2, "name": "y", "commit": 2}]))
    append(bus, events([{"id": 1, "commit": 3, "op": Op.DELETE}]), events([{"id": 3, "commit": 4}]))
    clock.now += 2 * DAY
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [0, 1, 2, 3]  # billing has read nothing
    bus.commit("billing", STREAM, at(bus, 2))
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [0, 1, 2, 3]
    bus.commit("billing", STREAM, at(bus, 3))
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [1, 3]  # row and delete are gone, nothing came back
    assert bus.streams()[STREAM].complete


def test_a_delete_is_kept_while_it_is_young(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, compacted=True, tombstones="1d")
    append(bus, events([{"id": 1, "commit": 1}]), events([{"id": 1, "commit": 2, "op": Op.DELETE}]), numbered(9))
    upkeep(bus)
    assert [(offset, row["_op"]) for offset, row in read(bus)] == [(1, Op.DELETE), (2, Op.CREATE)]
    clock.now += 2 * DAY
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [2]


def test_a_reader_that_would_miss_forgotten_deletes_is_refused(bench: Bench, clock: Clock) -> None:
    bus = opened(bench, compacted=True, tombstones="1d")
    append(bus, events([{"id": 1, "commit": 1}]), events([{"id": 2, "commit": 2}]))
    append(bus, events([{"id": 1, "commit": 3, "op": Op.DELETE}]), numbered(9))
    under_way = bus.read(STREAM, after=None, follow=False, limit=1)
    assert commits_of([next(under_way)]) == [1]
    stored = at(bus, 1)
    clock.now += 2 * DAY
    upkeep(bus)
    with pytest.raises(HistoryGone, match="deletes before offset 3 have been forgotten"):
        bus.read(STREAM, after=stored, follow=False)
    with pytest.raises(HistoryGone, match="would miss them"):
        list(under_way)
    assert [offset for offset, _ in read(bus, at(bus, 3))] == [3]
    assert [offset for offset, _ in read(bus)] == [1, 3]


def _partial(key: int, commit: int, name: str | None, *, lacks_name: bool) -> Events:
    whole = events([{"id": key, "name": name, "commit": commit, "op": Op.UPDATE}])
    marks = pa.array([[1] if lacks_name else None], UNCHANGED)
    return Events(STREAM, 1, whole.data.append_column(pa.field("_unchanged", UNCHANGED), marks), source=SOURCE)


def test_f30_columns_that_the_newest_event_lacks_come_from_the_one_before(bench: Bench) -> None:
    bus = opened(bench, compacted=True)
    append(bus, _partial(1, 1, "kept", lacks_name=False), _partial(1, 2, None, lacks_name=True))
    append(bus, _partial(2, 3, None, lacks_name=True), _partial(3, 4, "z", lacks_name=False))
    upkeep(bus)
    found = {offset: (row["name"], row["_unchanged"]) for offset, row in read(bus)}
    assert found == {1: ("kept", None), 2: (None, [1]), 3: ("z", None)}


def test_f30_events_of_several_schemas_wait_for_one_that_is_whole(bench: Bench) -> None:
    bus = opened(bench, compacted=True)
    append(bus, events([{"id": 1, "name": "kept", "commit": 1}]), _partial(1, 2, None, lacks_name=True), numbered(9))
    upkeep(bus)
    assert [offset for offset, _ in read(bus)] == [0, 1, 2]
    append(bus, *(events([{"id": 1, "name": f"n{commit}", "commit": commit}]) for commit in range(10, 14)))
    upkeep(bus)
    found = read(bus)
    assert next(offset for offset, _ in found) == 2
    assert state_of(found)[1]["name"] == "n13"


def test_compaction_stops_anywhere_without_changing_the_state(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "CHUNK_ROWS", 8)
    monkeypatch.setattr(merging, "FAN", 10**6)
    bus = opened(bench, compacted=True)
    for start in range(0, 90, 3):
        append(bus, _updates(range(start, start + 3), keys=11))
    expected = state_of(read(bus))
    steps = 0
    while bus.maintain(budget=0):
        steps += 1
        assert state_of(read(bus)) == expected
        folded = fold(pa.concat_batches([p.data for p in bus.read(STREAM, after=None, follow=False)]), ["id"])
        assert {row["id"]: row for row in folded.to_pylist()} == expected
    assert steps > 10
    assert bus.check() == []


def test_streams_are_kept_up_apart(bench: Bench) -> None:
    bus = opened(bench, compacted=True)
    bus.declare([declaration(STREAM, retention={"compacted": True}), declaration(OTHER)])
    for commit in range(4):
        append(bus, events([{"id": 1, "commit": commit}]), events([{"id": 1, "commit": commit}], OTHER))
    upkeep(bus)
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [2, 3]
    assert commits_of(bus.read(OTHER, after=None, follow=False)) == [0, 1, 2, 3]
