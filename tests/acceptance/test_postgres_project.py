"""From a PostgreSQL address to a project: `init` writes no password, `check` and `doctor` read what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater.config import load
from headwater.drivers.postgres import connect, execute
from headwater.testing.postgres import PostgresServer

pytestmark = pytest.mark.needs("postgres")

SECRET = "hunter2}&x"
ENCODED = "hunter2%7D%26x"

SCHEMA = (
    "CREATE TABLE student (id int PRIMARY KEY, email text, password text, joined timestamptz NOT NULL)",
    "CREATE TABLE course (id int PRIMARY KEY, title text NOT NULL, language text)",
    "CREATE TABLE enrollment (id int PRIMARY KEY, student_id int NOT NULL REFERENCES student,"
    " course_id int NOT NULL REFERENCES course, mode text)",
    "CREATE TABLE note (body text)",
    "CREATE SCHEMA billing",
    "CREATE TABLE billing.invoice (id int PRIMARY KEY, student_id int REFERENCES student, total numeric(10,2))",
    "CREATE TABLE billing.course (id int PRIMARY KEY, price numeric(10,2))",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One whose role `lms_owner` needs its password, and may do all that capture asks for."""
    with PostgresServer(tmp_path_factory.mktemp("lms") / "data") as made:
        made.execute(
            f"CREATE ROLE lms_owner LOGIN REPLICATION PASSWORD '{SECRET}'", "CREATE DATABASE lms OWNER lms_owner"
        )
        made.execute("GRANT CREATE ON SCHEMA public TO lms_owner", "SET ROLE lms_owner", *SCHEMA, database="lms")
        hba = made.directory / "pg_hba.conf"
        hba.write_text("host all postgres all trust\nhost all lms_owner all scram-sha-256\n")
        made.execute("SELECT pg_reload_conf()")
        yield made


