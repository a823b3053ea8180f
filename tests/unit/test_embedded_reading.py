"""Waiting for what comes: no wake-up is lost, wherever between looking and waiting it arrives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headwater import faults
from headwater.buses.embedded import EmbeddedBus, reading, tail
from headwater.errors import BusError
from headwater.model import Cursor, Events, Mapped
from headwater.protocols import Bus
from headwater.testing.buses import (
    SOURCE,
    STREAM,
    Bench,
    commits_of,
    declaration,
    declared,
    events,
    finished,
    in_thread,
    numbered,
    position,
    rows_of,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench("embedded", str(tmp_path)) as bench:
        yield bench


def append(bus: Bus, *parts: Events) -> None:
    bus.append(Mapped(parts), source=SOURCE, position=position(1))


@pytest.mark.parametrize("same_process", [True, False])
def test_f82_an_append_between_looking_and_waiting_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, same_process: bool
) -> None:
    bus = declared(bench)
    assert isinstance(bus, EmbeddedBus)
    reader = bus if same_process else bench.open(append=False)
    commits = iter(range(20))
    wait = reading.Reader._wait

    def late(self: Any, *arguments: Any) -> bool:
        commit = next(commits, None)
        if commit is not None:
            append(bus, numbered(commit))
        return wait(self, *arguments)

    monkeypatch.setattr(reading.Reader, "_wait", late)

    def twenty() -> list[int]:
        seen: list[int] = []
        for part in reader.read(STREAM, after=None, follow=True):
            seen += commits_of([part])
            if len(seen) == 20:
                break
        return seen

    thread, result = in_thread(twenty)
    finished(thread)
    assert result == [list(range(20))]


def test_a_stop_between_looking_and_waiting_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = declared(bench)
    wait = reading.Reader._wait

    def late(self: Any, *arguments: Any) -> bool:
        bus.stop()
        return wait(self, *arguments)

    monkeypatch.setattr(reading.Reader, "_wait", late)
    thread, result = in_thread(lambda: list(bus.read(STREAM, after=None, follow=True)))
    finished(thread)
    assert result == [[]]


@pytest.mark.parametrize("same_process", [True, False])
def test_a_stop_ends_reading_though_there_is_more(bench: Bench, same_process: bool) -> None:
    bus = declared(bench)
    append(bus, numbered(1, 2), numbered(3))
    reader = bus if same_process else bench.open(append=False)
    following = reader.read(STREAM, after=None, follow=True, limit=1)
    assert commits_of([next(following)]) == [1]
    reader.stop()
    thread, result = in_thread(lambda: list(following))
    finished(thread)
    assert result == [[]]


class _Interrupted(list[Any]):
    """Whoever adds to it is interrupted by a signal, whose handler stops all reading."""

    def __init__(self, signal: reading.Signal) -> None:
        self._signal = signal

    def append(self, turn: Any) -> None:
        super().append(turn)
        self._signal.stop()


def test_a_signal_handler_may_stop_whoever_is_about_to_wait() -> None:
    """A handler runs within the thread that it interrupts, which may hold the lock already."""
    signal = reading.Signal()
    signal._waiting = _Interrupted(signal)
    thread, result = in_thread(lambda: signal.wait(0, 0, None))
    finished(thread)
    assert result == [None]


def test_readers_of_another_process_ask_seldom_when_idle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond while active; twenty once nothing has come for a second."""
    bus = declared(bench)
    assert isinstance(bus, EmbeddedBus)
    reader = bench.open(append=False)
    now = [0.0]
    pauses: list[float] = []
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(self: reading.Signal, count: int, stops: int, timeout: float | None) -> None:
        assert timeout is not None
        pauses.append(timeout)
        now[0] += timeout
        if len(pauses) == 1100:
            append(bus, numbered(1))

    monkeypatch.setattr(reading.Signal, "wait", wait)
    (part,) = (next(reader.read(STREAM, after=None, follow=True)),)
    assert commits_of([part]) == [1]
    assert pauses[0] == 0.001
    assert pauses[-1] == 0.020
    assert sorted(pauses) == pauses


