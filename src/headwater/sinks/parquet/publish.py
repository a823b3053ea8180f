"""From parts to published files, and the table's rows as the manifest says they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.faults import failpoint
from headwater.mapping.fold import fold
from headwater.model import TIMESTAMP
from headwater.sinks import shaping
from headwater.sinks.parquet import files
from headwater.sinks.parquet.manifest import FOLDER, Manifest
from headwater.sinks.parquet.merge import Merge, matches, newer
from headwater.sinks.parquet.store import Readable, Store
from headwater.sinks.upsert import CURRENT, Table

CURRENT_FILE = "current.parquet"
FILE_ROWS = 1_000_000
"""A history file is closed at so many rows; until then it is replaced by longer ones."""


def part_schema(table: Table) -> pa.Schema:
    if not table.current:
        return table.columns
    return pa.schema([("_op", pa.int8()), *CURRENT, ("_at", TIMESTAMP), *table.fields])


def guard_schema(table: Table) -> pa.Schema:
    return pa.schema([*(table.fields.field(name) for name in table.key), *CURRENT, ("_at", TIMESTAMP)])


def published(store: Store, table: Table, manifest: Manifest, *, guards: float) -> tuple[Manifest, list[str]]:
    """Write the files that make the parts superfluous. Returns the manifest to commit and what may be removed then.

    `guards`: seconds for which deleted keys are remembered.
    """
    done = (
        _publish_current(store, table, manifest, guards) if table.current else _publish_history(store, table, manifest)
    )
    leftovers = [part.name for part in manifest.parts]
    if manifest.guards is not None and manifest.guards != done.guards:
        leftovers.append(manifest.guards)
    return replace(done, parts=()), leftovers


def state_rows(store: Readable, table: Table, manifest: Manifest) -> Iterator[pa.RecordBatch]:
    """What `Sink.state` gives."""
    if not table.current:
        yield from _history_rows(store, table, manifest)
        return
    names = [*CURRENT.names, *table.fields.names]
    for batch in _merge(store, table, manifest).rows(_base(store, table, manifest)):
        alive = batch.filter(pc.invert(batch.column("_deleted"))) if table.soft else batch
        if alive.num_rows:
            yield alive.select(names)


# current


def _merge(store: Readable, table: Table, manifest: Manifest) -> Merge:
    schema = part_schema(table)
    parts = [batch for part in manifest.parts for batch in files.reading(store, part.name, schema, table)]
    delta = fold(pa.Table.from_batches(parts, schema), table.key)
    guards = guard_schema(table)
    known = [] if manifest.guards is None else list(files.reading(store, manifest.guards, guards, table))
    return Merge(table, delta, pa.concat_batches([_empty(guards), *known]), manifest.floor)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _base(store: Readable, table: Table, manifest: Manifest) -> Iterator[pa.RecordBatch]:
    for name in manifest.published:
        yield from files.reading(store, name, table.columns, table)


def _publish_current(store: Store, table: Table, manifest: Manifest, guards: float) -> Manifest:
    merge = _merge(store, table, manifest)
    rows = merge.rows(_base(store, table, manifest))
    store.write(CURRENT_FILE, files.filling(table.columns, rows, _notes(manifest)))
    failpoint("sink.parquet.after_current")
    assert merge.tombstones is not None
    expired = pa.scalar(int((time.time() - guards) * 1e6), TIMESTAMP)
    kept = merge.tombstones.filter(pc.greater_equal(merge.tombstones.column("_at"), expired))
    name = None
    if kept.num_rows:
        name = f"{FOLDER}/{manifest.number:012d}.guards"
        store.write(name, files.filling(guard_schema(table), [kept]))
    return replace(manifest, published=(CURRENT_FILE,), guards=name)


def _notes(manifest: Manifest) -> dict[str, str]:
    return {
        "stream": manifest.stream,
        "incarnation": manifest.incarnation or "",
        "offset": ",".join(map(str, manifest.offsets)),
        "part": str(manifest.number),
    }


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of the table for some keys. `places`: for each key its row, or -1."""

    rows: pa.RecordBatch
    places: pa.Array
    tombstones: pa.RecordBatch
    key: tuple[str, ...]

    def surpassing(self, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which of `rows` are newer than what is here."""
        hits = matches(rows, self.rows, self.key)
        return (hits < 0) | newer(rows, self.rows, hits)

    def deleted_since(self, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which of `rows` are not newer than a delete of their key."""
        hits = matches(rows, self.tombstones, self.key)
        return (hits >= 0) & ~newer(rows, self.tombstones, hits)

    def fill(self, rows: pa.RecordBatch, lacks: dict[str, pa.Array]) -> pa.RecordBatch:
        """`rows` with the columns they lack; a row that has no place gets null."""
        places = pc.if_else(pc.equal(self.places, -1), pa.scalar(None, pa.int64()), self.places)
        arrays = []
        for name in rows.schema.names:
            array = rows.column(name)
            if name in lacks:
                array = _chosen(lacks[name], self.rows.column(name).take(places), array)
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)


