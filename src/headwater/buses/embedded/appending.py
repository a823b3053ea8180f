"""The appender: events, rejected and parked changes, notes and the position, in one atomic step.

A small append is one statement (`storing`), as long as it has only events and the streams are as they were left; else
one transaction of several. A large one first writes its segments to a file, a few at a time, and makes them
durable; the one transaction then holds only rows that name them (`files`). So memory stays bounded by `FILE_BYTES` and
a piece, whatever the size, and nothing large goes through SQLite's log.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from headwater.buses.embedded import files, segments, storing, streams, waiting
from headwater.buses.embedded.folding import Folder
from headwater.buses.embedded.segments import Encoded
from headwater.buses.embedded.store import Connection, Store
from headwater.buses.embedded.tail import Tail
from headwater.errors import BusError, BusFull
from headwater.faults import failpoint
from headwater.model import Mapped, Note, Position

FILE_BYTES = 512 * 1024
"""Appends of so many encoded bytes go to a file: one more wait for the disk, and each byte written once."""
PURGE = 64
"""Segments deleted in one transaction."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_bytes: int | None
    park_bytes: int


@dataclass(slots=True)
class _Tail:
    """Where a stream ends while an append is under way."""

    row: streams.Row
    next: int
    nbytes: int
    newest: bytes | None


@dataclass(frozen=True, slots=True)
class _Head:
    """Where a stream ended after an append of ours. Others may have dropped it since."""

    id: int
    next: int


@dataclass(slots=True)
class _Step:
    """One append under way. `doubtful`: from here on, a failure leaves open whether it was committed."""

    now: int
    total: int = 0
    tails: dict[str, _Tail] = field(default_factory=dict)
    waiting: list[tuple[str, Encoded]] = field(default_factory=list)
    waiting_bytes: int = 0
    nbytes: int = 0
    ready: list[storing.Ready] = field(default_factory=list)
    shapes: dict[bytes, int] = field(default_factory=dict)
    in_file: bool = False
    doubtful: bool = False


class Appender:
    """Used by any number of threads, one at a time."""

    def __init__(self, store: Store, limits: Limits, codec: str) -> None:
        self.lock = threading.RLock()
        self.fresh: Counter[int] = Counter()
        """Segments appended to each stream since merging last looked at it."""
        self._store = store
        self._limits = limits
        self._codec = codec
        self.tail = Tail()
        self._heads: dict[str, _Head] = {}
        self._shapes: dict[bytes, int] = {}
        """Digest -> number, of those that are stored for good."""
        self._places: dict[bytes, segments.Places] = {}
        """Digest -> places, of those that were looked at."""
        purge(store)
        with store.write() as connection:
            storing.prepare(connection, limits.max_bytes)
        self._folder = Folder(store)
        self.writer = files.writer(store)
        files.sweep(store, self.writer)

    def close(self) -> None:
        self._folder.close()
        self.writer.close()

    def append(self, mapped: Mapped, source: str, position: Position) -> None:
        with self.lock, self._step() as step:
            self._take(step, mapped)
            if not self._append_at_once(step, mapped, source, position):
                with self._store.write() as connection:
                    self._finish(connection, step, mapped, source)
                    failpoint("bus.append.before_position")
                    connection.execute(storing.MOVING, storing.placed(source, position))
                    failpoint("bus.append.before_commit")
                self._learn(step)
            self._folder.appended(0 if step.in_file else step.nbytes)
        failpoint("bus.append.after_commit")

    def settle(self, mapped: Mapped, parked: Sequence[int], rejected: Sequence[int]) -> None:
        with self.lock, self._step() as step:
            self._take(step, mapped)
            with self._store.write() as connection:
                self._finish(connection, step, mapped, None)
                failpoint("bus.settle.before_removal")
                waiting.remove(connection, parked, rejected)
                failpoint("bus.settle.before_commit")
        failpoint("bus.settle.after_commit")

    def _append_at_once(self, step: _Step, mapped: Mapped, source: str, position: Position) -> bool:
        """In one statement, by what is known of the streams. False: nothing was done, and it takes more."""
        if step.in_file or mapped.notes or mapped.parked or mapped.rejected or len(step.waiting) > storing.AT_ONCE:
            return False
        heads: dict[str, _Head] = {}
        rows: list[tuple[Any, ...]] = []
        for stream, item in step.waiting:
            head, shape = heads.get(stream) or self._heads.get(stream), self._shapes.get(item.shape.digest)
            if head is None or shape is None:
                return False
            end = head.next + item.count
            rows.append((storing.ready(head.id, (head.next, end), item, step.now), shape))
            heads[stream] = _Head(head.id, end)
        failpoint("bus.append.before_commit")
        if not self._store.execute(*storing.at_once(rows, storing.placed(source, position))):
            self._heads.clear()
            return False
        self._heads |= heads
        step.ready = [ready for ready, _ in rows]
        self.fresh.update(ready.row[0] for ready, _ in rows)
        return True

    def _learn(self, step: _Step) -> None:
        """What was committed need not be asked for the next time."""
        for stream, tail in step.tails.items():
            self._heads[stream] = _Head(tail.row.id, tail.next)
        self._shapes |= step.shapes

    @contextlib.contextmanager
    def _step(self) -> Iterator[_Step]:
        """What a step that fails has written to a file goes again."""
        step = _Step(streams.micros())
        try:
            yield step
        except BaseException:
            self.tail.clear()  # it may have been committed all the same
            if step.doubtful:
                self.writer.abandon()
            elif step.in_file:
                self.writer.undo()
            raise
        if step.in_file:
            self.writer.keep()
        self.tail.add(step.ready)

    def _take(self, step: _Step, mapped: Mapped) -> None:
        for stream, shape, batch in segments.pieces(mapped.events):
            item = segments.encoded(shape, batch, self._codec, step.now, self._places_in(shape))
            step.waiting.append((stream, item))
            step.waiting_bytes += len(item.data)
            step.nbytes += len(item.data)
            failpoint("bus.append.encoded")
            if step.waiting_bytes >= FILE_BYTES:
                self._write(step)
        if step.in_file:
            self._write(step)
            self.writer.sync()

    def _places_in(self, shape: segments.Shape) -> segments.Places:
        if shape.digest not in self._places:
            self._places[shape.digest] = segments.places_in(shape.schema)
        return self._places[shape.digest]

    def _write(self, step: _Step) -> None:
        """The segments that wait, to the file."""
        step.in_file = True
        with self._store.snapshot() as connection:
            self._place(connection, step)

    def _place(self, connection: Connection, step: _Step) -> None:
        """Give the segments that wait their places, from each stream's head on, in the sequence in which they came."""
        if not step.total and self._limits.max_bytes is not None:
            step.total = _total(connection)
        for stream, item in step.waiting:
            tail = step.tails.get(stream) or _tail(connection, stream)
            step.tails[stream] = tail
            tail.nbytes += len(item.data)
            step.total += len(item.data)
            self._check_limits(connection, tail, step.total)
            place = self.writer.write(item.data) if step.in_file else None
            self.fresh[tail.row.id] += 1
            step.ready.append(storing.ready(tail.row.id, (tail.next, tail.next + item.count), item, step.now, place))
            tail.next += item.count
            tail.newest = max(tail.newest or b"", item.orders[1])
        step.waiting, step.waiting_bytes = [], 0

    def _check_limits(self, connection: Connection, tail: _Tail, total: int) -> None:
        limit = tail.row.max_bytes
        if limit is not None and tail.nbytes > limit:
            what = f"stream `{tail.row.name}` has reached its limit of {limit:,} bytes (`retention: max_bytes`)"
            raise _full(connection, what, tail.row.name)
        if self._limits.max_bytes is not None and total > self._limits.max_bytes:
            what = f"the bus has reached its limit of {self._limits.max_bytes:,} bytes (`bus: max_bytes`)"
            raise _full(connection, what, None)

    def _finish(self, connection: Connection, step: _Step, mapped: Mapped, source: str | None) -> None:
        self._place(connection, step)
        for segment in step.ready:
            step.shapes[segment.shape.digest] = storing.insert(connection, segment)
        for tail in step.tails.values():
            _move_head(connection, tail, step.now)
        failpoint("bus.append.heads_moved")
        for note in mapped.notes:
            _note(connection, step, note)
        for parked in mapped.parked:
            waiting.park(connection, parked, self._limits.park_bytes)
        for rejected in mapped.rejected:
            waiting.reject(connection, rejected, source, step.now)
        waiting.flow_again(connection)
        step.doubtful = step.in_file


