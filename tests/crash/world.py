"""A small world to crash in: a source with a writer that never stops, a pipeline that dies again and again, and at the
end a comparison of source and sinks row by row, by code that shares nothing with the pipeline."""

from __future__ import annotations

import decimal
import multiprocessing
import multiprocessing.synchronize
import os
import random
import signal
import sqlite3
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "duckdb", "pyarrow.parquet", "sqlglot", "tests.crash.world", "headwater.runtime", "headwater.buses.embedded",
        "headwater.dialects.sqlite", "headwater.sources.trigger_sqlite", "headwater.sources.query",
        "headwater.sinks.duckdb", "headwater.sinks.sqlite", "headwater.sinks.parquet", "psycopg",
        "adbc_driver_postgresql.dbapi", "headwater.dialects.postgres", "headwater.sources.log_postgres",
        "headwater.sinks.postgres", "headwater.drivers.postgres_native", "headwater.wire.array_text_cy",
        "headwater.wire.pgcopy_cy", "headwater.wire.pgoutput_cy", "headwater.wire.pgoutput_values_cy", "numpy.ma",
        "headwater.wire.pgcopy_native", "headwater.wire.pgoutput_native", "headwater.mapping.projection_native",
        "sqlglot.dialects.duckdb", "headwater.difference", "headwater.spill",
        "tests.crash.postgres_world", "tests.crash.frozen",
    ]
)  # fmt: skip

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE course_run (key TEXT PRIMARY KEY, title TEXT, price DECIMAL(10,2), updated_at INTEGER NOT NULL);
CREATE INDEX course_run_updated ON course_run (updated_at, key);
CREATE TABLE learner (id INTEGER PRIMARY KEY, nick TEXT UNIQUE, bio TEXT, avatar BLOB, score REAL);
CREATE TABLE enrollment (id INTEGER PRIMARY KEY, learner_id INTEGER NOT NULL REFERENCES learner (id) ON DELETE CASCADE,
    run_key TEXT NOT NULL, mode TEXT NOT NULL, paid DECIMAL(10,2));

-- the application's own audit: what the stream must tell, told by somebody else
CREATE TABLE audit (seq INTEGER PRIMARY KEY AUTOINCREMENT, old_id, old_mode, id, learner_id, run_key, mode, paid);
CREATE TRIGGER audit_c AFTER INSERT ON enrollment BEGIN INSERT INTO audit VALUES
    (NULL, NULL, NULL, NEW.id, NEW.learner_id, NEW.run_key, NEW.mode, NEW.paid); END;
CREATE TRIGGER audit_u AFTER UPDATE ON enrollment BEGIN INSERT INTO audit VALUES
    (NULL, OLD.id, OLD.mode, NEW.id, NEW.learner_id, NEW.run_key, NEW.mode, NEW.paid); END;
CREATE TRIGGER audit_d AFTER DELETE ON enrollment BEGIN INSERT INTO audit VALUES
    (NULL, OLD.id, OLD.mode, NULL, NULL, NULL, NULL, NULL); END;
"""

CONFIG = """
headwater: 1
name: crash
bus: embedded:data
sources: {lms: "sqlite:///lms.db"}
streams:
  accounts.learner: {source: lms, table: learner, pattern: trigger, fields: {learner_id: id}}
  learning.enrollment: {source: lms, table: enrollment, pattern: trigger,
    fields: {enrollment_id: id, run: run_key, paid: "round(paid, 2)"}, where: "mode <> 'beta'"}
  catalog.course_run: {source: lms, table: course_run, pattern: query, cursor: updated_at, every: 50ms, page_size: 7,
    look_back_ids: 50, reconcile_deletes: 300ms, fields: {course_run_key: key}}
sinks:
  warehouse: {url: "duckdb:warehouse.duckdb", batch: {events: 200, age: 50ms}}
  copy: {url: "sqlite:copy.db", batch: {events: 100, age: 20ms}}
  lake: {url: "parquet:lake", batch: {events: 300, age: 100ms}}
"""

CONTRACTS = {
    "accounts.learner": """
stream: accounts.learner
version: 1
owner: accounts
key: [learner_id]
changes: every
deletes: seen
fields:
  learner_id: {type: int64}
  nick: {type: string, optional: true}
  bio: {type: string, optional: true}
  avatar: {type: bytes, optional: true}
  score: {type: float64, optional: true}
