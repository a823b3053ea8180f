"""How many rows to read at a time, so that a batch stays near a number of bytes whatever the rows weigh."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.model import Changes

FIRST, MOST = 2_000, 50_000
BYTES = 16 * 2**20


class Pace:
    """Starts small, grows while batches are light, and shrinks at once when they are heavy."""

    def __init__(self) -> None:
        self.rows = FIRST

    def learn(self, found: Sequence[Changes]) -> None:
        count = sum(map(len, found))
        if count * 2 < self.rows:
            return  # too few to judge by
        each = max(1, sum(changes.data.nbytes for changes in found) // count)
        self.rows = max(1, min(MOST, 4 * self.rows, BYTES // each))
