"""Where a start begins: what the position is worth on this database, and which rows each stream still needs.

A position is worth something only on the database that it speaks of. Else changes may be missing, and every stream is
compared with its table, in a higher epoch (F3, F83).
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headwater.drivers.postgres import execute
from headwater.errors import SourceError
from headwater.model import Note, Reload, utc_now
from headwater.protocols import Capture
from headwater.sources.trigger_postgres.connecting import RowReader
from headwater.sources.trigger_postgres.install import Arrangement
from headwater.sources.trigger_postgres.load import files_of
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.position import DONE, LOADING, READING, Place, StreamLoad, identity_of
from headwater.sources.trigger_postgres.snapshots import snapshot_of

if TYPE_CHECKING:
    import psycopg


def resume(
    connection: psycopg.Connection, names: Names, arrangement: Arrangement, known: Place | None, epoch: int
) -> tuple[Place, list[Note]]:
    """The place to read on from, and a note for each stream that has missed something."""
    identity = identity_of(connection, arrangement.incarnation)
    if known is not None and known.identity == identity:
        return dataclasses.replace(known, epoch=max(known.epoch, epoch)), []
    sql = f"SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.nextval({names.sequence})"
    ((snapshot, number),) = execute(connection, sql)
    if known is None:
        return Place(identity, max(1, epoch), number, snapshot_of(snapshot)), []
    place = Place(identity, max(known.epoch + 1, epoch), number, snapshot_of(snapshot), None, known.loads)
    text = (
        "the database, or its change table, was restored or made anew, or is another one; "
        f"what happened since change {known.commit} was not seen one by one, the rows are compared"
    )
    return place, [Note(stream, "gap", text) for stream in known.loads]


class Settler:
    """Decides, stream by stream, which rows are to be read.

    `gap`: the position was worth nothing. `restart`: a new `read`, whose readings begin with their first row again.
    """

    def __init__(
        self, arrangement: Arrangement, place: Place, *, gap: bool, restart: bool, checked: datetime.datetime
    ) -> None:
        self._arrangement = arrangement
        self._place = place
        self._gap = gap
        self._restart = restart
        self._checked = checked
        self.loads: dict[str, StreamLoad] = {}
        self.notes: list[Note] = []

    def settle(self, capture: Capture, broken: Mapping[str, SourceError], reader: RowReader) -> None:
        known = self._place.loads.get(capture.stream)
        if capture.stream in broken:
            if known is not None:
                self.loads[capture.stream] = dataclasses.replace(known, again=True)
            return
        if known is None or known.token != capture.load.token:
            self.loads[capture.stream] = self._first(capture, reader)
        elif known.state == READING and not self._restart:
            self.loads[capture.stream] = known  # under way: it is finished first, its first part is staged already
        elif self._gap or self._missed(capture, known):
            self.loads[capture.stream] = self._compared(capture, known)
        else:
            self.loads[capture.stream] = known

    def _repaired(self, capture: Capture) -> int:
        shape = self._arrangement.shapes.get(capture.table)
        return self._arrangement.repairs.get(shape.oid, 0) if shape is not None else 0

    def _missed(self, capture: Capture, load: StreamLoad) -> bool:
        """Whether changes of the stream's table since its load began may be missing."""
        return load.again or load.table != str(capture.table) or self._repaired(capture) > load.start

    def _start(self, capture: Capture) -> int:
        return max(self._place.commit, self._repaired(capture))

    def _first(self, capture: Capture, reader: RowReader) -> StreamLoad:
        wanted, table, start = capture.load, str(capture.table), self._start(capture)
        if wanted.skip:
            return StreamLoad(wanted.token, table, DONE, start)
        if wanted.reload is None:
            files = files_of(reader, self._arrangement.shapes[capture.table])
            # Where the table's triggers are older than the place's snapshot, its changes are there to be left out.
            since = str(self._place.snapshot)
            return StreamLoad(wanted.token, table, LOADING, start, since=since, files=files)
        return StreamLoad(wanted.token, table, READING, start, reload=wanted.reload.value)

    def _compared(self, capture: Capture, known: StreamLoad) -> StreamLoad:
        """The stream missed changes: its rows are read again, for the difference. Without a key there is none."""
        table, start = str(capture.table), self._start(capture)
        if not self._gap:
            what = "the rows are compared" if capture.key else "and rows without a key cannot be compared"
            why = "the stream could not be captured" if known.again else "no trigger has seen what changed its rows"
            since = f"since change {self._place.commit}" if self._restart else f"since {_spelt(self._checked)}"
            when = f"{since}, until {_spelt(utc_now())},"
            text = f"table {table}: {why}; what happened {when} was not seen one by one, {what}"
            self.notes.append(Note(capture.stream, "gap", text))
        if not capture.key:
            return dataclasses.replace(known, start=start, table=table, again=False)
        return StreamLoad(known.token, table, READING, start, reload=Reload.DIFFERENCE.value)


def _spelt(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
