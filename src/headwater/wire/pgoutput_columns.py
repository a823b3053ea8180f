"""Values of `pgoutput` messages as Arrow arrays, a column at a time."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headwater.wire.pgoutput_messages import Malformed

FIXED = {
    "i2": (">i2", pa.int16()),
    "i4": (">i4", pa.int32()),
    "i8": (">i8", pa.int64()),
    "oid": (">u4", pa.int64()),
    "f4": (">f4", pa.float32()),
    "f8": (">f8", pa.float64()),
    "bool": ("?", pa.bool_()),
    "date": (">i4", pa.int32()),
    "time": (">i8", pa.int64()),
    "timestamp": (">i8", pa.int64()),
    "uuid": ("V16", pa.binary(16)),
}
"""Wire code -> how a value lies in a message, and its array."""

VARIABLE = {"": pa.string(), "text": pa.string(), "jsonb": pa.string(), "bytes": pa.binary()}

FORMATS = {"": ord("t"), "text": 0}
"""How a value is marked, `b` where it is not said; 0 for either (a text is the same bytes)."""

JSONB_VERSION = 1


SLICE = 2**19
"""Bytes of messages over which the loops of all columns go before the next ones: few enough for a processor's cache."""

SPARE = 64
"""Room for texts is made for a part more than the rows so far need: one in so many."""


@dataclass(frozen=True, slots=True)
class Where:
    """Values of one column in some rows, as `pgoutput_values_cy` takes them."""

    data: memoryview
    places: memoryview
    bases: memoryview
    column: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.data, self.places, self.bases, self.column))

    def size(self, bad: int) -> int:
        """How many bytes the value has that a loop returned."""
        place = self.places[self.bases[-1 - bad] + self.column]
        return int.from_bytes(self.data[place - 4 : place])


