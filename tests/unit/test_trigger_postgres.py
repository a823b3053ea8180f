"""Snapshots, names, positions and pages of the trigger pattern on PostgreSQL, without a server."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import SourceError
from headwater.model import Position
from headwater.sources.trigger_postgres.look import Seen, Transactions
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.pace import BYTES, Pace
from headwater.sources.trigger_postgres.pages import page_of
from headwater.sources.trigger_postgres.position import Place, Step, StreamLoad, place_of
from headwater.sources.trigger_postgres.snapshots import snapshot_of


def test_a_snapshot_sees_what_had_ended() -> None:
    snapshot = snapshot_of("10:15:11,13")
    assert str(snapshot) == "10:15:11,13"
    assert snapshot.sees(np.array([9, 10, 11, 12, 13, 14, 15, 2**40])).tolist() == [
        True, True, False, True, False, True, False, False,
    ]  # fmt: skip
    assert str(snapshot_of("7:7:")) == "7:7:"


@pytest.mark.parametrize(("pipeline", "mine"), [("a", True), ("a-1", False), ("ab", False)])
def test_f66_f84_names_are_matched_whole(pipeline: str, mine: bool) -> None:
    names = Names("a")
    other = Names(pipeline)
    assert names.owns_trigger(other.trigger(1, "r")) is mine
    assert names.owns_function(other.function(1)) is mine
    assert not names.owns_trigger("headwater_a_1_r")
    assert not names.owns_trigger("!headwater_a_1_rx")
    assert len(Names("x" * 40).trigger(99999, "t")) <= 63


def test_a_place_survives_its_token() -> None:
    load = StreamLoad("t", "public.t", "loading", 3, "1:2:", {"16384": 7}, ("16385",), 16384, 12, 5)
    place = Place("id", 2, 9, snapshot_of("1:5:3"), Step(snapshot_of("1:9:"), 4, 3, 8), {"s": load})
    assert place_of(place.position()) == place
    with pytest.raises(SourceError, match="format 99"):
        place_of(Position(1, 1, b'{"v": 99}'))


def test_a_pace_grows_while_it_is_light() -> None:
    pace = Pace(10, 1000)
    pace.learn([], 10)
    assert pace.size == 40
    pace.learn([], 5)
    assert pace.size == 40
    for _ in range(9):
        pace.learn([], pace.size)
    assert pace.size == 1000
    assert BYTES > 2**20


class Reader:
    """Transactions 5, 3 and 4, which ended their writing in this order: numbers 1 to 6."""

    def all(self, sql: str) -> pa.RecordBatch:
        return pa.record_batch({"id": [1, 2, 3, 4, 5, 6], "xid": [3, 5, 5, 3, 4, 4]})


def test_f62_transactions_come_whole_and_by_their_last_numbers() -> None:
    transactions = Transactions(np.array([5, 3, 4]), np.array([3, 4, 6]), np.array([2, 2, 2]))
    upto = snapshot_of("9:9:")
    page, rest = page_of(Reader(), Names("a"), Seen(7, upto, transactions, Step(upto, index=10)), 100, "c.at")  # type: ignore[arg-type]
    assert page is not None
    assert rest is None
    assert page.rows.column("xid").to_pylist() == [5, 5, 3, 3, 4, 4]
    assert page.rows.column("id").to_pylist() == [2, 3, 1, 4, 5, 6]
    assert page.index.tolist() == [10, 12, 14, 16, 18, 20]
