"""A backfill that is asked for while rows are still being read: whatever captures, no row is lost by it."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from headwater.errors import ConfigError, MappingError
from headwater.runtime import Runtime
from headwater.sources.trigger_postgres import session as postgres_pace
from headwater.sources.trigger_postgres.pace import Pace
from headwater.sources.trigger_sqlite import pace as sqlite_pace
from tests.acceptance.postgres_project import PostgresProject
from tests.acceptance.project import Project

ROWS = 400
FILL = """
INSERT INTO item (id, name, size)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) SELECT i, 'n' || i, i FROM n;
"""
CHANGE = "UPDATE item SET size = -1 WHERE id % 7 = 0; DELETE FROM item WHERE id % 50 = 1;"
QUERY = {"cursor": "updated_at", "page_size": 100, "reconcile_deletes": "0s"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_pace, "FIRST", 100)
    monkeypatch.setattr(sqlite_pace, "MOST", 100)
    monkeypatch.setattr(postgres_pace, "Pace", lambda first, most: Pace(1, 1) if first < 100 else Pace(first, most))


@pytest.fixture(
    params=[
        "sqlite trigger",
        "sqlite query",
        pytest.param("postgres trigger", marks=pytest.mark.needs("postgres")),
        pytest.param("postgres query", marks=pytest.mark.needs("postgres")),
    ]
)
def item(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """A project whose table has rows for several chunks."""
    server, pattern = request.param.split()
    project = Project(tmp_path)
    if server == "postgres":
        project = PostgresProject(tmp_path, url=request.getfixturevalue("database"), pattern=pattern)
    configure(project, pattern)
    project.sql(FILL)
    return project


def configure(project: Project, pattern: str) -> None:
    stream = {name: value for name, value in project.config["streams"]["shop.item"].items() if name not in QUERY}
    project.config["streams"]["shop.item"] = {**stream, "pattern": pattern, **(QUERY if pattern == "query" else {})}


def begin(project: Project) -> None:
    """A run that dies before it has read all rows."""
    with project.assembly(append=True) as assembly:
        assembly.declare()
        capture = assembly.capture_of("shop.item")
        with closing(assembly.source(capture)) as source, closing(assembly.router(capture)) as router:
            batches = source.read(assembly.bus.position(capture), follow=False)
            for batch in islice(batches, 3):
                assembly.bus.append(router(batch), source=capture, position=batch.position)


def ask(project: Project, where: str | None = None) -> None:
    with project.assembly(append=True) as assembly:
        Runtime(assembly).backfill("shop.item", where)


def read(project: Project) -> list[int]:
    return sorted(event[1] for event in project.events() if event[0] == "r")


def test_f23_a_backfill_within_the_first_load_leaves_no_row_out(item: Project) -> None:
    begin(item)
    begun = read(item)
    assert 0 < len(begun) < ROWS, "the test means to break off the first load"
    item.sql(CHANGE)
    ask(item)
    item.run()
    assert item.rows() == item.source()
    assert {row[0] for row in item.source()} <= set(read(item))
    item.require_equal()


def test_f23_a_backfill_within_another_leaves_no_row_out(item: Project) -> None:
    item.run()
    ask(item)
    begin(item)
    assert len(read(item)) == ROWS, "the test means to break off the first backfill"
    item.sql(CHANGE)
    ask(item)
    item.run()
    left = {row[0] for row in item.source()}
    assert [row for row in read(item) if row in left] == sorted([*left, *left])
    assert item.rows() == item.source()
    item.require_equal()


def test_f23_a_backfill_that_cannot_be_taken_does_not_end_the_first_load(item: Project) -> None:
    """Without a key: it stood still instead, and what was left of the first load was forgotten."""
    item.contracts["shop.item"]["kind"] = "event"
    del item.contracts["shop.item"]["key"]
    item.config["sinks"]["warehouse"]["mode"] = "history"
    begin(item)
    assert 0 < len(read(item)) < ROWS
    with pytest.raises(MappingError, match=r"shop\.item has no key"):
        ask(item)
    item.run()
    assert read(item) == list(range(1, ROWS + 1))


@pytest.mark.needs("postgres")
def test_f23_a_backfill_is_not_asked_of_a_capture_that_has_yet_to_begin(tmp_path: Path, database: str) -> None:
    """Its note would reach the capture that is at work, which would take those rows for all that are wanted."""
    project = PostgresProject(tmp_path, url=database, pattern="trigger")
    project.sql(FILL)
    with pytest.raises(ConfigError, match="nothing has captured it yet"):
        ask(project)
    begin(project)
    assert 0 < len(read(project)) < ROWS
    configure(project, "log")
    with pytest.raises(ConfigError, match="it was captured by shop/trigger so far"):
        ask(project, "id <= 10")
    configure(project, "trigger")
    project.run()
    assert read(project) == list(range(1, ROWS + 1))
