"""`headwater demo`, small: the same story as `make demo`, told in a few seconds."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from headwater.demo.database import Size, make

COMMAND = Path(sys.executable).with_name("headwater")
LIVE = "SELECT id, user_id, course_id, mode, price FROM student_courseenrollment WHERE mode <> 'beta' ORDER BY id"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a demo that has ended, and what it printed."""
    directory = tmp_path_factory.mktemp("demo") / "demo"
    ended = subprocess.run(
        [COMMAND, "demo", str(directory), "--seconds", "3", "--learners", "1500"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return directory, ended.stdout


def test_the_demo_says_that_every_sink_equals_its_source(demo: tuple[Path, str]) -> None:
    _, shown = demo
    assert "every sink equals its source, row by row" in shown
    assert "\x1b" not in shown, "without a terminal there are plain lines"
    for command in ("headwater status", "headwater tail learning.enrollment", "headwater sql 'select"):
        assert command in shown


def test_f21_the_rows_of_a_database_that_was_written_to_meanwhile_are_in_its_warehouse(demo: tuple[Path, str]) -> None:
    directory, _ = demo
    with closing(sqlite3.connect(directory / "lms.db")) as source:
        expected = [(*row[:4], None if row[4] is None else f"{row[4]:.2f}") for row in source.execute(LIVE)]
    with duckdb.connect(str(directory / "warehouse.duckdb"), read_only=True) as warehouse:
        found = warehouse.sql(
            "select enrollment_id, learner_id, course_key, mode, price_paid::varchar"
            " from learning_enrollment order by enrollment_id"
        ).fetchall()
    assert found == expected
    assert len(expected) > 15_000


def test_the_second_demo_begins_afresh_and_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    refused = subprocess.run([COMMAND, "demo", str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "holds something that is no demo" in refused.stderr
    assert (tmp_path / "precious").read_text() == "x"


def test_its_contracts_are_well_designed(demo: tuple[Path, str]) -> None:
    directory, _ = demo
    ended = subprocess.run([COMMAND, "check"], cwd=directory, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "nothing to complain about\n")


def test_status_of_the_demo_has_no_lag(demo: tuple[Path, str]) -> None:
    directory, _ = demo
    ended = subprocess.run([COMMAND, "status", "--json"], cwd=directory, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert {stream["stream"] for stream in report["streams"]} == {
        "accounts.learner",
        "catalog.course_run",
        "learning.enrollment",
    }
    lags = [place["lag_events"] for sink in report["sinks"] for place in sink["streams"]]
    assert lags == [0] * 9


def test_the_same_seed_makes_the_same_database(tmp_path: Path) -> None:
    size = Size(learners=50, course_runs=20, enrollments_each=5)
    dumps = []
    for name in ("one.db", "two.db"):
        make(tmp_path / name, size, seed=3)
        with closing(sqlite3.connect(tmp_path / name)) as database:
            dumps.append(list(database.iterdump()))
    assert dumps[0] == dumps[1]
    assert len(dumps[0]) > 300
