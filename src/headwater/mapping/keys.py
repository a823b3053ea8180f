"""Event keys as canonical JSON text: how quarantine and its waiting keys name an entity.

An object of the key fields, sorted by name, no spaces: `{"course":"a+b","id":1}`. Integers and booleans are written as
such; decimals, dates, times, timestamps (with `T`, and `Z` where they are in UTC) and bytes (base64) as strings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_ESCAPED = {chr(code): json.dumps(chr(code))[1:-1] for code in range(32)} | {'"': '\\"'}
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
    import duckdb  # only keys of bytes need it, and Arrow has no such function

    with duckdb.connect() as connection:
        connection.register("bytes", pa.table({"value": array}))
        table: Any = connection.sql("select base64(value) as text from bytes").to_arrow_table()
        return table.column(0).combine_chunks()
