"""How much to read at a time, so that a batch stays near a number of bytes whatever the rows weigh."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.model import Changes

BYTES = 16 * 2**20


class Pace:
    """In rows, or pages of a table. Starts small, grows while batches are light, and shrinks when they are heavy."""

    def __init__(self, first: int, most: int) -> None:
        self.size = first
        self._most = most

    def learn(self, found: Sequence[Changes], asked: int) -> None:
        """`asked`: how much was asked for, of which `found` came."""
        weight = sum(changes.data.nbytes for changes in found)
        if asked < self.size and weight < BYTES:
            return  # too little to judge by
        fitting = asked * BYTES // max(1, weight)
        self.size = max(1, min(self._most, 4 * self.size, fitting))
