"""The log source as a whole: rows at an exact place, streams that are away for a while, tables that are added."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from headwater.drivers.postgres import connect, execute
from headwater.errors import SourceError
from headwater.faults import set_failpoints
from headwater.model import Op, Order, Reload
from headwater.protocols import Load
from tests.log_world import NAMES, Row, World, captured, letters, wait_until

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)


def _folded(rows: Iterable[Row], stream: str = "s.t") -> dict[int, Any]:
    """By order, as a stream's state."""
    state: dict[int, Any] = {}
    for row in sorted(rows, key=lambda row: (row["_epoch"], row["_commit"], row["_index"])):
        if row["stream"] not in (None, stream):
            continue
        values = row["after"] or row["before"]
        state.pop((row["before"] or values)["id"], None)
        if row["after"] is not None:
            state[values["id"]] = values
    return state


def _table(world: World) -> dict[int, Any]:
    return {number: {"id": number, "name": name} for number, name in world.sql("SELECT id, name FROM t")}


class _Writing:
    """Somebody writes all the time: new rows, updates, deletes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with connect(self._world.url, application="test") as connection:
            number = 100_000
            while not self._done.is_set():
                number += 1
                execute(connection, f"INSERT INTO t VALUES ({number}, 'new')")
                execute(connection, f"UPDATE t SET name = 'upd' WHERE id = {number % 1000}")
                execute(connection, f"DELETE FROM t WHERE id = {number % 1000 + 1000}")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture
def world(database: str) -> World:
    world = World(database, captured("t", "id name"))
    world.sql(
        "CREATE TABLE t (id int PRIMARY KEY, name text)",
        "INSERT INTO t SELECT i, 'first' FROM generate_series(1, 20000) i",
    )
    return world


def test_f21_the_load_and_the_log_meet_without_gap_or_overlap(world: World) -> None:
    with _Writing(world):
        world.catch_up(batches=3)
        world.catch_up()
    world.catch_up()
    assert _folded(world.taken) == _table(world)
    orders = [(row["_commit"], row["_index"]) for row in world.taken if row["_op"] != Op.READ]
    assert orders == sorted(set(orders))


def test_f10_the_state_is_that_of_an_exact_place(world: World) -> None:
    """However busy the table is: the events up to its order make the very rows."""
    world.catch_up()
    with _Writing(world), world.following() as following:
        for _ in range(5):
            following.until(lambda rows: len(rows) > 20)
            state = following.source.state("s.t")
            rows = [row for changes in state.changes for row in changes.data.to_pylist()]
            order = state.order
            assert order is not None
            following.until(lambda _, order=order: world.place.commit > order.commit)  # type: ignore[misc]
            below = [r for r in world.taken if Order(r["_epoch"], r["_commit"], r["_index"]) <= order]
            assert _folded(below) == {row["after"]["id"]: row["after"] for row in rows}
            assert all(Order(row["_epoch"], row["_commit"], row["_index"]) <= order for row in rows)
    ((slots,),) = world.sql("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
    assert slots == 1


def test_a_state_that_is_not_read_gives_its_connection_back(world: World) -> None:
    world.catch_up()
    with contextlib.closing(world.open()) as source:
        for _ in range(3):
            source.state("s.t")
    with connect(world.url, application="test") as connection:
        execute(connection, "DROP TABLE t")  # nobody holds a lock on it


def test_a_stream_that_could_not_be_captured_for_a_while_is_compared(world: World) -> None:
    other = captured("u", "id", load=SKIP)
    world.captures = (world.captures[0], other)
    world.sql("CREATE TABLE u (id int PRIMARY KEY)")
    world.catch_up()
    world.sql("ALTER TABLE t RENAME TO away")
    with pytest.raises(SourceError, match="there is no table public.t"):
        world.catch_up()
    world.sql("INSERT INTO u VALUES (1)", "DELETE FROM away WHERE id = 1", "INSERT INTO away VALUES (0, 'missed')")
    with pytest.raises(SourceError, match="there is no table public.t"):
        world.catch_up()
    world.sql("ALTER TABLE away RENAME TO t")
    world.taken.clear()
    readings = []
    with contextlib.closing(world.open()) as source:
        for batch in source.read(world.position, follow=False):
            readings += [changes.reading for changes in batch.changes if changes.reading is not None]
            world.take(batch)
    assert {reading.reload for reading in readings} == {Reload.DIFFERENCE}
    assert [reading.last for reading in readings].count(True) == 1
    assert _folded(world.taken) == _table(world)
    assert [note.kind for note in world.notes if note.stream == "s.t"].count("gap") == 1
    world.taken.clear()
    world.catch_up()
    assert world.taken == []


def test_a_table_that_somebody_took_out_of_the_publication_is_compared(world: World) -> None:
    world.catch_up()
    world.sql("ALTER PUBLICATION headwater_test_db DROP TABLE t", "DELETE FROM t WHERE id = 7")
    world.taken.clear()
    world.catch_up()
    assert len(_folded(world.taken)) == 19_999
    assert "gap" in {note.kind for note in world.notes}


def test_f26_a_table_added_later_waits_for_those_who_wrote_before_it_was_published(world: World) -> None:
    """Such a transaction's rows come by the load alone: its early writes are in no publication."""
    world.catch_up()
    world.sql("CREATE TABLE u (id int PRIMARY KEY, name text)", "INSERT INTO u VALUES (1, 'a')")
    with connect(world.url, application="test") as early:
        execute(early, "BEGIN")
        execute(early, "INSERT INTO u VALUES (2, 'early')")
        world.captures = (*world.captures, captured("u", "id name"))
        with world.following(idle_advance=0.05) as following:
            following.next()
            world.sql("INSERT INTO t VALUES (0, 'meanwhile')")
            found = following.until(lambda rows: bool(rows))
            assert letters(found) == [("c", {"id": 0, "name": "meanwhile"})]
            execute(early, "COMMIT")
            found = following.until(lambda rows: len(rows) >= 2)
    assert {values["id"] for _, values in letters(found) if values} >= {1, 2}


