"""The Parquet sink: parts first, published files now and then, the manifest as the commit of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headwater.config import SinkConfig
from headwater.contracts.model import Contract
from headwater.errors import RowRefused, SinkError
from headwater.faults import failpoint
from headwater.mapping.evolve import conform
from headwater.mapping.fold import fold
from headwater.model import TIMESTAMP, Cursor, Events
from headwater.protocols import Guarantee, SinkState
from headwater.sinks import placing, shaping
from headwater.sinks.options import Options
from headwater.sinks.parquet import files, publish
from headwater.sinks.parquet.manifest import FOLDER, NAME, Manifest, Part, new_manifest, parsed
from headwater.sinks.parquet.store import Held, Store
from headwater.sinks.upsert import Table

PART_ROWS = 500_000
PARTS = 64
"""Parts are published at the latest when there are so many rows or files of them: they are in memory then."""

SHARE = 10
"""Publishing takes at most one part in so many of the time, as long as the limits above allow."""

LOCK = f"{FOLDER}/lock"


class ParquetSink:
    """See `Sink`. `store`: the folder of a stream."""

    def __init__(self, name: str, pipeline: str, config: SinkConfig, store: Callable[[str], Store]) -> None:
        self.name = name
        self.guarantee = Guarantee("exactly_once")
        self._pipeline = pipeline
        self._config = config
        self._options = Options.of(name, config)
        self._store = store
        self._tables: dict[str, Table] = {}
        self._believed: dict[str, Cursor | None] = {}
        self._due: dict[str, float] = {}
        self._pending: set[str] = set()

    # the target's shape

    def prepare(self, contract: Contract) -> None:
        table = Table(contract, self._config.mode, self._config.deletes == "soft")
        shaping.check_keyed(self.name, table)
        store = self._store(contract.stream)
        with store.alone(LOCK):
            found = self._manifest(store)
            manifest = self._created(store, table) if found is None else self._adopted(table, found)
            if manifest != found:
                self._commit(store, manifest)
            self._sweep(store, manifest)
            if found is not None and found.fields != manifest.fields and manifest.published:
                self._publish(store, table, manifest)
        self._tables[contract.stream] = table

    def _manifest(self, store: Store) -> Manifest | None:
        data = store.bytes(NAME)
        return None if data is None else parsed(data, store.path(NAME))

    def _created(self, store: Store, table: Table) -> Manifest:
        if strangers := [name for name in store.names("") if not name.startswith((".", "_"))]:
            raise SinkError(
                f"sink {self.name}: stream {table.contract.stream} needs the folder {store.path('')}, and it holds "
                f"{strangers[0]}, which Headwater did not make",
                hint="move its files away, or give the sink another folder",
            )
        return new_manifest(self._pipeline, self.name, table)

    def _adopted(self, table: Table, found: Manifest) -> Manifest:
        if found.owner != (self._pipeline, self.name, table.contract.stream):
            raise SinkError(
                f"sink {self.name}: stream {table.contract.stream} needs the table `{table.name}`, which belongs to "
                f"stream {found.stream} of sink {found.sink} in pipeline {found.pipeline}",
                hint="rename the stream, or give one of the two sinks another folder",
            )
        if found.cursor is None and not found.parts and not found.published:
            return replace(new_manifest(self._pipeline, self.name, table), number=found.number)
        shaping.check_same(self.name, table, (found.mode, found.soft, found.key))
        if found.version > table.contract.version:
            return found
        shaping.check_widening(self.name, table.contract, found.fields)
        return found.shaped(table)

    def _sweep(self, store: Store, manifest: Manifest) -> None:
        """Remove what a crash left behind."""
        kept = {NAME, LOCK, manifest.guards, *(part.name for part in manifest.parts)}
        for name in store.names(FOLDER):
            if f"{FOLDER}/{name}" not in kept:
                store.remove(f"{FOLDER}/{name}")
        for name in store.names(""):
            if name.endswith((".parquet", ".tmp")) and name not in manifest.published:
                store.remove(name)

    # the cursor

    def cursor(self, stream: str) -> Cursor | None:
        """Also the moment at which parts that wait are published, if nothing else comes."""
        if stream in self._pending and time.monotonic() >= self._due.get(stream, 0.0):
            self._publish_waiting(stream)
        manifest = self._manifest(self._store(stream))
        owner = (self._pipeline, self.name, stream)
        self._believed[stream] = manifest.cursor if manifest is not None and manifest.owner == owner else None
        return self._believed[stream]

    def move(self, stream: str, cursor: Cursor | None) -> None:
        store = self._store(stream)
        with store.alone(LOCK):
            self._commit(store, self._own(store, stream).at(cursor))
        self._believed[stream] = cursor

    def clear(self, stream: str) -> None:
        store = self._store(stream)
        with store.alone(LOCK):
            manifest = self._manifest(store)
            if manifest is not None and manifest.owner == (self._pipeline, self.name, stream):
                empty = replace(manifest.at(None), floor=None, parts=(), published=(), guards=None)
                self._commit(store, empty)
                failpoint("sink.parquet.after_clear")
                self._sweep(store, empty)
        self._believed[stream] = None
        self._pending.discard(stream)
        if (table := self._tables.pop(stream, None)) is not None:
            self.prepare(table.contract)

    def _own(self, store: Store, stream: str) -> Manifest:
        manifest = self._manifest(store)
        if manifest is None or manifest.owner != (self._pipeline, self.name, stream):
            raise shaping.unprepared(self.name, stream)
        return manifest

    def _commit(self, store: Store, manifest: Manifest) -> None:
        store.write(NAME, lambda stream: stream.write(manifest.to_bytes()))

    # writing

    def write(self, events: Events) -> None:
        table = shaping.check_version(self.name, self._tables.get(events.stream), events)
        store = self._store(events.stream)
        with store.alone(LOCK):
            manifest = self._manifest(store)
            stored = None if manifest is None else manifest.cursor
            believed = self._believed.get(events.stream, stored)
            if placing.moves(self.name, events, stored, believed):
                if manifest is None:
                    manifest = self._gone(events.stream, store)
                manifest = self._written(store, table, manifest, events)
                self._publish_if_due(store, table, manifest)
        if events.cursor is not None:
            self._believed[events.stream] = events.cursor

    def _gone(self, stream: str, store: Store) -> Manifest:
        raise SinkError(
            f"sink {self.name}: {store.path(NAME)} of stream {stream} was removed behind Headwater's back",
            hint="restart, and the table is filled from the beginning",
        )

    def _written(self, store: Store, table: Table, manifest: Manifest, events: Events) -> Manifest:
        data = conform(events.data, table.contract, events.type)
        if table.current:
            data, floor = self._folded(store, table, manifest, replace(events, data=data))
            manifest = replace(manifest, floor=floor)
        else:
            data = shaping.history(table, data, events)
        if data.num_rows:
            part = Part(manifest.number + 1, data.num_rows)
            store.write(part.name, files.filling(publish.part_schema(table), [data]))
            failpoint("sink.parquet.after_part")
            manifest = replace(manifest, number=part.number, parts=(*manifest.parts, part))
        manifest = manifest if events.cursor is None else manifest.at(events.cursor)
        self._commit(store, manifest)
        failpoint("sink.parquet.after_commit")
        return manifest

    def _folded(
        self, store: Store, table: Table, manifest: Manifest, events: Events
    ) -> tuple[pa.RecordBatch, placing.WATERMARK | None]:
        """A part of whole rows and deletes, and the floor that holds from now on."""
        data, floor = events.data, manifest.floor
        if floor is not None:
            data = data.filter(placing.above(data, floor))
        if "_unchanged" in data.schema.names:
            found = publish.rows_of(store, table, manifest, data.select([*table.key]))
            data = data.filter(pa.array(found.surpassing(data)))
        data = fold(data, table.key)
        if (truncation := placing.truncation(data)) is not None:
            floor, data = truncation, data.slice(1)
        if "_unchanged" in data.schema.names:
            data = self._completed(store, table, replace(manifest, floor=floor), replace(events, data=data))
        return _part(table, data), floor

    def _completed(self, store: Store, table: Table, manifest: Manifest, events: Events) -> pa.RecordBatch:
        """The rows that lack columns, filled from the table: a look at the whole of it, which such rows are worth."""
        data = events.data
        partial = pc.greater(pc.fill_null(pc.list_value_length(data.column("_unchanged")), 0), 0)
        rows = data.filter(partial)
        found = publish.rows_of(store, table, manifest, rows.select([*table.key]))
        lacks = shaping.lacking(rows, list(table.contract.fields))
        stale = pa.array(found.deleted_since(rows))
        homeless = pc.and_(pc.equal(found.places, -1), pc.invert(stale))
        if pc.any(homeless).as_py():
            row = pc.index(homeless, True).as_py()
            names = ", ".join(name for name, mask in lacks.items() if mask[row].as_py())
            raise RowRefused(
                f"sink {self.name}, {placing.named_row(replace(events, data=rows), table.key, row)}: the event does "
                f"not carry {names}, and table `{table.name}` has no row of that key to keep them from",
                hint=f"the sink lacks earlier events: `headwater sink rebuild {self.name} {events.stream}`",
            )
        filled = found.fill(rows, lacks).filter(pc.invert(stale))
        whole = data.filter(pc.invert(partial)).drop_columns(["_unchanged"])
        return pa.concat_batches([whole, filled.select(whole.schema.names)])

    # publishing

    def _publish_if_due(self, store: Store, table: Table, manifest: Manifest) -> None:
        self._pending.add(manifest.stream)
        full = manifest.rows >= PART_ROWS or len(manifest.parts) >= PARTS
        if manifest.parts and (full or time.monotonic() >= self._due.get(manifest.stream, 0.0)):
            self._publish(store, table, manifest)

    def _publish(self, store: Store, table: Table, manifest: Manifest) -> None:
        began = time.monotonic()
        manifest, leftovers = publish.published(store, table, manifest, guards=self._options.guards)
        failpoint("sink.parquet.after_publish")
        self._commit(store, manifest)
        failpoint("sink.parquet.before_sweep")
        for name in leftovers:
            store.remove(name)
        self._pending.discard(manifest.stream)
        self._due[manifest.stream] = time.monotonic() + SHARE * (time.monotonic() - began)

    def _publish_waiting(self, stream: str) -> None:
        store = self._store(stream)
        with store.alone(LOCK):
            manifest = self._own(store, stream)
            if manifest.parts:
                self._publish(store, self._tables[stream], manifest)
        self._pending.discard(stream)

    # reading

    def state(self, stream: str) -> SinkState:
        store = self._store(stream)
        table = self._tables.get(stream)
        if table is None:
            raise shaping.unprepared(self.name, stream)
        reading = self._read(store, table)
        return SinkState(next(reading), reading)

    def _read(self, store: Store, table: Table) -> Iterator[Any]:
        """The cursor, then the rows: one generator, so that whoever drops it closes the files."""
        with ExitStack() as stack:
            manifest, held = self._held(store, table, stack)
            yield None if manifest is None else manifest.cursor
            if manifest is not None and held is not None:
                yield from publish.state_rows(held, table, manifest)

    def _held(self, store: Store, table: Table, stack: ExitStack) -> tuple[Manifest | None, Held | None]:
        """A manifest and its files, open: taken again if a writer was at work in between."""
        manifest = self._manifest(store)
        while manifest is not None:
            attempt = stack.enter_context(ExitStack())
            try:
                held = Held(store, manifest.files, attempt)
            except FileNotFoundError as error:
                if manifest == self._manifest(store):
                    raise files.gone(store, _missing(store, manifest), table) from error
                held = None
            again = self._manifest(store)
            if held is not None and manifest == again:
                return manifest, held
            attempt.close()
            manifest = again
        return None, None

    def close(self) -> None:
        """Publishes what waits, so that plain readers see everything."""
        for stream in sorted(self._pending):
            self._publish_waiting(stream)


def _part(table: Table, data: pa.RecordBatch) -> pa.RecordBatch:
    now = pa.scalar(int(time.time() * 1e6), TIMESTAMP)
    at = pc.fill_null(data.column("_time"), now) if table.soft else pa.repeat(now, data.num_rows)
    schema = publish.part_schema(table)
    arrays = [at if name == "_at" else data.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _missing(store: Store, manifest: Manifest) -> str:
    """The first file that the manifest names and that is not there."""
    there = {*store.names(""), *(f"{FOLDER}/{name}" for name in store.names(FOLDER))}
    return next(name for name in manifest.files if name not in there)
