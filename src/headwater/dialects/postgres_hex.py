"""Hexadecimal text from and to bytes, whole columns at a time: `bytea` as it is printed, and uuids."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import SourceError

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_VALUES = np.full(256, 255, np.uint8)
_VALUES[_DIGITS] = np.arange(16)
_BACKSLASH, _X = b"\\x"
_HYPHENS = (8, 13, 18, 23)


def bytes_of_hex(values: pa.Array, name: str) -> pa.Array:
    r"""`\x00ff` as binary. Raises `SourceError` for another form: `bytea_output` is then not `hex`."""
    texts = values.fill_null("\\x") if values.null_count else values
    if not len(texts):
        return pa.array([], pa.binary())
    start, rows = texts.offset, len(texts)
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, np.int32)[start : start + rows + 1]
    raw = np.frombuffer(data, np.uint8)[places[0] : places[-1]]
    places = places - places[0]
    starts = places[:-1]
    keep = np.ones(len(raw), bool)
    is_hex = bool((np.diff(places) >= 2).all()) and bool(
        (raw[starts] == _BACKSLASH).all() & (raw[starts + 1] == _X).all()
    )
    if is_hex:
        keep[starts] = keep[starts + 1] = False
    digits = _VALUES[raw[keep]]
    if not is_hex or len(digits) % 2 or (digits > 15).any():
        raise SourceError(f"column `{name}`: bytea is not printed as hex", hint="does something set `bytea_output`?")
    packed = pa.py_buffer((digits[0::2] << 4) | digits[1::2])
    ends = pa.py_buffer(((places - 2 * np.arange(rows + 1)) // 2).astype(np.int32))
    found = pa.BinaryArray.from_buffers(pa.binary(), rows, [None, ends, packed])
    return pc.if_else(values.is_valid(), found, pa.scalar(None, pa.binary())) if values.null_count else found


def text_of_uuids(values: pa.Array) -> pa.Array:
    """fixed_size_binary(16) as canonical text."""
    rows, start = len(values), values.offset
    if not rows:
        return pa.array([], pa.string())
    raw = np.frombuffer(values.buffers()[1], np.uint8)[start * 16 : (start + rows) * 16].reshape(rows, 16)
    digits = np.stack([_DIGITS[raw >> 4], _DIGITS[raw & 15]], axis=2).reshape(rows, 32)
    text = np.full((rows, 36), ord("-"), np.uint8)
    text[:, [place for place in range(36) if place not in _HYPHENS]] = digits
    ends = pa.py_buffer((np.arange(rows + 1) * 36).astype(np.int32))
    found = pa.StringArray.from_buffers(rows, ends, pa.py_buffer(text))
    return pc.if_else(values.is_valid(), found, pa.scalar(None, pa.string())) if values.null_count else found
