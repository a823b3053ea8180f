"""Rows of a binary COPY by the compiled loop that makes all columns in one go (`pgcopy_native`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from headwater import native
from headwater.wire.pgoutput_columns import (
    FIXED,
    JSONB_VERSION,
    VARIABLE,
    Values,
    bitmap,
    fixed_array,
    variable_array,
)
from headwater.wire.pgoutput_messages import Malformed

_DIGITS = 18
"""Numbers of more digits are decoded as texts."""
_DECIMAL_WIDTH = 16

Kind = tuple[int, int, int, int]
"""As `pgcopy_native.rows` takes it."""

Part = tuple[Any, Any, Any]
"""Buffers of a column: a byte for each row that is not NULL, values, offsets; None where there are none."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Whole rows, and where the next one begins. `ended`: the trailer stands there."""

    count: int
    end: int
    ended: bool
    arrays: list[pa.Array]


def decoder_of(columns: Sequence[tuple[str, str]]) -> Callable[[memoryview, int], Rows | None] | None:
    """Decodes the rows of a buffer from a place on, or gives None for what only the plain loops can read, or name.

    `columns`: as `pgcopy.CopyDecoder` takes them. None where the loop is not compiled.
    """
    module = native.compiled("headwater.wire.pgcopy_native")
    if module is None:
        return None
    loops = native.either("headwater.wire.pgoutput_values_cy")
    kinds = [_kind(module, code) for _, code in columns]

    def decode(view: memoryview, start: int) -> Rows | None:
        found = module.rows(view, start, kinds)
        if found is None:
            return None
        reason, count, end, parts = found
        try:
            arrays = [made(view, *given) for given in zip(columns, kinds, parts, strict=True)] if count else []
        except Malformed:
            return None
        return Rows(count, end, reason == module.END, arrays)

    def made(view: memoryview, column: tuple[str, str], kind: Kind, part: Part) -> pa.Array:
        if kind[0] != module.PLACE:
            return _array(*column, part)
        places = np.frombuffer(part[1], np.int64)
        (array,) = Values(loops, view, places).arrays([(column[0], plain(column[1]))], np.arange(len(places)))
        return array

    return decode


def plain(code: str) -> str:
    """The wire code that the plain loops know."""
    return code.partition("(")[0]


def _width(code: str) -> int:
    """Bytes of each value."""
    return np.dtype(FIXED[code][0]).itemsize


def _kind(module: ModuleType, code: str) -> Kind:
    declared = _declared(code)
    if declared is not None and declared[0] <= _DIGITS:
        return module.DECIMAL, _DECIMAL_WIDTH, declared[1], declared[0]
    if code in FIXED:
        return module.FIXED, _width(code), 0, 0
    if code in VARIABLE:
        return module.BYTES, 0, JSONB_VERSION if code == "jsonb" else 0, 0
    return module.PLACE, 8, 0, 0


def _declared(code: str) -> tuple[int, int] | None:
    """Precision and scale."""
    found = re.fullmatch(r"numeric\((\d+),(\d+)\)", code)
    return None if found is None else (int(found[1]), int(found[2]))


def _array(name: str, code: str, part: Part) -> pa.Array:
    valid = None if part[0] is None else np.frombuffer(part[0], np.uint8)
    if part[2] is not None:
        return variable_array(name, VARIABLE[code], (np.frombuffer(part[2], np.int32), pa.py_buffer(part[1])), valid)
    values = np.frombuffer(part[1], np.uint8)
    if declared := _declared(code):
        buffers = [bitmap(valid), pa.py_buffer(values)]
        return pa.Array.from_buffers(pa.decimal128(*declared), len(values) // _DECIMAL_WIDTH, buffers)
    return fixed_array(code, values, valid, len(values) // _width(code))
