"""What befalls a pipeline while it runs: streams paused and resumed, tables and files replaced beneath it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from headwater import config as configuration
from headwater.assembly import Assembly
from headwater.dialects import Dialect
from headwater.runtime import start
from tests.acceptance.project import TABLES, Project, Row, contract, stream, until


def state_of(project: Project, name: str = "shop.item") -> tuple[str | None, bool, int]:
    with project.assembly() as assembly:
        state = assembly.bus.streams()[name]
        return state.paused, state.resuming, state.parked


def ask(project: Project, what: str, *arguments: str) -> None:
    """What `headwater pause` and `resume` do, from another place."""
    with project.assembly() as assembly:
        getattr(assembly.bus, what)("shop.item", *arguments)


def rows(project: Project, table: str = "shop_item") -> set[Row]:
    """What the SQLite sink shows: DuckDB lets no second reader of its process in while it writes."""
    with closing(sqlite3.connect(project.directory / "copy.db")) as db:
        return set(db.execute(f"SELECT item_id, name, size FROM {table}").fetchall())


def equal(project: Project, table: str = "shop_item") -> bool:
    return rows(project, table) == project.source()


@pytest.fixture
def project(project: Project) -> Project:
    project.config["sinks"] = {"copy": {"url": "sqlite:///copy.db", "batch": {"events": 10_000, "age": "50ms"}}}
    return project


def test_a_stream_is_paused_and_resumed_while_it_runs_and_the_application_writes(project: Project) -> None:
    project.config["streams"]["shop.other"] = stream()
    project.contracts["shop.other"] = contract("shop.other")
    project.run("INSERT INTO item VALUES (1, 'one', 1, 1);")
    with project.running():
        for turn in range(3):
            ask(project, "pause", "maintenance")
            project.sql(f"INSERT INTO item (name, size) VALUES ('n{turn}', 1); UPDATE item SET size = size + 1;")
            until(lambda: state_of(project)[2] > 0)
            ask(project, "resume")
            project.sql("UPDATE item SET size = size + 1; DELETE FROM item WHERE id % 3 = 0;")
            until(lambda: state_of(project) == (None, False, 0))
        until(lambda: equal(project))
        until(lambda: equal(project, "shop_other"))
    project.require_equal()


def test_a_pause_during_the_first_load_a_crash_and_a_resume_lose_nothing(project: Project) -> None:
    numbers = "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 9000) "
    project.sql(f"INSERT INTO item {numbers} SELECT value, 'n' || value, value, 9 FROM n;")
    with project.assembly(append=True) as assembly:
        assembly.declare()
        router = assembly.router("shop/trigger")
        for part in range(3):  # appended, parked, and mapped without being appended
            source = assembly.source("shop/trigger")
            position = assembly.bus.position("shop/trigger")
            for number, batch in enumerate(source.read(position, follow=False)):
                mapped = router(batch)
                if number == 2 and part == 2:
                    break
                assembly.bus.append(mapped, source="shop/trigger", position=batch.position)
                if number == 1:
                    break
            source.close()
            if part == 0:
                assembly.bus.pause("shop.item", "maintenance")
        router.close()
    assert state_of(project)[2] > 0
    ask(project, "resume")
    project.run("DELETE FROM item WHERE id % 2 = 0;")
    assert equal(project)
    project.require_equal()


def test_a_table_that_is_dropped_and_made_again_while_it_runs_is_compared(project: Project) -> None:
    """Without a transaction around it, so that there is a moment without the table."""
    project.run("INSERT INTO item VALUES (1, 'one', 1, 1), (2, 'two', 2, 1);")
    with project.running() as supervisor:
        project.sql("UPDATE item SET size = 10 WHERE id = 1")
        until(lambda: equal(project))
        project.sql("DROP TABLE item")
        until(lambda: supervisor.figures().workers["shop/trigger"].error)
        project.sql(TABLES + "INSERT INTO item VALUES (2, 'two', 20, 1), (3, 'three', 3, 1);")
        until(lambda: equal(project))
        project.sql("UPDATE item SET size = 33 WHERE id = 3")
        until(lambda: equal(project))
        until(lambda: supervisor.figures().healthy)
    project.require_equal()


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_f83_a_database_file_that_is_replaced_while_it_runs_is_noticed(project: Project, journal: str) -> None:
    project.sql(f"PRAGMA journal_mode = {journal}")
    project.run("INSERT INTO item VALUES (1, 'one', 1, 1), (2, 'two', 2, 1);")
    with project.running():
        project.sql("UPDATE item SET size = 10 WHERE id = 1")
        until(lambda: equal(project))
        replace(project, journal)
        until(lambda: equal(project))
        project.sql("UPDATE item SET size = 33 WHERE id = 3")
        until(lambda: equal(project))
    project.require_equal()
    assert project.notes("gap") != []


def test_f83_a_polled_database_file_that_is_replaced_while_it_runs_is_noticed(project: Project) -> None:
    project.config["streams"]["shop.item"] = stream(pattern="query", every="100ms")
    project.run("INSERT INTO item VALUES (1, 'one', 1, 1), (2, 'two', 2, 1);")
    with project.running():
        replace(project, "wal")
        until(lambda: equal(project))


def replace(project: Project, journal: str) -> None:
    """Another file under the same name, as a restore from a copy does it."""
    fresh = project.directory / "fresh.db"
    with closing(sqlite3.connect(fresh)) as db:
        db.executescript(TABLES + "INSERT INTO item VALUES (2, 'two', 20, 1), (3, 'three', 3, 1);")
        db.execute(f"PRAGMA journal_mode = {journal}")
    for name in ("shop.db-wal", "shop.db-shm"):
        (project.directory / name).unlink(missing_ok=True)
    fresh.rename(project.directory / "shop.db")


def test_a_reading_that_was_held_back_is_made_when_the_stream_resumes_in_the_running_process(project: Project) -> None:
    """The triggers are lost while the stream stands still: what happened then is found by comparing, later."""
    project.run("INSERT INTO item VALUES (1, 'one', 1, 1), (2, 'two', 2, 1);")
    with project.running() as supervisor:
        ask(project, "pause", "maintenance")
        rebuild(project)
        until(lambda: [text for text in project.notes("load") if text.startswith("owed")])
        assert rows(project) == {(1, "one", 1), (2, "two", 2)}
        ask(project, "resume")
        until(lambda: equal(project))
        until(lambda: supervisor.figures().healthy)
    project.require_equal()


def rebuild(project: Project) -> None:
    project.sql(
        "BEGIN; CREATE TABLE item_new (id INTEGER PRIMARY KEY, name TEXT, size INTEGER, updated_at INTEGER);"
        "INSERT INTO item_new SELECT id, name, size + 5, updated_at FROM item; DROP TABLE item;"
        "ALTER TABLE item_new RENAME TO item; COMMIT;"
    )


class Counted(Assembly):
    """Notes each connection for inspection."""

    def __init__(self, config: configuration.Config) -> None:
        super().__init__(config, append=True)
        self.opened: list[str] = []

    def dialect(self, source: str) -> Dialect:
        self.opened.append(source)
        return super().dialect(source)


def test_a_start_looks_at_all_tables_of_a_source_over_one_connection(project: Project) -> None:
    project.config["streams"]["shop.other"] = stream()
    project.contracts["shop.other"] = contract("shop.other")
    assembly = Counted(project.save())
    with assembly:
        start(assembly)
    assert assembly.opened == ["shop"]
