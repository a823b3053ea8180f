"""fold against a row-by-row model of it, over random events in random order, sliced."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.mapping.fold import fold
from headwater.model import ORDER_FIELDS, UNCHANGED, Op

SCHEMA = pa.schema(
    [*ORDER_FIELDS, ("a", pa.int64()), ("b", pa.string()), ("x", pa.int32()), ("y", pa.string())]
).append(pa.field("_unchanged", UNCHANGED))

Row = dict[str, Any]


@st.composite
def events(draw: st.DrawFn) -> list[Row]:
    orders = draw(
        st.lists(st.tuples(st.integers(1, 2), st.integers(0, 9), st.integers(0, 3)), unique=True, max_size=25)
    )
    return [_event(draw, order) for order in draw(st.permutations(orders))]


def _event(draw: st.DrawFn, order: tuple[int, int, int]) -> Row:
    op = draw(st.sampled_from([1, 2, 2, 2, 3, 4, 5] if draw(st.booleans()) else [1, 2, 2, 3]))
    row: Row = {"_op": op, "_epoch": order[0], "_commit": order[1], "_index": order[2]}
    if op == Op.TRUNCATE:
        return row
    row |= {"a": draw(st.sampled_from([0, 1, 2**62])), "b": draw(st.sampled_from(["", "k"]))}
    if op == Op.DELETE:
        return row
    unchanged = draw(st.lists(st.sampled_from([2, 3]), unique=True)) if op == Op.UPDATE else []
    row |= {"x": draw(st.integers(0, 9)), "y": draw(st.none() | st.text(max_size=3))}
    for ordinal in unchanged:
        row["xy"[ordinal - 2]] = None
    return row | {"_unchanged": sorted(unchanged) or None}


def model(rows: list[Row]) -> list[Row]:
    """One event after the other, in order, onto a dict of states."""
    states: dict[tuple[Any, Any], Row] = {}
    truncate: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["_epoch"], row["_commit"], row["_index"])):
        if row["_op"] == Op.TRUNCATE:
            states, truncate = {}, [row]
            continue
        key = (row["a"], row["b"])
        earlier = states.pop(key, None)
        states[key] = _filled(row, earlier)
    return truncate + list(states.values())


def _filled(row: Row, earlier: Row | None) -> Row:
    missing = row.get("_unchanged")
    if not missing or row["_op"] != Op.UPDATE or earlier is None or earlier["_op"] == Op.DELETE:
        return row
    left = [o for o in missing if o in (earlier.get("_unchanged") or [])]
    values = {"xy"[o - 2]: earlier.get("xy"[o - 2]) for o in missing if o not in left}
    return {**row, **values, "_unchanged": left or None}


def complete(row: Row) -> Row:
    return {name: row.get(name) for name in SCHEMA.names}


@settings(max_examples=300, deadline=None)
@given(events(), st.integers(0, 3), st.sampled_from([("a",), ("a", "b"), ("b", "a")]))
def test_fold_is_applying_one_event_after_the_other(rows: list[Row], cut: int, key: tuple[str, ...]) -> None:
    if key == ("a",):
        rows = [{**row, "b": "k"} if "b" in row else row for row in rows]
    foreign = [{"_op": 2, "_epoch": 9, "_commit": 9, "_index": n, "a": 0, "b": "k"} for n in range(cut)]
    data = pa.RecordBatch.from_pylist([*foreign, *rows, *foreign], schema=SCHEMA).slice(cut, len(rows))
    result = fold(data, key)
    result.validate(full=True)
    assert [complete(row) for row in result.to_pylist()] == [complete(row) for row in model(rows)]


@settings(max_examples=50, deadline=None)
@given(events(), st.integers(0, 25))
def test_folding_in_two_steps_is_folding_at_once(rows: list[Row], cut: int) -> None:
    rows = [row for row in rows if row["_op"] != Op.TRUNCATE]
    data = pa.RecordBatch.from_pylist(sorted(rows, key=_order), schema=SCHEMA)
    parts = [fold(data.slice(0, cut), ["a", "b"]), fold(data.slice(cut), ["a", "b"])]
    stepwise = fold(
        pa.concat_tables([pa.Table.from_batches([p]) for p in parts], promote_options="default"), ["a", "b"]
    )
    assert [complete(r) for r in stepwise.to_pylist()] == [complete(r) for r in fold(data, ["a", "b"]).to_pylist()]


def _order(row: Row) -> tuple[int, int, int]:
    return (row["_epoch"], row["_commit"], row["_index"])
