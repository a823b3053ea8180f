"""From what SQLite stores to what the columns mean: physical record batches to logical ones, with Arrow's kernels.

Every pattern reads through `Rows`, so that a value looks the same whichever way it came (F24). A value that its type
cannot hold exactly becomes null and is marked in `_invalid`; it never fails its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects.marks import Marks, invalid_column, marks_in
from headwater.dialects.sqlite_types import Kind
from headwater.drivers.sqlite import VARIANT
from headwater.drivers.sqlite_values import got
from headwater.model import INVALID, TIMESTAMP

IntegerTimes = Literal["seconds", "milliseconds", "microseconds"]
_UNITS = {"seconds": "s", "milliseconds": "ms", "microseconds": "us"}


@dataclass(frozen=True, slots=True)
class Times:
    """What times without a zone, and times written as numbers, mean in a database."""

    zone: str = "UTC"
    integers: IntegerTimes | None = None


class Rows:
    """The columns of one statement: which physical types to read, and how to make logical ones of them."""

    def __init__(self, columns: Sequence[tuple[str, Kind]], times: Times) -> None:
        self._columns = columns
        self._times = times
        self.physical = pa.schema([pa.field(name, kind.physical) for name, kind in columns])
        self.logical = pa.schema([pa.field(name, kind.type) for name, kind in columns])

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of `physical`, perhaps with `_invalid`, as one of `logical`, likewise."""
        width = len(self._columns)
        marks = [marks_in(batch.column(width))] if batch.num_columns > width else []
        arrays = []
        for index, (name, kind) in enumerate(self._columns):
            array, more = self._converted(batch.column(index), name, kind)
            arrays.append(array)
            marks += more
        logical = pa.RecordBatch.from_arrays(arrays, schema=self.logical)
        if not marks:
            return logical
        return logical.append_column(pa.field("_invalid", INVALID), invalid_column(marks, batch.num_rows))

    def _converted(self, array: pa.Array, name: str, kind: Kind) -> tuple[pa.Array, list[Marks]]:
        if kind.physical != VARIANT or kind.type == VARIANT:
            return array, []
        converted = _CONVERTERS[kind.name.split("(")[0]](array, kind, self._times)
        if converted.null_count == array.null_count:
            return converted, []
        bad = np.flatnonzero(pc.and_(array.is_valid(), converted.is_null()).to_numpy(zero_copy_only=False))
        marks = [{"column": name, "expected": kind.name, "got": _shown(array[int(row)])} for row in bad]
        return converted, [Marks(pa.array(bad, pa.int64()), pa.array(marks, INVALID.value_type))]


def _shown(value: pa.StructScalar) -> str:
    for kind in ("integer", "real", "text", "blob"):
        if value[kind].is_valid:
            raw: Any = value[kind].as_py()
            raw = raw.encode() if isinstance(raw, str) else raw
            return got(raw, kind, len(raw) if isinstance(raw, bytes) else 0)
    raise AssertionError("a null value is never invalid")


# One converter per kind: a VARIANT array in, an array of the kind's type out, null where a value does not fit.


