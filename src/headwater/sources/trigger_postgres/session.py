"""One `read`: its connections, and how far it has come."""

from __future__ import annotations

import dataclasses
import json
import threading
from contextlib import suppress

from headwater.drivers.postgres import execute
from headwater.errors import Busy, HeadwaterError
from headwater.faults import failpoint
from headwater.model import Batch, Changes, Note, Order, Position, Reload, utc_now
from headwater.protocols import Capture
from headwater.sources.settling import DONE, LOADING, READING
from headwater.sources.trigger_postgres import begin
from headwater.sources.trigger_postgres.connecting import REPEATABLE, Connector, RowReader, transaction
from headwater.sources.trigger_postgres.install import PATIENCE, put
from headwater.sources.trigger_postgres.load import Loader, ReadingRun
from headwater.sources.trigger_postgres.look import Seen, look, rest_of
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.pace import Pace
from headwater.sources.trigger_postgres.pages import page_of
from headwater.sources.trigger_postgres.position import Place, StreamLoad, place_of
from headwater.sources.trigger_postgres.prune import Pruner
from headwater.sources.trigger_postgres.tables import Tables
from headwater.sources.trigger_postgres.wake import Wake


class Session:
    """Made for each `read`."""

    place: Place

    def __init__(self, names: Names, captures: dict[str, Capture], connector: Connector, texts: frozenset[str]) -> None:
        self._names = names
        self._captures = captures
        self._connector = connector
        self._queue: list[Seen] = []
        self._looked = False
        self._reading: ReadingRun | None = None
        self._notes: list[Note] = []
        self._given: tuple[Position | None, Place | None] = (None, None)
        self._confirmed: Place | None = None
        self._rows_pace, self._pages_pace = Pace(2_000, 50_000), Pace(64, 8_192)
        self._checked = utc_now()
        self._wake = Wake()
        self._pruner = Pruner(connector, names)
        self._sql = connector.sql()
        self.tables = Tables(self._sql, names, captures, texts)
        try:
            self._rows = connector.rows()
        except BaseException:
            self._sql.close()
            raise

    def close(self) -> None:
        """Say, if it is so, that everything is in the bus; see `state`."""
        if self._all_confirmed():
            with suppress(HeadwaterError):
                self._record(self.place)
        if self._reading is not None:
            self._reading.close()
        self._pruner.close()
        self._rows.close()
        self._sql.close()

    def _all_confirmed(self) -> bool:
        """Looks that showed nothing have moved the snapshot, and no more, since the last batch."""
        if self._confirmed is None or not self.finished:
            return False
        return dataclasses.replace(self._confirmed, snapshot=self.place.snapshot) == self.place

    def begin(self, after: Position | None, epoch: int) -> Batch:
        """Make or check the triggers, and settle where each stream stands. The first batch makes that durable."""
        self.tables.arrange(PATIENCE)
        if self.tables.broken and len(self.tables.broken) == len(self._captures):
            raise next(iter(self.tables.broken.values()))
        self._record(None)
        ((kept,),) = execute(self._sql, "SELECT pg_catalog.current_setting('track_commit_timestamp')")
        self._time = "c.at" if kept != "on" else "coalesce(pg_catalog.pg_xact_commit_timestamp(c.xid::xid), c.at)"
        known = place_of(after) if after is not None else None
        self.place, notes = begin.resume(self._sql, self._names, self.tables.arrangement, known, epoch)
        self._notes += notes
        self._settle(gap=known is not None and known.identity != self.place.identity, restart=True)
        return self._batch(())

    def confirm(self, position: Position) -> None:
        """Changes that are in the bus may go."""
        given, place = self._given
        place = place if place is not None and position is given else place_of(position)
        loading = [load.table for load in place.loads.values() if load.state == LOADING]
        shapes = self.tables.arrangement.shapes.values()
        kept = [n for shape in shapes if str(shape.id) in loading for n in self.tables.layouts(shape.oid)]
        self._pruner.allow(place.snapshot, place.commit, tuple(kept))
        self._confirmed = place

    def idle(self, stopping: threading.Event) -> None:
        """Nothing has changed: tidy up, or sleep."""
        if not self._pruner.step(idle=True):
            self._wake.wait(stopping)

    def end(self) -> None:
        """A run that ends has no idle moment but this one; and it must say what was not captured."""
        self._pruner.finish()
        if self.tables.broken:
            raise next(iter(self.tables.broken.values()))

    @property
    def finished(self) -> bool:
        """Whether everything was read that had committed when `read` was called."""
        return self._looked and not self._queue and self._loading() is None

    # steps

    def step(self) -> Batch | None:
        """A page of what a look shows beyond the last, or a chunk of a load, or a part of a reading."""
        if self.tables.altered():
            self._rearrange()
        self._pruner.step(idle=False)
        if self._queue:
            return self._from_queue()
        if self.place.step is not None:
            self._queue = [rest_of(self._sql, self._names, self.place, self.place.step)]
        elif self._reading is None and (stream := self._loading()) is not None:
            return self._load_step(stream)
        else:
            self._look()
        return self._from_queue()

    def _look(self) -> None:
        self._queue = look(self._sql, self._names, self.place)
        self._looked = True

    def _from_queue(self) -> Batch | None:
        while self._queue:
            seen = self._queue.pop(0)
            found = self._page(seen)
            if found or seen.mark:
                return self._batch(tuple(found))
        if self._reading is not None:
            return self._reading_part(self._reading)
        return self._batch(()) if self._notes else None

    def _page(self, seen: Seen) -> list[Changes]:
        """Read the next page of a step, and move on by it.

        Who waits for the number of a mark waits for the whole step: the pages before the last have the number below,
        which is nobody's (`state` draws two).
        """
        page, rest = page_of(self._rows, self._names, seen, self._rows_pace.size, self._time)
        commit = seen.commit - 1 if seen.mark and rest is not None else seen.commit
        found: list[Changes] = []
        missed: set[int] = set()
        if page is not None:
            self._wake.stir()
            found, missed = self.tables.decode(self._rows, page, (self.place.epoch, commit))
            self._rows_pace.learn(found, len(page.rows))
        if rest is None:
            self.place = dataclasses.replace(self.place, commit=commit, snapshot=seen.upto, step=None)
        else:
            self._queue.insert(0, rest)
            self.place = dataclasses.replace(self.place, commit=commit, step=rest.rest)
        if missed:
            self.tables.repair(missed)  # durable before the position goes on
            self._rearrange()
        failpoint("trigger.page")
        return found

    def _batch(self, found: tuple[Changes, ...]) -> Batch:
        notes = (*self._notes, *self.tables.notes)
        self._notes, self.tables.notes = [], []
        position = self.place.position()
        self._given = position, self.place
        return Batch(found, position, sum(c.data.nbytes for c in found), notes)

    def _record(self, place: Place | None) -> None:
        """How far the bus has come for certain; nothing while that moves."""
        known = None if place is None else {"commit": place.commit, "snapshot": str(place.snapshot)}
        put(self._sql, self._names, "settled", json.dumps(known))

    def _rearrange(self) -> None:
        """Something was altered: see whether the triggers are whole, and mend them when nobody is in the way."""
        with suppress(Busy):  # it is seen again at the next check
            self.tables.arrange(0.0)
            self._settle(gap=False)
            self._checked = utc_now()

    def _settle(self, *, gap: bool, restart: bool = False) -> None:
        """Begin the loads and readings that this start, or what happened to the triggers, asks for."""
        arrangement, checked = self.tables.arrangement, self._checked
        settler = begin.Settler(arrangement, self.place, self._rows, gap=gap, restart=restart, checked=checked)
        for capture in self._captures.values():
            settler.settle(capture, self.tables.broken)
        self.place = dataclasses.replace(self.place, loads=settler.loads)
        self._notes += settler.notes

    # loads and readings

    def _loading(self) -> str | None:
        """The stream whose rows are read next: the first that is not done and not broken."""
        for stream, progress in self.place.loads.items():
            if progress.state != DONE and stream not in self.tables.broken:
                return stream
        return None

    def _load_step(self, stream: str) -> Batch | None:
        """A look, and behind what it shows, in the same snapshot, a chunk of a load or the beginning of a reading."""
        reading = self.place.loads[stream].state == READING
        reader = self._connector.rows() if reading else self._rows
        number = self._pinned(reader)
        if number is None:
            if reading:
                reader.close()
            return self._from_queue()
        (seen,), self._queue = self._queue, []
        found = self._page(seen)
        if self._queue or stream not in self.place.loads or self._loading() != stream:
            reader.close() if reading else reader.end()
            return self._batch(tuple(found))
        self.place = dataclasses.replace(self.place, commit=number)
        order = Order(self.place.epoch, number)
        if not reading:
            found += self._chunk(stream, order)
            reader.end()
            return self._batch(tuple(found))
        capture = self._captures[stream]
        reload = Reload(self.place.loads[stream].reload)
        self._reading = ReadingRun(reader, capture, self.tables.target(capture), reload, order)
        return self._batch(tuple(found))

    def _pinned(self, reader: RowReader) -> int | None:
        """Look, and have `reader` see the same; a number for its rows. None: the look shows much, which comes first."""
        with transaction(self._sql, REPEATABLE):
            execute(self._sql, f"LOCK TABLE {self._names.mark} IN ACCESS SHARE MODE")
            self._look()
            if len(self._queue) > 1 or self._queue[0].rows > self._rows_pace.size:
                return None
            sql = f"SELECT pg_catalog.nextval({self._names.sequence}), pg_catalog.pg_export_snapshot()"
            ((number, snapshot),) = execute(self._sql, sql)
            reader.begin(snapshot)
        return int(number)

    def _chunk(self, stream: str, order: Order) -> tuple[Changes, ...]:
        capture, progress = self._captures[stream], self.place.loads[stream]
        target = self.tables.target(capture)
        loader = Loader(self._rows, self._names, self.tables.layouts(target.shape.oid))
        asked = self._pages_pace.size
        chunk = loader.chunk(capture, target, progress, asked, order)
        self._pages_pace.learn(chunk.changes, asked)
        if chunk.read_twice:
            text = f"table {capture.table} was rewritten during the load: rows of it are read twice"
            self._notes.append(Note(stream, "gap", text))
        self._made(stream, chunk.progress)
        return chunk.changes

    def _reading_part(self, reading: ReadingRun) -> Batch:
        part, last = reading.part()
        progress = self.place.loads[reading.stream]
        if last:
            self._reading = None
            reading.close()
            self._made(reading.stream, reading.done(progress))
            self._settle(gap=False)  # triggers may have been lost while the reading was under way
        return self._batch((part,))

    def _made(self, stream: str, progress: StreamLoad) -> None:
        self.place = self.place.with_load(stream, progress)
        if progress.state == DONE:
            text = f"{progress.count} rows of {self._captures[stream].table} were read"
            self._notes.append(Note(stream, "loaded", text))
            self.place = self.place.with_load(stream, dataclasses.replace(progress, count=0))
