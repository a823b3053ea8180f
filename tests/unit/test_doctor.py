"""`headwater doctor`: what it says of real SQLite files, and that the SQL it offers does what it says."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from headwater import plugins
from headwater.config import Config, SourceConfig, StreamConfig
from headwater.doctor import PatternReport, Probe, TableReport, doctor
from headwater.doctor.sights import SIGHTS, Sight, Way, markdown
from headwater.model import TableId
from headwater.protocols import Capture

SCHEMA = """
CREATE TABLE course (id TEXT PRIMARY KEY NOT NULL, title TEXT, updated_at TIMESTAMP NOT NULL);
CREATE INDEX course_at ON course (updated_at);
CREATE TABLE "odd ""table" (id INTEGER PRIMARY KEY, modified TIMESTAMP);
CREATE TABLE plain (id INTEGER PRIMARY KEY, n INTEGER);
CREATE TABLE code (code TEXT NOT NULL UNIQUE, n INTEGER);
CREATE TABLE keyless (n INTEGER);
CREATE VIEW active AS SELECT * FROM course;
INSERT INTO "odd ""table" VALUES (1, NULL), (2, '2026-01-01 00:00:00');
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lms.db"
    execute(path, SCHEMA)
    return path


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)


def reports(path: Path, **streams: dict[str, Any]) -> dict[str, TableReport]:
    named = {name.replace("__", "."): {"source": "lms", **stream} for name, stream in streams.items()}
    data = {"name": "p", "sources": {"lms": f"sqlite:///{path}"}, "streams": named, "directory": path.parent}
    return {report.table: report for report in doctor(Config.model_validate(data))}


def ways(report: TableReport) -> dict[Way, PatternReport]:
    return {pattern.way: pattern for pattern in report.patterns}


def possible(report: TableReport) -> set[Way]:
    return {pattern.way for pattern in report.patterns if pattern.possible}


def probe(report: TableReport, name: str) -> Probe:
    (found,) = [probe for probe in report.probes if probe.name == name]
    return found


def test_what_is_possible_for_each_table(file: Path) -> None:
    found = {table: possible(report) for table, report in reports(file).items()}
    assert found == {
        "course": {"trigger", "query by timestamp", "bulk query"},
        'odd "table': {"trigger", "query by id", "bulk query"},
        "plain": {"trigger", "query by id", "bulk query"},
        "code": {"trigger", "bulk query"},
        "keyless": {"trigger"},
        "active": set(),
    }


def test_why_the_others_are_not(file: Path) -> None:
    found = reports(file)
    assert ways(found["course"])["log"].why_not == "SQLite has no log that another program can follow"
    assert ways(found["course"])["query by id"].why_not == "its key id is string, which does not grow"
    assert "nothing identifies" in probe(found["keyless"], "key").text
    assert ways(found["active"])["trigger"].why_not.startswith("a view has no triggers")
    assert probe(found["code"], "key").fix == "key: [code]"


def test_the_sql_for_a_missing_column_makes_the_pattern_possible(file: Path) -> None:
    pattern = ways(reports(file)["plain"])["query by timestamp"]
    assert pattern.why_not == "no column says when a row changed"
    execute(file, "\n".join(pattern.enable))
    assert "query by timestamp" in possible(reports(file)["plain"])


def test_the_sql_for_a_cursor_that_is_null_and_not_indexed(file: Path) -> None:
    pattern = ways(reports(file)['odd "table'])["query by timestamp"]
    assert pattern.why_not == (
        "modified may be NULL, and such rows would never be seen, and "
        "has no index, so that each poll would read the whole table"
    )
    execute(file, "\n".join(pattern.enable))
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute('SELECT * FROM "odd ""table" ORDER BY id').fetchall()
        plan = connection.execute('EXPLAIN QUERY PLAN SELECT * FROM "odd ""table" WHERE modified > ?', ("",)).fetchall()
    assert rows == [(1, "1970-01-01 00:00:00"), (2, "2026-01-01 00:00:00")]
    assert 'INDEX odd "table_modified_idx (modified>?)' in plan[0][3]
    left = ways(reports(file)['odd "table'])["query by timestamp"]
    assert left.why_not == "modified may be NULL, and such rows would never be seen"


def test_tables_that_feed_streams_come_first_and_name_them(file: Path) -> None:
    found = reports(file, shop__n={"table": "plain", "pattern": "trigger"})
    first = next(iter(found.values()))
    assert (first.table, first.streams) == ("plain", ("shop.n",))
    assert [pattern.way for pattern in first.patterns if pattern.chosen] == ["trigger"]


@pytest.mark.parametrize(
    ("table", "cursor", "way"),
    [("course", None, "bulk query"), ("course", "updated_at", "query by timestamp"), ("plain", "id", "query by id")],
)
def test_which_query_was_chosen(file: Path, table: str, cursor: str | None, way: str) -> None:
    found = reports(file, s={"table": table, "pattern": "query", "cursor": cursor})
    assert [pattern.way for pattern in found[table].patterns if pattern.chosen] == [way]


def test_what_each_would_miss(file: Path) -> None:
    patterns = ways(reports(file)["course"])
    assert any("Deleted rows" in text for text in patterns["query by timestamp"].misses)
    assert any("whole table" in text for text in patterns["bulk query"].misses)
    assert not any("Deleted" in text for text in patterns["trigger"].misses)


