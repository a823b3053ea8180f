"""Deletes changes that are in the bus, and keeps out of the application's way while it does.

SQLite has one writer at a time, and an application without busy time-out gets SQLITE_BUSY if it meets another. So
pruning waits until nobody has written for `QUIET` seconds, deletes at most `ROWS` rows a transaction (well under
a millisecond), never waits for a lock, and looks for new writes between two transactions. Only when an application
never pauses and `FORCED` rows have gathered does it delete beside it, one transaction every `PACE` seconds. A run that
is to end (`--once`) has no second to spare each time: `QUIET_AT_END` will do, and if it does not come, the next run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from headwater.drivers.sqlite import Connection, quoted
from headwater.errors import Busy
from headwater.faults import failpoint
from headwater.sources.trigger_sqlite.names import Names

ROWS = 500
QUIET = 1.0
QUIET_AT_END = 0.25
PATIENCE = 1.0
"""Seconds that a run which is to end waits for quiet, at the most."""
PACE = 0.25
FORCED = 500_000


class Pruner:
    """Uses one connection of its own, opened when there is something to delete, with a busy time-out of zero."""

    def __init__(self, connect: Callable[[], Connection], names: Names) -> None:
        self._connect = connect
        self._change = quoted(names.change)
        self._connection: Connection | None = None
        self._floor = 0
        self._below = 0
        self._last = 0.0

    def allow(self, below: int) -> None:
        """Changes with ids under `below` are no longer needed. The row `below` stays: it is the position's anchor."""
        self._below = max(self._below, below)

    @property
    def due(self) -> bool:
        return self._below - self._floor > 1

    def step(self, quiet: float, least: float = QUIET) -> bool:
        """Delete a little if nobody has written for `quiet` seconds, or it must be. Whether anything was deleted."""
        forced = self._below - self._floor > FORCED and time.monotonic() - self._last > PACE
        if not self.due or (quiet < least and not forced):
            return False
        try:
            return self._delete()
        except Busy:
            return False
        finally:
            self._last = time.monotonic()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _delete(self) -> bool:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        # The first id is looked up without a lock that anybody could meet.
        ((first,),) = connection.execute(f"SELECT min(id) FROM {self._change}")
        if first is None or first >= self._below:
            self._floor = self._below
            return False
        below = min(first + ROWS, self._below)
        failpoint("trigger.prune.before_delete")
        with connection.transaction("IMMEDIATE"):
            connection.execute(f"DELETE FROM {self._change} WHERE id < ?", (below,))
        self._floor = below
        return True


def prepare(connection: Connection) -> Connection:
    """Commits without waiting for the disk where the journal allows it (WAL), and leaves checkpoints to others."""
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection
