"""Every type of PostgreSQL with hostile values, and what each becomes, whichever way it is captured.

One table has a column a type and a row a value: `statements` makes and fills it, `check` compares what was captured of
it. docs/postgres-types.md is made of the same table.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from headwater.model import TIMESTAMP

SETUP = (
    "CREATE EXTENSION hstore",
    "CREATE EXTENSION ltree",
    "CREATE EXTENSION citext",
    'CREATE SCHEMA "we.ird"',
    """CREATE TYPE "we.ird"."mo""od" AS ENUM ('sad', 'so "so"', 'a,b', 'NULL')""",
    "CREATE DOMAIN whole AS int CHECK (value > -1000)",
    "CREATE DOMAIN price AS numeric(10,2)",
    'CREATE DOMAIN "fa.ir" AS price CHECK (value >= 0)',
    'CREATE DOMAIN feeling AS "we.ird"."mo""od"',
    "CREATE DOMAIN numbers AS int[]",
    "CREATE DOMAIN moment AS timestamptz",
    "CREATE TYPE pair AS (n int, t text)",
    "CREATE TYPE floats AS RANGE (subtype = float8)",
)


@dataclass(frozen=True)
class Invalid:
    """A value that the type's Arrow type cannot hold. `got`: the server's own text of it."""

    got: str


@dataclass(frozen=True)
class Case:
    """`values`: SQL literal -> the logical value, or `Invalid`."""

    sql: str
    type: pa.DataType
    contract: str
    values: dict[str, Any]
    note: str = ""


def _utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[misc,arg-type]


def _printed(sql: str, *values: str, note: str = "", **others: str) -> Case:
    """A type that stays the server's text; `others`: literals that are printed otherwise."""
    return Case(sql, pa.string(), "string", {**{value: value for value in values}, **others}, note)


def _text(sql: str, values: dict[str, str], note: str = "", contract: str = "string") -> Case:
    return Case(sql, pa.string(), contract, dict(values), note)


_FLOATS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"), "-0": -0.0, "0.1": 0.1}
_MOMENTS = {
    "infinity": Invalid("infinity"),
    "-infinity": Invalid("-infinity"),
}
_INT_LISTS = {
    "{1,NULL,3}": [1, None, 3],
    "{}": [],
    "{NULL}": [None],
    "{{1,2},{3,4}}": Invalid("{{1,2},{3,4}}"),
    "[0:1]={1,2}": Invalid("[0:1]={1,2}"),
}
_HUGE = "1" + "0" * 1000

