"""The contract is checked on every batch; what breaks it goes to quarantine as it came, with the reason (F54, F55)."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest

from headwater.errors import MappingError, StreamStopped
from tests.mapping_rows import TABLE, change, changes, contract, mapped, mapping, plain, reasons

D = decimal.Decimal


def tried(spec: dict[str, Any], kind: pa.DataType, values: list[Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    """The values that a field `x` lets pass, and (expected, got) of the others."""
    columns = pa.schema([("id", pa.int64()), ("x", kind)])
    rows = [change("c", None, {"id": n, "x": value}) for n, value in enumerate(values)]
    of = mapping({}, contract({"id": {"type": "int64"}, "x": spec}), columns=columns)
    events, rejected = of.apply(changes(rows, columns=columns, cut=1))
    bad = [] if rejected is None else reasons(rejected)
    assert all(reason["field"] == "x" for reason in bad)
    good = plain(events)
    assert {e["id"] for e in good} | {int(r["key"][6:-1]) for r in bad} == set(range(len(values)))
    return [e["x"] for e in good], [(r["expected"], r["got"]) for r in bad]


def test_null_in_a_field_that_is_not_optional() -> None:
    assert tried({"type": "string"}, pa.string(), ["a", None, ""]) == (["a", ""], [("a value", "null")])
    assert tried({"type": "string", "optional": True}, pa.string(), [None]) == ([None], [])


def test_closed_enum_and_open_enum() -> None:
    spec = {"type": "string", "enum": ["a", "b"], "optional": True}
    assert tried(spec, pa.string(), ["a", "c", None]) == (["a", None], [("one of a, b", "c")])
    assert tried({**spec, "open": True}, pa.string(), ["c"]) == (["c"], [])
    assert tried({"type": "int32", "enum": [1, 2]}, pa.int64(), [2, 3]) == ([2], [("one of 1, 2", "3")])


def test_min_and_max() -> None:
    spec = {"type": "int64", "min": 0, "max": 10}
    assert tried(spec, pa.int64(), [0, 10, -1, 11]) == ([0, 10], [("at least 0", "-1"), ("at most 10", "11")])
    money = {"type": "decimal(10,2)", "min": 0, "max": "99.99"}
    assert tried(money, pa.decimal128(10, 2), [D("0.00"), D("99.99"), D("100.00"), D("-0.01")]) == (
        [D("0.00"), D("99.99")],
        [("at most 99.99", "100.00"), ("at least 0", "-0.01")],
    )
    assert tried({"type": "float64", "min": 0.5}, pa.float64(), [0.5, 0.25, float("nan")])[1] == [
        ("at least 0.5", "0.25"),
        ("at least 0.5", "nan"),
    ]
    day = {"type": "date", "min": "2020-01-01"}
    assert tried(day, pa.date32(), [datetime.date(2020, 1, 1), datetime.date(2019, 12, 31)])[1] == [
        ("at least 2020-01-01", "2019-12-31")
    ]
    instant = {"type": "timestamp", "max": "2020-01-01T00:00:00Z"}
    late = datetime.datetime(2020, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)
    assert tried(instant, pa.timestamp("us", "UTC"), [late])[1] == [
        ("at most 2020-01-01T00:00:00Z", "2020-01-01 00:00:01.000000Z")
    ]


def test_limits_with_more_digits_than_the_field() -> None:
    assert tried({"type": "int64", "min": 0.5}, pa.int64(), [0, 1]) == ([1], [("at least 0.5", "0")])
    spec = {"type": "decimal(3,1)", "max": "9.95"}
    assert tried(spec, pa.decimal128(3, 1), [D("9.9"), D("10.0")]) == ([D("9.9")], [("at most 9.95", "10.0")])


def test_pattern_is_searched_for() -> None:
    spec = {"type": "string", "pattern": "^[a-z]+$", "optional": True}
    assert tried(spec, pa.string(), ["abc", "aB", None]) == (["abc", None], [("text that matches ^[a-z]+$", "aB")])


def test_pattern_that_cannot_be_applied_is_refused() -> None:
    with pytest.raises(MappingError, match="field `x`: its rules cannot be applied"):
        tried({"type": "string", "pattern": "(?=a)b"}, pa.string(), [])


def test_json_text() -> None:
    spec = {"type": "json", "optional": True}
    assert tried(spec, pa.string(), ['{"a":1}', "{a:1}", None]) == (['{"a":1}', None], [("JSON text", "{a:1}")])


def test_decimals_never_lose_a_digit() -> None:
    spec = {"type": "decimal(5,2)"}
    assert tried(spec, pa.decimal128(12, 4), [D("1.5000"), D("1.2345"), D("1000.00")]) == (
        [D("1.50")],
        [("decimal(5,2)", "1.2345"), ("decimal(5,2)", "1000.0000")],
    )


def test_f34_floats_become_decimals_by_their_shortest_text() -> None:
    values = [19.99, 0.1, 0.1 + 0.2, 1e20, float("nan"), -0.0, 5.0]
    good, bad = tried({"type": "decimal(5,2)"}, pa.float64(), values)
    assert good == [D("19.99"), D("0.10"), D("0.00"), D("5.00")]
    assert [got for _, got in bad] == ["0.30000000000000004", "1e+20", "nan"]


def test_f34_decimals_become_floats_only_with_every_digit() -> None:
    good, bad = tried({"type": "float64"}, pa.decimal128(30, 2), [D("19.99"), D("1234567890123456789.01")])
    assert (good, [got for _, got in bad]) == ([19.99], ["1234567890123456789.01"])


def test_integers() -> None:
    assert tried({"type": "int32"}, pa.int64(), [2**31 - 1, 2**31]) == ([2**31 - 1], [("int32", "2147483648")])
    assert tried({"type": "int64"}, pa.uint64(), [2**63]) == ([], [("int64", str(2**63))])
    assert tried({"type": "int64"}, pa.float64(), [3.0, 3.5]) == ([3], [("int64", "3.5")])
    assert tried({"type": "float64"}, pa.int64(), [2**53, 2**53 + 1])[1] == [("float64", str(2**53 + 1))]
    assert tried({"type": "decimal(4,2)"}, pa.int64(), [99, 100]) == ([D("99.00")], [("decimal(4,2)", "100")])
    assert tried({"type": "float32"}, pa.float64(), [0.5, 0.1]) == ([0.5], [("float32", "0.1")])


def test_booleans_are_zero_and_one() -> None:
    assert tried({"type": "bool"}, pa.int64(), [0, 1, 2]) == ([False, True], [("bool", "2")])


def test_texts_become_what_they_spell() -> None:
    assert tried({"type": "int64"}, pa.string(), ["12", "1 2"]) == ([12], [("int64", "1 2")])
    assert tried({"type": "date"}, pa.string(), ["2024-02-29", "2023-02-29"]) == (
        [datetime.date(2024, 2, 29)],
        [("date", "2023-02-29")],
    )
    zoned, bad = tried({"type": "timestamp"}, pa.string(), ["2024-01-01T00:00:00+02:00", "2024-01-01T00:00:00"])
    assert zoned == [datetime.datetime(2023, 12, 31, 22, tzinfo=datetime.UTC)]
    assert bad == [("timestamp", "2024-01-01T00:00:00")]
    assert tried({"type": "string"}, pa.binary(), [b"ok", b"\xff"]) == (["ok"], [("string", r"b'\xff'")])


def test_times_with_and_without_zone_do_not_mix() -> None:
    moment = datetime.datetime(2024, 1, 1)
    assert tried({"type": "local_timestamp"}, pa.timestamp("s"), [moment]) == ([moment], [])
    with pytest.raises(MappingError, match="expected local_timestamp"):
        tried({"type": "local_timestamp"}, pa.timestamp("us", "UTC"), [])
    with pytest.raises(MappingError, match="expected timestamp"):
        tried({"type": "timestamp"}, pa.int64(), [])
    assert tried({"type": "timestamp"}, pa.timestamp("ns", "UTC"), [1_000, 1_001])[1] == [
        ("timestamp", "1970-01-01 00:00:00.000001001Z")
    ]


def test_uuids_are_canonical() -> None:
    canonical = "0b6e4b5a-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
    spellings = [
        canonical,
        canonical.upper(),
        canonical.replace("-", ""),
        "{" + canonical + "}",
        "urn:uuid:" + canonical,
    ]
    assert tried({"type": "uuid"}, pa.string(), [*spellings, "0b6e"]) == ([canonical] * 5, [("uuid", "0b6e")])
    raw = bytes.fromhex(canonical.replace("-", ""))
    optional = {"type": "uuid", "optional": True}
    assert tried(optional, pa.binary(), [None, raw, raw[:15], None]) == (
        [None, canonical, None],
        [("uuid", str(raw[:15]))],
    )


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("uuid", pa.string()), ("uuid", pa.binary()), ("bool", pa.int64()), ("float32", pa.float64()),
        ("float64", pa.decimal128(9, 2)), ("decimal(9,2)", pa.float64()), ("decimal(9,2)", pa.int64()),
        ("json", pa.string()), ("timestamp", pa.string()), ("list<int32>", pa.list_(pa.int64())),
    ],
)  # fmt: skip
def test_columns_of_nothing_pass_every_cast(spec: str, kind: pa.DataType) -> None:
    """Of no rows (a batch of deletes alone), and of nulls alone."""
    columns = pa.schema([("id", pa.int64()), ("x", kind)])
    of = mapping({}, contract({"id": {"type": "int64"}, "x": {"type": spec, "optional": True}}), columns=columns)
    deleted = [change("d", {"id": n, "x": None}, None) for n in range(2)]
    created = [change("c", None, {"id": n, "x": None}) for n in range(2)]
    for rows in (deleted, created):
        assert [(e["id"], e["x"]) for e in mapped(of, rows, columns=columns)] == [(0, None), (1, None)]


def test_nested_values_are_cast_inside() -> None:
    kind = pa.list_(pa.struct([("sku", pa.string()), ("count", pa.int64())]))
    spec = {"type": "list<struct<sku: string, count: int32>>"}
    lines = [{"sku": "a", "count": 1}]
    good, bad = tried(spec, kind, [lines, [{"sku": "b", "count": 2**40}]])
    assert good == [lines]
    assert bad[0][0] == "list<struct<sku: string, count: int32>>"


def test_nested_values_that_would_need_a_guess_are_refused() -> None:
    for spec, kind in (
        ("list<timestamp>", pa.list_(pa.timestamp("us"))),
        ("list<decimal(5,2)>", pa.list_(pa.float64())),
        ("struct<a: float32>", pa.struct([("a", pa.float64())])),
        ("list<int64>", pa.int64()),
        ("string", pa.list_(pa.string())),
        ("string", pa.month_day_nano_interval()),
        ("json", pa.int64()),
        ("uuid", pa.int64()),
    ):
        with pytest.raises(MappingError, match="values do not pass without a guess"):
            tried({"type": spec}, kind, [])


def test_f54_first_thing_wrong_with_a_row_is_its_reason() -> None:
    columns = pa.schema([("id", pa.int64()), ("a", pa.string()), ("b", pa.int64())])
    fields = {"id": {"type": "int64"}, "a": {"type": "string"}, "b": {"type": "int64", "max": 5}}
    rows = [
        change("c", None, {"id": 1, "a": None, "b": 9}),
        change("c", None, {"id": 2, "a": "x", "b": 9}),
        change("c", None, {"id": None, "a": "x", "b": 1}),
        change("c", None, {"id": 4, "a": "x", "b": 1}),
    ]
    batch = changes(rows, columns=columns, cut=2)
    events, rejected = mapping({}, contract(fields), columns=columns).apply(batch)
    assert [e["id"] for e in plain(events)] == [4]
    assert reasons(rejected) == [
        {"field": "a", "expected": "a value", "got": "null", "key": '{"id":1}'},
        {"field": "b", "expected": "at most 5", "got": "9", "key": '{"id":2}'},
        {"field": "id", "expected": "a value", "got": "null", "key": None},
    ]
    assert rejected is not None
    assert (rejected.stream, rejected.changes.table, rejected.changes.stream) == (
        "learning.enrollment",
        TABLE,
        "learning.enrollment",
    )
    assert rejected.changes.data.to_pylist() == batch.data.slice(0, 3).to_pylist()


def test_deletes_are_checked_for_their_key_alone() -> None:
    columns = pa.schema([("id", pa.int32()), ("a", pa.string())])
    fields = {"id": {"type": "int64"}, "a": {"type": "string", "enum": ["x"]}}
    of = mapping({}, contract(fields), columns=columns)
    rows = [change("d", {"id": 1, "a": "bad"}, None), change("d", {"id": None, "a": "x"}, None)]
    events, rejected = of.apply(changes(rows, columns=columns))
    assert [(e["op"], e["id"]) for e in plain(events)] == [("d", 1)]
    assert [(r["field"], r["got"], r["key"]) for r in reasons(rejected)] == [("id", "null", None)]


def test_changed_key_that_breaks_the_contract_is_rejected_whole() -> None:
    of = mapping({}, contract({"id": {"type": "int64"}, "mode": {"type": "string", "enum": ["audit"]}}))
    old, new = ({"id": key, "mode": mode, "price": None} for key, mode in ((1, "audit"), (2, "beta")))
    events, rejected = of.apply(changes([change("u", old, new)]))
    assert events == []
    assert [(r["field"], r["key"]) for r in reasons(rejected)] == [("mode", '{"id":2}')]


def test_f54_policy_stop_names_field_expected_got_key_and_position() -> None:
    of = mapping(
        {"on_invalid": "stop"}, contract({"id": {"type": "int64"}, "mode": {"type": "string", "enum": ["audit"]}})
    )
    rows = [change("c", None, {"id": n, "mode": mode, "price": None}) for n, mode in ((1, "audit"), (2, "beta"))]
    with pytest.raises(StreamStopped) as caught:
        of.apply(changes(rows))
    assert caught.value.stream == "learning.enrollment"
    for part in ("field `mode`", "expected one of audit", "got beta", 'key {"id":2}', "epoch 1, commit 1, index 0"):
        assert part in caught.value.message


def test_rejected_changes_map_again_once_the_contract_fits() -> None:
    strict = mapping({}, contract({"id": {"type": "int64"}, "mode": {"type": "string", "enum": ["audit"]}}))
    _, rejected = strict.apply(changes([change("c", None, {"id": 1, "mode": "beta", "price": None}, _index=6)]))
    assert rejected is not None
    wide = mapping({}, contract({"id": {"type": "int64"}, "mode": {"type": "string"}}, version=2))
    events, again = wide.apply(rejected.changes)
    assert again is None
    assert plain(events) == [{"op": "c", "at": (0, 6), "id": 1, "mode": "beta"}]


def test_values_that_were_not_carried_are_not_missing() -> None:
    of = mapping({"pattern": "log"}, contract({"id": {"type": "int64"}, "mode": {"type": "string", "enum": ["a"]}}))
    rows = [change("u", None, {"id": 1}, _unchanged=[1]), change("u", None, {"id": 2}, _unchanged=[2])]
    events, rejected = of.apply(changes(rows, unchanged=True))
    assert [e["id"] for e in plain(events)] == [1]
    assert [(r["field"], r["got"]) for r in reasons(rejected)] == [("mode", "null")]


def test_old_rows_are_never_to_blame() -> None:
    of = mapping({"before": True}, contract({"id": {"type": "int32"}, "price": {"type": "decimal(5,2)"}}))
    old, new = {"id": 1, "price": 0.333}, {"id": 1, "price": 0.5}
    assert mapped(of, [change("u", old, new)]) == [
        {"op": "u", "at": (0, 0), "id": 1, "price": D("0.50"), "before": {"id": 1, "price": None}}
    ]