def test_small_segments_come_joined_and_large_ones_as_they_are(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGE", 10)
    bus = declared(bench)
    assert isinstance(bus, EmbeddedBus)
    for size, start in ((1, 0), (2, 1), (3, 3), (10, 6), (1, 16), (1, 17)):
        append(bus, numbered(*range(start, start + size)))
    parts = list(bus.read(STREAM, after=None, follow=False))
    assert [len(part) for part in parts] == [6, 10, 2]
    assert commits_of(parts) == list(range(18))


def test_a_stream_dropped_and_made_again_under_a_reader(bench: Bench) -> None:
    bus = declared(bench)
    assert isinstance(bus, EmbeddedBus)
    append(bus, numbered(1))
    reader = bus.read(STREAM, after=None, follow=True)
    assert commits_of([next(reader)]) == [1]
    bus.drop(STREAM)
    bus.declare([declaration()])
    with pytest.raises(BusError, match="dropped and made again while it was read"):
        next(reader)


def test_an_abandoned_reader_gives_back_its_connection(bench: Bench) -> None:
    bus = declared(bench)
    assert isinstance(bus, EmbeddedBus)
    append(bus, numbered(1), events([{"id": 2, "commit": 2}]))
    reader = bus.read(STREAM, after=None, follow=True, limit=1)
    next(reader)
    del reader
    bus.close()
    with pytest.raises(BusError, match="has been closed"):
        bus.streams()


def unread(*arguments: object) -> None:
    raise AssertionError("the store was asked")


@pytest.mark.parametrize("limit", [None, 2])
def test_what_was_appended_last_is_read_from_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """From any place in it, in any parts, and the same as the store gives."""
    bus = declared(bench)
    store = bench.open(append=False)
    for start in (0, 3, 6):
        append(bus, numbered(*range(start, start + 3)))
    incarnation = bus.streams()[STREAM].incarnation
    monkeypatch.setattr(reading.Reader, "_fetch", unread)
    found = [list(bus.read(STREAM, after=Cursor(incarnation, (n,)), follow=False, limit=limit)) for n in range(9)]
    monkeypatch.undo()
    for place, parts in enumerate(found):
        expected = list(store.read(STREAM, after=Cursor(incarnation, (place,)), follow=False, limit=limit))
        assert rows_of(parts) == rows_of(expected)
        assert parts[-1].cursor == expected[-1].cursor


def test_an_append_that_failed_behind_its_commit_is_not_left_out(bench: Bench) -> None:
    bus = declared(bench)
    append(bus, numbered(1))
    faults.set_failpoints("bus.write.after_commit=error:1:1;bus.append.after_commit=error:1:1")
    try:
        with pytest.raises(OSError, match="failpoint"):
            append(bus, numbered(2))
    finally:
        faults.set_failpoints("")
    append(bus, numbered(3))
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1, 2, 3]


def test_reading_up_to_the_end_goes_there_though_memory_is_behind_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is between a commit and what the appender does next."""
    bus = declared(bench)
    append(bus, numbered(1))
    monkeypatch.setattr(tail.Tail, "add", lambda *_: None)
    append(bus, numbered(2))
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1, 2]


def test_what_compaction_took_out_is_not_read_from_memory(bench: Bench) -> None:
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(retention={"compacted": True, "tombstones": 0})])
    for commit, key in enumerate([2, 1, 1, 1]):
        append(bus, events([{"id": key, "name": f"n{commit}", "commit": commit}]))
    while bus.maintain():
        pass
    kept = commits_of(bench.open(append=False).read(STREAM, after=None, follow=False))
    assert kept == [0, 2, 3]
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == kept


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("place", [1, 2])
def test_reading_goes_on_from_within_a_hole_at_the_end_of_a_segment(
    bench: Bench, limit: int | None, place: int
) -> None:
    """What follows is of another kind, and so is not joined to what is left of the segment."""
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(retention={"compacted": True, "tombstones": 0})])
    append(bus, events([{"id": key, "commit": key} for key in (1, 2, 3)]))
    append(bus, events([{"id": key, "commit": 10 + key} for key in (2, 3)], STREAM, 2))
    append(bus, events([{"id": 4, "commit": 20}], STREAM, 2))
    while bus.maintain():
        pass
    after = Cursor(bus.streams()[STREAM].incarnation, (place,))
    thread, result = in_thread(
        lambda: commits_of(bench.open(append=False).read(STREAM, after=after, follow=False, limit=limit))
    )
    finished(thread)
    assert result == [[12, 13, 20]]
