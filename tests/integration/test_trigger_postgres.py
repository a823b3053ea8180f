"""The traps of trigger capture on PostgreSQL, each with a real server and real sessions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest

from headwater.drivers.postgres import connect, execute
from headwater.errors import Busy, NotConnected, SourceError
from headwater.model import Order
from headwater.protocols import Load
from headwater.sources.trigger_postgres import installed, uninstall
from headwater.testing.postgres import PostgresServer
from tests.trigger_postgres_world import PgWorld, capture
from tests.trigger_world import PIPELINE, Following, Row

pytestmark = pytest.mark.needs("postgres")
T = capture("t", ("id", "v"), ("id",))
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"


@pytest.fixture
def world(database: str) -> Iterator[PgWorld]:
    with closing(PgWorld(database, TABLE)) as world:
        yield world


@pytest.fixture
def other(database: str) -> Iterator[Any]:
    with closing(connect(database, application="application")) as connection:
        yield lambda sql: execute(connection, sql)


def started(world: PgWorld, *captures: Any) -> PgWorld:
    world.capture(*(captures or (T,)))
    world.catch_up()
    for one in world.captures:
        world.history(one.stream)
    return world


def row(number: int, v: str | None) -> Row:
    return {"id": number, "v": v}


def caught(world: PgWorld) -> list[Any]:
    world.catch_up()
    world.check()
    return world.history("s.t")


# order and completeness


def test_f60_a_transaction_that_commits_late_with_lower_numbers_is_seen(world: PgWorld, other: Any) -> None:
    started(world)
    other("BEGIN")
    other("INSERT INTO t VALUES (1, 'late')")
    world.execute("INSERT INTO t VALUES (2, 'early')")
    assert caught(world) == [("c", None, row(2, "early"))]
    world.execute("INSERT INTO t VALUES (3, 'early')")
    other("COMMIT")
    assert caught(world) == [("c", None, row(1, "late")), ("c", None, row(3, "early"))]


def test_f62_what_waited_for_a_row_comes_after_what_it_waited_for(world: PgWorld, other: Any) -> None:
    """The second to commit has the lower transaction id: the order of ids is not the order of the row's changes."""
    started(world).execute("INSERT INTO t VALUES (1, 'first')")
    other("BEGIN")
    other("INSERT INTO t VALUES (2, 'takes an id')")
    world.execute("UPDATE t SET v = 'second' WHERE id = 1")
    other("UPDATE t SET v = 'third' WHERE id = 1")
    other("COMMIT")
    history = caught(world)
    assert [after for _, _, after in history if after and after["id"] == 1] == [
        row(1, "first"),
        row(1, "second"),
        row(1, "third"),
    ]
    xids = [t for b in world.batches[-1:] for c in b.changes for t in c.data.column("_transaction").to_pylist()]
    assert xids == [x for x, _ in itertools.groupby(xids) for _ in range(xids.count(x))], "transactions are whole"


def test_prepared_transactions_and_savepoints(world: PgWorld) -> None:
    started(world)
    world.execute("BEGIN")
    world.execute("INSERT INTO t VALUES (1, 'kept')")
    world.execute("SAVEPOINT s")
    world.execute("INSERT INTO t VALUES (2, 'gone')")
    world.execute("ROLLBACK TO s")
    world.execute("PREPARE TRANSACTION 'p'")
    world.catch_up()
    assert world.history("s.t") == []
    world.execute("COMMIT PREPARED 'p'")
    assert caught(world) == [("c", None, row(1, "kept"))]


def test_a_large_transaction_comes_in_pages(world: PgWorld) -> None:
    started(world)
    world.execute("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 7000) g")
    for _ in range(9):
        world.catch_up(stop_after=2)  # dies at each page
    world.catch_up()
    world.check()
    assert len(world.replicas["s.t"].rows) == 7000


# other triggers, cascades, keys


def test_f70_rows_that_other_triggers_change_again(world: PgWorld) -> None:
    world.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN UPDATE t SET v = v || '!' WHERE v NOT LIKE '%!'; RETURN NULL; END $$;"
        "CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    started(world).execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    assert [after for _, _, after in caught(world) if after and after["id"] == 2][-1] == row(2, "b!")


def test_f70_a_swap_of_keys_and_a_key_that_comes_back(world: PgWorld) -> None:
    world.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    started(world).execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    world.execute("UPDATE t SET id = 3 - id")
    caught(world)
    world.execute("UPDATE t SET id = id + 1")
    caught(world)
    assert world.replicas["s.t"].rows == {(2,): row(2, "b"), (3,): row(3, "a")}


def test_truncate_is_told(world: PgWorld) -> None:
    started(world).execute("INSERT INTO t VALUES (1, 'a')")
    world.execute("BEGIN; INSERT INTO t VALUES (2, 'b'); TRUNCATE t; INSERT INTO t VALUES (3, 'c'); COMMIT")
    assert [letter for letter, _, _ in caught(world)] == ["c", "c", "t", "c"]


# values


def test_f24_settings_of_the_application_do_not_change_a_value(database: str) -> None:
    columns = {
        "at": ("timestamptz", "2024-02-03 04:05:06.789+03"), "day": ("date", "2024-02-03"), "x": ("float8", "0.1"),
        "span": ("interval", "1 year 2 days 03:04:05"), "raw": ("bytea", r"\x00ff"), "n": ("numeric", "1.2300"),
        "p": ("numeric(10,2)", "12.30"), "j": ("jsonb", '{"a": [1, null]}'), "l": ("int[]", "{1,NULL,3}"),
        "ok": ("bool", "t"), "u": ("uuid", "00000000-0000-0000-0000-000000000001"), "ip": ("inet", "10.0.0.1/32"),
        "c": ("char(3)", "a"), "bad": ("date", "infinity"), "e": ("mood", "so so"), "d": ("amount", "5.00"),
    }  # fmt: skip
    types = "CREATE TYPE mood AS ENUM ('so so'); CREATE DOMAIN amount AS numeric(10,2); "
    table = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    values = ", ".join(f"'{value}'" for _, value in columns.values())
    with closing(PgWorld(database, f"{types}CREATE TABLE t (id int PRIMARY KEY, {table})")) as world:
        world.capture(capture("t", ("id", *columns), ("id",)))
        world.execute(f"INSERT INTO t VALUES (1, {values})")
        world.catch_up()
        world.execute("SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; SET timezone = 'Asia/Tokyo'")
        world.execute("SET extra_float_digits = -9; SET bytea_output = 'escape'; SET search_path = pg_temp")
        world.execute("INSERT INTO public.t SELECT 2, " + ", ".join(columns) + " FROM public.t")
        world.catch_up()
        rows = world.replicas["s.t"].rows
        assert {**rows[2,], "id": 1} == rows[1,]
        assert (rows[2,]["p"], rows[2,]["n"], rows[2,]["l"]) == (Decimal("12.30"), "1.2300", [1, None, 3])
        assert [[m["column"] for m in marks] for marks in world.replicas["s.t"].invalid] == [["bad"], ["bad"]]


def test_f33_names_with_quotes_and_dots(database: str) -> None:
    schema, table, key, column = "a.b", 'we"ird.t', "the 'key\"", "c\\d%s.e"
    name = f'"{schema}"."{table.replace(chr(34), chr(34) * 2)}"'
    quoted_key = '"' + key.replace('"', '""') + '"'
    script = f'CREATE SCHEMA "{schema}"; CREATE TABLE {name} ({quoted_key} int PRIMARY KEY, "{column}" text)'
    with closing(PgWorld(database, script)) as world:
        world.capture(capture(table, (key, column), (key,), stream="s.t", schema=schema))
        world.execute(f"INSERT INTO {name} VALUES (1, 'it''s \"x\"\\')")
        world.catch_up()
        world.execute(f"UPDATE {name} SET {quoted_key} = 2; INSERT INTO {name} VALUES (3, NULL)")
        world.catch_up()
        assert world.replicas["s.t"].rows == world.rows(table, (key, column), (key,), schema)
        assert len(world.replicas["s.t"].rows) == 2


# what becomes of the triggers


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE t DISABLE TRIGGER USER",
        'DROP TRIGGER "!headwater_test_1_1_r" ON t',
        "DROP FUNCTION headwater.headwater_test_1_1 CASCADE",
        "CREATE OR REPLACE FUNCTION headwater.headwater_test_1_1() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN NULL; END'",
    ],
)
def test_f70_what_lost_triggers_missed_is_compared(world: PgWorld, damage: str) -> None:
    started(world).execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    caught(world)
    world.execute(damage)
    assert installed(world.url, PIPELINE).problems
    world.execute("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'unseen'; INSERT INTO t VALUES (3, 'c')")
    assert sorted(letter for letter, _, _ in caught(world)) == ["c", "d", "u"]
    assert [note.kind for note in world.notes[-2:]] == ["gap", "loaded"]
    assert not installed(world.url, PIPELINE).problems


