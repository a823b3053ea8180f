"""The private PostgreSQL that tests run against."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.drivers.postgres import connect, execute
from headwater.testing.postgres import PostgresServer, binaries

pytestmark = pytest.mark.needs("postgres")


def test_a_database_is_empty_and_logs_logically(database: str) -> None:
    with connect(database, application="test") as connection:
        assert execute(connection, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
        assert execute(connection, "SHOW wal_level") == [("logical",)]


def test_a_database_goes_with_its_slots(postgres_server: PostgresServer) -> None:
    postgres_server.create_database("gone")
    postgres_server.execute("SELECT pg_create_logical_replication_slot('gone', 'pgoutput')", database="gone")
    postgres_server.drop_database("gone")
    assert postgres_server.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'gone'") == [(0,)]


def test_a_directory_without_a_server_is_refused_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_TEST_POSTGRES", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"HEADWATER_TEST_POSTGRES is {tmp_path}, which holds no `initdb`"):
        binaries()


def test_what_initdb_says_against_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="(?s)`initdb .*unrecognized option '--nonsense'"):
        PostgresServer(tmp_path / "data", initdb=["--nonsense"])
