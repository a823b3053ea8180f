"""The traps of trigger capture on SQLite, each with a real database and, where it matters, real processes (F70)."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from headwater.dialects.sqlite import SqliteDialect
from headwater.drivers.sqlite import Connection
from headwater.errors import Busy, SourceError
from headwater.model import Order
from headwater.protocols import Load
from headwater.sources.trigger_sqlite import install
from headwater.sources.trigger_sqlite.shape import Shape, shape_of
from tests.trigger_world import Following, Row, World, capture, worlds

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v TEXT)"
Event = tuple[str, Row | None, Row | None]
REBUILT = f"{TABLE.replace('t(', 'n(')}; INSERT INTO n SELECT * FROM t; DROP TABLE t; ALTER TABLE n RENAME TO t"
T = capture("t", ("id", "u", "v"), ("id",))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from worlds(tmp_path / "app.db", TABLE)


def started(world: World, *captures: object) -> World:
    world.capture(*(captures or (T,)))  # type: ignore[arg-type]
    world.catch_up()
    for one in world.captures:
        world.history(one.stream)
    return world


def row(number: int, u: str | None, v: object = None) -> dict[str, object]:
    return {"id": number, "u": u, "v": v}


def fill(world: World, ids: Iterable[int]) -> None:
    world.app.execute("BEGIN")
    world.app.executemany("INSERT INTO t VALUES (?, ?, 1)", ((i, f"u{i}") for i in ids))
    world.app.execute("COMMIT")


# rows that a write replaces


@pytest.mark.parametrize("recursive", [False, True])
def test_f70_insert_or_replace_deletes_the_rows_it_replaces(world: World, recursive: bool) -> None:
    started(world).app.execute(f"PRAGMA recursive_triggers = {recursive:d}")
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')")
    world.app.execute("INSERT OR REPLACE INTO t VALUES (3, 'a', 'z')")
    world.app.execute("REPLACE INTO t VALUES (2, 'q', 'w')")
    world.catch_up()
    world.check()
    same: list[Event] = [("u", row(2, "b", "y"), row(2, "q", "w"))]
    if recursive:
        same = [("d", row(2, "b", "y"), None), ("c", None, row(2, "q", "w"))]
    assert world.history("s.t") == [
        ("c", None, row(1, "a", "x")),
        ("c", None, row(2, "b", "y")),
        ("d", row(1, "a", "x"), None),
        ("c", None, row(3, "a", "z")),
        *same,
    ]


@pytest.mark.parametrize("recursive", [False, True])
def test_f70_update_or_replace_deletes_the_rows_it_replaces(world: World, recursive: bool) -> None:
    started(world).app.execute(f"PRAGMA recursive_triggers = {recursive:d}")
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
    world.app.execute("UPDATE OR REPLACE t SET id = 3, u = 'b' WHERE id = 1")
    world.catch_up()
    world.check()
    history = world.history("s.t")[3:]
    deletes: list[Event] = [("d", row(2, "b", "2"), None), ("d", row(3, "c", "3"), None)]
    assert sorted(history[:-1], key=repr) == deletes
    assert history[-1] == ("u", row(1, "a", "1"), row(3, "b", "1"))


def test_f70_a_default_that_replaces_a_null_can_replace_a_row(tmp_path: Path) -> None:
    """OR REPLACE puts the column's default where NOT NULL is violated, and the default collides."""
    for world in worlds(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, n INT NOT NULL DEFAULT 7 UNIQUE)"):
        started(world, capture("t", ("id", "n"), ("id",)))
        world.app.executescript("INSERT INTO t VALUES (1, 7); INSERT OR REPLACE INTO t VALUES (2, NULL)")
        world.catch_up()
        world.check()
        assert world.replicas["s.t"].rows == {(2,): {"id": 2, "n": 7}}


