"""In somebody else's database: neighbours, migrations, writers without patience, and sudden death."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.drivers.sqlite import Connection
from headwater.errors import ConfigError, SourceError
from headwater.migrate import migrate
from headwater.sources.trigger_sqlite import guarantee, installed, uninstall
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.prune import ROWS, Pruner, prepare
from tests.trigger_world import PIPELINE, Following, World, capture, worlds

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.trigger_world", "pyarrow.compute"])
TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v TEXT)"
OTHER = TABLE.replace("t(", "n(")
T = capture("t", ("id", "u", "v"), ("id",))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for world in worlds(tmp_path / "app.db", TABLE):
        world.capture(T)
        yield world


def ours(world: World) -> set[str]:
    return {name for (name,) in world.app.execute("SELECT name FROM sqlite_master WHERE name LIKE 'headwater%'")}


# neighbours


def test_f66_f84_two_pipelines_in_one_database_leave_each_other_alone(tmp_path: Path) -> None:
    """One's name is the beginning of the other's, and `_` in a LIKE pattern would match both."""
    for world in worlds(tmp_path / "app.db", f"{TABLE}; CREATE TABLE headwater_lmsx_change(mine)"):
        world.capture(T)
        url = f"sqlite:///{world.path}"
        for pipeline in ("lms", "lms-1", "lms-1-after"):
            source = world.source(pipeline)
            list(source.read(None, follow=False))
            source.close()
        both = ours(world)
        dropped = set(uninstall(url, "lms-1"))
        assert dropped == {name for name in both if Names("lms-1").owns_trigger(name)} | set(Names("lms-1").tables)
        assert len(dropped) == 8
        assert ours(world) == both - dropped
        assert "headwater_lmsx_change" in ours(world)
        assert installed(url, "lms").missing == ()
        assert installed(url, "lms-1").incarnation is None
        world.app.execute("INSERT INTO t VALUES (1, 'a', 'b')")
        assert installed(url, "lms-1-after").newest == 2
        assert uninstall(url, "lms-1") == []


def test_installed_says_what_is_wrong(world: World) -> None:
    url = f"sqlite:///{world.path}"
    assert installed(url, PIPELINE).triggers == ()
    world.catch_up()
    found = installed(url, PIPELINE)
    assert (found.tables, len(found.triggers), found.missing, found.problems) == (("t",), 5, (), ())
    world.app.execute("DROP TRIGGER headwater_test_1_1_after_delete")
    found = installed(url, PIPELINE)
    assert found.missing == ("headwater_test_1_1_after_delete",)
    assert "a table was rebuilt" in found.problems[0]
    world.app.execute("DROP TABLE headwater_test_1_change")
    assert "writes to their tables fail" in installed(url, PIPELINE).problems[0]
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        world.app.execute("INSERT INTO t VALUES (1, 'a', 'b')")  # as the guarantee's notes say
    world.catch_up()
    assert installed(url, PIPELINE).problems == ()
    world.app.execute("SELECT count(*) FROM t")  # has this connection read the schema again
    world.app.execute("INSERT INTO t VALUES (1, 'a', 'b')")
    world.catch_up()
    world.check()


def test_guarantee_says_what_is_not_seen() -> None:
    given = guarantee(T.config, keyed=True)
    assert (given.delivery, given.changes, given.deletes) == ("exactly_once", "every", "seen")
    assert all(note.endswith(".") for note in given.notes)
    assert any("cannot be recovered" in note for note in guarantee(T.config, keyed=False).notes)


# migrations


def test_f70_drop_column_is_refused_by_sqlite_and_carried_out_by_migrate(world: World) -> None:
    world.app.execute("INSERT INTO t VALUES (1, 'a', 'x')")
    world.catch_up()
    with pytest.raises(sqlite3.OperationalError, match="error in trigger"):
        world.app.execute("ALTER TABLE t DROP COLUMN v")
    world.app.execute("INSERT INTO t VALUES (2, 'b', 'y')")  # not read yet when its column goes
    done = migrate(f"sqlite:///{world.path}", "ALTER TABLE t DROP COLUMN v; CREATE INDEX i ON t(u); -- done")
    assert (done.statements, done.pipelines, done.compared) == (2, ("test_1",), False)
    with pytest.raises(SourceError, match="table t has no column v"):
        world.catch_up()
    world.capture(capture("t", ("id", "u"), ("id",)))
    world.replicas["s.t"].rows = {(1,): {"id": 1, "u": "a"}}
    world.app.execute("SELECT count(*) FROM t")  # has this connection read the schema again
    world.app.execute("INSERT INTO t VALUES (3, 'c')")
    world.catch_up()
    world.check()
    assert [note for note in world.notes if note.kind == "gap"] == []


def test_f70_migrate_that_writes_rows_has_them_compared(world: World) -> None:
    world.app.execute("INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')")
    world.catch_up()
    done = migrate(
        f"sqlite:///{world.path}",
        f"{OTHER}; INSERT INTO n SELECT * FROM t WHERE id = 2; DROP TABLE t; ALTER TABLE n RENAME TO t",
    )
    assert done.compared
    assert installed(f"sqlite:///{world.path}", PIPELINE).missing == ()
    world.catch_up()
    world.check()


@pytest.mark.parametrize(
    ("sql", "error", "match"),
    [
        ("ALTER TABLE t ADD COLUMN z; SELECT nonsense", SourceError, "nonsense"),
        ("ALTER TABLE t ADD COLUMN z; COMMIT", SourceError, "ended the transaction"),
        ("ALTER TABLE t ADD COLUMN z; CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1;", ConfigError, "no end"),
        (" ; -- nothing", ConfigError, "no SQL statement"),
        ("INSERT INTO c VALUES (99)", SourceError, "do not exist"),
    ],
)
def test_migrate_is_all_or_nothing(world: World, sql: str, error: type[Exception], match: str) -> None:
    world.app.execute("CREATE TABLE c(t INTEGER REFERENCES t(id))")
    world.catch_up()
    before = world.app.execute("SELECT name, sql FROM sqlite_master").fetchall()
    with pytest.raises(error, match=match):
        migrate(f"sqlite:///{world.path}", sql)
    if "COMMIT" not in sql:
        assert world.app.execute("SELECT name, sql FROM sqlite_master").fetchall() == before
    world.catch_up()
    world.check()


# writers without patience


def impatient(path: str, stop: multiprocessing.synchronize.Event, out: Any) -> None:
    """Writes as fast as it can, one commit a row, without a busy time-out; reports each refusal."""
    app = sqlite3.connect(path, isolation_level=None, timeout=0)
    app.execute("PRAGMA synchronous = NORMAL")
    written, refused = 0, []
    while not stop.is_set() or written < 3_000:
        try:
            app.execute("INSERT INTO t(u, v) VALUES (?, 'w')", (f"u{written}",))
            written += 1
        except sqlite3.OperationalError as error:
            refused.append(str(error))
    out.put((written, refused))
    app.close()


def test_f70_f64_an_application_without_busy_time_out_never_meets_us(world: World) -> None:
    """It never pauses, so nothing is pruned beside it; once it pauses, everything is, but the position's anchor."""
    world.catch_up()
    stop, out = CONTEXT.Event(), CONTEXT.Queue()
    with Following(world) as following:
        process = CONTEXT.Process(target=impatient, args=(str(world.path), stop, out))
        process.start()
        following.until(lambda: len(world.replicas["s.t"].rows) > 2_000)
        stop.set()
        written, refused = out.get(timeout=60)
        process.join()
        assert refused == []
        following.until(lambda: len(world.replicas["s.t"].rows) == written)
        following.until(lambda: kept(world) == 1)
    world.check()
    process.close()


