"""Random tables, rows, statements, configurations, crashes and ends of runs: the sink is the source, as plain Python
maps it; and `verify` says the same.

Crashes are errors at failpoints, after which the run is abandoned and another begins; kill -9 is in tests/crash.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater import supervisor
from headwater.faults import set_failpoints
from headwater.model import Op
from tests.acceptance.project import Project

STREAM = "shop.thing"
UTC = datetime.UTC
Row = dict[str, Any]
Key = tuple[Any, ...]

# tables


@dataclass(frozen=True)
class Column:
    """Stored values, and what a reader of the stream is to see of them (of all but NULL)."""

    declared: str
    type: str
    values: st.SearchStrategy[Any]
    seen: Callable[[Any], Any] = lambda value: value


TEXTS = st.text("aBé'\"\0🦆", max_size=3)
INTEGERS = st.integers(-(2**62), 2**62) | st.integers(0, 6)
MOMENTS = st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1))
COLUMNS = {
    "n": Column("INTEGER", "int64", st.integers(0, 6)),
    "l": Column("BIGINT", "int64", INTEGERS),
    "t": Column("TEXT", "string", TEXTS),
    "r": Column("REAL", "float64", st.floats(allow_nan=False, allow_infinity=False)),
    "d": Column(
        "DECIMAL(10,2)",
        "decimal(10,2)",
        st.decimals(-9999, 9999, places=2).map(str),
        lambda value: Decimal(str(value)).quantize(Decimal("0.01")),
    ),
    "b": Column("BLOB", "bytes", st.binary(max_size=3)),
    "f": Column("BOOLEAN", "bool", st.sampled_from([0, 1]), bool),
    "m": Column(
        "DATETIME",
        "timestamp",
        MOMENTS.map(str),
        lambda text: datetime.datetime.fromisoformat(text).replace(tzinfo=UTC),
    ),
}
KEYS: dict[str, dict[str, Column]] = {
    "integer": {"id": Column("INTEGER", "int64", st.integers(0, 5))},
    "text": {"id": Column("TEXT", "string", st.sampled_from(["", "a", "A", "é", "a'b"]))},
    "composite": {
        "one": Column("INTEGER", "int64", st.integers(0, 2)),
        "two": Column("TEXT", "string", st.sampled_from(["x", "y"])),
    },
}


def nothing_or(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else function(value)


@dataclass(frozen=True)
class Computed:
    """A field by expression: the column it reads, and what it is to be of the value that is seen of the column."""

    column: str
    expression: str
    type: str
    expected: Callable[[Any], Any]


COMPUTED = (
    Computed("t", "upper(t)", "string", nothing_or(str.upper)),
    Computed("t", "coalesce(t, 'none')", "string", lambda value: "none" if value is None else value),
    Computed("n", "n * 2 + 1", "int64", nothing_or(lambda value: value * 2 + 1)),
    Computed("d", "d + 1", "decimal(12,2)", nothing_or(lambda value: value + 1)),
    Computed("b", "octet_length(b)", "int64", nothing_or(len)),
)
WHERES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "n > 2": ("n", lambda value: value is not None and value > 2),
    "t <> 'a'": ("t", lambda value: value is not None and value != "a"),
    "f": ("f", lambda value: value is True),
    "d IS NULL OR d < 0": ("d", lambda value: value is None or value < 0),
}


@dataclass(frozen=True)
class Shape:
    """A table, and the mapping from it."""

    key: dict[str, Column]
    columns: dict[str, Column]
    rowid: bool
    renamed: bool
    computed: tuple[Computed, ...]
    where: str | None

    def sql(self) -> str:
        lines = [f"{name} {column.declared} NOT NULL" for name, column in self.key.items()]
        lines += [f"{name} {column.declared}" for name, column in self.columns.items()]
        lines += ["at INTEGER NOT NULL", f"PRIMARY KEY ({', '.join(self.key)})"]
        return f"CREATE TABLE thing ({', '.join(lines)}){'' if self.rowid else ' WITHOUT ROWID'};"

    def field(self, name: str) -> str:
        return f"its_{name}" if self.renamed else name

    def fields(self) -> dict[str, str]:
        plain = {self.field(name): name for name in (*self.key, *self.columns)} if self.renamed else {}
        return plain | {f"computed_{number}": made.expression for number, made in enumerate(self.computed)}

    def contract(self) -> dict[str, Any]:
        fields: dict[str, Any] = {self.field(name): {"type": column.type} for name, column in self.key.items()}
        for name, column in self.columns.items():
            fields[self.field(name)] = {"type": column.type, "optional": True}
        for number, made in enumerate(self.computed):
            fields[f"computed_{number}"] = {"type": made.type, "optional": True}
        key = [self.field(name) for name in self.key]
        return {"stream": STREAM, "version": 1, "owner": "tests", "key": key, "fields": fields}

    def expected(self, rows: list[tuple[Any, ...]]) -> dict[Key, Row]:
        """The mapping in plain Python: rows as they are stored to what the stream's current state is to be."""
        columns = {**self.key, **self.columns}
        found = {}
        for values in rows:
            seen = {
                name: None if value is None else columns[name].seen(value)
                for name, value in zip(columns, values, strict=True)
            }
            if self.where is not None:
                column, holds = WHERES[self.where]
                if not holds(seen[column]):
                    continue
            row = {self.field(name): value for name, value in seen.items()}
            row |= {f"computed_{n}": made.expected(seen[made.column]) for n, made in enumerate(self.computed)}
            found[tuple(seen[name] for name in self.key)] = row
        return found


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), unique=True, min_size=1, max_size=5))
    computed = [made for made in COMPUTED if made.column in names]
    wheres = [None, *(where for where, (column, _) in WHERES.items() if column in names)]
    return Shape(
        KEYS[draw(st.sampled_from(sorted(KEYS)))],
        {name: COLUMNS[name] for name in names},
        draw(st.booleans()),
        draw(st.booleans()),
        tuple(draw(st.lists(st.sampled_from(computed), unique=True, max_size=2))) if computed else (),
        draw(st.sampled_from(wheres)),
    )


