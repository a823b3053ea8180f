"""A column's values in a field's type: exactly, or not at all.

Nothing is rounded, cut or guessed. Values that the field's type cannot hold are found row by row, by halves, so that
only they are to blame. Types between which no value passes without a guess (a time without a zone and an instant, a
number and a time) are refused before any row is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.types import FieldType
from headwater.mapping.binary import side_by_side
from headwater.schema import arrow_type

Cast = Callable[[pa.Array], pa.Array]
"""Raises `pa.ArrowInvalid` if any value does not fit."""

Rows = npt.NDArray[np.int64]
_NO_ROWS: Rows = np.zeros(0, dtype=np.int64)


def cast_all(cast: Cast, array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Rows]:
    """The cast values, null where a value does not fit, and the rows of those."""
    try:
        return cast(array), _NO_ROWS
    except pa.ArrowInvalid:
        pieces, bad = [], []
        for start, piece in _pieces(cast, array, 0):
            if piece is None:
                bad.append(start)
                pieces.append(pa.nulls(1, target))
            else:
                pieces.append(piece)
        return pa.concat_arrays(pieces), np.array(bad, dtype=np.int64)


def _pieces(cast: Cast, array: pa.Array, start: int) -> Iterator[tuple[int, pa.Array | None]]:
    try:
        piece = cast(array)
    except pa.ArrowInvalid:
        if len(array) == 1:
            yield start, None
            return
        half = len(array) // 2
        yield from _pieces(cast, array.slice(0, half), start)
        yield from _pieces(cast, array.slice(half), start + half)
    else:
        yield start, piece


def cast_found(kind: FieldType) -> Cast:
    """For values whose type shows only with them. Raises `pa.ArrowInvalid` also where no value could pass."""

    def cast(array: pa.Array) -> pa.Array:
        found = find_cast(array.type, kind)
        if found is None:
            raise pa.ArrowInvalid(f"{array.type} does not become {kind} without a guess")
        return found(array)

    return cast


def find_cast(source: pa.DataType, kind: FieldType) -> Cast | None:
    """How values of an Arrow type become a field's; None if no value could without a guess."""
    found = _find(source, kind)
    if found is not None:
        try:
            found(pa.nulls(0, source))
        except pa.ArrowNotImplementedError:
            return None
    return found


def _find(source: pa.DataType, kind: FieldType) -> Cast | None:
    target = arrow_type(kind)
    if pa.types.is_dictionary(source):
        inner = _find(source.value_type, kind)
        return None if inner is None else lambda array: inner(array.dictionary_decode())
    if kind.name == "uuid":
        return _uuid_cast(source)
    if source == target:
        return same
    if pa.types.is_null(source) or (_is_text(source) and kind.name != "json"):
        return _plain(target)
    if kind.name == "json":
        return _plain(target) if _is_text(source) else None
    for fits, family in _FAMILIES:
        if fits(source):
            return family(source, target)
    return _plain(target) if _widens_inside(source, target) else None


def _widens_inside(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether Arrow's own cast of a nested type is exact or fails; inside, nothing else can be asked of it."""
    if source == target or pa.types.is_null(source):
        return True
    if source.id != target.id:
        if pa.types.is_large_list(source) and pa.types.is_list(target):
            return _widens_inside(source.value_type, target.value_type)
        exact = pa.types.is_integer(target) or pa.types.is_floating(target)
        return bool(pa.types.is_integer(source) and exact) or (_is_text(source) and _is_text(target))
    if pa.types.is_struct(source):
        inside = [source.field(f.name).type if source.get_field_index(f.name) >= 0 else pa.null() for f in target]
        return all(_widens_inside(have, want.type) for have, want in zip(inside, target, strict=True))
    if pa.types.is_list(source):
        return _widens_inside(source.value_type, target.value_type)
    if pa.types.is_map(source):
        return _widens_inside(source.item_type, target.item_type) and source.key_type == target.key_type
    return bool(pa.types.is_decimal(source))


def same(array: pa.Array) -> pa.Array:
    return array


def _plain(target: pa.DataType) -> Cast:
    return lambda array: array.cast(target)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    fixed = pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or fixed)


def _from_integer(source: pa.DataType, target: pa.DataType) -> Cast | None:
    if pa.types.is_boolean(target):
        return _bits
    if pa.types.is_decimal(target):
        wide = pa.decimal256(20 + target.scale, target.scale)  # a 64-bit integer has up to 20 digits
        return lambda array: array.cast(wide).cast(target)
    simple = pa.types.is_integer(target) or pa.types.is_floating(target) or pa.types.is_string(target)
    return _plain(target) if simple else None


def _from_float(source: pa.DataType, target: pa.DataType) -> Cast | None:
    if pa.types.is_decimal(target):  # by its shortest text, never by its binary digits: 19.99 is 19.99
        return lambda array: array.cast(pa.string()).cast(target)
    if pa.types.is_floating(target):
        return _float_to_float(target)
    return _plain(target) if pa.types.is_integer(target) or pa.types.is_string(target) else None


