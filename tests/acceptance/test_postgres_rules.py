"""Failure rules on PostgreSQL that concern the whole path; those of a part are in the tests of that part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater.status import status
from headwater.testing.postgres import PostgresServer
from tests.acceptance.postgres_project import PostgresProject
from tests.acceptance.project import contract, until

pytestmark = pytest.mark.needs("postgres")

PATTERNS = pytest.mark.parametrize("pattern", ["log", "trigger"])


@pytest.fixture
def project(tmp_path: Path, database: str) -> PostgresProject:
    return PostgresProject(tmp_path, url=database)


@pytest.mark.parametrize("pattern", ["log", "trigger", "query"])
def test_f25_the_filter_holds_for_every_pattern(tmp_path: Path, database: str, pattern: str) -> None:
    """First load, changes, rows that enter and leave; and the first load of a stream that is added later."""
    project = PostgresProject(tmp_path, url=database, pattern=pattern)
    of_query = pattern == "query"
    cursor = {"cursor": "updated_at"} if of_query else {}
    promises: dict[str, Any] = {"changes": "latest", "deletes": "unseen"} if of_query else {}
    project.config["streams"]["shop.item"] = project.stream(where="size < 10", **cursor)
    project.contracts["shop.item"] = contract("shop.item", **promises)
    project.run("INSERT INTO item VALUES (1, 'in', 1), (2, 'out', 20), (3, 'null', NULL)")
    assert project.rows() == {(1, "in", 1)}
    project.run("INSERT INTO item VALUES (4, 'in', 4), (5, 'out', 50)")
    assert project.rows() == {(1, "in", 1), (4, "in", 4)}
    project.run("UPDATE item SET size = 21 - size, updated_at = clock_timestamp() WHERE id IN (1, 2)")
    assert project.rows() == {(2, "out", 1), (4, "in", 4)}
    project.config["streams"]["shop.late"] = project.stream(where="size < 10", **cursor)
    project.contracts["shop.late"] = contract("shop.late", **promises)
    project.run()
    assert project.rows(table="shop_late") == {(2, "out", 1), (4, "in", 4)}


DDL = """
CREATE FUNCTION twice(n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT 2 * n; -- ALTER TABLE item
$$;
CREATE VIEW seen AS SELECT id, twice(size) AS twice FROM item;
CREATE INDEX ON item ((twice(size))) WHERE name IS NOT NULL;
ALTER TABLE item ADD COLUMN "weird ""name""; DROP" xml DEFAULT '<a/>';
ALTER TABLE item ADD CONSTRAINT c CHECK (twice(size) > -5) NOT VALID;
ALTER TABLE item ALTER COLUMN size SET STATISTICS 500, SET (fillfactor = 70);
COMMENT ON COLUMN item.name IS 'DROP TABLE item';
CREATE RULE r AS ON INSERT TO item WHERE new.id < 0 DO INSTEAD NOTHING;
DO $$ BEGIN EXECUTE 'CREATE TABLE made_by_' || 'code (id int)'; END $$;
CREATE TABLE parted (id int, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE STATISTICS s (dependencies) ON id, size FROM item;
"""


@PATTERNS
def test_f51_ddl_of_any_sort_stops_nothing(tmp_path: Path, database: str, pattern: str) -> None:
    """No statement is parsed: what a table looks like is read from the catalog, or told by the log itself."""
    project = PostgresProject(tmp_path, url=database, pattern=pattern)
    project.run("INSERT INTO item VALUES (1, 'one', 1)")
    with project.running():
        for number, statement in enumerate(DDL.strip().split(";\n"), 10):
            project.sql(statement)
            project.sql(f"INSERT INTO item (id, name, size) VALUES ({number}, 'beside', {number})")
        expected = len(project.source())
        until(lambda: project.head() == expected)
    project.run()
    assert project.rows() == project.source()
    project.require_equal()


@PATTERNS
def test_f54_the_reason_names_field_expected_got_key_and_position(tmp_path: Path, database: str, pattern: str) -> None:
    """The value as the server prints it, by its column's public name."""
    project = PostgresProject(tmp_path, url=database, pattern=pattern)
    project.contracts["shop.item"]["fields"]["seen_at"] = {"type": "timestamp", "optional": True}
    project.config["streams"]["shop.item"]["fields"]["seen_at"] = "updated_at"
    project.run("INSERT INTO item VALUES (1, 'one', 1)")
    project.run("INSERT INTO item VALUES (2, 'two', 2, '0044-03-15 12:00:00+00 BC'), (3, 'three', 3, now())")
    with project.assembly() as assembly:
        (row,) = assembly.bus.rejected()
        at = assembly.bus.position(f"shop/{pattern}")
    assert (row.stream, row.field, row.key) == ("shop.item", "seen_at", '{"item_id":2}')
    assert "0044-03-15 12:00:00+00 BC" in row.got
    assert "timestamp" in row.expected
    assert at is not None
    assert 0 < row.order.commit <= at.commit
    assert {key for key, *_ in project.rows()} == {1, 3}


def test_f56_a_postgres_sink_that_fails_stops_alone_and_goes_on_once_it_can(
    project: PostgresProject, postgres_server: PostgresServer
) -> None:
    target = postgres_server.create_database("target")
    try:
        project.config["sinks"]["service"] = {"url": target}
        project.run("INSERT INTO item VALUES (1, 'one', 1)")
        postgres_server.execute("ALTER DATABASE target ALLOW_CONNECTIONS false")
        project.sql("INSERT INTO item VALUES (2, 'two', 2)")
        (broken,) = project.try_run().items()
        assert broken[0] == "service"
        assert project.rows() == {(1, "one", 1), (2, "two", 2)}, "the other goes on"
        with project.assembly() as assembly:
            sinks = {sink.sink: sink for sink in status(assembly).sinks}
        assert sinks["warehouse"].error == ""
        assert (sinks["service"].error, sinks["service"].since is not None) == (broken[1], True)
        assert [place.lag_events for place in sinks["service"].streams] == [1]
        postgres_server.execute("ALTER DATABASE target ALLOW_CONNECTIONS true")
        project.run("DELETE FROM item WHERE id = 1")
        project.require_equal()
    finally:
        postgres_server.drop_database("target")


@PATTERNS
def test_f80_a_server_that_is_away_is_said_to_be_and_nothing_is_lost(tmp_path: Path, pattern: str) -> None:
    with PostgresServer(tmp_path / "server") as server:
        project = PostgresProject(tmp_path, url=server.url, pattern=pattern)
        project.run("INSERT INTO item VALUES (1, 'one', 1)")
        with project.running() as supervisor:
            project.sql("INSERT INTO item VALUES (2, 'two', 2)")
            until(lambda: project.head() == 2)
            server.stop()
            until(lambda: supervisor.figures().workers[f"shop/{pattern}"].error)
            server.start()
            project.sql("INSERT INTO item VALUES (3, 'three', 3)")
            until(lambda: project.head() == 3)
            until(lambda: not supervisor.figures().workers[f"shop/{pattern}"].error)
        project.run()
        project.require_equal()


@PATTERNS
def test_f82_the_last_commit_is_in_the_sink_without_another(tmp_path: Path, database: str, pattern: str) -> None:
    project = PostgresProject(tmp_path, url=database, pattern=pattern)
    project.config["sinks"] = {"service": {"url": database, "options": {"schema": "service"}}}
    project.run()
    with project.running():
        for number in range(5):
            project.sql(f"INSERT INTO item VALUES ({number}, 'x', 1)")
            until(lambda number=number: project.ask("SELECT max(item_id) FROM service.shop_item") == [(number,)])  # type: ignore[misc]
