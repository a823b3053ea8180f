"""Which type a SQLite column has: its declared type, read by name first and by SQLite's affinity rules after.

    declared (any case, any length)  Arrow               contract      stored values that fit
    BOOL, BOOLEAN                    bool                bool          0, 1; true, false, t, f as text
    DECIMAL(p,s), NUMERIC(p,s),      decimal128/256      decimal(p,s)  numbers, also as text, of at most p and s digits;
      DEC, NUMBER                                                        of a REAL the shortest text that gives it back
    the same without precision       string              string        numbers, as their exact text
    DATE                             date32              date          YYYY-MM-DD
    DATETIME, TIMESTAMP...           timestamp[us, UTC]  timestamp     ISO 8601 text, without a zone in the source's
                                                                         `timezone`; INTEGER if `integer_times` says so
    TIME                             time64[us]          time          HH:MM[:SS[.f]]
    JSON, JSONB;                     string              json          text; numbers, as their exact text
      text CHECK (json_valid(...))
    UUID, GUID;                      string              uuid          32 hex digits, with or without hyphens; blobs of
      char(32) in Django's databases                                     16 bytes; in canonical form when read
    ...INT...                        int64               int64         INTEGER
    ...CHAR..., ...CLOB..., ...TEXT  string              string        TEXT
    ...BLOB..., BINARY, VARBINARY,   binary              bytes         BLOB
      BYTEA
    ...REAL..., ...FLOA..., ...DOUB  float64             float64       REAL; INTEGER up to 2**53
    nothing, ANY, any other word     string              string        TEXT; numbers, as their exact text

Whatever does not fit is null and marked in `_invalid` (https://www.sqlite.org/datatype3.html for the affinities).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from headwater.dialects import Column
from headwater.drivers.sqlite import VARIANT
from headwater.model import TIMESTAMP

METADATA = b"headwater.sqlite"
"""The metadata of a field in `Query.columns` that names its kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a column's values are read (`physical`), what they become (`type`), and what a contract would call it."""

    name: str
    contract: str
    type: pa.DataType
    physical: pa.DataType = VARIANT

    def field(self, name: str) -> pa.Field:
        return pa.field(name, self.type, metadata={METADATA: self.name.encode()})


_PLAIN = {
    kind.name: kind
    for kind in (
        Kind("integer", "int64", pa.int64(), pa.int64()),
        Kind("real", "float64", pa.float64(), pa.float64()),
        Kind("text", "string", pa.string(), pa.string()),
        Kind("blob", "bytes", pa.binary(), pa.binary()),
        Kind("bool", "bool", pa.bool_()),
        Kind("number", "string", pa.string()),
        Kind("any", "string", pa.string()),
        Kind("json", "json", pa.string()),
        Kind("uuid", "uuid", pa.string()),
        Kind("date", "date", pa.date32()),
        Kind("timestamp", "timestamp", TIMESTAMP),
        Kind("time", "time", pa.time64("us")),
        Kind("raw", "", VARIANT),
    )
}
RAW = _PLAIN["raw"]
"""A hidden column: values as they are stored."""

_WORDS = {
    "BOOL": "bool", "BOOLEAN": "bool", "DATE": "date", "DATETIME": "timestamp", "SMALLDATETIME": "timestamp",
    "TIMESTAMP": "timestamp", "TIMESTAMPTZ": "timestamp", "TIME": "time", "JSON": "json", "JSONB": "json",
    "UUID": "uuid", "GUID": "uuid", "BINARY": "blob", "VARBINARY": "blob", "BYTEA": "blob",
}  # fmt: skip
_NUMBERS = ("DECIMAL", "NUMERIC", "DEC", "NUMBER")
_AFFINITIES = (
    (("INT",), "integer"),
    (("CHAR", "CLOB", "TEXT"), "text"),
    (("BLOB",), "blob"),
    (("REAL", "FLOA", "DOUB"), "real"),
)
_DECLARED = re.compile(r"\s*(\w*)[^(]*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?")


def kind_of_declared(declared: str, *, django: bool = False, json: bool = False) -> Kind:
    """`django`: the database is Django's; `json`: a CHECK says that the column holds JSON."""
    upper = declared.upper()
    match = _DECLARED.match(upper)
    word, first, second = match.groups() if match else ("", None, None)
    if json:
        return _PLAIN["json"]
    if django and upper == "CHAR(32)":
        return _PLAIN["uuid"]
    if word in _NUMBERS:
        return _decimal(first, second)
    if word in _WORDS:
        return _PLAIN[_WORDS[word]]
    for parts, name in _AFFINITIES:
        if any(part in upper for part in parts):
            return _PLAIN[name]
    return _PLAIN["any"]


def _decimal(precision: str | None, scale: str | None) -> Kind:
    digits, places = int(precision or 0), int(scale or 0)
    if not 0 < digits <= 76 or places > digits:
        return _PLAIN["number"]
    make = pa.decimal128 if digits <= 38 else pa.decimal256
    name = f"decimal({digits},{places})"
    return Kind(name, name, make(digits, places))


def kind_of(column: Column) -> Kind:
    """Of a column that the dialect made."""
    if column.contract in ("json", "uuid"):
        return _PLAIN[column.contract]
    return kind_of_declared(column.declared)


def kind_of_field(field: pa.Field) -> Kind:
    """Of a field of `Query.columns`."""
    name = (field.metadata or {})[METADATA].decode()
    return _PLAIN.get(name) or kind_of_declared(name)
