"""The place of the rows that `state` gives, while the capture itself stands still or runs."""

from __future__ import annotations

from contextlib import closing

import pytest

from headwater.sources.log_postgres import state
from tests.log_world import World, captured, wait_until

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture
def world(database: str) -> World:
    made = World(database, captured("t", "id name"))
    made.sql(
        "CREATE TABLE t (id int PRIMARY KEY, name text)",
        "CREATE TABLE others (id int)",
        "INSERT INTO t VALUES (1, 'a')",
    )
    made.catch_up()
    made.catch_up()
    return made


def place(world: World) -> tuple[int, list[int]]:
    """The commit up to which the rows are, and their ids."""
    with closing(world.open()) as source:
        found = source.state("s.t")
        rows = [row["after"]["id"] for changes in found.changes for row in changes.data.to_pylist()]
    assert found.order is not None
    return found.order.commit, rows


def confirmed(world: World) -> int:
    ((lsn,),) = world.sql(
        "SELECT pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint FROM pg_replication_slots"
        " WHERE slot_name = 'headwater_test_db'"
    )
    return int(lsn)


def test_what_others_wrote_leaves_the_place_at_the_slots(world: World) -> None:
    """A capture that does not run will not come any further, and it need not."""
    world.sql("INSERT INTO others SELECT generate_series(1, 1000)")
    assert place(world) == (confirmed(world) - 1, [1])


@pytest.mark.parametrize(
    "change", ["INSERT INTO t VALUES (2, 'b')", "UPDATE t SET name = 'c'", "DELETE FROM t", "TRUNCATE t"]
)
def test_a_change_that_is_not_captured_yet_makes_the_place_a_later_one(world: World, change: str) -> None:
    world.sql(change)
    ((written,),) = world.sql("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
    commit, rows = place(world)
    assert commit >= int(written) - 8 > confirmed(world)
    assert rows == [number for (number,) in world.sql("SELECT id FROM t ORDER BY id")]


def test_beside_a_capture_that_runs_the_place_is_the_later_one(world: World) -> None:
    with world.following() as following:
        following.next()
        wait_until(lambda: (slot := world.slot()) is not None and slot[1] is not None)
        world.sql("INSERT INTO others SELECT generate_series(1, 1000)")
        commit, rows = place(world)
        assert commit > confirmed(world)
        assert rows == [1]


def test_a_long_log_is_not_looked_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_NEAR", 1000)
    world.sql("INSERT INTO others SELECT generate_series(1, 1000)")
    assert place(world)[0] > confirmed(world)