def test_f70_alterations_never_make_the_application_fail(world: PgWorld) -> None:
    started(world, dataclasses.replace(T, columns=("id", "v"))).execute("INSERT INTO t VALUES (1, 'a')")
    caught(world)
    world.execute("ALTER TABLE t RENAME COLUMN v TO w; INSERT INTO t VALUES (2, 'b')")
    world.execute("UPDATE t SET w = 'c'; DELETE FROM t WHERE id = 1; ALTER TABLE t RENAME COLUMN w TO v")
    world.execute("INSERT INTO t VALUES (4, 'after')")
    caught(world)
    assert any(note.kind == "gap" for note in world.notes)
    world.execute("ALTER TABLE t ALTER COLUMN v TYPE varchar(9); UPDATE t SET v = 'retyped' WHERE id = 2")
    caught(world)
    world.execute("ALTER TABLE t ADD COLUMN z int DEFAULT 7")
    world.capture(capture("t", ("id", "v", "z"), ("id",)))
    world.execute("UPDATE t SET v = 'old' WHERE id = 4")
    world.catch_up()
    assert world.replicas["s.t"].rows[4,] == {"id": 4, "v": "old", "z": 7}


def test_a_column_that_is_gone_breaks_its_stream_alone(world: PgWorld) -> None:
    world.execute("CREATE TABLE u (id int PRIMARY KEY, v text)")
    started(world, T, capture("u", ("id", "v"), ("id",)))
    world.execute("ALTER TABLE t DROP COLUMN v; INSERT INTO t VALUES (1); INSERT INTO u VALUES (1, 'a')")
    with pytest.raises(SourceError, match=r"table public\.t has no column v"):
        world.catch_up()
    assert world.replicas["s.u"].rows == {(1,): row(1, "a")}


def test_f33_partitions_attached_detached_truncated(database: str) -> None:
    script = (
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20);"
        "INSERT INTO t VALUES (1, 'a'), (11, 'b')"
    )
    with closing(PgWorld(database, script)) as world:
        world.capture(T)
        world.catch_up()
        world.check()
        world.history("s.t")
        world.execute("UPDATE t SET id = id + 10 WHERE id = 1 AND false; UPDATE t SET id = 12 WHERE id = 1")
        caught(world)
        assert not [note for note in world.notes if note.kind == "gap"]
        world.execute("CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30)")
        world.execute("INSERT INTO t VALUES (21, 'new')")
        assert caught(world) == [("c", None, row(21, "new"))]
        assert not [note for note in world.notes if note.kind == "gap"]
        world.execute("CREATE TABLE t4 (id int PRIMARY KEY, v text); INSERT INTO t4 VALUES (31, 'brought')")
        world.execute("ALTER TABLE t ATTACH PARTITION t4 FOR VALUES FROM (30) TO (40)")
        caught(world)
        world.execute("TRUNCATE t3")
        caught(world)
        world.execute("ALTER TABLE t DETACH PARTITION t2")
        caught(world)
        assert set(world.replicas["s.t"].rows) == {(31,)}


# loads


def test_rows_that_changed_during_a_load_come_once(world: PgWorld) -> None:
    world.execute("INSERT INTO t SELECT g, repeat('x', 2000) FROM generate_series(1, 3000) g")
    world.capture(T)
    world.catch_up(stop_after=3)
    world.execute(
        "BEGIN; UPDATE t SET v = 'live' WHERE id IN (5, 2900); SAVEPOINT s; UPDATE t SET v = 'sub' WHERE id = 2901;"
        "DELETE FROM t WHERE id IN (6, 2902); INSERT INTO t VALUES (9000, 'new'); COMMIT"
    )
    world.execute("VACUUM t")
    for _ in range(20):
        world.catch_up(stop_after=2)
    world.catch_up()
    world.check()


def test_a_table_that_is_rewritten_during_its_load_loses_nothing(world: PgWorld) -> None:
    world.execute("INSERT INTO t SELECT g, repeat('x', 2000) FROM generate_series(1, 3000) g")
    world.capture(T)
    world.catch_up(stop_after=3)
    replica = world.replicas["s.t"]
    assert 0 < len(replica.rows) < 3000
    replica.rows.clear()  # rows are read twice, and the note says so
    replica.orders.clear()
    world.execute("DELETE FROM t WHERE id < 1000; UPDATE t SET v = 'live' WHERE id = 2000")
    world.execute("VACUUM FULL t")
    world.catch_up(stop_after=2)
    world.history("s.t")
    replica.rows.pop((2000,), None)
    world.catch_up()
    world.check()
    assert any("rewritten" in note.text for note in world.notes)


