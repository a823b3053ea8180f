"""Contract types in DuckDB: native wherever DuckDB has the type.

bool int32 int64 float32 float64   BOOLEAN INTEGER BIGINT FLOAT DOUBLE
decimal(p,s)                       DECIMAL(p,s); above 38 digits VARCHAR, in plain decimal notation
string bytes uuid json             VARCHAR BLOB UUID JSON
date time                          DATE TIME
timestamp, local_timestamp         TIMESTAMPTZ, TIMESTAMP
list<T> map<string,T> struct<...>  T[], MAP(VARCHAR, T), STRUCT(...)
"""

from __future__ import annotations

import pyarrow as pa

from headwater.contracts.types import FieldType
from headwater.sinks import decimals
from headwater.sinks.nested import rebuilt
from headwater.sinks.upsert import quoted

DIGITS = 38
"""The widest DECIMAL."""

_SCALARS = {
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bytes": "BLOB",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMPTZ",
    "local_timestamp": "TIMESTAMP",
    "uuid": "UUID",
    "json": "JSON",
}

OWN = {
    "_op": "VARCHAR",
    "_epoch": "UINTEGER",
    "_commit": "UBIGINT",
    "_index": "UINTEGER",
    "_time": "TIMESTAMPTZ",
    "_offset": "UBIGINT",
    "_unchanged": "VARCHAR",
    "_deleted": "BOOLEAN",
    "_deleted_at": "TIMESTAMPTZ",
    "_at": "TIMESTAMPTZ",
}


def type_of(parsed: FieldType) -> str:
    """The type's name in SQL."""
    if parsed.name == "decimal":
        return f"DECIMAL({parsed.precision},{parsed.scale})" if parsed.precision <= DIGITS else "VARCHAR"
    if parsed.name == "list":
        return f"{type_of(parsed.items[0])}[]"
    if parsed.name == "map":
        return f"MAP(VARCHAR, {type_of(parsed.items[0])})"
    if parsed.name == "struct":
        inner = ", ".join(f"{quoted(n)} {type_of(t)}" for n, t in zip(parsed.names, parsed.items, strict=True))
        return f"STRUCT({inner})"
    return _SCALARS[parsed.name]


def stored(array: pa.Array) -> pa.Array:
    """An array as DuckDB takes it: decimals that are too wide become text."""
    return rebuilt(array, _stored_leaf) if _has_wide(array.type) else array


def loaded(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """An array that DuckDB gave as the contract's type."""
    return array if array.type == wanted else array.cast(wanted)


def _stored_leaf(leaf: pa.Array) -> pa.Array:
    return decimals.text(leaf) if _has_wide(leaf.type) else leaf


def _has_wide(kind: pa.DataType) -> bool:
    if pa.types.is_decimal256(kind):
        return True
    return any(_has_wide(kind.field(i).type) for i in range(kind.num_fields))
