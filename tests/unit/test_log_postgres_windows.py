"""What a window leaves out of the log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.model import Op, changes_schema
from headwater.sources.log_postgres.live import KeyLoad
from headwater.sources.log_postgres.position import Progress
from headwater.sources.log_postgres.snapshot import Snapshot
from headwater.sources.log_postgres.windows import Keys, Window

COLUMNS = pa.schema([("id", pa.int64()), ("kind", pa.string()), ("n", pa.int32())])
OPS = {op.letter: op for op in Op}
SEEN, HIDDEN, LATER = 100, 105, 120
SNAPSHOT = Snapshot(104, 110, (105,))


def change(op: str, before: int | None, after: int | None, xid: int = SEEN, unchanged: list[int] | None = None) -> Any:
    sides = [None if key is None else {"id": key, "kind": f"k{key}", "n": 1} for key in (before, after)]
    return {
        "_op": OPS[op].value,
        "_epoch": 1,
        "_commit": 8 * xid,
        "_index": 0,
        "_transaction": str(xid),
        "before": sides[0],
        "after": sides[1],
        "_unchanged": unchanged,
    }


def window(*keys: int) -> Window:
    rows = [pa.array(keys, pa.int64()), pa.array([f"k{key}" for key in keys], pa.string())]
    return Window(SNAPSHOT, 1000, Keys([rows]), ("id", "kind"))


def trimmed(chosen: Window, *rows: Any) -> tuple[list[tuple[str, int | None, int | None]], bool]:
    data = pa.RecordBatch.from_pylist(list(rows), schema=changes_schema(COLUMNS, unchanged=True))
    found, goes_on = chosen.trimmed(data)
    found.validate(full=True)
    shown = [
        (Op(row["_op"]).letter, *(row[s] and row[s]["id"] for s in ("before", "after"))) for row in found.to_pylist()
    ]
    return shown, goes_on


@pytest.mark.parametrize(
    ("row", "left"),
    [
        (("c", None, 1), None),
        (("c", None, 9), ("c", None, 9)),
        (("u", None, 1), None),
        (("u", None, 9), ("u", None, 9)),
        (("d", 1, None), None),
        (("d", 9, None), ("d", 9, None)),
        (("u", 1, 2), None),
        (("u", 8, 9), ("u", 8, 9)),
        (("u", 9, 1), ("d", 9, None)),
        (("u", 1, 9), ("c", None, 9)),
    ],
)
def test_what_is_in_the_rows_is_left_out_state_by_state(row: Any, left: Any) -> None:
    assert trimmed(window(1, 2), change(*row)) == ([] if left is None else [left], True)


@pytest.mark.parametrize("xid", [HIDDEN, LATER])
def test_what_the_snapshot_does_not_see_stays(xid: int) -> None:
    rows = [("c", None, 1), ("u", 1, 9), ("d", 2, None)]
    assert trimmed(window(1, 2), *(change(*row, xid) for row in rows)) == (rows, True)


def test_a_truncate_ends_the_window() -> None:
    rows = [change("u", None, 1), change("t", None, None), change("c", None, 1)]
    assert trimmed(window(1, 2), *rows) == ([("t", None, None), ("c", None, 1)], False)


def test_a_window_of_all_rows_leaves_out_everything_that_is_seen() -> None:
    rows = [change("c", None, 1), change("c", None, 2, HIDDEN), change("t", None, None), change("c", None, 3, LATER)]
    assert trimmed(Window(SNAPSHOT, 1, None), *rows) == ([("c", None, 2), ("c", None, 3)], True)


def test_a_row_that_leaves_its_new_state_out_has_nothing_unchanged() -> None:
    data = pa.RecordBatch.from_pylist(
        [change("u", 9, 1, unchanged=[2]), change("u", None, 9, unchanged=[2])],
        schema=changes_schema(COLUMNS, unchanged=True),
    )
    assert window(1).trimmed(data)[0].column("_unchanged").to_pylist() == [None, [2]]


def test_the_same_object_goes_on_when_nothing_is_left_out() -> None:
    data = pa.RecordBatch.from_pylist([change("c", None, 9)], schema=changes_schema(COLUMNS, unchanged=True))
    assert window(1, 2).trimmed(data)[0] is data
    assert Window(Snapshot(3, 3), 1, None).trimmed(data)[0] is data


def test_slices_are_asked_by_their_own_rows() -> None:
    rows = [change("c", None, key) for key in range(10)]
    data = pa.RecordBatch.from_pylist(rows, schema=changes_schema(COLUMNS, unchanged=True)).slice(3, 4)
    found = window(4, 5, 9).trimmed(data)[0]
    assert [row["after"]["id"] for row in found.to_pylist()] == [3, 6]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.text(max_size=2))),
    st.lists(st.tuples(st.integers(0, 20), st.text(max_size=2))),
)
def test_keys_know_their_own(mine: list[tuple[int, str]], asked: list[tuple[int, str]]) -> None:
    def columns(keys: list[tuple[int, str]]) -> list[pa.Array]:
        return [pa.array([k[0] for k in keys], pa.int64()), pa.array([k[1] for k in keys], pa.string())]

    half = len(mine) // 2
    keys = Keys([columns(mine[:half]), columns(mine[half:])])
    assert keys.has(columns(asked)).tolist() == [key in mine for key in asked]


def test_equal_first_halves_of_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.sources.log_postgres import windows

    def alike(columns: list[pa.Array]) -> Any:
        second = columns[0].to_numpy().astype(np.uint64)
        return np.stack([np.full(len(second), 7, np.uint64), second], axis=1)

    monkeypatch.setattr(windows, "words_of", alike)
    keys = Keys([[pa.array([1, 2, 3])]])
    assert keys.has([pa.array([3, 4, 1, 0])]).tolist() == [True, False, True, False]


def test_f40_a_truncate_ends_the_window_behind_itself_each_time_that_a_transaction_is_read() -> None:
    subject: Any = SimpleNamespace(
        connector=None, capture=SimpleNamespace(identifying=("id", "kind"), key=("id", "kind"))
    )
    load = KeyLoad(subject, Progress("initial", "keys", until=1000))
    load._window = window(1, 2)
    schema = changes_schema(COLUMNS, unchanged=True)
    pieces = [
        pa.RecordBatch.from_pylist([{**row, "_index": 10 * piece + n} for n, row in enumerate(rows)], schema=schema)
        for piece, rows in enumerate(
            [[change("c", None, 1)], [change("c", None, 2), change("t", None, None)], [change("c", None, 1)]]
        )
    ]
    for _ in range(2):
        assert [len(load.trimmed(piece)) for piece in pieces] == [0, 1, 1]
