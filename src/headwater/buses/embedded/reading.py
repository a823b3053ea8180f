"""Reading a stream: short transactions, small segments joined, and waiting without losing a wake-up.

A reader remembers an offset, never a segment: segments may be merged or compacted between two of its steps, and
each of those replaces the segments of a range of offsets by others of the same range in one transaction.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headwater.buses.embedded import files, segments, streams
from headwater.buses.embedded.segments import Decoded, Shape
from headwater.buses.embedded.store import Connection, Store, damaged, reading, translated
from headwater.buses.embedded.tail import Held, Tail
from headwater.errors import BusError, HistoryGone
from headwater.model import Cursor, Events

JOIN_ROWS = 65_536
JOIN_BYTES = 16 * 2**20
LARGE = 8_192
"""Segments of so many events are handed on as they are: joining them would only copy."""
POLL_ACTIVE = 0.001
POLL_IDLE = 0.020
LOOK = 1.0
"""Seconds for which a reader takes what it gets from the tail alone."""


class Signal:
    """How the appender wakes readers of its own process. A reader that saw `count` before it looked misses nothing.

    A `threading.Condition` would make each reader wait twice: for the wake-up, and for who gave it to let go of it.
    A signal handler may call any of this within any of this.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[threading.Lock] = []
        self.count = 0
        self.stops = 0

    def notify(self) -> None:
        with self._lock:
            self.count += 1
            self._wake()

    def stop(self) -> None:
        with self._lock:
            self.stops += 1
            self._wake()

    def wait(self, count: int, stops: int, timeout: float | None) -> None:
        """Until `count` or `stops` is another, so many seconds at the most."""
        turn = threading.Lock()
        turn.acquire()
        with self._lock:
            self._waiting.append(turn)
        changed = self.count != count or self.stops != stops
        if changed or not turn.acquire(timeout=-1 if timeout is None else timeout):
            with self._lock, contextlib.suppress(ValueError):  # woken meanwhile
                self._waiting.remove(turn)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.release()


@dataclass(frozen=True, slots=True)
class Request:
    stream: str
    after: Cursor | None
    follow: bool
    limit: int | None


