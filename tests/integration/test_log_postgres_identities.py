"""What the log says of tables itself: their replica identity at the time of each change, and types made since."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from headwater.errors import SourceError
from headwater.protocols import Load
from headwater.sources.log_postgres import watch
from tests.log_world import World, captured, letters

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, u int NOT NULL UNIQUE)"
ROWS = "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)"
MOVED = "ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key"
UNTOLD = ("DELETE FROM t WHERE id = 2", "UPDATE t SET id = 30 WHERE id = 3", "UPDATE t SET u = 100 WHERE id = 1")
BACK = "ALTER TABLE t REPLICA IDENTITY DEFAULT"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)


@pytest.fixture
def world(database: str) -> World:
    world = World(database, captured("t", "id v"), captured("other", "id", load=SKIP), idle_advance=0.05)
    world.sql("CREATE TABLE other (id int PRIMARY KEY)")
    return world


def begun(world: World, *statements: str) -> None:
    world.sql(*statements)
    world.catch_up()
    world.taken.clear()
    world.notes.clear()


def rows_of(world: World) -> dict[int, Any]:
    """What was read of s.t."""
    return {row["after"]["id"]: row["after"]["v"] for row in world.taken if row["stream"] == "s.t"}


def table(world: World) -> dict[int, Any]:
    return dict(world.sql("SELECT id, v FROM t"))


def of_t(world: World) -> list[dict[str, Any]]:
    return [row for row in world.taken if row["stream"] == "s.t" or row["table"].name == "t"]


def compared(world: World) -> None:
    with contextlib.suppress(
        SourceError
    ):  # a restart is enough, or another one where the log tells of the old once more
        world.catch_up()
    assert rows_of(world) == table(world)


def test_f33_a_replica_identity_that_moved_there_and_back_while_stopped(world: World) -> None:
    """Its changes are told without the key that the stream needs: the stream ends, and is compared."""
    begun(world, TABLE, ROWS)
    world.sql(MOVED, *UNTOLD, BACK, "UPDATE t SET v = 'z' WHERE id = 1", "INSERT INTO other VALUES (1)")
    with pytest.raises(SourceError, match="the log does not say `id` of rows that were changed or deleted") as caught:
        world.catch_up()
    assert "s.t" in caught.value.message
    assert letters(world.taken) == [("c", {"id": 1})]
    assert world.place.loads["s.t"].token == "away"
    assert {note.kind for note in world.notes if note.stream == "s.t"} == {"gap"}
    world.taken.clear()
    world.catch_up()
    assert rows_of(world) == table(world) == {1: "z", 30: "c"}
    world.taken.clear()
    world.catch_up()
    assert world.taken == []


def test_f33_a_replica_identity_that_moved_while_it_runs(often: None, world: World) -> None:
    begun(world, TABLE, ROWS)
    with world.following() as following:
        following.next()
        world.sql("UPDATE t SET v = 'told' WHERE id = 1", MOVED, *UNTOLD)
        following.until(lambda _: "s.t" in following.source.broken)
        world.sql("INSERT INTO other VALUES (1)")
        following.until(lambda rows: ("c", {"id": 1}) in letters(rows))
        assert letters(of_t(world)) in ([], [("u", {"id": 1, "v": "told"})])  # whether it came in the same segment
        world.taken.clear()
        world.sql(BACK)
        following.until(lambda _: rows_of(world) == table(world))
        assert dict(following.source.broken) == {}
        world.taken.clear()
        world.sql("DELETE FROM t WHERE id = 30")
        assert letters(following.until(bool)) == [("d", {"id": 30, "v": None})]


def test_f33_a_partitions_own_replica_identity_counts(world: World) -> None:
    """The log describes the root, whose identity is untouched, and the partition behind it."""
    begun(
        world,
        "CREATE TABLE t (id int PRIMARY KEY, v text, u int NOT NULL) PARTITION BY RANGE (id)",
        "CREATE TABLE t0 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        "CREATE UNIQUE INDEX t0_u ON t0 (u)",
        "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (11, 'c', 3)",
    )
    world.sql(
        "ALTER TABLE t0 REPLICA IDENTITY USING INDEX t0_u",
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET id = 3 WHERE id = 2",
        "ALTER TABLE t0 REPLICA IDENTITY DEFAULT",
    )
    with pytest.raises(SourceError, match="its replica identity became `u`"):
        world.catch_up()
    assert world.taken == []
    compared(world)


def test_f33_the_roots_own_replica_identity_does_not_count(world: World) -> None:
    begun(
        world,
        "CREATE TABLE t (id int PRIMARY KEY, v text, u int NOT NULL, UNIQUE (id, u)) PARTITION BY RANGE (id)",
        "CREATE TABLE t0 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "CREATE UNIQUE INDEX t_other ON t (u, id)",
        "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)",
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
    )
    world.sql("DELETE FROM t WHERE id = 1")
    assert letters(world.catch_up()) == [("d", {"id": 1, "v": None})]


def test_f33_more_than_the_key_is_enough(world: World) -> None:
    """FULL, and for a while no identity at all, with which only inserts are possible."""
    begun(world, TABLE, ROWS)
    world.sql(
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "DELETE FROM t WHERE id = 1",
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
        "INSERT INTO t VALUES (4, 'd', 4)",
        BACK,
        "DELETE FROM t WHERE id = 2",
    )
    world.catch_up()
    assert [op for op, _ in letters(world.taken)] == ["d", "c", "d"]


def test_f33_in_a_transaction_that_is_too_large_for_memory(world: World) -> None:
    begun(world, TABLE, ROWS)
    world.sql(
        "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'",
        "SELECT pg_reload_conf()",
        f"BEGIN; {MOVED}; INSERT INTO t SELECT i, repeat('x', 500), i FROM generate_series(1000, 4000) i; "
        f"{'; '.join(UNTOLD)}; {BACK}; COMMIT",
    )
    try:
        with pytest.raises(SourceError, match="its replica identity became `u`"):
            world.catch_up()
    finally:
        world.sql("ALTER SYSTEM RESET logical_decoding_work_mem", "SELECT pg_reload_conf()")
    compared(world)


def test_f33_when_every_stream_has_ended_it_is_durable_that_they_are_compared(world: World) -> None:
    world.captures = world.captures[:1]
    begun(world, TABLE, ROWS)
    world.sql(MOVED)
    with pytest.raises(SourceError, match="does not say `id`"):
        world.catch_up()
    world.sql(*UNTOLD, BACK)
    assert world.place.loads["s.t"].token == "away"
    compared(world)


def test_f50_a_type_that_was_made_while_it_runs(world: World) -> None:
    world.captures = (captured("t", "id m", load=SKIP),)
    world.sql("CREATE TYPE mood AS ENUM ('a', 'b')", "CREATE TABLE t (id int PRIMARY KEY, m mood[])")
    world.catch_up()
    with world.following() as following:
        following.next()
        world.sql("INSERT INTO t VALUES (1, '{a,b}')")
        assert letters(following.until(bool)) == [("c", {"id": 1, "m": ["a", "b"]})]
        world.sql(
            "CREATE TYPE other_mood AS ENUM ('a', 'b', 'c')",
            "ALTER TABLE t ALTER m TYPE other_mood[] USING m::text[]::other_mood[]",
            "INSERT INTO t VALUES (2, '{a,c}')",
        )
        assert letters(following.until(bool)) == [("c", {"id": 2, "m": ["a", "c"]})]
