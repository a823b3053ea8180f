"""The look-back window: which rows behind the anchor the stream has already.

Rows that commit late show up behind rows that were read long ago (F60), so each poll reads a stretch again. What it
has seen there is remembered by two hashes a row, of what identifies it and of all its values, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HASH = pa.binary(16)


def _none() -> pa.Array:
    return pa.array([], HASH)


@dataclass(frozen=True, slots=True)
class Window:
    """Parallel arrays of `HASH`: row `n` is identified by `idents[n]` and had the values `rows[n]`."""

    idents: pa.Array = field(default_factory=_none)
    rows: pa.Array = field(default_factory=_none)

    def __len__(self) -> int:
        return len(self.idents)

    def knows(self, idents: pa.Array, rows: pa.Array) -> pa.Array:
        """For each row, whether it is here with these very values."""
        if not len(self):
            return pa.repeat(pa.scalar(False), len(idents))
        places = pc.index_in(idents, value_set=self.idents)
        return pc.fill_null(pc.equal(self.rows.take(places), rows), False)

    def without(self, idents: pa.Array) -> Window:
        if not len(self) or not len(idents):
            return self
        keep = pc.invert(pc.is_in(self.idents, value_set=idents))
        return Window(self.idents.filter(keep), self.rows.filter(keep))

    def plus(self, other: Window) -> Window:
        """Both; of a row in both, `other` is right."""
        kept = self.without(other.idents)
        return Window(pa.concat_arrays([kept.idents, other.idents]), pa.concat_arrays([kept.rows, other.rows]))

    def newest(self) -> Window:
        """One entry for each row: the last, for a row that was read twice because it moved meanwhile."""
        if pc.count_distinct(self.idents).as_py() == len(self):
            return self
        backwards = pa.array(np.arange(len(self) - 1, -1, -1))
        idents = self.idents.take(backwards)
        first = pc.index_in(idents, value_set=idents).to_numpy() == np.arange(len(self))
        keep = pa.array(first[::-1])
        return self.where(keep)

    def since(self, start: int) -> Window:
        return Window(self.idents.slice(start), self.rows.slice(start))

    def where(self, keep: pa.Array) -> Window:
        return Window(self.idents.filter(keep), self.rows.filter(keep))

    def to_bytes(self) -> bytes:
        return _bytes(self.idents) + _bytes(self.rows)

    @classmethod
    def from_bytes(cls, data: bytes) -> Window:
        half = len(data) // 2
        return cls(_hashes(data[:half]), _hashes(data[half:]))


def joined(windows: Sequence[Window]) -> Window:
    """Windows of different rows as one."""
    if not windows:
        return Window()
    return Window(pa.concat_arrays([w.idents for w in windows]), pa.concat_arrays([w.rows for w in windows]))


def _bytes(hashes: pa.Array) -> bytes:
    if not len(hashes):
        return b""
    width, start = HASH.byte_width, hashes.offset
    return bytes(memoryview(hashes.buffers()[1])[start * width : (start + len(hashes)) * width])


def _hashes(data: bytes) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(HASH, len(data) // HASH.byte_width, [None, pa.py_buffer(data)])