class Shapes:
    """The schemas of stored segments, each decoded once in a process. They never change."""

    def __init__(self) -> None:
        self._known: dict[int, pa.Schema] = {}

    def schema(self, connection: Connection, number: int) -> pa.Schema:
        found = self._known.get(number)
        if found is None:
            row = connection.execute("SELECT schema FROM shape WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise pa.ArrowInvalid(f"schema {number} is missing")
            found = self._known[number] = segments.schema_from(row[0])
        return found


class Reader:
    """One `read` in progress. `tail`: of the appender in this process; None if another process may be the appender."""

    def __init__(self, store: Store, signal: Signal, shapes: Shapes, request: Request, tail: Tail | None) -> None:
        self._store, self._signal, self._shapes, self._request, self._tail = store, signal, shapes, request, tail
        self._stops = signal.stops
        self._look = time.monotonic() + LOOK
        with store.snapshot() as connection:
            row = streams.find(connection, request.stream)
            self._place = _start(connection, row, request.after)
            self._gone = row.gone if request.after is None or self._place == 0 else 0
            self._check_kept(connection, row)
        self._end = None if request.follow else row.head
        self._head = row.head
        """As it was seen last."""
        self._after = request.after
        self._incarnation = row.incarnation
        self._id = row.id

    def events(self) -> Iterator[Events]:
        connection = self._store.borrow()
        try:
            while self._end is None or self._place < self._end:
                count = self._signal.count
                version = _data_version(connection) if self._tail is None else 0
                found = self._next(connection)
                if found:
                    yield from self._handed_on(found)
                    if self._end is not None or (self._place < self._head and not self._stopped):
                        continue
                if self._end is not None or not self._wait(connection, count, version):
                    return
        finally:
            self._store.give_back(connection)

    @property
    def _stopped(self) -> bool:
        return self._signal.stops != self._stops

    def _handed_on(self, chunk: _Chunk) -> Iterator[Events]:
        """The chunk, in parts of at most `limit`. The last part's cursor lies behind any hole that follows."""
        whole = chunk.decoded
        rows = whole.data.num_rows
        if not rows:  # it began in a hole that goes on to the chunk's end
            self._place = chunk.next
            return
        size = self._request.limit or rows
        for start in range(0, rows, size):
            if self._request.follow and self._stopped:
                return
            data, offsets = whole.data.slice(start, size), whole.offsets.slice(start, size)
            is_last = start + size >= rows
            self._place = chunk.next if is_last else int(offsets[-1].as_py()) + 1
            cursor = Cursor(self._incarnation, (self._place,))
            yield self._events(chunk.shape, data, offsets, cursor)
            self._after = cursor

    def _events(self, shape: Shape, data: pa.RecordBatch, offsets: pa.Array, cursor: Cursor) -> Events:
        return Events(
            self._request.stream, shape.version, data, shape.type, shape.source, shape.seed, shape.content_ids,
            after=self._after, cursor=cursor, offsets=offsets,
        )  # fmt: skip

    def _next(self, connection: Connection) -> _Chunk | None:
        """From the tail, if it holds what comes next. At times from the store, which tells what other processes did."""
        now = time.monotonic()
        if self._tail is not None and now < self._look:
            found = self._tail.behind(self._id, self._place)
            if found is not None and (found[0] or self._end is None):
                held, self._head = found
                end = self._head if self._end is None else self._end
                return recent(held, self._place, end, self._request.limit) if held else None
        self._look = now + LOOK
        with translated(self._store.path):
            return self._fetch(connection)

    def _fetch(self, connection: Connection) -> _Chunk | None:
        with reading(connection):
            row = streams.find(connection, self._request.stream)
            if row.id != self._id or row.incarnation != self._incarnation:
                raise BusError(
                    f"stream `{row.name}` was dropped and made again while it was read",
                    hint="read it again, from the beginning",
                )
            self._check_kept(connection, row)
            self._head = row.head
            end = row.head if self._end is None else self._end
            return fetch(self._store, self._shapes, connection, Span(row, self._place, end, self._request.limit))

    def _check_kept(self, connection: Connection, row: streams.Row) -> None:
        rebuild = f"`headwater sink rebuild SINK --stream {row.name}`"
        if self._place < row.floor:
            raise HistoryGone(
                f"stream `{row.name}`: offset {self._place} is no longer kept; the oldest is {row.floor} "
                f"({_retention(connection, row)})",
                hint=f"begin at {row.floor}, or let the reader take a snapshot: {rebuild}",
            )
        if self._gone < row.gone and self._place < row.gone:  # who began after them never needs to see them
            raise HistoryGone(
                f"stream `{row.name}`: deletes before offset {row.gone} have been forgotten, and this reader, "
                f"at {self._place}, would miss them ({_retention(connection, row)})",
                hint=f"read from the beginning into an empty target: {rebuild}",
            )

    def _wait(self, connection: Connection, count: int, version: int) -> bool:
        """Until something was committed. False: stopped."""
        if self._tail is not None:
            self._signal.wait(count, self._stops, None)
            return not self._stopped
        idle_at = time.monotonic() + 1.0
        while not self._stopped and self._signal.count == count:
            if _data_version(connection) != version:
                return True
            pause = POLL_ACTIVE if time.monotonic() < idle_at else POLL_IDLE
            self._signal.wait(count, self._stops, pause)
        return not self._stopped


@dataclass(frozen=True, slots=True)
class Span:
    """What is asked for: offsets from `place` up to, not including, `end`."""

    row: streams.Row
    place: int
    end: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class _Chunk:
    shape: Shape
    decoded: Decoded
    next: int


STORED = "g.base, g.next, g.count, g.crc, g.shape, g.file, g.place, g.nbytes, r.data"
"""What `Stored` is made of, behind the stream's name, from `FROM`."""
FROM = "segment g LEFT JOIN records r ON r.segment = g.id"
_SEGMENTS = f"""
SELECT g.type, g.version, g.source, g.seed, g.content_ids, {STORED} FROM {FROM}
WHERE g.stream = :stream AND g.base < :end
  AND g.base >= coalesce((SELECT max(base) FROM segment WHERE stream = :stream AND base <= :place), :place)
ORDER BY g.base
"""


def fetch(store: Store, shapes: Shapes, connection: Connection, span: Span) -> _Chunk | None:
    """The next segments of one shape, as one record batch of the events that are asked for."""
    parts: list[Decoded] = []
    first: tuple[Any, ...] | None = None
    place, rows, nbytes = span.place, 0, 0
    most = min(span.limit or JOIN_ROWS, JOIN_ROWS)
    bounds = {"stream": span.row.id, "place": span.place, "end": span.end}
    for row in connection.execute(_SEGMENTS, bounds):
        found = Stored(span.row.name, *row[5:])
        kind, count = (found.shape, *row[:5]), found.count
        if found.next <= span.place:
            continue
        if first is not None and (kind != first or rows + count > most or nbytes > JOIN_BYTES or count >= LARGE):
            break
        first = kind
        part = opened(store, shapes, connection, found)
        parts.append(_clipped(part, span.place, span.end))
        place, rows, nbytes = min(found.next, span.end), rows + count, nbytes + part.data.get_total_buffer_size()
        if count >= LARGE:
            break
    if first is None:
        return None
    whole = joined([part for part in parts if part.data.num_rows] or parts[:1])
    schema = whole.data.schema
    return _Chunk(Shape(schema, b"", first[1], first[2], first[3], first[4], bool(first[5])), whole, place)


def recent(held: Sequence[Held], place: int, end: int, limit: int | None) -> _Chunk:
    """The same of segments in the tail: the first holds the event at `place`."""
    first = last = held[0]
    parts = [first.data]
    nbytes, most = first.nbytes, first.base + min(limit or JOIN_ROWS, JOIN_ROWS)
    for segment in held[1:]:
        alike = segment.shape is first.shape or segment.shape == first.shape
        large = max(last.next - last.base, segment.next - segment.base) >= LARGE
        if not alike or large or segment.next > most or nbytes > JOIN_BYTES or segment.base >= end:
            break
        parts.append(segment.data)
        last, nbytes = segment, nbytes + segment.nbytes
    stop = min(last.next, end)
    data = segments.joined(parts).slice(place - first.base, stop - place)
    return _Chunk(first.shape, Decoded(data, segments.dense(place, stop - place), None), stop)


@dataclass(frozen=True, slots=True)
class Stored:
    """A segment as it is stored: with its records, or the place of `nbytes` of them in a file."""

    stream: str
    base: int
    next: int
    count: int
    crc: int
    shape: int
    file: int | None
    place: int
    nbytes: int
    data: bytes | None


def opened(store: Store, shapes: Shapes, connection: Connection, stored: Stored) -> Decoded:
    """Within the transaction that found it: a file stays for so long."""
    where = f"stream `{stored.stream}`, offsets {stored.base} to {stored.next - 1}"
    data = stored.data
    if stored.file is not None:
        where = f"{where}, {files.path_of(store.path, stored.file)}"
        data = files.read(store.path, files.Place(stored.file, stored.place), stored.nbytes, where)
    if data is None:
        raise damaged(store.path, f"{where}: the records are missing")
    if segments.checksum(data, stored.base, stored.next, stored.count) != stored.crc:
        raise damaged(store.path, f"{where}: the checksum does not match")
    try:
        found = segments.decoded(data, shapes.schema(connection, stored.shape), stored.base)
    except (pa.ArrowException, OSError) as error:
        raise damaged(store.path, f"{where}: cannot be decoded: {error}") from error
    if found.data.num_rows != stored.count:
        raise damaged(store.path, f"{where}: {stored.count} events are expected, found {found.data.num_rows}")
    return found


def _clipped(part: Decoded, place: int, end: int) -> Decoded:
    """Only the events at or behind `place` and before `end`."""
    offsets = part.offsets.to_numpy()
    start, stop = (int(np.searchsorted(offsets, np.uint64(bound))) for bound in (place, end))
    if start == 0 and stop == len(offsets):
        return part
    appended = None if part.appended is None else part.appended.slice(start, stop - start)
    return Decoded(part.data.slice(start, stop - start), part.offsets.slice(start, stop - start), appended)


def joined(parts: list[Decoded]) -> Decoded:
    """Adjacent parts of one schema; append times are kept if each part has them."""
    if len(parts) == 1:
        return parts[0]
    offsets = pa.concat_arrays([part.offsets for part in parts])
    times = [part.appended for part in parts if part.appended is not None]
    appended = pa.concat_arrays(times) if len(times) == len(parts) else None
    return Decoded(segments.joined([part.data for part in parts]), offsets, appended)


def _start(connection: Connection, row: streams.Row, after: Cursor | None) -> int:
    return first_offset(connection, row) if after is None else streams.checked(connection, row, after)


def first_offset(connection: Connection, row: streams.Row) -> int:
    first = connection.execute("SELECT min(base) FROM segment WHERE stream = ?", (row.id,)).fetchone()[0]
    return row.head if first is None else int(first)


def _data_version(connection: Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _retention(connection: Connection, row: streams.Row) -> str:
    kept = streams.contract_of(connection, row.id).retention
    if kept.compacted:
        return f"retention: compacted, deletes kept for {kept.tombstones:g} s"
    return f"retention: age {kept.age:g} s" if kept.age is not None else "retention: until consumed"
