"""Segments put in the place of others: what merging and compaction have in common.

What replaces segments covers the same offsets, in the same transaction, so a reader between two steps neither misses
nor repeats an event. Blobs are read and encoded outside that transaction, which therefore stays short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headwater.buses.embedded import reading, segments, storing
from headwater.buses.embedded.appending import Appender
from headwater.buses.embedded.reading import Shapes
from headwater.buses.embedded.segments import APPENDED, OFFSET, Decoded, Encoded, Shape
from headwater.buses.embedded.store import Connection, Store
from headwater.errors import BusError
from headwater.faults import failpoint


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored segment, without its records."""

    id: int
    base: int
    next: int
    count: int
    deletes: int
    nbytes: int
    appended: int
    crc: int
    shape: int
    type: str | None
    version: int
    source: str
    seed: bytes
    content_ids: int
    min_order: bytes


_COLUMNS = (
    "id, base, next, count, deletes, nbytes, appended, crc, shape, type, version, source, seed, content_ids, min_order"
)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What rewriting needs, for one stream."""

    store: Store
    appender: Appender
    shapes: Shapes
    codec: str
    id: int
    name: str

    def kept(self, *, condition: str = "1", values: Sequence[Any] = ()) -> list[Kept]:
        """The stream's segments, in offset order."""
        with self.store.snapshot() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM segment WHERE stream = ? AND {condition} ORDER BY base", (self.id, *values)
            )
            return [Kept(*row) for row in rows]

    def load(self, kept: Kept) -> Decoded:
        with self.store.snapshot() as connection:
            query = f"SELECT {reading.STORED} FROM {reading.FROM} WHERE g.id = ?"
            row = connection.execute(query, (kept.id,)).fetchone()
            if row is None:
                raise BusError(f"stream `{self.name}` was dropped while its segments were rewritten")
            return reading.opened(self.store, self.shapes, connection, reading.Stored(self.name, *row))

    def schema(self, kept: Kept) -> pa.Schema:
        """Of its events: without the bus's own columns."""
        with self.store.snapshot() as connection:
            stored = self.shapes.schema(connection, kept.shape)
        return pa.schema([f for f in stored if f.name not in (OFFSET.name, APPENDED.name)], metadata=stored.metadata)

    def shape(self, kept: Kept, schema: pa.Schema) -> Shape:
        digest = segments.digest(schema)
        return Shape(schema, digest, kept.type, kept.version, kept.source, kept.seed, bool(kept.content_ids))

    def repacked(self, kept: Kept, events: Decoded) -> Encoded:
        return segments.repacked(self.shape(kept, events.data.schema), events, kept.appended, self.codec)

    def replace(self, old: Sequence[Kept], new: Encoded | None, base: int, appended: int) -> bool:
        """Put one segment, from `base` on, or none in the place of adjacent ones. False: the stream is gone."""
        with self.store.write() as connection:
            return self.replaced(connection, old, new, base, appended)

    def replaced(
        self, connection: Connection, old: Sequence[Kept], new: Encoded | None, base: int, appended: int
    ) -> bool:
        """The same within a transaction of the caller's."""
        change = (len(new.data) if new else 0) - sum(kept.nbytes for kept in old)
        changed = connection.execute("UPDATE stream SET nbytes = nbytes + ? WHERE id = ?", (change, self.id))
        if not changed.rowcount:
            return False
        self.appender.tail.forget(self.id, old[-1].next)
        storing.delete(connection, [kept.id for kept in old])
        failpoint("bus.rewrite.deleted")
        if new is not None:
            storing.insert(connection, storing.ready(self.id, (base, old[-1].next), new, appended))
        return True

    def without(self, kept: Kept, events: Decoded, mask: pa.Array) -> tuple[Encoded | None, int]:
        """The segment with only the events that the mask keeps, and where it then begins."""
        left = events.filter(mask)
        if not len(left):
            return None, kept.base
        return self.repacked(kept, left), int(left.offsets[0].as_py())
