"""The log source on a real server: what writes become, and that a restart anywhere neither loses nor doubles."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from headwater.drivers.postgres import connect, execute, quoted
from headwater.model import Op, TableId
from headwater.protocols import Load
from tests.log_world import World, captured, letters

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)


@pytest.fixture
def world(database: str) -> World:
    world = World(database, captured("t", "id name", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    return world


def test_every_kind_of_write(world: World) -> None:
    world.sql(
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        "UPDATE t SET name = 'B' WHERE id = 2",
        "UPDATE t SET id = 3 WHERE id = 2",
        "DELETE FROM t WHERE id = 1",
        "TRUNCATE t",
    )
    rows = world.catch_up()
    assert letters(rows) == [
        ("c", {"id": 1, "name": "a"}),
        ("c", {"id": 2, "name": "b"}),
        ("u", {"id": 2, "name": "B"}),
        ("u", {"id": 3, "name": "B"}),
        ("d", {"id": 1, "name": None}),
        ("t", None),
    ]
    assert rows[3]["before"] == {"id": 2, "name": None}
    assert [row["_index"] for row in rows] == [0, 2, 0, 0, 0, 0]
    assert len({row["_commit"] for row in rows}) == 5
    assert len({row["_transaction"] for row in rows}) == 5
    assert all(row["_time"] is not None for row in rows)


@pytest.mark.parametrize("options", [{}, {"binary": "off"}, {"streaming": "off"}])
def test_values_are_the_same_in_text_and_in_binary(world: World, options: dict[str, Any]) -> None:
    world.sql(
        "ALTER TABLE t ADD n numeric(10, 2), ADD at timestamptz, ADD u uuid, ADD b bytea, ADD j jsonb",
        "INSERT INTO t VALUES (1, E'\\\\ \"x\"', 1.50, '2024-01-02 03:04:05+03', "
        "'6f9619ff-8b86-d011-b42d-00c04fc964ff', '\\x00ff', '{\"a\": 1}')",
    )
    world.captures = (captured("t", "id name n at u b j", load=SKIP),)
    (row,) = world.catch_up(**options)
    assert {name: str(value) for name, value in row["after"].items()} == {
        "id": "1",
        "name": '\\ "x"',
        "n": "1.50",
        "at": "2024-01-02 00:04:05+00:00",
        "u": "6f9619ff-8b86-d011-b42d-00c04fc964ff",
        "b": "b'\\x00\\xff'",
        "j": '{"a": 1}',
    }


def test_rolled_back_savepoints_leave_nothing_behind(world: World) -> None:
    with connect(world.url, application="test") as connection:
        for statement in (
            "BEGIN",
            "INSERT INTO t VALUES (1, 'a')",
            "SAVEPOINT one",
            "INSERT INTO t VALUES (2, 'b')",
            "ROLLBACK TO SAVEPOINT one",
            "INSERT INTO t VALUES (3, 'c')",
            "COMMIT",
        ):
            execute(connection, statement)
    rows = world.catch_up()
    assert [(row["after"]["id"], row["_index"]) for row in rows] == [(1, 0), (3, 2)]


def test_prepared_transactions_come_at_their_commit(world: World) -> None:
    with connect(world.url, application="test") as connection:
        for statement in ("BEGIN", "INSERT INTO t VALUES (1, 'a')", "PREPARE TRANSACTION 'one'"):
            execute(connection, statement)
    world.sql("INSERT INTO t VALUES (2, 'b')")
    assert [row["after"]["id"] for row in world.catch_up()] == [2]
    world.sql("COMMIT PREPARED 'one'")
    assert [row["after"]["id"] for row in world.catch_up()] == [1]


def test_f30_unchanged_toast_is_marked_and_taken_from_the_old_row_where_it_is(database: str) -> None:
    world = World(database, captured("t", "id name body", load=SKIP), captured("f", "id name body", load=SKIP))
    for table in ("t", "f"):
        world.sql(
            f"CREATE TABLE {table} (id int PRIMARY KEY, name text, body text)",
            f"ALTER TABLE {table} ALTER body SET STORAGE EXTERNAL",
            f"INSERT INTO {table} VALUES (1, 'a', repeat('x', 5000))",
        )
    world.sql("ALTER TABLE f REPLICA IDENTITY FULL")
    world.catch_up()
    world.sql("UPDATE t SET name = 'b'", "UPDATE f SET name = 'b'", "UPDATE t SET id = 2")
    plain, full, moved = sorted(world.catch_up(), key=lambda row: int(row["_commit"]))
    assert plain["after"] == {"id": 1, "name": "b", "body": None}
    assert plain["_unchanged"] == [2]
    assert full["after"] == {"id": 1, "name": "b", "body": "x" * 5000}
    assert full["before"] == {"id": 1, "name": "a", "body": "x" * 5000}
    assert full.get("_unchanged") is None
    assert moved["before"]["id"] == 1
    assert moved["after"]["id"] == 2


def test_f33_partitions_come_as_their_root_and_names_may_be_anything(database: str) -> None:
    odd = TableId("o", 'a."b" \\ c')
    named = dataclasses.replace(captured("o", "id", load=SKIP), table=odd)
    world = World(database, captured("p", "id name", load=SKIP), named)
    quoted_name = quoted(odd.name)
    world.sql(
        "CREATE TABLE p (id int, name text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 (name text, id int NOT NULL, PRIMARY KEY (id))",
        "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
        "CREATE SCHEMA o",
        f"CREATE TABLE o.{quoted_name} (id int PRIMARY KEY)",
    )
    world.catch_up()
    world.sql(
        "INSERT INTO p VALUES (1, 'a')",
        "UPDATE p SET id = 11",
        "DELETE FROM p2",
        f"INSERT INTO o.{quoted_name} VALUES (7)",
    )
    rows = sorted(world.catch_up(), key=lambda row: (row["_commit"], row["_index"]))
    assert [(str(row["table"]), Op(row["_op"]).letter) for row in rows[:4]] == [
        ("public.p", "c"),
        ("public.p", "d"),
        ("public.p", "c"),
        ("public.p", "d"),
    ]
    assert rows[2]["after"] == {"id": 11, "name": "a"}
    assert rows[3]["before"] == {"id": 11, "name": None}
    assert rows[4]["table"] == odd


class _Writer:
    """A session that writes rows with keys of its own, now and then by COPY, and now and then moves the last one."""

    def __init__(self, world: World, dice: random.Random, keys: Iterator[int]) -> None:
        self._connection = connect(world.url, application="test")
        self._dice = dice
        self._keys = keys
        self.written: list[int] = []

    def write(self) -> None:
        if not self.written:
            execute(self._connection, "BEGIN")
        for _ in range(self._dice.choice((1, 1, 5))):
            self.written.append(next(self._keys))
            execute(self._connection, f"INSERT INTO t VALUES ({self.written[-1]}, 'x')")
        if self._dice.random() < 0.2:
            self._copy()
        if self._dice.random() < 0.1:
            last = self.written[-1]
            execute(self._connection, f"UPDATE t SET id = {-last} WHERE id = {last}")
            self.written.append(-last)

    def _copy(self) -> None:
        with self._connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            for key in itertools.islice(self._keys, 10):
                copy.write_row((key, "copied"))
                self.written.append(key)

    def commit(self) -> list[int]:
        execute(self._connection, "COMMIT")
        written, self.written = self.written, []
        return written

    def close(self) -> None:
        self._connection.close()


def _written(world: World, dice: random.Random) -> list[list[int]]:
    """The keys of interleaved transactions, in the order in which those committed."""
    keys = itertools.count(1)
    writers = [_Writer(world, dice, keys) for _ in range(4)]
    found: list[list[int]] = []
    for _ in range(60):
        writer = dice.choice(writers)
        writer.write()
        if dice.random() < 0.4:
            found.append(writer.commit())
    for writer in writers:
        if writer.written:
            found.append(writer.commit())
        writer.close()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_f01_restarts_in_the_middle_of_interleaved_transactions(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long and short ones, COPY, one COMMIT's end being the next one's beginning, a key change as the last change.

    What arrives is handed on frame by frame, so that a batch is one transaction and each of their ends is cut at.
    """
    monkeypatch.setattr("headwater.sources.log_postgres.stream.BUDGET", 16)
    monkeypatch.setattr("headwater.sources.log_postgres.log.BATCH_ROWS", 1)
    dice = random.Random(seed)
    confirmed = world.place.lsn
    transactions = _written(world, dice)
    expected = [key for keys in transactions for key in keys]
    for number, transaction in enumerate(transactions, 1):
        assert len(world.catch_up(confirm=False, batches=1 + number)) == len(transaction)
        # nothing was confirmed since: the server sends again what the bus holds already
        world.position = dataclasses.replace(world.place, lsn=confirmed).position()
    world.catch_up()
    assert [row["after"]["id"] for row in world.taken] == expected
    orders = [(row["_commit"], row["_index"]) for row in world.taken]
    assert orders == sorted(set(orders))