def test_f70_writes_that_are_skipped_leave_no_trace(world: World) -> None:
    started(world).app.execute("INSERT INTO t VALUES (1, 'a', 'x')")
    world.app.execute("INSERT OR IGNORE INTO t VALUES (1, 'b', 'y'), (2, 'a', 'y')")
    world.app.execute("INSERT INTO t VALUES (1, 'c', 'y') ON CONFLICT DO NOTHING")
    world.app.execute("UPDATE OR IGNORE t SET id = 1")
    with pytest.raises(sqlite3.IntegrityError):
        world.app.execute("INSERT INTO t VALUES (2, 'a', 'y')")
    world.app.execute("INSERT INTO t VALUES (9, 'a', 'y') ON CONFLICT (u) DO UPDATE SET v = excluded.v")
    world.app.execute("DELETE FROM t WHERE id = 1")
    world.app.execute("INSERT INTO t VALUES (4, 'd', 'y')")
    world.catch_up()
    world.check()
    assert world.history("s.t") == [
        ("c", None, row(1, "a", "x")),
        ("u", row(1, "a", "x"), row(1, "a", "x")),
        ("u", row(1, "a", "x"), row(1, "a", "y")),
        ("d", row(1, "a", "y"), None),
        ("c", None, row(4, "d", "y")),
    ]


def test_f70_a_row_that_an_upsert_remembered_moves_once(world: World) -> None:
    """Found by killing: the upsert's BEFORE INSERT remembers the row; its move is no replacement."""
    started(world).app.execute("INSERT INTO t VALUES (1, 'a', 'x')")
    world.app.execute("INSERT INTO t VALUES (1, 'b', 'y') ON CONFLICT (id) DO UPDATE SET v = excluded.v")
    world.app.execute("UPDATE t SET id = 2 WHERE id = 1")
    world.catch_up()
    world.check()
    assert world.history("s.t") == [
        ("c", None, row(1, "a", "x")),
        ("u", row(1, "a", "x"), row(1, "a", "y")),
        ("u", row(1, "a", "y"), row(2, "a", "y")),
    ]


def test_f70_rolled_back_writes_never_happened(world: World) -> None:
    started(world).app.executescript(
        "BEGIN; INSERT INTO t VALUES (1, 'a', 1); SAVEPOINT s; INSERT INTO t VALUES (2, 'b', 1); ROLLBACK TO s; COMMIT;"
        "BEGIN; DELETE FROM t; ROLLBACK"
    )
    world.catch_up()
    assert world.history("s.t") == [("c", None, row(1, "a", "1"))]


# what the application does in between


def test_f70_triggers_of_the_application_that_write_the_same_row(world: World) -> None:
    """Made before ours and made after ours: SQLite fires them in either order."""
    world.app.executescript(
        "CREATE TRIGGER early AFTER INSERT ON t BEGIN UPDATE t SET v = 'early ' || NEW.id WHERE id = NEW.id; END"
    )
    started(world).app.executescript(
        "CREATE TRIGGER late AFTER UPDATE OF u ON t BEGIN UPDATE t SET v = 'late ' || NEW.id WHERE id = NEW.id; END;"
        "CREATE TRIGGER back AFTER DELETE ON t WHEN OLD.u = 'keep' BEGIN INSERT INTO t VALUES (OLD.id, 'kept', 1); END;"
        "INSERT INTO t VALUES (1, 'a', 'x'), (2, 'keep', 'y');"
        "UPDATE t SET u = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2"
    )
    world.catch_up()
    world.check()
    assert world.replicas["s.t"].rows == {(1,): row(1, "b", "late 1"), (2,): row(2, "kept", "early 2")}


def test_f70_a_trigger_of_the_application_that_touches_the_row_before_it_is_replaced(world: World) -> None:
    world.app.executescript("CREATE TRIGGER b BEFORE INSERT ON t BEGIN UPDATE t SET v = 'old' WHERE u = NEW.u; END")
    started(world).app.executescript(
        "INSERT INTO t VALUES (1, 'a', 'x'); INSERT OR REPLACE INTO t VALUES (2, 'a', 'y')"
    )
    world.catch_up()
    world.check()
    assert world.replicas["s.t"].rows == {(2,): row(2, "a", "y")}


