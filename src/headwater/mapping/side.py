"""One state of the rows of a batch, before or after their change, column by column."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping import unchanged

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


class Side:
    """Columns by name. `unknown` marks the values that the source did not carry: what stands there means nothing."""

    __slots__ = ("columns", "count", "unknown")

    def __init__(self, columns: Mapping[str, pa.Array], count: int, unknown: Mapping[str, Mask] | None = None) -> None:
        self.columns = columns
        self.count = count
        self.unknown = unknown or {}

    def take(self, rows: Rows) -> Side:
        """The rows with these numbers, which rise."""
        if len(rows) == self.count:
            return self
        indices = pa.array(rows)
        columns = {name: column.take(indices) for name, column in self.columns.items()}
        unknown = {name: mask[rows] for name, mask in self.unknown.items()}
        return Side(columns, len(rows), {name: mask for name, mask in unknown.items() if mask.any()})


def side_of(state: pa.StructArray, names: tuple[str, ...]) -> Side:
    """The named columns of `before` or `after`; null wherever the whole state is."""
    if state.null_count == len(state):
        columns = {name: pa.nulls(len(state), state.type.field(name).type) for name in names}
    elif state.null_count:
        columns = {name: pc.struct_field(state, [state.type.get_field_index(name)]) for name in names}
    else:
        columns = {name: state.field(state.type.get_field_index(name)) for name in names}
    return Side(columns, len(state))


def whole(after: Side, before: Side, marker: pa.Array, kind: pa.StructType, *, before_is_whole: bool) -> Side:
    """`after` with the values that the log did not carry taken from the old row.

    An old row may hold its key alone (`before_is_whole` false): there, null means nothing.
    """
    pairs = unchanged.pairs(marker)
    columns, unknown = dict(after.columns), dict(after.unknown)
    for ordinal in np.unique(pairs.ordinals).tolist():
        name = kind.field(ordinal).name
        if name not in columns:
            continue
        missing = np.zeros(after.count, dtype=bool)
        missing[pairs.rows[pairs.ordinals == ordinal]] = True
        columns[name] = pc.if_else(pa.array(missing), before.columns[name], columns[name])
        if not before_is_whole:
            missing &= before.columns[name].is_null().to_numpy(zero_copy_only=False)
            if missing.any():
                unknown[name] = missing
    return Side(columns, after.count, unknown)