# what the application does

Statement = tuple[str, tuple[Any, ...]]


def values_of(columns: dict[str, Column]) -> st.SearchStrategy[Key]:
    return st.tuples(*(column.values for column in columns.values()))


def nullable(columns: dict[str, Column]) -> st.SearchStrategy[Key]:
    return st.tuples(*(st.none() | column.values for column in columns.values()))


@st.composite
def statements(draw: st.DrawFn, shape: Shape) -> Statement:
    at, key = draw(st.integers(0, 30)), draw(values_of(shape.key))
    same = " AND ".join(f"{name} = ?" for name in shape.key)
    match draw(st.sampled_from(["insert", "insert", "insert", "update", "update", "rekey", "delete", "clear"])):
        case "insert":
            verb = draw(st.sampled_from(["INSERT OR IGNORE", "INSERT OR REPLACE"]))
            row = (*key, *draw(nullable(shape.columns)), at)
            return f"{verb} INTO thing VALUES ({', '.join('?' * len(row))})", row
        case "update":
            changed = ", ".join(f"{name} = ?" for name in (*shape.columns, "at"))
            return f"UPDATE thing SET {changed} WHERE {same}", (*draw(nullable(shape.columns)), at, *key)
        case "rekey":
            changed = ", ".join(f"{name} = ?" for name in (*shape.key, "at"))
            return f"UPDATE OR IGNORE thing SET {changed} WHERE {same}", (*draw(values_of(shape.key)), at, *key)
        case "delete":
            return f"DELETE FROM thing WHERE {same}", key
        case _:
            return "DELETE FROM thing WHERE at < ?", (at // 3,)


@dataclass(frozen=True)
class Commit:
    statements: list[Statement]
    kept: bool


@dataclass(frozen=True)
class Life:
    """What the application does, and then a run, perhaps with a crash."""

    commits: list[Commit]
    crash: tuple[str, int] | None


CRASHES = ("bus.append.*", "bus.*", "capture.*", "deliver.*", "sink.*", "trigger.*", "query.*", "*")


def lives(shape: Shape) -> st.SearchStrategy[list[Life]]:
    commits = st.builds(
        Commit, st.lists(statements(shape), min_size=1, max_size=4), st.sampled_from([True, True, False])
    )
    crash = st.none() | st.tuples(st.sampled_from(CRASHES), st.integers(0, 99))
    return st.lists(st.builds(Life, st.lists(commits, max_size=4), crash), min_size=1, max_size=4)


# the configuration


@dataclass(frozen=True)
class Way:
    """How it is captured and into what it is written."""

    pattern: str
    page_size: int
    look_back: int
    sink: str
    mode: str
    soft: bool

    def stream(self, shape: Shape, *, last: bool) -> dict[str, Any]:
        made: dict[str, Any] = {"source": "shop", "table": "thing", "fields": shape.fields()}
        if shape.where is not None:
            made["where"] = shape.where
        if self.pattern == "trigger":
            return {**made, "pattern": "trigger"}
        made |= {"pattern": "query", "page_size": self.page_size}
        if self.pattern == "cursor":
            reconciled = "0s" if last else "1h"
            made |= {"cursor": "at", "look_back_ids": self.look_back, "reconcile_deletes": reconciled}
        return made

    def sinks(self) -> dict[str, Any]:
        deletes = "soft" if self.soft and self.mode == "current" else "hard"
        batch = {"events": 3, "age": "1ms"}
        made: dict[str, Any] = {"url": f"{self.sink}:copy", "mode": self.mode, "deletes": deletes, "batch": batch}
        if self.sink.startswith("postgresql:"):
            made |= {"url": self.sink, "options": {"schema": f"world_{next(_schemas)}"}}
        return {"copy": made}


_schemas = itertools.count()


WAYS = st.builds(
    Way,
    st.sampled_from(["trigger", "trigger", "bulk", "cursor"]),
    st.sampled_from([1, 2, 100]),
    st.sampled_from([0, 5]),
    st.sampled_from(["duckdb", "sqlite", "parquet"]),
    st.sampled_from(["current", "current", "history"]),
    st.booleans(),
)


class World:
    def __init__(self, directory: str, shape: Shape, way: Way) -> None:
        self.shape = shape
        self.way = way
        self.project = Project(Path(directory))
        self.project.contracts = {STREAM: shape.contract()}
        self.project.config["sinks"] = way.sinks()
        self.configure(last=False)
        self.project.sql(shape.sql())

    def configure(self, *, last: bool) -> None:
        self.project.config["streams"] = {STREAM: self.way.stream(self.shape, last=last)}

    def live(self, life: Life) -> None:
        for commit in life.commits:
            self.write(commit)
        if life.crash is None:
            assert self.project.try_run() == {}
            return
        place, seed = life.crash
        set_failpoints(f"{place}=error:0.2:1", seed)
        try:
            with suppress(OSError):  # where it crashes before any worker begins
                self.project.try_run()
        finally:
            set_failpoints("")

    def write(self, commit: Commit) -> None:
        with closing(sqlite3.connect(self.project.directory / "shop.db", isolation_level=None)) as db:
            db.execute("BEGIN")
            for sql, values in commit.statements:
                db.execute(sql, values)
            db.execute("COMMIT" if commit.kept else "ROLLBACK")

    # in the end

    def expected(self) -> dict[Key, Row]:
        names = ", ".join((*self.shape.key, *self.shape.columns))
        with closing(sqlite3.connect(self.project.directory / "shop.db")) as db:
            return self.shape.expected(db.execute(f"SELECT {names} FROM thing").fetchall())

    def found(self) -> dict[Key, Row]:
        """What the sink shows; of a history, what its newest events say."""
        rows = list(self.sink_rows())
        if self.way.mode == "history":
            rows = self.folded(rows)
        found = {self.key(row): {name: row[name] for name in self.shape.contract()["fields"]} for row in rows}
        assert len(found) == len(rows), "a key is there twice"
        return found

    def folded(self, rows: list[Row]) -> list[Row]:
        rows = sorted(rows, key=lambda row: (row["_epoch"], row["_commit"], row["_index"]))
        newest = {self.key(row): row for row in rows}
        return [row for row in newest.values() if row["_op"] != Op.DELETE]

    def key(self, row: Row) -> Key:
        return tuple(row[name] for name in self.shape.contract()["key"])

    def sink_rows(self) -> Iterator[Row]:
        with self.project.assembly() as assembly, closing(assembly.sink("copy")) as sink:
            sink.prepare(assembly.contract(STREAM))
            for batch in sink.state(STREAM).rows:
                yield from batch.to_pylist()


@pytest.fixture(autouse=True, scope="module")
def _hurried() -> Iterator[None]:
    """A run is abandoned at its first error, and nobody waits for ticks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "FIRST_PAUSE", 10.0)
        patch.setattr(supervisor, "TICK", 0.02)
        yield


@st.composite
def stories(draw: st.DrawFn, *, nul: bool = True) -> tuple[Shape, Way, list[Life]]:
    shape = draw(shapes())
    if not nul:
        columns = {name: _without_nul(column) for name, column in shape.columns.items()}
        shape = dataclasses.replace(shape, columns=columns)
    return shape, draw(WAYS), draw(lives(shape))


def _without_nul(column: Column) -> Column:
    """PostgreSQL has no place for that character in a text."""
    if column.type != "string":
        return column
    return dataclasses.replace(column, values=column.values.map(lambda text: text.replace("\0", "")))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(stories())
def test_the_sink_is_the_source_as_plain_python_maps_it(story: tuple[Shape, Way, list[Life]]) -> None:
    tell(*story)


@pytest.mark.needs("postgres")
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=stories(nul=False))
def test_a_postgres_sink_is_the_source_as_plain_python_maps_it(
    database: str, story: tuple[Shape, Way, list[Life]]
) -> None:
    shape, way, told = story
    tell(shape, dataclasses.replace(way, sink=database), told)


def tell(shape: Shape, way: Way, told: list[Life]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(directory, shape, way)
        for life in told:
            world.live(life)
        world.configure(last=True)
        assert world.project.try_run() == {}
        assert world.found() == world.expected()
        world.project.require_equal(STREAM)
