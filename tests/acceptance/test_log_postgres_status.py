"""`headwater status` of a log pipeline: what the server keeps for the capture (F8)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.postgres_project import PostgresProject
from tests.acceptance.project import until

pytestmark = pytest.mark.needs("postgres")

SLOT = "headwater_tests_shop"


@pytest.fixture
def project(tmp_path: Path, database: str) -> PostgresProject:
    project = PostgresProject(tmp_path, url=database)
    project.config["sources"]["shop"] = {"url": database, "options": {"idle_advance": "100ms"}}
    return project


def status(project: PostgresProject, *arguments: str) -> str:
    file = project.directory / "headwater.yaml"
    command = [sys.executable, "-m", "headwater", "status", "--config", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    return " ".join(done.stdout.split())


def test_f08_status_says_what_the_server_keeps_for_a_capture(project: PostgresProject) -> None:
    project.run("INSERT INTO item VALUES (1, 'one', 10);")
    project.sql("CREATE TABLE noise AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 5000)")
    (stopped,) = json.loads(status(project, "--json"))["captures"]
    assert (stopped["capture"], stopped["streams"], stopped["error"]) == ("shop/log", ["shop.item"], "")
    assert stopped["pending"]["behind"] > 5_000_000
    assert stopped["pending"]["kept"] >= stopped["pending"]["behind"]
    text = status(project)
    assert f"shop/log: slot {SLOT}:" in text
    assert "of WAL to read" in text
    assert "more with every write until the capture runs" in text
    with project.running():
        until(lambda: "until the capture runs" not in status(project))
        until(lambda: json.loads(status(project, "--json"))["captures"][0]["pending"]["behind"] < 1_000_000)


def test_status_says_that_there_is_no_slot(project: PostgresProject) -> None:
    project.run()
    project.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    (capture,) = json.loads(status(project, "--json"))["captures"]
    assert capture["pending"] == {"behind": 0, "kept": 0, "text": f"there is no replication slot {SLOT}"}
