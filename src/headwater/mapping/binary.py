"""The bytes of a column's values, side by side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def side_by_side(array: pa.Array) -> npt.NDArray[np.uint8]:
    """All bytes of a large_binary column without nulls, wherever it was cut; without a copy."""
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return np.zeros(0, dtype=np.uint8)
    first, last = np.frombuffer(offsets, dtype=np.int64)[[array.offset, array.offset + len(array)]].tolist()
    return np.frombuffer(data, dtype=np.uint8)[first:last]
