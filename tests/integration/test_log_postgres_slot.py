"""The slot and its position: what is confirmed when, what a gap is, and what a crash at the beginning leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from headwater.config import SourceConfig
from headwater.drivers.postgres import connect, execute
from headwater.errors import Busy, GapError, NotConnected, SourceError
from headwater.faults import set_failpoints
from headwater.model import Position
from headwater.protocols import Load
from headwater.sources.log_postgres import slot
from headwater.sources.log_postgres.position import lsn_of, lsn_text
from headwater.sources.log_postgres.slot import drop_slot
from headwater.testing.postgres import PostgresServer
from tests.log_world import NAMES, WAIT, Row, World, captured, wait_until

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)


@pytest.fixture
def world(database: str) -> World:
    return _made(database)


def _made(url: str, **options: Any) -> World:
    world = World(url, captured("t", "id name", load=SKIP), **options)
    world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    return world


def _confirmed(world: World) -> int:
    slot = world.slot()
    assert slot is not None
    return lsn_of(slot[0])


def test_f02_the_server_forgets_what_was_confirmed_and_nothing_else(world: World) -> None:
    wait_until(lambda: world.slot() == (lsn_text(world.place.lsn), None))
    before = _confirmed(world)
    world.sql("INSERT INTO t VALUES (1, 'a')")
    world.catch_up(confirm=False)
    assert _confirmed(world) == before
    with contextlib.closing(world.open()) as source:
        reading = cast(Any, source.read(world.position, follow=True))
        world.take(next(reading))
        assert world.position is not None
        source.confirm(world.position)
        world.sql("INSERT INTO t VALUES (2, 'b')")
        world.take(next(reading))
        source.confirm(world.position)
        wait_until(lambda: _confirmed(world) == world.place.lsn)


def test_f03_a_slot_ahead_of_the_position_is_a_gap(world: World) -> None:
    old = world.position
    world.sql("INSERT INTO t VALUES (1, 'a')")
    world.catch_up()
    world.sql("INSERT INTO t VALUES (2, 'b')")
    world.catch_up()
    world.position = old
    with pytest.raises(GapError, match=rf"slot {NAMES.slot} stands at .*the bus holds db/log up to .* lost") as caught:
        world.catch_up()
    assert "headwater repair db/log" in caught.value.hint


def test_f03_a_slot_that_is_gone_is_a_gap_and_repair_begins_anew(world: World) -> None:
    config = _config(world)
    assert drop_slot(config, "test", "db") == [f"replication slot {NAMES.slot}"]
    assert drop_slot(config, "test", "db") == []
    with pytest.raises(GapError, match="is gone"):
        world.catch_up()
    assert world.slot() is None, "a gap makes nothing"
    world.position = None
    world.catch_up()
    world.sql("INSERT INTO t VALUES (1, 'a')")
    assert len(world.catch_up()) == 1


def _config(world: World) -> SourceConfig:
    return SourceConfig.model_validate(world.url)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("system", "123", "another server"), ("timeline", 7, "restored or promoted")],
)
def test_f03_f10_another_server_or_timeline_is_a_gap(world: World, field: str, value: Any, words: str) -> None:
    world.position = dataclasses.replace(world.place, **{field: value}).position()
    with pytest.raises(GapError, match=words):
        world.catch_up()


def test_f03_a_slot_of_somebody_else_is_left_alone(world: World) -> None:
    drop_slot(_config(world), "test", "db")
    world.sql(f"SELECT pg_create_logical_replication_slot('{NAMES.slot}', 'test_decoding')")
    for position in (world.position, None):
        world.position = position
        with pytest.raises(SourceError, match="its plugin is `test_decoding`, expected `pgoutput`"):
            world.catch_up()
    assert world.slot() is not None


def test_f04_an_invalidated_slot_is_a_gap_at_once(tmp_path: Path) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with PostgresServer(tmp_path / "data", settings=settings) as server:
        world = _made(server.create_database("lost"))
        for _ in range(4):
            world.sql("SELECT pg_logical_emit_message(true, 'x', repeat('x', 1000000)) FROM generate_series(1, 20)")
            world.sql("SELECT pg_switch_wal()", "CHECKPOINT")
        with pytest.raises(GapError, match=r"was invalidated by the server .*lost to the log"):
            world.catch_up()


def test_f08_others_that_write_do_not_keep_the_log(world: World, postgres_server: PostgresServer) -> None:
    """An empty batch moves the position, and then the slot; each at most once in `idle_advance`."""
    postgres_server.execute("CREATE TABLE IF NOT EXISTS elsewhere (n int)")
    with world.following(idle_advance=0.1) as following:
        following.next()
        for _ in range(3):
            goal = world.place.lsn + 50_000
            postgres_server.execute("INSERT INTO elsewhere SELECT generate_series(1, 1000)")
            rows = following.until(partial(_stands_at, world, goal))
            assert rows == []
            wait_until(partial(_is_confirmed, world, goal))
        world.sql("INSERT INTO t VALUES (1, 'a')")
        assert [row["after"]["id"] for row in following.until(lambda rows: bool(rows))] == [1]
    assert world.batches < 40


def _stands_at(world: World, lsn: int, rows: list[Row]) -> bool:
    return world.place.lsn > lsn


def _is_confirmed(world: World, lsn: int) -> bool:
    return _confirmed(world) > lsn


def test_f08_a_heartbeat_is_written_when_the_place_stands_still_and_the_log_grows(world: World) -> None:
    world.sql("SELECT pg_create_logical_replication_slot('watching', 'test_decoding')")

    def beats() -> int:
        ((count,),) = world.sql(
            "SELECT count(*) FROM pg_logical_slot_peek_changes('watching', NULL, NULL)"
            " WHERE data LIKE 'message: transactional: 0 prefix: headwater, % content:test'"
        )
        return int(count)

    with world.following(idle_advance=0.05, heartbeat=WAIT) as following:
        following.next()
        world.sql("CREATE TABLE elsewhere (n int)", "INSERT INTO elsewhere VALUES (1)")
        before = world.place.lsn
        following.until(lambda rows: world.place.lsn > before)
        assert beats() == 0
    with world.following(idle_advance=1000, heartbeat=0.05) as following:
        following.next()
        world.sql("INSERT INTO elsewhere VALUES (2)")
        wait_until(lambda: beats() > 0)


def test_f20_a_slot_without_a_position_is_made_anew(world: World) -> None:
    """The process died between making the slot and the first append: what was committed since must not be skipped."""
    world.position = None
    drop_slot(_config(world), "test", "db")
    for failpoint in ("log.slot.made", "log.begun"):
        set_failpoints(f"{failpoint}=error:1")
        with pytest.raises(OSError, match=failpoint):
            world.catch_up()
        set_failpoints("")
        world.position = None
        first = _confirmed(world)
    world.sql("INSERT INTO t VALUES (1, 'a')")
    world.catch_up()
    assert _confirmed(world) > first
    world.sql("INSERT INTO t VALUES (2, 'b')")
    assert [row["after"]["id"] for row in world.catch_up()] == [2]


def test_one_process_reads_a_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "PATIENCE", 0.2)
    with world.following() as following:
        following.next()
        with pytest.raises(Busy, match=r"being read by `headwater test db` \(process \d+ of the server\)"):
            world.catch_up()


def test_a_stop_is_heard_while_the_slot_waits_for_transactions(database: str) -> None:
    world = World(database, captured("t", "id name", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    with connect(database, application="test") as connection:
        execute(connection, "BEGIN")
        execute(connection, "INSERT INTO t VALUES (1, 'a')")
        with world.following():
            wait_until(lambda: world.slot() is not None)
    wait_until(lambda: world.slot() is None)


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "data") as server:
        world = _made(server.create_database("away"))
        for how in ("fast", "immediate"):
            with world.following(idle_advance=0.1) as following:
                following.next()
                server.stop(how)
                with pytest.raises(NotConnected):
                    following.until(lambda rows: False)
            with pytest.raises(NotConnected):
                world.catch_up()
            server.start()
            world.sql(f"INSERT INTO t VALUES ({len(world.taken)}, 'a')")
            world.catch_up()
        assert [row["after"]["id"] for row in world.taken] == [0, 1]


def test_wal_level_replica_is_refused_with_the_sql(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "data", settings={"wal_level": "replica"}) as server:
        world = World(server.url, captured("t", "id", load=SKIP))
        with pytest.raises(SourceError, match="wal_level is `replica`") as caught:
            world.catch_up()
        assert "ALTER SYSTEM SET wal_level = logical" in caught.value.hint


def test_a_position_of_another_format_is_refused(world: World) -> None:
    world.position = Position(1, 1, b"{}")
    with pytest.raises(SourceError, match="not one of PostgreSQL's log"):
        world.catch_up()


def test_f03_f10_a_data_directory_that_was_put_back_is_a_gap(tmp_path: Path) -> None:
    """A copy made while the server was stopped keeps system identifier, timeline and slot; its log ends earlier."""
    with PostgresServer(tmp_path / "data") as server:
        world = _made(server.create_database("restored"))
        server.stop()
        copy = server.directory.with_name("copy")
        subprocess.run(["cp", "-a", str(server.directory), str(copy)], check=True)
        server.start()
        world.sql("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 1000) n")
        assert len(world.catch_up()) == 1000
        server.stop()
        shutil.rmtree(server.directory)
        copy.rename(server.directory)
        server.start()
        world.sql("INSERT INTO t VALUES (1, 'after')")
        with pytest.raises(GapError, match=r"the server's log ends at .* put back to an earlier state") as caught:
            world.catch_up()
        assert "headwater repair db/log" in caught.value.hint
