"""What the PostgreSQL dialect finds in a database, and the queries it makes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.config import SourceConfig
from headwater.dialects import STORED, ForeignKey, Query, Table
from headwater.dialects.postgres import PostgresDialect, open_dialect
from headwater.drivers.postgres import connect, execute
from headwater.errors import ConfigError, NotConnected, SourceError
from headwater.model import TableId
from headwater.testing.postgres import PostgresServer

pytestmark = pytest.mark.needs("postgres")


def opened(url: str, **options: Any) -> PostgresDialect:
    return open_dialect(config=SourceConfig.model_validate({"url": url, "options": options}))


@pytest.fixture
def dialect(database: str) -> Iterator[PostgresDialect]:
    with closing(opened(database)) as dialect:
        yield dialect


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    with connect(url, application="test") as connection:
        for statement in statements:
            rows = execute(connection, statement)
    return rows


def rows_of(dialect: PostgresDialect, query: Query, *, rows: int = 1000) -> list[dict[str, Any]]:
    with closing(dialect.reader()) as reader:
        return [row for batch in reader.read(query, rows=rows) for row in batch.to_pylist()]


def pages(dialect: PostgresDialect, table: Table, by: list[str], **more: Any) -> list[Any]:
    """The first column of every row, page by page of two rows."""
    out: list[Any] = []
    after: list[str] | None = None
    while found := rows_of(dialect, dialect.page(table, [table.columns[0].name], by, after, 2, **more)):
        out += [row[table.columns[0].name] for row in found]
        after = [found[-1][f"_by{n}"] for n in range(len(by))]
        assert len(out) < 100, "pages never end"
    return out


# inspection


def test_tables_are_the_applications_own(database: str, dialect: PostgresDialect) -> None:
    run(
        database,
        "CREATE TABLE plain (id int)",
        "CREATE SCHEMA shop CREATE TABLE orders (id int)",
        "CREATE VIEW a_view AS SELECT 1 AS id",
        "CREATE MATERIALIZED VIEW kept AS SELECT 1 AS id",
        "CREATE TABLE parent (id int) PARTITION BY LIST (id)",
        "CREATE TABLE part PARTITION OF parent FOR VALUES IN (1)",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER s FOREIGN DATA WRAPPER w",
        "CREATE FOREIGN TABLE far (id int) SERVER s",
        "CREATE TABLE headwater_mine (id int)",
        "CREATE SCHEMA headwater CREATE TABLE change (id int)",
        "CREATE EXTENSION pg_stat_statements",
        "CREATE SEQUENCE numbers",
        "CREATE TYPE pair AS (a int, b int)",
        "CREATE TEMP TABLE passing (id int)",
    )
    names = ["public.a_view", "public.far", "public.kept", "public.parent", "public.plain", "shop.orders"]
    assert [str(table) for table in dialect.tables()] == names


def test_a_table_is_described(database: str, dialect: PostgresDialect) -> None:
    run(
        database,
        "CREATE TABLE users (id int PRIMARY KEY)",
        "CREATE TABLE orders (region text, number bigint GENERATED ALWAYS AS IDENTITY, buyer int REFERENCES users,"
        " code varchar(10) NOT NULL UNIQUE, price numeric(10,2) DEFAULT 1,"
        " double numeric GENERATED ALWAYS AS (price * 2) STORED, at timestamptz, gone text,"
        " PRIMARY KEY (number, region))",
        "ALTER TABLE orders DROP COLUMN gone",
        "CREATE INDEX ON orders (at, region)",
        "CREATE UNIQUE INDEX ON orders (buyer, at) INCLUDE (price)",
        "CREATE UNIQUE INDEX ON orders (at) WHERE price > 0",
        "CREATE UNIQUE INDEX ON orders (lower(code))",
        "CREATE INDEX ON orders USING hash (price)",
    )
    table = dialect.table(TableId("public", "orders"))
    assert table.key == ("number", "region")
    assert table.unique == (("code",), ("buyer", "at"))
    assert table.indexes == (("number", "region"), ("code",), ("at", "region"), ("buyer", "at"))
    assert table.foreign_keys == (ForeignKey(("buyer",), TableId("public", "users"), ("id",)),)
    assert (table.rows, table.is_view) == (None, False)
    found = {c.name: (c.declared, c.type, c.contract, c.nullable, c.generated, c.has_default) for c in table.columns}
    assert found == {
        "region": ("text", pa.string(), "string", False, False, False),
        "number": ("bigint", pa.int64(), "int64", False, False, True),
        "buyer": ("integer", pa.int32(), "int32", True, False, False),
        "code": ("character varying(10)", pa.string(), "string", False, False, False),
        "price": ("numeric(10,2)", pa.decimal128(10, 2), "decimal(10,2)", True, False, True),
        "double": ("numeric", pa.string(), "string", True, True, True),
        "at": ("timestamp with time zone", pa.timestamp("us", "UTC"), "timestamp", True, False, False),
    }


def test_the_number_of_rows_is_the_servers_estimate(database: str, dialect: PostgresDialect) -> None:
    run(
        database,
        "CREATE TABLE t AS SELECT g FROM generate_series(1, 500) g",
        "CREATE TABLE p (id int) PARTITION BY HASH (id)",
        *(f"CREATE TABLE p{n} PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER {n})" for n in (0, 1)),
        "INSERT INTO p SELECT generate_series(1, 300)",
        "ANALYZE",
    )
    assert [dialect.table(TableId("public", name)).rows for name in ("t", "p")] == [500, 300]


def test_f33_names_with_quotes_dots_and_percent_signs(database: str, dialect: PostgresDialect) -> None:
    run(
        database,
        'CREATE SCHEMA "Sc""h.e%ma"',
        'CREATE TABLE "Sc""h.e%ma"."t.a""b%sle" ("i""d.%s" int PRIMARY KEY, "a:cursor" text, "SELECT" text)',
        """INSERT INTO "Sc""h.e%ma"."t.a""b%sle" VALUES (1, ':cursor', 'x'), (2, '$1', E'\\\\')""",
    )
    (known,) = dialect.tables()
    assert known == TableId('Sc"h.e%ma', 't.a"b%sle')
    table = dialect.table(known)
    assert table.key == ('i"d.%s',)
    assert pages(dialect, table, ['i"d.%s']) == [1, 2]
    assert pages(dialect, table, ["SELECT", 'i"d.%s']) == [2, 1]
    names = [column.name for column in table.columns]
    assert [list(row.values()) for row in rows_of(dialect, dialect.whole(table, names))] == [
        [1, ":cursor", "x"],
        [2, "$1", "\\"],
    ]


def test_a_name_without_a_schema_is_looked_for_as_the_server_does(database: str, dialect: PostgresDialect) -> None:
    run(database, "CREATE TABLE t (id int)", "CREATE SCHEMA a CREATE TABLE t (other int) CREATE TABLE u (id int)")
    assert dialect.table(TableId("", "t")).id == TableId("public", "t")
    with pytest.raises(SourceError, match="no table `u`"):
        dialect.table(TableId("", "u"))


@pytest.mark.parametrize(("name", "hint"), [("ordres", "did you mean `public.orders`"), ("zzz", "tables are")])
def test_the_nearest_table_is_named(database: str, dialect: PostgresDialect, name: str, hint: str) -> None:
    run(database, "CREATE TABLE orders (id int)")
    with pytest.raises(SourceError, match=hint):
        dialect.table(TableId("public" if name == "ordres" else "x", name))


def test_the_nearest_column_is_named(database: str, dialect: PostgresDialect) -> None:
    run(database, "CREATE TABLE orders (id int, price int)")
    with pytest.raises(SourceError, match=r"table public.orders has no column `pric`\n.*did you mean `price`"):
        dialect.whole(dialect.table(TableId("public", "orders")), ["id", "pric"])


def test_as_text_names_a_column_that_is_there(database: str) -> None:
    run(database, "CREATE TABLE t (id int)")
    with closing(opened(database, as_text=["public.t.idd"])) as dialect:
        with pytest.raises(ConfigError, match="table public.t has no column `idd`"):
            dialect.table(TableId("public", "t"))


# custom queries

QUERY = """SELECT id, ':cursor' AS "a:b", at, n[1:2] -- :cursor
FROM t /* :cursor */ WHERE at > :cursor AND id >= 0;
"""


def test_a_query_is_described_by_the_server(database: str, dialect: PostgresDialect) -> None:
    run(
        database,
        "CREATE TABLE t (id int, at timestamp, n int[])",
        "INSERT INTO t VALUES (1, '0044-01-01 BC', '{1,2,3}'), (2, '2024-01-01', NULL)",
    )
    table = dialect.relation(TableId("", "q"), QUERY, ["id"])
    assert table.key == ("id",)
    assert [(c.name, c.type) for c in table.columns] == [
        ("id", pa.int32()),
        ("a:b", pa.string()),
        ("at", pa.timestamp("us")),
        ("n", pa.list_(pa.int32())),
    ]
    assert dialect.describe(QUERY).types == [c.type for c in table.columns]
    query = dialect.page(table, ["id", "a:b", "n"], ["at", "id"], None, 10)
    values = [with_cursor(query, cursor) for cursor in (dialect.lowest, "2000-01-01 00:00:00")]
    assert [[row["id"] for row in rows_of(dialect, value)] for value in values] == [[1, 2], [2]]
    assert rows_of(dialect, values[0])[0]["n"] == [1, 2]
    assert rows_of(dialect, values[0])[0]["a:b"] == ":cursor"


def with_cursor(query: Query, value: Any) -> Query:
    return Query(query.sql, {**query.parameters, "cursor": value}, query.columns, query.hidden)


@pytest.mark.parametrize("column", ["i2", "i4", "i8", "f8", "n", "d", "tz", "u", "t", "o", "n2"])
def test_the_lowest_cursor_is_below_every_value(database: str, dialect: PostgresDialect, column: str) -> None:
    run(
        database,
        "CREATE TABLE t (i2 int2, i4 int4, i8 int8, f8 float8, n numeric, n2 numeric(5,2), d date, tz timestamptz,"
        " u uuid, t text, o oid)",
        "INSERT INTO t VALUES (-32767, -2147483647, -9223372036854775807, -1e308, -1e100, -999.99, '4713-01-01 BC',"
        " '4713-01-01 BC', '00000000-0000-0000-0000-000000000001', ' ', 1)",
    )
    table = dialect.relation(TableId("", "q"), f"SELECT * FROM t WHERE {column} > :cursor", [])
    assert len(rows_of(dialect, with_cursor(dialect.whole(table, [column]), dialect.lowest))) == 1


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT 1 AS a, 2 AS a", "several columns `a`"),
        ("SELECT nope FROM pg_class", 'column "nope" does not exist'),
        ("SELECT 1 AS id WHERE 1 > :curser", "syntax error"),
        ("SELECT 'open", "cannot be read|unterminated"),
        ("SELECT 1 AS b", "query of q has no column `id`"),
        ("DELETE FROM t", "no column `id`"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(database: str, dialect: PostgresDialect, sql: str, error: str) -> None:
    run(database, "CREATE TABLE t (id int)")
    with pytest.raises((SourceError, ConfigError), match=error):
        dialect.relation(TableId("", "q"), sql, ["id"])


def test_a_query_cannot_write(database: str, dialect: PostgresDialect) -> None:
    run(
        database,
        "CREATE TABLE t (id int)",
        "CREATE FUNCTION w() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING id'",
    )
    with pytest.raises(SourceError, match="read-only transaction"):
        rows_of(dialect, dialect.whole(dialect.relation(TableId("", "q"), "SELECT w() AS id", []), ["id"]))


# pages


def test_rows_without_a_key_are_read_as_they_are_stored(database: str, dialect: PostgresDialect) -> None:
    run(database, "CREATE TABLE t (v text)", "INSERT INTO t VALUES ('c'), ('a'), (NULL), ('b'), ('a')")
    table = dialect.table(TableId("public", "t"))
    assert pages(dialect, table, [STORED]) == ["c", "a", None, "b", "a"]
    assert pages(dialect, table, [STORED], descending=True) == ["a", "b", None, "a", "c"]
    assert pages(dialect, table, ["v", STORED]) == ["a", "a", "b", "c"]


@pytest.mark.parametrize("name", ["a_view", "parent", "inherited"])
def test_what_is_not_stored_by_itself_needs_a_key(database: str, dialect: PostgresDialect, name: str) -> None:
    run(
        database,
        "CREATE VIEW a_view AS SELECT 1 AS id",
        "CREATE TABLE parent (id int) PARTITION BY LIST (id)",
        "CREATE TABLE inherited (id int)",
        "CREATE TABLE child () INHERITS (inherited)",
    )
    with pytest.raises(SourceError, match="name the columns that identify a row"):
        dialect.page(dialect.table(TableId("public", name)), ["id"], [STORED], None, 2)


def test_nulls_are_counted(database: str, dialect: PostgresDialect) -> None:
    run(database, "CREATE TABLE t (a int, b int)", "INSERT INTO t VALUES (1, NULL), (NULL, NULL), (NULL, 1), (1, 1)")
    table = dialect.table(TableId("public", "t"))
    for columns, count in ((["a"], 2), (["a", "b"], 3), ([], 0)):
        assert rows_of(dialect, dialect.nulls(table, columns)) == [{"count": count}]


@pytest.mark.parametrize("collation", ['"C"', "de", "blind"])
def test_f27_texts_are_compared_in_the_database_only(database: str, dialect: PostgresDialect, collation: str) -> None:
    """Python, C and an ICU collation sort these differently; a blind one takes some for equal."""
    words = ["a", "A", "ä", "Z", "z", "_", "-", "", " ", "é", "E", "a b", "ab", "B"]
    run(
        database,
        "CREATE COLLATION de (provider = icu, locale = 'de')",
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        f"CREATE TABLE t (v text COLLATE {collation}, id int PRIMARY KEY)",
        f"INSERT INTO t VALUES {', '.join(f'({chr(39)}{word}{chr(39)}, {n})' for n, word in enumerate(words))}",
    )
    expected = [word for (word,) in run(database, "SELECT v FROM t ORDER BY v, id")]
    table = dialect.table(TableId("public", "t"))
    assert pages(dialect, table, ["v", "id"]) == expected
    assert pages(dialect, table, ["v", "id"], descending=True) == expected[::-1]


# readers


def test_batches_have_at_most_so_many_rows(database: str, dialect: PostgresDialect) -> None:
    table = dialect.relation(TableId("", "q"), "SELECT g AS id FROM generate_series(1, 10) g", [])
    with closing(dialect.reader()) as reader:
        found = [len(batch) for batch in reader.read(dialect.whole(table, ["id"]), rows=4)]
    assert (max(found), sum(found)) == (4, 10)


ENDLESS = "SELECT a, repeat('x', 1000) AS b FROM generate_series(1, 30000) a, generate_series(1, 30000) c"


def test_rows_stream_and_a_statement_is_interrupted(dialect: PostgresDialect) -> None:
    """The first rows are there while 900 GB are to come."""
    query = dialect.whole(dialect.relation(TableId("", "q"), ENDLESS, []), ["a", "b"])
    with closing(dialect.reader()) as reader:
        batches = reader.read(query, rows=100_000)
        assert 0 < len(next(batches)) < 100_000
        threading.Timer(0.1, reader.interrupt).start()
        with pytest.raises(SourceError, match="cancel"):
            for _ in batches:
                pass
        assert [len(batch) for batch in reader.read(one_row(dialect), rows=10)] == [1]


def test_a_reader_that_was_closed_has_nothing_to_interrupt(dialect: PostgresDialect) -> None:
    reader = dialect.reader()
    reader.close()
    reader.interrupt()


def one_row(dialect: PostgresDialect) -> Query:
    return dialect.whole(dialect.relation(TableId("", "q"), "SELECT 1 AS id", []), ["id"])


def test_a_reader_that_is_left_early_can_go_on(dialect: PostgresDialect) -> None:
    """It does not receive the 900 GB that nobody reads."""
    query = dialect.whole(dialect.relation(TableId("", "q"), ENDLESS, []), ["a", "b"])
    with closing(dialect.reader()) as reader:
        for _ in range(2):
            with closing(reader.read(query, rows=10)) as batches:  # type: ignore[type-var]
                assert next(batches).num_rows == 10
        reader.interrupt()
        assert [len(batch) for batch in reader.read(one_row(dialect), rows=10)] == [1]


def test_a_slow_statement_is_ended(dialect: PostgresDialect) -> None:
    query = dialect.whole(dialect.relation(TableId("", "q"), "SELECT pg_sleep(60)::text AS id", []), ["id"])
    with closing(dialect.reader(statement_timeout=0.1)) as reader:
        with pytest.raises(SourceError, match="statement timeout"):
            list(reader.read(query, rows=1))


@pytest.mark.parametrize("within", [True, False], ids=["within rows", "before rows"])
def test_a_connection_that_is_lost_is_not_connected(database: str, dialect: PostgresDialect, within: bool) -> None:
    query = dialect.whole(dialect.relation(TableId("", "q"), ENDLESS, []), ["a", "b"])
    with closing(dialect.reader()) as reader:
        batches = reader.read(query, rows=10)
        if within:
            next(batches)
        run(
            database,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'headwater'",
        )
        with pytest.raises(NotConnected):
            for _ in batches:
                pass
    with pytest.raises(NotConnected):
        dialect.tables()


def test_f81_an_error_shows_no_statement_and_so_no_values(database: str, dialect: PostgresDialect) -> None:
    run(database, "CREATE TABLE t (id text PRIMARY KEY)")
    query = dialect.page(dialect.table(TableId("public", "t")), ["id"], ["id"], ["a secret"], 1)
    run(database, "DROP TABLE t")
    with pytest.raises(SourceError, match='relation "public.t" does not exist') as error:
        rows_of(dialect, query)
    assert "a secret" not in str(error.value)


def test_f83_an_address_that_means_another_database(
    postgres_server: PostgresServer, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = tmp_path / "service.conf"

    def means(name: str) -> None:
        service.write_text(f"[app]\nhost=127.0.0.1\nport={postgres_server.port}\nuser=postgres\ndbname={name}\n")

    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.setattr("headwater.dialects.postgres._STALE", 0.0)
    means("postgres")
    with closing(opened("postgresql:///?service=app")) as dialect:
        dialect.check()
        means(database.rpartition("/")[2])
        with pytest.raises(NotConnected, match="means another database than before"):
            dialect.check()


def test_a_server_that_is_away_is_not_connected(tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match="postgresql://u:\\*\\*\\*@127.0.0.1:1/x"):
        opened("postgresql://u:secret@127.0.0.1:1/x")
