"""Transactions that do not fit into memory, and what the log says of tables that change under it."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.drivers.postgres import connect, execute
from headwater.model import Batch, Op
from headwater.protocols import Load
from headwater.sources.log_postgres import units
from headwater.sources.log_postgres.spool import SpooledChanges
from headwater.testing.postgres import PostgresServer
from tests.log_world import World, captured, letters

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """It sends transactions before their commit as soon as they are larger than the least that can be set."""
    settings = {"logical_decoding_work_mem": "64kB"}
    with PostgresServer(tmp_path_factory.mktemp("small") / "data", settings=settings) as server:
        yield server


@pytest.fixture
def small(small_server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[World]:
    name = f"d{abs(hash(request.node.name)) % 10**9}"
    world = World(small_server.create_database(name), captured("t", "id name", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    yield world
    small_server.drop_database(name)


def _session(world: World) -> Any:
    return contextlib.closing(connect(world.url, application="test"))


def test_f40_streamed_transactions_come_at_their_commit_in_its_order(small: World) -> None:
    with _session(small) as one, _session(small) as two:
        for number, connection in enumerate((one, two)):
            execute(connection, "BEGIN")
            execute(
                connection,
                f"INSERT INTO t SELECT i, 'a' FROM generate_series({number * 10000}, {number * 10000 + 4999}) i",
            )
        small.sql("INSERT INTO t VALUES (-1, 'short')")
        execute(one, "SAVEPOINT s")
        execute(one, "INSERT INTO t SELECT i, 'gone' FROM generate_series(50000, 54999) i")
        execute(one, "ROLLBACK TO SAVEPOINT s")
        execute(one, "INSERT INTO t VALUES (5000, 'last')")
        execute(two, "COMMIT")
        execute(one, "COMMIT")
    rows = small.catch_up()
    expected = [-1, *range(10000, 15000), *range(5001)]
    assert [row["after"]["id"] for row in rows] == expected
    assert [row["_index"] for row in rows[5001:]] == [2 * number for number in range(5001)]
    assert len({row["_commit"] for row in rows}) == 3


def test_f40_a_streamed_transaction_that_is_rolled_back_leaves_nothing(small: World) -> None:
    with _session(small) as connection:
        execute(connection, "BEGIN")
        execute(connection, "INSERT INTO t SELECT i, 'a' FROM generate_series(1, 5000) i")
        with small.following() as following:
            following.next()
            execute(connection, "ROLLBACK")
            small.sql("INSERT INTO t VALUES (1, 'b')")
            assert letters(following.until(lambda rows: bool(rows))) == [("c", {"id": 1, "name": "b"})]


@pytest.mark.parametrize("streaming", ["auto", "off"])
def test_f40_f50_columns_that_change_within_and_beside_a_large_transaction(
    small: World, streaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table's description holds from where it arrives on; a large transaction has its own until its commit."""
    monkeypatch.setattr(units, "LARGE", 10_000)
    small.sql("CREATE TABLE u (id int PRIMARY KEY, name text)")
    small.captures = (captured("t", "id name", load=SKIP), captured("u", "id name", load=SKIP))
    small.catch_up()
    with _session(small) as large:
        execute(large, "BEGIN")
        execute(large, "INSERT INTO t SELECT i, 'old' FROM generate_series(1, 3000) i")
        execute(large, "INSERT INTO t SELECT i, 'old' FROM generate_series(3001, 6000) i")
        small.sql(
            "INSERT INTO u VALUES (1, 'before')",
            "ALTER TABLE u DROP name, ADD first int, ADD name text",
            "INSERT INTO u VALUES (2, 7, 'between')",
        )
        execute(large, "INSERT INTO u VALUES (3, 8, 'in large')")
        execute(large, "ALTER TABLE t DROP name, ADD extra int DEFAULT 5, ADD name text")
        execute(large, "INSERT INTO t SELECT i, i, 'new' FROM generate_series(6001, 9000) i")
        execute(large, "COMMIT")
    small.sql("INSERT INTO t VALUES (9001, 0, 'after')", "INSERT INTO u VALUES (4, 9, 'after')")
    found = small.catch_up(streaming=streaming)
    rows = [row for row in found if row["_op"] != Op.READ]  # columns made anew are owed a comparison besides
    mine = [row for row in rows if row["table"].name == "t"]
    assert [row["after"] for row in mine] == [
        {"id": number, "name": "old" if number <= 6000 else "new" if number <= 9000 else "after"}
        for number in range(1, 9002)
    ]
    others = [row["after"] for row in rows if row["table"].name == "u"]
    assert others == [
        {"id": 1, "name": "before"},
        {"id": 2, "name": "between"},
        {"id": 3, "name": "in large"},
        {"id": 4, "name": "after"},
    ]


def test_f40_a_stored_transaction_can_be_read_again_and_counts_itself(small: World) -> None:
    small.sql("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 5000) i")
    with contextlib.closing(small.open()) as source:
        for batch in source.read(small.position, follow=False):
            if isinstance(batch.changes, SpooledChanges):
                _check_twice(batch)
                break
        else:
            raise AssertionError("nothing was stored")


