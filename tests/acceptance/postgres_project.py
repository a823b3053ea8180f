"""A project whose source is a PostgreSQL database, for tests that go the whole path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from headwater.drivers.postgres import connect, execute
from tests.acceptance.project import Project, Row, contract, stream

TABLES = """
CREATE TABLE item (id bigint PRIMARY KEY, name text, size bigint, updated_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX item_updated_at ON item (updated_at, id);
"""


@dataclass
class PostgresProject(Project):
    """`url`: of an empty database. Its streams are captured by `pattern`."""

    url: str = ""
    pattern: str = "log"
    config: dict[str, Any] = field(default_factory=dict)
    contracts: dict[str, dict[str, Any]] = field(default_factory=lambda: {"shop.item": contract("shop.item")})

    tables: ClassVar[str] = TABLES

    def __post_init__(self) -> None:
        self.config = self.config or {
            "headwater": 1,
            "name": "tests",
            "bus": "embedded:data",
            "sources": {"shop": self.url},
            "streams": {"shop.item": self.stream()},
            "sinks": {"warehouse": {"url": "duckdb:warehouse.duckdb"}},
        }
        super().__post_init__()

    def stream(self, **changes: Any) -> dict[str, Any]:
        return stream(**{"table": "public.item", "pattern": self.pattern, **changes})

    def sql(self, script: str) -> None:
        """What the application does; more than one statement is one transaction, unless the script says otherwise."""
        if script.strip():
            with connect(self.url, application="shop") as connection:
                result = connection.pgconn.exec_(script.encode())
                assert not result.error_message, result.error_message.decode()

    def ask(self, sql: str) -> list[Row]:
        with connect(self.url, application="shop") as connection:
            return execute(connection, sql)

    def source(self, columns: str = "id, name, size", where: str = "true") -> set[Row]:
        return set(self.ask(f"SELECT {columns} FROM item WHERE {where}"))

    def made(self) -> set[str]:
        files = {path.name for path in self.directory.iterdir()} - {"headwater.yaml", "contracts"}
        ours = self.ask(
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()"
            " UNION SELECT pubname::text FROM pg_publication"
            " UNION SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'headwater%'"
        )
        return files | {name for (name,) in ours}
