"""Connections: opening, transactions, reading, writing, time limits; on the engine that is running."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater import native
from headwater.drivers import sqlite_library
from headwater.drivers.sqlite import VARIANT, Connection, ConstraintError, Interrupted, StatementError, path_of, quoted
from headwater.errors import Busy, ConfigError, MissingExtra, SourceError

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
COUNTING = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.fixture(params=["as built", "pure Python"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database; each test runs on both engines, where there are two."""
    if request.param == "pure Python":
        monkeypatch.setattr("headwater.drivers.sqlite.engine_module", lambda: None)
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE)")
        connection.execute("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, NULL)")
        connection.commit()
    return file


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    with Connection(path) as connection:
        yield connection


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of("sqlite:///app.db") == tmp_path / "app.db"
    assert path_of("sqlite:///app.db", "/srv") == Path("/srv/app.db")
    assert path_of("sqlite:////var/app%20x.db", "/srv") == Path("/var/app x.db")
    assert path_of("app.db", "/srv") == Path("/srv/app.db")
    for bad in ("sqlite://app.db", "sqlite://host/app.db", "sqlite:///", "sqlite:///a.db?x=1"):
        with pytest.raises(ConfigError, match="is no SQLite URL"):
            path_of(bad)


def test_odd_file_names(tmp_path: Path) -> None:
    for name in ("a b?.db", "100%.db", "#.db", "é𝄞.db", "'q\".db"):
        with Connection(tmp_path / name, create=True) as connection:
            connection.execute("CREATE TABLE t (x)")
        assert (tmp_path / name).is_file()


def test_a_missing_file_is_never_made_and_names_the_nearest(path: Path) -> None:
    wrong = path.with_name("ap.db")
    with pytest.raises(SourceError, match=r"there is no database file (.|\n)*did you mean .*app.db"):
        Connection(wrong)
    assert not wrong.exists()
    with pytest.raises(SourceError, match="its folder (.|\n)* does not exist"):
        Connection(path.parent / "nowhere" / "app.db")
    with pytest.raises(SourceError, match="is a directory"):
        Connection(path.parent)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(StatementError, match="is not a SQLite database"):
        Connection(path)


def test_a_locked_database_is_busy(path: Path, connection: Connection) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Busy, match="is locked by another program"):
            Connection(path, busy_timeout=0.01)


def test_readonly_refuses_writes(path: Path) -> None:
    with Connection(path, readonly=True) as connection:
        assert connection.execute("SELECT count(*) FROM t") == [(3,)]
        with pytest.raises(StatementError, match="readonly"):
            connection.execute("DELETE FROM t")


def test_readonly_reads_behind_a_writer_that_crashed(tmp_path: Path) -> None:
    """A hot journal has to be rolled back, which a connection opened with mode=ro cannot do."""
    path = tmp_path / "c.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("BEGIN")
    writer.executemany("INSERT INTO t VALUES (zeroblob(1000))", [()] * 2000)
    copy = tmp_path / "crashed.db"
    copy.write_bytes(path.read_bytes())
    (tmp_path / "crashed.db-journal").write_bytes(Path(f"{path}-journal").read_bytes())
    writer.close()
    with Connection(copy, readonly=True) as connection:
        assert connection.execute("SELECT count(*) FROM t") == [(0,)]


