"""Streams and their current state in SQL."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from headwater.buses.memory import MemoryBus
from headwater.contracts.model import Contract, EventType, FieldSpec
from headwater.mapping.hashing import event_ids
from headwater.model import Cursor, Events
from headwater.views import connect
from tests.streams import ITEM, append, bus_with, events

LIFE = [
    {"op": "r", "at": (1, 1, 0), "id": 1, "name": "one"},
    {"op": "c", "at": (1, 2, 0), "id": 2, "name": "two"},
    {"op": "u", "at": (1, 3, 0), "id": 1, "unchanged": ["name"]},
    {"op": "d", "at": (1, 4, 0), "id": 2},
]


def ask(bus: MemoryBus, query: str, contract: Contract = ITEM) -> list[tuple[Any, ...]]:
    with closing(connect(bus, {contract.stream: contract})) as connection:
        return [tuple(row.values()) for row in connection.sql(query).to_arrow_table().to_pylist()]


def test_events_are_rows_with_offset_letter_order_and_fields() -> None:
    bus = bus_with(events(LIFE))
    assert ask(bus, "SELECT _offset, _op, _epoch, _commit, _index, id, name, _unchanged, _version FROM shop.item") == [
        (0, "r", 1, 1, 0, 1, "one", None, 1),
        (1, "c", 1, 2, 0, 2, "two", None, 1),
        (2, "u", 1, 3, 0, 1, None, ["name"], 1),
        (3, "d", 1, 4, 0, 2, None, None, 1),
    ]
    assert ask(bus, 'SELECT count(*), max(_offset) FROM "shop.item"') == [(4, 3)]


def test_ids_are_those_of_the_events_in_any_query() -> None:
    part = events(LIFE)
    expected = [value.hex() for value in event_ids(part).to_pylist()]
    bus = bus_with(part)
    assert [row[0] for row in ask(bus, "SELECT _id FROM shop.item ORDER BY _offset")] == expected
    assert ask(bus, f"SELECT id, _offset FROM shop.item WHERE _id = '{expected[2]}'") == [(1, 2)]
    assert ask(bus, "SELECT * FROM shop.item LIMIT 1")[0][1] == expected[0]


@pytest.mark.parametrize("view", ["shop.item_current", 'current."shop.item"', '"shop.item_current"'])
def test_the_current_state_is_folded_per_key_and_field(view: str) -> None:
    bus = bus_with(
        events(
            [
                *LIFE,
                {"op": "c", "at": (1, 5, 0), "id": 3, "name": "first life"},
                {"op": "d", "at": (1, 6, 0), "id": 3},
                {"op": "u", "at": (1, 7, 0), "id": 3, "unchanged": ["name"]},
                {"op": "u", "at": (1, 9, 0), "id": 4, "name": "newest"},
                {"op": "u", "at": (1, 8, 0), "id": 4, "name": "late"},
            ]
        )
    )
    assert ask(bus, f"SELECT id, name, _commit, _offset FROM {view} ORDER BY id") == [
        (1, "one", 3, 2),
        (3, None, 7, 6),
        (4, "newest", 9, 7),
    ]


def test_a_truncate_empties_the_current_state() -> None:
    bus = bus_with(
        events(
            [
                {"op": "c", "at": (1, 1, 0), "id": 1, "name": "a"},
                {"op": "c", "at": (1, 2, 2), "id": 2, "name": "b"},
                {"op": "u", "at": (1, 3, 0), "id": 2, "unchanged": ["name"]},
                {"op": "t", "at": (1, 2, 0)},
            ]
        )
    )
    assert ask(bus, "SELECT id, name FROM shop.item_current") == [(2, "b")]
    append(bus, events([{"op": "t", "at": (1, 9, 0)}]))
    assert ask(bus, "SELECT id, name FROM shop.item_current") == []


def test_several_event_types_stand_side_by_side() -> None:
    contract = Contract(
        stream="shop.order",
        version=1,
        kind="event",
        types={
            "placed": EventType(fields={"id": FieldSpec(type="int64"), "total": FieldSpec(type="int64")}),
            "paid": EventType(fields={"payer": FieldSpec(type="string"), "id": FieldSpec(type="int64")}),
        },
    )
    bus = bus_with(
        events([{"op": "c", "at": (1, 1, 0), "id": 1, "total": 5}], contract, type="placed"),
        events([{"op": "u", "at": (1, 2, 0), "id": 1, "unchanged": ["payer"]}], contract, type="paid"),
        contract=contract,
    )
    assert ask(bus, "SELECT type, id, total, payer, _unchanged FROM shop.order ORDER BY _offset", contract) == [
        ("placed", 1, 5, None, None),
        ("paid", 1, None, None, ["payer"]),
    ]


def test_values_keep_their_types() -> None:
    fields = {
        "id": FieldSpec(type="int64"),
        "price": FieldSpec(type="decimal(38,6)"),
        "huge": FieldSpec(type="decimal(60,2)"),
        "moment": FieldSpec(type="timestamp"),
        "data": FieldSpec(type="bytes"),
        "tags": FieldSpec(type="list<string>"),
        "shape": FieldSpec(type="struct<x: int64, y: list<decimal(50,1)>>"),
        "extra": FieldSpec(type="map<string,int64>"),
    }
    contract = Contract(stream="all.types", version=1, key=("id",), fields=fields)
    row = {
        "id": 1,
        "price": decimal.Decimal("1.500000"),
        "huge": decimal.Decimal("1" * 58 + ".10"),
        "moment": datetime.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
        "data": b"\0\xff",
        "tags": ["a", None],
        "shape": {"x": 1, "y": [decimal.Decimal("1.5")]},
        "extra": [("k", 1)],
    }
    bus = bus_with(events([{"op": "c", "at": (1, 1, 0), **row}], contract), contract=contract)
    names = ", ".join(fields)
    shown = {**row, "huge": "1" * 58 + ".10", "shape": {"x": 1, "y": ["1.5"]}}
    for view in ("all.types", "all.types_current"):
        quoted = ".".join(f'"{part}"' for part in view.split("."))
        ((*values,),) = ask(bus, f"SELECT {names} FROM {quoted}", contract)
        assert dict(zip(fields, values, strict=True)) == shown


def test_older_events_have_the_fields_of_today() -> None:
    fields = {**ITEM.fields, "size": FieldSpec(type="int64", default=7)}
    contract = ITEM.model_copy(update={"version": 2, "fields": fields})
    bus = bus_with(events(LIFE[:1]), contract=contract)
    assert ask(bus, "SELECT id, size, _version FROM shop.item", contract) == [(1, 7, 1)]


def test_names_that_duckdb_takes_otherwise_are_reached_by_the_quoted_name() -> None:
    names = ["orders", "system.user", "memory.item", "a.b.c", "shop.item", "shop.item_current", "temp.x", "current.y"]
    contracts = {name: ITEM.model_copy(update={"stream": name}) for name in names}
    with closing(connect(MemoryBus(), contracts)) as connection:
        for name in names:
            assert connection.sql(f'SELECT count(*) FROM "{name}"').fetchall() == [(0,)]
            assert connection.sql(f'SELECT count(*) FROM current."{name}"').fetchall() == [(0,)]
        assert connection.sql('SELECT * FROM orders, "a.b".c').fetchall() == []
        assert "_op" in connection.sql("SELECT * FROM shop.item_current").columns


class Counting(MemoryBus):
    """Says how many batches were read."""

    read_batches = 0

    def read(self, stream: str, *, after: Cursor | None, follow: bool, limit: int | None = None) -> Iterator[Events]:
        for part in super().read(stream, after=after, follow=follow, limit=1):
            self.read_batches += 1
            yield part


def test_a_query_reads_the_stream_anew_and_no_more_than_it_needs() -> None:
    bus = bus_with(events([{"op": "c", "at": (1, n, 0), "id": n} for n in range(2_000)]))
    bus.__class__ = Counting
    assert isinstance(bus, Counting)
    with closing(connect(bus, {"shop.item": ITEM})) as connection:
        assert bus.read_batches == 0
        assert len(connection.sql("SELECT id FROM shop.item LIMIT 1").fetchall()) == 1
        assert bus.read_batches < 2_000
        append(bus, events([{"op": "c", "at": (2, 1, 0), "id": 5_000}]))
        assert connection.sql("SELECT max(id) FROM shop.item").fetchall() == [(5_000,)]