def test_stop_is_heard_at_once_while_nothing_comes(world: World) -> None:
    world.captures = (captured("t", "id name", load=SKIP),)
    with world.following(idle_advance=1000, heartbeat=0) as following:
        following.next()
        wait_until(lambda: (world.slot() or (0, None))[1] is not None)
    slot = world.slot()
    assert slot is not None
    wait_until(lambda: (world.slot() or (0, 0))[1] is None)


DROPPED, ADDED = (f"ALTER PUBLICATION {NAMES.publication} {what} TABLE t" for what in ("DROP", "ADD"))
NARROWED, WIDENED = (
    f"ALTER PUBLICATION {NAMES.publication} SET (publish = '{publish}')"
    for publish in ("insert", "insert, update, delete, truncate")
)
LEAVES = f"ALTER PUBLICATION {NAMES.publication} SET (publish_via_partition_root = false)"


@pytest.mark.parametrize(
    ("before", "behind"),
    [([NARROWED], []), ([NARROWED], [WIDENED]), ([LEAVES], []), ([DROPPED], []), ([DROPPED], [ADDED])],
    ids=["narrowed", "narrowed and back", "leaves", "dropped", "dropped and back"],
)
def test_f03_a_publication_altered_while_nobody_read_is_a_gap_and_compared(
    world: World, before: list[str], behind: list[str]
) -> None:
    world.sql("DELETE FROM t WHERE id > 10")
    world.catch_up()
    world.sql(*before, "UPDATE t SET name = 'unseen' WHERE id = 1", "DELETE FROM t WHERE id = 2", *behind)
    world.taken.clear()
    world.catch_up()
    assert _folded(world.taken) == _table(world), "all rows were read"
    assert [note.stream for note in world.notes if note.kind == "gap"] == ["s.t"]
    world.taken.clear()
    world.catch_up()
    assert world.taken == []


@pytest.mark.parametrize("altered", [DROPPED, NARROWED])
def test_f03_a_publication_put_right_by_a_start_that_died_is_compared(world: World, altered: str) -> None:
    """What the start alters is durable at once; what it found is not before the first append."""
    world.sql("DELETE FROM t WHERE id > 10")
    world.catch_up()
    world.sql(altered, "UPDATE t SET name = 'unseen' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    for _ in range(2):
        set_failpoints("log.arranged=error:1")
        with pytest.raises(OSError, match="log.arranged"):
            world.catch_up()
        set_failpoints("")
    world.taken.clear()
    world.catch_up()
    assert _folded(world.taken) == _table(world), "all rows were read"
    assert [note.stream for note in world.notes if note.kind == "gap"] == ["s.t"]


def test_f03_a_publication_that_gets_another_table_is_not_a_gap(world: World) -> None:
    world.catch_up()
    world.captures = (*world.captures, captured("u", "id"))
    world.sql("CREATE TABLE u (id int PRIMARY KEY)", f"COMMENT ON PUBLICATION {NAMES.publication} IS 'ours'")
    world.taken.clear()
    for _ in range(2):
        world.catch_up()
    assert world.taken == []
    assert "gap" not in {note.kind for note in world.notes}


@pytest.mark.parametrize("follow", [False, True])
def test_f03_the_only_stream_that_could_not_be_captured_for_a_while_is_compared(world: World, follow: bool) -> None:
    """That it is away is on the bus before anything else."""
    world.sql("DELETE FROM t WHERE id > 10")
    world.catch_up()
    world.sql("ALTER TABLE t DROP CONSTRAINT t_pkey")
    if follow:
        with world.following() as following:
            following.next()
            assert list(following.source.broken) == ["s.t"]
    else:
        with pytest.raises(SourceError, match="stream s.t"):
            world.catch_up()
    world.sql("UPDATE t SET name = 'unseen' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    world.sql("ALTER TABLE t ADD PRIMARY KEY (id)")
    world.taken.clear()
    world.catch_up()
    assert _folded(world.taken) == _table(world), "all rows were read"
    assert [note.stream for note in world.notes if note.kind == "gap"] == ["s.t"]
