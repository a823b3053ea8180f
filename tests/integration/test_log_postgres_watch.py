"""What the log does not tell of is seen in the catalog: noted, and the table compared with its stream."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from headwater.errors import SourceError
from headwater.model import Batch, Position, Reload
from headwater.protocols import Load
from headwater.sources.log_postgres import watch
from headwater.sources.log_postgres.position import place_of
from tests.log_world import NAMES, World, captured, letters

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)
PLAIN = ("CREATE TABLE t (id int PRIMARY KEY, v text, x int)", "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
PARTS = (
    "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
    *(f"CREATE TABLE t{n} PARTITION OF t FOR VALUES FROM ({10 * n}) TO ({10 * n + 10})" for n in range(4)),
    "INSERT INTO t VALUES (1, 'a'), (11, 'b'), (21, 'c'), (31, 'd')",
)
ATTACHED = (
    "CREATE TABLE t4 (id int PRIMARY KEY, v text)",
    "INSERT INTO t4 VALUES (41, 'brought')",
    "ALTER TABLE t ATTACH PARTITION t4 FOR VALUES FROM (40) TO (50)",
)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)


@pytest.fixture
def world(database: str) -> World:
    return World(database, captured("t", "id v"), captured("other", "id", load=SKIP), idle_advance=0.05)


def begun(world: World, *statements: str) -> None:
    """With its rows on the bus, and what was taken forgotten."""
    world.sql("CREATE TABLE other (id int PRIMARY KEY)", *statements)
    world.catch_up()
    world.taken.clear()
    world.notes.clear()


class Reading:
    """What batches bring of s.t: the rows of complete comparisons, and the changes outside of them."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.complete = 0
        self.reloads: set[Reload] = set()

    def take(self, batch: Batch) -> None:
        for changes in batch.changes:
            if changes.reading is None or changes.stream != "s.t":
                continue
            self.reloads.add(changes.reading.reload)
            self.rows += [(row["after"]["id"], row["after"]["v"]) for row in changes.data.to_pylist()]
            self.complete += changes.reading.last


def read_on(world: World) -> Reading:
    """To the log's end."""
    found = Reading()
    with contextlib.closing(world.open()) as source:
        for batch in source.read(world.position, follow=False):
            found.take(batch)
            world.take(batch)
            source.confirm(batch.position)
    return found


def compared(world: World) -> list[str]:
    """The table is compared at the next start, once; why, by the notes of its stream."""
    found = read_on(world)
    assert found.complete == 1
    assert found.reloads == {Reload.DIFFERENCE}
    assert sorted(found.rows) == world.sql("SELECT id, v FROM t ORDER BY id")
    texts = [f"{note.kind}: {note.text}" for note in world.notes if note.stream == "s.t" and note.kind != "loaded"]
    world.notes.clear()
    again = read_on(world)
    assert (again.complete, world.notes) == (0, [])
    return texts


def not_compared(world: World) -> None:
    assert read_on(world).complete == 0
    assert [note for note in world.notes if note.kind == "gap"] == []


# partitions


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (("TRUNCATE t0",), "gap: table public.t: partitions were emptied or rewritten (1)"),
        (("DROP TABLE t1",), "gap: table public.t: partitions were dropped or detached (1)"),
        (("ALTER TABLE t DETACH PARTITION t2",), "gap: table public.t: partitions were dropped or detached (1)"),
        (ATTACHED, "gap: table public.t: partitions were attached with rows of their own, or emptied (1)"),
        (("; ".join(("BEGIN", *ATTACHED, "COMMIT")),), "gap: table public.t: partitions were attached with rows"),
        (
            (
                "ALTER TABLE t DETACH PARTITION t2",
                "DELETE FROM t2",
                "ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (20) TO (30)",
            ),
            "gap: table public.t: partitions were detached and attached again (1)",
        ),
        (
            (
                "CREATE TABLE t4 (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
                "CREATE TABLE t40 PARTITION OF t4 FOR VALUES FROM (40) TO (45)",
                "INSERT INTO t4 VALUES (41, 'brought')",
                "ALTER TABLE t ATTACH PARTITION t4 FOR VALUES FROM (40) TO (50)",
            ),
            "gap: table public.t: partitions were attached with rows of their own, or emptied (1)",
        ),
    ],
)
def test_f33_a_partition_that_came_or_went_while_stopped(world: World, statements: tuple[str, ...], why: str) -> None:
    begun(world, *PARTS)
    world.sql("UPDATE t SET v = 'before' WHERE id IN (1, 11, 21)", *statements, "UPDATE t SET v = 'dd' WHERE id = 31")
    (text,) = compared(world)
    assert text.startswith(why)


