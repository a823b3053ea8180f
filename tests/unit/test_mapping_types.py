"""One sequence, several event types: each change takes the first type whose ops and `where` fit."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headwater.contracts.model import Contract
from headwater.errors import MappingError
from headwater.mapping.stream import columns_needed
from tests.mapping_rows import change, changes, config, contract, mapped, mapping, plain, reasons

COLUMNS = pa.schema([("id", pa.int64()), ("state", pa.string()), ("total", pa.int64())])


def orders() -> Contract:
    return contract(
        kind="event",
        key=["id"],
        types={
            "placed": {"fields": {"id": {"type": "int64"}, "total": {"type": "int64"}}},
            "paid": {"fields": {"id": {"type": "int64"}, "amount": {"type": "int64", "max": 100}}},
            "gone": {"fields": {"id": {"type": "int64"}}},
        },
    )


SETTINGS: dict[str, Any] = {
    "types": {
        "placed": {"ops": ["c", "r"]},
        "paid": {"ops": ["u"], "where": "state = 'paid'", "fields": {"amount": "total * 2"}},
        "gone": {"ops": ["d"]},
    }
}


def row(key: int, state: str = "new", total: int | None = 5) -> dict[str, Any]:
    return {"id": key, "state": state, "total": total}


def test_each_change_takes_its_type_and_the_order_is_kept() -> None:
    rows = [
        change("c", None, row(1)),
        change("r", None, row(2)),
        change("u", row(1), row(1, "paid")),
        change("c", None, row(3)),
        change("u", row(2), row(2, "seen")),
        change("d", row(1), None),
        change("u", row(2), row(2, "paid", 7)),
    ]
    of = mapping(SETTINGS, orders(), columns=COLUMNS)
    events, rejected = of.apply(changes(rows, columns=COLUMNS, cut=1))
    assert rejected is None
    assert [(part.type, len(part)) for part in events] == [
        ("placed", 2), ("paid", 1), ("placed", 1), ("gone", 1), ("paid", 1)
    ]  # fmt: skip
    assert [{n: v for n, v in e.items() if n != "op"} for e in plain(events)] == [
        {"at": (1, 0), "type": "placed", "id": 1, "total": 5},
        {"at": (2, 0), "type": "placed", "id": 2, "total": 5},
        {"at": (3, 0), "type": "paid", "id": 1, "amount": 10},
        {"at": (4, 0), "type": "placed", "id": 3, "total": 5},
        {"at": (6, 0), "type": "gone", "id": 1},
        {"at": (7, 0), "type": "paid", "id": 2, "amount": 14},
    ]


def test_first_type_that_fits_wins() -> None:
    settings = {"types": {"paid": {"where": "total > 3", "fields": {"amount": "total"}}, "placed": {}}}
    rows = [change("c", None, row(1, total=4)), change("c", None, row(2, total=3)), change("d", row(1), None)]
    found = mapped(mapping(settings, orders(), columns=COLUMNS), rows, columns=COLUMNS)
    assert [(e["type"], e["id"]) for e in found] == [("paid", 1), ("placed", 2)]


def test_where_of_the_stream_comes_first() -> None:
    settings = {**SETTINGS, "where": "state <> 'test'"}
    rows = [change("u", row(1, "test"), row(1, "paid")), change("u", row(2), row(2, "test"))]
    found = mapped(mapping(settings, orders(), columns=COLUMNS), rows, columns=COLUMNS)
    assert [(e["type"], e["op"], e["id"]) for e in found] == [("placed", "c", 1), ("gone", "d", 2)]


def test_each_type_is_checked_by_its_own_rules() -> None:
    rows = [
        change("c", None, row(1, total=None)),
        change("u", row(2), row(2, "paid", 51)),
        change("u", row(3), row(3, "paid", 50)),
    ]
    events, rejected = mapping(SETTINGS, orders(), columns=COLUMNS).apply(changes(rows, columns=COLUMNS))
    assert [(e["type"], e["id"]) for e in plain(events)] == [("paid", 3)]
    assert [(r["field"], r["got"], r["key"]) for r in reasons(rejected)] == [
        ("total", "null", '{"id":1}'),
        ("amount", "102", '{"id":2}'),
    ]


def test_truncate_is_of_the_first_type() -> None:
    found = mapped(mapping(SETTINGS, orders(), columns=COLUMNS), [change("t")], columns=COLUMNS)
    assert found == [{"op": "t", "at": (0, 0), "type": "placed", "id": None, "total": None}]


def test_types_must_be_known_and_said() -> None:
    with pytest.raises(MappingError, match="no event type `paidd`; did you mean `paid`"):
        mapping({"types": {"paidd": {}}}, orders(), columns=COLUMNS)
    with pytest.raises(MappingError, match="nothing says which change becomes which"):
        mapping({}, orders(), columns=COLUMNS)
    with pytest.raises(MappingError, match="`fields` has `amont`, .*did you mean `amount`"):
        mapping({"types": {"paid": {"fields": {"amont": "total"}}}}, orders(), columns=COLUMNS)
    with pytest.raises(MappingError, match="the contract has no event type `paid`"):
        mapping({"types": {"paid": {}}})


def test_columns_of_all_types_are_needed() -> None:
    assert columns_needed(config(**SETTINGS), orders(), ["x", *COLUMNS.names]) == ("id", "state", "total")


def test_types_in_turn_end_in_as_many_parts() -> None:
    rows = [change("c", None, row(n)) if n % 2 else change("u", row(n), row(n, "paid")) for n in range(50)]
    events, _ = mapping(SETTINGS, orders(), columns=COLUMNS).apply(changes(rows, columns=COLUMNS))
    assert [part.type for part in events] == ["paid", "placed"] * 25
    assert [e["id"] for e in plain(events)] == list(range(50))


def test_f55_where_of_a_type_that_fails_on_a_row_quarantines_that_row() -> None:
    settings = {"where": "total > 0", "types": {"placed": {"where": "CAST(state AS BIGINT) > 1"}}}
    rows = [
        change("c", None, row(1, "5", total=0)),
        change("c", None, row(2, "2")),
        change("c", None, row(3, "x")),
        change("c", None, row(4, "1")),
    ]
    events, rejected = mapping(settings, orders(), columns=COLUMNS).apply(changes(rows, columns=COLUMNS))
    assert [e["id"] for e in plain(events)] == [2]
    assert [(r["field"], r["key"]) for r in reasons(rejected)] == [("where", '{"id":3}')]
