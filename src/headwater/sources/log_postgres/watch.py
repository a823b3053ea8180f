"""The catalog under watch: at each start, and every few seconds while the log is read.

A difference that matters ends the session in good order; the next one finds it by the stored position, and compares the
table's rows with its streams. So what was found is durable in the same step as the comparison that is owed for it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headwater.model import Note, TableId
from headwater.protocols import Capture
from headwater.sources.log_postgres.names import Names
from headwater.sources.log_postgres.sights import Difference, Sight, differences, look
from headwater.sources.log_postgres.tables import check, describe

if TYPE_CHECKING:
    import psycopg

LOOK_SECONDS = 5.0
"""Between two looks."""


class Watch:
    """`sights`: what was seen last, as it may be stored. `altered`: something is owed a comparison. `parts`: each
    partition that was ever seen, with the oid of the captured table that it belongs to.
    """

    def __init__(self, connection: psycopg.Connection, names: Names, captures: Mapping[str, Capture]) -> None:
        self._connection = connection
        self._names = names
        self._captures = captures
        self._looked = time.monotonic()
        self._columns: dict[TableId, set[str]] = {}
        for capture in captures.values():
            self._columns.setdefault(capture.table, set()).update(capture.columns)
        self.sights: Mapping[str, Sight] = {}
        self.altered = False
        self.parts: dict[int, int] = {}

    # at a start

    def begin(self, known: Mapping[str, Sight]) -> list[Note]:
        """Before anything of ours is altered: for each stream that is owed a comparison since `known`, why."""
        self._learn(known)
        self.sights = self._seen()
        return [note for capture in self._captures.values() for note in self._noted(capture, known)]

    def _noted(self, capture: Capture, known: Mapping[str, Sight]) -> list[Note]:
        table = str(capture.table)
        if table not in known or table not in self.sights:
            return []
        found = [
            difference
            for difference in differences(self._connection, known[table], self.sights[table])
            if capture.kind != "event" or difference.of_events
        ]
        if not found:
            return []
        text = f"table {table}: " + ", ".join(difference.text for difference in found)
        return [Note(capture.stream, _kind(found), text + "; the log does not tell of it")]

    def arranged(self) -> None:
        """What is in publications now is so by our own doing."""
        now = self._seen()
        self.sights = {
            table: dataclasses.replace(sight, published=now[table].published)
            for table, sight in self.sights.items()
            if table in now
        }

    # while the log is read

    def due(self) -> bool:
        return time.monotonic() - self._looked >= LOOK_SECONDS

    def look(self) -> None:
        """What does not matter is taken as it is."""
        self._looked = time.monotonic()
        now = self._seen()
        if self._matters(now):
            self.altered = True
        else:
            self.sights = now

    def _matters(self, now: Mapping[str, Sight]) -> bool:
        if now.keys() != self.sights.keys():
            return True
        pairs = [(str(capture.table), capture.kind) for capture in self._captures.values()]
        return any(
            kind != "event" or difference.of_events
            for table, kind in pairs
            if table in now
            for difference in differences(self._connection, self.sights[table], now[table])
        )

    def _seen(self) -> dict[str, Sight]:
        found = look(self._connection, self._names, self._columns)
        self._learn(found)
        return found

    def _learn(self, sights: Mapping[str, Sight]) -> None:
        self.parts |= {int(part): sight.oid for sight in sights.values() for part in sight.parts}

    def is_mended(self, table: TableId) -> bool:
        """Whether the streams of a table that could not be told could be captured now."""
        described = describe(self._connection, [capture.table for capture in self._captures.values()])
        mine = [capture for capture in self._captures.values() if capture.table == table]
        return all(check(capture, described) is None for capture in mine)


def _kind(found: list[Difference]) -> str:
    return "gap" if any(difference.kind == "gap" for difference in found) else "schema"