def test_f70_cascades_and_rows_that_refer_to_themselves(tmp_path: Path) -> None:
    script = """
        CREATE TABLE p(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE);
        CREATE TABLE c(id INTEGER PRIMARY KEY, p INTEGER REFERENCES p(id) ON DELETE SET NULL ON UPDATE CASCADE);
    """
    for world in worlds(tmp_path / "app.db", script):
        started(world, capture("p", ("id", "parent"), ("id",)), capture("c", ("id", "p"), ("id",)))
        world.app.execute("PRAGMA foreign_keys = ON")
        world.app.executescript(
            "INSERT INTO p VALUES (1, 1), (2, 1), (3, 2), (9, NULL); INSERT INTO c VALUES (1, 1), (2, 9), (3, 3);"
            "UPDATE p SET id = 5 WHERE id = 1; DELETE FROM p WHERE id = 2; UPDATE p SET id = 8 WHERE id = 9"
        )
        world.catch_up()
        world.check()
        assert world.replicas["s.p"].rows == {(5,): {"id": 5, "parent": 5}, (8,): {"id": 8, "parent": None}}
        assert world.replicas["s.c"].rows[(3,)] == {"id": 3, "p": None}


def test_f70_a_replaced_row_whose_cascade_deletes_the_row_that_replaces_it(tmp_path: Path) -> None:
    """No AFTER UPDATE fires then: the row to be updated is gone. Found by the property test."""
    script = """CREATE TABLE p(k INT NOT NULL PRIMARY KEY, u INT UNIQUE, parent INT REFERENCES p(k) ON DELETE CASCADE);
        INSERT INTO p VALUES (1, 2, NULL), (3, NULL, 1)"""
    for world in worlds(tmp_path / "app.db", script):
        started(world, capture("p", ("k", "u", "parent"), ("k",)))
        world.app.execute("PRAGMA foreign_keys = ON")
        world.app.execute("UPDATE OR REPLACE p SET u = 2 WHERE k = 3")
        assert world.app.execute("SELECT * FROM p").fetchall() == []
        world.catch_up()
        world.check()


def test_the_application_does_not_notice(world: World) -> None:
    """`last_insert_rowid` and `changes` are the application's own. `total_changes` counts triggers, SQLite says."""
    started(world).app.execute("INSERT INTO t VALUES (5, 'a', 1), (6, 'b', 1)")
    assert world.app.execute("SELECT last_insert_rowid(), changes()").fetchone() == (6, 2)
    world.app.execute("INSERT OR REPLACE INTO t VALUES (7, 'a', 2)")
    assert world.app.execute("SELECT last_insert_rowid(), changes()").fetchone() == (7, 1)
    assert world.app.execute("UPDATE t SET v = 3").rowcount == 2
    assert world.app.execute("DELETE FROM t").rowcount == 2
    assert world.app.execute("SELECT last_insert_rowid(), changes(), total_changes() > 7").fetchone() == (7, 2, 1)


def test_f70_an_untrusted_schema_changes_nothing(world: World) -> None:
    started(world).app.execute("PRAGMA trusted_schema = OFF")
    world.app.execute("INSERT OR REPLACE INTO t VALUES (1, 'a', 1)")
    world.catch_up()
    world.check()


# names, values, kinds of tables


