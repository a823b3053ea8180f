"""Which transactions have come through the log: a commit is streamed before it is visible to snapshots (F28)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwater.sources.log_postgres.snapshot import Snapshot


class Streamed:
    """The transactions streamed while somebody watches, as far as no snapshot has shown them yet."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.uint32]] = []
        self._watching = True

    def watch(self, on: bool) -> None:
        self._watching = on
        if not on:
            self._parts.clear()

    def add(self, xids: NDArray[np.uint32]) -> None:
        if self._watching:
            self._parts.append(xids)

    def xids_not_visible(self, snapshot: Snapshot) -> bool:
        """Whether there are any that `snapshot` does not show."""
        xids = np.concatenate([np.empty(0, np.uint32), *self._parts])
        hidden = xids[~snapshot.sees(xids)]
        self._parts = [hidden] if len(hidden) else []
        return bool(len(hidden))
