"""Event keys as canonical JSON text: how quarantine and its waiting keys name an entity.

An object of the key fields, sorted by name, no spaces: `{"course":"a+b","id":1}`. Integers and booleans are written as
such; decimals, dates, times, timestamps (with `T`, and `Z` where they are in UTC) and bytes (base64) as strings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping.binary import side_by_side

_ESCAPED = {chr(code): json.dumps(chr(code))[1:-1] for code in range(32)} | {'"': '\\"'}
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_ESCAPE = r'["\\\x00-\x1f]'


def canonical_keys(data: pa.RecordBatch, key: Sequence[str]) -> pa.Array:
    """The keys of all rows as strings; null for a row with a null in its key, and for all rows where `key` is empty."""
    if not key:
        return pa.nulls(data.num_rows, pa.string())
    parts: list[pa.Array | str] = []
    for place, name in enumerate(sorted(key)):
        label = json.dumps(name, ensure_ascii=False) + ":"
        parts += [("," if place else "{") + label, _json(data.column(name))]
    scalars = [pa.scalar(part) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar("}"), pa.scalar(""))


def _json(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _json(array.dictionary_decode())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.string())
    return _quoted(_text(array))


def _text(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _escaped(array.cast(pa.string()))
    if pa.types.is_timestamp(kind):
        naive = array.view(pa.timestamp(kind.unit)).cast(pa.string())
        text = pc.replace_substring(naive, " ", "T", max_replacements=1)
        return pc.binary_join_element_wise(text, pa.scalar("Z"), pa.scalar("")) if kind.tz is not None else text
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _base64(array.cast(pa.binary()))
    return array.cast(pa.string())


def _quoted(text: pa.Array) -> pa.Array:
    quote = pa.scalar('"')
    return pc.binary_join_element_wise(quote, text, quote, pa.scalar(""))


def _escaped(text: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring_regex(text, _TO_ESCAPE)).as_py():
        return text
    text = pc.replace_substring(text, "\\", "\\\\")
    for character, spelling in _ESCAPED.items():
        text = pc.replace_substring(text, character, spelling)
    return text


def _base64(array: pa.Array) -> pa.Array:
    """RFC 4648, section 4, over all values at once: three bytes to four letters, each value padded on its own."""
    array = array.cast(pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    data = side_by_side(array.fill_null(b""))
    groups = (lengths + 2) // 3
    starts = np.cumsum(groups) - groups
    padded = np.zeros(3 * int(groups.sum()), dtype=np.uint8)
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    padded[np.repeat(3 * starts, lengths) + within] = data
    a, b, c = padded.reshape(-1, 3).T
    sixes = np.stack([a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63], axis=1)
    letters = np.frombuffer(_ALPHABET, dtype=np.uint8)[sixes]
    ends = starts + groups - 1
    letters[ends[lengths % 3 > 0], 3] = ord("=")
    letters[ends[lengths % 3 == 1], 2] = ord("=")
    offsets = np.concatenate([[0], np.cumsum(4 * groups)]).astype(np.int64)
    text = pa.LargeStringArray.from_buffers(len(array), pa.py_buffer(offsets), pa.py_buffer(letters.tobytes()))
    return pc.if_else(array.is_valid(), text.cast(pa.string()), pa.scalar(None, pa.string()))