def delete_and_fail(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("DELETE FROM t WHERE a = 1")
        connection.execute("INSERT INTO t VALUES (2, 'again')")


def test_transactions_commit_and_roll_back(connection: Connection, path: Path) -> None:
    with connection.transaction("IMMEDIATE"):
        connection.execute("INSERT INTO t VALUES (?, ?)", (4, "four"))
        assert connection.in_transaction
    with pytest.raises(ConstraintError):
        delete_and_fail(connection)
    assert not connection.in_transaction
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT a FROM t ORDER BY a").fetchall() == [(1,), (2,), (3,), (4,)]


def test_a_constraint_is_told_apart(connection: Connection) -> None:
    with pytest.raises(ConstraintError, match="UNIQUE constraint failed: t.b") as raised:
        connection.execute("INSERT INTO t VALUES (9, 'one')")
    assert raised.value.code & 0xFF == 19


def test_versions(connection: Connection, path: Path) -> None:
    data, schema = connection.data_version(), connection.schema_version()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE more (x)")
        other.commit()
    assert connection.data_version() != data
    assert connection.schema_version() == schema + 1


def table(connection: Connection, sql: str, **columns: pa.DataType) -> list[dict[str, Any]]:
    return [row for batch in connection.read(sql, (), pa.schema(columns), rows=2) for row in batch.to_pylist()]


def test_reading_keeps_every_value_and_marks_what_does_not_fit(connection: Connection) -> None:
    rows = table(
        connection,
        "VALUES (1, 2.5, 'x'), (9007199254740993, 9007199254740993, NULL), (3.0, 3, x'00'), ('7', 'no', 7)",
        i=pa.int64(),
        f=pa.float64(),
        v=VARIANT,
    )
    plain = [(row["i"], row["f"], next((v for v in (row["v"] or {}).values() if v is not None), None)) for row in rows]
    assert plain == [(1, 2.5, "x"), (9007199254740993, None, None), (3, 3.0, b"\0"), (None, None, 7)]
    marks = [[(m["column"], m["expected"], m["got"]) for m in row.get("_invalid") or ()] for row in rows]
    assert marks == [
        [],
        [("f", "double", "integer 9007199254740993")],
        [],
        [("i", "int64", "text '7'"), ("f", "double", "text 'no'")],
    ]


def test_a_value_that_does_not_fit_is_kept_whole(connection: Connection) -> None:
    """The quarantine is the only place that has it, once the application has changed its row."""
    rows = table(connection, "SELECT zeroblob(100000), printf('%.*c', 5000, 'x')", a=pa.int64(), b=pa.int64())
    blob, text = (mark["got"] for mark in rows[0]["_invalid"])
    assert blob == f"blob X'{'00' * 100_000}' (100000 bytes)"
    assert text == f"text '{'x' * 5000}'"


def test_a_huge_value_that_does_not_fit_is_cut_and_says_so(connection: Connection) -> None:
    rows = table(connection, "SELECT zeroblob(2000000), printf('%.*c', 2000000, 'x')", a=pa.int64(), b=pa.int64())
    blob, text = (mark["got"] for mark in rows[0]["_invalid"])
    assert blob == f"blob X'{'00' * 2**20}...' (2000000 bytes)"
    assert text == f"text '{'x' * 2**20}'..."


def test_the_number_of_columns_must_fit(connection: Connection) -> None:
    with pytest.raises(SourceError, match="gives 2 columns, 1 are expected"):
        table(connection, "SELECT a, b FROM t", a=pa.int64())
    with pytest.raises(SourceError, match="no physical type"):
        table(connection, "SELECT a FROM t", a=pa.date32())


def test_a_reading_that_is_left_gives_back_its_lock(connection: Connection, path: Path) -> None:
    reading = connection.read("SELECT a FROM t", (), pa.schema([("a", pa.int64())]), rows=1)
    assert next(reading).to_pylist() == [{"a": 1}]
    reading.close()  # type: ignore[attr-defined]
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("ROLLBACK")


def test_writing_batches(connection: Connection) -> None:
    batch = pa.record_batch({"a": [10, 11, None], "b": ["ten", "", "a\0b"]})
    with connection.transaction("IMMEDIATE"):
        assert connection.write_batch("INSERT INTO t VALUES (?, ?)", batch) == 3
    assert connection.execute("SELECT a, b FROM t WHERE a > 9 ORDER BY a") == [(10, "ten"), (11, ""), (12, "a\0b")]


def test_what_sqlite_cannot_hold_is_refused(connection: Connection) -> None:
    with pytest.raises(StatementError, match="column `a` does not fit"):
        connection.write_batch("INSERT INTO t (a) VALUES (?)", pa.record_batch({"a": pa.array([2**63], pa.uint64())}))
    with pytest.raises(StatementError, match="column `a` is date32"):
        connection.write_batch("INSERT INTO t (a) VALUES (?)", pa.record_batch({"a": pa.array([1], pa.date32())}))
    with pytest.raises(StatementError, match=r"2.*, (and there are )?1 "):
        connection.write_batch("INSERT INTO t VALUES (?, ?)", pa.record_batch({"a": [1]}))


def test_the_statement_timeout_is_named(path: Path) -> None:
    with Connection(path, statement_timeout=0.05) as connection:
        with pytest.raises(StatementError, match=r"statement timeout of 0.05 s"):
            connection.execute(ENDLESS)
        with pytest.raises(StatementError, match=r"statement timeout of 0.05 s"):
            list(connection.read(COUNTING, (), pa.schema([("i", pa.int64())]), rows=100))
        assert connection.execute("SELECT 1") == [(1,)]


def test_the_callers_time_does_not_count(path: Path) -> None:
    with Connection(path, statement_timeout=0.2) as connection:
        reading = connection.read("SELECT a FROM t", (), pa.schema([("a", pa.int64())]), rows=1)
        next(reading)
        threading.Event().wait(0.3)
        assert [batch.to_pylist() for batch in reading] == [[{"a": 2}], [{"a": 3}]]


def test_interrupt_from_another_thread(connection: Connection) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            connection.execute(ENDLESS)
        except Interrupted as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        connection.interrupt()
        thread.join(0.01)
    assert len(failures) == 1
    connection.close()
    connection.interrupt()
    connection.close()


def test_quoting() -> None:
    assert quoted('a "b".c') == '"a ""b"".c"'
    with pytest.raises(SourceError, match="NUL"):
        quoted("a\0b")


def test_the_library_is_pythons_own() -> None:
    found = sqlite_library.addresses()
    assert found is None or set(found) == set(sqlite_library.FUNCTIONS)


def test_the_switch_for_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", native.compiled.__wrapped__)
    monkeypatch.setenv(native.VARIABLE, "off")
    assert native.running() == "pure Python"
    monkeypatch.setenv(native.VARIABLE, "require")
    with pytest.raises(MissingExtra, match=r"headwater.drivers.nothing cannot be imported"):
        native.compiled("headwater.drivers.nothing")
    monkeypatch.setenv(native.VARIABLE, "maybe")
    with pytest.raises(MissingExtra, match="auto, off or require"):
        native.running()
