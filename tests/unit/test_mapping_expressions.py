"""Expressions: scalar and deterministic, run in DuckDB, and an error costs its own row only."""

from __future__ import annotations

import datetime
import decimal
import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from headwater.errors import MappingError
from headwater.mapping.engine import Engine
from headwater.mapping.expressions import Expression, parse
from headwater.mapping.side import Side
from tests.mapping_rows import change, changes, contract, mapped, mapping, plain, reasons

COLUMNS = pa.schema([("id", pa.int64()), ("text", pa.string()), ("n", pa.int64())])


@pytest.fixture
def engine() -> Iterator[Engine]:
    found = Engine()
    yield found
    found.close()


def parsed(text: str, *columns: str) -> str | Expression:
    return parse(text, columns, what="here")


def computed(expression: str, kind: str, rows: list[dict[str, Any]]) -> list[Any]:
    of = contract({"id": {"type": "int64"}, "x": {"type": kind, "optional": True}})
    found = mapped(
        mapping({"fields": {"x": expression}}, of, columns=COLUMNS),
        [change("c", None, r) for r in rows],
        columns=COLUMNS,
    )
    return [event["x"] for event in found]


def test_column_names_are_no_expressions() -> None:
    assert parsed("price", "price") == "price"
    assert parsed('"Weird, name"', "Weird, name") == "Weird, name"
    assert parsed("order by x", "order by x") == "order by x"


def test_expression_knows_its_columns() -> None:
    found = parsed("a + b * a", "a", "b", "c")
    assert isinstance(found, Expression)
    assert (found.text, found.columns, found.private) == ("a + b * a", ("a", "b"), False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sum(a)", "an aggregate"),
        ("count(*)", "an aggregate"),
        ("row_number() over ()", "a window"),
        ("lag(a) over (order by a)", "a window|an aggregate"),
        ("(select 1)", "a query"),
        ("a in (select 1)", "a query"),
        ("exists (select 1)", "a query"),
        ("*", r"`\*`"),
        ("$1", "a parameter"),
        ("a as b", "a name for its result"),
        ("a; b", "is not one SQL expression"),
        ("a, b", "is not one SQL expression"),
        ("a from b", "is not one SQL expression"),
        ("a where b", "is not one SQL expression"),
        ("", "is no SQL expression|is not one"),
        ("-- a", "is not one SQL expression"),
        ("a +", "is no SQL expression"),
        ("select a", "is no SQL expression"),
    ],
)
def test_what_is_no_scalar_expression_is_refused(text: str, message: str) -> None:
    with pytest.raises(MappingError, match=message):
        parsed(text, "a", "b")


@pytest.mark.parametrize(
    "text",
    [
        "random()", "uuid()", "gen_random_uuid()", "now()", "current_timestamp", "current_date", "current_time",
        "today()", "localtimestamp", "get_current_timestamp()", "txid_current()", "current_user",
        "current_setting('x')", "ago(n)", "nextval('s')", "version() || random()", "coalesce(n, random())", "age(ts)",
    ],
)  # fmt: skip
def test_what_changes_from_call_to_call_is_refused(text: str, engine: Engine) -> None:
    schema = pa.schema([("n", pa.int64()), ("ts", pa.timestamp("us"))])
    found = parsed(text, *schema.names)
    assert isinstance(found, Expression)
    with pytest.raises(MappingError, match="does not give the same"):
        engine.prepare(found, schema, what="here")


def test_what_duckdb_refuses_is_named_with_the_columns_own_name() -> None:
    with pytest.raises(MappingError, match=r"field `x`: DuckDB refuses `nope\(text\)`"):
        computed("nope(text)", "string", [])
    with pytest.raises(MappingError, match="aggregate|no scalar function"):
        computed("list_distinct(array_agg(text))", "string", [])


def test_expressions_compute() -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "text": "a", "n": 3}, {"id": 2, "text": None, "n": None}]
    assert computed("upper(text) || n", "string", rows) == ["A3", None]
    assert computed("CASE WHEN n > 2 THEN 'many' ELSE 'few' END", "string", rows) == ["many", "few"]
    assert computed("'web'", "string", rows) == ["web", "web"]
    assert computed("NULL", "date", rows) == [None, None]
    assert computed("to_timestamp(n)", "timestamp", rows) == [
        datetime.datetime(1970, 1, 1, 0, 0, 3, tzinfo=datetime.UTC),
        None,
    ]
    assert computed("list_transform([1, n], x -> x + 1)", "list<int64>", rows) == [[2, 4], [2, None]]
    assert computed("{'a': n, 'b': text}", "struct<a: int64, b: string>", rows) == [
        {"a": 3, "b": "a"},
        {"a": None, "b": None},
    ]
    assert computed("n / 2", "decimal(5,2)", rows) == [decimal.Decimal("1.50"), None]


def test_zoned_times_are_in_utc_wherever_it_runs() -> None:
    columns = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", tz="UTC"))])
    of = contract({"id": {"type": "int64"}, "hour": {"type": "int64"}})
    at = datetime.datetime(2024, 7, 1, 23, 30, tzinfo=datetime.UTC)
    rows = [change("c", None, {"id": 1, "at": at})]
    settings = {"fields": {"hour": "extract(hour FROM at)"}}
    assert [e["hour"] for e in mapped(mapping(settings, of, columns=columns), rows, columns=columns)] == [23]


