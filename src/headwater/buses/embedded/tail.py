"""What was appended last, kept in memory for readers of the appender's own process.

The one idea: it holds the very bytes that an append has just made durable, beside the offsets that they got, so that a
reader which has come that far is given what the store would give it, without asking the store. Whatever is rewritten
or dropped is forgotten here before that can be seen in the store; and a place that is not held is not answered for.

The bytes are opened here, which copies nothing, and not by each reader: within Arrow a thread lets others run, and then
waits for its turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from headwater.buses.embedded.files import Place
from headwater.buses.embedded.segments import Shape
from headwater.buses.embedded.storing import Ready

MOST_BYTES = 4 * 2**20
"""Of all streams together: a few seconds of small appends."""
SEGMENT_BYTES = 64 * 2**10
"""Segments of more bytes are left to the store: looking one up costs little beside what it holds."""


@dataclass(frozen=True, slots=True)
class Held:
    """One segment, as it was appended: dense offsets from `base` up to, not including, `next`."""

    stream: int
    base: int
    next: int
    shape: Shape
    data: pa.RecordBatch
    nbytes: int


@dataclass(slots=True)
class _Stream:
    """Adjacent segments; the last of them ends at `end`."""

    end: int
    held: deque[Held] = field(default_factory=deque)


class Tail:
    """By stream number, which no stream gets again. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._oldest: deque[Held] = deque()
        """Of all streams, in the sequence in which they came; some of them may be forgotten already."""
        self._nbytes = 0

    def add(self, segments: Sequence[Ready]) -> None:
        """What has become durable, by the appender, in the sequence of the appends."""
        with self._lock:
            for segment in segments:
                self._add(segment)
            while self._nbytes > MOST_BYTES:
                self._forget_one()

    def behind(self, stream: int, place: int) -> tuple[list[Held], int] | None:
        """The segments with the offsets from `place` on, and where the last ends; None: ask the store."""
        with self._lock:
            found = self._streams.get(stream)
            if found is None or place > found.end:
                return None
            held: list[Held] = []
            for segment in reversed(found.held):
                if segment.next <= place:
                    break
                held.append(segment)
            if place < (held[-1].base if held else found.end):
                return None
            held.reverse()
            return held, found.end

    def forget(self, stream: int, before: int) -> None:
        """Segments that begin before this offset are about to be rewritten or dropped."""
        with self._lock:
            found = self._streams.get(stream)
            while found is not None and found.held and found.held[0].base < before:
                found.held.popleft()

    def clear(self) -> None:
        """Answer for nothing until the next append."""
        with self._lock:
            self._streams.clear()
            self._oldest.clear()
            self._nbytes = 0

    def _add(self, segment: Ready) -> None:
        number, base, end = segment.row[:3]
        found = self._streams.get(number)
        if found is None or found.end != base:
            found = self._streams[number] = _Stream(base)
        found.end = end
        if isinstance(segment.records, Place) or len(segment.records) > SEGMENT_BYTES:
            found.held.clear()
            return
        data = pa.ipc.read_record_batch(segment.records, segment.shape.schema)
        held = Held(number, base, end, segment.shape, data, data.get_total_buffer_size())
        found.held.append(held)
        self._oldest.append(held)
        self._nbytes += held.nbytes

    def _forget_one(self) -> None:
        held = self._oldest.popleft()
        self._nbytes -= held.nbytes
        stream = self._streams.get(held.stream)
        if stream is not None and stream.held and stream.held[0] is held:
            stream.held.popleft()
