"""The pure parts of the trigger pattern: names, what is cut out of CREATE INDEX, positions, pace."""

from __future__ import annotations

import json
from itertools import product

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import SourceError
from headwater.model import Changes, Position, TableId
from headwater.sources.settling import LOADING
from headwater.sources.trigger_sqlite.names import EVENTS, Names
from headwater.sources.trigger_sqlite.pace import BYTES, FIRST, MOST, Pace
from headwater.sources.trigger_sqlite.position import Place, StreamLoad, place_of
from headwater.sources.trigger_sqlite.shape import cut_index
from headwater.sources.trigger_sqlite.sql import Layout, make_tables, widen

PIPELINES = ("a", "a-1", "a-1-1", "a-1-after", "a-change", "ab", "a-11")


def everything(pipeline: str) -> set[str]:
    names = Names(pipeline)
    return {*names.tables, *(names.trigger(n, e) for n in (1, 11, 111) for e in EVENTS)}


@pytest.mark.parametrize(("one", "other"), [pair for pair in product(PIPELINES, repeat=2) if pair[0] != pair[1]])
def test_f84_no_two_pipelines_share_a_name_or_own_each_others(one: str, other: str) -> None:
    assert not everything(one) & everything(other)
    owned = {name for name in everything(other) if Names(one).owns_trigger(name)}
    assert owned == set()


def test_f66_names_are_matched_whole() -> None:
    names = Names("a-b")
    assert names.owns_trigger("headwater_a_b_1_after_insert")
    for alike in ("headwater_aXb_1_after_insert", "headwater_a_b_1_after_insert2", "Xheadwater_a_b_1_after_insert"):
        assert not names.owns_trigger(alike)


@pytest.mark.parametrize(
    ("sql", "terms", "predicate"),
    [
        ("CREATE UNIQUE INDEX i ON t(a)", ["a"], ""),
        ('create unique index "i(" on "t)"("a,b", lower(c) desc)', ['"a,b"', "lower(c)"], ""),
        ("CREATE UNIQUE INDEX i ON t(a /* , */, b+1 ASC) WHERE c IN (1, 2) AND d = 'where'", None, None),
        ("CREATE UNIQUE INDEX i ON t (coalesce(a, ')'), (b))\n where a > 0", ["coalesce(a, ')')", "(b)"], "a > 0"),
    ],
)
def test_terms_and_predicate_are_cut_as_written(sql: str, terms: list[str] | None, predicate: str | None) -> None:
    if terms is None:
        terms, predicate = ["a /* , */", "b+1"], "c IN (1, 2) AND d = 'where'"
    assert cut_index(sql) == (terms, predicate)


values = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.binary())
loads = st.builds(
    StreamLoad,
    token=st.text(max_size=5),
    table=st.text(max_size=5),
    state=st.just(LOADING),
    start=st.integers(0, 9),
    after=st.none() | st.lists(values, min_size=1, max_size=3).map(tuple),
    count=st.integers(0, 9),
    again=st.booleans(),
)


@given(st.dictionaries(st.text(max_size=5), loads, max_size=3), st.integers(1, 2**32 - 1), st.integers(0, 2**62))
def test_positions_keep_keys_exactly(found: dict[str, StreamLoad], epoch: int, change: int) -> None:
    place = Place("incarnation", epoch, change, "anchor", found)
    position = place.position()
    assert place_of(position) == place
    assert (position.epoch, position.commit) == (epoch, change)


def test_a_position_of_another_format_is_refused() -> None:
    with pytest.raises(SourceError, match="format 2"):
        place_of(Position(1, 1, json.dumps({"v": 2}).encode()))


def test_the_change_table_is_widened_without_moving_slots() -> None:
    change, pending, _ = make_tables(Names("a"), 1)
    assert change.endswith("(id INTEGER PRIMARY KEY AUTOINCREMENT, t INTEGER, op INTEGER, o0, n0)")
    assert pending.endswith("(n INTEGER PRIMARY KEY, t INTEGER, o0)")
    added = [statement.split()[-1] for statement in widen(Names("a"), 1, 3)]
    assert added == ["o1", "n1", "o2", "n2", "o1", "o2"]
    assert Layout(1, "t", ("", "b")).slot("b") == 1


def test_pace_grows_while_rows_are_light_and_shrinks_at_once() -> None:
    pace = Pace()
    pace.learn([])
    assert pace.rows == FIRST
    pace.learn([changes_of(FIRST, 10)])
    assert pace.rows == 4 * FIRST
    for _ in range(5):
        pace.learn([changes_of(pace.rows, 10)])
    assert pace.rows == MOST
    pace.learn([changes_of(MOST // 2, 1_000)])
    assert pace.rows <= BYTES // 1_000


def changes_of(rows: int, size: int) -> Changes:
    text = pa.array(["x" * size]).take(pa.nulls(rows, pa.int32()).fill_null(0))
    return Changes(TableId("", "t"), pa.RecordBatch.from_arrays([text], names=["_op"]))
