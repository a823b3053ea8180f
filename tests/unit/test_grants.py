"""`headwater grants`: a role with exactly that SQL can capture, and without any one line of it cannot."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater import plugins
from headwater.config import Config
from headwater.doctor import doctor
from headwater.drivers.postgres import connect, execute
from headwater.errors import ConfigError, HeadwaterError, SourceError
from headwater.grants import Grant, SourceGrants, grants
from headwater.model import TableId
from headwater.protocols import Capture

pytestmark = pytest.mark.needs("postgres")

ROLE = "capturer"
PATIENCE = 10.0
"""Seconds that a capture may go on without what it needs."""


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    with connect(url, application="tests") as connection:
        for statement in statements:
            rows = execute(connection, statement)
    return rows


@pytest.fixture
def shop(database: str) -> Iterator[str]:
    """A database that nobody may do anything in who was not told so, with tables of a role of the application."""
    name = database.rpartition("/")[2]
    run(
        database,
        f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC',
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        "CREATE ROLE application",
        "CREATE SCHEMA sales AUTHORIZATION application",
        "SET ROLE application",
        'CREATE TABLE sales.orders (id int PRIMARY KEY, "No." text)',
        "CREATE TABLE sales.visit (at timestamptz, page text)",
        "INSERT INTO sales.orders VALUES (1, 'a'), (2, 'b')",
    )
    yield database
    roles = [
        name for (name,) in run(database, f"SELECT rolname FROM pg_roles WHERE rolname IN ('{ROLE}', 'application')")
    ]
    for role in roles:
        run(database, f"DROP OWNED BY {role} CASCADE")
    for role in roles:
        run(database, f"DROP ROLE {role}")


def config(url: str, directory: Path, pattern: str = "log", more: dict[str, Any] | None = None) -> Config:
    streams = {"sales.order": {"source": "shop", "table": "sales.orders", "pattern": pattern}, **(more or {})}
    data = {"name": "p", "sources": {"shop": url}, "streams": streams, "directory": directory}
    return Config.model_validate(data)


def asked(url: str, directory: Path, pattern: str = "log", more: dict[str, Any] | None = None) -> SourceGrants:
    (found,) = grants(config(url, directory, pattern, more), role=ROLE)
    return found


def as_role(url: str) -> str:
    return url.replace("postgres@", f"{ROLE}@")


def captured(url: str, pattern: str, directory: Path) -> list[int]:
    """The ids that a capture by the role begins with."""
    settings = config(as_role(url), directory, pattern)
    stream = settings.streams["sales.order"]
    capture = Capture("sales.order", TableId("sales", "orders"), ("id", "No."), ("id",), stream)
    name = "shop/query/sales.order" if pattern == "query" else f"shop/{pattern}"
    source = plugins.source_factory("postgresql", pattern)(
        name=name,
        pipeline="p",
        config=settings.sources["shop"],
        captures=[capture],
        epoch=1,
        config_dir=str(directory),
    )
    ids: list[int] = []
    limit = threading.Timer(PATIENCE, source.stop)
    limit.start()
    with closing(source):
        for batch in source.read(None, follow=False):
            for changes in batch.changes:
                ids += [row["id"] for row in changes.data.column("after").to_pylist()]
        limit.cancel()
        for error in source.broken.values():
            raise error
    return sorted(ids)


def statements(sql: str) -> str:
    """Without the comments that people read."""
    return "\n".join(line.partition("  --")[0] for line in sql.splitlines())


def clean_up(url: str) -> None:
    """What a capture leaves."""
    run(
        url,
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
        "DROP PUBLICATION IF EXISTS headwater_p_shop",
    )


PATTERNS = ["log", "query", "trigger"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_exactly_that_sql_is_enough(shop: str, tmp_path: Path, pattern: str) -> None:
    found = asked(shop, tmp_path, pattern)
    assert found.missing == found.grants
    run(shop, *(statements(grant.sql) for grant in found.grants))
    assert asked(shop, tmp_path, pattern).missing == ()
    assert captured(shop, pattern, tmp_path) == [1, 2]
    assert asked(shop, tmp_path, pattern).missing == ()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_without_any_one_line_it_cannot(shop: str, tmp_path: Path, pattern: str) -> None:
    count = len(asked(shop, tmp_path, pattern).grants)
    for left_out in range(count):
        found = asked(shop, tmp_path, pattern)
        ran = [grant for number, grant in enumerate(found.grants) if number != left_out]
        for grant in ran:
            try_to(shop, grant)
        lacking = [grant.why for grant in asked(shop, tmp_path, pattern).missing]
        assert found.grants[left_out].why in lacking
        with pytest.raises(HeadwaterError):
            captured(shop, pattern, tmp_path)
        clean_up(shop)
        if run(shop, f"SELECT 1 FROM pg_roles WHERE rolname = '{ROLE}'"):
            run(shop, f"DROP OWNED BY {ROLE} CASCADE", f"DROP ROLE {ROLE}")


def try_to(url: str, grant: Grant) -> None:
    """Nothing can be granted to a role that was not made."""
    if (
        ROLE not in grant.sql
        or "CREATE ROLE" in grant.sql
        or run(url, f"SELECT 1 FROM pg_roles WHERE rolname = '{ROLE}'")
    ):
        run(url, statements(grant.sql))


def test_a_schema_that_may_not_be_used_breaks_its_stream_and_says_what_to_grant(shop: str, tmp_path: Path) -> None:
    run(shop, *(statements(grant.sql) for grant in asked(shop, tmp_path).grants))
    run(shop, f"REVOKE USAGE ON SCHEMA sales FROM {ROLE}")
    with pytest.raises(SourceError, match="permission denied for schema sales") as caught:
        captured(shop, "log", tmp_path)
    assert "`headwater grants`" in caught.value.hint
    (missing,) = asked(shop, tmp_path).missing
    run(shop, missing.sql)
    assert captured(shop, "log", tmp_path) == [1, 2]


def test_the_role_owns_nothing_and_can_create_nothing(shop: str, tmp_path: Path) -> None:
    run(shop, *(statements(grant.sql) for grant in asked(shop, tmp_path).grants))
    for sql in (
        "CREATE TABLE public.x (n int)",
        "CREATE TABLE sales.x (n int)",
        "CREATE SCHEMA x",
        "DROP TABLE sales.orders",
    ):
        with pytest.raises(HeadwaterError, match="permission denied|must be owner"):
            run(as_role(shop), sql)
    for sql in ("INSERT INTO sales.orders VALUES (3)", "SELECT * FROM sales.visit"):
        with pytest.raises(HeadwaterError, match="permission denied"):
            run(as_role(shop), sql)


def contract(directory: Path, stream: str, kind: str) -> None:
    (directory / "contracts").mkdir(exist_ok=True)
    fields = {"page": {"type": "string", "optional": True}}
    text = {"stream": stream, "version": 1, "owner": "o", "kind": kind, "fields": fields}
    if kind == "fact":
        text["key"] = ["page"]
    (directory / "contracts" / f"{stream}.yaml").write_text(yaml.safe_dump(text))


VISIT = {"source": "shop", "table": "sales.visit", "pattern": "log"}


def test_f85_a_table_without_identity_gets_one_before_it_is_published(shop: str, tmp_path: Path) -> None:
    contract(tmp_path, "sales.visit", "fact")
    found = asked(shop, tmp_path, more={"sales.visit": VISIT})
    sqls = [grant.sql for grant in found.grants]
    (identity,) = [number for number, sql in enumerate(sqls) if "REPLICA IDENTITY FULL" in sql]
    (publication,) = [number for number, sql in enumerate(sqls) if "CREATE PUBLICATION" in sql]
    assert identity < publication
    run(
        shop, *map(statements, sqls), "INSERT INTO sales.visit VALUES (now(), 'a')", "UPDATE sales.visit SET page = 'b'"
    )


def test_f85_of_events_without_identity_inserts_alone_are_published(shop: str, tmp_path: Path) -> None:
    contract(tmp_path, "sales.visit", "event")
    found = asked(shop, tmp_path, more={"sales.visit": VISIT})
    run(shop, *(statements(grant.sql) for grant in found.grants))
    run(shop, "INSERT INTO sales.visit VALUES (now(), 'a')", "UPDATE sales.visit SET page = 'b'")
    published = run(shop, "SELECT pubname, tablename FROM pg_publication_tables ORDER BY 1")
    assert published == [("headwater_p_shop", "orders"), ("headwater_p_shop_inserts", "visit")]
    assert asked(shop, tmp_path, more={"sales.visit": VISIT}).missing == ()


def test_a_table_that_is_added_later_is_added_to_the_publication(shop: str, tmp_path: Path) -> None:
    run(shop, *(statements(grant.sql) for grant in asked(shop, tmp_path).grants))
    run(shop, "ALTER TABLE sales.visit ADD PRIMARY KEY (at)")
    missing = asked(shop, tmp_path, more={"sales.visit": VISIT}).missing
    assert [grant.sql for grant in missing] == [
        'GRANT SELECT ON "sales"."visit" TO "capturer";',
        'ALTER PUBLICATION "headwater_p_shop" ADD TABLE ONLY "sales"."visit";',
    ]
    run(shop, *(grant.sql for grant in missing))
    assert asked(shop, tmp_path, more={"sales.visit": VISIT}).missing == ()


def test_row_security_hides_rows(shop: str, tmp_path: Path) -> None:
    run(shop, *(statements(grant.sql) for grant in asked(shop, tmp_path).grants))
    run(shop, "ALTER TABLE sales.orders ENABLE ROW LEVEL SECURITY")
    (missing,) = asked(shop, tmp_path).missing
    assert run(as_role(shop), "SELECT count(*) FROM sales.orders") == [(0,)]
    run(shop, missing.sql)
    assert run(as_role(shop), "SELECT count(*) FROM sales.orders") == [(2,)]


def test_a_superuser_is_never_granted(shop: str, tmp_path: Path) -> None:
    run(shop, "ALTER TABLE sales.orders OWNER TO postgres")
    sqls = [grant.sql for grant in asked(shop, tmp_path, "trigger").grants]
    assert not any(sql.startswith('GRANT "postgres"') for sql in sqls)
    assert any(sql.startswith("-- not `GRANT") for sql in sqls)


def test_doctor_is_content_with_what_was_granted(shop: str, tmp_path: Path) -> None:
    run(shop, *(statements(grant.sql) for grant in asked(shop, tmp_path).grants))
    reports = doctor(config(as_role(shop), tmp_path))
    assert all(report.healthy for report in reports)


def test_a_source_that_has_nothing_to_grant(tmp_path: Path) -> None:
    data = {"name": "p", "sources": {"lms": "sqlite:///x.db", "far": "postgresql://h/db"}, "directory": tmp_path}
    loaded = Config.model_validate(data)
    with pytest.raises(ConfigError, match="source `lms` is no PostgreSQL"):
        grants(loaded, source="lms")
    with pytest.raises(ConfigError, match="there is no source `lsm`") as caught:
        grants(loaded, source="lsm")
    assert caught.value.hint == "did you mean `lms`?"


def test_the_command(shop: str, tmp_path: Path) -> None:
    file = tmp_path / "headwater.yaml"
    streams = {"sales.order": {"source": "shop", "table": "sales.orders", "pattern": "log"}}
    file.write_text(yaml.safe_dump({"headwater": 1, "name": "p", "sources": {"shop": shop}, "streams": streams}))

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "headwater", "grants", "--config", str(file), "--role", ROLE, *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    printed = command("--check")
    assert (printed.returncode, 'CREATE ROLE "capturer" LOGIN REPLICATION;' in printed.stdout) == (1, True)
    script = command("shop")
    assert script.returncode == 0
    run(shop, *(part for part in statements(uncommented(script.stdout)).split(";") if part.strip()))
    again = command("--check")
    assert (again.returncode, again.stdout) == (0, "nothing is missing\n")
    refused = command("--pattern", "outbox")
    assert (refused.returncode, "no pattern that needs rights" in refused.stderr) == (2, True)


def uncommented(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))
