"""A PostgreSQL database under trigger capture, with the replicas of `trigger_world`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

from headwater.config import SourceConfig, StreamConfig
from headwater.drivers.postgres import connect, execute, quoted
from headwater.model import Order, TableId
from headwater.protocols import Capture, Load
from headwater.sources.trigger_postgres import TriggerSource, open_source
from tests.trigger_world import PIPELINE, Replica, Row, World


def capture(
    table: str,
    columns: Sequence[str],
    key: Sequence[str],
    *,
    stream: str | None = None,
    load: Load | None = None,
    schema: str = "public",
) -> Capture:
    config = StreamConfig(source="app", table=f"{schema}.{table}", pattern="trigger")
    return Capture(
        stream or f"s.{table}", TableId(schema, table), tuple(columns), tuple(key), config, load or Load("initial")
    )


class PgReplica(Replica):
    def _event(self, letter: str, order: Order, before: Row | None, after: Row | None) -> None:
        if letter != "t":
            super()._event(letter, order, before, after)
            return
        self.history.append((letter, None, None))
        for key in list(self.rows):
            self._set(key, order, None)


class PgWorld(World):
    """`url`: of an empty database. `execute` is the application, on a connection of its own."""

    def __init__(self, url: str, script: str = "") -> None:  # the other world's is SQLite's
        self.url = url
        self.connection = connect(url, application="application")
        self.captures = []
        self.replicas = {}
        self.position = None
        self.notes = []
        self.batches = []
        self.epoch = 0
        self.options: dict[str, Any] = {}
        if script:
            self.execute(script)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return execute(self.connection, sql)

    def capture(self, *captures: Capture) -> None:
        self.captures = list(captures)
        for one in captures:
            self.replicas.setdefault(one.stream, PgReplica(one.key, one.columns)).columns = one.columns

    def source(self, pipeline: str = PIPELINE) -> TriggerSource:  # type: ignore[override]
        return open_source(
            name="app/trigger",
            pipeline=pipeline,
            config=SourceConfig(url=SecretStr(self.url), options=self.options),
            captures=self.captures,
            epoch=self.epoch,
            config_dir=".",
        )

    def rows(
        self, table: str, columns: Sequence[str], key: Sequence[str], schema: str = "public"
    ) -> dict[tuple[Any, ...], Row]:
        names = ", ".join(map(quoted, columns))
        found = self.execute(f"SELECT {names} FROM {quoted(schema)}.{quoted(table)}")
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        return {tuple(row[name] for name in key): row for row in rows}

    def close(self) -> None:
        self.connection.close()
