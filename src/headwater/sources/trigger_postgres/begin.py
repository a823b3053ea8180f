"""Where a start begins: what the position is worth on this database, and which rows each stream still needs.

A position is worth something only on the database that it speaks of. Else changes may be missing, and every stream is
compared with its table, in a higher epoch (F3, F83).
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING

from headwater.drivers.postgres import execute
from headwater.model import Note, Reload
from headwater.protocols import Capture
from headwater.sources import settling
from headwater.sources.settling import LOADING
from headwater.sources.trigger_postgres.connecting import RowReader
from headwater.sources.trigger_postgres.install import Arrangement
from headwater.sources.trigger_postgres.load import files_of
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.position import Place, StreamLoad, identity_of
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


class Settler(settling.Settler[StreamLoad]):
    UNSEEN = "no trigger has seen what changed its rows"

    def __init__(
        self,
        arrangement: Arrangement,
        place: Place,
        reader: RowReader,
        *,
        gap: bool,
        restart: bool,
        checked: datetime.datetime,
    ) -> None:
        super().__init__(place.loads, place.commit, gap=gap, restart=restart, checked=checked)
        self._arrangement = arrangement
        self._snapshot = place.snapshot
        self._reader = reader

    def _table(self, capture: Capture) -> str:
        return str(capture.table)

    def _repaired(self, capture: Capture) -> int:
        shape = self._arrangement.shapes.get(capture.table)
        return self._arrangement.repairs.get(shape.oid, 0) if shape is not None else 0

    def _begin(self, capture: Capture, state: str, reload: Reload | None = None) -> StreamLoad:
        begun = StreamLoad(capture.load.token, str(capture.table), state, self._start(capture))
        if state == LOADING:
            files = files_of(self._reader, self._arrangement.shapes[capture.table])
            # Where the table's triggers are older than the place's snapshot, its changes are there to be left out.
            return dataclasses.replace(begun, since=str(self._snapshot), files=files)
        return dataclasses.replace(begun, reload="" if reload is None else reload.value)
