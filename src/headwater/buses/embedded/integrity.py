"""The deep check: SQLite's own, then every segment opened, and everything that is stored twice compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from headwater.buses.embedded import reading, segments, store, streams, waiting
from headwater.buses.embedded.reading import Shapes, Stored
from headwater.buses.embedded.store import Connection, Store
from headwater.errors import BusDamaged


def check(bus: Store, shapes: Shapes) -> list[str]:
    """One sentence for each thing that is wrong; none for a sound bus."""
    try:
        with bus.snapshot() as connection:
            store.verify(connection, bus.path)
            names = [name for (name,) in connection.execute("SELECT name FROM stream ORDER BY name")]
            found = [problem for name in names for problem in _stream(bus, shapes, connection, name)]
            return [*found, *_waiting(connection), *_orphans(connection)]
    except BusDamaged as error:
        return [error.message]


_SEGMENTS = (
    "SELECT g.appended, g.min_time, g.max_time, g.min_order, g.max_order, g.deletes,"
    f" {reading.STORED} FROM {reading.FROM} WHERE g.stream = ? ORDER BY g.base"
)


def _stream(bus: Store, shapes: Shapes, connection: Connection, name: str) -> Iterator[str]:
    row = streams.find(connection, name)
    holes = streams.contract_of(connection, row.id).retention.compacted or _compacted(connection, row.id)
    place, nbytes = row.floor, 0
    for appended, *facts in connection.execute(_SEGMENTS, (row.id,)):
        stored = reading.Stored(name, *facts[5:])
        if stored.base < place or (stored.base > place and not holes):
            yield f"stream `{name}`: a segment begins at offset {stored.base}, and {place} is expected"
        yield from _segment(bus, shapes, connection, stored, (appended, *facts[:5]))
        place, nbytes = stored.next, nbytes + stored.nbytes
    if place != row.head:
        yield f"stream `{name}`: it ends at offset {place}, and {row.head} is expected"
    if nbytes != row.nbytes:
        yield f"stream `{name}`: it holds {nbytes} bytes, and {row.nbytes} are expected"


def _compacted(connection: Connection, stream: int) -> bool:
    (place,) = connection.execute("SELECT compacted FROM stream WHERE id = ?", (stream,)).fetchone()
    return bool(place)


def _segment(
    bus: Store, shapes: Shapes, connection: Connection, stored: Stored, noted: tuple[Any, ...]
) -> Iterator[str]:
    try:
        found = reading.opened(bus, shapes, connection, stored)
    except BusDamaged as error:
        yield error.message
        return
    base, end, (appended, *facts) = stored.base, stored.next, noted
    where = f"stream `{stored.stream}`, offsets {base} to {end - 1}"
    offsets = found.offsets.to_numpy().astype(np.int64)
    if offsets[0] != base or offsets[-1] >= end or np.any(np.diff(offsets) <= 0):
        yield f"{where}: the offsets of the events do not rise within these bounds"
    times = pc.min_max(segments.event_times(found, appended))
    orders = segments.order_range(found.data)
    if [times["min"].as_py(), times["max"].as_py(), *orders, segments.deletes(found.data)] != facts:
        yield f"{where}: its times, orders or deletes are not those that are noted beside it"


def _waiting(connection: Connection) -> Iterator[str]:
    for table in ("parked", "refused"):
        for identity, crc, data in connection.execute(f"SELECT id, crc, data FROM {table}"):
            if not waiting.is_sound(data, crc):
                yield f"{table} changes {identity}: the checksum does not match"
    counts = connection.execute(
        "SELECT name, parked, rejected, (SELECT count(*) FROM parked WHERE stream = s.id),"
        " (SELECT count(*) FROM rejected WHERE stream = s.id) FROM stream s"
    )
    for name, parked, rejected, found_parked, found_rejected in counts:
        if (parked, rejected) != (found_parked, found_rejected):
            yield (
                f"stream `{name}`: {parked} parked and {rejected} rejected changes are expected, "
                f"found {found_parked} and {found_rejected}"
            )


def _orphans(connection: Connection) -> Iterator[str]:
    (count,) = connection.execute(
        "SELECT count(*) FROM records WHERE segment NOT IN (SELECT id FROM segment WHERE file IS NULL)"
    ).fetchone()
    if count:
        yield f"{count} record batches belong to no segment"
