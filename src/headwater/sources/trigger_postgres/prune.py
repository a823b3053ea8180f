"""Deletes changes that are in the bus: a few at a time, on a connection of its own, and never a row that anybody locks.

Changes of a table whose load is not done stay: they say which rows the load is to leave out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from headwater.drivers.postgres import execute
from headwater.faults import failpoint
from headwater.sources.trigger_postgres.connecting import Connector
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.snapshots import Snapshot
from headwater.sources.trigger_postgres.sql import ANCHOR

if TYPE_CHECKING:
    import psycopg

ROWS = 2_000
PACE = 0.5
"""Seconds between two deletes while there is traffic."""
FOREVER = 2.0
"""Seconds that a run which is to end goes on deleting, at the most."""


class Pruner:
    """`allow` says what is needed no more; `step` deletes a part of it."""

    def __init__(self, connector: Connector, names: Names) -> None:
        self._connector = connector
        self._names = names
        self._connection: psycopg.Connection | None = None
        self._snapshot: Snapshot | None = None
        self._kept: tuple[int, ...] = ()
        self._from = 0
        self._last = 0.0

    def allow(self, snapshot: Snapshot, commit: int, kept: tuple[int, ...]) -> None:
        """What `snapshot` sees is in the bus; changes of the layouts `kept` are still needed."""
        self._snapshot, self._commit, self._kept = snapshot, commit, kept

    @property
    def due(self) -> bool:
        return self._snapshot is not None

    def step(self, *, idle: bool) -> bool:
        """Whether there may be more to delete."""
        if self._snapshot is None or (not idle and time.monotonic() - self._last < PACE):
            return False
        self._last = time.monotonic()
        return self._delete(self._snapshot)

    def finish(self) -> None:
        """A run that ends has no later."""
        deadline = time.monotonic() + FOREVER
        while time.monotonic() < deadline and self.step(idle=True):
            continue

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _delete(self, snapshot: Snapshot) -> bool:
        if self._connection is None:
            self._connection = self._connector.sql()
            execute(self._connection, "SET synchronous_commit = off")
        change = self._names.change
        failpoint("trigger.prune.before_delete")
        rows = execute(
            self._connection,
            f"DELETE FROM {change} WHERE ctid = ANY (ARRAY(SELECT c.ctid FROM {change} c"
            f" WHERE c.xid >= '{self._from}'::pg_catalog.xid8 AND c.xid < '{snapshot.xmax}'::pg_catalog.xid8"
            f" AND pg_catalog.pg_visible_in_snapshot(c.xid, '{snapshot}') AND c.t <> ALL (%s::int[])"
            f" ORDER BY c.xid LIMIT {ROWS})) RETURNING xid::text::bigint",
            [[ANCHOR, *self._kept]],
        )
        if len(rows) == ROWS:
            self._from = max(xid for (xid,) in rows)  # below are index entries of deleted rows only
            return True
        self._from = 0 if self._kept else snapshot.xmin
        execute(self._connection, f"DELETE FROM {self._names.mark} WHERE id <= %s", [self._commit])
        self._snapshot = None
        return False
