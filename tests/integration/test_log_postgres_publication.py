"""The publication: made, checked, brought to what the configuration says, and never at the application's expense."""

from __future__ import annotations

import dataclasses

import pytest

from headwater.config import SourceConfig, StreamConfig
from headwater.drivers.postgres import connect, execute
from headwater.errors import ConfigError, GapError, SourceError
from headwater.model import TableId
from headwater.protocols import Capture, Load
from headwater.sources.log_postgres import begin, guarantee, open_source
from headwater.sources.log_postgres.position import NOT_YET
from headwater.sources.log_postgres.publication import remove
from tests.log_world import NAMES, World, captured, letters

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)


def _published(world: World, name: str = NAMES.publication) -> list[str]:
    rows = world.sql(f"SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = '{name}'")
    return sorted(table for (table,) in rows)


def _world(database: str, table: str, *statements: str, columns: str = "id name", key: str = "id") -> World:
    world = World(database, captured(table, columns, key, load=SKIP))
    world.sql(*statements)
    return world


def test_what_is_made(database: str) -> None:
    world = _world(database, "t", "CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    rows = world.sql(
        "SELECT pubname::text, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot"
        " FROM pg_publication"
    )
    assert rows == [(NAMES.publication, False, True, True, True, True, True)]
    assert _published(world) == ["public.t"]
    with connect(database, application="test") as connection:
        assert remove(connection, NAMES) == [f"publication {NAMES.publication}"]
        assert remove(connection, NAMES) == []


NAMELESS = "were its updates and deletes published, they would fail in the application"


@pytest.mark.parametrize(
    ("statements", "words", "sql"),
    [
        (["CREATE TABLE t (id int, name text)"], f"has no primary key: {NAMELESS}", "ADD PRIMARY KEY"),
        (
            ["CREATE TABLE t (id int PRIMARY KEY, name text)", "ALTER TABLE t REPLICA IDENTITY NOTHING"],
            f"has REPLICA IDENTITY NOTHING: {NAMELESS}",
            "REPLICA IDENTITY FULL",
        ),
        (
            ["CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, name text)"],
            f"has no primary key: {NAMELESS}",
            "REPLICA IDENTITY FULL",
        ),
        (
            [
                "CREATE TABLE t (id int, name text, UNIQUE (id)) PARTITION BY LIST (id)",
                "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
            ],
            f"table t1 has no primary key: {NAMELESS}",
            "ALTER TABLE t1",
        ),
        (
            [
                "CREATE TABLE t (id int PRIMARY KEY, name text) PARTITION BY LIST (id)",
                "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
                "ALTER TABLE t REPLICA IDENTITY FULL",
            ],
            "its partition t1 has not",
            "ALTER TABLE t1 REPLICA IDENTITY FULL;",
        ),
        (
            [
                "CREATE TABLE t (id int, name text) PARTITION BY LIST (name)",
                "CREATE TABLE t1 PARTITION OF t (PRIMARY KEY (id)) FOR VALUES IN ('a')",
            ],
            "a partition that is made later would have none",
            "pattern: trigger",
        ),
        (
            [
                "CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL UNIQUE)",
                "ALTER TABLE t REPLICA IDENTITY USING INDEX t_name_key",
            ],
            "does not say `id` of a row that was deleted, which stream s.t needs",
            "REPLICA IDENTITY FULL",
        ),
        (["CREATE UNLOGGED TABLE t (id int PRIMARY KEY, name text)"], "is unlogged", "SET LOGGED"),
        (["CREATE VIEW t AS SELECT 1 AS id, 'a'::text AS name"], "is a view", "pattern: query"),
        (["CREATE TABLE other (id int)"], "there is no table public.t", ""),
        (["CREATE TABLE t (id int PRIMARY KEY)"], "has no column `name`", ""),
        (
            ["CREATE TABLE t (id int PRIMARY KEY, name text GENERATED ALWAYS AS ('x') STORED)"],
            "column `name` of public.t is generated",
            "pattern: query",
        ),
    ],
)
def test_f85_what_would_harm_or_cannot_be_told_is_refused_before_any_ddl(
    database: str, statements: list[str], words: str, sql: str
) -> None:
    world = _world(database, "t", *statements)
    with pytest.raises(SourceError, match="stream s.t: ") as caught:
        world.catch_up()
    assert words in caught.value.message
    assert sql in caught.value.hint
    assert world.sql("SELECT count(*) FROM pg_publication") == [(0,)]
    assert world.slot() is None