class Values:
    """The values of the messages in `data`. `places`, and the `bases` of each call, are as the loops take them."""

    def __init__(self, loops: ModuleType, data: memoryview, places: NDArray[np.int64]) -> None:
        self._loops = loops
        self._data = data
        self._places = places.data

    def arrays(self, columns: Sequence[tuple[str, str]], bases: NDArray[np.int64]) -> list[pa.Array]:
        """`columns`: name and wire code of each. Raises `Malformed` for a value that cannot be of its type."""
        count = len(bases)
        made = [_column(self._loops, name, code, count) for name, code in columns]
        step = max(count * SLICE // max(len(self._data), 1), 1024)
        for first in range(0, count, step):
            rows = bases[first : first + step].data
            for place, column in enumerate(made):
                column.take(Where(self._data, self._places, rows, place), first, first + len(rows))
        return [column.array() for column in made]


class _Column(ABC):
    """An array in the making. Rows are taken in sequence."""

    def __init__(self, loops: ModuleType, name: str, count: int) -> None:
        self._loops = loops
        self._name = name
        self._count = count
        self._valid = np.empty(count, np.uint8)
        self._nulls = 0

    @abstractmethod
    def take(self, where: Where, first: int, last: int) -> None:
        """The values at the rows `first` to `last`."""

    @abstractmethod
    def array(self) -> pa.Array:
        """Of all rows, once they are taken."""

    def _bad(self, text: str) -> Malformed:
        return Malformed(f"{self._name}: {text}")


class _Fixed(_Column):
    def __init__(self, loops: ModuleType, name: str, count: int, code: str) -> None:
        super().__init__(loops, name, count)
        self._code = code
        self._layout = FIXED[code][0]
        self._width = np.dtype(self._layout).itemsize
        self._raw = np.empty(count * self._width, np.uint8)

    def take(self, where: Where, first: int, last: int) -> None:
        width = self._width
        raw = self._raw[first * width : last * width]
        nulls = self._loops.fixed(*where, width, raw.data, self._valid[first:last].data)
        if nulls < 0:
            raise self._bad(f"a value {self._code!r} has {where.size(nulls)} bytes, {width} are expected")
        self._nulls += nulls
        if self._layout.startswith(">") and sys.byteorder == "little":
            raw.view(f"u{width}").byteswap(inplace=True)

    def array(self) -> pa.Array:
        return fixed_array(self._code, self._raw, self._valid if self._nulls else None, self._count)


class _Variable(_Column):
    def __init__(self, loops: ModuleType, name: str, count: int, code: str) -> None:
        super().__init__(loops, name, count)
        self._version = JSONB_VERSION if code == "jsonb" else 0
        self._type = VARIABLE[code]
        self._offsets = np.zeros(count + 1, np.int32)
        self._data = np.empty(0, np.uint8)

    def take(self, where: Where, first: int, last: int) -> None:
        offsets, valid = self._offsets[first : last + 1], self._valid[first:last]
        nulls = self._loops.sizes(*where, self._version, offsets.data, valid.data)
        if nulls < 0:
            raise self._bad(f"a value of {where.size(nulls)} bytes does not begin with its version, {self._version}")
        self._nulls += nulls
        self._make_room(int(offsets[-1]), last)
        self._loops.texts(*where, self._version, offsets.data, self._data.data)

    def array(self) -> pa.Array:
        used = int(self._offsets[-1])
        data = self._data if used > len(self._data) * 3 // 4 else self._data[:used].copy()
        valid = self._valid if self._nulls else None
        return variable_array(self._name, self._type, (self._offsets, pa.py_buffer(data).slice(0, used)), valid)

    def _make_room(self, needed: int, rows: int) -> None:
        if needed > len(self._data):
            expected = needed * self._count // rows
            larger = np.empty(max(expected + expected // SPARE, needed), np.uint8)
            larger[: len(self._data)] = self._data
            self._data = larger


class _Numeric(_Variable):
    def take(self, where: Where, first: int, last: int) -> None:
        offsets, valid = self._offsets[first : last + 1], self._valid[first:last]
        room = self._loops.numeric_room(*where)
        if room < 0:
            raise self._bad(f"a value of {where.size(room)} bytes is no `numeric`")
        room += int(offsets[0])
        if room >= 2**31:
            raise self._bad(f"numbers of up to {room} bytes as text, less than {2**31} are expected at once")
        self._make_room(room, last)
        self._nulls += self._loops.numerics(*where, offsets.data, self._data.data, valid.data)


def _column(loops: ModuleType, name: str, code: str, count: int) -> _Column:
    if code in FIXED:
        return _Fixed(loops, name, count, code)
    return _Numeric(loops, name, count, "") if code == "numeric" else _Variable(loops, name, count, code)


def fixed_array(code: str, raw: NDArray[np.uint8], valid: NDArray[np.uint8] | None, count: int) -> pa.Array:
    """Of values as they lie in `raw`, in the machine's order. `valid`: a byte for each row; None: no row is NULL."""
    if code == "bool":
        raw = np.packbits(raw != 0, bitorder="little")
    if code == "oid":
        raw = raw.view(np.uint32).astype(np.int64).view(np.uint8)
    return pa.Array.from_buffers(FIXED[code][1], count, [bitmap(valid), pa.py_buffer(raw)])


def variable_array(
    name: str, kind: pa.DataType, buffers: tuple[NDArray[np.int32], pa.Buffer], valid: NDArray[np.uint8] | None
) -> pa.Array:
    """`buffers`: offsets and bytes. Raises `Malformed` for a text that is not UTF-8."""
    offsets, data = buffers
    array = pa.Array.from_buffers(kind, len(offsets) - 1, [bitmap(valid), pa.py_buffer(offsets), data])
    if pa.types.is_string(kind):
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise Malformed(f"{name}: a text is not UTF-8: {error}") from error
    return array


def bitmap(valid: NDArray[np.uint8] | None) -> pa.Buffer | None:
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
