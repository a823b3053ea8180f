"""The `_unchanged` marker as pairs of (row, ordinal), and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.model import UNCHANGED


@dataclass(frozen=True, slots=True)
class Pairs:
    """Row `rows[i]` does not carry the column `ordinals[i]`."""

    rows: npt.NDArray[np.int64]
    ordinals: npt.NDArray[np.int16]


def pairs(marker: pa.Array) -> Pairs:
    """Every (row, ordinal) of a `_unchanged` column; slices and nulls are seen to."""
    lengths = marker.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(marker), dtype=np.int64), lengths)
    return Pairs(rows, marker.flatten().to_numpy(zero_copy_only=False).astype(np.int16, copy=False))


def listed(
    rows: Sequence[npt.NDArray[np.int64]], ordinals: Sequence[npt.NDArray[np.int16]], count: int
) -> pa.Array | None:
    """The `_unchanged` column of `count` rows; None when there is nothing to list, and then it is left out."""
    if not sum(map(len, rows)):
        return None
    all_rows = np.concatenate(rows)
    all_ordinals = np.concatenate(ordinals)
    by_row = np.lexsort((all_ordinals, all_rows))
    lengths = np.bincount(all_rows, minlength=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = pa.array(all_ordinals[by_row].astype(np.int16), pa.int16())
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=UNCHANGED, mask=pa.array(lengths == 0))


def renumbered(marker: pa.Array, to: npt.NDArray[np.int16]) -> pa.Array | None:
    """The marker with each ordinal `o` written as `to[o]`; ordinals that become -1 vanish."""
    found = pairs(marker)
    ordinals = to[found.ordinals]
    kept = ordinals >= 0
    return listed([found.rows[kept]], [ordinals[kept]], len(marker))
