"""Random schemas and random statements: the captured changes, replayed on nothing, are the table; no row twice, none
missing, wherever the reader is restarted."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.errors import Busy
from tests.trigger_world import World, capture

COLUMNS = ("k", "l", "u", "v", "w")

KEYS = {
    "integer": ("k INTEGER PRIMARY KEY", "", "", ("k",)),
    "text": ("k TEXT NOT NULL PRIMARY KEY", "", "", ("k",)),
    "nocase": ("k TEXT NOT NULL COLLATE NOCASE PRIMARY KEY", "", "", ("k",)),
    "int": ("k INT NOT NULL PRIMARY KEY", "", "", ("k",)),
    "composite": ("k INTEGER NOT NULL", ", PRIMARY KEY (k, l)", "", ("k", "l")),
    "without rowid": ("k TEXT NOT NULL", ", PRIMARY KEY (l, k)", "WITHOUT ROWID", ("l", "k")),
    "replacing": ("k INTEGER NOT NULL", ", PRIMARY KEY (k) ON CONFLICT REPLACE", "WITHOUT ROWID", ("k",)),
}
UNIQUES = {
    "column": "CREATE UNIQUE INDEX u1 ON t(u)",
    "nocase": "CREATE UNIQUE INDEX u2 ON t(v COLLATE NOCASE)",
    "partial": "CREATE UNIQUE INDEX u3 ON t(w) WHERE u > 1 AND v IS NOT NULL",
    "expression": "CREATE UNIQUE INDEX u4 ON t(lower(v), u + 1)",
    "two": "CREATE UNIQUE INDEX u5 ON t(u, v)",
    "default": "CREATE UNIQUE INDEX u6 ON t(d)",
}
TRIGGERS = {
    "touch": "CREATE TRIGGER a1 AFTER UPDATE OF u ON t BEGIN UPDATE t SET w = w || '!' WHERE u IS NEW.u; END",
    "stamp": "CREATE TRIGGER a2 AFTER INSERT ON t BEGIN UPDATE t SET v = NULL WHERE u IS NEW.u AND NEW.u = 3; END",
    "undelete": "CREATE TRIGGER a3 AFTER DELETE ON t WHEN OLD.w = 'b' BEGIN "
    "INSERT OR IGNORE INTO t(k, l, u, w) VALUES (OLD.k, OLD.l, OLD.u, 'c'); END",
}


@st.composite
def schemas(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    column, constraint, options, key = KEYS[draw(st.sampled_from(sorted(KEYS)))]
    default = draw(st.sampled_from(["3", "7", "NULL"]))
    d = "d INTEGER" if default == "NULL" else f"d INTEGER NOT NULL DEFAULT {default}"
    parent = (
        draw(st.sampled_from(["", " REFERENCES t(k) ON DELETE CASCADE ON UPDATE CASCADE"])) if key == ("k",) else ""
    )
    table = (
        f"CREATE TABLE t({column}, l INTEGER NOT NULL DEFAULT 1{parent}, u INTEGER, v TEXT, w TEXT, {d}{constraint})"
    )
    uniques = draw(st.sets(st.sampled_from(sorted(UNIQUES)), max_size=2))
    triggers = draw(st.sets(st.sampled_from(sorted(TRIGGERS)), max_size=1))
    parts = [f"{table} {options}", *(UNIQUES[u] for u in sorted(uniques)), *(TRIGGERS[t] for t in sorted(triggers))]
    return ";\n".join(parts), key


small = st.integers(1, 4)
texts = st.sampled_from(["a", "A", "b", "c"])
keys = st.sampled_from(["@1", "@2", "@3", "@4"])
"""Written as text; `attempt` makes of them what the schema's key column holds."""
conflicts = st.sampled_from(["", "", "OR REPLACE ", "OR REPLACE ", "OR IGNORE "])


