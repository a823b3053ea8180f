"""A sink's rows against the stream up to the sink's own cursor."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.buses.memory import MemoryBus
from headwater.contracts.model import Contract, EventType, FieldSpec, Retention
from headwater.errors import VerifyError
from headwater.model import Cursor, Events
from headwater.protocols import Guarantee, SinkState
from headwater.schema import table_schema
from headwater.verify import Comparison, Workspace, verify_sink
from tests.streams import ITEM, OPS, append, bus_with, events

ORDER = [("_epoch", pa.uint32()), ("_commit", pa.uint64()), ("_index", pa.uint32())]


class Shelf:
    """A sink that holds what the test puts into it."""

    name = "shelf"
    guarantee = Guarantee("exactly_once")

    def __init__(self, contract: Contract, *, history: bool = False) -> None:
        op = [("_op", pa.int8())] if history else []
        self.schema = pa.schema([*op, *ORDER, *table_schema(contract)])
        self.rows: list[dict[str, Any]] = []
        self.at: Cursor | None = None

    def state(self, stream: str) -> SinkState:
        rows = [{"_epoch": 1, "_commit": 1, "_index": 0, **row} for row in self.rows]
        batches = [pa.RecordBatch.from_pylist(rows, schema=self.schema)] if rows else []
        return SinkState(self.at, iter(batches))

    def cursor(self, stream: str) -> Cursor | None:
        return self.at

    def prepare(self, contract: Contract) -> None: ...
    def write(self, events: Events) -> None: ...
    def move(self, stream: str, cursor: Cursor | None) -> None: ...
    def clear(self, stream: str) -> None: ...
    def close(self) -> None: ...


def compare(
    bus: MemoryBus, rows: Sequence[dict[str, Any]], *, at: int | None = None, contract: Contract = ITEM, **more: Any
) -> Comparison:
    shelf = Shelf(contract, **more)
    shelf.rows = list(rows)
    state = bus.streams()[contract.stream]
    shelf.at = Cursor(state.incarnation, (state.head if at is None else at,))
    return verify_sink(bus, contract.stream, contract, shelf)


LIFE = [
    {"op": "c", "at": (1, 1, 0), "id": 1, "name": "one"},
    {"op": "c", "at": (1, 2, 0), "id": 2, "name": "two"},
    {"op": "u", "at": (1, 3, 0), "id": 1, "name": "uno"},
    {"op": "d", "at": (1, 4, 0), "id": 2},
]
STATES = {
    1: [{"id": 1, "name": "one"}],
    2: [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    3: [{"id": 1, "name": "uno"}, {"id": 2, "name": "two"}],
    4: [{"id": 1, "name": "uno"}],
}
"""What `LIFE` amounts to before an offset."""


@pytest.mark.parametrize(
    ("at", "rows"),
    [
        (0, []),
        (1, [{"id": 1, "name": "one"}]),
        (2, [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]),
        (3, [{"id": 1, "name": "uno"}, {"id": 2, "name": "two"}]),
        (4, [{"id": 1, "name": "uno"}]),
    ],
)
def test_the_stream_is_folded_to_the_cursor_of_the_sink(at: int, rows: list[dict[str, Any]]) -> None:
    comparison = compare(bus_with(events(LIFE)), rows, at=at)
    comparison.require_equal()
    assert (comparison.rows_source, comparison.rows_target, comparison.at) == (len(rows), len(rows), f"offset {at}")


def test_what_differs_is_listed_with_both_values() -> None:
    bus = bus_with(events([{"op": "c", "at": (1, n, 0), "id": n, "name": f"n{n}"} for n in range(1, 5)]))
    found = compare(bus, [{"id": 1, "name": "n1"}, {"id": 2, "name": None}, {"id": 3, "name": "n3"}, {"id": 9}])
    assert not found.equal
    assert [(d.key, d.source, d.target, d.fields()) for d in found.differing] == [
        ({"id": 2}, {"id": 2, "name": "n2"}, {"id": 2, "name": None}, ["name"])
    ]
    assert [(d.key, d.source, d.target) for d in found.missing] == [({"id": 4}, {"id": 4, "name": "n4"}, None)]
    assert [(d.key, d.source, d.target) for d in found.extra] == [({"id": 9}, None, {"id": 9, "name": None})]
    assert (found.rows_source, found.rows_target) == (4, 4)
    with pytest.raises(VerifyError, match=r"shop\.item against sink shelf, at offset 4: 1 differing, 1 missing, 1 ex"):
        found.require_equal()


def test_a_row_that_the_sink_has_twice_is_found() -> None:
    bus = bus_with(events(LIFE[:1]))
    found = compare(bus, [{"id": 1, "name": "one"}] * 2)
    assert [d.key for d in found.repeated] == [{"id": 1}]
    assert not found.equal


def test_order_decides_truncates_empty_and_f30_unchanged_fields_are_kept() -> None:
    bus = bus_with(
        events(
            [
                {"op": "c", "at": (1, 1, 0), "id": 1, "name": "before the truncate"},
                {"op": "u", "at": (1, 5, 0), "id": 3, "unchanged": ["name"]},
                {"op": "u", "at": (1, 5, 2), "id": 1, "unchanged": ["name"]},
                {"op": "c", "at": (1, 3, 0), "id": 3, "name": "kept"},
                {"op": "t", "at": (1, 2, 0)},
                {"op": "c", "at": (1, 3, 2), "id": 4, "name": "first life"},
                {"op": "d", "at": (1, 4, 0), "id": 4},
                {"op": "u", "at": (1, 6, 0), "id": 4, "unchanged": ["name"]},
                {"op": "r", "at": (2, 1, 0), "id": 5, "name": "new"},
                {"op": "u", "at": (1, 9, 0), "id": 5, "name": "late, of an older epoch"},
            ]
        )
    )
    expected: list[dict[str, Any]] = [
        {"id": 1, "name": None},
        {"id": 3, "name": "kept"},
        {"id": 4, "name": None},
        {"id": 5, "name": "new"},
    ]
    compare(bus, expected).require_equal()


def test_a_history_is_compared_event_by_event() -> None:
    bus = bus_with(events(LIFE))

    def row(op: str, commit: int, **fields: Any) -> dict[str, Any]:
        return {"_op": OPS[op].value, "_commit": commit, **fields}

    rows = [row("c", 1, id=1, name="one"), row("c", 2, id=2, name="two"), row("u", 3, id=1, name="uno")]
    compare(bus, [*rows, row("d", 4, id=2)], history=True).require_equal()
    compare(bus, rows, at=3, history=True).require_equal()

    found = compare(bus, [*rows[:2], row("d", 3, id=1, name="uno"), row("d", 7, id=2)], history=True)
    assert [d.key["_commit"] for d in found.differing] == [3]
    assert [d.fields() for d in found.differing] == [["_op"]]
    assert [d.key["_commit"] for d in found.missing] == [4]
    assert [d.key["_commit"] for d in found.extra] == [7]


def test_a_history_that_has_lost_all_its_rows_is_found() -> None:
    bus = bus_with(events([{"op": "c", "at": (1, 1, 0), "id": 1}, {"op": "d", "at": (1, 2, 0), "id": 1}]))
    shelf = Shelf(ITEM, history=True)
    shelf.at = Cursor(bus.streams()["shop.item"].incarnation, (2,))
    assert len(verify_sink(bus, "shop.item", ITEM, shelf, mode="history").missing) == 2
    assert verify_sink(bus, "shop.item", ITEM, shelf, mode="current").equal


def test_several_types_are_compared_as_a_history() -> None:
    contract = Contract(
        stream="shop.order",
        version=1,
        kind="event",
        types={
            "placed": EventType(fields={"id": FieldSpec(type="int64"), "total": FieldSpec(type="int64")}),
            "paid": EventType(fields={"id": FieldSpec(type="int64"), "by": FieldSpec(type="string")}),
        },
    )
    bus = bus_with(
        events([{"op": "c", "at": (1, 1, 0), "id": 1, "total": 5}], contract, type="placed"),
        events([{"op": "c", "at": (1, 2, 0), "id": 1, "by": "card"}], contract, type="paid"),
        contract=contract,
    )
    rows = [
        {"_op": 1, "_commit": 1, "type": "placed", "id": 1, "total": 5},
        {"_op": 1, "_commit": 2, "type": "paid", "id": 1, "by": "card"},
    ]
    compare(bus, rows, contract=contract, history=True).require_equal()
    wrong = [rows[0], {**rows[1], "type": "placed"}]
    assert len(compare(bus, wrong, contract=contract, history=True).differing) == 1


def test_a_field_added_later_has_its_default_in_older_events() -> None:
    older = events(LIFE[:2])
    fields = {
        **ITEM.fields,
        "size": FieldSpec(type="int64", default=7),
        "note": FieldSpec(type="string", optional=True),
    }
    contract = ITEM.model_copy(update={"version": 2, "fields": fields})
    newer = events([{"op": "u", "at": (1, 9, 0), "id": 2, "name": "b", "size": 8, "note": "x"}], contract)
    bus = bus_with(older, newer, contract=contract)
    rows = [{"id": 1, "name": "one", "size": 7}, {"id": 2, "name": "b", "size": 8, "note": "x"}]
    compare(bus, rows, contract=contract).require_equal()


def test_f83_a_cursor_of_another_incarnation_or_ahead_of_the_stream_cannot_be_compared() -> None:
    bus = bus_with(events(LIFE))
    shelf = Shelf(ITEM)
    shelf.at = Cursor("another", (1,))
    found = verify_sink(bus, "shop.item", ITEM, shelf)
    assert not found.comparable
    assert "another incarnation, another" in found.reason
    with pytest.raises(VerifyError, match="another incarnation, another"):
        found.require_equal()
    ahead = compare(bus, [], at=9)
    assert (ahead.equal, "9 is ahead of the stream, at 4" in ahead.reason) == (False, True)
    assert verify_sink(bus, "shop.none", ITEM, shelf).reason == "the stream is not on the bus"


def test_events_that_one_comparison_has_read_are_not_read_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = bus_with(events(LIFE[:3]))
    asked: list[int | None] = []
    read = bus.read

    def noted(stream: str, *, after: Cursor | None, **how: Any) -> Iterator[Events]:
        if "limit" not in how:  # that is how a cursor is tried
            asked.append(after.offset if after is not None else None)
        return read(stream, after=after, **how)

    monkeypatch.setattr(bus, "read", noted)
    shelf = Shelf(ITEM)
    incarnation = bus.streams()["shop.item"].incarnation
    found = []
    with Workspace(keep=True) as workspace:
        for offset in (2, 3, 4, 1):
            if offset == 4:
                append(bus, events(LIFE[3:]), position=(1, 2))
            shelf.at = Cursor(incarnation, (offset,))
            shelf.rows = STATES[offset]
            found.append(verify_sink(bus, "shop.item", ITEM, shelf, workspace=workspace))
            shelf.rows = []
            found.append(verify_sink(bus, "shop.item", ITEM, shelf, workspace=workspace))
    assert [comparison.equal for comparison in found[::2]] == [True] * 4
    assert [len(comparison.missing) for comparison in found[1::2]] == [2, 2, 1, 1]
    assert asked == [None, 3, 3, 3, 3, 4, 4, 4]


def test_a_sink_that_keeps_no_cursor_is_compared_at_that_of_its_group() -> None:
    bus = bus_with(events(LIFE))
    shelf = Shelf(ITEM)
    shelf.rows = [{"id": 1, "name": "one"}]
    bus.commit("shelf", "shop.item", Cursor(bus.streams()["shop.item"].incarnation, (1,)))
    verify_sink(bus, "shop.item", ITEM, shelf).require_equal()


class Partial(MemoryBus):
    """A bus whose stream has lost its beginning."""

    def streams(self) -> dict[str, Any]:
        return {name: dataclasses.replace(state, complete=False, first=3) for name, state in super().streams().items()}


def test_a_stream_without_its_whole_history_says_that_it_cannot_be_compared() -> None:
    bus = bus_with(events(LIFE))
    bus.__class__ = Partial
    found = compare(bus, [])
    assert (found.comparable, found.equal) == (False, False)
    assert "from offset 3 on only" in found.reason


def test_keys_of_a_compacted_stream_that_have_moved_on_are_a_class_of_their_own() -> None:
    contract = ITEM.model_copy(update={"retention": Retention(compacted=True)})
    bus = bus_with(events([LIFE[1], LIFE[2]]), contract=contract)  # the first event of key 1 is compacted away
    found = compare(bus, [{"id": 1, "name": "one"}, {"id": 2, "name": "zwei"}], at=1, contract=contract)
    assert [d.key for d in found.unsettled] == [{"id": 1}]
    assert [d.key for d in found.differing] == [{"id": 2}]


VALUES: dict[str, tuple[Any, Any]] = {
    "bool": (True, False),
    "int64": (2**63 - 1, 2**63 - 2),
    "float64": (float("nan"), 0.1),
    "float32": (float("inf"), 0.5),
    "decimal(38,6)": (decimal.Decimal("0.100000"), decimal.Decimal("0.100001")),
    "decimal(60,2)": (decimal.Decimal("1" * 58 + ".10"), decimal.Decimal("1" * 58 + ".11")),
    "string": ("a\0ß", "a"),
    "bytes": (b"\0\xff", b"\0"),
    "date": (datetime.date(1, 1, 1), datetime.date(9999, 12, 31)),
    "time": (datetime.time(23, 59, 59, 999999), datetime.time(0)),
    "timestamp": (datetime.datetime(1, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    "local_timestamp": (datetime.datetime(9999, 12, 31, 23, 59, 59, 999999), datetime.datetime(2020, 1, 1)),
    "json": ('{"a":1}', '{"a": 1}'),
    "list<decimal(50,1)>": ([decimal.Decimal("1.5"), None], [None]),
    "map<string,int64>": ([("k", 1)], [("k", None)]),
    "struct<x: int64, y: list<string>>": ({"x": 1, "y": ["a"]}, {"x": 1, "y": []}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_type_are_compared_exactly(kind: str) -> None:
    fields = {"id": FieldSpec(type="int64"), "v": FieldSpec(type=kind, optional=True)}
    contract = Contract(stream="all.types", version=1, key=("id",), fields=fields)
    one, other = VALUES[kind]
    values = [one, one, one, None, None]
    told = events([{"op": "c", "at": (1, 1, 2 * n), "id": n, "v": v} for n, v in enumerate(values)], contract)
    bus = bus_with(told, contract=contract)
    compare(bus, [{"id": n, "v": v} for n, v in enumerate(values)], contract=contract).require_equal()
    found = compare(bus, [{"id": n, "v": v} for n, v in enumerate([one, other, None, None, one])], contract=contract)
    assert [d.key["id"] for d in found.differing] == [1, 2, 4]
    assert all(d.fields() == ["v"] for d in found.differing)


def test_many_rows_are_compared_part_by_part_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.verify.tables._PART_ROWS", 500)
    monkeypatch.setattr("headwater.verify.tables._CHUNK_ROWS", 700)
    rows: list[dict[str, Any]] = [{"id": n, "name": f"n{n}"} for n in range(3_000)]
    bus = bus_with(events([{"op": "c", "at": (1, n, 0), **row} for n, row in enumerate(rows)]))
    append(bus, events([{"op": "t", "at": (0, 0, 0)}]))
    shelf = Shelf(ITEM)
    shelf.rows = [{**row, "name": "x"} if row["id"] % 1_000 == 5 else row for row in rows[:-1]]
    shelf.at = Cursor(bus.streams()["shop.item"].incarnation, (3_001,))
    found = verify_sink(bus, "shop.item", ITEM, shelf, workspace=Workspace(directory=tmp_path))
    assert sorted(d.key["id"] for d in found.differing) == [5, 1_005, 2_005]
    assert [d.key["id"] for d in found.missing] == [2_999]
    assert (found.rows_source, found.rows_target) == (3_000, 2_999)
    assert list(tmp_path.iterdir()) == []


def test_of_very_many_differences_all_are_counted_and_the_first_are_shown() -> None:
    bus = bus_with(events([{"op": "c", "at": (1, n, 0), "id": n} for n in range(500)]))
    found = compare(bus, [])
    assert (len(found.missing), [d.key["id"] for d in found.missing]) == (500, list(range(100)))


def test_the_rows_of_the_target_are_let_go_when_nothing_can_be_compared() -> None:
    closed: list[bool] = []
    bus = bus_with(events(LIFE))
    verify_sink(bus, "shop.item", ITEM, Holding(ITEM, closed))
    assert closed == [True]


class Holding(Shelf):
    """A sink whose rows are read in a transaction."""

    def __init__(self, contract: Contract, closed: list[bool]) -> None:
        super().__init__(contract)
        self.closed = closed

    def state(self, stream: str) -> SinkState:
        return SinkState(Cursor("another", (1,)), self._rows())

    def _rows(self) -> Iterator[pa.RecordBatch]:
        try:
            yield pa.RecordBatch.from_pylist([], schema=self.schema)
        finally:
            self.closed.append(True)
