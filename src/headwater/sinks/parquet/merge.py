"""Parts and a published file as one: which rows are the newest of their keys, batch by batch.

The parts, the guards and the keys of one batch of the published file are in memory at a time; never the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping.fold import key_codes
from headwater.model import TIMESTAMP
from headwater.sinks import placing
from headwater.sinks.upsert import Table

Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class Merge:
    """`delta`: the folded parts, one row a key, deletes included. `guards`: deletes of earlier parts.

    After `rows` is exhausted, `tombstones` are the deletes that stand.
    """

    table: Table
    delta: pa.RecordBatch
    guards: pa.RecordBatch
    floor: placing.WATERMARK | None
    tombstones: pa.RecordBatch | None = None

    def rows(self, base: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The live rows (with soft deletes: all rows) in the table's columns. `base`: what was published before."""
        self._drop_void()
        standing = np.ones(self.delta.num_rows, dtype=bool)
        kept = np.ones(self.delta.num_rows, dtype=bool)
        for batch in base:
            yield from self._of_base(_above(batch, self.floor), standing, kept)
        deleted = placing.deletes(self.delta).to_numpy(zero_copy_only=False)
        self._keep_tombstones(deleted & standing)
        last = kept if self.table.soft else kept & ~deleted
        yield self._shaped(self.delta.filter(pa.array(last)))

    def _drop_void(self) -> None:
        """What a guard or the floor says is over."""
        self.delta, self.guards = _above(self.delta, self.floor), _above(self.guards, self.floor)
        hits = matches(self.delta, self.guards, self.table.key)
        over = (hits >= 0) & ~newer(self.delta, self.guards, hits)
        if over.any():
            self.delta = self.delta.filter(pa.array(~over))

    def _of_base(
        self, batch: pa.RecordBatch, standing: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]
    ) -> Iterator[pa.RecordBatch]:
        hits = matches(batch, self.delta, self.table.key)
        found = np.flatnonzero(hits >= 0)
        base_wins = ~_newer_than(self.delta, hits[found], batch, found)
        loses = hits[found[base_wins]]
        standing[loses] = kept[loses] = False
        keeps = np.ones(batch.num_rows, dtype=bool)
        keeps[found[~base_wins]] = False
        yield batch.filter(pa.array(keeps))
        if self.table.soft:
            yield from self._softened(batch, found[~base_wins], hits[found[~base_wins]], kept)

    def _softened(
        self, batch: pa.RecordBatch, rows: Rows, hits: Rows, kept: npt.NDArray[np.bool_]
    ) -> Iterator[pa.RecordBatch]:
        """Rows of the base that a delete marks: values stay, order and mark change."""
        deleted = placing.deletes(self.delta).to_numpy(zero_copy_only=False)[hits]
        rows, hits = rows[deleted], hits[deleted]
        kept[hits] = False
        old, new = batch.take(pa.array(rows)), self._shaped(self.delta.take(pa.array(hits)))
        taken = self.table.own.names
        arrays = [(new if name in taken else old).column(name) for name in self.table.columns.names]
        yield pa.RecordBatch.from_arrays(arrays, schema=self.table.columns)

    def _keep_tombstones(self, standing: npt.NDArray[np.bool_]) -> None:
        if not self.table.guarded:
            self.tombstones = self.guards.slice(0, 0)
            return
        fresh = self.delta.filter(pa.array(standing)).select(self.guards.schema.names)
        hits = matches(self.guards, self.delta, self.table.key)
        old = self.guards.filter(pa.array(hits < 0))
        self.tombstones = pa.concat_batches([old, fresh.cast(self.guards.schema)])

    def _shaped(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of the parts in the table's columns."""
        if not self.table.soft:
            return data.select(self.table.columns.names)
        deleted = placing.deletes(data)
        now = pa.scalar(None, TIMESTAMP)
        given = {"_deleted": deleted, "_deleted_at": pc.if_else(deleted, data.column("_at"), now)}
        arrays = [given[n] if n in given else data.column(n) for n in self.table.columns.names]
        return pa.RecordBatch.from_arrays(arrays, schema=self.table.columns)


def _above(batch: pa.RecordBatch, floor: placing.WATERMARK | None) -> pa.RecordBatch:
    return batch if floor is None else batch.filter(placing.above(batch, floor))


def matches(left: pa.RecordBatch, right: pa.RecordBatch, key: tuple[str, ...]) -> Rows:
    """For each row of `left` the row of `right` with the same key, or -1. Keys of `right` are unique."""
    if not right.num_rows or not left.num_rows:
        return np.full(left.num_rows, -1, dtype=np.int64)
    both = pa.concat_batches([left.select(key), right.select(key)])
    codes, size = key_codes(both, key)
    places = np.full(size, -1, dtype=np.int64)
    places[codes[left.num_rows :]] = np.arange(right.num_rows)
    return places[codes[: left.num_rows]]


def newer(left: pa.RecordBatch, right: pa.RecordBatch, hits: Rows) -> npt.NDArray[np.bool_]:
    """Which rows of `left` have an order above the row of `right` that they hit; False without a hit."""
    result = np.zeros(left.num_rows, dtype=bool)
    found = np.flatnonzero(hits >= 0)
    result[found] = _newer_than(left, found, right, hits[found])
    return result


def _newer_than(left: pa.RecordBatch, rows: Rows, right: pa.RecordBatch, others: Rows) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(rows), dtype=bool)
    equal = np.ones(len(rows), dtype=bool)
    for name in placing.ORDER:
        a, b = np.asarray(left.column(name))[rows], np.asarray(right.column(name))[others]
        result |= equal & (a > b)
        equal &= a == b
    return result