def kept(world: World) -> int:
    return int(world.app.execute("SELECT count(*) FROM headwater_test_1_change").fetchone()[0])


def test_f70_pruning_gives_way_and_goes_in_small_steps(world: World) -> None:
    world.catch_up()
    world.app.execute("BEGIN")
    world.app.executemany("INSERT INTO t VALUES (?, ?, 1)", ((i, f"u{i}") for i in range(2_000)))
    world.app.execute("COMMIT")
    pruner = Pruner(lambda: prepare(Connection(world.path, busy_timeout=0.0)), Names(PIPELINE))
    assert not pruner.step(quiet=10.0), "nothing is confirmed yet"
    pruner.allow(1_500)
    assert not pruner.step(quiet=0.0), "somebody is writing"
    world.app.execute("BEGIN IMMEDIATE")
    assert not pruner.step(quiet=10.0), "somebody holds the lock"
    world.app.execute("COMMIT")
    left = []
    while pruner.step(quiet=10.0):
        left.append(kept(world))
    assert left == [2_001 - ROWS, 2_001 - 2 * ROWS, 2_001 - 1_499]
    pruner.close()


def test_what_an_unfinished_load_needs_is_not_pruned(world: World) -> None:
    world.app.execute("BEGIN")
    world.app.executemany("INSERT INTO t VALUES (?, ?, 1)", ((i, f"u{i}") for i in range(1, 9_000)))
    world.app.execute("COMMIT")
    world.catch_up(stop_after=2)
    world.app.execute("UPDATE t SET v = 'later' WHERE id > 8000")
    world.catch_up(stop_after=2)
    world.catch_up(stop_after=3)
    world.catch_up()
    world.check()
    assert kept(world) == 1