def test_f33_names_with_quotes_dots_and_keywords(tmp_path: Path) -> None:
    script = """
        CREATE TABLE "a.b""c"("k""y.1" TEXT PRIMARY KEY, "select" INTEGER UNIQUE, "NEW" TEXT);
        CREATE TABLE new(id INTEGER PRIMARY KEY, "new" TEXT UNIQUE);
        CREATE TABLE "old"(old TEXT, "n" TEXT, PRIMARY KEY (old)) WITHOUT ROWID;
        CREATE TABLE p(p INTEGER PRIMARY KEY, t TEXT, o0 TEXT);
    """
    for world in worlds(tmp_path / "app.db", script):
        started(
            world,
            capture('a.b"c', ('k"y.1', "select", "NEW"), ('k"y.1',)),
            capture("new", ("id", "new"), ("id",)),
            capture("old", ("old", "n"), ("old",)),
            capture("p", ("p", "t", "o0"), ("p",)),
        )
        world.app.executescript("""
            INSERT INTO "a.b""c" VALUES ('x', 1, 'n'), ('y', 2, 'm'); REPLACE INTO "a.b""c" VALUES ('z', 2, 'o');
            INSERT INTO new VALUES (1, 'a'), (2, 'b'); REPLACE INTO new VALUES (3, 'a');
            UPDATE new SET id = 9 WHERE id = 2;
            INSERT INTO old VALUES ('a', 'b'); REPLACE INTO old VALUES ('a', 'c'); UPDATE old SET old = 'q';
            INSERT INTO p VALUES (1, 'a', 'b'); REPLACE INTO p VALUES (1, 'c', 'd'); UPDATE p SET p = 4; DELETE FROM p;
        """)
        world.catch_up()
        world.check()
        assert [letter for letter, _, _ in world.history("s.old")] == ["c", "u", "u"]


def test_f31_values_keep_their_storage_class(tmp_path: Path) -> None:
    script = "CREATE TABLE t(id INTEGER PRIMARY KEY, i INTEGER, r REAL, s TEXT, b BLOB)"
    for world in worlds(tmp_path / "app.db", script):
        started(world, capture("t", ("id", "i", "r", "s", "b"), ("id",)))
        rows = [
            (1, 2**63 - 1, 0.1, "\u00e4\U0001f600'\"", b"\x00\xff'"),
            (2, -(2**63), 5e-324, "", b""),
            (3, 0, 1.7976931348623157e308, "x" * 100_000, b"\x01" * 100_000),
            (4, None, 3.0, None, None),
        ]
        world.app.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        world.app.execute("UPDATE t SET i = i")
        world.catch_up()
        world.check()
        assert [tuple(after.values()) for _, _, after in world.history("s.t")[:4] if after] == rows


def test_f70_values_of_another_type_than_their_column_are_marked(tmp_path: Path) -> None:
    for world in worlds(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, i INTEGER)"):
        started(world, capture("t", ("id", "i"), ("id",)))
        world.app.execute("INSERT INTO t VALUES (1, 'seven')")
        world.app.execute("UPDATE t SET i = 7")
        world.app.execute("UPDATE t SET i = x'00'")
        world.catch_up()
        assert world.replicas["s.t"].invalid == [
            [{"column": "i", "expected": "int64", "got": "text 'seven'"}],
            [{"column": "i", "expected": "int64", "got": "blob X'00' (1 bytes)"}],
        ]


def test_generated_columns_are_captured_and_can_replace(tmp_path: Path) -> None:
    script = """CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, v INTEGER GENERATED ALWAYS AS (a * 2) VIRTUAL,
        s TEXT GENERATED ALWAYS AS ('s' || a) STORED UNIQUE)"""
    for world in worlds(tmp_path / "app.db", script):
        started(world, capture("t", ("id", "a", "v", "s"), ("id",)))
        world.app.executescript(
            "INSERT INTO t(id, a) VALUES (1, 1), (2, 2); INSERT OR REPLACE INTO t(id, a) VALUES (3, 1);"
            "UPDATE OR REPLACE t SET a = 2 WHERE id = 3"
        )
        world.catch_up()
        world.check()
        assert world.replicas["s.t"].rows == {(3,): {"id": 3, "a": 2, "v": 4, "s": "s2"}}


def test_tables_without_a_key_are_told_apart_by_rowid(tmp_path: Path) -> None:
    for world in worlds(tmp_path / "app.db", "CREATE TABLE log(text TEXT); INSERT INTO log VALUES ('a'), ('a')"):
        world.capture(capture("log", ("text",), ()))
        world.catch_up()
        world.app.executescript(
            "INSERT INTO log VALUES ('b'); DELETE FROM log WHERE rowid = 1; UPDATE log SET text = 'c' WHERE rowid = 2;"
            "INSERT OR REPLACE INTO log(rowid, text) VALUES (2, 'd')"
        )
        world.catch_up()
        assert world.history("s.log") == [
            ("r", None, {"text": "a"}),
            ("r", None, {"text": "a"}),
            ("c", None, {"text": "b"}),
            ("d", {"text": "a"}, None),
            ("u", {"text": "a"}, {"text": "c"}),
            ("u", {"text": "c"}, {"text": "d"}),
        ]


