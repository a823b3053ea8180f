"""Mapping whole batches against a model that goes row by row, and against the table that the changes came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.mapping.fold import fold
from headwater.mapping.stream import StreamMapping
from tests.mapping_rows import Row, change, changes, contract, mapping, plain, reasons

COLUMNS = pa.schema([("id", pa.int64()), ("mode", pa.string()), ("price", pa.float64()), ("other", pa.int32())])
FIELDS: dict[str, Any] = {
    "id": {"type": "int64"},
    "kind": {"type": "string", "optional": True, "enum": ["A", "B"]},
    "price": {"type": "decimal(4,1)", "optional": True, "min": 0},
}
STATE = st.fixed_dictionaries(
    {
        "id": st.integers(0, 3),
        "mode": st.sampled_from(["a", "b", "c", None]),
        "price": st.sampled_from([None, 0.5, 1.0, -1.0, 0.25, 1e9]),
        "other": st.integers(0, 3),
    }
)


@dataclass(frozen=True)
class Case:
    """A mapping twice: as configuration, and as what it means for one row."""

    settings: dict[str, Any]
    visible: Callable[[Row], bool]
    key: Callable[[Row], int]


def by_id(row: Row) -> int:
    return int(row["id"])


def parity(row: Row) -> int:
    return int(row["id"]) % 2 + int(row["other"]) * 2


KIND = {"kind": "upper(mode)"}
CASES = [
    Case({"fields": KIND}, lambda row: True, by_id),
    Case({"fields": KIND, "where": "mode <> 'b'"}, lambda row: row["mode"] not in (None, "b"), by_id),
    Case({"fields": {**KIND, "id": "id % 2 + other * 2"}}, lambda row: True, parity),
    Case(
        {"fields": {**KIND, "id": "id % 2 + other * 2"}, "where": "price > 0.4"},
        lambda row: row["price"] is not None and row["price"] > 0.4,
        parity,
    ),
    Case({"fields": {**KIND, "id": "other"}, "before": True}, lambda row: True, lambda row: int(row["other"])),
]


@cache
def mapping_of(number: int) -> StreamMapping:
    return mapping(CASES[number].settings, contract(FIELDS, kind="event"), columns=COLUMNS)


@st.composite
def some_changes(draw: st.DrawFn) -> list[Row]:
    letters = draw(st.lists(st.sampled_from("crudut"), max_size=12))
    rows = []
    for letter in letters:
        before = draw(STATE) if letter in "ud" else None
        after = draw(STATE) if letter in "cru" else None
        rows.append(change(letter, before, after))
    return rows


def price(row: Row) -> Decimal | None:
    return None if row["price"] is None else Decimal(str(row["price"]))


def broken(row: Row) -> str | None:
    """The first field of a row that breaks the contract, as a person would find it."""
    value = price(row)
    tenths = None if value is None else value * 10
    if tenths is not None and (tenths != int(tenths) or abs(tenths) >= 10_000):
        return "price"
    if row["mode"] not in ("a", "b", None):
        return "kind"
    return "price" if value is not None and value < 0 else None


def fields(case: Case, row: Row) -> Row:
    kind = None if row["mode"] is None else row["mode"].upper()
    return {"id": case.key(row), "kind": kind, "price": price(row)}


def old(case: Case, row: Row | None) -> dict[str, Any]:
    if not case.settings.get("before"):
        return {}
    if row is None:
        return {"before": None}
    value = price(row)
    fits = value is not None and value * 10 == int(value * 10) and abs(value) < 1000
    return {"before": {**fields(case, row), "price": value if fits else None}}


def model(case: Case, rows: list[Row], first: int) -> tuple[list[Row], list[tuple[str, str]]]:
    events: list[Row] = []
    rejected: list[tuple[str, str]] = []
    for number, row in enumerate(rows, first):
        found, wrong = one(case, row["before"], row["after"], "crudt"[[1, 4, 2, 3, 5].index(row["_op"])])
        if wrong:
            rejected.append((wrong, f'{{"id":{case.key(row["after"])}}}'))
            continue
        events += [{"at": (number, second), **event} for second, event in enumerate(found)]
    return events, rejected


def one(case: Case, before: Row | None, after: Row | None, letter: str) -> tuple[list[Row], str | None]:
    """What one change becomes, and the field that breaks the contract, if one does."""
    empty: Row = {"id": None, "kind": None, "price": None}
    if letter == "t":
        return [{"op": "t", **empty, **old(case, None)}], None
    was = before is not None and case.visible(before)
    delete = [{"op": "d", **empty, "id": case.key(before), **old(case, before)}] if before is not None and was else []
    if after is None or (letter == "u" and not case.visible(after)):
        return delete, None
    if not case.visible(after):
        return [], None
    if wrong := broken(after):
        return [], wrong
    event = {**fields(case, after), **old(case, None)}
    if letter != "u":
        return [{"op": letter, **event}], None
    assert before is not None
    if not was:
        return [{"op": "c", **event}], None
    if case.key(before) != case.key(after):
        return [*delete, {"op": "c", **event}], None
    return [{"op": "u", **event, **old(case, before)}], None


@settings(max_examples=120, deadline=None)
@given(some_changes(), st.integers(0, len(CASES) - 1), st.integers(0, 2))
def test_batches_are_mapped_like_row_after_row(rows: list[Row], number: int, cut: int) -> None:
    events, rejected = mapping_of(number).apply(changes(rows, columns=COLUMNS, cut=cut))
    expected, wrong = model(CASES[number], rows, cut)
    assert plain(events) == expected
    assert [(r["field"], r["key"]) for r in (reasons(rejected) if rejected else [])] == wrong


@settings(max_examples=30, deadline=None)
@given(some_changes(), st.integers(0, len(CASES) - 1), st.integers(0, 12))
def test_cutting_a_batch_in_two_changes_nothing(rows: list[Row], number: int, at: int) -> None:
    batch = changes(rows, columns=COLUMNS)
    whole, _ = mapping_of(number).apply(batch)
    parts = [type(batch)(batch.table, data) for data in (batch.data.slice(0, at), batch.data.slice(at))]
    halves = [event for part in parts for event in mapping_of(number).apply(part)[0]]
    assert plain(halves) == plain(whole)


@dataclass(frozen=True)
class Step:
    delete: bool
    id: int
    new_id: int
    mode: str
    price: float


STEP = st.builds(
    Step, st.booleans(), st.integers(0, 4), st.integers(0, 4), st.sampled_from("abc"), st.sampled_from([0.5, 1.5])
)


def history(steps: list[Step]) -> tuple[list[Row], dict[int, Row]]:
    """What a table went through, as changes, and what it holds at the end."""
    table: dict[int, Row] = {}
    rows = []
    for step in steps:
        before = table.pop(step.id, None)
        if step.delete:
            rows += [change("d", before, None)] if before else []
            continue
        key = step.new_id if before is not None and step.new_id not in table else step.id
        after = {"id": key, "mode": step.mode, "price": step.price, "other": 0}
        rows.append(change("u" if before else "c", before, after))
        table[key] = after
    return rows, table


@cache
def _filtered(where: str | None) -> StreamMapping:
    return mapping({"where": where, "fields": {"mode": "upper(mode)"}}, columns=COLUMNS)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(STEP, max_size=30), st.sampled_from([None, "mode <> 'b'", "price > 1 OR mode = 'a'"]), st.integers(0, 30)
)
def test_folded_events_are_the_mapped_table(steps: list[Step], where: str | None, at: int) -> None:
    visible: dict[str | None, Callable[[Row], bool]] = {
        None: lambda row: True,
        "mode <> 'b'": lambda row: row["mode"] != "b",
        "price > 1 OR mode = 'a'": lambda row: row["price"] > 1 or row["mode"] == "a",
    }
    rows, table = history(steps)
    of = _filtered(where)
    batch = changes(rows, columns=COLUMNS)
    parts = [type(batch)(batch.table, data) for data in (batch.data.slice(0, at), batch.data.slice(at))]
    events = [event.data for part in parts for event in of.apply(part)[0]]
    folded = fold(pa.Table.from_batches(events), ["id"]).to_pylist() if events else []
    found = {row["id"]: (row["mode"], row["price"]) for row in folded if row["_op"] != 3}
    assert found == {key: (row["mode"].upper(), row["price"]) for key, row in table.items() if visible[where](row)}
