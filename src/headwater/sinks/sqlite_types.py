"""Contract types in SQLite, which types values and not columns: each is stored so that it comes back the same.

    bool int32 int64        INTEGER
    float32 float64         REAL, in a column of no declared type, where -0.0 stays what it is; NaN is the text `NaN`,
                            since SQLite turns it into NULL
    decimal(p,s)            TEXT in plain decimal notation, with all digits of the scale
    string uuid json        TEXT
    bytes                   BLOB
    date                    TEXT, `2024-02-29`
    time                    TEXT, `23:59:59.999999`
    timestamp               TEXT, `2024-02-29T23:59:59.999999Z`; local_timestamp the same without `Z`
    list map struct         TEXT, JSON as `json_text` says

Dates and times outside the years 1 to 9999 are stored as the number of days or microseconds since 1970, as text.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.types import FieldType
from headwater.schema import arrow_type
from headwater.sinks import decimals, json_text
from headwater.sinks.nested import rebuilt

NESTED = ("list", "map", "struct")
FLOATS = ("float32", "float64")

_DECLARED = {"bool": "INTEGER", "int32": "INTEGER", "int64": "INTEGER", "float32": "", "float64": "", "bytes": "BLOB"}

_DAY = 86_400 * 10**6
_NUMBER = r"^-?\d+$"
_DATES = (-719_162, 2_932_896)
"""0001-01-01 and 9999-12-31, in days since 1970."""


def declared(parsed: FieldType) -> str:
    """The type in CREATE TABLE."""
    return _DECLARED.get(parsed.name, "TEXT")


def physical(parsed: FieldType) -> pa.DataType:
    """What the driver binds and reads."""
    if parsed.name in FLOATS:
        return pa.float64()
    if parsed.name in ("bool", "int32", "int64"):
        return pa.int64()
    return pa.binary() if parsed.name == "bytes" else pa.string()


def encoded(array: pa.Array, parsed: FieldType) -> pa.Array:
    """Arrow to what is stored. NaN stays NaN here; see `sqlite`."""
    if parsed.name in NESTED:
        return json_text.encoded(array, parsed, spelled)
    if parsed.name in ("string", "uuid", "json", "bytes", "float64", "int64"):
        return array
    if parsed.name in ("bool", "int32", "float32"):
        return array.cast(physical(parsed))
    return spelled(array, parsed)


def decoded(array: pa.Array, parsed: FieldType) -> pa.Array:
    """What is stored, to Arrow. Raises `ArrowInvalid` for values that `encoded` cannot have made."""
    kind = arrow_type(parsed)
    if parsed.name in NESTED:
        return _typed(json_text.decoded(array, parsed), parsed)
    if parsed.name in ("date", "time", "timestamp", "local_timestamp"):
        return _time(array, kind)
    return array.cast(kind)


def spelled(array: pa.Array, parsed: FieldType) -> pa.Array:
    """The text of decimals and times; strings as they are."""
    if parsed.name == "decimal":
        return decimals.text(array)
    if parsed.name == "date":
        return _within(array, array.cast(pa.int32()), _DATES)
    if parsed.name == "time":
        return _within(array, array.cast(pa.int64()), (0, _DAY - 1))
    if parsed.name in ("timestamp", "local_timestamp"):
        return _timestamp(array, zoned=parsed.name == "timestamp")
    return array


def _timestamp(array: pa.Array, *, zoned: bool) -> pa.Array:
    local = array.cast(pa.timestamp("us"))
    text = _within(local, array.cast(pa.int64()), (_DATES[0] * _DAY, (_DATES[1] + 1) * _DAY - 1))
    ending = pa.scalar("Z" if zoned else "")
    full = pc.binary_join_element_wise(pc.replace_substring(text, " ", "T"), ending, pa.scalar(""))
    return pc.if_else(pc.match_substring(text, " "), full, text)


def _within(array: pa.Array, number: pa.Array, bounds: tuple[int, int]) -> pa.Array:
    """ISO text within the bounds, the number outside of them."""
    inside = pc.and_(pc.greater_equal(number, bounds[0]), pc.less_equal(number, bounds[1]))
    if pc.all(inside).as_py() is not False:
        return array.cast(pa.string())
    safe = pc.if_else(inside, number, pa.scalar(0, number.type)).cast(array.type)
    return pc.if_else(inside, safe.cast(pa.string()), number.cast(pa.string()))


def _time(text: pa.Array, kind: pa.DataType) -> pa.Array:
    numeric = pc.match_substring_regex(text, _NUMBER)
    if not pc.any(numeric).as_py():
        return _iso(text, kind)
    nothing = pa.scalar(None, pa.string())
    width = pa.int32() if kind == pa.date32() else pa.int64()
    numbers = pc.if_else(numeric, text, nothing).cast(width).cast(kind)
    return pc.if_else(numeric, numbers, _iso(pc.if_else(numeric, nothing, text), kind))


def _iso(text: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_time(kind):
        return text.cast(kind)
    moment = pc.binary_join_element_wise(pa.scalar("1970-01-01"), text, pa.scalar("T"))  # Arrow parses no bare times
    return moment.cast(pa.timestamp("us")).cast(pa.int64()).cast(kind)


def _typed(array: pa.Array, parsed: FieldType) -> pa.Array:
    """A decoded frame with its leaves' text turned into values."""
    leaves = iter(_leaves(parsed))
    return rebuilt(array, lambda leaf: _leaf(leaf, next(leaves))).cast(arrow_type(parsed))


def _leaf(text: pa.Array, parsed: FieldType) -> pa.Array:
    return json_text.from_hexadecimal(text) if parsed.name == "bytes" else decoded(text, parsed)


def _leaves(parsed: FieldType) -> list[FieldType]:
    """In the order in which `rebuilt` visits them."""
    return [leaf for item in parsed.items for leaf in _leaves(item)] if parsed.items else [parsed]


def not_numbers(array: pa.Array) -> pa.Array | None:
    """Where a float column is NaN; None if nowhere."""
    if array.null_count == len(array):
        return None
    mask = np.isnan(array.to_numpy(zero_copy_only=False)) & array.is_valid().to_numpy(zero_copy_only=False)
    return pa.array(mask) if mask.any() else None