MATRIX: tuple[Case, ...] = (
    # numbers
    Case("smallint", pa.int32(), "int32", {"-32768": -(2**15), "32767": 2**15 - 1}),
    Case("integer", pa.int32(), "int32", {"-2147483648": -(2**31), "2147483647": 2**31 - 1, "0": 0}),
    Case("bigint", pa.int64(), "int64", {"-9223372036854775808": -(2**63), "9223372036854775807": 2**63 - 1}),
    Case("oid", pa.int64(), "int64", {"4294967295": 2**32 - 1, "0": 0}),
    Case("real", pa.float32(), "float32", {**_FLOATS, "1e-45": 1e-45, "3.4028235e38": 3.4028235e38}),
    Case(
        "double precision",
        pa.float64(),
        "float64",
        {**_FLOATS, "5e-324": 5e-324, "1.7976931348623157e308": 2.0**1023 * (2 - 2**-52)},
    ),
    Case(
        "numeric(10,2)",
        pa.decimal128(10, 2),
        "decimal(10,2)",
        {"99999999.99": Decimal("99999999.99"), "-0.01": Decimal("-0.01"), "NaN": Invalid("NaN")},
        "precision up to 76",
    ),
    Case("numeric(38,38)", pa.decimal128(38, 38), "decimal(38,38)", {"0." + "9" * 38: Decimal("0." + "9" * 38)}),
    Case(
        "numeric(76,10)",
        pa.decimal256(76, 10),
        "decimal(76,10)",
        {"9" * 66 + ".0000000001": Decimal("9" * 66 + ".0000000001"), "NaN": Invalid("NaN")},
    ),
    _text(
        "numeric(100,2)",
        {"9" * 98 + ".99": "9" * 98 + ".99", "NaN": "NaN"},
        "beyond 76 digits, or a scale outside 0 to the precision",
    ),
    _text(
        "numeric",
        {
            "1.500": "1.500",
            "NaN": "NaN",
            "Infinity": "Infinity",
            "-Infinity": "-Infinity",
            "1e1000": _HUGE,
            "0.000": "0.000",
            "1e-30": "0." + "0" * 29 + "1",
            "-100000": "-100000",
        },
        "without precision: exact text",
    ),
    _text(
        "money",
        {"12.34": "$12.34", "-92233720368547758.08": "-$92,233,720,368,547,758.08"},
        "as `lc_monetary` of the role that Headwater connects as prints it",
    ),
    Case("boolean", pa.bool_(), "bool", {"true": True, "false": False}),
    # texts
    _text(
        "text",
        {
            "": "",
            "é☃😀": "é☃😀",
            "NULL": "NULL",
            "a'b\"c\\d\n\t": "a'b\"c\\d\n\t",
            "nan": "nan",
            "x" * 5000: "x" * 5000,
        },
    ),
    _printed("varchar(10)", "", "ab "),
    _text("char(5)", {"ab": "ab   ", "": "     "}, "padded, as it is stored"),
    _printed("name", "a", "nan"),
    _text('"char"', {"x": "x", "": ""}),
    _printed("citext", "MiXed", "NULL"),
    _printed('"we.ird"."mo""od"', 'so "so"', "NULL", "a,b", note="an enum"),
    _text("xml", {"<a>1</a>": "<a>1</a>", "": ""}),
    Case("bytea", pa.binary(), "bytes", {r"\x00ff": b"\x00\xff", r"\x": b"", r"\x5c78": b"\\x"}),
    _text("uuid", {"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}, contract="uuid"),
    _text("json", {'{"b": 1.0,  "b": 2}': '{"b": 1.0,  "b": 2}', "null": "null"}, "text as it was written", "json"),
    _text(
        "jsonb", {'{"b":1.0, "a":[1,"é"]}': '{"a": [1, "é"], "b": 1.0}', "null": "null", "1e3": "1000"}, contract="json"
    ),
    _text("jsonpath", {"$.a[*] ? (@ > 1)": '$."a"[*]?(@ > 1)'}),
    # dates and times
    Case(
        "date",
        pa.date32(),
        "date",
        {
            "0001-01-01": dt.date(1, 1, 1),
            "9999-12-31": dt.date(9999, 12, 31),
            **_MOMENTS,
            "0044-03-15 BC": Invalid("0044-03-15 BC"),
            "4713-01-01 BC": Invalid("4713-01-01 BC"),
            "10000-01-01": Invalid("10000-01-01"),
            "5874897-12-31": Invalid("5874897-12-31"),
        },
    ),
    Case(
        "timestamp",
        pa.timestamp("us"),
        "local_timestamp",
        {
            "2024-02-29 12:00:00.123456": dt.datetime(2024, 2, 29, 12, 0, 0, 123456),
            "0001-01-01": dt.datetime(1, 1, 1),
            "9999-12-31 23:59:59.999999": dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
            **_MOMENTS,
            "0044-03-15 12:00:00.5 BC": Invalid("0044-03-15 12:00:00.5 BC"),
            "10000-01-01 00:00:00": Invalid("10000-01-01 00:00:00"),
            "294276-12-31 23:59:59.999999": Invalid("294276-12-31 23:59:59.999999"),
        },
    ),
    Case(
        "timestamptz",
        TIMESTAMP,
        "timestamp",
        {
            "2024-01-01 00:00+03": _utc(2023, 12, 31, 21),
            "2024-01-01 00:00:00.000001Z": _utc(2024, 1, 1, 0, 0, 0, 1),
            "1900-01-01 00:00:00.1Z": _utc(1900, 1, 1, 0, 0, 0, 100000),
            **_MOMENTS,
            "0044-03-15 12:00:00+00 BC": Invalid("0044-03-15 12:00:00+00 BC"),
            "10000-01-01 00:00:00+00": Invalid("10000-01-01 00:00:00+00"),
        },
    ),
    Case(
        "time",
        pa.time64("us"),
        "time",
        {"00:00": dt.time(0), "23:59:59.999999": dt.time(23, 59, 59, 999999), "24:00": Invalid("24:00:00")},
    ),
    _text("timetz", {"12:00:00.5+03": "12:00:00.5+03", "24:00:00-15:59:59": "24:00:00-15:59:59"}),
    _text(
        "interval",
        {
            "1 year 2 mons 3 days 04:05:06.789": "P1Y2M3DT4H5M6.789S",
            "-1 day +02:00": "P-1DT2H",
            "0": "PT0S",
            "-0.000001 s": "PT-0.000001S",
        },
        "ISO 8601",
    ),
    # arrays
    Case("integer[]", pa.list_(pa.int32()), "list<int32>", _INT_LISTS, "an array of any type that is not printed"),
    Case(
        "text[]",
        pa.list_(pa.string()),
        "list<string>",
        {r'{"a,b","c\"d\\","NULL",NULL,""," x ","{}",é}': ["a,b", 'c"d\\', "NULL", None, "", " x ", "{}", "é"]},
    ),
    Case("varchar(3)[]", pa.list_(pa.string()), "list<string>", {"{abc}": ["abc"]}),
    Case(
        "timestamptz[]",
        pa.list_(TIMESTAMP),
        "list<timestamp>",
        {
            '{"2024-01-01 00:00:00.5+03",NULL}': [_utc(2023, 12, 31, 21, 0, 0, 500000), None],
            '{infinity,"2024-01-01 00:00:00+00"}': Invalid('{infinity,"2024-01-01 00:00:00+00"}'),
        },
    ),
    Case(
        "date[]",
        pa.list_(pa.date32()),
        "list<date>",
        {"{2024-01-01}": [dt.date(2024, 1, 1)], '{"0044-03-15 BC"}': Invalid('{"0044-03-15 BC"}')},
    ),
    Case(
        "numeric(10,2)[]",
        pa.list_(pa.decimal128(10, 2)),
        "list<decimal(10,2)>",
        {"{1.5,NULL}": [Decimal("1.50"), None], "{NaN}": Invalid("{NaN}")},
    ),
    Case("numeric[]", pa.list_(pa.string()), "list<string>", {"{1.50,NaN}": ["1.50", "NaN"]}),
    Case(
        "float8[]", pa.list_(pa.float64()), "list<float64>", {"{NaN,-Infinity,0.1}": [float("nan"), float("-inf"), 0.1]}
    ),
    Case("boolean[]", pa.list_(pa.bool_()), "list<bool>", {"{t,f,NULL}": [True, False, None]}),
    Case("bytea[]", pa.list_(pa.binary()), "list<bytes>", {r'{"\\x00ff",NULL,"\\x"}': [b"\x00\xff", None, b""]}),
    Case(
        "uuid[]",
        pa.list_(pa.string()),
        "list<uuid>",
        {"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]},
    ),
    Case("jsonb[]", pa.list_(pa.string()), "list<json>", {r'{"{\"a\": \"x\\\\y\"}"}': ['{"a": "x\\\\y"}']}),
    Case(
        '"we.ird"."mo""od"[]',
        pa.list_(pa.string()),
        "list<string>",
        {r'{"so \"so\"","NULL",NULL}': ['so "so"', "NULL", None]},
    ),
    Case("citext[]", pa.list_(pa.string()), "list<string>", {"{Aa}": ["Aa"]}),
    Case("whole[]", pa.list_(pa.int32()), "list<int32>", {"{7}": [7]}, "an array of a domain"),
    _text("interval[]", {"{1 day,NULL}": "{P1D,NULL}"}),
    _text("box[]", {"{(1,1),(0,0);(2,2),(1,1)}": "{(1,1),(0,0);(2,2),(1,1)}"}),
    _text("pair[]", {r'{"(1,\"a b\")"}': r'{"(1,\"a b\")"}'}),
    # domains, composites, ranges
    Case("whole", pa.int32(), "int32", {"-5": -5}, "a domain is its base type"),
    Case('"fa.ir"', pa.decimal128(10, 2), "decimal(10,2)", {"1.5": Decimal("1.50"), "NaN": Invalid("NaN")}),
    _printed("feeling", "sad", "a,b"),
    Case("numbers", pa.list_(pa.int32()), "list<int32>", {"{1,2}": [1, 2], "{{1}}": Invalid("{{1}}")}),
    Case(
        "moment",
        TIMESTAMP,
        "timestamp",
        {"2024-01-01 00:00+03": _utc(2023, 12, 31, 21), "infinity": Invalid("infinity")},
    ),
    _text("pair", {'(1,"a,""b")': '(1,"a,""b")', "(,)": "(,)"}, "a composite"),
    _text("int4range", {"[1,5]": "[1,6)", "empty": "empty", "(,)": "(,)"}),
    _text("tstzrange", {"[2024-01-01 00:00+03,infinity)": '["2023-12-31 21:00:00+00",infinity)'}),
    _text("floats", {"[0.1,1)": "[0.1,1)"}),
    _text("int4multirange", {"{[1,2],[5,6)}": "{[1,3),[5,6)}", "{}": "{}"}),
    # the rest
    _text(
        "inet",
        {"192.168.0.1/24": "192.168.0.1/24", "192.168.0.1": "192.168.0.1", "::1": "::1"},
        "`::text` would print `/32`",
    ),
    _printed("cidr", "10.0.0.0/8", "::/0"),
    _printed("macaddr", "08:00:2b:01:02:03"),
    _printed("macaddr8", "08:00:2b:01:02:03:04:05"),
    _printed("bit(3)", "101"),
    _printed("varbit", "10101", ""),
    _text("hstore", {"a=>1, b=>NULL": '"a"=>"1", "b"=>NULL', "": ""}),
    _printed("ltree", "a.b.c", ""),
    _text("tsvector", {"'it''s' a:1A": "'a':1A 'it''s'"}),
    _text("tsquery", {"a & !b": "'a' & !'b'"}),
    _printed("point", "(1.5,-0)", "(NaN,Infinity)"),
    _printed("line", "{1,-1,0}"),
    _printed("lseg", "[(0,0),(1,1)]"),
    _printed("box", "(1,1),(0,0)"),
    _printed("path", "((0,0),(1,1))", "[(0,0)]"),
    _printed("polygon", "((0,0),(1,1))"),
    _printed("circle", "<(0,0),1>"),
    _printed("pg_lsn", "FFFFFFFF/FFFFFFFF"),
    _printed("pg_snapshot", "1:5:2,3"),
    _printed("xid", "4294967295"),
    _printed("tid", "(4294967295,65535)"),
    _printed("oidvector", "1 4294967295", ""),
    _printed(
        "regclass",
        "pg_class",
        note="a name outside `pg_catalog`: by triggers with its schema, else as `search_path` says",
    ),
)


def column(number: int) -> str:
    return f"c{number}"


def literal(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


ROWS = max(len(case.values) for case in MATRIX) + 1
"""One more than the most values: the last row is NULL throughout."""


def create(table: str) -> tuple[str, ...]:
    """After `SETUP`, which is once a database."""
    columns = ", ".join(f"{column(n)} {case.sql}" for n, case in enumerate(MATRIX))
    return (f"CREATE TABLE {table} (id int PRIMARY KEY, {columns})",)


def insert(table: str) -> tuple[str, ...]:
    """A statement a row; ids are 0, 1, ..."""
    return tuple(f"INSERT INTO {table} VALUES ({row}, {', '.join(_values(row))})" for row in range(ROWS))


def _values(row: int) -> list[str]:
    literals = [list(case.values)[row : row + 1] for case in MATRIX]
    return [literal(found[0]) if found else "NULL" for found in literals]


def expected(case: Case) -> list[Any]:
    """The logical values of a column by id, None for NULL and for what is invalid."""
    values = [None if isinstance(value, Invalid) else value for value in case.values.values()]
    return values + [None] * (ROWS - len(values))


def marks() -> dict[int, list[tuple[str, str, str]]]:
    """By id: the columns that are invalid, the kind that each should be, and the server's text."""
    found: dict[int, list[tuple[str, str, str]]] = {}
    for number, case in enumerate(MATRIX):
        for row, value in enumerate(case.values.values()):
            if isinstance(value, Invalid):
                found.setdefault(row, []).append((column(number), kind_of(case), value.got))
    return found


def kind_of(case: Case) -> str:
    """What a mark says was expected: the name of the kind, which differs from the contract's where that has its own."""
    names = {"timestamp": "timestamptz", "local_timestamp": "timestamp", "int32": "int4"}
    return re.sub(r"[a-z_0-9]+", lambda word: names.get(word[0], word[0]), case.contract)


def differences(rows: pa.Table | pa.RecordBatch, invalid: pa.Array | pa.ChunkedArray | None) -> list[str]:
    """How captured rows, sorted by id, differ from what is expected. `rows`: columns as they were captured."""
    numbers = range(len(MATRIX))
    return [text for number in numbers for text in case_differences(number, rows)] + mark_differences(
        numbers, [None] * len(rows) if invalid is None else invalid.to_pylist()
    )


def case_differences(number: int, rows: pa.Table | pa.RecordBatch) -> list[str]:
    """Of one column: its type, and its values to the sign of a zero."""
    case = MATRIX[number]
    found, wanted = rows.column(column(number)), pa.array(expected(case), case.type)
    if found.type != case.type:
        return [f"{case.sql}: {found.type}, expected {case.type}"]
    if repr(found.to_pylist()) != repr(wanted.to_pylist()):
        return [f"{case.sql}: {found.to_pylist()}, expected {wanted.to_pylist()}"]
    return []


def mark_differences(numbers: Iterable[int], invalid: Sequence[Any]) -> list[str]:
    """Of these columns. `invalid`: the marks of each row, sorted by id."""
    names = {column(number) for number in numbers}
    out = []
    for row, (found, all_wanted) in enumerate(zip(invalid, _marks_by_row(), strict=True)):
        shown = sorted((m["column"], m["expected"], m["got"]) for m in found or () if m["column"] in names)
        wanted = sorted(mark for mark in all_wanted if mark[0] in names)
        if shown != wanted:
            out.append(f"row {row}: marks {shown}, expected {wanted}")
    return out


def _marks_by_row() -> list[list[tuple[str, str, str]]]:
    found = marks()
    return [found.get(row, []) for row in range(ROWS)]


def type_table(proven: Mapping[str, set[int]]) -> str:
    """The table of docs/postgres-types.md. `proven`: way -> the cases whose values came by it as they should."""
    lines = [
        "| PostgreSQL | Arrow | contract | invalid | " + " | ".join(proven) + " | |",
        "|---|---|---|---|" + "---|" * len(proven) + "---|",
    ]
    for number, case in enumerate(MATRIX):
        bad = ", ".join(f"`{value.got}`" for value in case.values.values() if isinstance(value, Invalid))
        ways = " | ".join("=" if number in cases else "" for cases in proven.values())
        lines.append(f"| `{case.sql}` | `{case.type}` | `{case.contract}` | {bad} | {ways} | {case.note} |")
    return "\n".join(lines) + "\n"