# sudden death


def capturing(path: str, failpoints: str, seed: int) -> None:
    """A process of its own: a durable replica is kept in a second database, in one step with the position."""
    from headwater.faults import set_failpoints

    set_failpoints(failpoints, seed)
    world = World(Path(path))
    world.capture(T)
    store = DurableReplica(Path(path).with_name("replica.db"))
    world.position = store.load(world)
    source = world.source()
    for batch in source.read(world.position, follow=False):
        world.append(batch)
        store.save(world)
        source.confirm(batch.position)
    source.close()
    world.close()


class DurableReplica:
    """The replica as one pickled value: what counts here is that it and the position are saved together."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("CREATE TABLE IF NOT EXISTS replica(id INTEGER PRIMARY KEY, value BLOB)")

    def load(self, world: World) -> Any:
        import pickle

        found = self._db.execute("SELECT value FROM replica").fetchone()
        if found is None:
            return None
        position, world.replicas = pickle.loads(found[0])
        for replica in world.replicas.values():
            replica.staged = None
        return position

    def save(self, world: World) -> None:
        import pickle

        value = pickle.dumps((world.position, world.replicas))
        self._db.execute("INSERT OR REPLACE INTO replica VALUES (1, ?)", (value,))


@pytest.mark.crash
def test_f20_kill_9_between_all_durable_steps_loses_and_doubles_nothing(world: World) -> None:
    """The replica itself fails on a change that comes twice; at the end it is the table."""
    stop = threading.Event()
    writer = threading.Thread(target=restless, args=(world.path, stop))
    writer.start()
    killed = 0
    try:
        for seed in range(24):
            process = CONTEXT.Process(target=capturing, args=(str(world.path), "trigger.*=kill:0.3", seed))
            process.start()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
            killed += process.exitcode != 0
            process.close()
    finally:
        stop.set()
        writer.join()
    process = CONTEXT.Process(target=capturing, args=(str(world.path), "", 0))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    process.close()
    assert killed >= 5
    DurableReplica(world.path.with_name("replica.db")).load(world)
    world.check()


def restless(path: Path, stop: threading.Event) -> None:
    """Writes, replaces, moves keys, and now and then rebuilds the table."""
    app = sqlite3.connect(path, isolation_level=None, timeout=30)
    app.execute("PRAGMA synchronous = OFF")
    number = 0
    while not stop.wait(0.002):
        number += 1
        app.execute("INSERT OR REPLACE INTO t VALUES (?, ?, ?)", (number % 97, f"u{number % 53}", str(number)))
        app.execute("UPDATE OR REPLACE t SET id = ? WHERE id = ?", (number % 89, number % 31))
        app.execute("DELETE FROM t WHERE id = ?", (number % 61,))
        if number % 200 == 0:
            rebuild = f"{OTHER}; INSERT INTO n SELECT * FROM t; DROP TABLE t"
            app.executescript(f"BEGIN IMMEDIATE; {rebuild}; ALTER TABLE n RENAME TO t; COMMIT")
    app.close()