def test_a_null_in_a_primary_key_is_loaded_and_captured(tmp_path: Path) -> None:
    """SQLite allows it in ordinary tables; no key comparison finds such a row."""
    script = "CREATE TABLE t(k TEXT PRIMARY KEY, v TEXT); INSERT INTO t VALUES (NULL, 'a'), ('k', 'b'), (NULL, 'c')"
    for world in worlds(tmp_path / "app.db", script):
        world.capture(capture("t", ("k", "v"), ()))
        world.catch_up()
        world.app.execute("INSERT INTO t VALUES (NULL, 'd')")
        world.catch_up()
        values = [after["v"] for _, _, after in world.history("s.t") if after]
        assert sorted(values[:3]) == ["a", "b", "c"]
        assert values[3:] == ["d"]


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("CREATE VIEW x AS SELECT 1 AS id", "a view"),
        ("CREATE VIRTUAL TABLE x USING fts5(id)", "a virtual table"),
        ("SELECT 1", "no table"),
        ("CREATE TABLE x(other)", "no column id"),
    ],
)
def test_what_cannot_be_captured_is_refused(world: World, script: str, what: str) -> None:
    world.app.execute(script)
    world.capture(capture("x", ("id",), ("id",)))
    with pytest.raises(SourceError, match=what) as caught:
        world.catch_up()
    assert "s.x" in str(caught.value)
    assert caught.value.hint


def test_one_stream_that_cannot_be_captured_does_not_stop_the_others(world: World) -> None:
    world.app.executescript(
        "CREATE TABLE o(id INTEGER PRIMARY KEY, gone TEXT, v TEXT); INSERT INTO o VALUES (1, 'g', 'v')"
    )
    started(world, T, capture("o", ("id", "gone", "v"), ("id",)))
    world.app.executescript(
        "CREATE TABLE n(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO n SELECT id, v FROM o; DROP TABLE o;"
        "ALTER TABLE n RENAME TO o; INSERT INTO t VALUES (1, 'a', 1)"
    )
    with pytest.raises(SourceError, match=r"stream s.o: table o has no column gone"):
        world.catch_up()
    assert world.history("s.t") == [("c", None, row(1, "a", "1"))]
    assert any(note.stream == "s.o" and note.kind == "schema" for note in world.notes)
    world.app.executescript(
        "ALTER TABLE o ADD COLUMN gone TEXT; UPDATE o SET v = 'w'; INSERT INTO o VALUES (2, 'x', 'y')"
    )
    world.catch_up()
    world.check()


def test_two_streams_of_one_table_fail_one_by_one(world: World) -> None:
    world.app.execute("INSERT INTO t VALUES (1, 'a', 1)")
    wide = capture("t", ("id", "u", "v"), ("id",), stream="s.wide")
    narrow = capture("t", ("id", "u"), ("id",), stream="s.narrow")
    started(world, wide, narrow)
    world.app.executescript(f"{REBUILT}; ALTER TABLE t DROP COLUMN v; UPDATE t SET u = 'b'")
    with pytest.raises(SourceError, match=r"stream s.wide: table t has no column v"):
        world.catch_up()
    assert world.replicas["s.narrow"].rows == {(1,): {"id": 1, "u": "b"}}
    world.app.executescript("INSERT INTO t VALUES (2, 'c')")
    with pytest.raises(SourceError, match=r"stream s.wide"):
        world.catch_up()
    assert set(world.replicas["s.narrow"].rows) == {(1,), (2,)}
    assert set(world.replicas["s.wide"].rows) == {(1,)}
    world.app.executescript("ALTER TABLE t ADD COLUMN v TEXT; INSERT INTO t VALUES (3, 'd', 'e')")
    world.catch_up()
    assert world.replicas["s.wide"].rows == world.rows("t", ("id", "u", "v"), ("id",))
    assert world.replicas["s.narrow"].rows.keys() == {(1,), (2,), (3,)}


