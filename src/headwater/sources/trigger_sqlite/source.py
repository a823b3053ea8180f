"""The trigger pattern as a `Source`: one instance for all captured tables of one SQLite database.

One idea: **a batch is what one read snapshot shows beyond the last.** Within a read transaction no other commit becomes
visible, so a snapshot holds whole transactions. A large backlog is read in pages, each its own batch; a page may end
inside a transaction, whose rest follows in the next one: each change has an id of its own, and the position is the last
id, so nothing depends on where a page ends. Loads go on between the changes, one chunk a batch, in the same snapshot.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from headwater.drivers.sqlite import Connection, quoted
from headwater.errors import Busy, SourceError
from headwater.faults import failpoint
from headwater.model import Batch, Changes, Note, Position, SourceState, TableId, utc_now
from headwater.protocols import Capture
from headwater.sources.settling import DONE
from headwater.sources.trigger_sqlite import begin, changes
from headwater.sources.trigger_sqlite.changes import Statement, Target
from headwater.sources.trigger_sqlite.install import arrange
from headwater.sources.trigger_sqlite.load import Loader
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.pace import Pace
from headwater.sources.trigger_sqlite.position import Place, StreamLoad, anchor_of, place_of
from headwater.sources.trigger_sqlite.prune import PATIENCE, QUIET_AT_END, Pruner, prepare
from headwater.sources.trigger_sqlite.state import Opener, state_of
from headwater.sources.trigger_sqlite.wake import Wake

GIVE_WAY_MS = 50
"""How long mending waits for a writer to end; it is tried again at the next wake-up."""


class TriggerSource:
    """See `protocols.Source`. `broken`: the streams that cannot be captured for now, and why; the others go on."""

    def __init__(self, name: str, names: Names, captures: Sequence[Capture], epoch: int, opener: Opener) -> None:
        self.name = name
        self.broken: dict[str, SourceError] = {}
        self._names = names
        self._captures = {capture.stream: capture for capture in captures}
        self._epoch = max(1, epoch)
        self._open = opener
        self._stopping = threading.Event()
        self._session: _Session | None = None

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        """See `protocols.Source`."""
        self._close_session()
        session = self._session = _Session(self._names, self._captures, self._open)
        self.broken = session.broken
        first = session.begin(after, self._epoch)
        self._epoch = session.place.epoch
        yield first
        try:
            yield from self._going_on(session, follow)
        except SourceError:
            session.wake.file.check()  # what looks like damage may be another file
            raise

    def _going_on(self, session: _Session, follow: bool) -> Iterator[Batch]:
        target = session.newest()
        while not self._stopping.is_set():
            batch = session.step()
            if batch is not None:
                if len(batch):
                    session.wake.stir()
                yield batch
            elif follow:
                self._idle(session)
            if not follow and session.finished(target):
                break
        if not follow:
            session.prune_at_end(self._stopping)
            session.refuse_broken()

    def _idle(self, session: _Session) -> None:
        while not self._stopping.is_set() and not session.wake.wait(self._stopping):
            if session.stale and session.wake.quiet > 0.02:
                return
            if session.pruner.due and session.pruner.step(session.wake.quiet):
                session.wake.disregard()
                return

    def confirm(self, position: Position) -> None:
        """Changes are deleted later, by `read`, when nobody is writing; see `prune`."""
        failpoint("trigger.confirm")
        if self._session is not None:
            self._session.pruner.allow(begin.floor(self._session.place_at(position)))

    def state(self, stream: str) -> SourceState:
        """See `protocols.Source`. The snapshot is held until the changes are read to their end, or closed."""
        return state_of(self._names, self._captures[stream], self._open, self._epoch)

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        self._close_session()

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class _Session:
    """One `read`: its connection, its arrangement, and how far it has come."""

    def __init__(self, names: Names, captures: dict[str, Capture], opener: Opener) -> None:
        self._names = names
        self._captures = captures
        self._dialect = opener()
        self.broken: dict[str, SourceError] = {}
        self._notes: list[Note] = []
        self._given: tuple[Position | None, Place | None] = (None, None)
        self._checked = utc_now()
        self._pages, self._chunks = Pace(), Pace()
        self.stale = False
        self.pruner = Pruner(self._pruning, names)
        try:
            self._connection = self._dialect.connect(readonly=False)
        except BaseException:
            self._dialect.close()
            raise
        ((self._busy_timeout_ms,),) = self._connection.execute("PRAGMA busy_timeout")
        self._targets: dict[str, Target] = {}
        self._statements: dict[int, Statement] = {}

    def _pruning(self) -> Connection:
        return prepare(Connection(self._connection.path, busy_timeout=0.0))

    def close(self) -> None:
        self.pruner.close()
        self._connection.close()
        self._dialect.close()

    def begin(self, after: Position | None, epoch: int) -> Batch:
        """Make or check the triggers, and settle where each stream stands. The first batch makes that durable."""
        self._arrange()
        if self.broken and len(self.broken) == len(self._captures):
            raise next(iter(self.broken.values()))
        self.wake = Wake(self._connection)
        known = place_of(after) if after is not None else None
        self.place, notes = begin.resume(self._connection, self._names, self._arrangement, known, epoch)
        self._notes += notes
        self._settle(gap=bool(notes), restart=True)
        return self._batch(())

    def newest(self) -> int:
        ((top,),) = self._connection.execute(f"SELECT max(id) FROM {quoted(self._names.change)}")
        return int(top or 0)

    def finished(self, target: int) -> bool:
        return self.place.id >= target and self._loading() is None

    def prune_at_end(self, stopping: threading.Event) -> None:
        """A run that ends has no idle moment for pruning but this one."""
        deadline = time.monotonic() + PATIENCE
        while self.pruner.due and time.monotonic() < deadline and not stopping.is_set():
            self.wake.wait(stopping)
            if self.pruner.step(self.wake.quiet, least=QUIET_AT_END):
                self.wake.disregard()
                deadline = time.monotonic() + PATIENCE

    def refuse_broken(self) -> None:
        """At the end of a run it must be said what was not captured."""
        if self.broken:
            raise next(iter(self.broken.values()))

    # one step

    def step(self) -> Batch | None:
        """What one snapshot shows beyond the last: a page of changes, and if they end there a chunk of a load."""
        with self._connection.transaction():
            current = self._connection.schema_version() == self._arrangement.schema_version
            top = self.newest()
            self._check_not_lost(top)
            place = self._moved(min(top, self.place.id + self._pages.rows))
            found = self._live(place.id)
            stream = self._loading() if current and place.id == top else None
            if stream is not None:
                rows, place = self._chunk(stream, place)
                found += rows
        moved, self.place = place is not self.place, place
        if not current:
            self._rearrange()
        elif stream is not None and place.loads[stream].state == DONE:
            self._settle(gap=False)  # triggers may have been lost while the reading was under way
        return self._batch(tuple(found)) if moved or self._notes else None

    def _moved(self, high: int) -> Place:
        if high == self.place.id:
            return self.place
        return dataclasses.replace(self.place, id=high, anchor=anchor_of(self._connection, self._names, high))

    def _check_not_lost(self, top: int) -> None:
        if top < self.place.id:
            raise SourceError(
                f"the change table {self._names.change} lost changes while it was read",
                hint="the next start compares every stream with its table",
            )

    def _batch(self, found: tuple[Changes, ...]) -> Batch:
        notes, self._notes = tuple(self._notes), []
        position = self.place.position()
        self._given = position, self.place
        return Batch(found, position, sum(c.data.nbytes for c in found), notes)

    def place_at(self, position: Position) -> Place:
        """As a rule that of the batch given last."""
        given, place = self._given
        return place if place is not None and position is given else place_of(position)

    def _live(self, high: int) -> list[Changes]:
        found: list[Changes] = []
        low = self.place.id
        for number in changes.numbers_between(self._connection, self._names, low, high):
            target = self._targets.get(self._arrangement.layouts[number].table)
            if target is not None:
                pages = self._page(number, target).read(self._connection, {"low": low, "high": high})
                found += [changes.changes_of(page, target, self.place.epoch) for page in pages]
        self._pages.learn(found)
        return found

    def _page(self, number: int, target: Target) -> Statement:
        if number not in self._statements:
            layout = self._arrangement.layouts[number]
            self._statements[number] = changes.page_of(self._names, layout, target, self._dialect.times)
        return self._statements[number]

    # loads and readings

    def _loading(self) -> str | None:
        """The stream whose rows are read next: the first that is not done and not broken."""
        for stream, progress in self.place.loads.items():
            if progress.state != DONE and stream not in self.broken:
                return stream
        return None

    def _chunk(self, stream: str, place: Place) -> tuple[tuple[Changes, ...], Place]:
        capture = self._captures[stream]
        described = self._targets[capture.table.name]
        target = changes.target_of(described.table, capture.columns, described.shape)
        progress = self._still_valid(stream, place.loads[stream], target)
        layouts = tuple(self._arrangement.layouts.values())
        loader = Loader(self._connection, self._dialect.times, self._names, layouts)
        chunk = loader.chunk(capture, target, progress, self._chunks.rows, place.epoch)
        self._chunks.learn(chunk.changes)
        if chunk.last:
            count = progress.count + sum(map(len, chunk.changes))
            self._notes.append(Note(stream, "loaded", f"{count} rows of {capture.table} were read"))
        return chunk.changes, place.with_load(stream, chunk.progress)

    def _still_valid(self, stream: str, progress: StreamLoad, target: Target) -> StreamLoad:
        """VACUUM gives rows new rowids: a load that goes by them has to begin again."""
        version = self._arrangement.schema_version
        if progress.after is None or progress.schema == version or not target.shape.keyed_by_rowid:
            return progress
        text = f"table {target.table.id} has no primary key and was vacuumed during the load: rows are read twice"
        self._notes.append(Note(stream, "gap", text))
        return dataclasses.replace(progress, after=None, schema=version)

    # the schema

    def _arrange(self) -> None:
        wanted: dict[str, dict[str, frozenset[str]]] = {}
        for stream, capture in self._captures.items():
            wanted.setdefault(capture.table.name, {})[stream] = frozenset(capture.columns)
        self._arrangement = arrange(self._connection, self._names, wanted)
        broken = dict(self._arrangement.broken)
        self._targets, self._statements = {}, {}
        for table, shape in self._arrangement.shapes.items():
            kept = frozenset[str]().union(*(c for stream, c in wanted[table].items() if stream not in broken))
            try:
                described = self._dialect.table(TableId("", table))
            except SourceError as error:  # dropped since a moment ago: the schema version will say so once more
                broken |= dict.fromkeys(wanted[table], error)
                continue
            names = tuple(column.name for column in described.columns if column.name in kept)
            self._targets[table] = changes.target_of(described, names, shape)
        self._find_broken(broken)

    def _find_broken(self, found: Mapping[str, SourceError]) -> None:
        before = dict(self.broken)
        self.broken.clear()
        for stream, error in found.items():
            text = f"stream {stream}: {error.message}"
            self.broken[stream] = SourceError(text, hint=error.hint)
            if stream not in before or before[stream].message != text:
                self._notes.append(Note(stream, "schema", f"{text}; nothing of it is captured until that is mended"))

    def _rearrange(self) -> None:
        """Somebody altered the schema: see whether the triggers are whole, and mend them when nobody is in the way."""
        self.stale = True
        self._connection.execute(f"PRAGMA busy_timeout = {GIVE_WAY_MS}")
        try:
            self._arrange()
        except Busy:
            return
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
        self.stale = False
        self._settle(gap=False)
        self._checked = utc_now()

    def _settle(self, *, gap: bool, restart: bool = False) -> None:
        """Begin the loads and readings that this start, or what happened to the triggers, asks for."""
        settler = begin.Settler(self._arrangement, self.place, gap=gap, restart=restart, checked=self._checked)
        for capture in self._captures.values():
            settler.settle(capture, self.broken)
        if settler.needs_marker:
            settler.label(begin.marker(self._connection, self._names, self._arrangement))
        self.place = dataclasses.replace(self.place, loads=settler.loads)
        self._notes += settler.notes
