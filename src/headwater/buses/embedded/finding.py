"""Where in a stream an order or a time lies: segments by their bounds, then the one segment that decides."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.buses.embedded import reading, segments, streams
from headwater.buses.embedded.reading import Shapes
from headwater.buses.embedded.segments import Decoded
from headwater.buses.embedded.store import Connection, Store
from headwater.model import Order

_SEGMENTS = f"SELECT {reading.STORED}, g.appended FROM {reading.FROM} WHERE g.stream = ?"


def offset_after(store: Store, shapes: Shapes, connection: Connection, stream: str, order: Order) -> int:
    row = streams.find(connection, stream)
    found = connection.execute(
        f"{_SEGMENTS} AND g.max_order > ? ORDER BY g.base LIMIT 1",
        (row.id, segments.order_bytes(order)),
    ).fetchone()
    if found is None:
        return row.head
    opened, _ = _decoded(store, shapes, connection, stream, found)
    first = np.flatnonzero(~segments.below(opened.data, order, or_at=True))[0]
    return int(opened.offsets[int(first)].as_py())


def offset_at(store: Store, shapes: Shapes, connection: Connection, stream: str, time: int) -> int:
    row = streams.find(connection, stream)
    found = connection.execute(f"{_SEGMENTS} AND g.max_time >= ? ORDER BY g.base LIMIT 1", (row.id, time)).fetchone()
    if found is None:
        return row.head
    opened, appended = _decoded(store, shapes, connection, stream, found)
    first = np.flatnonzero(segments.event_times(opened, appended).to_numpy() >= time)[0]
    return int(opened.offsets[int(first)].as_py())


def _decoded(
    store: Store, shapes: Shapes, connection: Connection, stream: str, found: tuple[Any, ...]
) -> tuple[Decoded, int]:
    *stored, appended = found
    return reading.opened(store, shapes, connection, reading.Stored(stream, *stored)), appended