def _bool(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    integer, text = values.field("integer"), pc.utf8_lower(values.field("text"))
    is_true = _any(pc.equal(integer, 1), pc.is_in(text, pa.array(["true", "t"])))
    is_false = _any(pc.equal(integer, 0), pc.is_in(text, pa.array(["false", "f"])))
    return pc.if_else(is_true, True, pc.if_else(is_false, False, pa.scalar(None, pa.bool_())))


def _any(first: pa.Array, second: pa.Array) -> pa.Array:
    return pc.or_(pc.fill_null(first, False), pc.fill_null(second, False))


def _decimal(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    return _tried(_exact_text(values), lambda text: pc.cast(text, kind.type))


def _number(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    text = _exact_text(values)
    return _only(text, pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"))


def _exact_text(values: pa.StructArray, *children: str) -> pa.Array:
    """Text as it is; of numbers the shortest text that gives them back."""
    numbers = [values.field(name) for name in ("integer", "real")]
    texts = [pc.cast(child, pa.string()) for child in numbers if child.null_count < len(child)]
    return pc.coalesce(values.field("text"), *texts)


def _as_text(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    return _exact_text(values)


def _uuid(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    text = pc.utf8_lower(values.field("text"))
    blobs = values.field("blob")
    if blobs.null_count < len(blobs):
        text = pc.coalesce(text, _hex(_only(blobs, pc.equal(pc.binary_length(blobs), 16))))
    groups = [r"([0-9a-f]{%d})" % n for n in (8, 4, 4, 4, 12)]  # noqa: UP031 - braces
    pattern = "^" + "-?".join(groups) + "$"
    return pc.replace_substring_regex(_only(text, pc.match_substring_regex(text, pattern)), pattern, r"\1-\2-\3-\4-\5")


def _hex(blobs: pa.Array) -> pa.Array:
    """Blobs of 16 bytes as hexadecimal text."""
    filled = pc.cast(pc.fill_null(blobs, b"\0" * 16), pa.binary(16))
    raw = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * 16 : (filled.offset + len(filled)) * 16]
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    pairs = np.stack([digits[raw >> 4], digits[raw & 15]], axis=1).tobytes()
    text = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(blobs), [None, pa.py_buffer(pairs)])
    return _only(pc.cast(pc.cast(text, pa.binary()), pa.string()), blobs.is_valid())


def _date(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    return _tried(values.field("text"), lambda text: pc.cast(text, pa.date32()))


def _time(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    text = _short_fraction(values.field("text"))
    clock = _only(text, pc.match_substring_regex(text, r"^\d{2}:\d{2}"))
    moments = pc.binary_join_element_wise("1970-01-01", clock, " ")
    return _tried(moments, lambda m: pc.cast(pc.cast(m, pa.timestamp("us")), pa.time64("us")))


def _timestamp(values: pa.StructArray, kind: Kind, times: Times) -> pa.Array:
    found = _moments(values.field("text"), times.zone)
    integers = values.field("integer")
    if times.integers is None or integers.null_count == len(integers):
        return found
    unit = pa.timestamp(_UNITS[times.integers])
    return pc.coalesce(found, _tried(integers, lambda n: pc.cast(pc.cast(n, unit), pa.timestamp("us")).cast(TIMESTAMP)))


_ZONED = r":\d{2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)$"


def _moments(text: pa.Array, zone: str) -> pa.Array:
    """ISO 8601 text as moments; text without a zone is meant in `zone`."""
    try:  # the common case: all alike, all right
        return _placed(pc.cast(text, pa.timestamp("us")), zone)
    except pa.ArrowInvalid:
        pass
    text = _short_fraction(pc.replace_substring_regex(pc.utf8_upper(text), r" ([+-]\d{2}:?\d{2}|Z)$", r"\1"))
    zoned = pc.match_substring_regex(text, _ZONED)
    with_zone = _tried(_only(text, zoned), lambda t: pc.cast(t, TIMESTAMP))
    without = _tried(_only(text, pc.invert(zoned)), lambda t: pc.cast(t, pa.timestamp("us")))
    return pc.coalesce(with_zone, _placed(without, zone))


def _placed(local: pa.Array, zone: str) -> pa.Array:
    """Local times as moments: null for the hour that a zone skips, and for the hour that it has twice."""
    if zone == "UTC":
        return local.cast(TIMESTAMP)
    first, last = (
        pc.assume_timezone(local, zone, ambiguous=which, nonexistent=which).cast(TIMESTAMP)
        for which in ("earliest", "latest")
    )
    return _only(first, pc.equal(first, last))


def _short_fraction(text: pa.Array) -> pa.Array:
    """Zeros beyond the microseconds say nothing and are more than Arrow reads."""
    return pc.replace_substring_regex(text, r"(\.\d{6})0+", r"\1")


def _only(values: pa.Array, keep: pa.Array) -> pa.Array:
    """The values where `keep` holds, null elsewhere."""
    return pc.if_else(keep, values, pa.scalar(None, values.type))


def _tried(values: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """`convert(values)`, with null for each value that it refuses: halves are tried until single ones are left."""
    try:
        return convert(values)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, convert(pa.nulls(1, values.type)).type)
    half = len(values) // 2
    return pa.concat_arrays([_tried(values.slice(0, half), convert), _tried(values.slice(half), convert)])


_CONVERTERS: dict[str, Callable[[pa.StructArray, Kind, Times], pa.Array]] = {
    "bool": _bool,
    "decimal": _decimal,
    "number": _number,
    "any": _as_text,
    "json": _as_text,
    "uuid": _uuid,
    "date": _date,
    "timestamp": _timestamp,
    "time": _time,
}
