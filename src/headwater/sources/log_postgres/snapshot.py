"""What a reader sees: `pg_current_snapshot()` and its rule of visibility, applied to the transactions of the log.

The text is `xmin:xmax:xip,...` of 64-bit transaction ids; the log knows the lower 32 bits of them. A commit is streamed
before it is visible, so LSNs do not tell what a snapshot sees (F28). Format and rule:
https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.errors import SourceError

_EPOCH = 2**32

Xids = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All transactions below `xmin` had ended, none at or above `xmax`, and `xip` had not. 64-bit ids."""

    xmin: int
    xmax: int
    xip: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Raises `SourceError` for what is not the text of a snapshot."""
        try:
            low, high, running = text.split(":")
            return cls(int(low), int(high), tuple(int(xid) for xid in running.split(",") if xid))
        except ValueError as error:
            raise SourceError(f"`{text}` is expected to be a snapshot `xmin:xmax:xip,...`") from error

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"

    def widened(self, xids: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """32-bit ids as the 64-bit ones nearest to `xmax`: no two that live are 2**31 apart."""
        return self.xmax + (xids - np.uint32(self.xmax % _EPOCH)).view(np.int32).astype(np.int64)

    def sees(self, xids: npt.NDArray[np.uint32]) -> Mask:
        """Of the log's (32-bit) ids of committed transactions, which ones the snapshot shows."""
        wide = self.widened(xids)
        seen: Mask = wide < self.xmax
        if self.xip:
            seen &= ~np.isin(wide, np.array(self.xip, np.int64))
        return seen

    def sees_all(self, xids: npt.NDArray[np.uint32]) -> bool:
        return bool(self.sees(xids).all())
