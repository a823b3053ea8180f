"""From what PostgreSQL sends to what the columns mean: texts, binary values of the log, and ADBC's columns.

Three ways in, one result: `from_text` takes what the server prints, `from_wire` what a binary log carries, `from_adbc`
what ADBC makes of a plain column. A value that its kind cannot hold is null and marked with the server's own text of
it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects.marks import Marks, marked
from headwater.dialects.postgres_hex import bytes_of_hex, text_of_uuids
from headwater.dialects.postgres_moments import DAY, DAYS, MICROSECONDS, Unit, limited_times, printed_times
from headwater.dialects.postgres_types import Kind
from headwater.errors import SourceError
from headwater.wire.array_text import split_arrays
from headwater.wire.pgoutput_ready import Moments

Converted = tuple[pa.Array, Marks | None]
"""An array of the kind's type, null where a value does not fit, and the marks of those."""


def from_text(values: pa.Array, kind: Kind, name: str) -> Converted:
    """`values`: string, as the output function of the column's type prints them (`drivers.postgres.PRINTING`)."""
    if kind.element is not None:
        return _list(values, kind, name)
    if kind.name == "bytea":
        return bytes_of_hex(values, name), None
    parse = _PARSERS.get(_family(kind))
    return (values, None) if parse is None else _checked(values, parse(values, kind), kind, name)


def from_wire(values: pa.Array, kind: Kind, name: str) -> Converted:
    """`values`: the physical array of `kind.wire`.

    Integers, floats, bool and binary as such; oid int64; date int32 days, timestamp and time int64 microseconds, the
    first two since 2000-01-01; uuid fixed_size_binary(16); numeric string, or the decimal itself; the rest string.
    """
    if kind.wire in _UNITS:
        unit = _UNITS[kind.wire]
        return _moments(unit.shifted(values), unit, kind, name)
    if kind.wire == "time":
        return _times(values, kind, name)
    if kind.wire == "uuid":
        return text_of_uuids(values), None
    if pa.types.is_string(values.type):
        return from_text(values, kind, name)
    return _as_is(values, kind)


def from_adbc(values: pa.Array, kind: Kind, name: str) -> Converted:
    """`values`: of a native kind ADBC's array for the plain column, of another the string of its text."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_string(values.type):
        _check_encoding(values, name)
    if not kind.native:
        return from_text(values, kind, name)
    convert = _FROM_ADBC.get(_family(kind))
    return _as_is(values, kind) if convert is None else convert(values, kind, name)


def _family(kind: Kind) -> str:
    return kind.name.split("(")[0]


def _as_is(values: pa.Array, kind: Kind) -> Converted:
    return (values if values.type == kind.type else values.cast(kind.type)), None


def _check_encoding(values: pa.Array, name: str) -> None:
    """A database in SQL_ASCII sends bytes as they are."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"column `{name}` holds text that is not UTF-8",
            hint="the database's encoding is SQL_ASCII, which promises nothing; capture the column as bytea in a view",
        ) from error


def _checked(
    values: pa.Array, converted: pa.Array, kind: Kind, name: str, shown: Callable[[pa.Array], pa.Array] | None = None
) -> Converted:
    """`converted` with marks where it is null and `values` are not; `shown` makes the server's text of those."""
    if converted.null_count == values.null_count:
        return converted, None
    bad = np.flatnonzero(pc.and_(values.is_valid(), converted.is_null()).to_numpy(zero_copy_only=False))
    found = values.take(pa.array(bad))
    return converted, marked(name, kind.name, bad, found if shown is None else shown(found))


# text


def _cast(values: pa.Array, kind: Kind) -> pa.Array:
    return pc.cast(values, kind.type)


def _bool(values: pa.Array, kind: Kind) -> pa.Array:
    return pc.equal(values, "t")


def _decimal(values: pa.Array, kind: Kind) -> pa.Array:
    try:
        return pc.cast(values, kind.type)
    except pa.ArrowInvalid:  # NaN or Infinity; digits were counted by the server
        return pc.cast(_only(values, r"^-?[0-9.]+$"), kind.type)


def _date(values: pa.Array, kind: Kind) -> pa.Array:
    try:
        return pc.cast(values, kind.type)
    except pa.ArrowInvalid:
        return pc.cast(_only(values, r"^\d{4}-\d{2}-\d{2}$"), kind.type)


