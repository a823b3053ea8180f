"""The difference against a model: a dict that is folded event by event."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.contracts.model import Contract, FieldSpec
from headwater.difference import Difference
from headwater.model import Events, Op, Order, Reading, Reload
from headwater.schema import events_schema

CONTRACT = Contract(
    stream="shop.item",
    version=1,
    key=("id", "part"),
    fields={
        "a": FieldSpec(type="int64", optional=True),
        "id": FieldSpec(type="int64"),
        "b": FieldSpec(type="string", optional=True),
        "part": FieldSpec(type="string"),
    },
)
FIELDS = list(CONTRACT.fields)
Key = tuple[int, str]

keys = st.tuples(st.integers(0, 3), st.sampled_from(["", "x"]))
values = st.fixed_dictionaries({"a": st.none() | st.integers(0, 2), "b": st.none() | st.sampled_from(["", "p", "q"])})
changes = st.tuples(
    st.sampled_from([Op.CREATE, Op.UPDATE, Op.UPDATE, Op.DELETE, Op.READ, Op.TRUNCATE]),
    keys,
    values,
    st.sets(st.sampled_from(["a", "b"])),
)


@dataclass
class Fold:
    """A stream's state, event by event."""

    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    touched: dict[Key, int] = field(default_factory=dict)
    truncated: int = -1

    def apply(self, commit: int, change: tuple[Op, Key, dict[str, Any], set[str]]) -> None:
        op, key, row, unchanged = change
        if op is Op.TRUNCATE:
            self.rows.clear()
            self.truncated = commit
            return
        self.touched[key] = commit
        if op is Op.DELETE:
            self.rows.pop(key, None)
            return
        known = self.rows.get(key, {"a": None, "b": None})
        kept = {name: known[name] for name in unchanged} if op is Op.UPDATE else {}
        self.rows[key] = {**row, **kept}


def batch(rows: list[dict[str, Any]], *, unchanged: bool) -> Events:
    schema = events_schema(CONTRACT, unchanged=unchanged)
    return Events("shop.item", 1, pa.RecordBatch.from_pylist(rows, schema=schema))


def event(commit: int, change: tuple[Op, Key, dict[str, Any], set[str]]) -> dict[str, Any]:
    op, (number, part), row, unchanged = change
    shown: dict[str, Any] = {"_op": op.value, "_epoch": 1, "_commit": commit, "_index": 0}
    if op is Op.TRUNCATE:
        return shown
    shown |= {"id": number, "part": part}
    if op is Op.DELETE:
        return shown
    marks = unchanged if op is Op.UPDATE else set()
    carried = {name: value for name, value in row.items() if name not in marks}
    return {**shown, **carried, "_unchanged": sorted(FIELDS.index(name) for name in marks) or None}


@settings(max_examples=80, deadline=None)
@given(
    history=st.lists(changes, max_size=25),
    shuffle=st.randoms(use_true_random=False),
    since=st.integers(0, 25),
    reading=st.dictionaries(keys, values, max_size=8),
    reload=st.sampled_from(list(Reload)),
)
def test_applied_to_the_stream_the_difference_gives_the_reading(
    history: list[Any], shuffle: Any, since: int, reading: dict[Key, dict[str, Any]], reload: Reload
) -> None:
    fold = Fold()
    for commit, change in enumerate(history, start=1):
        fold.apply(commit, change)
    stored = [event(commit, change) for commit, change in enumerate(history, start=1)]
    shuffle.shuffle(stored)
    staged = [
        {"_op": Op.READ.value, "_epoch": 2, "_commit": 1, "_index": 2 * n, "id": k[0], "part": k[1], **row}
        for n, (k, row) in enumerate(reading.items())
    ]

    got = _difference(stored, staged, Reading(reload, Order(1, since, 2**32 - 1), last=True))

    assert _by_key(got) == _expected(fold, since, reading, reload)
    orders = [(row["_epoch"], row["_commit"], row["_index"]) for row in got]
    assert orders == sorted(set(orders))


def _difference(stored: list[dict[str, Any]], staged: list[dict[str, Any]], reading: Reading) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory, Difference(CONTRACT, Path(directory)) as difference:
        for row in staged:
            difference.add(batch([row], unchanged=False))
        parts = [batch(stored[:7], unchanged=True), batch(stored[7:], unchanged=True)]
        return [row for part in difference.finish(parts, reading) for row in part.data.to_pylist()]


def _by_key(rows: list[dict[str, Any]]) -> dict[Key, tuple[str, Any, Any]]:
    found = {(row["id"], row["part"]): (Op(row["_op"]).letter, row["a"], row["b"]) for row in rows}
    assert len(found) == len(rows)
    return found


def _expected(
    fold: Fold, since: int, reading: dict[Key, dict[str, Any]], reload: Reload
) -> dict[Key, tuple[str, Any, Any]]:
    if fold.truncated > since:
        return {}
    wanted: dict[Key, tuple[str, Any, Any]] = {}
    for key in {*fold.rows, *reading}:
        had, row = fold.rows.get(key), reading.get(key)
        if max(fold.touched.get(key, 0), fold.truncated) > since:
            continue
        if row is None:
            wanted[key] = ("d", None, None)
        elif reload is Reload.REBUILD:
            wanted[key] = ("r", row["a"], row["b"])
        elif had != row:
            wanted[key] = ("c" if had is None else "u", row["a"], row["b"])
    return wanted
