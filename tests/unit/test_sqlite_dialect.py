"""SQLite's types, inspection and queries, value by value."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.config import SourceConfig
from headwater.dialects import STORED
from headwater.dialects.sqlite import SqliteDialect, open_dialect
from headwater.dialects.sqlite_types import kind_of_declared
from headwater.errors import ConfigError, SourceError
from headwater.model import TIMESTAMP, TableId


def database(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


def dialect_of(path: Path, **more: Any) -> SqliteDialect:
    return open_dialect(config=SourceConfig.model_validate({"url": f"sqlite:///{path}", **more}))


def rows_of(path: Path, table: str = "t", **more: Any) -> list[dict[str, Any]]:
    with closing(dialect_of(path, **more)) as dialect:
        found = dialect.table(TableId("", table))
        query = dialect.whole(found, [column.name for column in found.columns])
        with closing(dialect.reader()) as reader:
            return [row for batch in reader.read(query, rows=1000) for row in batch.to_pylist()]


def read_values(tmp_path: Path, declared: str, *literals: str, **more: Any) -> list[Any]:
    """Each stored value as the column's type gives it; for one that is invalid, what was found."""
    path = database(
        tmp_path / "v.db", f"CREATE TABLE t (v {declared})", *(f"INSERT INTO t VALUES ({x})" for x in literals)
    )
    return [row["_invalid"][0]["got"] if row.get("_invalid") else row["v"] for row in rows_of(path, **more)]


@pytest.mark.parametrize(
    ("declared", "type_", "contract"),
    [
        ("INTEGER", pa.int64(), "int64"),
        ("unsigned big int", pa.int64(), "int64"),
        ("bool", pa.bool_(), "bool"),
        ("BOOLEAN", pa.bool_(), "bool"),
        ("double precision", pa.float64(), "float64"),
        ("FLOAT", pa.float64(), "float64"),
        ("DECIMAL(10, 2)", pa.decimal128(10, 2), "decimal(10,2)"),
        ("numeric(5)", pa.decimal128(5, 0), "decimal(5,0)"),
        ("DECIMAL(50,10)", pa.decimal256(50, 10), "decimal(50,10)"),
        ("decimal", pa.string(), "string"),
        ("DECIMAL(100,2)", pa.string(), "string"),
        ("varchar(20)", pa.string(), "string"),
        ("char(32)", pa.string(), "string"),
        ("CLOB", pa.string(), "string"),
        ("BLOB", pa.binary(), "bytes"),
        ("varbinary(16)", pa.binary(), "bytes"),
        ("DATE", pa.date32(), "date"),
        ("datetime(6)", TIMESTAMP, "timestamp"),
        ("TIMESTAMP WITH TIME ZONE", TIMESTAMP, "timestamp"),
        ("time", pa.time64("us"), "time"),
        ("json", pa.string(), "json"),
        ("UUID", pa.string(), "uuid"),
        ("", pa.string(), "string"),
        ("ANY", pa.string(), "string"),
        ("whatever", pa.string(), "string"),
    ],
)
def test_declared_types(declared: str, type_: pa.DataType, contract: str) -> None:
    kind = kind_of_declared(declared)
    assert (kind.type, kind.contract) == (type_, contract)


def test_f34_decimals_are_exact(tmp_path: Path) -> None:
    values = read_values(
        tmp_path,
        "DECIMAL(10,2)",
        "10.1",
        "'1e2'",
        "3",
        "0.1",
        "12345678.91",
        "1.005",
        "123456789.5",
        "'x'",
        "x'31'",
        "NULL",
    )
    assert values == [
        Decimal("10.10"), Decimal("100.00"), Decimal("3.00"), Decimal("0.10"), Decimal("12345678.91"),
        "real 1.005", "real 123456789.5", "text 'x'", "blob X'31' (1 bytes)", None,
    ]  # fmt: skip


def test_f34_decimals_in_text_keep_every_digit(tmp_path: Path) -> None:
    path = database(
        tmp_path / "d.db",
        "CREATE TABLE s (v TEXT)",
        "INSERT INTO s VALUES ('1234567890123456789012345678.0123456789')",
        "CREATE VIEW t AS SELECT v FROM s",
    )
    with closing(dialect_of(path)) as dialect:
        schema = dialect.describe("SELECT v FROM t")
        assert schema.field("v").type == pa.string()
    assert rows_of(path) == [{"v": "1234567890123456789012345678.0123456789"}]


def test_numbers_without_precision_are_exact_text(tmp_path: Path) -> None:
    values = read_values(tmp_path, "decimal", "10.10", "9223372036854775807", "1e-7", "0.1", "9e999", "'ten'")
    assert values == ["10.1", "9223372036854775807", "1e-7", "0.1", "real inf", "text 'ten'"]