def purge(store: Store) -> None:
    """Delete segments whose stream is gone."""
    while True:
        with store.write() as connection:
            found = connection.execute(
                "SELECT id FROM segment WHERE stream NOT IN (SELECT id FROM stream) LIMIT ?", (PURGE,)
            )
            ids = [number for (number,) in found]
            storing.delete(connection, ids)
        failpoint("bus.purge.step")
        if len(ids) < PURGE:
            return


def _tail(connection: Connection, stream: str) -> _Tail:
    row = streams.find(connection, stream)
    return _Tail(row, row.head, row.nbytes, row.newest)


def _move_head(connection: Connection, tail: _Tail, now: int) -> None:
    moved = connection.execute(
        "UPDATE stream SET head = ?, nbytes = nbytes + ?, newest = ?, last_append = ? WHERE id = ? AND head = ?",
        (tail.next, tail.nbytes - tail.row.nbytes, tail.newest, now, tail.row.id, tail.row.head),
    )
    if not moved.rowcount:
        raise BusError(
            f"stream `{tail.row.name}` was dropped or moved while events were appended to it; nothing was kept",
            hint="another process dropped it; start again, so that it is declared again",
        )


def _note(connection: Connection, step: _Step, note: Note) -> None:
    """A note holds from the first event beside it on; `loaded` speaks of the events before it, so it stands behind."""
    tail = step.tails.get(note.stream) or _tail(connection, note.stream)
    place = tail.next if note.kind == "loaded" else tail.row.head
    streams.add_note(connection, tail.row.id, note, place, step.now)


def _total(connection: Connection) -> int:
    return int(connection.execute("SELECT coalesce(sum(nbytes + parked_bytes), 0) FROM stream").fetchone()[0])


def _full(connection: Connection, what: str, stream: str | None) -> BusFull:
    """Nothing is dropped to make room; whoever holds retention back is named."""
    held = streams.behind(connection, stream)
    if held:
        group, name, offset, head = held[0]
        blame = f"; group `{group}` has read `{name}` up to {offset} of {head}"
        hint = f"let it go on, or release it: `headwater bus release {group} --stream {name}`; or raise the limit"
    else:
        blame, hint = "", "raise the limit, or give the contract a `retention` that drops: `compacted` or `age`"
    return BusFull(f"{what}; nothing was appended and nothing dropped{blame}", hint=hint)
