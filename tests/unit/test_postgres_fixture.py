"""The private PostgreSQL that tests run against."""

from __future__ import annotations

import pytest

from headwater.drivers.postgres import connect, execute
from headwater.testing.postgres import PostgresServer

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