def test_booleans(tmp_path: Path) -> None:
    values = read_values(tmp_path, "bool", "0", "1", "'TRUE'", "'f'", "2", "'yes'", "0.5", "NULL")
    assert values == [False, True, True, False, "integer 2", "text 'yes'", "real 0.5", None]


def test_integers_and_reals(tmp_path: Path) -> None:
    integers = read_values(tmp_path, "INTEGER", "-9223372036854775808", "'12'", "'abc'", "1.5", "x''")
    assert integers == [-(2**63), 12, "text 'abc'", "real 1.5", "blob X'' (0 bytes)"]
    (tmp_path / "v.db").unlink()
    assert read_values(tmp_path, "REAL", "1", "0.1", "9e999", "'x'") == [1.0, 0.1, float("inf"), "text 'x'"]


def test_dates_and_times(tmp_path: Path) -> None:
    dates = read_values(
        tmp_path, "DATE", "'2024-02-29'", "'2023-02-29'", "'2024-02-29 00:00:00'", "20240229", "'0001-01-01'"
    )
    assert dates == [
        datetime.date(2024, 2, 29), "text '2023-02-29'", "text '2024-02-29 00:00:00'", "integer 20240229",
        datetime.date(1, 1, 1),
    ]  # fmt: skip
    (tmp_path / "v.db").unlink()
    times = read_values(tmp_path, "TIME", "'23:59:59.999999'", "'08:30'", "'24:00:00'", "'01:02:03.1230000'", "'noon'")
    assert times == [
        datetime.time(23, 59, 59, 999999), datetime.time(8, 30), "text '24:00:00'",
        datetime.time(1, 2, 3, 123000), "text 'noon'",
    ]  # fmt: skip


def utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=datetime.UTC)  # type: ignore[misc, arg-type]


def test_timestamps_with_and_without_zone(tmp_path: Path) -> None:
    values = read_values(
        tmp_path, "datetime",
        "'2024-07-01 12:00:00'", "'2024-07-01T12:00:00.123456'", "'2024-07-01T12:00:00Z'",
        "'2024-07-01 12:00:00+02:00'", "'2024-07-01 12:00:00.5 +0230'", "'2024-07-01'", "'2024-07-01 12:00:00.1234567'",
        "'2024-07-01 12:00:00.1234560'",
        "'2024-13-01 00:00:00'", "1719835200", "1.5", "'now'",
    )  # fmt: skip
    assert values == [
        utc(2024, 7, 1, 12), utc(2024, 7, 1, 12, 0, 0, 123456), utc(2024, 7, 1, 12), utc(2024, 7, 1, 10),
        utc(2024, 7, 1, 9, 30, 0, 500000), utc(2024, 7, 1), "text '2024-07-01 12:00:00.1234567'",
        utc(2024, 7, 1, 12, 0, 0, 123456), "text '2024-13-01 00:00:00'", "integer 1719835200", "real 1.5", "text 'now'",
    ]  # fmt: skip


def test_f24_times_without_zone_are_the_sources(tmp_path: Path) -> None:
    values = read_values(
        tmp_path, "timestamp",
        "'2024-07-01 12:00:00'", "'2024-07-01 12:00:00Z'", "'2024-03-31 02:30:00'", "'2024-10-27 02:30:00'",
        timezone="Europe/Berlin",
    )  # fmt: skip
    skipped, twice = "text '2024-03-31 02:30:00'", "text '2024-10-27 02:30:00'"
    assert values == [utc(2024, 7, 1, 10), utc(2024, 7, 1, 12), skipped, twice]


def test_integer_times_when_declared(tmp_path: Path) -> None:
    values = read_values(
        tmp_path, "datetime", "1719835200", "'2024-07-01 12:00:00'", "9223372036854775807",
        options={"integer_times": "seconds"},
    )  # fmt: skip
    assert values == [utc(2024, 7, 1, 12), utc(2024, 7, 1, 12), "integer 9223372036854775807"]


def test_uuids(tmp_path: Path) -> None:
    text = "'6BA7B810-9DAD-11D1-80B4-00C04FD430C8'"
    values = read_values(tmp_path, "uuid", text, "x'6ba7b8109dad11d180b400c04fd430c8'", "'6ba7b810'", "x'00'", "NULL")
    canonical = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    assert values == [canonical, canonical, "text '6ba7b810'", "blob X'00' (1 bytes)", None]


