"""Every type by every way that does not need the log: reader, pages, printed texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pyarrow as pa
import pytest

from headwater.config import SourceConfig
from headwater.dialects.marks import invalid_column
from headwater.dialects.postgres import PostgresDialect, open_dialect
from headwater.dialects.postgres_types import PgType, PgTypes, kind_named
from headwater.dialects.postgres_values import from_text
from headwater.drivers.postgres import connect, execute
from headwater.errors import SourceError
from headwater.model import INVALID, TableId
from headwater.testing.postgres import PostgresServer
from tests import postgres_matrix as matrix

TABLE = TableId("public", "matrix")

FEELING = next(matrix.column(number) for number, case in enumerate(matrix.MATRIX) if case.sql == "feeling")
"""A domain over an enum has an order, and no operators of its own."""

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture(scope="module")
def filled(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database with the whole matrix in it."""
    url = postgres_server.create_database("matrix")
    with connect(url, application="test") as connection:
        for sql in (*matrix.SETUP, *matrix.create("matrix"), *matrix.insert("matrix")):
            execute(connection, sql)
    yield url
    postgres_server.drop_database("matrix")


@pytest.fixture
def dialect(filled: str) -> Iterator[PostgresDialect]:
    with closing(open_dialect(config=SourceConfig.model_validate(filled))) as dialect:
        yield dialect


def test_f24_f31_f33_every_type_by_the_reader(dialect: PostgresDialect) -> None:
    """The server's time zone is +03:00, and a value is the same whether its row comes first or late, alone or not."""
    table = dialect.table(TABLE)
    names = [column.name for column in table.columns]
    with closing(dialect.reader()) as reader:
        for rows in (1000, 2):
            found = pa.Table.from_batches(
                with_marks(batch) for batch in reader.read(dialect.whole(table, names), rows=rows)
            )
            assert found.num_rows == matrix.ROWS
            assert matrix.differences(found, found.column("_invalid")) == []


def with_marks(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Batches without any invalid value have no such column."""
    if "_invalid" in batch.schema.names:
        return batch
    return batch.append_column("_invalid", pa.nulls(len(batch), INVALID))


def test_f24_every_type_from_its_text(filled: str, dialect: PostgresDialect) -> None:
    """What the log sends in text mode is what the output functions print."""
    table = dialect.table(TABLE)
    columns = [column for column in table.described if column.name != "id"]
    printed = ", ".join(dialect.types.printed(f't."{column.name}"', column.oid) for column in columns)
    with connect(filled, application="test") as connection:
        rows = execute(connection, f"SELECT {printed} FROM matrix t ORDER BY id")
    arrays, marks = [], []
    for column, texts in zip(columns, zip(*rows, strict=True), strict=True):
        values, found = from_text(pa.array(texts, pa.string()), column.kind, column.name)
        values.validate(full=True)
        arrays.append(values)
        marks += [found] if found is not None else []
    batch = pa.RecordBatch.from_arrays(arrays, [column.name for column in columns])
    assert matrix.differences(batch, invalid_column(marks, matrix.ROWS)) == []


def test_contracts_are_what_the_table_says(dialect: PostgresDialect) -> None:
    found = {column.name: column.contract for column in dialect.table(TABLE).columns}
    assert found == {"id": "int32"} | {matrix.column(n): case.contract for n, case in enumerate(matrix.MATRIX)}


def test_f27_every_type_that_has_an_order_is_read_page_by_page(filled: str, dialect: PostgresDialect) -> None:
    """Values go back as they were printed: each row comes once, in the database's own order."""
    table = dialect.table(TABLE)
    paged = []
    with connect(filled, application="test") as connection, closing(dialect.reader()) as reader:
        for column in table.described[1:]:
            if column.name != FEELING and not has_order(connection, column.name):
                continue
            sql = f'SELECT id FROM matrix WHERE "{column.name}" IS NOT NULL ORDER BY "{column.name}", id'
            expected = [key for (key,) in execute(connection, sql)]
            for descending in (False, True):
                after, found = None, []
                while True:
                    page = dialect.page(table, ["id"], [column.name, "id"], after, 1, descending=descending)
                    batches = list(reader.read(page, rows=10))
                    if not batches:
                        break
                    found.append(batches[0].column("id")[0].as_py())
                    after = [batches[0].column(name)[0].as_py() for name in ("_by0", "_by1")]
                    assert len(found) <= len(expected), column.declared
                assert found == (expected[::-1] if descending else expected), column.declared
            paged.append(column.declared)
    assert len(paged) > 50, paged


def has_order(connection: psycopg.Connection, column: str) -> bool:
    try:
        execute(connection, f'SELECT "{column}" > "{column}" FROM matrix WHERE false ORDER BY "{column}"')
    except SourceError:
        return False
    return True


def test_a_column_is_text_by_declared_choice(filled: str) -> None:
    """`as_text`: what cannot be held is kept as the server prints it."""
    dates = [column for column, case in enumerate(matrix.MATRIX) if case.sql in ("date", "integer[]", "numeric(10,2)")]
    names = [matrix.column(number) for number in dates]
    config = SourceConfig.model_validate(
        {"url": filled, "options": {"as_text": [f"public.matrix.{name}" for name in names]}}
    )
    with closing(open_dialect(config=config)) as dialect, closing(dialect.reader()) as reader:
        table = dialect.table(TABLE)
        assert [table.schema().field(name).type for name in names] == [pa.string()] * 3
        (found,) = reader.read(dialect.whole(table, names), rows=100)
    assert found.schema.names == names
    texts = [value for name in names for value in found.column(name).to_pylist()]
    assert {"infinity", "0044-03-15 BC", "{{1,2},{3,4}}", "NaN", "-0.01"} <= set(texts)


def test_types_that_are_made_later_are_found_out(filled: str, dialect: PostgresDialect) -> None:
    with connect(filled, application="test") as connection:
        execute(connection, "CREATE DOMAIN later AS date")
        execute(connection, "CREATE TABLE of_later (id int PRIMARY KEY, d later, e later[])")
    table = dialect.table(TableId("public", "of_later"))
    assert [column.contract for column in table.columns] == ["int32", "date", "list<date>"]


@pytest.mark.parametrize(
    ("digits", "places", "expected"),
    [(10, 2, "decimal(10,2)"), (76, 76, "decimal(76,76)"), (77, 0, "number"), (3, -2, "number"), (2, 5, "number")],
)
def test_precision_and_scale(digits: int, places: int, expected: str) -> None:
    numeric = PgType(1700, "pg_catalog", "numeric", "b", 0, 0, -1, "numeric_out")
    typmod = ((digits << 16) | (places & 0x7FF)) + 4
    assert PgTypes([numeric]).kind(1700, typmod).name == expected


def test_kinds_are_found_by_their_names(dialect: PostgresDialect) -> None:
    for column in dialect.table(TABLE).described:
        assert kind_named(column.kind.name) == column.kind
    assert dialect.types.kind(999_999_999).name == "printed"
