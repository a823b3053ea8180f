"""The replication connection: slow appends, silence, connections that are cut or left half open."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from headwater.errors import NotConnected
from headwater.protocols import Load
from headwater.sources.log_postgres import log, stream, units
from headwater.testing.postgres import PostgresServer
from tests.crash.proxy import Proxy
from tests.log_world import World, captured, wait_until

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres_server.port) as proxy:
        yield proxy


def _world(database: str, proxy: Proxy | None = None, timeout: str = "1000") -> World:
    """`timeout`: the server's `wal_sender_timeout`, in milliseconds."""
    world = World(database, captured("t", "id name", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    if proxy is not None:
        port = database.rsplit(":", 1)[1].partition("/")[0]
        database = database.replace(f":{port}/", f":{proxy.port}/")
    world.url = f"{database}?options=-c%20wal_sender_timeout%3D{timeout}"
    return world


def test_f09_a_slow_append_does_not_cost_the_connection(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for three times as long as the server waits, and more arrives than there is room for."""
    monkeypatch.setattr(stream, "BUDGET", 200_000)
    world = _world(database)
    with world.following(streaming="off") as following:
        following.next()
        for start in range(0, 20_000, 1_000):
            world.sql(f"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({start}, {start + 999}) i")
        ended = time.monotonic() + 3
        wait_until(lambda: time.monotonic() > ended)
        assert following.buffered < 400_000
        rows = following.until(lambda rows: len(rows) >= 20_000)
    assert [row["after"]["id"] for row in rows] == list(range(20_000))


@pytest.mark.parametrize("behind", [True, False])
def test_a_backlog_gathers_to_whole_batches_and_the_newest_changes_do_not(
    behind: bool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    least: set[int] = set()
    take = stream.Stream.take

    def seen(self: stream.Stream, timeout: float, wanted: int = 0) -> stream.Chunk | None:
        least.add(wanted)
        return take(self, timeout, wanted)

    monkeypatch.setattr(stream.Stream, "take", seen)
    monkeypatch.setattr(units.Units, "behind", property(lambda _: behind))
    world = _world(database)
    world.catch_up()
    world.sql("INSERT INTO t SELECT i, 'x' FROM generate_series(0, 99) i")
    assert [row["after"]["id"] for row in world.catch_up()] == list(range(100))
    assert least - {0} == ({log.BATCH_BYTES} if behind else set())


@pytest.mark.parametrize("timeout", ["1000", "0"])
def test_f09_f11_an_idle_connection_stays(database: str, timeout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the server asks for signs of life, or (0) never does and says nothing by itself."""
    monkeypatch.setattr(stream, "SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(stream, "STATUS_SECONDS", 0.2)
    world = _world(database, timeout=timeout)
    with world.following(idle_advance=1000, heartbeat=0) as following:
        following.next()
        ended = time.monotonic() + 3
        wait_until(lambda: time.monotonic() > ended)
        world.sql("INSERT INTO t VALUES (1, 'a')")
        assert len(following.until(lambda rows: bool(rows))) == 1


def test_f11_a_half_open_connection_is_noticed(database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(stream, "STATUS_SECONDS", 0.2)
    world = _world(database, proxy)
    with world.following(idle_advance=0.05) as following:
        following.next()
        world.sql("INSERT INTO t VALUES (1, 'a')")
        following.until(lambda rows: bool(rows))
        proxy.half_open()
        with pytest.raises(NotConnected, match="silent for"):
            following.until(lambda rows: False)
    world.sql("INSERT INTO t VALUES (2, 'b')")
    wait_until(lambda: (world.slot() or (0, 0))[1] is None)
    world.catch_up()
    assert [row["after"]["id"] for row in world.taken] == [1, 2]


def test_a_connection_that_is_cut_again_and_again_loses_and_doubles_nothing(database: str, proxy: Proxy) -> None:
    world = _world(database, proxy)
    for number in range(6):
        with contextlib.suppress(NotConnected), world.following(idle_advance=0.01) as following:
            following.next()
            for start in range(number * 1500 + 1, number * 1500 + 1500, 300):
                world.sql(f"INSERT INTO t SELECT i, 'a' FROM generate_series({start}, {start + 299}) i")
            following.until(bool)
            proxy.cut()
            following.until(lambda rows: False)
        wait_until(lambda: (world.slot() or (0, 0))[1] is None)
    world.catch_up()
    assert [row["after"]["id"] for row in world.taken] == list(range(1, 9001))
