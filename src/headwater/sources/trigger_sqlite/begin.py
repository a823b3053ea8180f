"""Where a start begins: what the position is worth on this database, and which rows each stream still needs.

A position is worth something only where the change table shows its anchor. Else changes may be missing, and every
stream is compared with its table, in a higher epoch (F3, F83).
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping

from headwater.drivers.sqlite import Connection, quoted
from headwater.errors import SourceError
from headwater.faults import failpoint
from headwater.model import Note, Reload, utc_now
from headwater.protocols import Capture
from headwater.sources.trigger_sqlite.install import Arrangement, add_marker
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.position import DONE, LOADING, READING, Place, StreamLoad, anchor_of


def resume(
    connection: Connection, names: Names, arrangement: Arrangement, known: Place | None, epoch: int
) -> tuple[Place, list[Note]]:
    """The place to read on from, and a note for each stream that has missed something."""
    if known is None:
        return _at_the_end(connection, names, arrangement, epoch, {}), []
    reason = _gap(connection, names, arrangement, known)
    if reason is None:
        return dataclasses.replace(known, epoch=max(known.epoch, epoch)), []
    place = _at_the_end(connection, names, arrangement, max(known.epoch + 1, epoch), known.loads)
    text = f"{reason}; what happened since change {known.id} was not seen one by one, the rows are compared"
    return place, [Note(stream, "gap", text) for stream in known.loads]


def _at_the_end(
    connection: Connection, names: Names, arrangement: Arrangement, epoch: int, loads: dict[str, StreamLoad]
) -> Place:
    with connection.transaction():
        ((top,),) = connection.execute(f"SELECT max(id) FROM {quoted(names.change)}")
        newest = int(top or 0)
        anchor = anchor_of(connection, names, newest)
    return Place(arrangement.incarnation, max(1, epoch), newest, anchor, loads)


def _gap(connection: Connection, names: Names, arrangement: Arrangement, known: Place) -> str | None:
    if known.incarnation != arrangement.incarnation:
        return "the database or its change table was made anew or is another one"
    if anchor_of(connection, names, known.id) != known.anchor:
        return "the database was restored, or its change table was emptied by somebody else"
    return None


def floor(place: Place) -> int:
    """Changes below this id are needed no more: not by the position, and not by an unfinished load."""
    return min([place.id, *(load.since for load in place.loads.values() if load.state == LOADING)])


def marker(connection: Connection, names: Names, arrangement: Arrangement) -> int:
    """A change id that no change has, for readings to be labelled with: the arrangement's, if it has just been made."""
    if arrangement.marker is not None:
        return arrangement.marker
    with connection.transaction("IMMEDIATE"):
        made = add_marker(connection, names)
        failpoint("trigger.marker.before_commit")
    return made


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
        self._begun: list[str] = []
        self.loads: dict[str, StreamLoad] = {}
        self.notes: list[Note] = []

    @property
    def needs_marker(self) -> bool:
        """Whether a reading begins, which is to be labelled with a change id of its own."""
        return bool(self._begun)

    def settle(self, capture: Capture, broken: Mapping[str, SourceError]) -> None:
        known = self._place.loads.get(capture.stream)
        if capture.stream in broken:
            if known is not None:
                self.loads[capture.stream] = dataclasses.replace(known, again=True)
            return
        if known is None or known.token != capture.load.token:
            load = self._first(capture)
        elif known.state == READING and not self._restart:
            load = known  # a reading under way is finished first: its first part is staged already
        elif self._gap or missed(self._arrangement, capture, known):
            load = self._compared(capture, known)
        else:
            load = known
        if load.state == READING and (self._restart or load is not known):
            self._begun.append(capture.stream)
        self.loads[capture.stream] = load

    def label(self, change: int) -> None:
        """Readings that begin are labelled with this change id."""
        for stream in self._begun:
            self.loads[stream] = dataclasses.replace(self.loads[stream], start=change, after=None, count=0)

    def _first(self, capture: Capture) -> StreamLoad:
        wanted, table = capture.load, capture.table.name
        start = max(self._place.id, self._arrangement.repairs.get(table, 0))
        if wanted.skip:
            return StreamLoad(wanted.token, table, DONE, start)
        if wanted.reload is None:
            version = self._arrangement.schema_version
            return StreamLoad(wanted.token, table, LOADING, start, since=self._place.id, schema=version)
        return StreamLoad(wanted.token, table, READING, reload=wanted.reload.value)

    def _compared(self, capture: Capture, known: StreamLoad) -> StreamLoad:
        """The stream missed changes: its rows are read again, for the difference. Without a key there is none."""
        table = capture.table.name
        if not self._gap:
            what = "the rows are compared" if capture.key else "and rows without a key cannot be compared"
            why = "the stream could not be captured" if known.again else "the table's triggers were gone or altered"
            since = f"since change {self._place.id}" if self._restart else f"since {_spelt(self._checked)}"
            when = f"{since}, until {_spelt(utc_now())},"
            text = f"table {table}: {why}; what happened {when} was not seen one by one, {what}"
            self.notes.append(Note(capture.stream, "gap", text))
        if not capture.key:
            start = max(self._place.id, self._arrangement.repairs.get(table, 0))
            return dataclasses.replace(known, start=start, table=table, again=False)
        return StreamLoad(known.token, table, READING, reload=Reload.DIFFERENCE.value)


def missed(arrangement: Arrangement, capture: Capture, load: StreamLoad) -> bool:
    """Whether changes of the stream's table since its load began may be missing."""
    return load.again or load.table != capture.table.name or arrangement.repairs.get(capture.table.name, 0) > load.start


def _spelt(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
