"""Failure rules that only the whole path can show; see docs/failures.md."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headwater.errors import BusFull
from headwater.model import Batch, Events, Mapped, Position
from headwater.pipeline import capture
from headwater.status import status
from headwater.verify import gaps, verify_source
from tests.acceptance.project import Project, contract, stream

WRITER = """
import itertools, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30)
for number in itertools.count(1):
    with database:
        database.execute("INSERT INTO item (name, size) VALUES (?, ?)", (f"n{number}", number))
        database.execute("UPDATE item SET size = size + 1 WHERE id = ?", (number // 2,))
        database.execute("DELETE FROM item WHERE id = ?", (number // 3,))
"""


@contextmanager
def application(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """A process that never stops writing."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(project.directory / "shop.db")])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def require_equal(project: Project, name: str = "shop.item") -> None:
    """Neither lost nor doubled: the fold is the source's rows, and no change is in the stream twice."""
    with project.assembly() as assembly:
        source = assembly.source(assembly.capture_of(name))
        verify_source(assembly.bus, name, assembly.contract(name), source, assembly.mapping(name)).require_equal()
        source.close()
        found = gaps(assembly.bus, name, assembly.contract(name))
        assert (found.repeated, found.missing) == ((), 0)


class Told:
    """A source and a bus in one, that note what they are told, in which order."""

    name = "told"

    def __init__(self, *, full: bool = False) -> None:
        self.calls: list[str] = []
        self.full = full

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        yield from (Batch((), Position(1, commit, b"")) for commit in (1, 2))

    def confirm(self, position: Position) -> None:
        self.calls.append(f"confirm {position.commit}")

    def position(self, source: str) -> None:
        return None

    def append(self, mapped: Mapped, *, source: str, position: Position) -> None:
        if self.full and position.commit == 2:
            raise BusFull("there is no room left")
        self.calls.append(f"append {position.commit}")


def told(**how: Any) -> list[str]:
    both: Any = Told(**how)
    try:
        capture(both, lambda batch: Mapped(), both)
    except BusFull:
        both.calls.append("full")
    calls: list[str] = both.calls
    return calls


def test_f2_the_source_may_forget_only_what_was_appended() -> None:
    assert told() == ["append 1", "confirm 1", "append 2", "confirm 2"]
    assert told(full=True) == ["append 1", "confirm 1", "full"]


def test_f5_f6_a_long_backlog_is_captured_whole_and_once(project: Project) -> None:
    project.run("INSERT INTO item (name, size) VALUES ('first', 1)")
    for part in range(3):
        project.sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
            f" INSERT INTO item (name, size) SELECT 'part {part}', i FROM n; UPDATE item SET size = -1 WHERE id % 7 = 0"
        )
    project.run()
    assert len(project.source()) == 60_001
    assert project.rows() == project.source()
    require_equal(project)


def test_f7_f21_a_run_that_catches_up_ends_although_the_application_never_stops(project: Project) -> None:
    """Its end is a place, fixed when it began; and the first load takes over into the changes without a seam."""
    project.sql("INSERT INTO item (name, size) VALUES ('already there', 0)")
    with application(project):
        project.run()
        project.run()
    project.run()
    assert project.rows() == project.source()
    require_equal(project)


def test_f12_places_are_compared_as_integers(project: Project) -> None:
    """As text, change 9 would come after change 10, and 99 after 100."""
    project.run("INSERT INTO item (id, name, size) VALUES (1, 'x', 0)")
    project.run("".join(f"UPDATE item SET size = {number} WHERE id = 1;" for number in range(1, 121)))
    assert project.rows() == {(1, "x", 120)}
    with project.assembly() as assembly:
        commits = [c for e in assembly.bus.read("shop.item", after=None, follow=False) for c in _commits(e)]
    assert commits == sorted(commits)
    assert [str(commit) for commit in commits] != sorted(map(str, commits))


def _commits(events: Events) -> list[int]:
    found: list[int] = events.data.column("_commit").to_pylist()
    return found


@pytest.mark.parametrize("pattern", ["trigger", "query"])
def test_f25_the_filter_holds_for_the_first_load_as_for_the_changes(project: Project, pattern: str) -> None:
    cursor = {"cursor": "updated_at"} if pattern == "query" else {}
    project.config["streams"]["shop.item"] = stream(pattern=pattern, where="size < 10", **cursor)
    if pattern == "query":
        project.contracts["shop.item"] = contract("shop.item", changes="latest", deletes="unseen")
    project.run("INSERT INTO item VALUES (1, 'in', 1, 1), (2, 'out', 20, 1)")
    assert project.rows() == {(1, "in", 1)}
    project.run("INSERT INTO item VALUES (3, 'in', 3, 2), (4, 'out', 40, 2)")
    assert project.rows() == {(1, "in", 1), (3, "in", 3)}


@pytest.mark.parametrize("loaded", [True, False], ids=["first load", "one transaction"])
def test_f40_what_is_in_memory_is_bounded_in_bytes(project: Project, loaded: bool) -> None:
    """A table, or a transaction, of 80 MB comes in batches of which none is large."""
    large = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " INSERT INTO item (name, size) SELECT printf('%.4000c', 'x'), i FROM n"
    )
    if not loaded:
        project.run("INSERT INTO item (name, size) VALUES ('first', 0)")
    project.sql(large)
    with project.assembly(append=True) as assembly:
        assembly.declare()
        source = assembly.source("shop/trigger")
        batches = source.read(assembly.bus.position("shop/trigger"), follow=False)
        sizes = [sum(changes.data.nbytes for changes in batch.changes) for batch in batches]
        source.close()
    assert sum(sizes) > 80_000_000
    assert max(sizes) < 40_000_000


def test_f50_f53_columns_that_come_go_and_change_places_are_taken_by_name(project: Project) -> None:
    project.run("INSERT INTO item (id, name, size) VALUES (1, 'one', 1)")
    project.run("ALTER TABLE item ADD COLUMN colour TEXT; INSERT INTO item VALUES (2, 'two', 2, 0, 'red')")
    project.run(
        "CREATE TABLE item_new (size INTEGER, colour TEXT, id INTEGER PRIMARY KEY, name TEXT, updated_at INTEGER);"
        "INSERT INTO item_new SELECT size, colour, id, name, updated_at FROM item;"
        "DROP TABLE item; ALTER TABLE item_new RENAME TO item;"
        "INSERT INTO item (id, name, size) VALUES (3, 'three', 3); UPDATE item SET size = 20 WHERE id = 2"
    )
    project.run("INSERT INTO item (id, name, size) VALUES (4, 'four', 4)")
    assert project.rows() == {(1, "one", 1), (2, "two", 20), (3, "three", 3), (4, "four", 4)}
    require_equal(project)


def test_f56_f80_a_broken_sink_stops_alone_and_health_says_which_and_why(project: Project) -> None:
    project.config["sinks"]["copy"] = {"url": "sqlite:///copy.db"}
    project.run("INSERT INTO item (id, name, size) VALUES (1, 'one', 1)")
    (project.directory / "copy.db").write_bytes(b"this is no database" * 100)
    project.sql("INSERT INTO item (id, name, size) VALUES (2, 'two', 2)")
    (broken,) = project.try_run().items()
    assert broken[0] == "copy"
    assert project.rows() == {(1, "one", 1), (2, "two", 2)}
    with project.assembly() as assembly:
        report = status(assembly)
    sinks = {sink.sink: sink for sink in report.sinks}
    assert sinks["warehouse"].error == ""
    assert [place.lag_events for place in sinks["warehouse"].streams] == [0]
    assert sinks["copy"].error == broken[1]
    assert sinks["copy"].since is not None
    assert [place.lag_events for place in sinks["copy"].streams] == [1]
    assert not report.healthy, "a sink that does not move is not healthy, although the run has ended"
