"""Which type a PostgreSQL column has: one decision for snapshot, log, query and trigger (F24).

docs/postgres-types.md is the table of it, made by the tests that prove it. Three rules stand behind it:

* A value is what the server prints for it (its type's output function, on a connection set as `drivers.postgres` sets
  it); what has an exact Arrow type besides becomes that, and everything else stays the text.
* A domain is its base type; an array of a type that has an exact Arrow type is a list.
* What the Arrow type cannot hold (infinity, a year BC, 24:00, NaN in a decimal, an array of two dimensions) is null and
  marked in `_invalid`; it never fails its batch.

Types are known by the catalog `pg_type` (https://www.postgresql.org/docs/current/catalog-pg-type.html).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from headwater.dialects import Column
from headwater.drivers.postgres import execute, quoted
from headwater.model import TIMESTAMP

if TYPE_CHECKING:
    import psycopg

METADATA = b"headwater.postgres"
"""The metadata of a field in `Query.columns` that names its kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a column's values become.

    `name`: what a mark says was expected. `contract`: the natural contract type. `wire`: how binary pgoutput carries
    it, "" if only as text. `native`: ADBC reads the plain column exactly (`postgres_values.from_adbc`); otherwise a
    query selects its text. `element`: of a list, its elements' kind. `lowest`: a text that no
    value is below.
    """

    name: str
    contract: str
    type: pa.DataType
    wire: str = ""
    native: bool = False
    element: Kind | None = None
    lowest: str = ""

    def field(self, name: str) -> pa.Field:
        return pa.field(name, self.type, metadata={METADATA: self.name.encode()})


_STRING = pa.string()
_PLAIN = {
    kind.name: kind
    for kind in (
        Kind("int2", "int32", pa.int32(), "i2", native=True, lowest="-32768"),
        Kind("int4", "int32", pa.int32(), "i4", native=True, lowest="-2147483648"),
        Kind("int8", "int64", pa.int64(), "i8", native=True, lowest="-9223372036854775808"),
        Kind("oid", "int64", pa.int64(), "oid", native=True, lowest="0"),
        Kind("float4", "float32", pa.float32(), "f4", native=True, lowest="-Infinity"),
        Kind("float8", "float64", pa.float64(), "f8", native=True, lowest="-Infinity"),
        Kind("bool", "bool", pa.bool_(), "bool", native=True, lowest="false"),
        Kind("number", "string", _STRING, "numeric", native=True, lowest="-1e1000"),
        Kind("text", "string", _STRING, "text", native=True),
        Kind("label", "string", _STRING, "text"),
        Kind("bytea", "bytes", pa.binary(), "bytes", native=True),
        Kind("uuid", "uuid", _STRING, "uuid", native=True, lowest="00000000-0000-0000-0000-000000000000"),
        Kind("json", "json", _STRING, "text", native=True),
        Kind("jsonb", "json", _STRING, "jsonb", native=True),
        Kind("date", "date", pa.date32(), "date", native=True, lowest="-infinity"),
        Kind("timestamptz", "timestamp", TIMESTAMP, "timestamp", native=True, lowest="-infinity"),
        Kind("timestamp", "local_timestamp", pa.timestamp("us"), "timestamp", native=True, lowest="-infinity"),
        Kind("time", "time", pa.time64("us"), "time", native=True, lowest="00:00"),
        Kind("printed", "string", _STRING),
    )
}
PRINTED = _PLAIN["printed"]
"""Any other type: a string, the server's own text. What `as_text` makes of a column."""

_BUILT_IN = {
    "int2": "int2", "int4": "int4", "int8": "int8", "oid": "oid", "float4": "float4", "float8": "float8",
    "bool": "bool", "text": "text", "varchar": "text", "bpchar": "text", "name": "text", "bytea": "bytea",
    "uuid": "uuid", "json": "json", "jsonb": "jsonb", "date": "date", "timestamptz": "timestamptz",
    "timestamp": "timestamp", "time": "time", "numeric": "number",
}  # fmt: skip
_LABELS = ("citext",)
"""Types of extensions that are sent as plain text in binary too; enums are the others."""

