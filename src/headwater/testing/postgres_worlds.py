"""The suite's table in a PostgreSQL database, captured by each of its patterns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from headwater.config import SourceConfig, StreamConfig
from headwater.drivers.postgres import connect, execute
from headwater.model import TableId
from headwater.protocols import Load, Source
from headwater.testing.sources import Rows, World, opened

TABLE = TableId("public", "row")


class PostgresWorld:
    """`url`: of an empty database. `stream`: the stream's configuration beyond table and pattern."""

    def __init__(self, url: str, pattern: str, **stream: Any) -> None:
        self.every = pattern != "query"
        self.url = url
        self._pattern = pattern
        self._stream = StreamConfig.model_validate(
            {"source": "db", "table": "public.row", "pattern": pattern, **stream}
        )
        self._clock = itertools.count()
        self._connection = connect(url, application="suite")
        execute(self._connection, "CREATE TABLE row (id int PRIMARY KEY, name text, at timestamptz NOT NULL)")
        execute(self._connection, "CREATE INDEX ON row (at)")

    def put(self, rows: Rows) -> None:
        second = next(self._clock)
        execute(
            self._connection,
            "INSERT INTO row SELECT *, timestamptz '2024-01-01 00:00Z' + %s * interval '1 second'"
            " FROM unnest(%s::int[], %s::text[])"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name, at = excluded.at",
            [second, list(rows), list(rows.values())],
        )

    def delete(self, *ids: int) -> None:
        execute(self._connection, "DELETE FROM row WHERE id = ANY (%s)", [list(ids)])

    def rows(self) -> Rows:
        return dict(execute(self._connection, "SELECT id, name FROM row"))

    def open(self, load: Load) -> Source:
        return opened("postgresql", self._pattern, SourceConfig.model_validate(self.url), self._stream, load, TABLE)

    def close(self) -> None:
        self._connection.close()


def postgres_worlds(url: str) -> dict[str, dict[str, Callable[[], World]]]:
    """By adapter, and by a name for each of its ways to capture."""

    def world(pattern: str, **stream: Any) -> Callable[[], World]:
        return lambda: PostgresWorld(url, pattern, **stream)

    sql = "SELECT id, name, at FROM row WHERE at > :cursor"
    moments = {"cursor": "at", "every": 0.01, "reconcile_deletes": 0}
    return {
        "postgresql+log": {"log": world("log")},
        "postgresql+trigger": {"trigger": world("trigger")},
        "postgresql+query": {
            "bulk": world("query", every=0.01, page_size=2),
            "timestamp": world("query", page_size=2, look_back=2, **moments),
            "timestamp without look-back": world("query", page_size=3, look_back=0, **moments),
            "id": world("query", cursor="id", every=0.01, reconcile_deletes=0),
            "sql": world("query", table=None, query=sql, key=("id",), look_back=3, **moments),
        },
    }