def test_f05_a_long_backlog_comes_whole_after_a_restart(world: World) -> None:
    """The filter that leaves out what is in the bus already ends with it."""
    with connect(world.url, application="test") as connection:
        execute(connection, "SET synchronous_commit = off")
        for number in range(3_000):
            execute(connection, f"INSERT INTO t VALUES ({number}, 'x')")
    world.catch_up(confirm=False, batches=2)
    with connect(world.url, application="test") as connection:
        execute(connection, "SET synchronous_commit = off")
        for number in range(3_000, 4_000):
            execute(connection, f"INSERT INTO t VALUES ({number}, 'x')")
    world.catch_up(confirm=False)
    world.catch_up()
    assert [row["after"]["id"] for row in world.taken] == list(range(4_000))


def test_f07_a_catch_up_ends_at_a_place_although_somebody_goes_on_writing(world: World) -> None:
    world.sql("INSERT INTO t SELECT i, 'before' FROM generate_series(1, 100) i")
    done = threading.Event()

    def write() -> None:
        with connect(world.url, application="test") as connection:
            number = 1000
            while not done.is_set():
                number += 1
                execute(connection, f"INSERT INTO t VALUES ({number}, 'during')")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        rows = world.catch_up()
    finally:
        done.set()
        writer.join()
    assert sum(row["after"]["name"] == "before" for row in rows) == 100
    world.catch_up()
    assert [row["after"]["id"] for row in world.taken][100:] == list(range(1001, 1001 + len(world.taken) - 100))


def test_f41_what_is_not_committed_does_not_come_and_moves_nothing(world: World) -> None:
    with connect(world.url, application="test") as connection:
        execute(connection, "BEGIN")
        execute(connection, "INSERT INTO t VALUES (1, 'open')")
        world.sql("INSERT INTO t VALUES (2, 'short')")
        assert [row["after"]["id"] for row in world.catch_up()] == [2]
        execute(connection, "COMMIT")
    assert [row["after"]["id"] for row in world.catch_up()] == [1]


def test_unlisted_columns_stay_in_the_database(database: str) -> None:
    world = World(database, captured("t", "id", load=SKIP))
    world.sql("CREATE TABLE t (secret text, id int PRIMARY KEY)")
    world.catch_up()
    world.sql("INSERT INTO t VALUES ('secret', 1)")
    (row,) = world.catch_up()
    assert row["after"] == {"id": 1}


def test_a_read_that_is_left_gives_the_slot_back(world: World) -> None:
    with contextlib.closing(world.open()) as source:
        reading = cast(Any, source.read(world.position, follow=True))
        world.take(next(reading))
        reading.close()
    world.sql("INSERT INTO t VALUES (1, 'a')")
    assert [row["after"]["id"] for row in world.catch_up()] == [1]
