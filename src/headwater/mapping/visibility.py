"""What a change is once `where` has been asked about the row before and after it.

    before \\ after    fits        does not
    fits              update      delete
    does not          create      nothing
    not known         update      delete

Not known: the source did not tell the old row, or told no more than its key. Then a delete may be one too many, which
changes no state; one too few would.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.model import Op

Ops = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]

DROPPED = np.int8(0)


def transitions(ops: Ops, after: Mask, before: Mask, before_known: Mask) -> Ops:
    """The op of each row's event; `DROPPED` where there is none. `after`, `before`: whether `where` is true there."""
    result = ops.copy()
    update, delete = ops == int(Op.UPDATE), ops == int(Op.DELETE)
    was_out = before_known & ~before
    result[((ops == int(Op.CREATE)) | (ops == int(Op.READ))) & ~after] = DROPPED
    result[update & ~after] = int(Op.DELETE)
    result[update & was_out & after] = int(Op.CREATE)
    result[(update & ~after | delete) & was_out] = DROPPED
    return result