""",
    "learning.enrollment": """
stream: learning.enrollment
version: 1
owner: enrolments
key: [enrollment_id]
changes: every
deletes: seen
fields:
  enrollment_id: {type: int64}
  learner_id: {type: int64}
  run: {type: string}
  mode: {type: string}
  paid: {type: "decimal(10,2)", optional: true}
""",
    "catalog.course_run": """
stream: catalog.course_run
version: 1
owner: catalog
key: [course_run_key]
deletes: seen
fields:
  course_run_key: {type: string}
  title: {type: string, optional: true}
  price: {type: "decimal(10,2)", optional: true}
  updated_at: {type: int64}
""",
}


def build(directory: Path, seed: int) -> None:
    """The source with some rows, headwater.yaml and the contracts."""
    with sqlite3.connect(directory / "lms.db") as source:
        source.executescript(SCHEMA)
    source.close()
    write(directory, random.Random(seed), commits=60)
    (directory / "headwater.yaml").write_text(textwrap.dedent(CONFIG))
    (directory / "contracts").mkdir()
    for name, text in CONTRACTS.items():
        (directory / "contracts" / f"{name}.yaml").write_text(text)


# the application


def write(directory: Path, dice: random.Random, commits: int, stop: Callable[[], bool] = lambda: False) -> None:
    """Commit `commits` random transactions, some rolled back, until told to stop."""
    source = sqlite3.connect(directory / "lms.db", timeout=30, isolation_level=None)
    source.execute("PRAGMA foreign_keys = ON")
    try:
        for _ in range(commits):
            if stop():
                return
            _transaction(source, dice)
    finally:
        source.close()


def _transaction(source: sqlite3.Connection, dice: random.Random) -> None:
    source.execute("BEGIN IMMEDIATE")
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        sql, values = dice.choice(STATEMENTS)(dice)
        try:
            source.execute(sql, values)
        except sqlite3.IntegrityError:
            continue
    source.execute("ROLLBACK" if dice.random() < 0.1 else "COMMIT")


Statement = tuple[str, tuple[Any, ...]]


def _learner(dice: random.Random) -> tuple[Any, ...]:
    bio = dice.choice((None, "", "π ≈ 3.14159", "x" * dice.randrange(300)))
    return (f"nick{dice.randrange(60)}", bio, dice.choice((None, dice.randbytes(9))), dice.random())


def _insert_learner(dice: random.Random) -> Statement:
    verb = dice.choice(("INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"))
    return f"{verb} INTO learner VALUES (?, ?, ?, ?, ?)", (dice.randrange(80), *_learner(dice))


def _update_learner(dice: random.Random) -> Statement:
    return "UPDATE learner SET nick = ?, bio = ?, avatar = ?, score = ? WHERE id = ?", (
        *_learner(dice),
        dice.randrange(80),
    )


def _delete_learner(dice: random.Random) -> Statement:
    return "DELETE FROM learner WHERE id = ?", (dice.randrange(80),)


def _enroll(dice: random.Random) -> Statement:
    values = (
        dice.randrange(200),
        dice.randrange(80),
        f"run{dice.randrange(9)}",
        dice.choice(("audit", "beta", "paid")),
    )
    paid = dice.choice((None, round(dice.random() * 100, 2)))
    return (
        "INSERT INTO enrollment VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
        " SET mode = excluded.mode, paid = excluded.paid",
        (*values, paid),
    )


def _rekey(dice: random.Random) -> Statement:
    return "UPDATE enrollment SET id = ? WHERE id = ?", (dice.randrange(200), dice.randrange(200))


def _unenroll(dice: random.Random) -> Statement:
    return "DELETE FROM enrollment WHERE id BETWEEN ? AND ?", (low := dice.randrange(200), low + dice.randrange(3))


def _touch_run(dice: random.Random) -> Statement:
    values = (
        f"run{dice.randrange(30)}",
        f"title {dice.random()}",
        round(dice.random() * 500, 2),
        time.time_ns() // 10**6,
    )
    return "INSERT OR REPLACE INTO course_run VALUES (?, ?, ?, ?)", values


def _drop_run(dice: random.Random) -> Statement:
    return "DELETE FROM course_run WHERE key = ?", (f"run{dice.randrange(30)}",)


STATEMENTS: tuple[Callable[[random.Random], Statement], ...] = (
    _insert_learner, _insert_learner, _update_learner, _delete_learner, _enroll, _enroll, _enroll, _rekey, _unenroll,
    _touch_run, _touch_run, _drop_run,
)  # fmt: skip


def _write_until(directory: Path, seed: int, stop: multiprocessing.synchronize.Event) -> None:
    dice = random.Random(seed)
    while not stop.is_set():
        write(directory, dice, 1)
        stop.wait(dice.random() * 0.01)


# the pipeline


def run_pipeline(
    directory: Path, failpoints: str, seed: int, running: multiprocessing.synchronize.Event | None = None
) -> None:
    """In a process of its own; exits with the supervisor's status. With `running` it goes on until it dies."""
    from headwater import config, faults
    from headwater.assembly import Assembly
    from headwater.runtime import start

    faults.set_failpoints(failpoints, seed)
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)
        if running is not None:
            running.set()
        os._exit(supervisor.run(follow=running is not None))