def _timestamp(values: pa.Array, kind: Kind) -> pa.Array:
    try:
        return pc.cast(values, kind.type)
    except pa.ArrowInvalid:
        return pc.cast(_only(values, r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}(\.\d+)?(\+00)?$"), kind.type)


def _time(values: pa.Array, kind: Kind) -> pa.Array:
    moments = pc.binary_join_element_wise("1970-01-01", _only(values, r"^([01]\d|2[0-3]):"), " ")
    return pc.cast(pc.cast(moments, pa.timestamp("us")), kind.type)


def _only(values: pa.Array, pattern: str) -> pa.Array:
    return pc.if_else(pc.match_substring_regex(values, pattern), values, pa.scalar(None, pa.string()))


_PARSERS: dict[str, Callable[[pa.Array, Kind], pa.Array]] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid", "float4", "float8"), _cast),
    "bool": _bool,
    "decimal": _decimal,
    "date": _date,
    "timestamptz": _timestamp,
    "timestamp": _timestamp,
    "time": _time,
}


def _list(values: pa.Array, kind: Kind, name: str) -> Converted:
    """A list of one bad element, or of another shape, is bad as a whole."""
    element = kind.element
    assert element is not None
    lists = split_arrays(values)
    inner, marks = from_text(lists.values, element, name)
    if marks is not None:
        parents = pc.list_parent_indices(lists).take(marks.rows)
        keep = pc.invert(pc.is_in(pa.array(np.arange(len(lists))), value_set=parents.cast(pa.int64())))
        lists = pc.if_else(keep, lists, pa.scalar(None, lists.type))
        inner, _ = from_text(lists.values, element, name)
    converted = pa.ListArray.from_arrays(lists.offsets, inner, type=kind.type, mask=lists.is_null())
    return _checked(values, converted, kind, name)


# binary

_UNITS = {"date": DAYS, "timestamp": MICROSECONDS}


def moments_of(kind: Kind) -> Moments | None:
    """What `from_wire` does to plain values of a kind that counts time: those in bounds, which get no mark."""
    if kind.wire == "time":
        return Moments(0, 0, DAY - 1)
    unit = _UNITS.get(kind.wire)
    return None if unit is None else Moments(unit.epoch, unit.lowest, unit.highest)


def _moments(count: pa.Array, unit: Unit, kind: Kind, name: str) -> Converted:
    """`count`: since 1970-01-01, in the unit."""
    zone = "+00" if kind.name == "timestamptz" else ""
    limited = unit.limited(count)
    return _checked(count, limited.view(kind.type), kind, name, lambda bad: unit.printed(bad, zone))


def _times(count: pa.Array, kind: Kind, name: str) -> Converted:
    return _checked(count, limited_times(count).view(kind.type), kind, name, printed_times)


# ADBC


def _adbc_oid(values: pa.Array, kind: Kind, name: str) -> Converted:
    return values.view(pa.uint32()).cast(kind.type), None


def _adbc_uuid(values: pa.Array, kind: Kind, name: str) -> Converted:
    return text_of_uuids(values), None


def _adbc_moments(values: pa.Array, kind: Kind, name: str) -> Converted:
    unit = _UNITS[kind.wire]
    return _moments(values.view(unit.type), unit, kind, name)


def _adbc_times(values: pa.Array, kind: Kind, name: str) -> Converted:
    return _times(values.view(pa.int64()), kind, name)


def _adbc_decimal(values: pa.Array, kind: Kind, name: str) -> Converted:
    return _checked(values, _decimal(values, kind), kind, name, _spelled)


def _adbc_number(values: pa.Array, kind: Kind, name: str) -> Converted:
    return _spelled(values), None


def _spelled(values: pa.Array) -> pa.Array:
    """ADBC writes what is no number in another spelling than the server."""
    if not pc.any(pc.match_substring(values, "n")).as_py():
        return values
    for theirs, servers in (("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity")):
        values = pc.if_else(pc.equal(values, theirs), servers, values)
    return values


_FROM_ADBC: dict[str, Callable[[pa.Array, Kind, str], Converted]] = {
    "oid": _adbc_oid,
    "uuid": _adbc_uuid,
    "date": _adbc_moments,
    "timestamptz": _adbc_moments,
    "timestamp": _adbc_moments,
    "time": _adbc_times,
    "decimal": _adbc_decimal,
    "number": _adbc_number,
}
