"""Readers get the newest accepted version: older events filled with null or default, by name, never by place."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest

from headwater.contracts.model import Contract
from headwater.errors import MappingError
from headwater.mapping.evolve import conform
from headwater.model import Op
from headwater.schema import events_schema
from tests.mapping_rows import contract

LETTERS = {op.letter: int(op) for op in Op}


def old_events(of: Contract, rows: list[dict[str, Any]], **more: Any) -> pa.RecordBatch:
    orders = [{"_epoch": 1, "_commit": n, "_index": 0} for n in range(len(rows))]
    data = [{**order, **row, "_op": LETTERS[row["_op"]]} for order, row in zip(orders, rows, strict=True)]
    return pa.RecordBatch.from_pylist(data, schema=events_schema(of, **more))


V1 = contract({"id": {"type": "int32"}, "gone": {"type": "string"}, "price": {"type": "decimal(5,2)"}})
V2 = contract(
    {
        "price": {"type": "decimal(10,2)"},
        "mode": {"type": "string", "default": "audit"},
        "id": {"type": "int64"},
        "note": {"type": "string", "optional": True},
    },
    version=2,
)


def test_same_shape_passes_without_a_copy() -> None:
    data = old_events(V1, [{"_op": "c", "id": 1, "gone": "x", "price": None}])
    assert conform(data, V1) is data


def test_added_removed_and_widened_fields() -> None:
    price = decimal.Decimal("9.99")
    data = old_events(V1, [{"_op": "c", "id": 1, "gone": "x", "price": price}, {"_op": "d", "id": 2}])
    result = conform(data, V2)
    result.validate(full=True)
    assert result.schema.equals(events_schema(V2))
    rows = [{n: row[n] for n in ("id", "price", "mode", "note")} for row in result.to_pylist()]
    assert rows == [
        {"id": 1, "price": price, "mode": "audit", "note": None},
        {"id": 2, "price": None, "mode": None, "note": None},
    ]


def test_sliced_batch_keeps_other_headwater_columns() -> None:
    data = old_events(V1, [{"_op": "c", "id": n, "gone": "x", "price": None} for n in range(4)])
    data = data.append_column("_offset", pa.array([5, 6, 7, 8], pa.uint64())).slice(1, 2)
    result = conform(data, V2)
    assert result.column("_offset").to_pylist() == [6, 7]
    assert result.column("id").to_pylist() == [1, 2]


def test_unchanged_ordinals_follow_their_fields() -> None:
    rows = [
        {"_op": "u", "id": 1, "_unchanged": [1, 2]},
        {"_op": "u", "id": 2, "_unchanged": [1]},
        {"_op": "u", "id": 3, "_unchanged": None},
        {"_op": "u", "id": 4, "_unchanged": [2]},
    ]
    result = conform(old_events(V1, rows, unchanged=True).slice(0, 4), V2)
    assert result.column("_unchanged").to_pylist() == [[0], None, None, [0]]
    only_gone = conform(old_events(V1, rows, unchanged=True).slice(1, 2), V2)
    assert "_unchanged" not in only_gone.schema.names


def test_before_takes_the_new_shape() -> None:
    before = {"id": 1, "gone": "x", "price": decimal.Decimal("1.00")}
    rows = [{"_op": "u", "id": 1, "before": before}, {"_op": "c", "id": 2, "before": None}]
    result = conform(old_events(V1, rows, before=True), V2)
    result.validate(full=True)
    assert result.column("before").to_pylist() == [
        {"price": decimal.Decimal("1.00"), "mode": "audit", "id": 1, "note": None},
        None,
    ]


@pytest.mark.parametrize(
    ("kind", "default", "expected"),
    [
        ("decimal(5,2)", "1.50", decimal.Decimal("1.50")),
        ("date", "2024-01-02", datetime.date(2024, 1, 2)),
        ("timestamp", "2024-01-02T03:04:05+02:00", datetime.datetime(2024, 1, 2, 1, 4, 5, tzinfo=datetime.UTC)),
        ("local_timestamp", "2024-01-02T03:04:05", datetime.datetime(2024, 1, 2, 3, 4, 5)),
        ("bytes", "/wA=", b"\xff\0"),
        ("json", {"a": [1]}, '{"a": [1]}'),
        ("list<int64>", [1, 2], [1, 2]),
        ("map<string,int64>", {"a": 1}, [("a", 1)]),
        ("struct<a: int32, b: date>", {"a": 1, "b": "2024-01-02"}, {"a": 1, "b": datetime.date(2024, 1, 2)}),
        ("bool", False, False),
    ],
)
def test_defaults_of_every_kind(kind: str, default: Any, expected: Any) -> None:
    old = contract({"id": {"type": "int64"}})
    new = contract({"id": {"type": "int64"}, "x": {"type": kind, "default": default}}, version=2)
    result = conform(old_events(old, [{"_op": "c", "id": 1}]), new)
    assert result.column("x").to_pylist() == [expected]


def test_integers_widen_to_decimals_and_floats() -> None:
    old = contract({"id": {"type": "int64"}, "a": {"type": "int64"}, "b": {"type": "int32"}})
    fields = {"id": {"type": "int64"}, "a": {"type": "decimal(10,2)"}, "b": {"type": "float64"}}
    result = conform(old_events(old, [{"_op": "c", "id": 1, "a": 7, "b": 8}]), contract(fields, version=2))
    assert (result.column("a")[0].as_py(), result.column("b")[0].as_py()) == (decimal.Decimal("7.00"), 8.0)


def test_type_that_is_no_widening_is_refused() -> None:
    new = contract({"id": {"type": "int64"}, "price": {"type": "date"}}, version=2)
    data = old_events(V1, [{"_op": "c", "id": 1, "gone": "x", "price": decimal.Decimal("1.00")}])
    with pytest.raises(MappingError, match=r"field `price`: version 2 says date, but older\s+events hold decimal128"):
        conform(data, new)


def test_event_types_have_their_own_shape() -> None:
    def typed(version: int, more: dict[str, Any]) -> Contract:
        placed = {"fields": {"id": {"type": "int64"}, **more}}
        paid = {"fields": {"id": {"type": "int64"}, "sum": {"type": "int64"}}}
        return contract(kind="event", types={"placed": placed, "paid": paid}, version=version)

    old, new = typed(1, {}), typed(2, {"by": {"type": "string", "default": "web"}})
    data = pa.RecordBatch.from_pylist(
        [{"_op": 1, "_epoch": 1, "_commit": 1, "_index": 0, "id": 3}], schema=events_schema(old, "placed")
    )
    assert conform(data, new, "placed").column("by").to_pylist() == ["web"]