LIVE = 50


def peaceful_pipeline(directory: Path, failpoints: str, seed: int, running: multiprocessing.synchronize.Event) -> None:
    """It fails once `learning.enrollment` tells of `LIVE` changes: on a busy machine others die while they load."""
    from headwater import config, faults
    from headwater.assembly import Assembly
    from headwater.model import Op
    from headwater.runtime import start

    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)

        def fail_once_it_tells() -> None:
            live = 0
            for events in assembly.bus.read("learning.enrollment", after=None, follow=True):
                live += sum(op != Op.READ for op in events.data.column("_op").to_pylist())
                if live > LIVE:
                    break
            running.set()  # before it may be killed, for a process that dies in `set` keeps the event's lock
            faults.set_failpoints(failpoints, seed)

        threading.Thread(target=fail_once_it_tells, daemon=True).start()
        os._exit(supervisor.run())


@dataclass
class World:
    directory: Path
    seed: int
    kills: int = 0

    def torment(self, times: int) -> None:
        """Start the pipeline and see it die, `times` times, while the writer goes on; once it may catch up before."""
        dice = random.Random(self.seed)
        stop = CONTEXT.Event()
        writer = CONTEXT.Process(target=_write_until, args=(self.directory, self.seed + 1, stop), daemon=True)
        writer.start()
        try:
            while self.kills < times:
                self._one_life(dice, peaceful_pipeline if self.kills == times // 2 else run_pipeline)
        finally:
            stop.set()
            writer.join(30)
        assert writer.exitcode == 0, "the application's writes must never fail"

    def _one_life(self, dice: random.Random, life: Callable[..., None]) -> None:
        failpoints = f"*=kill:{dice.choice((0.0005, 0.002, 0.01, 0.05))}"
        running = CONTEXT.Event()
        process = CONTEXT.Process(
            target=life, args=(self.directory, failpoints, dice.randrange(10**9), running), daemon=True
        )
        process.start()
        while process.is_alive() and not running.wait(0.05):
            pass
        process.join(0.05 + dice.random() * 0.8)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL, f"it ended by itself with {process.exitcode}"
        self.kills += 1

    def finish(self) -> None:
        """A run without faults that catches up."""
        process = CONTEXT.Process(target=run_pipeline, args=(self.directory, "", 0))
        process.start()
        process.join(120)
        assert process.exitcode == 0


# what is there in the end


Rows = dict[Any, tuple[Any, ...]]


def source_rows(directory: Path) -> dict[str, Rows]:
    """The source as the contracts describe it, by plain SQL."""
    db = sqlite3.connect(directory / "lms.db")
    try:
        learners = {row[0]: row[1:] for row in db.execute("SELECT id, nick, bio, avatar, score FROM learner")}
        enrolled = {
            row[0]: (*row[1:4], _money(row[4]))
            for row in db.execute("SELECT id, learner_id, run_key, mode, paid FROM enrollment WHERE mode <> 'beta'")
        }
        runs = {
            row[0]: (row[1], _money(row[2]), row[3])
            for row in db.execute("SELECT key, title, price, updated_at FROM course_run")
        }
    finally:
        db.close()
    return {"accounts.learner": learners, "learning.enrollment": enrolled, "catalog.course_run": runs}


COLUMNS = {
    "accounts.learner": ("learner_id", "nick", "bio", "avatar", "score"),
    "learning.enrollment": ("enrollment_id", "learner_id", "run", "mode", "paid"),
    "catalog.course_run": ("course_run_key", "title", "price", "updated_at"),
}


def parquet_rows(directory: Path) -> dict[str, Rows]:
    """By the sink's own reader: which files count is what its manifest says."""
    from headwater import config
    from headwater.assembly import Assembly

    with Assembly(config.load(directory / "headwater.yaml")) as assembly:
        sink = assembly.sink("lake")
        for stream in COLUMNS:
            sink.prepare(assembly.contract(stream))
        try:
            return {
                stream: _keyed(
                    [
                        tuple(row[name] for name in names)
                        for batch in sink.state(stream).rows
                        for row in batch.select(names).to_pylist()
                    ]
                )
                for stream, names in COLUMNS.items()
            }
        finally:
            sink.close()


def duckdb_rows(directory: Path) -> dict[str, Rows]:
    import duckdb

    with duckdb.connect(str(directory / "warehouse.duckdb"), read_only=True) as db:
        return {
            stream: _keyed(db.execute(f'SELECT {", ".join(names)} FROM "{stream.replace(".", "_")}"').fetchall())
            for stream, names in COLUMNS.items()
        }


def sqlite_rows(directory: Path) -> dict[str, Rows]:
    db = sqlite3.connect(directory / "copy.db")
    try:
        found = {
            stream: _keyed(db.execute(f'SELECT {", ".join(names)} FROM "{stream.replace(".", "_")}"').fetchall())
            for stream, names in COLUMNS.items()
        }
    finally:
        db.close()
    money = {"learning.enrollment": 3, "catalog.course_run": 1}
    for stream, place in money.items():
        found[stream] = {
            key: (*row[:place], _money(row[place]), *row[place + 1 :]) for key, row in found[stream].items()
        }
    return found


def _keyed(rows: list[tuple[Any, ...]]) -> Rows:
    keyed = {row[0]: row[1:] for row in rows}
    assert len(keyed) == len(rows), "a key is there twice"
    return keyed


def _money(value: Any) -> decimal.Decimal | None:
    return None if value is None else decimal.Decimal(str(value)).quantize(decimal.Decimal("0.01"))


Event = tuple[str, tuple[int, int, int], tuple[Any, ...]]


def events_of(directory: Path, stream: str) -> list[Event]:
    """(op letter, (epoch, commit, index), fields) of each event, in offset order."""
    from headwater import config
    from headwater.assembly import Assembly
    from headwater.model import Op

    found: list[Event] = []
    with Assembly(config.load(directory / "headwater.yaml")) as assembly:
        for events in assembly.bus.read(stream, after=None, follow=False):
            ops = [Op(op).letter for op in events.data.column("_op").to_pylist()]
            order = (events.data.column(name).to_pylist() for name in ("_epoch", "_commit", "_index"))
            fields = (events.data.column(name).to_pylist() for name in COLUMNS[stream])
            found += zip(ops, zip(*order, strict=True), zip(*fields, strict=True), strict=True)
    return found


def replayed(events: list[Event], *, polled: bool) -> Rows:
    """The rows that the events lead to; each event must fit what was there before it.

    A key's first event may be anything: while a table is loaded its rows change. A poll cannot tell a row that is new
    from one that changed: its `u` may be either.
    """
    rows: Rows = {}
    seen = set()
    for letter, order, (key, *fields) in events:
        fits = (key in rows) == (letter in "ud") or (polled and letter == "u") or key not in seen
        assert fits, f"{letter} of {key} at {order}"
        seen.add(key)
        if letter == "d":
            rows.pop(key, None)
        else:
            rows[key] = tuple(fields)
    return rows


def audited(directory: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """The events that the application's own audit of `enrollment` stands for, under the stream's `where`."""
    db = sqlite3.connect(directory / "lms.db")
    changes = db.execute(
        "SELECT old_id, old_mode, id, learner_id, run_key, mode, paid FROM audit ORDER BY seq"
    ).fetchall()
    db.close()
    expected: list[tuple[str, tuple[Any, ...]]] = []
    for old_id, old_mode, *new, paid in changes:
        was, is_now = old_id is not None and old_mode != "beta", new[0] is not None and new[3] != "beta"
        gone = was and (not is_now or old_id != new[0])
        if gone:
            expected.append(("d", (old_id, None, None, None, None)))
        if is_now:
            expected.append(("u" if was and not gone else "c", (*new, _money(paid))))
    return expected