def test_f33_partitions_attached_detached_truncated(often: None, world: World) -> None:
    """While it runs: each at its next look."""
    begun(world, *PARTS)
    with world.following() as following:
        following.next()
        world.sql("CREATE TABLE t5 PARTITION OF t FOR VALUES FROM (50) TO (60)", "INSERT INTO t VALUES (51, 'new')")
        assert letters(following.until(bool)) == [("c", {"id": 51, "v": "new"})]
        assert world.notes == []
        for statements in (ATTACHED, ("TRUNCATE t5",), ("ALTER TABLE t DETACH PARTITION t2",), ("DROP TABLE t3",)):
            world.taken.clear()
            world.notes.clear()
            world.sql(*statements)
            following.until(lambda _: "loaded" in {note.kind for note in world.notes})
            assert sorted(_ids(world)) == sorted(world.sql("SELECT id, v FROM t"))
            assert [note.kind for note in world.notes] == ["gap", "loaded"]
        world.sql("UPDATE t SET v = 'after' WHERE id = 1")
        assert ("u", {"id": 1, "v": "after"}) in letters(following.until(bool))


def _ids(world: World) -> list[tuple[Any, ...]]:
    return [(row["after"]["id"], row["after"]["v"]) for row in world.taken if row["stream"] == "s.t" and row["after"]]


def test_f33_a_partition_made_as_one_needs_no_comparison(world: World) -> None:
    begun(world, *PARTS)
    world.sql("CREATE TABLE t4 PARTITION OF t FOR VALUES FROM (40) TO (50)", "INSERT INTO t VALUES (41, 'new')")
    assert letters(world.catch_up()) == [("c", {"id": 41, "v": "new"})]
    not_compared(world)


def test_f33_a_partition_that_came_and_went_while_stopped(world: World) -> None:
    begun(world, *PARTS)
    world.sql(
        "CREATE TABLE t4 PARTITION OF t FOR VALUES FROM (40) TO (50)", "INSERT INTO t VALUES (41, 'x')", "DROP TABLE t4"
    )
    with pytest.raises(SourceError, match="a partition was written to that is there no longer"):
        world.catch_up()
    assert [row["after"]["id"] for row in world.taken if row["after"]] == []
    compared(world)


def test_f33_rows_are_compared_behind_what_the_log_has_yet_to_tell(world: World) -> None:
    """Else a change from before the partition was emptied would bring its row back."""
    begun(world, *PARTS)
    world.sql("UPDATE t SET v = 'late' WHERE id = 1", "TRUNCATE t0")
    found: list[str] = []
    with contextlib.closing(world.open()) as source:
        for batch in source.read(world.position, follow=False):
            found += ["reading" if changes.reading else "change" for changes in batch.changes]
            world.take(batch)
    assert found[0] == "change"
    assert set(found[1:]) == {"reading"}


def test_f20_a_comparison_that_was_cut_off_is_owed_still(world: World) -> None:
    begun(world, *PARTS)
    world.sql("TRUNCATE t0")
    world.catch_up(batches=1)
    assert compared(world)