def test_untyped_columns(tmp_path: Path) -> None:
    assert read_values(tmp_path, "", "1", "'1'", "0.1", "x'00'", "NULL", "''") == [
        "1", "1", "0.1", "blob X'00' (1 bytes)", None, "",
    ]  # fmt: skip


def test_f31_hostile_text(tmp_path: Path) -> None:
    values = read_values(
        tmp_path, "TEXT", "''", "'a' || char(0) || 'b'", "CAST(x'ff41' AS TEXT)", "CAST(x'eda080' AS TEXT)", "'𝄞'"
    )
    assert values == ["", "a\0b", "text '\\\\xffA'", "text '\\\\xed\\\\xa0\\\\x80'", "𝄞"]


def test_f54_each_invalid_value_of_a_row_is_named(tmp_path: Path) -> None:
    path = database(
        tmp_path / "m.db",
        "CREATE TABLE t (id INTEGER, price DECIMAL(4,2), day DATE)",
        "INSERT INTO t VALUES (1, 9.99, '2024-01-01'), ('one', 123.456, 'today'), (3, 1, '2024-01-03')",
    )
    rows = sorted(rows_of(path), key=lambda row: str(row["day"]))
    assert [row["_invalid"] for row in rows] == [
        None,
        None,
        [
            {"column": "id", "expected": "int64", "got": "text 'one'"},
            {"column": "price", "expected": "decimal(4,2)", "got": "real 123.456"},
            {"column": "day", "expected": "date", "got": "text 'today'"},
        ],
    ]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[SqliteDialect]:
    path = database(
        tmp_path / "shop.db",
        'CREATE TABLE "odd ""name.x" ("a b" TEXT NOT NULL, k INTEGER, PRIMARY KEY (k, "a b")) WITHOUT ROWID',
        "CREATE TABLE django_migrations (id INTEGER PRIMARY KEY)",
        "CREATE TABLE customer (id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, uid char(32) NOT NULL,"
        " data text NOT NULL CHECK ((JSON_VALID(data) OR data IS NULL)), price REAL DEFAULT 1, twice AS (price * 2))",
        "CREATE TABLE item (code TEXT PRIMARY KEY, customer REFERENCES customer, x, y,"
        " FOREIGN KEY (x) REFERENCES item (code))",
        "CREATE INDEX item_xy ON item (x, y)",
        "CREATE INDEX item_part ON item (y) WHERE y > 1",
        "CREATE INDEX item_expr ON item (lower(x))",
        "CREATE VIEW v AS SELECT id, email, 1 + 1 AS two FROM customer",
        "CREATE TABLE headwater_lms_changes (x)",
        "CREATE TABLE seq (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "INSERT INTO customer (id, email, uid, data) VALUES (7, 'a', '6ba7b8109dad11d180b400c04fd430c8', '{}')",
    )
    dialect = dialect_of(path)
    yield dialect
    dialect.close()


def test_tables_leave_out_what_is_not_the_applications(shop: SqliteDialect) -> None:
    assert [t.name for t in shop.tables()] == ["customer", "django_migrations", "item", 'odd "name.x', "seq", "v"]


def test_inspection(shop: SqliteDialect) -> None:
    customer = shop.table(TableId("", "CUSTOMER"))
    assert customer.id == TableId("", "customer")
    assert [(c.name, c.contract, c.nullable, c.generated, c.has_default) for c in customer.columns] == [
        ("id", "int64", False, False, False),
        ("email", "string", False, False, False),
        ("uid", "uuid", False, False, False),
        ("data", "json", False, False, False),
        ("price", "float64", True, False, True),
        ("twice", "string", True, True, False),
    ]
    assert (customer.key, customer.unique, customer.rows) == (("id",), (("email",),), 7)
    item = shop.table(TableId("", "item"))
    assert item.indexes == (("code",), ("x", "y"))
    assert [(f.columns, f.table.name, f.references) for f in item.foreign_keys] == [
        (("x",), "item", ("code",)),
        (("customer",), "customer", ("id",)),
    ]
    odd = shop.table(TableId("", 'odd "name.x'))
    assert (odd.key, [c.nullable for c in odd.columns], odd.rows) == (("k", "a b"), [False, False], None)
    view = shop.table(TableId("", "v"))
    assert (view.is_view, view.key, view.schema().names) == (True, (), ["id", "email", "two"])


def test_a_missing_table_names_the_nearest(shop: SqliteDialect) -> None:
    with pytest.raises(SourceError, match="did you mean `customer`"):
        shop.table(TableId("", "custmer"))


def test_a_missing_column_names_the_nearest(shop: SqliteDialect) -> None:
    with pytest.raises(SourceError, match="did you mean `email`"):
        shop.whole(shop.table(TableId("", "customer")), ["emall"])


