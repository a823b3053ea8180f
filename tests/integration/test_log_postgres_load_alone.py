"""Loads that cannot go on as they are: rows without a key, tables that are gone, roles that see less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from psycopg.pq import TransactionStatus

from headwater import kept
from headwater.drivers.postgres import connect, execute
from headwater.errors import SourceError
from headwater.model import Reload
from headwater.protocols import Load
from headwater.sources.log_postgres import chunks, pages
from headwater.sources.log_postgres.chunks import Seen, begin
from tests.log_load_world import World, capture

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture
def other(database: str, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with another table; ranges have a few pages, and hardly any row stays in memory."""
    monkeypatch.setattr(pages, "_PAGES", 4)
    monkeypatch.setattr(kept, "MEMORY", 20_000)
    world = World(database, capture("other", "id"), capture("plain", "n", key="", kind="event"))
    world.execute(
        "CREATE TABLE other (id int PRIMARY KEY)",
        "CREATE TABLE plain (n int)",
        "CREATE TABLE item (id int, name text, big text)",
        "INSERT INTO item SELECT i, 'old', repeat('x', 900) FROM generate_series(1, 400) i",
    )
    return world


def ids(world: World) -> list[int]:
    return sorted(row["after"]["id"] for row in world.rows("test.item"))


def test_f23_rows_without_a_key_come_once_although_savepoints_and_updates_met_a_load_that_was_broken_off(
    other: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load's snapshot lists the transaction of the savepoint, but not the one that its row was written by."""
    other.take()
    other.captures = (*other.captures, capture("item", "id name big", key="", kind="event"))
    with connect(other.url, application="writer") as writer:

        def begun(connection: dbapi.Connection) -> Seen:
            if writer.info.transaction_status == TransactionStatus.IDLE:
                execute(writer, "BEGIN; INSERT INTO item VALUES (1001, 'top', '')")
                execute(writer, "SAVEPOINT s; INSERT INTO item VALUES (1002, 'sub', '')")
            return begin(connection)

        monkeypatch.setattr(chunks, "begin", begun)
        source = other.source()
        with closing(source):
            for _ in other.stream(source, follow=True):
                if other.rows("test.item"):
                    break
                other.execute("INSERT INTO other SELECT coalesce(max(id), 0) + 1 FROM other")
        execute(writer, "COMMIT")
    other.execute("UPDATE item SET name = 'new' WHERE id = 399", "INSERT INTO item VALUES (1003, 'later', '')")
    other.take()
    assert ids(other) == [*range(1, 401), 1001, 1002, 1003]


@pytest.mark.parametrize("fresh", [True, False])
def test_f23_a_load_of_rows_without_a_key_that_is_broken_off_leaves_nothing_and_begins_anew(
    other: World, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = capture("item", "id name big", key="", kind="event")
    if not fresh:
        other.take()
    other.captures = (*other.captures, item)
    with monkeypatch.context() as broken:
        reader = "copy_range" if fresh else "read_range"
        broken.setattr(pages, reader, _failing(getattr(pages, reader), after=5))
        with pytest.raises(ConnectionResetError):
            other.take()
    assert not other.rows("test.item")
    other.execute("UPDATE item SET name = 'new' WHERE id = 1", "DELETE FROM item WHERE id = 2")
    other.take()
    assert ids(other) == [1, *range(3, 401)]
    assert {row["after"]["name"] for row in other.rows("test.item") if row["after"]["id"] == 1} == {"new"}
    assert [note.text for note in other.notes if note.stream == "test.item"] == ["399 rows of public.item were read"]


def _failing(real, after: int):  # type: ignore[no-untyped-def]
    left = iter(range(after))

    def read(*arguments):  # type: ignore[no-untyped-def]
        if next(left, None) is None:
            raise ConnectionResetError
        return real(*arguments)

    return read


def test_f30_a_stream_whose_rows_cannot_be_read_is_compared_when_they_can(database: str) -> None:
    """A key moves with a value that the log does not carry, and the table has another name by then."""
    world = World(database, capture("item", "id big"), capture("other", "id"))
    world.execute(
        "CREATE TABLE item (id int PRIMARY KEY, big text)",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "ALTER TABLE item ALTER big SET STORAGE EXTERNAL",
        "INSERT INTO item VALUES (1, repeat('x', 5000)), (2, repeat('y', 5000))",
    )
    world.take()
    source = world.source()
    with closing(source):
        stream = world.stream(source, follow=True)
        next(stream)
        world.execute("BEGIN; UPDATE item SET id = 10 WHERE id = 1; ALTER TABLE item RENAME TO away; COMMIT")
        world.execute("INSERT INTO other VALUES (1)")
        while not world.rows("test.other"):
            next(stream)
    assert "item" in source.broken["test.item"].message
    assert "bring it back" in source.broken["test.item"].hint
    world.execute("ALTER TABLE away RENAME TO item", "INSERT INTO item VALUES (3, 'z')")
    world.take()
    (reading,) = {part.reading.reload for part in world.changes("test.item") if part.reading}
    assert reading is Reload.DIFFERENCE
    assert [note.kind for note in world.notes if note.stream == "test.item" and note.kind == "gap"] == ["gap"]
    told = {row["after"]["id"]: row["after"]["big"] for row in world.rows("test.item")[2:]}
    assert told == {10: "x" * 5000, 2: "y" * 5000, 3: "z"}, "the reading has every row, whole"


@contextmanager
def role(world: World, name: str, *settings: str) -> Iterator[str]:
    """The address for a role that may replicate and read, with settings of its own."""
    world.execute(
        f"CREATE ROLE {name} LOGIN REPLICATION",
        f"GRANT CREATE ON DATABASE {world.url.rpartition('/')[2]} TO {name}",
        *settings,
    )
    try:
        yield world.url.replace("postgres@", f"{name}@")
    finally:
        world.url = world.url.replace(f"{name}@", "postgres@")
        world.execute(f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


def test_f22_rows_that_a_policy_hides_are_an_error_instead_of_a_load_that_lacks_them(database: str) -> None:
    world = World(database, capture("item", "id"), capture("other", "id"))
    name = f"hidden_{database.rpartition('/')[2]}"
    with role(world, name) as url:
        world.execute(
            "CREATE TABLE item (id int PRIMARY KEY)",
            "CREATE TABLE other (id int PRIMARY KEY)",
            "INSERT INTO item VALUES (1), (2), (3)",
            "INSERT INTO other VALUES (1)",
            f"ALTER TABLE other OWNER TO {name}",
            f"GRANT SELECT ON item TO {name}",
            "ALTER TABLE item ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY few ON item FOR SELECT USING (id < 2)",
            'CREATE PUBLICATION "headwater_test_db" FOR TABLE item, other WITH (publish_via_partition_root = true)',
            f'ALTER PUBLICATION "headwater_test_db" OWNER TO {name}',
        )
        world.url = url
        with pytest.raises(SourceError, match="row-level security") as error:
            world.take()
        world.url = database
        assert "headwater grants" in error.value.hint
        assert not world.rows("test.item")
        assert [row["after"]["id"] for row in world.rows("test.other")] == [1]
        world.execute("SELECT pg_drop_replication_slot('headwater_test_db')", "DROP TABLE other")


@pytest.mark.parametrize("load", [Load("initial"), Load("again", Reload.DIFFERENCE)], ids=["initial", "comparison"])
def test_no_time_out_of_a_role_ends_a_load(database: str, load: Load) -> None:
    """The server takes longer to read the rows than the role's statements may."""
    world = World(database, capture("item", "id big", load=load))
    name = f"hasty_{database.rpartition('/')[2]}"
    with role(world, name, f"ALTER ROLE {name} SET statement_timeout = '100ms'") as url:
        world.execute(
            "CREATE TABLE item (id int PRIMARY KEY, big text)",
            "INSERT INTO item SELECT i, repeat('x', 900) FROM generate_series(1, 60000) i",
            f"ALTER TABLE item OWNER TO {name}",
        )
        world.url = url
        world.take()
        world.url = database
        assert sorted(row["after"]["id"] for row in world.rows("test.item")) == list(range(1, 60001))
        world.execute("SELECT pg_drop_replication_slot('headwater_test_db')")
