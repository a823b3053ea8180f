"""Every type by every way that its values can come: snapshot, log, later load, query and trigger say the same (F24).

Each way captures the whole matrix from a server whose time zone is +03:00. What is compared is the Arrow type, the
value and the mark of a value that the type cannot hold. docs/postgres-types.md is written from what was found equal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.config import SourceConfig, StreamConfig
from headwater.dialects.postgres import open_dialect
from headwater.drivers.postgres import connect, execute
from headwater.errors import ConfigError
from headwater.model import INVALID, Changes, Op, Position, TableId
from headwater.protocols import Capture, Load, Source
from headwater.sources import log_postgres, query, trigger_postgres
from headwater.testing.postgres import PostgresServer
from tests import postgres_matrix as matrix

PAGE = Path(__file__).parents[2] / "docs/postgres-types.md"
ALL = range(len(matrix.MATRIX))

pytestmark = pytest.mark.needs("postgres")

Make = Callable[..., Source]


@dataclass(frozen=True)
class Found:
    """What one way gave: `rows` and `invalid` by id, and the cases that it carries."""

    rows: pa.Table
    invalid: list[Any]
    cases: list[int]

    @property
    def differences(self) -> list[str]:
        of_values = [text for number in self.cases for text in matrix.case_differences(number, self.rows)]
        return of_values + matrix.mark_differences(self.cases, self.invalid)

    @property
    def equal(self) -> set[int]:
        """The cases that came as they should, marks included."""
        return {
            number
            for number in self.cases
            if not matrix.case_differences(number, self.rows) and not matrix.mark_differences([number], self.invalid)
        }


class Database:
    """The matrix as a table, and captures of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.run(*matrix.SETUP, *matrix.create("matrix"), "CREATE TABLE other (id int PRIMARY KEY)")

    def run(self, *statements: str) -> None:
        with connect(self.url, application="application") as connection:
            for sql in statements:
                execute(connection, sql)

    @property
    def binary(self) -> list[int]:
        """The cases that the log can carry in binary."""
        with closing(open_dialect(config=SourceConfig.model_validate(self.url))) as dialect:
            described = dialect.table(TableId("public", "matrix")).described[1:]
            return [number for number, column in enumerate(described) if column.kind.wire]

    def capture(self, pattern: str, cases: list[int], **stream: Any) -> Capture:
        columns = ("id", *map(matrix.column, cases))
        config = StreamConfig.model_validate({"source": "db", "pattern": pattern, "table": "public.matrix", **stream})
        return Capture(
            "s.matrix", TableId("public", "matrix"), columns, ("id",), config, Load("initial"), identifying=("id",)
        )

    def open(self, make: Make, pipeline: str, captures: Sequence[Capture], options: dict[str, Any]) -> Source:
        config = SourceConfig.model_validate({"url": self.url, "options": options})
        return make(name="db", pipeline=pipeline, config=config, captures=captures, epoch=1, config_dir="/tmp")


class Reading:
    """Runs of one source, one after the other."""

    def __init__(self, database: Database, make: Make, pipeline: str = "test", **options: Any) -> None:
        self._database = database
        self._make = make
        self._pipeline = pipeline
        self._options = options
        self._position: Position | None = None

    def catch_up(self, *captures: Capture) -> list[Changes]:
        """The changes of the matrix."""
        found: list[Changes] = []
        with closing(self._database.open(self._make, self._pipeline, captures, self._options)) as source:
            for batch in source.read(self._position, follow=False):
                found += [part for part in batch.changes if part.table.name == "matrix"]
                self._position = batch.position
                source.confirm(batch.position)
        return found


def found_in(changes: list[Changes], cases: list[int], op: Op, side: str = "after") -> Found:
    """The rows of one side of the changes of one kind. `before` has no marks."""
    rows, marks = [], []
    for part in changes:
        assert {Op(value) for value in part.data.column("_op").to_pylist()} == {op}
        rows.append(pa.RecordBatch.from_struct_array(part.data.column(side)))
        has_marks = "_invalid" in part.data.schema.names and side == "after"
        marks.append(part.data.column("_invalid") if has_marks else pa.nulls(len(part.data), INVALID))
    table = pa.Table.from_batches(rows)
    order = pc.sort_indices(table.column("id"))
    assert table.column("id").take(order).to_pylist() == list(range(matrix.ROWS))
    return Found(table.take(order), pa.chunked_array(marks).take(order).to_pylist(), cases)


def by_log(database: Database) -> Iterator[tuple[str, Found]]:
    """The first load, then the log in text and, for what can be so, in binary; and old rows, as whole as new ones."""
    everything, fit = list(ALL), database.binary
    database.run("ALTER TABLE matrix REPLICA IDENTITY FULL", *matrix.insert("matrix"))
    loading = Reading(database, log_postgres.open_source)
    yield "snapshot", found_in(loading.catch_up(database.capture("log", everything)), everything, Op.READ)
    for way, cases in (("log in binary", fit), ("log in text", everything)):
        reading = Reading(database, log_postgres.open_source, pipeline=f"p{len(cases)}")
        capture = database.capture("log", cases)
        reading.catch_up(capture)
        database.run("DELETE FROM matrix")
        old = found_in(reading.catch_up(capture), cases, Op.DELETE, "before")
        assert [text for number in cases for text in matrix.case_differences(number, old.rows)] == [], way
        database.run(*matrix.insert("matrix"))
        yield way, found_in(reading.catch_up(capture), cases, Op.CREATE)