def _chosen(mask: pa.Array, left: pa.Array, right: pa.Array) -> pa.Array:
    """`if_else` for any type, nested ones included."""
    count = len(mask)
    take = np.where(mask.to_numpy(zero_copy_only=False), np.arange(count), np.arange(count) + count)
    return pa.concat_arrays([left, right]).take(pa.array(take))


def rows_of(store: Readable, table: Table, manifest: Manifest, keys: pa.RecordBatch) -> Found:
    """The live rows with these keys, and the deletes that stand."""
    merge = _merge(store, table, manifest)
    found, deleted = [_empty(table.columns)], [_empty(guard_schema(table))]
    for batch in merge.rows(_base(store, table, manifest)):
        batch = batch.filter(pa.array(matches(batch, keys, table.key) >= 0))
        if table.soft:
            gone = batch.column("_deleted")
            dead = batch.filter(gone)
            arrays = [dead.column("_deleted_at" if n == "_at" else n) for n in guard_schema(table).names]
            deleted.append(pa.RecordBatch.from_arrays(arrays, schema=guard_schema(table)))
            batch = batch.filter(pc.invert(gone))
        found.append(batch)
    assert merge.tombstones is not None
    rows = pa.concat_batches(found)
    tombstones = pa.concat_batches(deleted) if table.soft else merge.tombstones
    return Found(rows, pa.array(matches(keys, rows, table.key)), tombstones, table.key)


# history


def _publish_history(store: Store, table: Table, manifest: Manifest) -> Manifest:
    """Add the parts to the last file, or to a new one when that is full."""
    names = manifest.published
    open_name = names[-1] if names and files.count(store, names[-1]) < FILE_ROWS else None
    name = open_name or f"events-{len(names) + 1:06d}.parquet"
    schema = published_schema(table)
    batches = _lettered(_joined(store, table, manifest, open_name), schema)
    store.write(name, files.filling(schema, batches, _notes(manifest)))
    failpoint("sink.parquet.after_history")
    return manifest if open_name else replace(manifest, published=(*names, name))


def published_schema(table: Table) -> pa.Schema:
    return pa.schema([pa.field("_op", pa.string()) if f.name == "_op" else f for f in table.columns])


def _joined(store: Readable, table: Table, manifest: Manifest, name: str | None) -> Iterator[pa.RecordBatch]:
    """A published file and the parts that are not in it: it may be newer than the manifest, after a crash."""
    last = 0
    if name is not None:
        last = int(files.notes_of(store, name)["part"])
        yield from files.reading(store, name, table.columns, table)
    for part in manifest.parts:
        if part.number > last:
            yield from files.reading(store, part.name, table.columns, table)


def _history_rows(store: Readable, table: Table, manifest: Manifest) -> Iterator[pa.RecordBatch]:
    for name in manifest.published[:-1]:
        yield from files.reading(store, name, table.columns, table)
    yield from _joined(store, table, manifest, manifest.published[-1] if manifest.published else None)


def _lettered(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        place = batch.schema.get_field_index("_op")
        letters = shaping.LETTERS.take(pc.subtract(batch.column(place), pa.scalar(1, pa.int8())))
        arrays = [letters if i == place else column for i, column in enumerate(batch.columns)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
