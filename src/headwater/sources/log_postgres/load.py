"""The rows that streams begin with, and whatever else has to be read from the tables beside the log.

1. A new slot: page ranges under the slot's own snapshot, in parallel, before the log begins (`initial`).
2. Broken off, added later, or chosen by a `where`: chunks in the order of the key beside the log, reconciled with it by
   what their snapshots see (`live.KeyLoad`, `windows`). Without a key: all pages of one snapshot (`live.PageLoad`),
   which are appended `together`.
3. A complete reading, to be compared with a stream that has content already (`live.ReadingLoad`).
4. Changes that lack a part of their row (`completion`).

A row that is read takes a place in the order below every change that is streamed after it, so whatever a later change
says wins. A reader's snapshot must show every commit that was streamed, which is not a matter of course (F28).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from headwater.dialects.postgres_types import PgTypes
from headwater.errors import SourceError
from headwater.model import Changes, TableId
from headwater.protocols import Capture, Load
from headwater.sources.log_postgres.begin import AWAY
from headwater.sources.log_postgres.completion import completed, is_partial
from headwater.sources.log_postgres.exchange import settled
from headwater.sources.log_postgres.homes import EVER, Homes, Lost
from headwater.sources.log_postgres.initial import Initial
from headwater.sources.log_postgres.live import LiveLoad, load_of
from headwater.sources.log_postgres.pages import TID_RANGES
from headwater.sources.log_postgres.position import DONE, Place, Progress, State
from headwater.sources.log_postgres.reread import Rereader
from headwater.sources.log_postgres.rows import Connector, Shape, shape_of
from headwater.sources.log_postgres.subject import Hidden, Step, Subject

if TYPE_CHECKING:
    import psycopg

__all__ = ["Connector", "Loads", "Step"]


class Loads:
    """Of one session of a source; used by its thread. `captures`: by stream. `texts`: the option `as_text`.

    A stream's loads are carried out one after the other: a backfill that is asked for does not end what is under way.
    `exchanging`: the streams whose rows may exchange keys within a transaction (`exchange`).
    `broken` takes the streams whose rows cannot be read, each with its reason; the others go on. `stopped`: waits so
    many seconds, and says whether to end.
    """

    def __init__(
        self,
        connector: Connector,
        captures: Mapping[str, Capture],
        types: PgTypes,
        epoch: int,
        *,
        directory: str,
        texts: Collection[str] = (),
        exchanging: Collection[str] = (),
        stopped: Callable[[float], bool] | None = None,
        broken: dict[str, SourceError] | None = None,
    ) -> None:
        self.broken = {} if broken is None else broken
        self._connector = connector
        self._asked = dict(captures)
        self._captures = dict(captures)
        """The same, each with the load that is carried out now."""
        self._types = types
        self._epoch = epoch
        self._directory = directory
        self._texts = frozenset(texts)
        self._exchanging = frozenset(exchanging)
        self._catalog: psycopg.Connection | None = None
        self._reread = Rereader(connector, stopped or threading.Event().wait)
        self._live: dict[str, LiveLoad] = {}
        self._away: set[str] = set()
        """Streams whose changes were left out since their rows could not be read: they are compared at a start."""
        self._lost: dict[str, Lost] = {stream: Lost() for stream in captures}
        self._reached = 0
        self._shapes: dict[str, tuple[pa.DataType, Shape]] = {}
        self._by_table: dict[TableId, list[Capture]] = {}
        for capture in self._captures.values():
            self._by_table.setdefault(capture.table, []).append(capture)
        self._subjects = {stream: self._subject(capture) for stream, capture in self._captures.items()}

    def close(self) -> None:
        """Give back connections; more than once."""
        for load in self._live.values():
            load.close()
        self._reread.close()
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None

    # where each load stands

    def begin(self, place: Place, *, fresh: bool) -> Place:
        """Settle what is left of each stream's load. `fresh`: the slot was made just now; `initial` comes next."""
        for stream in self._asked:
            place = self._go_on(stream, place, fresh=fresh)
        doubt = min(place.doubt, self._reread.log_end()) if place.doubt > place.lsn else 0
        self._lost = {stream: Lost(doubt, place.lost.get(stream)) for stream in self._asked}
        self.behind(place.lsn)
        return place

    def _go_on(self, stream: str, place: Place, *, fresh: bool = False) -> Place:
        """With what is left of a stream's loads, if anything is."""
        known = place.loads.get(stream)
        progress = self._progress(stream, known, fresh=fresh)
        if progress is not known:
            place = place.with_load(stream, progress)
        if progress.state == DONE or stream in self.broken:
            self._live.pop(stream, None)
        else:
            load = self._live[stream] = load_of(self._subjects[stream], progress)
            load.behind(self._reached)
        return place

    def _progress(self, stream: str, known: Progress | None, *, fresh: bool) -> Progress:
        """Of the first load that is not finished; of the last one when all are."""
        last = self._asked[stream].load
        left = [*last.earlier, last]
        tokens = [load.token for load in left]
        number = 0 if known is None else known.number
        if known is not None and known.token in tokens:
            left = left[tokens.index(known.token) :]
            known = self._taken_up(self._carrying_out(stream, left.pop(0)), known, fresh=fresh)
        else:
            known = None
        for load in left:
            if known is not None and known.state != DONE:
                break
            known = Progress(load.token, self._kind(self._carrying_out(stream, load), fresh=fresh), number=number)
        assert known is not None
        return known

    def _carrying_out(self, stream: str, load: Load) -> Capture:
        capture = self._captures[stream] = dataclasses.replace(self._asked[stream], load=load)
        self._subjects[stream] = self._subject(capture)
        return capture

    def _taken_up(self, capture: Capture, known: Progress, *, fresh: bool) -> Progress:
        if known.state == "pages" and not fresh and self._kind(capture, fresh=False) == "keys":
            return dataclasses.replace(known, state="keys")
        return known

    def _kind(self, capture: Capture, *, fresh: bool) -> State:
        if capture.load.skip:
            return DONE
        if capture.load.reload is not None:
            return "reading"
        try:
            by_key = self._subjects[capture.stream].by_key(self._shape_of(capture))
        except SourceError as error:
            self.broken[capture.stream] = error
            return "keys"
        if not by_key or (fresh and self._sql.info.server_version >= TID_RANGES):
            return "pages"
        return "keys"

    def initial(self, place: Place, snapshot_name: str) -> Iterator[Step]:
        """All rows under the snapshot that the slot exported, in parts; each with the place behind it.

        The connection that exported it must stay as it is until this has ended.
        """
        subjects = {stream: self._subjects[stream] for stream in self._live}
        for step in Initial(subjects, self._connector, snapshot_name, self.broken).steps(place):
            place = step.place
            yield step
        behind = place
        for stream in list(self._live):
            behind = self._go_on(stream, behind)
        if behind is not place:
            yield Step((), behind)

    # beside the log

    @property
    def wants_tick(self) -> bool:
        """Whether a load waits for the stream to pass a place: on an idle server a keepalive must be asked for."""
        return any(load.waiting for load in self._live.values())

    def step(self, place: Place, streamed: Hidden) -> Step | None:
        """The next part of a load; None when there is none for now, or none at all."""
        for stream in list(self._live):
            try:
                step = self._live[stream].step(place, streamed)
            except SourceError as error:
                self._break(stream, error)
                continue
            if step is not None and self._live[stream].over:
                step = step._replace(place=self._go_on(stream, step.place))
            if step is not None:
                return step
        return None

    def behind(self, lsn: int) -> None:
        """Every commit below `lsn` has come through `passing`."""
        self._reached = max(self._reached, lsn)
        for load in self._live.values():
            load.behind(lsn)
        for lost in self._lost.values():
            lost.behind(lsn)

    def told(self, place: Place) -> Place:
        """The place behind what has come through `passing`, with what a restart must know of rows that are lost."""
        doubt = max((lost.doubt for lost in self._lost.values()), default=0)
        doubt = doubt if doubt > place.lsn else 0
        lost = {stream: words for stream, keys in self._lost.items() if (words := keys.written(place.lsn))}
        same = doubt == place.doubt and lost == place.lost
        place = place if same else dataclasses.replace(place, doubt=doubt, lost=lost)
        for stream in self._away:
            place = place.with_load(stream, dataclasses.replace(place.loads[stream], token=AWAY))
        for stream, load in self._live.items():
            if (progress := load.told(place.loads[stream])) is not place.loads[stream]:
                place = place.with_load(stream, progress)
        return place

    @staticmethod
    def doubtful(place: Place) -> Place:
        """Behind changes that are yet to come through `passing`."""
        return dataclasses.replace(place, doubt=EVER)

    def passing(self, changes: Sequence[Changes], place: Place) -> list[Changes]:
        """Live changes as they are to go on: without what loads have read already, with what they lack."""
        return [part for found in changes for part in self._passed(found, place)]

    def _passed(self, changes: Changes, place: Place) -> list[Changes]:
        streams = [capture.stream for capture in self._by_table.get(changes.table, ())]
        if not is_partial(changes.data) and not any(self._concerns(stream) for stream in streams):
            return [changes]
        found = {stream: self._changed(self._captures[stream], changes.data, place) for stream in streams}
        if all(data is changes.data for data in found.values()):
            return [changes]
        return [Changes(changes.table, data, stream=stream) for stream, data in found.items() if len(data)]

    def _concerns(self, stream: str) -> bool:
        return stream in self._live or bool(self._lost[stream]) or stream in self._exchanging

    def _changed(self, capture: Capture, data: pa.RecordBatch, place: Place) -> pa.RecordBatch:
        if capture.stream in self._exchanging:
            data = settled(data, capture.key)
        if capture.stream in self._live:
            data = self._live[capture.stream].trimmed(data)
        if not capture.key or not len(data):
            return data
        lost, homes = self._lost[capture.stream], self._homes(capture.stream, place)
        try:
            if lost or is_partial(data):
                shape = self._live_shape(capture, data.schema.field("after").type)
                data = completed(data, shape, capture.whole, homes, lost, self._reread)
        except SourceError as error:
            self._break(capture.stream, error)
            self._away.add(capture.stream)
            return data.slice(0, 0)
        if homes.told is not None:
            homes.told.learn(data, capture.key)
        return data

    def _homes(self, stream: str, place: Place) -> Homes:
        load = self._live.get(stream)
        return Homes(False) if load is None else load.homes(place.loads[stream])

    def leave(self, stream: str, error: SourceError) -> None:
        """Read nothing more for a stream."""
        self._break(stream, error)

    def _break(self, stream: str, error: SourceError) -> None:
        self.broken[stream] = error
        if stream in self._live:
            self._live.pop(stream).close()

    # tables as they are now

    def _subject(self, capture: Capture) -> Subject:
        return Subject(capture, self._connector, lambda: self._shape_of(capture), self._directory)

    def _shape_of(self, capture: Capture, names: Sequence[str] | None = None) -> Shape:
        columns = capture.columns if names is None else names
        return shape_of(self._sql, capture.table, columns, capture.key, self._types, self._texts)

    def _live_shape(self, capture: Capture, row: pa.StructType) -> Shape:
        """Of the columns that live changes have; looked up again when those are others."""
        known = self._shapes.get(capture.stream)
        if known is None or known[0] != row:
            known = self._shapes[capture.stream] = row, self._shape_of(capture, [field.name for field in row])
        return known[1]

    @property
    def _sql(self) -> psycopg.Connection:
        if self._catalog is None:
            self._catalog = self._connector.sql()
        return self._catalog
