"""Rows read beside the log, reconciled with it (F28): random writes, commits that are streamed long before they are
visible, and crashes at any batch. What was given folds to the table.

`synchronous_standby_names` names a standby that does not exist: a commit with `synchronous_commit = on` is in the log,
and stays invisible until its wait is cancelled.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from headwater.drivers.postgres import connect
from headwater.model import Reload
from headwater.protocols import Load
from headwater.sources.log_postgres import chunks, pages
from headwater.testing.postgres import PostgresServer
from tests.conftest import give_up
from tests.log_load_world import Row, World, capture

pytestmark = pytest.mark.needs("postgres")

KEYS = ["a", "B", "c", "D", "ä", "Z", "z", "it's", 'q"q', "b\\s", "{,}", "ß", "_", "10", "9", "É"]
TABLE = (
    'CREATE TABLE item (id text COLLATE "und-x-icu" PRIMARY KEY, n int NOT NULL, big text)',
    "ALTER TABLE item ALTER big SET STORAGE EXTERNAL",
    "CREATE TABLE other (id int PRIMARY KEY)",
    "INSERT INTO other VALUES (1)",
)
DEADLINE = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    settings = {"synchronous_standby_names": "absent", "synchronous_commit": "local", "fsync": "off"}
    try:
        made = PostgresServer(tmp_path_factory.mktemp("chunks") / "data", settings=settings)
    except FileNotFoundError as error:
        give_up("postgres", str(error))
        raise
    with made:
        yield made


class Writer(threading.Thread):
    """Random transactions over few keys. `hangs`: how many of its commits wait for the standby that is not there."""

    def __init__(self, url: str, seed: int, hangs: float) -> None:
        super().__init__(daemon=True)
        self._dice = random.Random(seed)
        self._numbers = itertools.count(100 + seed % 10, 10)  # nobody writes the same one twice
        self._hangs = hangs
        self._stop_now = threading.Event()
        self._connection = connect(url, application="writer")
        self._connection.add_notice_handler(lambda notice: None)
        self._connection.execute("SET lock_timeout = '15ms'")
        self.pid = self._connection.info.backend_pid
        self.committing = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._connection as connection:
                while not self._stop_now.is_set():
                    self._transaction(connection)
                    self._stop_now.wait(self._dice.choice([0, 0.001, 0.004]))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error

    def end(self) -> None:
        self._stop_now.set()
        self.join(DEADLINE)
        assert not self.is_alive()
        assert self.error is None, self.error

    def _transaction(self, connection: psycopg.Connection) -> None:
        hang = self._dice.random() < self._hangs
        connection.execute(f"SET synchronous_commit = {'on' if hang else 'local'}")
        connection.execute("BEGIN")
        try:
            for _ in range(self._dice.randint(1, 3)):
                self._write(connection)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
            connection.execute("ROLLBACK")
            return
        if hang:
            self.committing.set()
        connection.execute("COMMIT")
        self.committing.clear()

    def _write(self, connection: psycopg.Connection) -> None:
        key, other, n = self._dice.choice(KEYS), self._dice.choice(KEYS), next(self._numbers)
        big = "x" * 2500 + str(n)
        what = self._dice.choice(["insert", "insert", "touch", "touch", "big", "move", "delete", "again", "savepoint"])
        if what == "insert":
            connection.execute("INSERT INTO item VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", [key, n, big])
        elif what == "touch":
            connection.execute("UPDATE item SET n = %s WHERE id = %s", [n, key])
        elif what == "big":
            connection.execute("UPDATE item SET n = %s, big = %s WHERE id = %s", [n, big, key])
        elif what == "move":
            connection.execute("UPDATE item SET id = %s, n = %s WHERE id = %s", [other, n, key])
        elif what in ("delete", "again"):
            connection.execute("DELETE FROM item WHERE id = %s", [key])
            if what == "again":
                connection.execute("INSERT INTO item VALUES (%s, %s, %s)", [key, n, big])
        else:
            connection.execute("SAVEPOINT s")
            connection.execute("UPDATE item SET n = -1 WHERE id = %s", [key])
            connection.execute("ROLLBACK TO s")


class Releaser(threading.Thread):
    """Lets commits that wait go on, after a while."""

    def __init__(self, url: str, seed: int, writers: list[Writer]) -> None:
        super().__init__(daemon=True)
        self._dice = random.Random(seed)
        self._connection = connect(url, application="releaser")
        self._writers = writers
        self._over = threading.Event()

    def run(self) -> None:
        with self._connection as connection:
            while not self._over.is_set():
                self._over.wait(self._dice.choice([0.002, 0.01, 0.03, 0.06]))
                for writer in self._writers:
                    if writer.committing.is_set():
                        self._release(connection, writer.pid)

    def _release(self, connection: psycopg.Connection, pid: int) -> None:
        sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
        connection.execute(sql, [pid])

    def end(self) -> None:
        self._over.set()
        self.join(DEADLINE)


def world_of(url: str, dice: random.Random) -> World:
    """A load of one kind, and how it came to be: added later, or broken off in its pages."""
    columns = capture("item", "id n big")
    world = World(url, capture("other", "id"))
    world.execute(*TABLE)
    world.execute(*(f"INSERT INTO item VALUES ($k${key}$k$, {n}, repeat('y', 2500))" for n, key in enumerate(KEYS)))
    how = dice.choice(["later", "later", "where", "pages", "reading"])
    if how == "pages":
        world = World(url, columns, capture("other", "id"))
        world.take(dice.randint(2, 4))
        return world
    world.take()
    load = {"where": Load("some", where="true"), "reading": Load("all", Reload.REBUILD)}.get(how, Load("initial"))
    world.captures = (capture("item", "id n big", load=load), *world.captures)
    return world


def stale(rows: list[Row]) -> list[Row]:
    """Rows that were read and show a state which a change before them, in the order, had already ended."""
    found: list[Row] = []
    past: dict[str, list[int | None]] = {}
    for row in sorted(rows, key=lambda row: row["at"]):
        before, after = row["before"], row["after"]
        if row["op"] == "r":
            history = past.get(after["id"], [])
            is_first = after["n"] < len(KEYS)
            ended = is_first or after["n"] in history
            if history and history[-1] != after["n"] and ended:
                found.append(row)
            continue
        if before is not None:
            past.setdefault(before["id"], []).append(None)
        if after is not None:
            past.setdefault(after["id"], []).append(after["n"])
    return found


@pytest.mark.parametrize("seed", range(32))
def test_f28_rows_read_beside_the_log_and_the_log_fold_to_the_table(
    server: PostgresServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_FIRST_ROWS", 3)
    monkeypatch.setattr(chunks, "_MOST", 4)
    monkeypatch.setattr(pages, "_PAGES", 1)
    dice = random.Random(seed)
    name = f"chunks_{seed}"
    url = server.create_database(name)
    world = world_of(url, dice)
    writers = [Writer(url, seed * 10 + n, hangs) for n, hangs in enumerate([0.0, 0.4, 0.9])]
    releaser = Releaser(url, seed, writers)
    for thread in (*writers, releaser):
        thread.start()
    deadline = time.monotonic() + DEADLINE
    while not any(note.kind == "loaded" and note.stream == "test.item" for note in world.notes):
        assert time.monotonic() < deadline, "the load does not come to its end"
        world.take(dice.randint(1, 9), follow=True)
    for writer in writers:
        writer.end()
    releaser.end()
    with closing(world.take()) as source:
        assert not source.broken
    assert stale(world.rows("test.item")) == []
    assert world.folded("test.item") == sorted(world.table("item", "id n big"), key=lambda row: row["id"])
    server.drop_database(name)