def test_a_table_without_a_key_is_loaded_and_followed(database: str) -> None:
    with closing(PgWorld(database, "CREATE TABLE e (v text); INSERT INTO e VALUES ('a'), ('a')")) as world:
        world.capture(capture("e", ("v",), ()))
        world.catch_up()
        world.execute("INSERT INTO e VALUES ('b')")
        world.catch_up()
        history = [(letter, after) for letter, _, after in world.history("s.e")]
        assert history == [("r", {"v": "a"}), ("r", {"v": "a"}), ("c", {"v": "b"})]


def test_a_backfill_of_chosen_rows(world: PgWorld) -> None:
    world.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    world.capture(capture("t", ("id", "v"), ("id",), load=Load("some", where="id > 1")))
    world.catch_up()
    assert set(world.replicas["s.t"].rows) == {(2,)}


# places


def test_a_state_lies_exactly_between_two_changes(world: PgWorld) -> None:
    started(world).execute("INSERT INTO t VALUES (1, 'before')")
    source = world.source()
    with closing(source):
        reading = source.read(world.position, follow=True)
        world.append(next(reading))
        state = source.state("s.t")
        assert state.order is not None
        world.execute("INSERT INTO t VALUES (2, 'after')")
        rows = [r["after"] for changes in state.changes for r in changes.data.to_pylist()]
        assert rows == [row(1, "before")]
        while world.position is None or world.position.commit < state.order.commit:
            world.append(next(reading))
        assert world.replicas["s.t"].rows == {(1,): row(1, "before")}
        while (2,) not in world.replicas["s.t"].rows:
            world.append(next(reading))
        assert world.replicas["s.t"].orders[2,] > state.order > world.replicas["s.t"].orders[1,]
        source.stop()


def test_a_state_beside_no_reader_is_where_the_reader_ended(world: PgWorld) -> None:
    started(world).execute("INSERT INTO t VALUES (1, 'a')")
    caught(world)
    with closing(world.source()) as source:
        state = source.state("s.t")
        assert world.position is not None
        assert state.order is not None
        assert state.order.commit == world.position.commit
        world.execute("INSERT INTO t VALUES (2, 'b')")
        again = source.state("s.t")
        assert again.order is not None
        assert again.order > Order(again.order.epoch, world.position.commit, 2**32)


