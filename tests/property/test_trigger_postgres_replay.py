"""Random schemas and random statements of two sessions side by side: the captured changes, replayed on nothing, are
the table; no row twice, none missing, wherever the reader is restarted (F60, F62, F70)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.drivers.postgres import connect, execute
from headwater.errors import HeadwaterError
from headwater.sources.trigger_postgres import uninstall
from tests.trigger_postgres_world import PgWorld, capture
from tests.trigger_world import PIPELINE

COLUMNS = ("k", "l", "u", "v")
KEYS = {
    "integer": ("k int PRIMARY KEY", "", ("k",)),
    "deferrable": ("k int", ", PRIMARY KEY (k) DEFERRABLE", ("k",)),
    "deferred": ("k int", ", PRIMARY KEY (k) DEFERRABLE INITIALLY DEFERRED", ("k",)),
    "composite": ("k int", ", PRIMARY KEY (l, k)", ("l", "k")),
    "big": ("k bigint PRIMARY KEY", "", ("k",)),
}
PARTS = {
    "whole": ("", ""),
    "parts": (
        " PARTITION BY RANGE (k)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (3);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (3) TO (MAXVALUE) PARTITION BY LIST (k);"
        "CREATE TABLE t3 PARTITION OF t2 FOR VALUES IN (3); CREATE TABLE t4 PARTITION OF t2 DEFAULT;",
    ),
}
TRIGGERS = {
    "others": ("AFTER INSERT OR UPDATE", "UPDATE t SET v = v || '!' WHERE u = 2 AND v NOT LIKE '%!!'"),
    "same": ("AFTER UPDATE", "UPDATE t SET u = 4 WHERE k = NEW.k AND u = 3"),
    "one default": ("BEFORE INSERT", "UPDATE t SET u = 1 WHERE u = 3"),
    "undelete": ("AFTER DELETE", "INSERT INTO t SELECT OLD.k, OLD.l, 1, 'back' WHERE OLD.u = 4 ON CONFLICT DO NOTHING"),
    "delete": ("AFTER INSERT", "DELETE FROM t WHERE v = 'c' AND k <> NEW.k"),
    "replace": ("AFTER INSERT", "DELETE FROM t WHERE v = 'b'"),
}


def named(trigger: str) -> str:
    return f"app_{trigger.replace(' ', '_')}"


@st.composite
def schemas(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    column, constraint, key = KEYS[draw(st.sampled_from(sorted(KEYS)))]
    by, partitions = PARTS[draw(st.sampled_from(sorted(PARTS)))] if not constraint else PARTS["whole"]
    parent = ""
    if key == ("k",) and not constraint and not by and draw(st.booleans()):
        parent = ", FOREIGN KEY (u) REFERENCES t(k) ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED"
    script = f"CREATE TABLE t ({column}, l int NOT NULL DEFAULT 1, u int, v text{constraint}{parent}){by};{partitions}"
    for name in sorted(draw(st.sets(st.sampled_from(sorted(TRIGGERS)), max_size=2))):
        when, body = TRIGGERS[name]
        function = named(name)
        script += (
            f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF pg_trigger_depth() < 4 THEN {body}; END IF;"
            f" IF TG_WHEN = 'BEFORE' THEN RETURN NEW; END IF; RETURN NULL; END $$;"
            f"CREATE TRIGGER {function} {when} ON t FOR EACH ROW EXECUTE FUNCTION {function}();"
        )
    return script, key


small = st.integers(1, 5)
texts = st.sampled_from(["'a'", "'b'", "'c'", "NULL"])


@st.composite
def statements(draw: st.DrawFn) -> str:
    kind = draw(
        st.sampled_from(["insert", "insert", "insert", "many", "update", "key", "shift", "swap", "delete", "truncate"])
    )
    k, m, u = draw(small), draw(small), draw(small)
    v = draw(texts)
    conflict = draw(st.sampled_from(["", "ON CONFLICT DO NOTHING", "ON CONFLICT DO NOTHING"]))
    return {
        "insert": f"INSERT INTO t VALUES ({k}, 1, {u}, {v}), ({m}, 2, NULL, 'x') {conflict}",
        "many": f"INSERT INTO t SELECT g, {draw(st.integers(1, 2))}, 3, {v} FROM generate_series(1, {k}) g {conflict}",
        "update": f"UPDATE t SET u = {u}, v = {v} WHERE k >= {k}",
        "key": f"UPDATE t SET k = {k} WHERE k = {m}",
        "shift": f"UPDATE t SET k = k + 1, v = {v}",
        "swap": f"UPDATE t SET k = CASE k WHEN {k} THEN {m} ELSE {k} END WHERE k IN ({k}, {m})",
        "delete": f"DELETE FROM t WHERE k <= {k}",
        "truncate": "TRUNCATE t",
    }[kind]


controls = st.sampled_from(
    ["BEGIN", "BEGIN", "COMMIT", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s", "RELEASE s",
     "PREPARE TRANSACTION 'p'", "COMMIT PREPARED 'p'", "ROLLBACK PREPARED 'p'"]
)  # fmt: skip
sessions = st.sampled_from([0, 0, 1])
steps = st.one_of(
    st.tuples(sessions, statements()),
    st.tuples(sessions, statements()),
    st.tuples(sessions, controls),
    st.sampled_from([(0, "read"), (0, "read"), (0, "crash")]),
)


class TwoSessions(PgWorld):
    def __init__(self, url: str, script: str) -> None:
        super().__init__(url)
        self.other = connect(url, application="application")
        for connection in (self.connection, self.other):
            execute(connection, "SET lock_timeout = '5ms'")
            execute(connection, "SET deadlock_timeout = '5ms'")
        uninstall(url, PIPELINE)
        for name in TRIGGERS:
            self.execute(f"DROP FUNCTION IF EXISTS {named(name)} CASCADE")
        self.execute("DROP TABLE IF EXISTS t CASCADE")
        self.execute(script)

    def settle(self) -> None:
        for sql in ("ROLLBACK", "COMMIT PREPARED 'p'"):
            attempt(self, 0, sql)
            attempt(self, 1, sql)

    def close(self) -> None:
        self.settle()
        self.other.close()
        super().close()


def attempt(world: TwoSessions, session: int, sql: str) -> None:
    connection = (world.connection, world.other)[session]
    with contextlib.suppress(HeadwaterError):  # refused by a constraint, a lock, or no transaction is open
        execute(connection, sql)


@pytest.mark.needs("postgres")
@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(schemas(), st.lists(statements(), max_size=4), st.lists(steps, min_size=5, max_size=20))
def test_f70_replayed_changes_are_the_table(
    database: str, schema: tuple[str, tuple[str, ...]], before: list[str], then: list[tuple[int, str]]
) -> None:
    script, key = schema
    world = TwoSessions(database, script)
    try:
        world.capture(capture("t", COLUMNS, key))
        for sql in before:
            attempt(world, 0, sql)
        world.catch_up()
        world.check()
        for session, sql in then:
            if sql in ("read", "crash"):
                world.catch_up(stop_after=1 if sql == "crash" else None)
            else:
                attempt(world, session, sql)
        world.settle()
        world.catch_up()
        world.check()
        assert world.notes == [note for note in world.notes if note.kind == "loaded"]
    finally:
        world.close()
