"""When to look again: NOTIFY takes a lock that all commits share, so the change table is asked instead."""

from __future__ import annotations

import threading
import time

FASTEST, SLOW, SLOWEST = 0.001, 0.020, 0.200
ACTIVE, RECENT = 0.1, 30.0
"""Seconds without a change after which the pauses begin to grow, and after which they grow beyond `SLOW`."""


class Wake:
    """`quiet`: how long nothing has changed, in seconds."""

    def __init__(self) -> None:
        self._changed = time.monotonic()
        self._pause = FASTEST

    @property
    def quiet(self) -> float:
        return time.monotonic() - self._changed

    def stir(self) -> None:
        """Something has changed."""
        self._changed = time.monotonic()
        self._pause = FASTEST

    def wait(self, stopping: threading.Event) -> None:
        if self.quiet > ACTIVE:
            most = SLOW if self.quiet < RECENT else SLOWEST
            self._pause = min(most, self._pause * 1.1)
        stopping.wait(self._pause)
