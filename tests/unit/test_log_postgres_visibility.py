"""Which transactions of the log a snapshot sees, near the wrap-around of their numbers too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import SourceError
from headwater.sources.log_postgres.chunks import in_bus_sql, older_sql
from headwater.sources.log_postgres.position import Progress
from headwater.sources.log_postgres.rows import behind, below
from headwater.sources.log_postgres.snapshot import Snapshot

WRAP = 2**32


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Close to a multiple of 2**32 as a rule."""
    xmin = draw(st.sampled_from([3, WRAP, 2 * WRAP, 7 * WRAP])) + draw(st.integers(-1000, 1000))
    xmin = max(xmin, 3)
    xmax = xmin + draw(st.integers(0, 1000))
    running = draw(st.sets(st.integers(xmin, max(xmin, xmax - 1)), max_size=20)) if xmax > xmin else set()
    return Snapshot(xmin, xmax, tuple(sorted(running)))


@given(snapshots(), st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=50))
def test_32_bits_are_seen_like_the_64_they_stand_for(snapshot: Snapshot, distances: list[int]) -> None:
    wide = [max(3, snapshot.xmax + distance) for distance in distances]
    expected = [xid < snapshot.xmin or (xid < snapshot.xmax and xid not in snapshot.xip) for xid in wide]
    narrow = np.array([xid % WRAP for xid in wide], np.uint32)
    assert snapshot.widened(narrow).tolist() == wide
    assert snapshot.sees(narrow).tolist() == expected
    assert snapshot.sees_all(narrow) == all(expected)


@given(snapshots())
def test_the_text_of_a_snapshot_gives_it_back(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


def test_nothing_is_all_seen() -> None:
    assert Snapshot(5, 5).sees_all(np.empty(0, np.uint32))


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "1:2:3;4"])
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="snapshot"):
        Snapshot.parse(text)


@given(st.integers(8, 2**62))
def test_rows_that_are_read_take_a_place_that_is_no_commits(lsn: int) -> None:
    commit = lsn & ~7
    assert commit - 8 < below(commit) < commit < behind(commit) < commit + 8
    assert below(commit) + 6 < commit
    assert behind(commit) + 6 < commit + 8
    assert commit <= lsn < behind(lsn) + 8, "a position between two commits"
    assert behind(lsn) == behind(commit)


NOW = Snapshot(5000, 5010)


def progress(**more: object) -> Progress:
    files = {"10": 1, "20": 2, "30": 3}
    return Progress("t", "keys", leaf=20, page=7, snapshot="4000:4010:4003", files=files, **more)  # type: ignore[arg-type]


def test_rows_before_the_page_that_was_reached_are_in_the_bus() -> None:
    sql = in_bus_sql(progress(), {"10": 1, "20": 2, "30": 3}, NOW)
    assert sql is not None
    assert "'{10}'::oid[]" in sql
    assert "tableoid = 20 AND ctid < '(7,0)'::tid" in sql
    assert older_sql(4000) in sql


def test_rows_of_a_rewritten_table_are_not() -> None:
    sql = in_bus_sql(progress(), {"10": 99, "20": 2, "30": 3}, NOW)
    assert sql is not None
    assert "oid[]" not in sql
    assert in_bus_sql(progress(), {"10": 99, "20": 98}, NOW) is None


def test_ages_that_have_wrapped_tell_nothing() -> None:
    assert in_bus_sql(progress(), {"10": 1, "20": 2}, Snapshot(2**31, 2**31)) is None
    assert in_bus_sql(Progress("t", "keys"), {}, NOW) is None


def test_a_transaction_is_older_by_the_32_bits_that_a_row_has_of_it() -> None:
    assert older_sql(WRAP + 5) == "pg_catalog.age(xmin) > pg_catalog.age('5'::xid)"
