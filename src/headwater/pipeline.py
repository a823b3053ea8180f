"""The engine: two loops. Everything else is an adapter behind a protocol, or a wrapper of the same shape.

Both may be stopped at any instruction; the next start resumes from what is durable.
"""

from __future__ import annotations

from collections.abc import Callable

from headwater.model import Batch, Mapped
from headwater.protocols import Bus, Sink, Source

Mapping = Callable[[Batch], Mapped]


def capture(source: Source, mapping: Mapping, bus: Bus, *, follow: bool = True) -> None:
    """Source to bus: events and position become durable in one step, and only then may the source forget."""
    for batch in source.read(bus.position(source.name), follow=follow):
        bus.append(mapping(batch), source=source.name, position=batch.position)
        source.confirm(batch.position)


def deliver(bus: Bus, stream: str, sink: Sink, *, follow: bool = True) -> None:
    """Bus to sink: from where the sink itself says it stands."""
    for events in bus.read(stream, after=sink.cursor(stream), follow=follow):
        sink.write(events)
        if events.cursor is not None:
            bus.commit(sink.name, stream, events.cursor)