def _check_twice(batch: Batch) -> None:
    first = [row["after"]["id"] for changes in batch.changes for row in changes.data.to_pylist()]
    again = [row["after"]["id"] for changes in batch.changes for row in changes.data.to_pylist()]
    assert first == again == list(range(1, 5001))
    assert len(batch) == 5000
    assert isinstance(batch.changes, SpooledChanges)
    assert not batch.changes.truncates


def test_f40_files_of_large_transactions_lie_where_they_may_and_do_not_stay(small: World, tmp_path: Path) -> None:
    small.directory = str(tmp_path)
    small.sql("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 5000) i")
    assert len(small.catch_up()) == 5000
    assert list(tmp_path.iterdir()) == []
    small.directory = "/nonexistent"
    small.sql("UPDATE t SET name = 'b'")
    assert len(small.catch_up()) == 5000


_READER = """
import resource, sys
sys.path.insert(0, ".")
from tests.log_world import World, captured
from headwater.protocols import Load
world = World(sys.argv[1], captured("t", "id name", load=Load("initial", skip=True)))
from headwater.model import Position
world.position = Position(1, int(sys.argv[2]), sys.stdin.buffer.read())
source = world.open(streaming=sys.argv[3])
rows = 0
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for batch in source.read(world.position, follow=False):
    rows += sum(len(changes) for changes in batch.changes)
source.close()
print(rows, base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("streaming", ["auto", "off"])
def test_f40_memory_does_not_grow_with_a_transaction(database: str, streaming: str) -> None:
    """A transaction of 100 MB; the budget is that of buffers, not of the transaction."""
    world = World(database, captured("t", "id name", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    world.catch_up()
    world.sql("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 300000) i")
    assert world.position is not None
    done = subprocess.run(
        [sys.executable, "-c", _READER, database, str(world.position.commit), streaming],
        input=world.position.token,
        capture_output=True,
        check=True,
        cwd=os.getcwd(),
    )
    rows, before, after = map(int, done.stdout.split())
    assert rows == 300_000
    assert after - before < 80_000, "kilobytes"
    assert resource.getpagesize()


# columns


def test_f50_f52_columns_change_within_one_batch_and_across_a_restart(small: World) -> None:
    small.sql("INSERT INTO t VALUES (1, 'a')")
    assert [row["after"] for row in small.catch_up(confirm=False)] == [{"id": 1, "name": "a"}]
    small.sql(
        "ALTER TABLE t ADD more int DEFAULT 7",
        "INSERT INTO t VALUES (2, 'b', 1)",
        "ALTER TABLE t RENAME name TO label",
        "INSERT INTO t VALUES (3, 'c', 1)",
        "ALTER TABLE t RENAME label TO name",
        "ALTER TABLE t ALTER id TYPE bigint",
        "INSERT INTO t VALUES (4, 'd', 1)",
    )
    changes = [row for row in small.catch_up(confirm=False) if row["_op"] != Op.READ]  # rewritten rows are compared
    assert [row["after"] for row in changes] == [
        {"id": 2, "name": "b"},
        {"id": 3},
        {"id": 4, "name": "d"},
    ]
    texts = [note.text for note in small.notes if note.kind == "schema" and "does not tell" not in note.text]
    assert texts == [
        "table public.t: `more` (int4) is new",
        "table public.t: `name` (text) is gone, `label` (text) is new",
        "table public.t: `label` (text) is gone, `name` (text) is new, `id` was int4 and is int8",
    ]
    assert small.place.columns == {"public.t": {"id": "int8", "name": "text", "more": "int4"}}
    small.sql("INSERT INTO t VALUES (5, 'e', 1)")
    assert [row["after"] for row in small.catch_up()] == [{"id": 5, "name": "e"}]
    assert len([note for note in small.notes if note.kind == "schema"]) == 4


def test_a_type_that_binary_does_not_carry_makes_the_session_one_of_text(small: World) -> None:
    """Although today's catalog knows nothing of it any more."""
    small.sql(
        "INSERT INTO t VALUES (1, 'a')",
        "ALTER TABLE t ALTER name TYPE inet USING '10.0.0.1'",
        "INSERT INTO t VALUES (2, '10.0.0.2/24')",
        "INSERT INTO t SELECT i, '10.0.0.3' FROM generate_series(3, 5000) i",
        "ALTER TABLE t ALTER name TYPE text",
        "INSERT INTO t VALUES (5001, 'b')",
    )
    rows = small.catch_up()  # and a comparison, for the ALTER has rewritten the rows
    names = [row["after"]["name"] for row in rows if row["_op"] != Op.READ]
    assert names == ["a", "10.0.0.2/24", *["10.0.0.3"] * 4998, "b"]


def test_a_table_that_is_renamed_keeps_its_stream_until_the_next_start(small: World) -> None:
    small.sql("INSERT INTO t VALUES (1, 'a')", "ALTER TABLE t RENAME TO other", "INSERT INTO other VALUES (2, 'b')")
    small.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
    small.sql("DROP TABLE t", "ALTER TABLE other RENAME TO t")
    assert [row["after"]["id"] for row in small.catch_up()] == [1, 2]
