"""Compaction: of each key, the newest event by order stays; offsets get holes.

It works through what was appended since the last time, a chunk at once, in steps that are each one small transaction
and leave a stream that folds to the same state wherever they stop:

1. winners that lack columns (`_unchanged`) get them from the events that they replace, unless one behind the chunk is
   older than the winner: then all of the key's events stay;
2. those events go, segment by segment;
3. the stream's `compacted` mark moves behind the chunk;
4. deletes below the mark go, once their time has passed.

Nothing beyond what each declared group has read is touched, so that the fold up to any group's cursor stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.buses.embedded.rewriting import Kept, Workshop
from headwater.buses.embedded.segments import OFFSET, Decoded, below, digest, order_of
from headwater.contracts.model import Contract
from headwater.mapping.fold import fold
from headwater.model import Op, Order

CHUNK_ROWS = 262_144
CHUNK_BYTES = 32 * 2**20
SHARE = 0.5
"""Compaction begins when so many events came in for each one that the compacted part has."""

Offsets = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """`compacted`: where the last compaction ended. `limit`: what each declared group has read."""

    compacted: int
    limit: int
    now: int


def steps(shop: Workshop, contract: Contract, bounds: Bounds) -> Iterator[None]:
    """Compact what is due; a small transaction between two steps."""
    if not contract.key or contract.types:
        return
    place = bounds.compacted
    for chunk in _chunks(shop, bounds):
        yield from _Chunk(shop, contract.key, chunk).steps()
        place = chunk[-1].next
        with shop.store.write() as connection:
            connection.execute("UPDATE stream SET compacted = ? WHERE id = ?", (place, shop.id))
        yield
    if place:
        yield from _forget_deletes(shop, contract, place, bounds.now)


def _chunks(shop: Workshop, bounds: Bounds) -> list[list[Kept]]:
    """What was appended since the last compaction, if it is enough; but for the last segment, which stays as it is."""
    kept = shop.kept()[:-1]
    dirty = [part for part in kept if bounds.compacted < part.next <= bounds.limit]
    clean = sum(part.count for part in kept if part.next <= bounds.compacted)
    if not dirty or sum(part.count for part in dirty) < SHARE * clean:
        return []
    chunks: list[list[Kept]] = [[]]
    for part in dirty:
        rows, nbytes = (sum(getattr(other, name) for other in chunks[-1]) for name in ("count", "nbytes"))
        if chunks[-1] and (rows + part.count > CHUNK_ROWS or nbytes + part.nbytes > CHUNK_BYTES):
            chunks.append([])
        chunks[-1].append(part)
    return chunks


class _Chunk:
    """One chunk against all that lies before it."""

    def __init__(self, shop: Workshop, key: Sequence[str], chunk: list[Kept]) -> None:
        self._shop, self._key = shop, list(key)
        self._base, self._end = chunk[0].base, chunk[-1].next

    def steps(self) -> Iterator[None]:
        rows = [narrow(self._shop.load(kept), self._key) for kept in self._segments() if kept.next > self._base]
        keys = _joined(rows).select(self._key)
        for kept in self._segments():
            if kept.next <= self._base:
                rows.append(_matching(narrow(self._shop.load(kept), self._key), keys))
                yield
        gathered = _joined(rows)
        winners = fold(gathered, self._key)
        losers = np.setdiff1d(_offsets(gathered), _offsets(winners))
        lacking = winners.filter(winners.column("_partial"))
        final = below(lacking, self._oldest_behind())
        if not final.all():
            losers = np.setdiff1d(losers, self._places(gathered, lacking.filter(pa.array(~final))))
            lacking = lacking.filter(pa.array(final))
        if lacking.num_rows:
            places = self._places(gathered, lacking)
            merged = self._merged(places)
            if merged is None:
                losers = np.setdiff1d(losers, places)
            else:
                yield from self._fill(merged)
        yield from self._remove(losers)

    def _segments(self) -> list[Kept]:
        return self._shop.kept(condition="next <= ?", values=(self._end,))

    def _oldest_behind(self) -> Order:
        """A winner above it, by order, may yet take what it lacks from an event behind the chunk."""
        return order_of(min(kept.min_order for kept in self._shop.kept(condition="next > ?", values=(self._end,))))

    def _places(self, rows: pa.Table, of: pa.Table) -> Offsets:
        """The sorted offsets of the rows that have a key of these."""
        return np.sort(_offsets(_matching(rows, pa.table(of.select(self._key)))))

    def _merged(self, places: Offsets) -> pa.RecordBatch | None:
        """The winners with every column that an earlier event of theirs carries.

        None if the events are of several schemas: the ordinals in `_unchanged` then mean different fields, so they
        all stay until the key gets an event that is whole.
        """
        parts = []
        for kept in self._segments():
            if _within(places, kept).size:
                events = self._shop.load(kept)
                parts.append(_placed(events.filter(_in(events.offsets, places))))
        if len({digest(part.schema) for part in parts}) > 1:
            return None
        return fold(pa.Table.from_batches(parts), self._key)

    def _fill(self, merged: pa.RecordBatch) -> Iterator[None]:
        places = np.sort(_offsets(merged))
        for kept in self._segments():
            if _within(places, kept).size:
                events = self._shop.load(kept)
                filled = _replaced(events, merged)
                if not self._shop.replace([kept], self._shop.repacked(kept, filled), kept.base, kept.appended):
                    return
                yield

    def _remove(self, losers: Offsets) -> Iterator[None]:
        for kept in self._segments():
            if _within(losers, kept).size:
                events = self._shop.load(kept)
                left, base = self._shop.without(kept, events, pc.invert(_in(events.offsets, losers)))
                if not self._shop.replace([kept], left, base, kept.appended):
                    return
                yield


def narrow(events: Decoded, key: Sequence[str]) -> pa.Table:
    """What decides which event of a key wins: the key, the order, the offset, and whether it lacks columns."""
    data = events.data
    columns = {name: data.column(name) for name in (*key, "_op", "_epoch", "_commit", "_index")}
    if "_unchanged" in data.schema.names:
        partial = pc.greater(pc.fill_null(pc.list_value_length(data.column("_unchanged")), 0), 0)
    else:
        partial = pa.array(np.zeros(len(events), dtype=bool))
    return pa.table({**columns, OFFSET.name: events.offsets, "_partial": partial})


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _matching(rows: pa.Table, keys: pa.Table) -> pa.Table:
    """The rows whose key is among `keys`."""
    schema = pa.schema([keys.schema.field(f.name) if f.name in keys.column_names else f for f in rows.schema])
    return rows.cast(schema).join(keys, keys.column_names, join_type="left semi")


def _placed(events: Decoded) -> pa.RecordBatch:
    return events.data.append_column(OFFSET, events.offsets)


def _replaced(events: Decoded, merged: pa.RecordBatch) -> Decoded:
    """The events, those that `merged` has too in its form."""
    mine = merged.filter(_in(merged.column(OFFSET.name), events.offsets.to_numpy()))
    offsets = mine.column(OFFSET.name)
    places = np.searchsorted(events.offsets.to_numpy(), offsets.to_numpy())
    rows: npt.NDArray[np.int64] = np.arange(len(events), dtype=np.int64)
    rows[places] = len(events) + np.arange(len(offsets))
    data = pa.concat_batches([events.data, _conformed(mine, events.data.schema)]).take(pa.array(rows))
    return Decoded(data, events.offsets, events.appended)


def _conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A fold leaves `_unchanged` out when nothing is unknown any more."""
    columns = [
        batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _offsets(rows: pa.Table | pa.RecordBatch) -> Offsets:
    found: Offsets = rows.column(OFFSET.name).to_numpy()
    return found


def _in(offsets: pa.Array, wanted: Any) -> pa.Array:
    return pa.array(np.isin(offsets.to_numpy(), wanted))


def _within(places: Offsets, kept: Kept) -> Offsets:
    """Those of the sorted offsets that the segment covers."""
    start, stop = np.searchsorted(places, np.array([kept.base, kept.next], dtype=np.uint64))
    return places[start:stop]


def _forget_deletes(shop: Workshop, contract: Contract, compacted: int, now: int) -> Iterator[None]:
    """Below the mark a delete is all there is of its key. It goes unless something behind the mark is older than it."""
    expired = now - int(contract.retention.tombstones * 1e6)
    oldest = min(kept.min_order for kept in shop.kept(condition="next > ?", values=(compacted,)))
    due = shop.kept(condition="next <= ? AND deletes > 0 AND appended <= ?", values=(compacted, expired))
    for kept in due:
        events = shop.load(kept)
        gone = _is_delete(events) & below(events.data, order_of(oldest))
        if not gone.any():
            continue
        left, base = shop.without(kept, events, pa.array(~gone))
        last = int(events.offsets.to_numpy()[gone][-1])
        with shop.store.write() as connection:
            if not shop.replaced(connection, [kept], left, base, kept.appended):
                return
            connection.execute("UPDATE stream SET gone = max(gone, ?) WHERE id = ?", (last + 1, shop.id))
        yield


def _is_delete(events: Decoded) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = events.data.column("_op").to_numpy() == int(Op.DELETE)
    return found