def test_f03_another_database_is_compared_in_a_higher_epoch(world: PgWorld, postgres_server: PostgresServer) -> None:
    started(world).execute("INSERT INTO t VALUES (1, 'a')")
    caught(world)
    name = world.url.rsplit("/", 1)[1]
    world.close()
    postgres_server.execute(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"')
    copy = PgWorld(postgres_server.url_of(f"{name}_copy"))
    try:
        copy.captures, copy.replicas, copy.position = world.captures, world.replicas, world.position
        copy.execute("UPDATE t SET v = 'elsewhere'")
        copy.catch_up()
        copy.check()
        assert copy.position is not None
        assert copy.position.epoch == 2
        assert [note.kind for note in copy.notes] == ["gap", "loaded"]
    finally:
        copy.close()
        postgres_server.drop_database(f"{name}_copy")


# neighbours


def test_f84_two_pipelines_and_destroy(world: PgWorld) -> None:
    world.capture(T)
    for pipeline in ("a", "a-1"):
        with closing(world.source(pipeline)) as source:
            assert list(source.read(None, follow=False))
    removed = uninstall(world.url, "a")
    assert all("_a_" in thing and "a_1_" not in thing.replace("_a_1_r", "").replace("_a_1_t", "") for thing in removed)
    assert installed(world.url, "a-1").triggers
    assert not installed(world.url, "a").triggers
    world.execute("INSERT INTO t VALUES (1, 'a')")
    assert "schema headwater" in uninstall(world.url, "a-1")
    world.execute("INSERT INTO t VALUES (2, 'a')")
    assert uninstall(world.url, "a") == []


def test_the_application_needs_no_privilege(world: PgWorld) -> None:
    started(world).execute(
        "CREATE ROLE app_without_rights; GRANT INSERT, SELECT, UPDATE, DELETE, TRUNCATE ON t TO app_without_rights"
    )
    try:
        world.execute("SET ROLE app_without_rights; INSERT INTO t VALUES (1, 'a')")
        world.execute("DELETE FROM t; TRUNCATE t; RESET ROLE; SET session_replication_role = replica")
        world.execute("INSERT INTO t VALUES (2, 'as a replica'); RESET session_replication_role")
        assert [letter for letter, _, _ in caught(world)] == ["c", "d", "t", "c"]
    finally:
        world.execute("RESET ROLE; DROP OWNED BY app_without_rights; DROP ROLE app_without_rights")


def test_f64_pruning_waits_for_nobody_and_keeps_what_is_needed(world: PgWorld, other: Any) -> None:
    started(world).execute("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 5000) g")
    other("BEGIN")
    other("INSERT INTO t VALUES (0, 'open')")
    other("LOCK TABLE t")
    world.catch_up()
    change = "SELECT count(*) FROM headwater.headwater_test_1_change"
    assert world.execute(change) == [(1,)], "the anchor stays"
    other("COMMIT")
    assert world.execute(change) == [(2,)]
    assert caught(world)[-1] == ("c", None, row(0, "open"))


def test_triggers_are_not_made_against_a_writer(world: PgWorld, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.sources.trigger_postgres.session.PATIENCE", 0.0)
    other("BEGIN")
    other("INSERT INTO t VALUES (1, 'open')")
    world.capture(T)
    with pytest.raises(Busy, match="lock timeout"):
        world.catch_up()
    other("COMMIT")
    world.catch_up()
    world.check()


@pytest.mark.parametrize("kind", ["VIEW w AS SELECT * FROM t", "UNLOGGED TABLE w (id int PRIMARY KEY, v text)"])
def test_what_cannot_have_triggers_is_refused(world: PgWorld, kind: str) -> None:
    world.execute(f"CREATE {kind}")
    world.capture(capture("w", ("id", "v"), ("id",)))
    with pytest.raises(SourceError, match=r"public\.w|table w is"):
        world.catch_up()
    assert installed(world.url, PIPELINE).incarnation is None


def test_a_server_that_restarts(tmp_path_factory: pytest.TempPathFactory) -> None:
    with PostgresServer(tmp_path_factory.mktemp("own") / "data") as server:
        world = PgWorld(server.create_database("app"), TABLE)
        started(world).execute("INSERT INTO t VALUES (1, 'a')")
        world.close()
        source = world.source()
        with closing(source):
            reading = source.read(world.position, follow=True)
            world.append(next(reading))
            server.restart("immediate")
            with pytest.raises(NotConnected):
                list(reading)
        again = PgWorld(world.url)
        again.captures, again.replicas, again.position = world.captures, world.replicas, world.position
        again.execute("INSERT INTO t VALUES (2, 'b')")
        again.catch_up()
        again.check()
        again.close()


def test_f82_the_last_change_is_seen_without_another(world: PgWorld) -> None:
    started(world)
    with Following(world) as following:
        for number in range(5):
            world.execute(f"INSERT INTO t VALUES ({number}, 'x')")
            following.until(lambda number=number: (number,) in world.replicas["s.t"].rows)  # type: ignore[misc]


@pytest.mark.parametrize("emptied", ["DELETE FROM", "TRUNCATE"])
def test_f3_a_change_table_of_postgres_emptied_by_somebody_else(world: PgWorld, emptied: str) -> None:
    started(world).execute(
        f"INSERT INTO t VALUES (1, 'a'); {emptied} headwater.headwater_test_1_change; INSERT INTO t VALUES (2, 'b')"
    )
    (problem,) = installed(world.url, PIPELINE).problems
    assert "emptied by somebody else" in problem
    world.catch_up()
    world.check()
    assert [note.kind for note in world.notes if note.kind == "gap"] == ["gap"]
    world.execute("INSERT INTO t VALUES (3, 'c')")
    assert caught(world)[-1] == ("c", None, row(3, "c"))
    assert [note.kind for note in world.notes if note.kind == "gap"] == ["gap"], "once"


def test_f24_triggers_print_under_settings_of_their_own(world: PgWorld) -> None:
    """Of `lc_monetary`, the one of the role that reads the rows: this machine may have no other to compare with."""
    started(world)
    ((settings,),) = world.execute("SELECT proconfig FROM pg_proc WHERE proname LIKE 'headwater%'")
    ((monetary,),) = world.execute("SHOW lc_monetary")
    assert f"lc_monetary={monetary}" in settings


def test_a_look_in_vain_before_the_end_is_not_behind(world: PgWorld) -> None:
    """Transactions that do not concern us give it another snapshot than the last batch had."""
    started(world).execute("INSERT INTO t VALUES (1, 'x')")
    world.catch_up()
    world.execute("SELECT pg_current_xact_id()")
    world.catch_up()
    state = world.source().state("s.t")
    assert len(list(state.changes)) == 1
    assert state.order is not None
    assert world.position is not None
    assert state.order.commit <= world.position.commit
