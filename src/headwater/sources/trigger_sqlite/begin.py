"""Where a start begins: what the position is worth on this database, and which rows each stream still needs.

A position is worth something only where the change table shows its anchor. Else changes may be missing, and every
stream is compared with its table, in a higher epoch (F3, F83).
"""

from __future__ import annotations

import dataclasses
import datetime

from headwater.drivers.sqlite import Connection, quoted
from headwater.faults import failpoint
from headwater.model import Note, Reload
from headwater.protocols import Capture
from headwater.sources import settling
from headwater.sources.settling import LOADING, READING
from headwater.sources.trigger_sqlite.install import Arrangement, add_marker
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.position import Place, StreamLoad, anchor_of


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


class Settler(settling.Settler[StreamLoad]):
    UNSEEN = "the table's triggers were gone or altered"

    def __init__(
        self, arrangement: Arrangement, place: Place, *, gap: bool, restart: bool, checked: datetime.datetime
    ) -> None:
        super().__init__(place.loads, place.id, gap=gap, restart=restart, checked=checked)
        self._arrangement = arrangement
        self._begun: list[str] = []

    @property
    def needs_marker(self) -> bool:
        """Whether a reading begins, which is to be labelled with a change id of its own."""
        return bool(self._begun)

    def label(self, change: int) -> None:
        """Readings that begin are labelled with this change id."""
        for stream in self._begun:
            self.loads[stream] = dataclasses.replace(self.loads[stream], start=change, after=None, count=0)

    def _settled(self, capture: Capture, known: StreamLoad | None) -> StreamLoad:
        load = super()._settled(capture, known)
        if load.state == READING and (self._restart or load is not known):
            self._begun.append(capture.stream)
        return load

    def _table(self, capture: Capture) -> str:
        return capture.table.name

    def _repaired(self, capture: Capture) -> int:
        return self._arrangement.repairs.get(capture.table.name, 0)

    def _begin(self, capture: Capture, state: str, reload: Reload | None = None) -> StreamLoad:
        begun = StreamLoad(capture.load.token, capture.table.name, state, self._start(capture))
        if state == LOADING:
            return dataclasses.replace(begun, since=self._number, schema=self._arrangement.schema_version)
        return dataclasses.replace(begun, reload="" if reload is None else reload.value)