def test_f70_triggers_with_which_the_application_could_not_write_are_not_left_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.app.execute("CREATE TABLE o(id INTEGER PRIMARY KEY, n INTEGER NOT NULL DEFAULT 1 UNIQUE)")
    monkeypatch.setattr(install, "shape_of", with_unusable_default)
    world.capture(T, capture("o", ("id", "n"), ("id",)))
    with pytest.raises(SourceError, match=r"stream s\.o: table o: with triggers on it SQLite would refuse writes"):
        world.catch_up()
    world.app.executescript("INSERT INTO o VALUES (1, 2); INSERT INTO t VALUES (1, 'a', 1)")
    with pytest.raises(SourceError, match=r"no such function: nobody_knows"):
        world.catch_up()
    assert world.replicas["s.t"].rows == {(1,): row(1, "a", "1")}


def with_unusable_default(connection: Connection, table: str, present: tuple[str, ...]) -> Shape:
    found = shape_of(connection, table, present)
    return dataclasses.replace(found, defaults=dict.fromkeys(found.defaults, "nobody_knows()"))


# the schema changes


def test_f70_a_rebuilt_table_is_seen_and_what_was_missed_is_recovered(world: World) -> None:
    """Django's ALTER TABLE on SQLite: the triggers go with the old table, and nobody says so."""
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
    world.capture(T)
    with Following(world) as following:
        following.until(lambda: len(world.replicas["s.t"].rows) == 3)
        world.app.executescript(f"""
            BEGIN; {REBUILT};
            UPDATE t SET v = 'missed' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (4, 'd', 4); COMMIT
        """)
        following.until(lambda: (4,) in world.replicas["s.t"].rows)
        world.app.execute("INSERT INTO t VALUES (5, 'e', 5)")
        following.until(lambda: (5,) in world.replicas["s.t"].rows)
    world.check()
    (note,) = [note for note in world.notes if note.kind == "gap"]
    assert note.stream == "s.t"
    assert "triggers were gone or altered" in note.text
    letters = [letter for letter, _, _ in world.history("s.t")]
    assert letters[:3] == ["r", "r", "r"]
    assert sorted(letters[3:6]) == ["c", "d", "u"]
    assert letters[6:] == ["c"]


def test_f70_a_table_rebuilt_while_nobody_was_looking(world: World) -> None:
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
    started(world).app.executescript(f"INSERT INTO t VALUES (7, 'seen', 7); {REBUILT}; DELETE FROM t WHERE id = 1")
    world.catch_up()
    world.check()
    assert [note.kind for note in world.notes if note.kind == "gap"] == ["gap"]


def test_f70_a_repair_survives_a_crash_right_after_the_triggers_were_made_again(world: World) -> None:
    """The triggers are whole at the next start: that changes are missing must not be forgotten with the process."""
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
    started(world).app.executescript(f"{REBUILT}; DELETE FROM t")
    for stop_after in (0, 1, 1):
        world.catch_up(stop_after=stop_after)
    world.catch_up()
    world.check()
    assert world.replicas["s.t"].rows == {}


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE t RENAME COLUMN extra TO other",
        "ALTER TABLE t RENAME TO t2; ALTER TABLE t2 RENAME TO t",
        "CREATE UNIQUE INDEX more ON t(v)",
        "ALTER TABLE t ADD COLUMN z",
        "CREATE TRIGGER x BEFORE UPDATE ON t BEGIN SELECT 1; END",
        "DROP TRIGGER headwater_test_1_1_after_delete; DELETE FROM t WHERE id = 1",
        "VACUUM",
        "DROP TABLE headwater_test_1_pending",
    ],
)
def test_f70_ddl_of_the_application(tmp_path: Path, ddl: str) -> None:
    """Whatever is done to the schema, the triggers are right again afterwards, and the stream is the table."""
    for world in worlds(
        tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v TEXT, extra TEXT)"
    ):
        world.app.execute("INSERT INTO t VALUES (1, 'a', 'b', 'c'), (2, 'b', 'c', 'd')")
        started(world, T)
        world.app.executescript(ddl)
        world.catch_up()
        world.check()
        world.app.executescript("INSERT OR REPLACE INTO t(id, u, v) VALUES (5, 'b', 'e'), (6, 'f', 'b')")
        world.catch_up()
        world.check()


