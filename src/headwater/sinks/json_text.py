"""Lists, maps and structs as JSON text and back, column by column.

Integers, floats and booleans are JSON's own, infinities and NaN strings; every other leaf is a string: decimals in
plain notation, times in ISO 8601, bytes in hexadecimal.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.types import FieldType
from headwater.sinks.nested import elements, entries
from headwater.sinks.upsert import quoted

Spell = Callable[[pa.Array, FieldType], pa.Array]

_CONTROL = r"[\x00-\x1f]"
_NULL = pa.scalar("null")
_NOTHING = pa.scalar(None, pa.string())


def encoded(array: pa.Array, parsed: FieldType, spell: Spell) -> pa.Array:
    """JSON text of each row, null for null. `spell` gives the text of leaves that JSON has no type for."""
    if parsed.name == "struct":
        return _struct(array, parsed, spell)
    if parsed.name == "list":
        offsets, values = elements(array)
        return _joined(array, offsets, _filled(encoded(values, parsed.items[0], spell)), "[]")
    if parsed.name == "map":
        offsets, keys, values = entries(array)
        texts = _filled(encoded(values, parsed.items[0], spell))
        return _joined(array, offsets, _concat(_string(keys), ":", texts), "{}")
    return _leaf(array, parsed, spell)


def decoded(text: pa.Array, parsed: FieldType) -> pa.Array:
    """The frame of `encoded`, every leaf as its text."""
    import duckdb  # the engine has it, and Arrow reads no JSON from strings

    with duckdb.connect() as connection:
        connection.register("texts", pa.table({"text": text}))
        relation = connection.sql(f"SELECT CAST(CAST(text AS JSON) AS {_frame(parsed)}) AS value FROM texts")
        found: pa.ChunkedArray = relation.to_arrow_table().column(0)
    return found.combine_chunks()


def _frame(parsed: FieldType) -> str:
    """The type in DuckDB, with text for leaves."""
    if parsed.name == "struct":
        return (
            f"STRUCT({', '.join(f'{quoted(n)} {_frame(t)}' for n, t in zip(parsed.names, parsed.items, strict=True))})"
        )
    if parsed.name == "list":
        return f"{_frame(parsed.items[0])}[]"
    return f"MAP(VARCHAR, {_frame(parsed.items[0])})" if parsed.name == "map" else "VARCHAR"


def _struct(array: pa.Array, parsed: FieldType, spell: Spell) -> pa.Array:
    parts: list[pa.Array | str] = []
    for name, item, child in zip(parsed.names, parsed.items, array.flatten(), strict=True):
        parts += [("," if parts else "{") + json.dumps(name) + ":", _filled(encoded(child, item, spell))]
    return pc.if_else(array.is_valid(), _concat(*parts, "}"), _NOTHING)


def _joined(array: pa.Array, offsets: pa.Array, texts: pa.Array, brackets: str) -> pa.Array:
    text = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",")
    return pc.if_else(array.is_valid(), _concat(brackets[0], text, brackets[1]), _NOTHING)


def _leaf(array: pa.Array, parsed: FieldType, spell: Spell) -> pa.Array:
    if parsed.name in ("bool", "int32", "int64"):
        return array.cast(pa.string())
    if parsed.name in ("float32", "float64"):
        text = array.cast(pa.string())
        return pc.if_else(pc.is_finite(array), text, _concat('"', text, '"'))
    if parsed.name == "bytes":
        return _string(hexadecimal(array))
    return _string(spell(array, parsed))


def _string(array: pa.Array) -> pa.Array:
    text = pc.replace_substring(pc.replace_substring(array, "\\", "\\\\"), '"', '\\"')
    if pc.any(pc.match_substring_regex(text, _CONTROL)).as_py():
        for code in range(32):
            text = pc.replace_substring(text, chr(code), json.dumps(chr(code))[1:-1])
    return _concat('"', text, '"')


def _concat(*parts: pa.Array | str) -> pa.Array:
    scalars = [pa.scalar(part) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(""))


def _filled(text: pa.Array) -> pa.Array:
    return pc.fill_null(text, _NULL)


_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def hexadecimal(array: pa.Array) -> pa.Array:
    """Bytes as lower-case hexadecimal text."""
    offsets, data = _bytes(array)
    digits = np.empty(2 * len(data), dtype=np.uint8)
    digits[0::2], digits[1::2] = _DIGITS[data >> 4], _DIGITS[data & 15]
    return _text_array(array, offsets * 2, digits, pa.string())


def from_hexadecimal(array: pa.Array) -> pa.Array:
    offsets, digits = _bytes(array)
    values = np.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0")).astype(np.uint8)
    return _text_array(array, offsets // 2, ((values[0::2] << 4) | values[1::2]).astype(np.uint8), pa.binary())


def _bytes(
    array: pa.Array,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets from 0 and all bytes of a string or binary array; null rows are empty."""
    whole = pc.fill_null(array, b"" if pa.types.is_binary(array.type) else "").take(pa.array(np.arange(len(array))))
    offsets = np.concatenate([[0], np.cumsum(pc.binary_length(whole).to_numpy(zero_copy_only=False))]).astype(np.int64)
    buffer = whole.buffers()[2]
    data = np.frombuffer(buffer, dtype=np.uint8)[: offsets[-1]] if buffer is not None else np.zeros(0, np.uint8)
    return offsets, data


def _text_array(
    like: pa.Array,
    offsets: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    kind: pa.DataType,
) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(data))]
    whole = pa.Array.from_buffers(kind, len(like), buffers)
    return pc.if_else(like.is_valid(), whole, pa.scalar(None, kind))