def test_f55_failing_rows_are_quarantined_alone() -> None:
    rows = [{"id": n, "text": "x" if n in (3, 70) else str(n), "n": 1} for n in range(100)]
    of = mapping(
        {"fields": {"v": "CAST(text AS BIGINT) + n"}},
        contract({"id": {"type": "int64"}, "v": {"type": "int64"}}),
        columns=COLUMNS,
    )
    events, rejected = of.apply(changes([change("c", None, r) for r in rows], columns=COLUMNS))
    assert [(e["id"], e["v"]) for e in plain(events)] == [(n, n + 1) for n in range(100) if n not in (3, 70)]
    found = reasons(rejected)
    assert [(r["field"], r["expected"], r["key"]) for r in found] == [
        ("v", "`CAST(text AS BIGINT) + n` can be evaluated", '{"id":3}'),
        ("v", "`CAST(text AS BIGINT) + n` can be evaluated", '{"id":70}'),
    ]
    assert "'x'" in found[0]["got"]


def test_f55_where_that_fails_on_a_row_quarantines_it() -> None:
    rows = [{"id": n, "text": text, "n": 1} for n, text in enumerate(["1", "x", "0", "2"])]
    of = mapping({"where": "CAST(text AS BIGINT) > 0"}, contract({"id": {"type": "int64"}}), columns=COLUMNS)
    events, rejected = of.apply(changes([change("c", None, r) for r in rows], columns=COLUMNS, cut=1))
    assert [e["id"] for e in plain(events)] == [0, 3]
    assert [(r["field"], r["key"]) for r in reasons(rejected)] == [("where", '{"id":1}')]


def test_failing_expressions_of_rows_outside_where_do_not_matter() -> None:
    settings = {"where": "text <> 'x'", "fields": {"v": "CAST(text AS BIGINT)"}}
    of = mapping(settings, contract({"id": {"type": "int64"}, "v": {"type": "int64"}}), columns=COLUMNS)
    good: dict[str, Any] = {"id": 1, "text": "1", "n": 1}
    bad: dict[str, Any] = {"id": 1, "text": "x", "n": 1}
    rows = [change("c", None, bad), change("u", bad, good), change("u", good, bad), change("d", bad, None)]
    found = [(e["op"], e["id"], e["v"]) for e in mapped(of, rows, columns=COLUMNS)]
    assert found == [("c", 1, 1), ("d", 1, None)]


def test_many_failing_rows_are_all_found() -> None:
    rows = [{"id": n, "text": "bad", "n": 1} for n in range(400)]
    of = mapping(
        {"fields": {"v": "CAST(text AS BIGINT)"}},
        contract({"id": {"type": "int64"}, "v": {"type": "int64"}}),
        columns=COLUMNS,
    )
    events, rejected = of.apply(changes([change("c", None, r) for r in rows], columns=COLUMNS))
    assert events == []
    assert [r["key"] for r in reasons(rejected)] == [f'{{"id":{n}}}' for n in range(400)]


def test_null_result_is_no_failure_among_failures() -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "text": None, "n": 1}, {"id": 2, "text": "x", "n": 1}]
    fields = {"id": {"type": "int64"}, "v": {"type": "int64", "optional": True}}
    of = mapping({"fields": {"v": "CAST(text AS BIGINT)"}}, contract(fields), columns=COLUMNS)
    events, rejected = of.apply(changes([change("c", None, r) for r in rows], columns=COLUMNS))
    assert [(e["id"], e["v"]) for e in plain(events)] == [(1, None)]
    assert [r["key"] for r in reasons(rejected)] == ['{"id":2}']


def test_hash_and_mask() -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "text": "ada@x.org", "n": 3}, {"id": 2, "text": None, "n": None}]
    plain_hash = hashlib.sha256(b"ada@x.org").hexdigest()
    salted = hashlib.sha256(b"saltada@x.org").hexdigest()
    assert computed("hash(text)", "string", rows) == [plain_hash, None]
    assert computed("hash(text, 'salt')", "string", rows) == [salted, None]
    assert computed("hash(n)", "string", rows) == [hashlib.sha256(b"3").hexdigest(), None]
    assert computed("mask(text)", "string", rows) == ["a***", None]


def test_only_the_columns_of_an_expression_reach_duckdb(engine: Engine) -> None:
    wide = pa.array([decimal.Decimal(1)], pa.decimal256(50, 2))
    side = Side({"wide": wide, "n": pa.array([1])}, 1)
    found = parsed("n + 1", "wide", "n")
    assert isinstance(found, Expression)
    assert engine.evaluate([found], side)[0].values.to_pylist() == [2]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null, true]}', True), ("1", True), ('"x"', True), ("{a: 1}", False), ("", False), ("{} {}", False),
        ("[1,]", False), ('{"a":1,}', False), ("NaN", False), ("[Infinity]", False), ('"a,]"', True), ('"NaN"', True),
        ("'x'", False), ("01", False), (None, None),
    ],
)  # fmt: skip
def test_json_is_what_the_standard_says(text: str | None, valid: bool | None, engine: Engine) -> None:
    assert engine.valid_json(pa.array(["{}", text, "[]"], pa.string())).to_pylist() == [True, valid, True]