_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class PgType:
    """A row of `pg_type`. `element`: an array's element type; `base` and `typmod`: what a domain stands for.

    `output`: its output function's quoted name.
    """

    oid: int
    schema: str
    name: str
    typtype: str
    element: int
    base: int
    typmod: int
    output: str

    @property
    def sql(self) -> str:
        """The quoted name, which never implies a length or a precision."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


_LOAD = """
SELECT t.oid::bigint, n.nspname::text, t.typname::text, t.typtype::text,
       CASE WHEN t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN t.typelem ELSE 0 END::bigint,
       t.typbasetype::bigint, t.typtypmod,
       pg_catalog.quote_ident(o.nspname) || '.' || pg_catalog.quote_ident(p.proname)
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput
JOIN pg_catalog.pg_namespace o ON o.oid = p.pronamespace
"""


class PgTypes:
    """The types of one database, as they were when they were loaded; `knows` says whether that was long ago."""

    def __init__(self, types: Iterable[PgType]) -> None:
        self._types = {t.oid: t for t in types}
        self._kinds: dict[tuple[int, int], Kind] = {}

    @classmethod
    def load(cls, connection: psycopg.Connection) -> PgTypes:
        return cls(PgType(*row) for row in execute(connection, _LOAD))

    def learn(self, connection: psycopg.Connection) -> None:
        """Load them again, for everybody who looks here."""
        self._types = PgTypes.load(connection)._types
        self._kinds.clear()

    def knows(self, oid: int) -> bool:
        return oid in self._types

    def kind(self, oid: int, typmod: int = -1) -> Kind:
        """Of a column with this `atttypid` and `atttypmod`. A type that is not known is printed."""
        found = self._kinds.get((oid, typmod))
        if found is None:
            found = self._kinds[oid, typmod] = self._kind(oid, typmod)
        return found

    def column(self, name: str, oid: int, typmod: int = -1) -> PgColumn:
        """A column of which no more is known."""
        kind = self.kind(oid, typmod)
        return PgColumn(name, kind.name, kind.type, kind.contract, True, kind=kind, oid=oid, typmod=typmod)

    def base(self, oid: int, typmod: int = -1) -> tuple[PgType | None, int]:
        """The type below all domains, and the length or precision that counts."""
        found = self._types.get(oid)
        for _ in range(_DEEPEST):
            if found is None or found.typtype != "d":
                break
            typmod, found = found.typmod, self._types.get(found.base)
        return found, typmod

    def printed(self, expression: str, oid: int) -> str:
        """SQL for the text of a value: what the log sends in text mode, so never a cast (`::text` differs)."""
        base, _ = self.base(oid)
        if base is None:
            return f"({expression})::pg_catalog.text"
        plain = expression if base.typtype == "p" else f"({expression})::{base.sql}"
        return f"pg_catalog.textin({base.output}({plain}))"

    def plain(self, expression: str, oid: int) -> str:
        """SQL for the value in its base type: a client does not know a database's own domains."""
        given, (base, _) = self._types.get(oid), self.base(oid)
        return expression if given is None or base is None or given is base else f"({expression})::{base.sql}"

    def parsed(self, literal: str, oid: int) -> str:
        """SQL for a value from its text, given as an SQL literal or a parameter."""
        base, _ = self.base(oid)
        return literal if base is None else f"({literal})::{base.sql}"

    def _kind(self, oid: int, typmod: int) -> Kind:
        base, typmod = self.base(oid, typmod)
        if base is None:
            return PRINTED
        if base.element:
            return _list_of(self.kind(base.element, typmod))
        if base.typtype == "e" or base.name in _LABELS:
            return _PLAIN["label"]
        if base.schema != "pg_catalog" or base.name not in _BUILT_IN:
            return PRINTED
        if base.name == "numeric":
            return _numeric(typmod)
        return _PLAIN[_BUILT_IN[base.name]]


def _list_of(element: Kind) -> Kind:
    if element is PRINTED or element.element is not None:
        return PRINTED
    return Kind(f"list<{element.name}>", f"list<{element.contract}>", pa.list_(element.type), element=element)


def _numeric(typmod: int) -> Kind:
    """The precision is in the upper 16 bits, the scale in the lower 11, signed (numeric.c, make_numeric_typmod)."""
    digits = ((typmod - 4) >> 16) & 0xFFFF
    places = (((typmod - 4) & 0x7FF) ^ 1024) - 1024
    return _PLAIN["number"] if typmod < 4 else _decimal(digits, places)


def _decimal(digits: int, places: int) -> Kind:
    if not (0 < digits <= 76 and 0 <= places <= digits):
        return _PLAIN["number"]
    make = pa.decimal128 if digits <= 38 else pa.decimal256
    name = f"decimal({digits},{places})"
    return Kind(name, name, make(digits, places), "numeric", native=True, lowest="-1e1000")


def kind_named(name: str) -> Kind:
    """The kind whose `name` this is."""
    if name in _PLAIN:
        return _PLAIN[name]
    if match := re.fullmatch(r"decimal\((\d+),(\d+)\)", name):
        return _decimal(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"list<(.*)>", name):
        return _list_of(kind_named(match[1]))
    raise KeyError(name)


def kind_of_field(field: pa.Field) -> Kind:
    """Of a field of `Query.columns`."""
    return kind_named((field.metadata or {})[METADATA].decode())


@dataclass(frozen=True, slots=True)
class PgColumn(Column):
    """A column as the PostgreSQL dialect describes it. `oid`, `typmod`: as in `pg_attribute`."""

    kind: Kind = PRINTED
    oid: int = 0
    typmod: int = -1

    def as_text(self) -> PgColumn:
        return dataclasses.replace(self, type=PRINTED.type, contract=PRINTED.contract, kind=PRINTED)
