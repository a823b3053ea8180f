"""The engine: two loops. Everything else is an adapter behind a protocol, or a wrapper of the same shape.

Both may be stopped at any instruction; the next start resumes from what is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from headwater.faults import failpoint
from headwater.model import Batch, Cursor, Mapped
from headwater.protocols import Bus, Sink, Source

Mapping = Callable[[Batch], Mapped]


def capture(source: Source, mapping: Mapping, bus: Bus, *, follow: bool = True) -> None:
    """Source to bus: events and position become durable in one step, and only then may the source forget."""
    for batch in source.read(bus.position(source.name), follow=follow):
        failpoint("capture.before_append")
        bus.append(mapping(batch), source=source.name, position=batch.position)
        failpoint("capture.before_confirm")
        source.confirm(batch.position)


def deliver(
    bus: Bus, stream: str, sink: Sink, *, follow: bool = True, limit: int | None = None, until: Event | None = None
) -> int:
    """Bus to sink, from where the sink itself says it stands, `until` is set. Returns the number of events written."""
    written = 0
    for events in bus.read(stream, after=standing(bus, stream, sink), follow=follow, limit=limit):
        failpoint("deliver.before_write")
        sink.write(events)
        written += len(events)
        failpoint("deliver.before_commit")
        if events.cursor is not None:
            bus.commit(sink.name, stream, events.cursor)
        if until is not None and until.is_set():
            break
    return written


def standing(bus: Bus, stream: str, sink: Sink) -> Cursor | None:
    """A sink that keeps its own cursor is believed, none included; for others the bus remembers."""
    if sink.guarantee.delivery == "exactly_once":
        return sink.cursor(stream)
    return sink.cursor(stream) or bus.cursor(sink.name, stream)
