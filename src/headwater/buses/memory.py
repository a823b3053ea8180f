"""A bus in this process's memory, for tests and trials: every promise of the protocol but durability.

Retention is `forever`, whatever a contract says: it lives no longer than its process.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import threading
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from headwater.config import BusConfig
from headwater.errors import BusError, BusFull, CursorMismatch
from headwater.model import Changes, Cursor, Events, Mapped, Note, Order, Position, Rejected, utc_now
from headwater.protocols import Declaration, GroupState, PlacedNote, RejectedRow, StreamState


def open_bus(*, config: BusConfig, pipeline: str, directory: str, append: bool) -> MemoryBus:
    return MemoryBus(config)


@dataclass(frozen=True, slots=True)
class _Part:
    base: int
    events: Events
    appended: datetime.datetime


@dataclass(slots=True)
class _Stream:
    declaration: Declaration
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    parts: list[_Part] = field(default_factory=list)
    head: int = 0
    nbytes: int = 0
    order: Order | None = None
    paused: str | None = None
    resuming: bool = False
    parked: dict[int, Changes] = field(default_factory=dict)
    notes: list[PlacedNote] = field(default_factory=list)
    cursors: dict[str, tuple[Cursor, datetime.datetime]] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)

    @property
    def parked_bytes(self) -> int:
        return sum(changes.data.nbytes for changes in self.parked.values())

    @property
    def declared(self) -> set[str]:
        return set(self.declaration.groups) - self.released


class MemoryBus:
    """One object is the whole bus; threads share it."""

    durable = False

    def __init__(self, config: BusConfig | None = None) -> None:
        self._config = config or BusConfig(url="memory:")
        self._changed = threading.Condition(threading.RLock())
        self._streams: dict[str, _Stream] = {}
        self._positions: dict[str, Position] = {}
        self._rejected: dict[int, tuple[RejectedRow, Changes]] = {}
        self._numbers = itertools.count(1)
        self._stops = 0

    # the two loops

    def position(self, source: str) -> Position | None:
        return self._positions.get(source)

    def positions(self) -> dict[str, Position]:
        return dict(sorted(self._positions.items()))

    def forget(self, source: str) -> None:
        self._positions.pop(source, None)

    def append(self, mapped: Mapped, *, source: str, position: Position) -> None:
        events = [part for part in mapped.events if len(part)]
        with self._changed:
            self._add(dataclasses.replace(mapped, events=events), source)
            self._positions[source] = position
            self._changed.notify_all()

    def settle(self, mapped: Mapped, *, parked: Sequence[int] = (), rejected: Sequence[int] = ()) -> None:
        events = [part for part in mapped.events if len(part)]
        with self._changed:
            self._check_numbers(parked, rejected)
            self._add(dataclasses.replace(mapped, events=events), None)
            for stream in self._streams.values():
                stream.parked = {number: it for number, it in stream.parked.items() if number not in parked}
            for number in rejected:
                del self._rejected[number]
            self._flow_again()
            self._changed.notify_all()

    def read(self, stream: str, *, after: Cursor | None, follow: bool, limit: int | None = None) -> Iterator[Events]:
        with self._changed:
            found = self._find(stream)
            place = 0 if after is None else self._checked(found, after)
            end = None if follow else found.head
        return self._events(found, _Reading(place, end, limit, after, self._stops))

    def cursor(self, group: str, stream: str) -> Cursor | None:
        found = self._streams.get(stream)
        committed = found.cursors.get(group) if found else None
        return committed[0] if committed else None

    def commit(self, group: str, stream: str, cursor: Cursor) -> None:
        with self._changed:
            found = self._find(stream)
            self._checked(found, cursor)
            found.cursors[group] = (cursor, utc_now())
            found.released.discard(group)

    def maintain(self, budget: float = 0.05) -> bool:
        return False  # nothing here outlives the process

    def stop(self) -> None:
        with self._changed:
            self._stops += 1
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()

    # what streams there are

    def declare(self, streams: Sequence[Declaration]) -> None:
        with self._changed:
            for declaration in streams:
                found = self._streams.setdefault(declaration.contract.stream, _Stream(declaration))
                found.declaration = declaration

    def streams(self) -> dict[str, StreamState]:
        with self._changed:
            return {name: self._state(name, stream) for name, stream in sorted(self._streams.items())}

    def standing_still(self) -> frozenset[str]:
        return frozenset(n for n, state in self.streams().items() if state.paused is not None or state.resuming)

    def notes(self, stream: str) -> list[PlacedNote]:
        return list(self._find(stream).notes)

    def drop(self, stream: str) -> None:
        with self._changed:
            self._find(stream)
            del self._streams[stream]
            self._rejected = {n: entry for n, entry in self._rejected.items() if entry[0].stream != stream}
            self._changed.notify_all()

    def groups(self, stream: str) -> dict[str, GroupState]:
        found = self._find(stream)
        names = sorted(found.declared | set(found.cursors))
        return {name: _group(found, name) for name in names}

    def release(self, group: str, stream: str | None = None) -> None:
        with self._changed:
            for found in [self._find(stream)] if stream is not None else list(self._streams.values()):
                found.cursors.pop(group, None)
                found.released.add(group)

    def offset_after(self, stream: str, order: Order) -> int:
        found = self._find(stream)
        for part in found.parts:
            above = np.flatnonzero([place > order for place in _orders(part.events)])
            if len(above):
                return part.base + int(above[0])
        return found.head

    def offset_at(self, stream: str, time: datetime.datetime) -> int:
        found = self._find(stream)
        for part in found.parts:
            for number, moment in enumerate(part.events.data.column("_time")):
                if (moment.as_py() or part.appended) >= time:
                    return part.base + number
        return found.head

    # streams that stand still

    def pause(self, stream: str, reason: str) -> None:
        with self._changed:
            found = self._find(stream)
            found.paused, found.resuming = reason, False

    def resume(self, stream: str) -> None:
        with self._changed:
            found = self._find(stream)
            found.resuming = found.paused is not None
            self._flow_again()
            self._flow_again()

    def parked(self, stream: str) -> Iterator[tuple[int, Changes]]:
        found = self._streams.get(stream)
        return iter(list(found.parked.items()) if found else [])

    def rejected(self, stream: str | None = None) -> Iterator[RejectedRow]:
        return iter([row for row, _ in self._rejected.values() if stream in (None, row.stream)])

    def rejected_changes(self, numbers: Sequence[int]) -> list[Changes]:
        self._check_numbers((), numbers)
        return [self._rejected[number][1] for number in numbers]

    def waiting_keys(self, stream: str) -> frozenset[str]:
        return frozenset(row.key for row in self.rejected(stream) if row.key is not None)

    # within

    def _find(self, stream: str) -> _Stream:
        if stream not in self._streams:
            raise BusError(f"there is no stream `{stream}` on the bus", hint=f"streams are: {', '.join(self._streams)}")
        return self._streams[stream]

    def _checked(self, stream: _Stream, cursor: Cursor) -> int:
        name = stream.declaration.contract.stream
        if cursor.incarnation != stream.incarnation:
            raise CursorMismatch(f"stream `{name}`: the cursor is of another incarnation, {cursor.incarnation}")
        if cursor.offset > stream.head:
            raise CursorMismatch(f"stream `{name}`: the cursor {cursor} is ahead of the stream, at {stream.head}")
        return cursor.offset

    def _add(self, mapped: Mapped, source: str | None) -> None:
        """Check first, then add: all or nothing."""
        self._check_room(mapped)
        now = utc_now()
        heads = {name: stream.head for name, stream in self._streams.items()}
        for part in mapped.events:
            self._add_events(self._streams[part.stream], part, now)
        for note in mapped.notes:
            self._add_note(note, heads[note.stream], now)
        for parked in mapped.parked:
            stream = self._streams[parked.stream]
            stream.resuming = stream.resuming or stream.paused is None
            stream.paused = stream.paused or "changes came in while it was resumed"
            stream.parked[next(self._numbers)] = parked.changes
        for rejected in mapped.rejected:
            self._add_rejected(rejected, source or self._streams[rejected.stream].declaration.source, now)
        self._flow_again()

    def _check_room(self, mapped: Mapped) -> None:
        names = {item.stream for group in (mapped.rejected, mapped.parked, mapped.notes) for item in group}
        for name in names | {part.stream for part in mapped.events}:
            stream = self._find(name)
            added = sum(part.data.nbytes for part in mapped.events if part.stream == name)
            limit = stream.declaration.contract.retention.max_bytes
            if limit is not None and added and stream.nbytes + added > limit:
                raise BusFull(f"stream `{name}` has reached its limit of {limit:,} bytes", hint="raise the limit")
            held = sum(parked.changes.data.nbytes for parked in mapped.parked if parked.stream == name)
            if held and stream.parked_bytes + held > self._config.park_bytes:
                raise BusFull(
                    f"stream `{name}` stands still and may hold back {self._config.park_bytes:,} bytes of changes",
                    hint=f"`headwater resume {name}`",
                )
        total = sum(stream.nbytes + stream.parked_bytes for stream in self._streams.values())
        total += sum(part.data.nbytes for part in mapped.events)
        if self._config.max_bytes is not None and total > self._config.max_bytes:
            raise BusFull(f"the bus has reached its limit of {self._config.max_bytes:,} bytes", hint="raise the limit")

    def _add_events(self, stream: _Stream, events: Events, now: datetime.datetime) -> None:
        stream.parts.append(_Part(stream.head, events, now))
        stream.head += len(events)
        stream.nbytes += events.data.nbytes
        newest = max(_orders(events))
        stream.order = max(stream.order or newest, newest)

    def _add_note(self, note: Note, before: int, now: datetime.datetime) -> None:
        """A note holds from the first event beside it on; `loaded` speaks of the events before it."""
        stream = self._streams[note.stream]
        stream.notes.append(PlacedNote(note, stream.head if note.kind == "loaded" else before, now))

    def _add_rejected(self, rejected: Rejected, source: str, now: datetime.datetime) -> None:
        texts = [rejected.reasons.column(name) for name in ("key", "field", "expected", "got")]
        for row, order in enumerate(_orders(rejected.changes)):
            key, *why = (column[row].as_py() for column in texts)
            number = next(self._numbers)
            changes = dataclasses.replace(rejected.changes, data=rejected.changes.data.slice(row, 1))
            wrong, expected, got = (text or "" for text in why)
            entry = RejectedRow(number, rejected.stream, source, order, key, wrong, expected, got, now)
            self._rejected[number] = (entry, changes)

    def _check_numbers(self, parked: Sequence[int], rejected: Sequence[int]) -> None:
        waiting = {number for stream in self._streams.values() for number in stream.parked}
        missing = [*(set(parked) - waiting), *(set(rejected) - set(self._rejected))]
        if missing:
            raise BusError(f"nothing waits under number {missing[0]}; nothing was changed")

    def _flow_again(self) -> None:
        for stream in self._streams.values():
            if stream.resuming and not stream.parked:
                stream.paused, stream.resuming = None, False

    def _events(self, stream: _Stream, reading: _Reading) -> Iterator[Events]:
        place, after = reading.place, reading.after
        while reading.end is None or place < reading.end:
            with self._changed:
                if reading.end is None:
                    while stream.head <= place and self._stops == reading.stops:
                        self._find(stream.declaration.contract.stream)
                        self._changed.wait()
                    if self._stops != reading.stops:
                        return
                number = bisect_right(stream.parts, place, key=lambda part: part.base) - 1
                part = stream.parts[number]
            skipped = place - part.base
            data = part.events.data.slice(skipped, reading.limit)
            offsets = pa.array(np.arange(place, place + data.num_rows, dtype=np.uint64))
            place += data.num_rows
            cursor = Cursor(stream.incarnation, (place,))
            yield dataclasses.replace(part.events, data=data, after=after, cursor=cursor, offsets=offsets, reading=None)
            after = cursor

    def _state(self, name: str, stream: _Stream) -> StreamState:
        return StreamState(
            stream=name,
            incarnation=stream.incarnation,
            contract_version=stream.declaration.contract.version,
            source=stream.declaration.source,
            fingerprint=stream.declaration.fingerprint,
            epoch=stream.order.epoch if stream.order else 0,
            order=stream.order,
            first=0,
            head=stream.head,
            nbytes=stream.nbytes,
            complete=True,
            last_append=stream.parts[-1].appended if stream.parts else None,
            paused=stream.paused,
            resuming=stream.resuming,
            parked=len(stream.parked),
            parked_bytes=stream.parked_bytes,
            rejected=sum(row.stream == name for row, _ in self._rejected.values()),
            groups=tuple(sorted(stream.declared)),
        )


@dataclass(frozen=True, slots=True)
class _Reading:
    place: int
    end: int | None
    limit: int | None
    after: Cursor | None
    stops: int


def _group(stream: _Stream, name: str) -> GroupState:
    cursor, committed = stream.cursors.get(name, (None, None))
    return GroupState(cursor, committed, name in stream.declared)


def _orders(values: Events | Changes) -> list[Order]:
    columns = (values.data.column(name).to_numpy() for name in ("_epoch", "_commit", "_index"))
    return [Order(int(epoch), int(commit), int(index)) for epoch, commit, index in zip(*columns, strict=True)]