# tables and their columns


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (
            ("ALTER TABLE t DROP COLUMN v", "ALTER TABLE t ADD COLUMN v text DEFAULT 'new'"),
            "schema: table public.t: column `v` was dropped and added again",
        ),
        (
            ("ALTER TABLE t ALTER COLUMN v TYPE text USING upper(v) || '!'",),
            "schema: table public.t: column `v` was altered and the rows rewritten",
        ),
        (
            ("ALTER TABLE t RENAME TO old", "CREATE TABLE t (LIKE old INCLUDING ALL)", "INSERT INTO t VALUES (7, 'n')"),
            "gap: table public.t: it is another table than before, of the same name",
        ),
    ],
)
def test_f52_what_gives_rows_other_values_without_a_word(world: World, statements: tuple[str, ...], why: str) -> None:
    begun(world, *PLAIN)
    world.sql(*statements, "UPDATE t SET x = 1 WHERE id = 3")
    texts = compared(world)
    assert any(text.startswith(why) for text in texts), texts


@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "REINDEX TABLE t",
        "TRUNCATE t",
        "ALTER TABLE t ALTER COLUMN v SET DEFAULT 'new'",
        "ALTER TABLE t ADD COLUMN y text DEFAULT clock_timestamp()",
        "ANALYZE t",
    ],
)
def test_f52_what_leaves_values_as_they_are_costs_no_comparison(world: World, statement: str) -> None:
    begun(world, *PLAIN)
    world.sql(statement)
    not_compared(world)
    world.sql("ALTER TABLE t ALTER COLUMN v SET STATISTICS 50", "VACUUM t")  # a look took in what was before
    not_compared(world)


def test_f80_a_table_that_goes_and_comes_back_while_it_runs(often: None, world: World) -> None:
    begun(world, *PLAIN)
    with world.following() as following:
        following.next()
        world.sql("DROP TABLE t")
        following.until(lambda _: "s.t" in following.source.broken)
        assert "there is no table public.t" in following.source.broken["s.t"].message
        world.sql("INSERT INTO other VALUES (1)")
        assert letters(following.until(bool)) == [("c", {"id": 1})]
        world.sql("CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (77, 'new')")
        following.until(lambda _: set(_ids(world)) == {(77, "new")})
        assert dict(following.source.broken) == {}


# publications


@pytest.fixture(
    params=[
        ("SET (publish = 'insert')", "SET (publish = 'insert, update, delete, truncate')"),
        ("DROP TABLE t", "ADD TABLE t"),
    ]
)
def narrowed(request: pytest.FixtureRequest) -> list[str]:
    """A publication that shows less for a while, and what is done meanwhile."""
    alter = f'ALTER PUBLICATION "{NAMES.publication}"'
    less, more = request.param
    return [
        f"{alter} {less}",
        "UPDATE t SET v = 'unseen' WHERE id = 1",
        "DELETE FROM t WHERE id = 2",
        f"{alter} {more}",
    ]


def test_f80_a_publication_that_was_narrowed_while_it_runs(often: None, world: World, narrowed: list[str]) -> None:
    begun(world, *PLAIN)
    with world.following() as following:
        following.next()
        world.sql(*narrowed)
        following.until(lambda _: set(_ids(world)) == {(1, "unseen"), (3, "c")})
    assert "gap" in {note.kind for note in world.notes if note.stream == "s.t"}


def test_f80_a_publication_that_was_narrowed_while_stopped(world: World, narrowed: list[str]) -> None:
    begun(world, *PLAIN)
    world.sql(*narrowed)
    (text,) = compared(world)
    assert text.startswith("gap: table public.t: it was not published for a while")


# positions


def test_a_position_of_the_version_before_can_be_read(world: World) -> None:
    begun(world, *PARTS)
    assert world.position is not None
    data = json.loads(world.position.token)
    assert data.pop("seen").keys() == {"public.t", "public.other"}
    token = json.dumps({**data, "version": 1}).encode()
    world.position = Position(world.position.epoch, world.position.commit, token)
    assert place_of(world.position, "db/log").seen == {}
    world.sql("TRUNCATE t0")
    not_compared(world)
    world.sql("TRUNCATE t1")
    assert compared(world)
