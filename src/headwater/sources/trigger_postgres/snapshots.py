"""Snapshots of PostgreSQL, `xmin:xmax:xip,...` (functions-info.html, Transaction ID and Snapshot Information).

Ids of changes are not the order of commits, and appear late (F60, F62). What is new is therefore asked of two
snapshots: a transaction is visible in the later one and was not in the earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Transactions below `xmin` have ended; those from `xmax` on, and those in `running`, have not."""

    xmin: int
    xmax: int
    running: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"

    def sees(self, xids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        running = np.isin(xids, np.array(self.running, np.int64))
        return (xids < self.xmin) | ((xids < self.xmax) & ~running)

    def unseen(self, column: str) -> str:
        """SQL: whether a transaction is not visible in this snapshot. An index on the column serves it."""
        later = f"{column} >= '{self.xmax}'::pg_catalog.xid8"
        if not self.running:
            return later
        return f"({later} OR {column} = ANY ('{{{','.join(map(str, self.running))}}}'::pg_catalog.xid8[]))"


def snapshot_of(text: str) -> Snapshot:
    xmin, xmax, running = text.split(":")
    return Snapshot(int(xmin), int(xmax), tuple(map(int, filter(None, running.split(",")))))
