"""A project on disk with a SQLite source, for tests that go the whole path: change something, run once, look."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import yaml

from headwater import config as configuration
from headwater.assembly import Assembly
from headwater.mapping.evolve import conform
from headwater.model import Op
from headwater.runtime import start

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

    def __post_init__(self) -> None:
        self.sql(TABLES)

    def sql(self, script: str) -> None:
        """What the application does."""
        source = sqlite3.connect(self.directory / "shop.db")
        source.executescript(script)
        source.close()

    def save(self) -> configuration.Config:
        (self.directory / "contracts").mkdir(exist_ok=True)
        for path in (self.directory / "contracts").glob("*.yaml"):
            path.unlink()
        for name, text in self.contracts.items():
            (self.directory / "contracts" / f"{name}.yaml").write_text(yaml.safe_dump(text))
        path = self.directory / "headwater.yaml"
        path.write_text(yaml.safe_dump(self.config))
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

    def epochs(self, name: str = "shop.item") -> list[int]:
        found: list[int] = []
        with self.assembly() as assembly:
            for events in assembly.bus.read(name, after=None, follow=False):
                found += events.data.column("_epoch").to_pylist()
        return found

    def notes(self, kind: str, name: str = "shop.item") -> list[str]:
        with self.assembly() as assembly:
            return [placed.note.text for placed in assembly.bus.notes(name) if placed.note.kind == kind]
