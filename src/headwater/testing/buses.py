"""What every bus must do: a suite that an adapter passes before it is called one.

    import pytest
    from headwater.testing.buses import BusConformance, Bench

    class TestMyBus(BusConformance):
        @pytest.fixture
        def bench(self, tmp_path):
            with Bench("mybus", str(tmp_path)) as bench:
                yield bench

Promises that only a bus with storage of its own can keep (`durable`, True unless the bus says otherwise) are left out
for one that has none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import pyarrow as pa

from headwater import plugins
from headwater.config import BusConfig
from headwater.contracts.model import Contract
from headwater.errors import AppenderBusy, BusError, BusFull, CursorMismatch
from headwater.model import (
    REASONS,
    Changes,
    Cursor,
    Events,
    Mapped,
    Note,
    Op,
    Order,
    Parked,
    Position,
    Reading,
    Rejected,
    Reload,
    TableId,
    changes_schema,
    id_seed,
    utc_now,
)
from headwater.protocols import Bus, Declaration, RejectedRow
from headwater.schema import events_schema

STREAM = "shop.order"
OTHER = "shop.customer"
SOURCE = "shop/log"
SEED = id_seed("suite", SOURCE, STREAM)
WAIT = 30.0
"""Seconds after which a wait for another thread has failed."""

T0 = datetime.datetime(2024, 5, 1, 12, 0, tzinfo=datetime.UTC)


def contract(stream: str = STREAM, version: int = 1, **more: Any) -> Contract:
    """A fact of two fields."""
    fields = {"id": {"type": "int64"}, "name": {"type": "string", "optional": True}}
    return Contract.model_validate({"stream": stream, "version": version, "key": ["id"], "fields": fields, **more})


def declaration(stream: str = STREAM, *, groups: Sequence[str] = (), **more: Any) -> Declaration:
    return Declaration(contract(stream, **more), SOURCE, "print-1", frozenset(groups))


def events(rows: Sequence[dict[str, Any]], stream: str = STREAM, version: int = 1) -> Events:
    """Events as rows: `id`, `name`, `commit`, and optionally `op`, `epoch`, `index`, `time`."""
    schema = events_schema(contract(stream, version))
    filled = [
        {
            "_op": int(row.get("op", Op.CREATE)),
            "_epoch": row.get("epoch", 1),
            "_commit": row["commit"],
            "_index": row.get("index", 0),
            "_time": row.get("time"),
            "id": row.get("id"),
            "name": row.get("name"),
        }
        for row in rows
    ]
    return Events(stream, version, pa.RecordBatch.from_pylist(filled, schema=schema), source=SOURCE, seed=SEED)


def numbered(*commits: int, stream: str = STREAM) -> Events:
    """One event a commit; the id is the commit."""
    return events([{"id": commit, "name": f"n{commit}", "commit": commit} for commit in commits], stream)


def changes(*ids: int, reading: Reading | None = None, stream: str | None = None) -> Changes:
    """Changes of the table `main.orders`, one a commit."""
    columns = pa.schema([("id", pa.int64()), ("secret", pa.binary())])
    rows = [
        {"_op": 1, "_epoch": 1, "_commit": n, "_index": 0, "after": {"id": n, "secret": b"\0\xff" * n}} for n in ids
    ]
    data = pa.RecordBatch.from_pylist(rows, schema=changes_schema(columns))
    return Changes(TableId("main", "orders"), data, stream, reading)


def rejected(*ids: int, key: str | None = None, stream: str = STREAM) -> Rejected:
    reasons = [{"field": "id", "expected": f"at most {n}", "got": str(n), "key": key or f'{{"id":{n}}}'} for n in ids]
    return Rejected(stream, changes(*ids), pa.RecordBatch.from_pylist(reasons, schema=REASONS))


def position(commit: int, epoch: int = 1) -> Position:
    return Position(epoch, commit, f"token-{commit}".encode())


def rows_of(found: Iterator[Events] | list[Events]) -> list[tuple[int, dict[str, Any]]]:
    """(offset, row) of everything read."""
    return [
        (offset, row)
        for part in found
        if part.offsets is not None
        for offset, row in zip(part.offsets.to_pylist(), part.data.to_pylist(), strict=True)
    ]


def commits_of(found: Iterator[Events] | list[Events]) -> list[int]:
    return [row["_commit"] for _, row in rows_of(found)]


@contextlib.contextmanager
def fails(kind: type[Exception], *words: str) -> Iterator[None]:
    """The block raises `kind`, and its text has these words."""
    raised: Exception | None = None
    try:
        yield
    except kind as error:
        raised = error
    assert raised is not None, f"{kind.__name__} is expected, and nothing was raised"
    missing = [word for word in words if word not in str(raised)]
    assert not missing, f"{missing} are missing in: {raised}"


class Bench:
    """Opens buses of one scheme in one directory, and closes them."""

    def __init__(self, scheme: str, directory: str, **config: Any) -> None:
        self._url, self._directory, self._config = f"{scheme}:bus", directory, config
        self._factory = plugins.bus_factory(self._url)
        self._open: list[Bus] = []
        self._only: Bus | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for bus in self._open:
            bus.close()

    def open(self, *, append: bool = True, **config: Any) -> Bus:
        """The appender, or a bus as another process would open it; the one bus there is, if it is not durable."""
        if self._only is not None:
            return self._only
        filled = BusConfig(url=self._url, **{**self._config, **config})
        bus = self._factory(config=filled, pipeline="suite", directory=self._directory, append=append)
        self._open.append(bus)
        if not is_durable(bus):
            self._only = bus
        return bus

    def reopened(self, bus: Bus) -> Bus:
        """What the next process finds."""
        if self._only is None:
            self._open.remove(bus)
            bus.close()
        return self.open()


def is_durable(bus: Bus) -> bool:
    return bool(getattr(bus, "durable", True))


def declared(bench: Bench, *streams: str, **config: Any) -> Bus:
    bus = bench.open(**config)
    bus.declare([declaration(stream) for stream in streams or (STREAM,)])
    return bus


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs `work`; what it returns, or the exception, is put into the list."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 - handed to the test
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def finished(thread: threading.Thread) -> None:
    thread.join(WAIT)
    assert not thread.is_alive(), f"still waiting after {WAIT:g} s"


class BusConformance:
    """Every method is one promise. `bench` is a fresh, empty place for each."""

    # append and position

    def test_events_and_position_come_back_as_they_were(self, bench: Bench) -> None:
        bus = declared(bench)
        sent = events(
            [
                {"id": 1, "name": "žluť", "commit": 7, "time": T0},
                {"id": 2, "name": None, "commit": 2**64 - 1, "index": 2**32 - 1, "op": Op.DELETE},
            ]
        )
        bus.append(Mapped([sent]), source=SOURCE, position=Position(3, 2**64 - 1, b"\0\xfftoken"))
        bus = bench.reopened(bus)
        assert bus.position(SOURCE) == Position(3, 2**64 - 1, b"\0\xfftoken")
        assert bus.positions() == {SOURCE: Position(3, 2**64 - 1, b"\0\xfftoken")}
        (found,) = bus.read(STREAM, after=None, follow=False)
        assert found.data.to_pylist() == sent.data.to_pylist()
        assert found.data.schema.equals(sent.data.schema, check_metadata=True)
        assert dataclasses.replace(found, data=sent.data, after=None, cursor=None, offsets=None) == sent

    def test_an_empty_append_moves_the_position(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped(), source=SOURCE, position=position(5))
        bus.append(Mapped([numbered()]), source=SOURCE, position=position(6))
        assert bus.position(SOURCE) == position(6)
        assert bus.streams()[STREAM].head == 0

    def test_offsets_are_dense_over_appends_and_streams(self, bench: Bench) -> None:
        bus = declared(bench, STREAM, OTHER)
        for first in range(0, 9, 3):
            mapped = Mapped([numbered(first), numbered(first, stream=OTHER), numbered(first + 1, first + 2)])
            bus.append(mapped, source=SOURCE, position=position(first))
        assert [offset for offset, _ in rows_of(bus.read(STREAM, after=None, follow=False))] == list(range(9))
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(9))
        assert commits_of(bus.read(OTHER, after=None, follow=False)) == [0, 3, 6]

    def test_positions_of_sources_are_apart(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped(), source="a", position=position(1))
        bus.append(Mapped(), source="b", position=position(2, epoch=4))
        assert bus.positions() == {"a": position(1), "b": position(2, epoch=4)}
        bus.forget("a")
        assert bus.position("a") is None
        assert bus.position("b") == position(2, epoch=4)

    def test_a_failed_append_leaves_nothing(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))

        def broken() -> Iterator[Events]:
            yield numbered(2)
            raise RuntimeError("the mapping failed")

        with fails(RuntimeError, "the mapping failed"):
            bus.append(Mapped(broken()), source=SOURCE, position=position(2))
        with fails(BusError, "no.such"):
            bus.append(Mapped([numbered(2), numbered(2, stream="no.such")]), source=SOURCE, position=position(2))
        assert bus.position(SOURCE) == position(1)
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1]
        bus.append(Mapped([numbered(3)]), source=SOURCE, position=position(3))
        assert rows_of(bus.read(STREAM, after=None, follow=False))[-1][0] == 1

    def test_one_process_appends(self, bench: Bench) -> None:
        bus = bench.open()
        if is_durable(bus):
            with fails(AppenderBusy, "appends"):
                bench.open()
            reader = bench.open(append=False)
            with fails(BusError, "append"):
                reader.append(Mapped(), source=SOURCE, position=position(1))

    # reading

    def test_cursors_chain_and_resume(self, bench: Bench) -> None:
        bus = declared(bench)
        for commit in range(0, 10, 2):
            bus.append(Mapped([numbered(commit, commit + 1)]), source=SOURCE, position=position(commit))
        parts = list(bus.read(STREAM, after=None, follow=False, limit=2))
        assert parts[0].after is None
        assert all(len(part) <= 2 for part in parts)
        for before, part in itertools.pairwise(parts):
            assert part.after == before.cursor
        for part in parts:
            rest = commits_of(bus.read(STREAM, after=part.cursor, follow=False))
            assert part.cursor is not None
            assert rest == list(range(part.cursor.offset, 10))
        assert list(bus.read(STREAM, after=parts[-1].cursor, follow=False)) == []

    def test_a_cursor_within_a_batch_resumes_there(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(*range(20))]), source=SOURCE, position=position(1))
        incarnation = bus.streams()[STREAM].incarnation
        found = list(bus.read(STREAM, after=Cursor(incarnation, (7,)), follow=False, limit=5))
        assert [offset for offset, _ in rows_of(found)] == list(range(7, 20))
        assert commits_of(found) == list(range(7, 20))
        assert found[0].after == Cursor(incarnation, (7,))

    def test_without_follow_it_ends_at_the_head_when_called(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
        reading = bus.read(STREAM, after=None, follow=False)
        bus.append(Mapped([numbered(2)]), source=SOURCE, position=position(2))
        assert commits_of(reading) == [1]

    def test_f82_a_following_reader_gets_what_comes(self, bench: Bench) -> None:
        bus = declared(bench)
        reader = bench.open(append=False)
        seen: list[int] = []
        changed = threading.Condition()

        def follow(source: Bus) -> None:
            for part in source.read(STREAM, after=None, follow=True):
                with changed:
                    seen.extend(commits_of([part]))
                    changed.notify_all()

        threads = [in_thread(functools.partial(follow, source))[0] for source in (bus, reader)]
        for commit in range(30):
            bus.append(Mapped([numbered(commit)]), source=SOURCE, position=position(commit))
            with changed:
                done = changed.wait_for(lambda: seen.count(commit) == 2, WAIT)  # noqa: B023
            assert done, f"commit {commit} was not seen by both readers: {seen}"
        bus.stop()
        reader.stop()
        for thread in threads:
            finished(thread)
        assert sorted(seen) == sorted([*range(30), *range(30)])

    def test_stop_ends_reading_that_waits(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
        reading = bus.read(STREAM, after=None, follow=True)
        assert commits_of([next(reading)]) == [1]
        thread, result = in_thread(lambda: list(reading))
        bus.stop()
        finished(thread)
        assert result == [[]]
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1]

    def test_event_types_and_versions_are_apart_in_one_sequence(self, bench: Bench) -> None:
        bus = declared(bench)
        parts = [
            numbered(1),
            dataclasses.replace(numbered(2), type="placed"),
            dataclasses.replace(numbered(3), type="paid", content_ids=True),
            dataclasses.replace(numbered(4), version=2, seed=b"another seed...."),
        ]
        bus.append(Mapped(parts), source=SOURCE, position=position(4))
        found = list(bus.read(STREAM, after=None, follow=False))
        told = [(part.version, part.type, part.content_ids, part.seed) for part in found]
        assert told == [(part.version, part.type, part.content_ids, part.seed) for part in parts]
        assert commits_of(found) == [1, 2, 3, 4]

    def test_an_unknown_stream_is_an_error(self, bench: Bench) -> None:
        bus = declared(bench)
        with fails(BusError, "no.such"):
            list(bus.read("no.such", after=None, follow=False))

    # cursors, groups, incarnations

    def test_groups_commit_cursors(self, bench: Bench) -> None:
        bus = bench.open()
        bus.declare([declaration(groups=["billing", "stock"])])
        bus.append(Mapped([numbered(1, 2, 3)]), source=SOURCE, position=position(3))
        cursor = Cursor(bus.streams()[STREAM].incarnation, (2,))
        assert bus.cursor("billing", STREAM) is None
        bench.open(append=False).commit("billing", STREAM, cursor)
        bus.commit("guest", STREAM, cursor.at(1))
        bus = bench.reopened(bus)
        assert bus.cursor("billing", STREAM) == cursor
        groups = bus.groups(STREAM)
        assert {name: (state.cursor, state.declared) for name, state in groups.items()} == {
            "billing": (cursor, True),
            "guest": (cursor.at(1), False),
            "stock": (None, True),
        }
        assert bus.streams()[STREAM].groups == ("billing", "stock")

    def test_a_released_group_is_forgotten_until_it_comes_back(self, bench: Bench) -> None:
        bus = bench.open()
        bus.declare([declaration(groups=["billing"])])
        bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
        cursor = Cursor(bus.streams()[STREAM].incarnation, (1,))
        bus.commit("billing", STREAM, cursor)
        bus.release("billing")
        assert bus.cursor("billing", STREAM) is None
        bus.declare([declaration(groups=["billing"])])
        assert bus.streams()[STREAM].groups == ()
        bus.commit("billing", STREAM, cursor)
        assert bus.streams()[STREAM].groups == ("billing",)

    def test_f83_a_stream_made_again_refuses_old_cursors(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1, 2)]), source=SOURCE, position=position(2))
        old = Cursor(bus.streams()[STREAM].incarnation, (1,))
        bus.commit("billing", STREAM, old)
        bus.drop(STREAM)
        assert STREAM not in bus.streams()
        bus.declare([declaration()])
        bus.append(Mapped([numbered(8, 9)]), source=SOURCE, position=position(9))
        assert bus.cursor("billing", STREAM) is None
        with fails(CursorMismatch, STREAM, old.incarnation):
            list(bus.read(STREAM, after=old, follow=False))
        with fails(CursorMismatch, STREAM):
            bus.commit("billing", STREAM, old)
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [8, 9]

    def test_a_cursor_ahead_of_the_stream_is_refused(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1, 2)]), source=SOURCE, position=position(2))
        ahead = Cursor(bus.streams()[STREAM].incarnation, (3,))
        with fails(CursorMismatch, STREAM, "3", "ahead"):
            list(bus.read(STREAM, after=ahead, follow=False))

    # what streams there are

    def test_declared_again_with_changes(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
        first = bus.streams()[STREAM]
        assert (first.contract_version, first.source, first.fingerprint) == (1, SOURCE, "print-1")
        bus.declare([Declaration(contract(version=2), "shop/query/x", "print-2", frozenset({"g"}))])
        bus.declare([declaration(OTHER)])
        second = bus.streams()[STREAM]
        assert (second.contract_version, second.source, second.fingerprint) == (2, "shop/query/x", "print-2")
        assert (second.incarnation, second.head, second.groups) == (first.incarnation, 1, ("g",))

    def test_the_state_of_a_stream(self, bench: Bench) -> None:
        bus = declared(bench)
        empty = bus.streams()[STREAM]
        assert (empty.first, empty.head, empty.epoch, empty.order, empty.last_append) == (0, 0, 0, None, None)
        assert empty.complete
        before = utc_now()
        rows = [{"id": 1, "commit": 9, "epoch": 2, "index": 4}, {"id": 2, "commit": 50}, {"id": 3, "commit": 9,
                "epoch": 2, "index": 2}]  # fmt: skip
        bus.append(Mapped([events(rows)]), source=SOURCE, position=position(1))
        state = bus.streams()[STREAM]
        assert (state.first, state.head, state.epoch, state.order) == (0, 3, 2, Order(2, 9, 4))
        assert state.last_append is not None
        assert before <= state.last_append <= utc_now()
        assert state.nbytes > 0
        assert state.complete

    def test_notes_are_placed(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped([numbered(1, 2)]), source=SOURCE, position=position(1))
        gap, loaded = Note(STREAM, "gap", "triggers were gone"), Note(STREAM, "loaded", "initial")
        bus.append(Mapped([numbered(3)], notes=(gap, loaded)), source=SOURCE, position=position(2))
        assert [(placed.note, placed.offset) for placed in bus.notes(STREAM)] == [(gap, 2), (loaded, 3)]

    def test_offset_after_an_order(self, bench: Bench) -> None:
        bus = declared(bench)
        for commits in ((10, 20), (40, 30), (50,)):
            bus.append(Mapped([numbered(*commits)]), source=SOURCE, position=position(1))
        orders = {9: 0, 10: 1, 20: 2, 29: 2, 30: 2, 40: 4, 50: 5, 60: 5}
        assert {commit: bus.offset_after(STREAM, Order(1, commit, 0)) for commit in orders} == orders
        assert bus.offset_after(STREAM, Order(0, 99, 0)) == 0
        assert bus.offset_after(STREAM, Order(2, 0, 0)) == 5

    def test_offset_at_a_time(self, bench: Bench) -> None:
        bus = declared(bench)
        minute = datetime.timedelta(minutes=1)
        rows = [{"id": n, "commit": n, "time": T0 + n * minute} for n in range(6)]
        bus.append(Mapped([events(rows[:3])]), source=SOURCE, position=position(1))
        bus.append(Mapped([events(rows[3:])]), source=SOURCE, position=position(2))
        bus.append(Mapped([numbered(9)]), source=SOURCE, position=position(3))
        assert bus.offset_at(STREAM, T0 - minute) == 0
        assert bus.offset_at(STREAM, T0 + 2 * minute) == 2
        assert bus.offset_at(STREAM, T0 + 2.5 * minute) == 3
        assert bus.offset_at(STREAM, T0 + 6 * minute) == 6
        assert bus.offset_at(STREAM, utc_now() + minute) == 7

    # streams that stand still

    def test_parked_changes_are_kept_in_order_until_settled(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.pause(STREAM, "the table changed")
        first, second = changes(1, 2), changes(3, stream=STREAM, reading=Reading(Reload.REBUILD, Order(1, 2, 3), True))
        for number, change in enumerate((first, second)):
            bus.append(Mapped(parked=(Parked(STREAM, change),)), source=SOURCE, position=position(number))
        bus = bench.reopened(bus)
        state = bus.streams()[STREAM]
        assert (state.paused, state.resuming, state.parked) == ("the table changed", False, 2)
        assert state.parked_bytes > 0
        parked = list(bus.parked(STREAM))
        assert [change for _, change in parked] == [first, second]
        bench.open(append=False).resume(STREAM)
        assert bus.streams()[STREAM].resuming
        numbers = [number for number, _ in parked]
        bus.settle(Mapped([numbered(1, 2)]), parked=numbers[:1])
        assert bus.streams()[STREAM].paused == "the table changed"
        bus.settle(Mapped([numbered(3)]), parked=numbers[1:])
        state = bus.streams()[STREAM]
        assert (state.paused, state.resuming, state.parked, state.parked_bytes) == (None, False, 0, 0)
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1, 2, 3]

    def test_a_stream_with_nothing_parked_flows_when_resumed(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.pause(STREAM, "by hand")
        assert bus.streams()[STREAM].paused == "by hand"
        assert bus.standing_still() == {STREAM}
        bus.resume(STREAM)
        assert (bus.streams()[STREAM].paused, bus.streams()[STREAM].resuming) == (None, False)

    def test_changes_parked_while_it_is_resumed_are_not_overtaken(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped(parked=(Parked(STREAM, changes(1)),)), source=SOURCE, position=position(1))
        state = bus.streams()[STREAM]
        assert state.paused is not None
        assert (state.resuming, state.parked) == (True, 1)

    def test_a_full_park_stops_the_source(self, bench: Bench) -> None:
        bus = declared(bench, park_bytes=2_000)
        bus.pause(STREAM, "by hand")
        with fails(BusFull, STREAM, "2,000"):
            bus.append(Mapped(parked=(Parked(STREAM, changes(*range(500))),)), source=SOURCE, position=position(1))
        assert bus.position(SOURCE) is None
        assert bus.streams()[STREAM].parked == 0

    def test_the_quarantine_gives_back_the_original_changes(self, bench: Bench) -> None:
        bus = declared(bench, STREAM, OTHER)
        bus.append(Mapped([numbered(4)], rejected=(rejected(1, 2, 3),)), source=SOURCE, position=position(4))
        bus.append(Mapped(rejected=(rejected(5, stream=OTHER),)), source="elsewhere", position=position(5))
        bus = bench.reopened(bus)
        rows = list(bus.rejected())
        assert [(row.stream, row.source, row.order, row.key, row.field, row.expected, row.got) for row in rows] == [
            *((STREAM, SOURCE, Order(1, n, 0), f'{{"id":{n}}}', "id", f"at most {n}", str(n)) for n in (1, 2, 3)),
            (OTHER, "elsewhere", Order(1, 5, 0), '{"id":5}', "id", "at most 5", "5"),
        ]
        assert list(bus.rejected(OTHER)) == rows[3:]
        asked = [rows[2].number, rows[0].number]
        assert bus.rejected_changes(asked) == [changes(3), changes(1)]
        assert bus.streams()[STREAM].rejected == 3

    def test_settling_appends_and_removes_in_one_step(self, bench: Bench) -> None:
        bus = declared(bench)
        bus.append(Mapped(rejected=(rejected(1, 2, 3),)), source=SOURCE, position=position(1))
        one, two, three = (row.number for row in bus.rejected(STREAM))
        with fails(BusError, str(10**6)):
            bus.settle(Mapped([numbered(9)]), rejected=[one, 10**6])
        assert len(list(bus.rejected(STREAM))) == 3
        bus.settle(Mapped([numbered(1)], rejected=(rejected(2, key='{"id":20}'),)), rejected=[one, two])
        left: list[RejectedRow] = list(bus.rejected(STREAM))
        assert [(row.key, row.source) for row in left] == [('{"id":3}', SOURCE), ('{"id":20}', SOURCE)]
        assert left[0].number == three
        assert bus.waiting_keys(STREAM) == {'{"id":3}', '{"id":20}'}
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1]
        assert bus.position(SOURCE) == position(1)

    # limits

    def test_a_full_stream_drops_nothing(self, bench: Bench) -> None:
        bus = bench.open()
        bus.declare([declaration(groups=["billing"], retention={"max_bytes": 6_000})])
        appended = 0
        try:
            for commit in range(0, 5_000, 10):
                bus.append(Mapped([numbered(*range(commit, commit + 10))]), source=SOURCE, position=position(commit))
                appended = commit + 10
        except BusFull as error:
            assert STREAM in str(error)  # noqa: PT017 - how far it comes depends on the encoding
        assert 0 < appended < 5_000
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(appended))
        assert bus.position(SOURCE) == position(appended - 10)

    def test_a_full_bus_drops_nothing(self, bench: Bench) -> None:
        bus = declared(bench, max_bytes=3_000)
        bus.append(Mapped([numbered(1)]), source=SOURCE, position=position(1))
        with fails(BusFull, "3,000"):
            bus.append(Mapped([numbered(*range(5_000))]), source=SOURCE, position=position(2))
        assert bus.position(SOURCE) == position(1)
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [1]

    # concurrency

    def test_several_sources_append_at_once(self, bench: Bench) -> None:
        bus = declared(bench)

        def work(source: int) -> None:
            for n in range(20):
                bus.append(Mapped([numbered(source * 100 + n)]), source=str(source), position=position(n))

        threads = [in_thread(functools.partial(work, source)) for source in range(3)]
        for thread, _ in threads:
            finished(thread)
        assert [result for _, result in threads] == [[None]] * 3
        found = rows_of(bus.read(STREAM, after=None, follow=False))
        assert [offset for offset, _ in found] == list(range(60))
        for source in range(3):
            own = [row["_commit"] for _, row in found if row["_commit"] // 100 == source]
            assert own == [source * 100 + n for n in range(20)]