def _from_decimal(source: pa.DataType, target: pa.DataType) -> Cast | None:
    if pa.types.is_floating(target):
        return _decimal_to_float(target)
    simple = pa.types.is_decimal(target) or pa.types.is_integer(target) or pa.types.is_string(target)
    return _plain(target) if simple else None


def _from_boolean(source: pa.DataType, target: pa.DataType) -> Cast | None:
    return _plain(target) if pa.types.is_integer(target) or pa.types.is_string(target) else None


def _from_bytes(source: pa.DataType, target: pa.DataType) -> Cast | None:
    return _plain(target) if pa.types.is_binary(target) or pa.types.is_string(target) else None


def _from_time(source: pa.DataType, target: pa.DataType) -> Cast | None:
    """Dates and times keep their kind, whatever their unit; with and without zone are two kinds."""
    if pa.types.is_string(target):
        return _plain(target)
    if pa.types.is_timestamp(source) and pa.types.is_timestamp(target):
        return _plain(target) if (source.tz is None) == (target.tz is None) else None
    same = pa.types.is_date(source) and pa.types.is_date(target)
    same = same or (pa.types.is_time(source) and pa.types.is_time(target))
    midnight = pa.types.is_date(source) and pa.types.is_timestamp(target) and target.tz is None
    return _plain(target) if same or midnight else None


_FAMILIES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, pa.DataType], Cast | None]], ...] = (
    (pa.types.is_integer, _from_integer),
    (pa.types.is_floating, _from_float),
    (pa.types.is_decimal, _from_decimal),
    (pa.types.is_boolean, _from_boolean),
    (_is_bytes, _from_bytes),
    (pa.types.is_temporal, _from_time),
)


def _all(holds: pa.Array) -> bool:
    """Whether nothing is false; nulls, and columns without a row, are content."""
    return bool(pc.all(holds, min_count=0).as_py())


def _bits(array: pa.Array) -> pa.Array:
    if not _all(pc.is_in(array, pa.array([0, 1, None], array.type))):
        raise pa.ArrowInvalid("neither 0 nor 1")
    return array.cast(pa.bool_())


def _float_to_float(target: pa.DataType) -> Cast:
    def cast(array: pa.Array) -> pa.Array:
        narrow = array.cast(target, safe=False)
        back = narrow.cast(array.type)
        same = pc.or_(pc.equal(back, array), pc.is_nan(array))
        if not _all(same):
            raise pa.ArrowInvalid(f"a value is not exact as {target}")
        return narrow

    return cast


def _decimal_to_float(target: pa.DataType) -> Cast:
    def cast(array: pa.Array) -> pa.Array:
        near = array.cast(pa.string()).cast(target)  # Arrow's direct cast is off by one bit for some values
        if not _all(pc.equal(near.cast(pa.string()).cast(array.type), array)):
            raise pa.ArrowInvalid(f"a value has more digits than {target}")
        return near

    return cast


_CANONICAL = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_DIGITS = r"^[0-9a-f]{32}$"
_GROUPS = r"^(.{8})(.{4})(.{4})(.{4})(.{12})$"


def _uuid_cast(source: pa.DataType) -> Cast | None:
    if _is_text(source):
        return _uuid_of_text
    if _is_bytes(source):
        return _uuid_of_bytes
    return _plain(pa.string()) if pa.types.is_null(source) else None


def _uuid_of_text(array: pa.Array) -> pa.Array:
    """Any spelling of a UUID (RFC 9562, section 4) in lower-case with hyphens."""
    array = array.cast(pa.string())
    if _all_match(array, _CANONICAL):
        return array
    digits = pc.utf8_lower(array)
    digits = pc.replace_substring_regex(digits, r"^(?:urn:uuid:)?\{?([0-9a-f-]*)\}?$", r"\1")
    digits = pc.replace_substring(digits, "-", "")
    if not _all_match(digits, _DIGITS):
        raise pa.ArrowInvalid("not a UUID")
    return pc.replace_substring_regex(digits, _GROUPS, r"\1-\2-\3-\4-\5")


def _uuid_of_bytes(array: pa.Array) -> pa.Array:
    array = array.cast(pa.large_binary())
    if not _all(pc.equal(pc.binary_length(array), 16)):
        raise pa.ArrowInvalid("not 16 bytes")
    data = side_by_side(array.drop_null())
    nibbles = np.stack([data >> 4, data & 15], axis=1).reshape(-1)
    text = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[nibbles].tobytes()
    digits = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(data) // 16, [None, pa.py_buffer(text)])
    spread = digits.cast(pa.binary()).cast(pa.string())
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    places = pa.array(np.cumsum(valid) - 1, mask=~valid)
    return pc.replace_substring_regex(spread, _GROUPS, r"\1-\2-\3-\4-\5").take(places)


def _all_match(array: pa.Array, pattern: str) -> bool:
    return _all(pc.match_substring_regex(array, pattern))