def by_later_load(database: Database) -> Iterator[tuple[str, Found]]:
    """A table that is added later is loaded while the log goes on: chunk by chunk, in the order of its key."""
    other = Capture(
        "s.other",
        TableId("public", "other"),
        ("id",),
        ("id",),
        StreamConfig(source="db", table="public.other", pattern="log"),
        Load("initial"),
        identifying=("id",),
    )
    reading = Reading(database, log_postgres.open_source, pipeline="later")
    assert reading.catch_up(other) == []
    yield "later load", found_in(reading.catch_up(other, database.capture("log", list(ALL))), list(ALL), Op.READ)


def by_query(database: Database) -> Iterator[tuple[str, Found]]:
    found = Reading(database, query.open_source).catch_up(database.capture("query", list(ALL)))
    yield "query", found_in(found, list(ALL), Op.READ)


def by_trigger(database: Database) -> Iterator[tuple[str, Found]]:
    """Its load, and what the triggers wrote; the session that writes prints everything otherwise than we do."""
    everything = list(ALL)
    reading, capture = Reading(database, trigger_postgres.open_source), database.capture("trigger", everything)
    loaded = found_in(reading.catch_up(capture), everything, Op.READ)
    assert loaded.differences == []
    otherwise = (
        "SET TimeZone = 'Asia/Kathmandu'",
        "SET DateStyle = 'German, DMY'",
        "SET IntervalStyle = 'sql_standard'",
        "SET bytea_output = 'escape'",
        "SET extra_float_digits = -5",
        "SET quote_all_identifiers = on",
    )
    values = [sql.replace("matrix", "spare") for sql in matrix.insert("matrix")]
    database.run(*(sql.replace("matrix", "spare") for sql in matrix.create("matrix")), *values)
    database.run(*otherwise, "DELETE FROM matrix")
    old = found_in(reading.catch_up(capture), everything, Op.DELETE, "before")
    assert [text for number in ALL for text in matrix.case_differences(number, old.rows)] == []
    database.run(*otherwise, "INSERT INTO matrix SELECT * FROM spare")
    yield "trigger", found_in(reading.catch_up(capture), everything, Op.CREATE)


WAYS = ("snapshot", "log in binary", "log in text", "later load", "query", "trigger")


@pytest.fixture(scope="module")
def found(postgres_server: PostgresServer) -> Iterator[dict[str, Found]]:
    database = Database(postgres_server.create_database("parity"))
    ways = (by_log, by_later_load, by_query, by_trigger)
    yield {name: found for way in ways for name, found in way(database)}
    postgres_server.drop_database("parity")


@pytest.mark.parametrize("way", WAYS)
def test_f24_f31_f33_every_type_by_every_way(found: dict[str, Found], way: str) -> None:
    assert found[way].differences == []
    assert len(found[way].cases) > 25


def test_the_page_of_types_says_what_was_found(found: dict[str, Found]) -> None:
    """`HEADWATER_UPDATE=1` writes the page's table anew."""
    head, _, _ = PAGE.read_text(encoding="utf-8").partition("| PostgreSQL |")
    page = head + matrix.type_table({way: found[way].equal for way in WAYS})
    if os.environ.get("HEADWATER_UPDATE"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page


SOURCES = {"log": log_postgres.open_source, "query": query.open_source, "trigger": trigger_postgres.open_source}
DATE = next(number for number in ALL if matrix.MATRIX[number].sql == "date")


@pytest.fixture
def small(database: str) -> Database:
    return Database(database)


@pytest.mark.parametrize("pattern", SOURCES)
def test_a_column_is_text_by_declared_choice_by_every_pattern(small: Database, pattern: str) -> None:
    """The options of the others are accepted: one source feeds streams of several patterns."""
    name = matrix.column(DATE)
    small.run(f"INSERT INTO matrix (id, {name}) VALUES (1, 'infinity'), (2, '2024-02-29'), (3, NULL)")
    options = {"as_text": [f"public.matrix.{name}"], "heartbeat": "30s", "binary": "auto"}
    reading, capture = Reading(small, SOURCES[pattern], "small", **options), small.capture(pattern, [DATE])
    loaded = reading.catch_up(capture)
    small.run(f"INSERT INTO matrix (id, {name}) VALUES (4, '0044-03-15 BC')")
    rows = [row for part in (*loaded, *reading.catch_up(capture)) for row in part.data.to_pylist()]
    assert {row["after"]["id"]: row["after"][name] for row in rows} == {
        1: "infinity",
        2: "2024-02-29",
        3: None,
        4: "0044-03-15 BC",
    }
    assert not any(row.get("_invalid") for row in rows)


@pytest.mark.parametrize("pattern", SOURCES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"as_txt": []}, "did you mean `as_text`"),
        ({"as_text": ["born"]}, "as_text"),
        ({"as_text": ["public.matrix.nothing"]}, "table public.matrix has no column `nothing`"),
        ({"heartbeat": "soon"}, "heartbeat"),
    ],
)
def test_options_that_cannot_be_are_refused_by_every_pattern(
    small: Database, pattern: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as found:
        Reading(small, SOURCES[pattern], "small", **options).catch_up(small.capture(pattern, [DATE]))
    assert words in str(found.value)
