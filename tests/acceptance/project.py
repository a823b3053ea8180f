"""A project on disk with a SQLite source, for tests that go the whole path: change something, run once, look."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import yaml

from headwater import config as configuration
from headwater.assembly import Assembly
from headwater.errors import HeadwaterError
from headwater.mapping.evolve import conform
from headwater.model import Op
from headwater.runtime import start
from headwater.supervisor import Supervisor
from headwater.verify import gaps, verify_sink, verify_source

Row = tuple[Any, ...]

TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, size INTEGER, updated_at INTEGER NOT NULL DEFAULT 0);
CREATE INDEX item_updated_at ON item (updated_at, id);
"""


def contract(stream: str, version: int = 1, **changes: Any) -> dict[str, Any]:
    """A fact keyed by `item_id`, with `name` and `size`."""
    fields: dict[str, Any] = {
        "item_id": {"type": "int64"},
        "name": {"type": "string", "optional": True},
        "size": {"type": "int64", "optional": True},
    }
    return {"stream": stream, "version": version, "owner": "tests", "key": ["item_id"], "fields": fields, **changes}


def stream(**changes: Any) -> dict[str, Any]:
    made = {"source": "shop", "table": "item", "pattern": "trigger", "fields": {"item_id": "id"}, **changes}
    return {name: value for name, value in made.items() if value is not None}


@dataclass
class Project:
    """Its configuration is plain data that a test may change between two runs."""

    directory: Path
    config: dict[str, Any] = field(
        default_factory=lambda: {
            "headwater": 1,
            "name": "tests",
            "bus": "embedded:data",
            "sources": {"shop": "sqlite:///shop.db"},
            "streams": {"shop.item": stream()},
            "sinks": {"warehouse": {"url": "duckdb:warehouse.duckdb"}},
        }
    )
    contracts: dict[str, dict[str, Any]] = field(default_factory=lambda: {"shop.item": contract("shop.item")})
    tables: ClassVar[str] = TABLES

    def __post_init__(self) -> None:
        self.sql(self.tables)

    def sql(self, script: str) -> None:
        """What the application does."""
        source = sqlite3.connect(self.directory / "shop.db")
        source.executescript(script)
        source.close()

    def save(self) -> configuration.Config:
        """What has not changed is left alone, the rest is there at once or not at all: a program may be reading it."""
        (self.directory / "contracts").mkdir(exist_ok=True)
        for path in (self.directory / "contracts").glob("*.yaml"):
            if path.stem not in self.contracts:
                path.unlink()
        for name, text in self.contracts.items():
            _replace(self.directory / "contracts" / f"{name}.yaml", yaml.safe_dump(text))
        path = self.directory / "headwater.yaml"
        _replace(path, yaml.safe_dump(self.config))
        return configuration.load(path)

    def run(self, script: str = "") -> None:
        """The application's `script`, then `headwater run --once`; every worker must end well."""
        self.sql(script)
        assert self.try_run() == {}

    def try_run(self) -> dict[str, str]:
        """The errors of the workers that did not end well."""
        with Assembly(self.save(), append=True) as assembly:
            supervisor = start(assembly)
            supervisor.run(follow=False)
            workers = supervisor.figures().workers.values()
            return {worker.name: worker.error for worker in workers if worker.error}

    def tried(self) -> list[str]:
        """What is said of a run that does not go well, by workers, or before any begins."""
        try:
            return list(self.try_run().values())
        except HeadwaterError as error:
            return [str(error)]

    @contextmanager
    def running(self) -> Iterator[Supervisor]:
        """`headwater run`, until the block ends."""
        with Assembly(self.save(), append=True) as assembly:
            supervisor = start(assembly)
            thread = threading.Thread(target=supervisor.run, args=(True,), daemon=True)
            thread.start()
            try:
                yield supervisor
            finally:
                supervisor.stop()
                thread.join(120)
                assert not thread.is_alive()

    def require_equal(self, name: str = "shop.item", *, expanded: bool = False) -> None:
        """By `verify`: stream and database, every sink and stream; and no change is in the stream twice.

        `expanded`: the stream holds deletes that stand for one truncate, and so share its place.
        """
        with self.assembly() as assembly:
            contract = assembly.contract(name)
            if contract.kind == "fact":
                with closing(assembly.source(assembly.capture_of(name))) as source:
                    verify_source(assembly.bus, name, contract, source, assembly.mapping(name)).require_equal()
            for sink_name in self.config["sinks"]:
                if name in assembly.streams_of(sink_name):
                    with closing(assembly.sink(sink_name)) as sink:
                        sink.prepare(contract)
                        mode = assembly.config.sinks[sink_name].mode
                        verify_sink(assembly.bus, name, contract, sink, mode=mode).require_equal()
            found = gaps(assembly.bus, name, contract)
            assert (expanded or found.repeated == (), found.missing) == (True, 0)

    def assembly(self, *, append: bool = False) -> Assembly:
        return Assembly(self.save(), append=append)

    def rows(self, columns: str = "item_id, name, size", table: str = "shop_item") -> set[Row]:
        """What the DuckDB sink shows."""
        with duckdb.connect(str(self.directory / "warehouse.duckdb"), read_only=True) as db:
            return set(db.execute(f"SELECT {columns} FROM {table}").fetchall())

    def source(self, columns: str = "id, name, size", where: str = "true") -> set[Row]:
        db = sqlite3.connect(self.directory / "shop.db")
        found = set(db.execute(f"SELECT {columns} FROM item WHERE {where}").fetchall())
        db.close()
        return found

    def events(self, name: str = "shop.item", *columns: str) -> list[Row]:
        """(op letter, columns) of each event, in the order of the stream."""
        wanted = columns or ("item_id", "name", "size")
        found: list[Row] = []
        with self.assembly() as assembly:
            for events in assembly.bus.read(name, after=None, follow=False):
                data = conform(events.data, assembly.contract(name))
                ops = [Op(op).letter for op in data.column("_op").to_pylist()]
                values = (data.column(column).to_pylist() for column in wanted)
                found += zip(ops, *values, strict=True)
        return found

    def head(self, name: str = "shop.item") -> int | None:
        """How many events the stream has had; None before it is declared."""
        with self.assembly() as assembly:
            state = assembly.bus.streams().get(name)
            return None if state is None else state.head

    def made(self) -> set[str]:
        """What Headwater made: the bus, the targets, and what is in the database."""
        files = {path.name for path in self.directory.iterdir()} - {"shop.db", "headwater.yaml", "contracts"}
        with closing(sqlite3.connect(self.directory / "shop.db")) as db:
            ours = db.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%headwater%'").fetchall()
        return {name for name in files if not name.startswith("shop.db-")} | {name for (name,) in ours}

    def epochs(self, name: str = "shop.item") -> list[int]:
        found: list[int] = []
        with self.assembly() as assembly:
            for events in assembly.bus.read(name, after=None, follow=False):
                found += events.data.column("_epoch").to_pylist()
        return found

    def notes(self, kind: str, name: str = "shop.item") -> list[str]:
        return [text for found, text in self.all_notes(name) if found == kind]

    def all_notes(self, name: str = "shop.item") -> list[tuple[str, str]]:
        with self.assembly() as assembly:
            return [(placed.note.kind, placed.note.text) for placed in assembly.bus.notes(name)]


def _replace(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)


@contextmanager
def program(script: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Another program, that says when it is ready, and ends with the block."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(120)


def until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        tick.wait(0.05)