def test_f85_one_stream_is_broken_and_the_others_go_on(database: str) -> None:
    world = World(database, captured("t", "id", load=SKIP), captured("bad", "id", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE bad (id int)")
    with world.following() as following:
        following.next()
        assert list(following.source.broken) == ["s.bad"]
        world.sql("UPDATE bad SET id = 1", "DELETE FROM bad", "INSERT INTO t VALUES (1)")
        assert letters(following.until(lambda rows: bool(rows))) == [("c", {"id": 1})]
    with pytest.raises(SourceError, match="stream s.bad"):  # at the end of a run it is said
        world.catch_up()


def test_f85_a_table_that_lost_its_key_is_taken_out_of_the_publication(database: str) -> None:
    world = World(database, captured("t", "id", load=SKIP), captured("u", "id", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE u (id int PRIMARY KEY)")
    world.catch_up()
    world.sql("INSERT INTO t VALUES (1)", "ALTER TABLE t DROP CONSTRAINT t_pkey")
    with pytest.raises(SourceError, match="s.t"):
        world.catch_up()
    world.sql("UPDATE t SET id = 2")
    assert _published(world) == ["public.u"]


def test_tables_without_identity_give_their_inserts_as_events(database: str) -> None:
    log = Capture(
        "s.log",
        TableId("public", "log"),
        ("id", "name"),
        (),
        StreamConfig(source="db", table="log", pattern="log"),
        SKIP,
        "event",
    )
    world = World(database, captured("t", "id", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE log (id int, name text)")
    world.catch_up()
    world.sql("INSERT INTO t VALUES (1)")  # before there is the second publication
    world.captures = (*world.captures, log)
    assert len(world.catch_up(batches=1)) == 0
    assert [letters(world.catch_up())] == [[("c", {"id": 1})]]
    assert _published(world, NAMES.inserts) == ["public.log"]
    world.sql("INSERT INTO log VALUES (1, 'a')", "UPDATE log SET id = 2", "DELETE FROM log", "INSERT INTO t VALUES (2)")
    assert sorted(map(str, letters(world.catch_up()))) == [
        "('c', {'id': 1, 'name': 'a'})",
        "('c', {'id': 2})",
    ]


def test_a_table_added_and_taken_away_changes_the_list_alone(database: str) -> None:
    t, u = captured("t", "id", load=SKIP), captured("u", "id", load=SKIP)
    world = World(database, t)
    world.sql("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE u (id int PRIMARY KEY)")
    for captures, tables in (((t,), ["public.t"]), ((t, u), ["public.t", "public.u"]), ((u,), ["public.u"])):
        world.captures = captures
        world.catch_up()
        assert _published(world) == tables


@pytest.mark.parametrize("narrowed", ["(id)", "(id, name) WHERE (id > 0)"])
def test_f85_a_publication_that_somebody_narrowed_is_an_error_that_says_so(database: str, narrowed: str) -> None:
    world = _world(database, "t", "CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    world.sql(f"ALTER PUBLICATION {NAMES.publication} SET TABLE t {narrowed}")
    with pytest.raises(SourceError, match=f"publication {NAMES.publication} was altered: it shows some") as caught:
        world.catch_up()
    world.sql(caught.value.hint.partition(";")[0])
    world.catch_up()
    world.sql("INSERT INTO t VALUES (1, 'a')")
    assert letters(world.catch_up()) == [("c", {"id": 1, "name": "a"})]


def test_options_that_somebody_altered_are_put_right(database: str) -> None:
    world = _world(database, "t", "CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    world.sql(f"ALTER PUBLICATION {NAMES.publication} SET (publish = 'insert', publish_via_partition_root = false)")
    world.catch_up()
    world.sql("INSERT INTO t VALUES (1, 'a')", "DELETE FROM t")
    assert [letter for letter, _ in letters(world.catch_up())] == ["c", "d"]


def test_f03_a_publication_that_was_dropped_is_a_gap(database: str) -> None:
    world = _world(database, "t", "CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    world.sql(f"DROP PUBLICATION {NAMES.publication}", "INSERT INTO t VALUES (1, 'a')")
    with pytest.raises(GapError, match=f"publication {NAMES.publication} is gone"):
        world.catch_up()
    world.sql(f"CREATE PUBLICATION {NAMES.publication} FOR TABLE t WITH (publish_via_partition_root = true)")
    with pytest.raises(GapError, match=f"a publication of {NAMES.publication} was not there"):
        world.catch_up()


def test_f03_a_publication_that_is_dropped_while_it_is_read_is_a_gap(database: str) -> None:
    """PostgreSQL 18 goes on without it, and only warns."""
    world = _world(database, "t", "CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    with world.following() as following:
        world.sql("INSERT INTO t VALUES (1, 'a')")
        assert len(following.until(lambda rows: len(rows) == 1)) == 1
        world.sql(f"DROP PUBLICATION {NAMES.publication}", "INSERT INTO t VALUES (2, 'b')")
        world.sql(f"CREATE PUBLICATION {NAMES.publication} FOR TABLE t WITH (publish_via_partition_root = true)")
        with pytest.raises(GapError, match=f"a publication of {NAMES.publication} was not there"):
            following.until(lambda rows: False)
    with pytest.raises(GapError, match=f"a publication of {NAMES.publication} was not there"):
        world.catch_up()


def test_a_role_without_ddl_privileges_runs_what_an_owner_made(database: str) -> None:
    world = _world(database, "t", "CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.sql(
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN REPLICATION",
        "GRANT SELECT ON t TO reader",
    )
    try:
        world.url = database.replace("postgres@", "reader@")
        with pytest.raises(SourceError, match="lacks table public.t, and this role may not add it") as caught:
            world.catch_up()
        assert "headwater grants" in caught.value.hint
        owner = World(database)
        owner.sql(
            f"CREATE PUBLICATION {NAMES.publication} FOR TABLE ONLY t"
            " WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
        )
        world.catch_up()
        owner.sql("INSERT INTO t VALUES (1, 'a')")
        assert letters(world.catch_up()) == [("c", {"id": 1, "name": "a"})]
    finally:
        World(database).sql("REVOKE ALL ON t FROM reader", "DROP ROLE reader")


def test_a_partition_beside_its_root_is_refused(database: str) -> None:
    world = World(database, captured("p", "id", load=SKIP), captured("p1", "id", load=SKIP))
    world.sql(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id)", "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)"
    )
    with world.following() as following:
        following.next()
        assert "is a partition of public.p" in following.source.broken["s.p1"].message


def test_an_option_that_is_not_known_is_named_with_the_nearest() -> None:
    config = SourceConfig.model_validate({"url": "postgresql://x", "options": {"heartbeats": "10s"}})
    with pytest.raises(ConfigError, match="heartbeat"):
        open_source(name="db/log", pipeline="p", config=config, captures=(), epoch=1, config_dir=".")


def test_the_guarantee_says_what_is_not_seen() -> None:
    stream = StreamConfig(source="db", table="t", pattern="log")
    keyed, keyless = guarantee(stream, keyed=True, key=("id",)), guarantee(stream, keyed=False)
    assert (keyed.delivery, keyed.changes, keyed.deletes) == ("exactly_once", "every", "seen")
    assert set(keyless.notes) - set(keyed.notes)
    assert all(note.endswith(".") for note in keyless.notes)


def test_f84_names_are_not_confused() -> None:
    made = {
        dataclasses.replace(NAMES, pipeline=pipeline, source=source).slot
        for pipeline in ("a", "a-b", "a-b-", "a--b", "x" * 40)
        for source in ("c", "b_c", "_c", "y" * 40, "y" * 41)
    }
    assert len(made) == 25
    assert all(len(name) + len("_inserts") <= 63 for name in made)


@pytest.mark.parametrize("restarted", [False, True])
def test_f26_a_second_publication_waits_for_those_who_wrote_before_there_was_one(
    database: str, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """Their changes are decoded with a catalog that does not hold it, which is an error each time."""
    monkeypatch.setattr(begin, "PATIENCE", 0.1)
    world = World(database, captured("t", "id"))
    world.sql("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE log (n int)", "INSERT INTO log VALUES (1)")
    world.catch_up()
    world.captures = (
        *world.captures,
        captured("log", "n", "", kind="event"),
        captured("log", "n", "", kind="event", stream="s.later", load=SKIP),
    )
    with connect(database, application="test") as early:
        execute(early, "BEGIN")
        execute(early, "INSERT INTO t VALUES (1)")
        with world.following(idle_advance=0.05) as following:
            following.next()
            world.sql("INSERT INTO t VALUES (2)", "INSERT INTO log VALUES (2)")
            assert letters(following.until(lambda rows: bool(rows))) == [("c", {"id": 2})]
            assert world.place.publications[NAMES.inserts] == NOT_YET
            if not restarted:
                execute(early, "COMMIT")
                following.until(lambda _: len(world.taken) == 4)
        with world.following(idle_advance=0.05) as following:
            following.next()
            if restarted:
                execute(early, "COMMIT")
                following.until(lambda _: len(world.taken) == 4)
            world.sql("INSERT INTO log VALUES (3)")
            following.until(lambda _: len(world.taken) == 5)
    assert letters(world.taken[1:]) == [("c", {"id": 1}), ("r", {"n": 1}), ("r", {"n": 2}), ("c", {"n": 3})]
    assert world.catch_up() == []
    assert {note.stream for note in world.notes if note.kind == "gap"} == {"s.later"}


def test_f85_a_partition_made_later_can_be_updated(database: str) -> None:
    """It inherits a primary key, and no REPLICA IDENTITY FULL."""
    world = World(database, captured("t", "id name", "", kind="event"))
    world.sql(
        "CREATE TABLE t (id int, name text) PARTITION BY RANGE (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER TABLE t1 REPLICA IDENTITY FULL",
    )
    world.catch_up()
    world.sql("CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)", "INSERT INTO t VALUES (11, 'a')")
    world.sql("UPDATE t SET name = 'b'", "DELETE FROM t")
    assert letters(world.catch_up()) == [("c", {"id": 11, "name": "a"})]
    assert _published(world, NAMES.inserts) == ["public.t"]