@st.composite
def statements(draw: st.DrawFn) -> str:
    def value(of: st.SearchStrategy[object]) -> str:
        found = draw(of)
        return "NULL" if found is None else str(found) if str(found).startswith("@") else repr(found)

    kind = draw(st.sampled_from(["insert", "insert", "rows", "update", "key", "delete", "upsert", "many"]))
    conflict = draw(conflicts)
    row = f"({value(keys)}, {value(small)}, {value(st.none() | small)}, {value(st.none() | texts)}, {value(texts)})"
    if kind == "insert":
        d = value(st.none() | small)
        return f"INSERT {conflict}INTO t(k, l, u, v, w, d) VALUES ({row[1:-1]}, {d})"
    if kind == "rows":
        return f"INSERT {conflict}INTO t(u, v, w) VALUES ({value(small)}, {value(texts)}, {value(texts)})"
    if kind == "update":
        return f"UPDATE {conflict}t SET u = {value(small)}, v = {value(st.none() | texts)} WHERE k = {value(keys)}"
    if kind == "key":
        return f"UPDATE {conflict}t SET k = {value(keys)}, l = {value(small)} WHERE k = {value(keys)}"
    if kind == "many":
        return f"UPDATE {conflict}t SET u = u + 1, w = {value(texts)} WHERE l >= {value(small)}"
    if kind == "delete":
        tests = [f"k = {value(keys)}", f"u = {value(small)}", f"l = {value(small)}"]
        return f"DELETE FROM t WHERE {draw(st.sampled_from(tests))}"
    action = draw(st.sampled_from(["DO NOTHING", "DO UPDATE SET u = 2, w = excluded.w"]))
    return f"INSERT INTO t(k, l, u, v, w) VALUES {row} ON CONFLICT {action}"


controls = st.sampled_from(["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s", "RELEASE s"])
steps = st.one_of(
    statements().map(lambda sql: ("sql", sql)),
    statements().map(lambda sql: ("sql", sql)),
    statements().map(lambda sql: ("sql", sql)),
    controls.map(lambda sql: ("sql", sql)),
    st.sampled_from(sorted(TRIGGERS.values())).map(lambda sql: ("sql", sql)),  # made after ours: SQLite fires it first
    st.sampled_from([("read", ""), ("read", ""), ("crash", "")]),
)


TEXT_KEYS = {"@1": "'a'", "@2": "'A'", "@3": "'b'", "@4": "'c'"}


def attempt(world: World, sql: str, textual: bool) -> None:
    for mark, text in TEXT_KEYS.items():
        sql = sql.replace(mark, text if textual else mark[1:])
    # refused by a constraint, or no transaction is open: the application goes on
    with contextlib.suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
        world.app.execute(sql)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    schemas(),
    st.lists(statements(), max_size=6),
    st.lists(steps, min_size=5, max_size=40),
    st.booleans(),
    st.booleans(),
)
def test_replayed_changes_are_the_table(
    schema: tuple[str, tuple[str, ...]],
    before: list[str],
    then: list[tuple[str, str]],
    recursive: bool,
    foreign_keys: bool,
) -> None:
    script, key = schema
    textual = "k TEXT" in script
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory) / "app.db", script)
        try:
            world.app.execute(f"PRAGMA recursive_triggers = {recursive:d}")
            world.app.execute(f"PRAGMA foreign_keys = {foreign_keys:d}")
            world.capture(capture("t", COLUMNS, key))
            world.options["busy_timeout"] = 0.0
            for sql in before:
                attempt(world, sql, textual)
            world.catch_up()
            world.check()
            for what, sql in then:
                if what == "sql":
                    attempt(world, sql, textual)
                else:
                    with contextlib.suppress(Busy):  # to make triggers again it waits for an open transaction to end
                        world.catch_up(stop_after=1 if what == "crash" else None)
            attempt(world, "COMMIT", textual)
            world.catch_up()
            world.check()
        finally:
            world.close()