def test_describe_gives_the_types_of_a_custom_query(shop: SqliteDialect) -> None:
    sql = (
        "SELECT c.id, uid, price AS p, i.code -- a :cursor in a comment\n"
        " FROM customer c LEFT JOIN item i ON i.customer = c.id WHERE c.id > :cursor;"
    )
    schema = shop.describe(sql)
    assert [(f.name, f.type) for f in schema] == [
        ("id", pa.int64()), ("uid", pa.string()), ("p", pa.float64()), ("code", pa.string()),
    ]  # fmt: skip


@pytest.mark.parametrize("sql", ["DELETE FROM customer", "SELECT * FROM customer; DROP TABLE customer", "SELEC 1"])
def test_describe_takes_one_select_only(shop: SqliteDialect, sql: str) -> None:
    with pytest.raises(SourceError):
        shop.describe(sql)
    assert shop.table(TableId("", "customer")).rows == 7


def test_describe_knows_one_parameter(shop: SqliteDialect) -> None:
    with pytest.raises(ConfigError, match="`:since` is no parameter"):
        shop.describe("SELECT id FROM customer WHERE id > :since")


def test_an_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `busy_timeout`"):
        dialect_of(tmp_path / "x.db", options={"busytimeout": 1})


def pages(dialect: SqliteDialect, table: str, by: list[str], size: int, **more: Any) -> list[list[dict[str, Any]]]:
    found = dialect.table(TableId("", table))
    names = [column.name for column in found.columns]
    out: list[list[dict[str, Any]]] = []
    after = None
    with closing(dialect.reader()) as reader:
        while True:
            query = dialect.page(found, names, by, after, size, **more)
            rows = [row for batch in reader.read(query, rows=size) for row in batch.to_pylist()]
            if not rows:
                return out
            out.append([{name: row[name] for name in names} for row in rows])
            after = [_stored(rows[-1][f"_by{n}"]) for n in range(query.hidden)]


def _stored(value: dict[str, Any]) -> Any:
    return next(v for v in value.values() if v is not None)


def test_f61_keyset_pages_split_equal_timestamps(tmp_path: Path) -> None:
    path = database(
        tmp_path / "p.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME)",
        "INSERT INTO t VALUES (5, '2024-01-01 00:00:00'), (3, '2024-01-01 00:00:00'), (9, '2023-01-01 00:00:00')",
        "INSERT INTO t VALUES (1, NULL), (4, '2024-01-01 00:00:00')",
    )
    with closing(dialect_of(path)) as dialect:
        assert [[row["id"] for row in page] for page in pages(dialect, "t", ["at", "id"], 2)] == [[9, 3], [4, 5]]
        assert [[r["id"] for r in p] for p in pages(dialect, "t", ["at", "id"], 3, descending=True)] == [[5, 4, 3], [9]]
        reader = dialect.reader()
        with closing(reader):
            (batch,) = reader.read(dialect.nulls(dialect.table(TableId("", "t")), ["at"]), rows=1)
        assert batch.to_pylist() == [{"count": 1}]


def test_f27_keys_are_compared_in_the_database(tmp_path: Path) -> None:
    path = database(
        tmp_path / "c.db",
        "CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY)",
        "INSERT INTO t VALUES ('b'), ('A'), ('C'), ('ä'), ('a ')",
        "CREATE TABLE s (k TEXT COLLATE NOCASE)",
        "INSERT INTO s VALUES ('b'), ('A'), ('a'), ('B')",
    )
    with closing(dialect_of(path)) as dialect:
        assert [row["k"] for page in pages(dialect, "t", ["k"], 1) for row in page] == ["A", "a ", "b", "C", "ä"]
        assert [row["k"] for page in pages(dialect, "s", ["k"], 1) for row in page] == ["A", "B", "a", "b"]


def test_a_table_without_key_is_paged_by_rowid(tmp_path: Path) -> None:
    path = database(
        tmp_path / "r.db", "CREATE TABLE t (rowid TEXT, x)", "INSERT INTO t VALUES ('z', 1), ('y', 2), ('x', 3)"
    )
    with closing(dialect_of(path)) as dialect:
        assert [[row["rowid"] for row in page] for page in pages(dialect, "t", [STORED], 2)] == [["z", "y"], ["x"]]


def test_a_view_without_key_cannot_be_paged(shop: SqliteDialect) -> None:
    with pytest.raises(SourceError, match="no key and no rowid"):
        shop.page(shop.table(TableId("", "v")), ["id"], [STORED], None, 10)
