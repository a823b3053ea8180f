"""Lists, maps and structs with their leaves exchanged: the frame stays, each leaf array goes through a function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

Leaf = Callable[[pa.Array], pa.Array]


def rebuilt(array: pa.Array, leaf: Leaf) -> pa.Array:
    """The array with each leaf array replaced by `leaf` of it, which keeps length and nulls."""
    if pa.types.is_struct(array.type):
        children = [rebuilt(child, leaf) for child in array.flatten()]
        fields = [field.with_type(child.type) for field, child in zip(array.type, children, strict=True)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())
    if pa.types.is_map(array.type):
        offsets, keys, items = entries(array)
        return pa.MapArray.from_arrays(offsets, keys, rebuilt(items, leaf), mask=array.is_null())
    if pa.types.is_list(array.type):
        offsets, values = elements(array)
        return pa.ListArray.from_arrays(offsets, rebuilt(values, leaf), mask=array.is_null())
    return leaf(array)


def elements(array: pa.ListArray) -> tuple[pa.Array, pa.Array]:
    """A list array's offsets from 0 and its values, whatever slice it is; null rows are empty."""
    compact = _compact(array)
    return _offsets(compact), compact.values


def entries(array: pa.MapArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """A map array's offsets from 0, keys and values."""
    compact = _compact(array)
    return _offsets(compact), compact.keys, compact.items


def _compact(array: pa.Array) -> pa.Array:
    """A copy without slices, and without values that lie under nulls."""
    return array.take(pa.array(np.arange(len(array))))


def _offsets(array: pa.Array) -> pa.Array:
    found = np.frombuffer(array.buffers()[1], dtype=np.int32)[: len(array) + 1] if len(array) else np.zeros(1, np.int32)
    return pa.array(found)