def test_the_journal(file: Path) -> None:
    found = probe(reports(file)["course"], "journal")
    assert (found.state, found.fix) == ("warning", "PRAGMA journal_mode = WAL;")
    execute(file, found.fix)
    assert probe(reports(file)["course"], "journal").state == "good"


def test_a_file_that_cannot_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    report = reports(file)["course"]
    assert probe(report, "writable").state == "warning"
    assert ways(report)["trigger"].enable == (f"-- in a shell: chmod u+w '{file}'",)


def cursor_probes(report: TableReport) -> dict[str, str]:
    return {found.text: found.state for found in report.probes if found.name == "cursor"}


def test_cursors_that_are_configured(file: Path) -> None:
    odd = {"table": 'odd "table', "pattern": "query", "cursor": "modified"}
    report = reports(file, s=odd)['odd "table']
    assert cursor_probes(report) == {
        "modified has no index: each poll reads the whole table": "warning",
        "modified is NULL in some rows, which a poll never sees": "problem",
    }
    assert not report.healthy
    execute(file, "\n".join(found.fix for found in report.probes if found.name == "cursor"))
    assert cursor_probes(reports(file, s=odd)['odd "table']) == {"modified may become NULL": "warning"}
    course = {"table": "course", "pattern": "query", "cursor": "updated_at"}
    assert cursor_probes(reports(file, s=course)["course"]) == {"updated_at is indexed and always set": "good"}
    course["cursor"] = "updated"
    assert cursor_probes(reports(file, s=course)["course"]) == {"the table has no column updated": "problem"}


def test_a_table_without_a_key(file: Path) -> None:
    stream = {"table": "keyless", "pattern": "trigger"}
    assert probe(reports(file, s=stream)["keyless"], "key").state == "problem"
    assert probe(reports(file, s={**stream, "key": ["n"]})["keyless"], "key").state == "warning"


def install_triggers(file: Path) -> None:
    """What a first run does to the table `plain`."""
    config = StreamConfig(source="lms", table="plain", pattern="trigger")
    source = plugins.source_factory("sqlite", "trigger")(
        name="lms/trigger",
        pipeline="p",
        config=SourceConfig.model_validate(f"sqlite:///{file}"),
        captures=[Capture("s", TableId("", "plain"), ("id", "n"), ("id",), config)],
        epoch=1,
        config_dir=str(file.parent),
    )
    with closing(source):
        assert sum(map(len, source.read(None, follow=False))) == 0


def test_f70_triggers_of_ours_that_are_there_dropped_or_left_over(file: Path) -> None:
    stream = {"table": "plain", "pattern": "trigger"}
    assert probe(reports(file, s=stream)["plain"], "triggers").text == "not there yet"
    install_triggers(file)
    report = reports(file, s=stream)["plain"]
    assert probe(report, "triggers").state == "good"
    assert report.healthy
    assert probe(reports(file)["plain"], "triggers").text == "in place, and no stream needs them any more"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(
            "CREATE TABLE new (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO new SELECT * FROM plain"
        )
        connection.executescript("DROP TABLE plain; ALTER TABLE new RENAME TO plain")
    report = reports(file, s=stream)["plain"]
    assert probe(report, "triggers").state == "problem"
    assert not report.healthy


def test_f70_drop_column_is_explained_where_triggers_stand_in_its_way(file: Path) -> None:
    stream = {"table": "plain", "pattern": "trigger"}
    install_triggers(file)
    with pytest.raises(sqlite3.OperationalError, match="trigger"):
        execute(file, "ALTER TABLE plain DROP COLUMN n")
    found = probe(reports(file, s=stream)["plain"], "drop column")
    assert found.fix == "headwater migrate FILE 'ALTER TABLE \"plain\" DROP COLUMN ...'"


def test_a_virtual_table_has_no_triggers(file: Path) -> None:
    execute(file, "CREATE VIRTUAL TABLE words USING fts5(word)")
    pattern = ways(reports(file)["words"])["trigger"]
    assert pattern.why_not == "a virtual table cannot have triggers; capture the tables that it is made from"
    with pytest.raises(sqlite3.OperationalError, match="virtual"):
        execute(file, "CREATE TRIGGER t AFTER INSERT ON words BEGIN SELECT 1; END")


def test_a_file_that_is_not_there_is_a_report(file: Path) -> None:
    file.unlink()
    (report,) = reports(file).values()
    assert (report.table, report.healthy) == ("", False)
    assert probe(report, "source").text == f"there is no database file {file}"


def test_f70_a_locked_file_is_a_finding(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        data = {
            "name": "p",
            "sources": {"lms": {"url": f"sqlite:///{file}", "options": {"busy_timeout": 0}}},
            "directory": file.parent,
        }
        (report,) = doctor(Config.model_validate(data))
    assert probe(report, "source").state == "problem"
    assert "lock" in probe(report, "source").text


def test_looking_changes_nothing(file: Path) -> None:
    before = file.read_bytes()
    reports(file, s={"table": "plain", "pattern": "trigger"})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["lms.db"]


def test_reports_are_plain_values(file: Path) -> None:
    data = asdict(reports(file)["course"])
    assert data["patterns"][1]["way"] == "trigger"


def test_the_documentation_has_the_table_of_sights() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert markdown() in text
    assert len(markdown().splitlines()) == len([field for field in fields(Sight) if field.type == "str"]) + 2
    assert list(SIGHTS) == ["log", "trigger", "outbox", "query by timestamp", "query by id", "bulk query"]