def test_a_table_that_was_renamed_is_compared_under_its_new_name(world: World) -> None:
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
    started(world).app.executescript("ALTER TABLE t RENAME TO t9; DELETE FROM t9 WHERE id = 2")
    world.capture(capture("t9", ("id", "u", "v"), ("id",), stream="s.t"))
    world.catch_up()
    world.check()


def test_f26_streams_and_columns_come_and_go_between_two_runs(world: World) -> None:
    world.app.executescript(
        "CREATE TABLE o(id INTEGER PRIMARY KEY, a TEXT, b TEXT); INSERT INTO o VALUES (1, 'a', 'b'); "
        "INSERT INTO t VALUES (1, 'a', 1)"
    )
    started(world)
    world.app.executescript("INSERT INTO t VALUES (2, 'b', 2)")
    narrow = capture("o", ("id", "a"), ("id",))
    world.capture(T, narrow)
    world.app.executescript("UPDATE t SET v = 'x'")
    world.catch_up()
    world.check()
    world.app.executescript("UPDATE o SET a = 'c'; INSERT INTO o VALUES (2, 'd', 'e')")  # unread when `b` is added
    world.replicas["s.o"].rows = {(1,): {"id": 1, "a": "a", "b": "b"}}
    world.capture(capture("o", ("id", "a", "b"), ("id",)))
    world.catch_up()
    world.check()
    assert not [note for note in world.notes if note.kind == "gap"]
    triggers = world.app.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone()
    assert triggers == (5,)
    world.app.executescript("INSERT INTO t VALUES (3, 'c', 3)")
    world.capture(
        capture("t", ("id", "u", "v"), ("id",), load=Load("return-1")), capture("o", ("id", "a", "b"), ("id",))
    )
    world.replicas["s.t"].rows.clear()  # this load is into an empty stream
    world.replicas["s.t"].seen.clear()
    world.catch_up()
    world.check()


def test_load_of_nothing_begins_with_the_next_change(world: World) -> None:
    world.app.execute("INSERT INTO t VALUES (1, 'a', 1)")
    world.capture(capture("t", ("id", "u", "v"), ("id",), load=Load("initial", skip=True)))
    world.catch_up()
    world.app.execute("INSERT INTO t VALUES (2, 'b', 2)")
    world.catch_up()
    assert world.history("s.t") == [("c", None, row(2, "b", "2"))]


# positions


def test_f23_an_interrupted_load_goes_on_where_it_was(world: World) -> None:
    fill(world, range(1, 12_001))
    world.capture(T)
    world.catch_up(stop_after=2)
    assert 0 < len(world.replicas["s.t"].rows) < 12_000
    world.app.executescript(
        "DELETE FROM t WHERE id % 7 = 0; UPDATE t SET v = 'y' WHERE id % 5 = 0; UPDATE t SET id = -id WHERE id % 11 = 0"
    )
    batches = world.catch_up()
    world.check()
    read = [r for batch in batches for c in batch.changes for r in c.data.to_pylist() if r["_op"] == 4]
    assert min(r["after"]["id"] for r in read) > 2_000, "what was durable is not read again"


