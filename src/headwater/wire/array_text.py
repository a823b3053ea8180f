"""PostgreSQL's printed arrays as Arrow lists of texts; the loop over their bytes is `array_text_cy`."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa

from headwater import native

MODULE = "headwater.wire.array_text_cy"
_COMMA = ord(",")


def split_arrays(values: pa.StringArray, module: ModuleType | None = None) -> pa.ListArray:
    """list<string>, null where the array has several dimensions or does not begin at 1, and where `values` is null.

    `module`: the compiled or the uncompiled one, instead of what `native` says.
    """
    rows = len(values)
    if not rows or values.null_count == rows:
        return pa.nulls(rows, pa.list_(pa.string()))
    _, offsets, raw = values.buffers()
    places = np.frombuffer(offsets, np.int32)[values.offset : values.offset + rows + 1]
    data = np.frombuffer(raw or b"", np.uint8)
    room = int(np.count_nonzero(data == _COMMA)) + rows
    out, ends = np.empty(len(data), np.uint8), np.zeros(room, np.int32)
    valid, counts = np.zeros(room, np.uint8), np.zeros(rows, np.int32)
    total = (module or native.either(MODULE)).split(
        data.data, places.data, out.data, ends.data, valid.data, counts.data
    )
    return _lists(out, ends[:total], valid[:total], counts)


def _lists(out: np.ndarray, ends: np.ndarray, valid: np.ndarray, counts: np.ndarray) -> pa.ListArray:
    bits = pa.py_buffer(np.packbits(valid, bitorder="little"))
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int32))
    texts = pa.StringArray.from_buffers(len(ends), offsets, pa.py_buffer(out), bits)
    places = np.concatenate([[0], np.cumsum(np.maximum(counts, 0))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(places), texts, mask=pa.array(counts < 0))
