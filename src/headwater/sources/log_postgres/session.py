"""One `read`: from where the position stands through the loads into the log, batch by batch."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import execute, literal
from headwater.errors import SourceError
from headwater.faults import failpoint
from headwater.model import Batch, Changes, Note, Position, StoredChanges
from headwater.protocols import Capture
from headwater.sources.log_postgres import slot
from headwater.sources.log_postgres.begin import AWAY, Setting, Stopping, begin, fence, mark, passed, patient
from headwater.sources.log_postgres.changes import Shaper, TextNeeded
from headwater.sources.log_postgres.exchange import Watch
from headwater.sources.log_postgres.identities import Identities
from headwater.sources.log_postgres.load import Loads
from headwater.sources.log_postgres.log import Log
from headwater.sources.log_postgres.names import MESSAGES
from headwater.sources.log_postgres.position import DONE, NOT_YET, Late, Place, lsn_of, place_of
from headwater.sources.log_postgres.rows import Connector
from headwater.sources.log_postgres.spool import SpooledChanges
from headwater.sources.log_postgres.streamed import Streamed
from headwater.sources.log_postgres.targets import targets_of
from headwater.sources.log_postgres.units import Stored, Whole
from headwater.wire.pgoutput import Relation

logger = logging.getLogger("headwater")

BINARY = 140000
"""The first server that sends binary values (`server_version_num`)."""

QUIET = 1.0
"""Seconds that are waited for the log before looking around."""

TICK = 0.02
"""Likewise, while a load waits for the log to pass a place."""


class Session:
    """`place`: behind the batch given last."""

    def __init__(
        self, setting: Setting, captures: Mapping[str, Capture], after: Position | None, epoch: int, stopping: Stopping
    ) -> None:
        self._setting = setting
        self._stopping = stopping
        self._begun = begun = begin(setting, captures, after, epoch, stopping)
        self._log: Log | None = None
        self._target: int | None = None
        self._given: tuple[Position | None, Place | None] = (None, None)
        self.broken = begun.arranged.broken
        """See `protocols.Source`; loads add to it."""
        self._streamed = Streamed()
        self._notes = begun.notes
        try:
            self._types = PgTypes.load(begun.sql)
            connector = Connector(setting.url, setting.names.application)
            tables, captures = begun.arranged.tables, begun.captures
            self._exchanging = {
                stream: capture
                for stream, capture in captures.items()
                if capture.kind == "fact" and capture.key and tables[capture.table].exchanges(capture.key)
            }
            self._loads = Loads(
                connector,
                begun.captures,
                self._types,
                begun.place.epoch,
                directory=setting.directory,
                texts=setting.options.as_text,
                exchanging=self._exchanging,
                stopped=stopping.wait,
                broken=self.broken,
            )
            self.place = self._loads.begin(begun.place, fresh=begun.snapshot is not None)
            self._tables = targets_of(begun.captures.values(), begun.arranged.tables, setting.options.as_text)
            self._watch = begun.watch
            self._identities = Identities(self._tables)
            self._identities.owners |= self._watch.parts
            self._reached = 0
            self._mended: int | None = None
            """When the log has come there, tables that could not be told can be compared."""
            self._compared = self._comparisons_from()
            self._fence = 0
            self._later: int | None = None
            self._advanced = self._moved = time.monotonic()
        except BaseException:
            begun.close()
            raise

    def wake(self) -> None:
        """From any thread."""
        if self._log is not None:
            self._log.stream.wake()

    def confirm(self, position: Position) -> None:
        given, place = self._given
        known = place if place is not None and position is given else place_of(position, self._setting.name)
        if self._log is not None:
            self._log.stream.confirm(known.lsn)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        self._loads.close()
        self._begun.close()

    def batches(self, follow: bool) -> Iterator[Batch]:
        """The first makes durable that there is a slot and what begins; what is not, is done anew (F20)."""
        yield self._batch((), self.place)
        failpoint("log.begun")
        if self.broken and not self._begun.captures:  # that they are owed a comparison is durable now
            raise next(iter(self.broken.values()))
        if self._begun.snapshot is not None:
            for changes, place, notes in self._loads.initial(self.place, self._begun.snapshot):
                yield self._batch(changes, place, notes)
                if self._stopping:
                    return
        self._target = None if follow else mark(self._begun.sql)
        binary = self._binary_fits()
        while self._goes_on:
            if self._log is not None:
                self._reconnect()
            try:
                yield from self._live(binary=binary)
            except TextNeeded:
                binary = False
        if self.begins_anew and self._notes:
            yield self._batch((), self.place)

    @property
    def begins_anew(self) -> bool:
        """Whether this has ended because something is to be compared, which the next session does."""
        mended = self._mended is not None and self._reached >= self._mended
        return (self._watch.altered or mended) and not self._stopping

    @property
    def _goes_on(self) -> bool:
        return not self._stopping and not self._at_target() and not self.begins_anew

    # the log

    def _live(self, *, binary: bool) -> Iterator[Batch]:
        """Until it is time to end, or until another publication can be read."""
        self._shaper = Shaper(
            self._tables,
            self._types,
            self.place.epoch,
            binary=binary,
            identities=self._identities,
            learn=lambda: self._types.learn(self._begun.sql),
        )
        since = self.place.publications
        publications = tuple(name for name in since if since[name] <= self.place.lsn)
        self._later = min((lsn for lsn in since.values() if self.place.lsn < lsn < NOT_YET), default=None)
        log = self._log = Log(self._begun.replication, self._setting, self.place, publications, self._shaper)
        self._fence = self._fence_now()
        while self._goes_on and (self._later is None or self.place.lsn < self._later):
            unit = log.next(self._patience())
            if isinstance(unit, Whole):
                yield from self._whole(log, unit)
            elif unit is not None:
                yield from self._stored(log, unit)
            else:
                yield from self._idle(log)
            if self._watch.due():
                self._look()
            yield from self._load()

    def _at_target(self) -> bool:
        return self._target is not None and self.place.lsn >= self._target and not self._loading

    def _whole(self, log: Log, unit: Whole) -> Iterator[Batch]:
        found: list[Changes] = []
        place, before = self.place, self.place.commit
        for segment in log.segments(unit):
            transactions = segment.transactions
            place = self._without_untold(place)
            keep = log.counted(transactions, before)
            for relation, changes in self._shaper.changes(segment, keep):
                place = self._noticed(relation, place)
                found.append(changes)
            self._streamed.add(transactions.xid)
            if len(transactions):
                place = place.moved(int(transactions.end_lsn[-1]))
        if place is not self.place and place != self.place:
            found = self._loads.passing(found, place)
            yield self._batch(tuple(found), self._loads.told(place), nbytes=len(unit.frames.data))
            self._loads.behind(place.lsn)

    def _stored(self, log: Log, unit: Stored) -> Iterator[Batch]:
        transaction = unit.transaction
        try:
            if log.counts(unit, self.place.commit):
                place = self.place.moved(transaction.end_lsn)
                watch = Watch(self._setting.name, self._exchanging.values())
                changes = log.stored(unit, lambda found: self._loads.passing(watch.seen(found), place))
                for relation in log.relations(unit):
                    place = self._noticed(relation, place)
                place = self._without_untold(place)
                self._streamed.add(np.array([transaction.xid], np.uint32))
                place = self._with_sights(place)
                behind = _Behind(changes, place, self._loads)
                yield self._batch(changes, place, nbytes=unit.spool.nbytes, position=Late(behind))
                self._loads.behind(place.lsn)
                self.place = behind()
        finally:
            unit.spool.close()
        log.learn(unit)

    def _noticed(self, relation: Relation, place: Place) -> Place:
        """Keep what the log says of a table's columns; a difference is noted for its streams (F52)."""
        target = self._shaper.target(relation)
        types = self._shaper.types_of(relation)
        if target is None or (known := place.columns.get(str(target.id))) == types:
            return place
        if known is not None:
            text = f"table {target.id}: {_difference(known, types)}"
            streams = [c.stream for c in self._begun.captures.values() if c.table == target.id]
            self._notes += [Note(stream, "schema", text) for stream in streams]
        return place.with_columns(target.id, types)

    def _without_untold(self, place: Place) -> Place:
        """Streams whose changes cannot be trusted from here on end, and are owed a comparison (F33)."""
        if self._identities.strange:
            self._look()
            self._identities.settle()
        for oid, reason in self._identities.untold.items():
            table = self._tables[oid].id
            for capture in self._begun.captures.values():
                if capture.table == table and capture.stream not in self.broken:
                    place = self._ended(capture.stream, reason, place)
        return place

    def _ended(self, stream: str, reason: str, place: Place) -> Place:
        hint = "its rows are compared with the stream as soon as the log says enough of them again"
        self._loads.leave(stream, SourceError(f"stream {stream}: {reason}", hint=hint))
        self._notes.append(Note(stream, "gap", f"{reason}; its rows are compared when it does again"))
        return place.with_load(stream, dataclasses.replace(place.loads[stream], token=AWAY))

    def _look(self) -> None:
        """Only every few seconds, or when the log tells of a partition that nobody knows."""
        self._watch.look()
        self._identities.owners |= self._watch.parts
        tables = [self._tables[oid].id for oid in self._identities.untold]
        if self._mended is None and tables and all(map(self._watch.is_mended, tables)):
            self._mended = mark(self._begun.sql)

    def _comparisons_from(self) -> int:
        """Rows are compared when the log has told everything up to now: what it tells of rows that went in a way that
        it does not tell of would bring them back.
        """
        states = [self.place.loads[stream].state for stream in self._begun.captures if stream not in self.broken]
        return mark(self._begun.sql) if self._begun.snapshot is None and "reading" in states else 0

    def _idle(self, log: Log) -> Iterator[Batch]:
        """Nothing of ours happens: let the server forget what others have written (F8)."""
        now = time.monotonic()
        reached = log.reached
        self._reached = max(self._reached, reached)
        self._loads.behind(reached)
        if log.pressed:
            log.stream.answer()
            due = True
        else:
            awaited = [lsn for lsn in (self._target, self._later) if lsn is not None]
            at_end = bool(awaited) and reached >= min(awaited)
            due = at_end or now - self._advanced >= self._setting.options.idle_advance
        if reached > self.place.lsn and due:
            yield self._batch((), self._loads.told(self.place.moved(reached)))
        elif self._notes:
            yield self._batch((), self.place)
        if self._in_haste:
            log.stream.ask()
        self._beat(now)

    def _patience(self) -> float:
        """How long the log is waited for."""
        if self._in_haste:
            return TICK
        if self._loading or self._unread:
            return 0.0 if self._behind_fence() else TICK
        return min(QUIET, self._setting.options.idle_advance or QUIET)

    @property
    def _in_haste(self) -> bool:
        """Whether something waits for the log to come to a place."""
        awaited = self._reached < max(self._compared, self._mended or 0)
        return awaited or self._loads.wants_tick or self._target is not None or self._later is not None

    def _reconnect(self) -> None:
        if self._log is not None:
            self._log.close()
        slot.check_free(self._begun.sql, self._setting.names.slot, self._stopping.wait)
        self._begun.replication = patient(self._setting, replication=True)

    def _beat(self, now: float) -> None:
        """If this database's log is silent while the server's grows, and no keepalive tells so, a message does."""
        every = self._setting.options.heartbeat
        if not every or now - self._moved < every:
            return
        self._moved = now
        sql = "SELECT pg_catalog.pg_current_wal_flush_lsn()::text"
        ((lsn,),) = execute(self._begun.sql, sql)
        if lsn_of(lsn) > self.place.lsn:
            content = literal(self._setting.names.pipeline)
            try:
                execute(
                    self._begun.sql, f"SELECT pg_catalog.pg_logical_emit_message(false, {literal(MESSAGES)}, {content})"
                )
            except SourceError as error:
                logger.warning("no heartbeat: %s", error.message, extra={"action": "heartbeat_refused"})

    # loads

    @property
    def _loading(self) -> bool:
        """Whether a stream's rows are still to be read beside the log."""
        loads = self.place.loads
        streams = [stream for stream in self._begun.captures if stream not in self.broken]
        return any(stream in loads and loads[stream].state != DONE for stream in streams)

    @property
    def _unread(self) -> bool:
        """Whether a publication waits for those who do not know it."""
        return NOT_YET in self.place.publications.values()

    def _load(self) -> Iterator[Batch]:
        if not (self._loading or self._unread) or self._later is not None or not self._behind_fence():
            return
        if self._unread:
            self._later = since = mark(self._begun.sql)
            publications = {name: min(lsn, since) for name, lsn in self.place.publications.items()}
            self.place = dataclasses.replace(self.place, publications=publications)
            return
        if self._reached < self._compared:
            return
        stepped = self._loads.step(self.place, self._streamed)
        if stepped is not None:
            changes, place, notes = stepped
            yield self._batch(changes, place, notes)
        self._streamed.watch(self._loading)

    def _fence_now(self) -> int:
        """A transaction that wrote before its table was published may end after: its rows come with none of the
        changes. So nothing is read beside the log before the log is read by every publication, and all transactions
        have ended that ran then. Nor is it read by a publication that some of them may not know.
        """
        waits = self._unread or (self._loading and self._begun.snapshot is None)
        return fence(self._begun.sql) if waits and self._later is None else 0

    def _behind_fence(self) -> bool:
        if self._fence and passed(self._begun.sql, self._fence):
            self._fence = 0
        return not self._fence

    def _binary_fits(self) -> bool:
        """A session is binary if every captured column can be."""
        begun, options = self._begun, self._setting.options
        if options.binary == "off" or begun.version < BINARY:
            return False
        return all(
            name not in target.as_text and self._types.kind(*begun.arranged.tables[target.id].columns[name]).wire
            for target in self._tables.values()
            for name in target.columns
        )

    def _with_sights(self, place: Place) -> Place:
        seen = self._watch.sights
        return place if place.seen is seen else dataclasses.replace(place, seen=seen)

    def _batch(
        self,
        changes: Sequence[Changes] | StoredChanges,
        place: Place,
        notes: Sequence[Note] = (),
        *,
        nbytes: int = 0,
        position: Position | None = None,
    ) -> Batch:
        if isinstance(changes, Sequence):
            changes = tuple(changes)
            nbytes = nbytes or sum(part.data.nbytes for part in changes)
        given, self._notes = (*self._notes, *notes), []
        place = self._with_sights(place)
        position = position or place.position()
        self._reached = max(self._reached, place.lsn)
        if place.lsn > self.place.lsn:
            self._moved = self._advanced = time.monotonic()
        self.place = place
        self._given = position, place
        return Batch(changes, position, nbytes, given)


class _Behind:
    """The place behind a stored transaction: rows are in doubt until its changes have been read to their end."""

    def __init__(self, changes: SpooledChanges, place: Place, loads: Loads) -> None:
        self._changes = changes
        self._place = place
        self._loads = loads
        self._told: Place | None = None

    def __call__(self) -> Place:
        if self._told is None and self._changes.complete:
            self._told = self._loads.told(self._place)
        return self._told or self._loads.doubtful(self._place)


def _difference(known: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The change of a table's columns in words."""
    gone = [f"`{name}` ({kind}) is gone" for name, kind in known.items() if name not in now]
    new = [f"`{name}` ({kind}) is new" for name, kind in now.items() if name not in known]
    both = [name for name in known if name in now and known[name] != now[name]]
    other = [f"`{name}` was {known[name]} and is {now[name]}" for name in both]
    return ", ".join([*gone, *new, *other]) or "its columns have another order"