def test_f3_a_database_restored_from_an_older_copy_is_compared(world: World, tmp_path: Path) -> None:
    world.app.execute("INSERT INTO t VALUES (1, 'a', 1)")
    started(world)
    copy = sqlite3.connect(tmp_path / "copy.db")
    world.app.backup(copy)
    world.app.executescript("INSERT INTO t VALUES (2, 'b', 2), (3, 'c', 3); DELETE FROM t WHERE id = 1")
    world.catch_up()
    world.check()
    copy.backup(world.app)
    copy.close()
    for number in range(8, 20):
        world.app.execute("INSERT INTO t VALUES (?, ?, 1)", (number, f"x{number}"))
    world.catch_up()
    world.check()
    assert world.position is not None
    assert world.position.epoch == 2
    (gap,) = [note for note in world.notes if note.kind == "gap"]
    assert "restored" in gap.text


def test_f83_a_database_made_anew_is_compared_in_a_higher_epoch(world: World) -> None:
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
    started(world)
    world.app.executescript("DROP TABLE t; DROP TABLE headwater_test_1_change; DROP TABLE headwater_test_1_meta")
    world.app.executescript(f"{TABLE}; INSERT INTO t VALUES (2, 'b', 2), (3, 'c', 3)")
    world.catch_up()
    world.check()
    assert world.position is not None
    assert world.position.epoch == 2
    assert world.replicas["s.t"].orders[(3,)] > Order(2, 0)


def test_f3_a_change_table_emptied_by_somebody_else(world: World) -> None:
    started(world).app.executescript(
        "INSERT INTO t VALUES (1, 'a', 1); DELETE FROM headwater_test_1_change; INSERT INTO t VALUES (2, 'b', 2)"
    )
    world.catch_up()
    world.check()
    assert [note.kind for note in world.notes if note.kind == "gap"] == ["gap"]


def test_a_higher_epoch_is_taken_over(world: World) -> None:
    started(world)
    world.epoch = 5
    world.app.execute("INSERT INTO t VALUES (1, 'a', 1)")
    world.catch_up()
    assert world.replicas["s.t"].orders[(1,)].epoch == 5


def test_state_is_one_snapshot_with_its_place(world: World) -> None:
    world.app.executescript("INSERT INTO t VALUES (1, 'a', 1)")
    started(world).app.execute("INSERT INTO t VALUES (2, 'b', 2)")
    world.catch_up()
    source = world.source()
    state = source.state("s.t")
    world.app.execute("DELETE FROM t")
    rows = [r for changes in state.changes for r in changes.data.to_pylist()]
    assert [r["after"] for r in rows] == [row(1, "a", "1"), row(2, "b", "2")]
    assert world.position is not None
    assert state.order == Order(world.position.epoch, world.position.commit, 2**32 - 1)
    source.close()


# in the application's company


def test_f82_the_last_commit_arrives_without_another_one(world: World) -> None:
    started(world)
    with Following(world) as following:
        for number in range(1, 20):
            world.app.execute("INSERT INTO t VALUES (?, ?, 1)", (number, f"u{number}"))
            following.until(lambda number=number: (number,) in world.replicas["s.t"].rows)  # type: ignore[misc]
    world.check()


def test_a_rollback_journal_source(tmp_path: Path) -> None:
    for world in worlds(tmp_path / "app.db", TABLE, journal="delete"):
        fill(world, range(5_000))
        world.capture(T)
        world.app.execute("PRAGMA busy_timeout = 10000")
        with Following(world) as following:
            for number in range(5_000, 5_050):
                world.app.execute("INSERT INTO t VALUES (?, ?, 1)", (number, f"u{number}"))
            replica = world.replicas["s.t"]
            following.until(lambda: len(replica.rows) == 5_050)  # noqa: B023 - the loop runs once
        world.check()


def test_a_locked_database_is_busy(world: World) -> None:
    world.capture(T)
    world.options["busy_timeout"] = 0.05
    world.app.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy, match="locked"):
        world.catch_up()
    world.app.execute("ROLLBACK")
    world.catch_up()
    world.check()


def test_a_database_that_may_not_be_written_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = SqliteDialect.connect
    monkeypatch.setattr(SqliteDialect, "connect", lambda self, readonly=True: connect(self, readonly=True))
    world.capture(T)
    with pytest.raises(SourceError, match="cannot be written") as caught:
        world.catch_up()
    assert "pattern: query" in caught.value.hint
