"""Small appends: one statement gives what several give, and none of them waits for the log to be folded back."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.buses.embedded import EmbeddedBus, folding, storing, streams
from headwater.errors import BusError, BusFull
from headwater.faults import set_failpoints
from headwater.model import Events, Mapped, Note, Op
from headwater.testing.buses import OTHER, SOURCE, STREAM, Bench, commits_of, declaration, events, numbered, position

TABLES = {
    "stream": "id, name, head, floor, gone, nbytes, newest, last_append, paused, resuming, parked, rejected",
    "segment": "*",
    "records": "*",
    "shape": "*",
    "position": "*",
    "note": "*",
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench("embedded", str(tmp_path)) as bench:
        yield bench


def opened(bench: Bench, **limits: Any) -> EmbeddedBus:
    bus = bench.open(**limits)
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(), declaration(OTHER, retention={"max_bytes": 20_000})])
    return bus


def stored(bus: EmbeddedBus) -> dict[str, list[Any]]:
    with bus._store.snapshot() as connection:
        return {
            table: connection.execute(f"SELECT {columns} FROM {table}").fetchall() for table, columns in TABLES.items()
        }


rows = st.fixed_dictionaries(
    {
        "id": st.integers(0, 5),
        "name": st.text(max_size=3) | st.just("long " * 300),
        "op": st.sampled_from([Op.CREATE, Op.UPDATE, Op.DELETE]),
        "commit": st.integers(0, 2**64 - 1),
        "index": st.integers(0, 3),
        "epoch": st.integers(0, 2),
    }
)
parts = st.tuples(st.sampled_from([STREAM, OTHER]), st.integers(1, 2), st.lists(rows, max_size=3))
steps = st.lists(st.tuples(st.lists(parts, max_size=5), st.booleans()), min_size=1, max_size=8)


def _append(bus: EmbeddedBus, number: int, step: Any) -> str:
    made, noted = step
    notes = (Note(STREAM, "mapping", "new"),) if noted else ()
    mapped = Mapped([events(rows, stream, version) for stream, version, rows in made], notes=notes)
    try:
        bus.append(mapped, source=SOURCE, position=position(number))
    except BusFull as error:
        return error.message
    return ""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_one_statement_gives_what_several_give(steps: Any) -> None:
    found = []
    for at_once in (storing.AT_ONCE, -1):
        ticking = itertools.count(1_700_000_000_000_000)
        with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
            patch.setattr(storing, "AT_ONCE", at_once)
            patch.setattr(streams, "micros", lambda ticking=ticking: next(ticking))
            with Bench("embedded", name) as bench:
                bus = opened(bench, max_bytes=30_000)
                said = [_append(bus, number, step) for number, step in enumerate(steps)]
                assert bus.check() == []
                found.append((said, stored(bus)))
    assert found[0] == found[1]


def _no_transaction(*_: Any) -> Any:
    raise AssertionError("one statement is expected")


def test_events_alone_are_one_statement(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = opened(bench)
    bus.append(Mapped([numbered(1), numbered(1, stream=OTHER)]), source=SOURCE, position=position(1))
    monkeypatch.setattr(bus._store, "write", _no_transaction)
    bus.append(Mapped([numbered(2), numbered(2, stream=OTHER), numbered(3)]), source=SOURCE, position=position(3))
    bus.append(Mapped(), source=SOURCE, position=position(4))
    monkeypatch.undo()
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1, 2, 3]
    assert commits_of(bus.read(OTHER, after=None, follow=False)) == [1, 2]
    assert bus.position(SOURCE) == position(4)
    assert bus.check() == []


def test_a_stream_that_somebody_dropped_and_made_again_begins_at_its_beginning(bench: Bench) -> None:
    bus = opened(bench)
    for number in (1, 2):
        bus.append(Mapped([numbered(number)]), source=SOURCE, position=position(number))
    bus.drop(STREAM)
    with pytest.raises(BusError, match=f"there is no stream `{STREAM}`"):
        bus.append(Mapped([numbered(3)]), source=SOURCE, position=position(3))
    assert bus.position(SOURCE) == position(2)
    bus.declare([declaration()])
    for number in (3, 4):
        bus.append(Mapped([numbered(number)]), source=SOURCE, position=position(number))
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [3, 4]
    assert bus.streams()[STREAM].head == 2
    assert bus.check() == []


def test_one_statement_keeps_to_the_limit_of_a_stream(bench: Bench) -> None:
    bus = opened(bench)
    large = events([{"id": 1, "name": "x" * 8_000, "commit": 1}], OTHER)
    for number in (1, 2):
        bus.append(Mapped([numbered(number), large]), source=SOURCE, position=position(number))
    before = stored(bus)
    with pytest.raises(BusFull, match=f"stream `{OTHER}` has reached its limit of 20,000 bytes"):
        bus.append(Mapped([numbered(3), large]), source=SOURCE, position=position(3))
    assert stored(bus) == before


@pytest.mark.parametrize("point", ["bus.append.before_commit", "bus.write.before_commit"])
def test_what_failed_before_its_commit_is_not_there(bench: Bench, point: str) -> None:
    bus = opened(bench)
    bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
    before = stored(bus)
    set_failpoints(f"{point}=error:1:1")
    try:
        with pytest.raises(OSError, match=point):
            bus.append(Mapped([numbered(2)]), source=SOURCE, position=position(2))
    finally:
        set_failpoints("")
    assert stored(bus) == before
    bus.append(Mapped([numbered(3)]), source=SOURCE, position=position(3))
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1, 3]


def _large(number: int) -> Events:
    return events([{"id": number, "name": f"{number:9} " * 2_000, "commit": number}])


def test_the_log_is_folded_back_beside_the_appends(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 2**20
    monkeypatch.setattr(folding, "CHECKPOINT", limit)
    bus = opened(bench)
    assert bus._appender is not None
    for number in range(200):
        bus.append(Mapped([_large(number)]), source=SOURCE, position=position(number))
        bus._appender._folder.close()
    assert (tmp_path / "bus" / "bus.db-wal").stat().st_size < 2 * limit
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(200))
    assert bus.check() == []


def test_appends_go_on_while_the_log_cannot_be_folded_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "CHECKPOINT", 1)
    bus = opened(bench)

    def refused() -> Any:
        raise BusError("too many open files")

    monkeypatch.setattr(bus._store, "borrow", refused)
    bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
    assert bus._appender is not None
    bus._appender._folder.close()
    monkeypatch.undo()
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1]