def headwater(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, which must never say the password."""
    environment = {**os.environ, **variables}
    line = [sys.executable, "-m", "headwater", *arguments]
    done = subprocess.run(
        line, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "hunter2" not in done.stdout + done.stderr
    return done


def address(server: PostgresServer, password: str = f":{ENCODED}") -> str:
    return f"postgresql://lms_owner{password}@127.0.0.1:{server.port}/lms?connect_timeout=5"


@pytest.fixture(scope="module")
def project(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("project")
    done = headwater(directory, "init", address(server))
    assert done.returncode == 0, done.stderr
    return directory


def test_f81_init_writes_no_password(server: PostgresServer, project: Path) -> None:
    for path in project.rglob("*.yaml"):
        assert "hunter2" not in path.read_text()
    text = (project / "headwater.yaml").read_text()
    assert f"lms: ${{LMS_URL:-{address(server, '')}}}" in text
    assert "PGPASSWORD" in text


def test_the_written_file_is_read_with_the_variable_and_without(
    server: PostgresServer, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LMS_URL", raising=False)
    bare = load(project / "headwater.yaml")
    assert bare.sources["lms"].url.get_secret_value() == address(server, "")
    monkeypatch.setenv("LMS_URL", address(server))
    assert load(project / "headwater.yaml").sources["lms"].url.get_secret_value() == address(server)


def test_what_init_chose(project: Path) -> None:
    streams: dict[str, dict[str, Any]] = yaml.safe_load((project / "headwater.yaml").read_text())["streams"]
    chosen = {stream["table"]: (name, stream["pattern"]) for name, stream in streams.items()}
    assert chosen == {
        "public.student": ("lms.student", "log"),
        "public.course": ("lms.course", "log"),
        "public.enrollment": ("lms.enrollment", "log"),
        "billing.invoice": ("billing.invoice", "log"),
        "billing.course": ("billing.billing_course", "log"),
    }
    text = (project / "headwater.yaml").read_text()
    assert "public.note: a table without a primary key" in text
    student = yaml.safe_load((project / "contracts" / "lms.student.yaml").read_text())
    assert set(student["fields"]) == {"student_id", "joined"}
    invoice = yaml.safe_load((project / "contracts" / "billing.invoice.yaml").read_text())
    assert invoice["fields"]["student_id"] == {"type": "int32", "optional": True, "ref": "student"}
    assert invoice["fields"]["total"] == {"type": "decimal(10,2)", "optional": True}


def test_check_and_doctor_are_content(server: PostgresServer, project: Path) -> None:
    checked = headwater(project, "check", "--json", LMS_URL=address(server))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    examined = headwater(project, "doctor", "--json", LMS_URL=address(server))
    reports = {report["table"]: report for report in json.loads(examined.stdout)}
    assert examined.returncode == 0, examined.stdout
    assert [way["way"] for way in reports["public.course"]["patterns"] if way["chosen"]] == ["log"]
    shown = headwater(project, "doctor", PGPASSWORD=SECRET)
    assert "lms, as a whole" in shown.stdout


@pytest.mark.parametrize("command", ["check", "doctor", "grants", "run --once", "verify"])
def test_f81_a_wrong_password_is_told_by_no_command(server: PostgresServer, project: Path, command: str) -> None:
    wrong = address(server, ":hunter2wrong")
    done = headwater(project, *command.split(), LMS_URL=wrong, HEADWATER_TRACEBACK="1")
    assert "password authentication failed" in done.stdout + done.stderr


@pytest.mark.parametrize("password", ["hunter2@home", "hunter2/home", "hunter2%zz"])
def test_f81_an_address_that_cannot_be_read_is_told_without_its_password(
    server: PostgresServer, tmp_path: Path, password: str
) -> None:
    done = headwater(tmp_path, "init", address(server, f":{password}"))
    assert done.returncode == 2
    assert "error: " in done.stderr


def test_f81_no_address_at_all(tmp_path: Path) -> None:
    done = headwater(tmp_path, "init", "host=127.0.0.1 password=hunter2 dbname=lms")
    assert (done.returncode, "write it as a URL: postgresql://" in done.stderr) == (2, True)


def test_where_the_log_is_not_to_be_had_triggers_are(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "data", settings={"wal_level": "replica"}) as plain:
        plain.execute("CREATE TABLE course (id int PRIMARY KEY, title text)")
        done = headwater(tmp_path, "init", plain.url, "--directory", "project")
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "project" / "headwater.yaml").read_text()
        assert "pattern: trigger" in text
        assert "# Not from the log: wal_level is replica: the log cannot be decoded" in text


def test_f84_destroy_takes_what_is_this_pipelines_and_nothing_else(server: PostgresServer, tmp_path: Path) -> None:
    url = server.create_database("shared")
    server.execute("CREATE TABLE t (id int PRIMARY KEY)", database="shared")
    slot, publication = (
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
        'CREATE PUBLICATION "{}" FOR TABLE t',
    )
    ours, others = ("headwater_a_b_shared",), ("headwater_a_b_shared_x", "headwaterXa_b_shared", "headwater_a_shared")
    for name in (*ours, *others):
        with connect(url, application="tests") as connection:
            execute(connection, slot.format(name.lower()))
            execute(connection, publication.format(name))
    file = {"headwater": 1, "name": "a-b", "sources": {"shared": url}}
    (tmp_path / "headwater.yaml").write_text(yaml.safe_dump(file))
    done = headwater(tmp_path, "destroy", "--yes")
    assert done.stdout.splitlines()[:2] == [
        "removed shared: replication slot headwater_a_b_shared",
        "removed shared: publication headwater_a_b_shared",
    ]
    slots = server.execute("SELECT slot_name FROM pg_replication_slots WHERE database = 'shared' ORDER BY 1")
    left = server.execute("SELECT pubname FROM pg_publication ORDER BY 1", database="shared")
    assert {name for (name,) in slots} == {name.lower() for name in others}
    assert {name for (name,) in left} == set(others)
    server.drop_database("shared")


def test_destroy_names_what_the_owner_made(server: PostgresServer, tmp_path: Path) -> None:
    url = server.create_database("owned")
    server.execute(
        "CREATE TABLE t (id int PRIMARY KEY)", 'CREATE PUBLICATION "headwater_p_owned" FOR TABLE t', database="owned"
    )
    file = {"headwater": 1, "name": "p", "sources": {"owned": url.replace("postgres@", f"lms_owner:{ENCODED}@")}}
    (tmp_path / "headwater.yaml").write_text(yaml.safe_dump(file))
    done = headwater(tmp_path, "destroy", "--yes")
    owner = "publication headwater_p_owned, which belongs to postgres"
    assert done.stdout == f'left owned: {owner}: DROP PUBLICATION "headwater_p_owned";\n'
    server.drop_database("owned")
