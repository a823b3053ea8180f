"""Contract types in PostgreSQL: native wherever PostgreSQL holds every value of the type as it is.

    bool int32 int64 float32 float64   boolean integer bigint real double precision
    decimal(p,s)                       numeric(p,s)
    string bytes                       text bytea
    uuid json                          uuid json: `jsonb` would reorder keys and lose duplicates and digits
    date time                          date time
    timestamp, local_timestamp         timestamptz, timestamp
    list<T> of one of the above        T[]
    other lists, map, struct           json, as `json_text` says

What PostgreSQL has no value for is refused and named, never changed: a NUL character in text, dates and timestamps
before 4713 BC. Headwater's own numbers are bigint: a commit number above 2^63-1 is an error.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.types import FieldType
from headwater.schema import arrow_type
from headwater.sinks import json_text, shaping, sqlite_types
from headwater.sinks.nested import rebuilt
from headwater.sinks.tables import Refused
from headwater.sinks.upsert import Table

_SCALARS = {
    "bool": "boolean",
    "int32": "integer",
    "int64": "bigint",
    "float32": "real",
    "float64": "double precision",
    "string": "text",
    "bytes": "bytea",
    "date": "date",
    "time": "time",
    "timestamp": "timestamptz",
    "local_timestamp": "timestamp",
    "uuid": "uuid",
    "json": "json",
}

OWN = {
    "_op": "text",
    "_epoch": "bigint",
    "_commit": "bigint",
    "_index": "bigint",
    "_time": "timestamptz",
    "_offset": "bigint",
    "_unchanged": "text",
    "_deleted": "boolean",
    "_deleted_at": "timestamptz",
    "_at": "timestamptz",
    "_row": "bigint",
}
"""Headwater's columns, in tables and in what is handed over."""

_SPELLED = {
    "time": "time without time zone",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
}

_NUMBERS = ("_epoch", "_commit", "_index", "_offset")

_MINUS_INFINITY = {
    "date": pa.scalar(-(2**31) + 10_957, pa.int32()),
    "timestamp": pa.scalar(-(2**63) + 946_684_800_000_000, pa.int64()),
    "local_timestamp": pa.scalar(-(2**63) + 946_684_800_000_000, pa.int64()),
}
"""The one day and microsecond since 1970 that PostgreSQL would take for `-infinity` (src/include/datatype/timestamp.h)
instead of refusing it like its neighbours."""

_UUID = r"^([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$"
_UUID_TEXT = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def type_of(parsed: FieldType) -> str:
    """The type's name in SQL."""
    if parsed.name == "decimal":
        return f"numeric({parsed.precision},{parsed.scale})"
    if parsed.items:
        return f"{type_of(parsed.items[0])}[]" if _is_array(parsed) else "json"
    return _SCALARS[parsed.name]


def declared(table: Table, name: str) -> str:
    """The type of a table's column."""
    return OWN[name] if name in OWN else type_of(table.types[name])


def spelled(kind: str) -> str:
    """A type as PostgreSQL's `format_type` writes it."""
    scalar = kind.removesuffix("[]")
    return _SPELLED.get(scalar, scalar) + kind[len(scalar) :]


def stored(table: Table, name: str, array: pa.Array) -> pa.Array:
    """A column as the driver writes it into one of type `declared`. Raises `Refused`."""
    if name == "_op":
        return shaping.LETTERS.take(pc.subtract(array, pa.scalar(1, pa.int8())))
    if name in _NUMBERS:
        return array.cast(pa.int64())
    return array if name in OWN else encoded(array, table.types[name])


def all_stored(table: Table, data: pa.RecordBatch) -> pa.RecordBatch:
    """Every column, `stored`."""
    names = data.schema.names
    return pa.RecordBatch.from_arrays([stored(table, n, data.column(n)) for n in names], names=names)


def encoded(array: pa.Array, parsed: FieldType) -> pa.Array:
    """Values of a contract type as the driver writes them. Raises `Refused`."""
    if _is_array(parsed):
        return rebuilt(array, lambda leaf: _scalar(leaf, parsed.items[0].name))
    if parsed.items:
        return json_text.encoded(array, parsed, sqlite_types.spelled)
    return _scalar(array, parsed.name)


def loaded(array: pa.Array, parsed: FieldType) -> pa.Array:
    """What the driver read from a column of `type_of`. Raises `ArrowInvalid` for what `encoded` cannot have made."""
    if parsed.items and not _is_array(parsed):
        return sqlite_types.decoded(_plain(array), parsed)
    kind = arrow_type(parsed)
    return array if array.type == kind else rebuilt(array, _loaded_leaf).cast(kind)


def _is_array(parsed: FieldType) -> bool:
    return parsed.name == "list" and not parsed.items[0].items


def _scalar(array: pa.Array, name: str) -> pa.Array:
    if name == "uuid":
        return _uuid_bytes(array)
    if name in _MINUS_INFINITY:
        bad = _MINUS_INFINITY[name]
        if pc.any(pc.equal(array.cast(bad.type), bad)).as_py():
            raise Refused(f"{name} out of range: {bad.as_py()} since 1970 is what PostgreSQL calls -infinity")
    return array


def _uuid_bytes(array: pa.Array) -> pa.Array:
    if pc.all(pc.match_substring_regex(array, _UUID_TEXT)).as_py() is False:
        raise Refused("a value is no UUID of lower-case hexadecimal digits")
    return json_text.from_hexadecimal(pc.replace_substring(array, "-", ""))


def _loaded_leaf(leaf: pa.Array) -> pa.Array:
    plain = _plain(leaf)
    if pa.types.is_fixed_size_binary(plain.type):
        digits = json_text.hexadecimal(plain.cast(pa.binary()))
        return pc.replace_substring_regex(digits, _UUID, r"\1-\2-\3-\4-\5")
    return plain


def _plain(array: pa.Array) -> pa.Array:
    """Without the driver's marks for `uuid`, `json` and `numeric`."""
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array
