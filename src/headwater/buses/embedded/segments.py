"""Events as segments: record batches as compressed Arrow IPC messages, and what is known of them without opening one.

A message is stored without its schema (Arrow columnar format, "Encapsulated message format"). Two columns are the
bus's own and are taken off before anybody sees them: `_offset`, in segments with holes, and `_appended`, where several
appends were merged and some event has no `_time` of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater import native
from headwater.errors import BusError
from headwater.model import ORDER_FIELDS, TIMESTAMP, Events, Op, Order

CODECS = ("lz4", "zstd", "none")
PIECE_ROWS = 65_536
PIECE_BYTES = 8 * 2**20
SMALL_BYTES = 32 * 1024
"""Below this, compression costs more than it saves: a price for each column, whatever its length. Merging compresses."""
OFFSET = pa.field("_offset", pa.uint64(), nullable=False)
APPENDED = pa.field("_appended", pa.int64())
Places = tuple[int, ...] | None
"""Where the columns of `_NOTED` are in a batch; None where they are not of these types."""
_NOTED = {field.name: field.type for field in ORDER_FIELDS[:5]}
_ORDER = struct.Struct(">IQI")
_PLACE = struct.Struct(">QQQ")


@dataclass(frozen=True, slots=True)
class Shape:
    """What events of one segment share; adjacent ones of the same shape may become one segment."""

    schema: pa.Schema = dataclasses.field(compare=False)
    digest: bytes
    """Of the schema with all its metadata, which `==` on schemas passes over."""
    type: str | None
    version: int
    source: str
    seed: bytes
    content_ids: bool

    def events(self, stream: str, data: pa.RecordBatch) -> Events:
        return Events(stream, self.version, data, self.type, self.source, self.seed, self.content_ids)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A segment that is ready to be stored, but for its place."""

    shape: Shape
    count: int
    times: tuple[int, int]
    orders: tuple[bytes, bytes]
    deletes: int
    codec: str
    data: pa.Buffer


@dataclass(frozen=True, slots=True)
class Decoded:
    data: pa.RecordBatch
    offsets: pa.Array
    appended: pa.Array | None

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def filter(self, mask: pa.Array) -> Decoded:
        appended = None if self.appended is None else self.appended.filter(mask)
        return Decoded(self.data.filter(mask), self.offsets.filter(mask), appended)


def shape_of(events: Events) -> Shape:
    schema = events.data.schema
    return Shape(schema, digest(schema), events.type, events.version, events.source, events.seed, events.content_ids)


def pieces(events: Iterable[Events]) -> Iterator[tuple[str, Shape, pa.RecordBatch]]:
    """Adjacent events of one stream and shape as one piece, up to a size; larger batches in slices."""
    waiting: list[pa.RecordBatch] = []
    last: tuple[str, Shape] | None = None
    rows = nbytes = 0
    for part in events:
        kind = (part.stream, shape_of(part))
        if waiting and (kind != last or rows >= PIECE_ROWS or nbytes >= PIECE_BYTES):
            assert last is not None
            yield from _sliced(*last, waiting, nbytes)
            waiting, rows, nbytes = [], 0, 0
        if len(part):
            waiting.append(part.data)
            rows, nbytes, last = rows + len(part), nbytes + size(part.data), kind
    if waiting and last is not None:
        yield from _sliced(*last, waiting, nbytes)


def _sliced(
    stream: str, shape: Shape, batches: list[pa.RecordBatch], nbytes: int
) -> Iterator[tuple[str, Shape, pa.RecordBatch]]:
    batch = joined(batches)
    parts = max(-(-batch.num_rows // PIECE_ROWS), -(-nbytes // (2 * PIECE_BYTES)))
    rows = -(-batch.num_rows // parts)
    for start in range(0, batch.num_rows, rows):
        yield stream, shape, batch.slice(start, rows)


def size(batch: pa.RecordBatch) -> int:
    """Bytes of its message before compression: much sooner known than `nbytes`, which asks each column."""
    return int(pa.ipc.get_record_batch_size(batch))


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def encoded(shape: Shape, batch: pa.RecordBatch, codec: str, now: int, places: Places = None) -> Encoded:
    """A batch of events that are being appended."""
    data, used = message(batch, codec)
    return Encoded(shape, batch.num_rows, *facts(batch, now, places), used, data)


def facts(batch: pa.RecordBatch, now: int, places: Places) -> tuple[tuple[int, int], tuple[bytes, bytes], int]:
    """What is noted beside the records: the range of times and of orders, and how many deletes."""
    module = native.compiled("headwater.buses.embedded.segments_native")
    if module is None or places is None:
        return time_range(batch, now), order_range(batch), deletes(batch)
    times, low, high, deleted = module.facts(batch, places, now)
    return times, (_ORDER.pack(*low), _ORDER.pack(*high)), deleted


def places_in(schema: pa.Schema) -> Places:
    """Raises `BusError` for a schema that no segment can have."""
    _refuse_dictionaries(schema)
    found = [schema.get_field_index(name) for name in _NOTED]
    return tuple(found) if [schema.types[place] for place in found if place >= 0] == [*_NOTED.values()] else None


def repacked(shape: Shape, found: Decoded, appended: int, codec: str) -> Encoded:
    """Events that were stored before. They keep their offsets where there are holes, and their append times where
    some event has no time of its own."""
    batch, times = found.data, pc.min_max(event_times(found, appended))
    if int(found.offsets[-1].as_py()) - int(found.offsets[0].as_py()) + 1 != batch.num_rows:
        batch = batch.append_column(OFFSET, found.offsets)
    if batch.column("_time").null_count:
        batch = batch.append_column(APPENDED, append_times(found, appended))
    data, used = message(batch, codec)
    shape = dataclasses.replace(shape, schema=batch.schema, digest=digest(batch.schema))
    span = (times["min"].as_py(), times["max"].as_py())
    return Encoded(shape, batch.num_rows, span, order_range(batch), deletes(batch), used, data)


def append_times(found: Decoded, appended: int) -> pa.Array:
    return found.appended if found.appended is not None else pa.repeat(pa.scalar(appended, pa.int64()), len(found))


def deletes(batch: pa.RecordBatch) -> int:
    return int(np.count_nonzero(batch.column("_op").to_numpy() == int(Op.DELETE)))


def message(batch: pa.RecordBatch, codec: str) -> tuple[pa.Buffer, str]:
    """The IPC message of a batch, without schema, and the codec that was used."""
    used = "none" if size(batch) < SMALL_BYTES else codec
    if used == "none":
        return batch.serialize(), used
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=used)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().slice(batch.schema.serialize().size), used


def decoded(data: bytes | pa.Buffer, schema: pa.Schema, base: int) -> Decoded:
    """The record batch of a message, the bus's own columns taken off. Raises `pa.ArrowInvalid` on bad bytes."""
    batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
    own = [name for name in (OFFSET.name, APPENDED.name) if schema.get_field_index(name) >= 0]
    if not own:
        return Decoded(batch, dense(base, batch.num_rows), None)
    offsets = batch.column(OFFSET.name) if OFFSET.name in own else dense(base, batch.num_rows)
    appended = batch.column(APPENDED.name) if APPENDED.name in own else None
    return Decoded(batch.drop_columns(own), offsets, appended)


def dense(base: int, count: int) -> pa.Array:
    return pa.array(np.arange(base, base + count, dtype=np.uint64))


def checksum(data: bytes | pa.Buffer, base: int, end: int, count: int) -> int:
    """Covers the bytes and the place: a segment that turns up elsewhere is damage too."""
    return zlib.crc32(data, zlib.crc32(_PLACE.pack(base, end, count)))


def order_bytes(order: Order) -> bytes:
    return _ORDER.pack(order.epoch, order.commit, order.index)


def order_of(data: bytes) -> Order:
    return Order(*_ORDER.unpack(data))


def order_range(batch: pa.RecordBatch) -> tuple[bytes, bytes]:
    """The least and the greatest order among the events."""
    if batch.num_rows == 1:
        only = _ORDER.pack(*(batch.column(name)[0].as_py() for name in ("_epoch", "_commit", "_index")))
        return only, only
    columns = [batch.column(name).to_numpy() for name in ("_epoch", "_commit", "_index")]
    return _extreme(columns, np.min), _extreme(columns, np.max)


def below(batch: pa.RecordBatch | pa.Table, order: Order, *, or_at: bool = False) -> npt.NDArray[np.bool_]:
    """Which events come before `order`."""
    epoch, commit, index = (batch.column(name).to_numpy() for name in ("_epoch", "_commit", "_index"))
    at_epoch = epoch == order.epoch
    at_commit = at_epoch & (commit == np.uint64(order.commit))
    within = index <= order.index if or_at else index < order.index
    found: npt.NDArray[np.bool_] = (
        (epoch < order.epoch) | (at_epoch & (commit < np.uint64(order.commit))) | (at_commit & within)
    )
    return found


def _extreme(columns: list[Any], pick: Any) -> bytes:
    found = []
    mask = None
    for column in columns:
        values = column if mask is None else column[mask]
        best = pick(values)
        found.append(int(best))
        mask = column == best if mask is None else mask & (column == best)
    return _ORDER.pack(*found)


def time_range(batch: pa.RecordBatch, now: int) -> tuple[int, int]:
    """Microseconds since 1970 of the earliest and latest event; `now` stands for events without a time."""
    times = batch.column("_time")
    if times.null_count == len(times):
        return now, now
    counts = times.view(pa.int64())
    if not times.null_count:
        values = counts.to_numpy()
        return int(values.min()), int(values.max())
    span = pc.min_max(counts)
    return min(span["min"].as_py(), now), max(span["max"].as_py(), now)


def event_times(decoded: Decoded, appended: int) -> pa.Array:
    """int64 microseconds of each event: its own time, else when it was appended."""
    times = decoded.data.column("_time").cast(TIMESTAMP).cast(pa.int64())
    return pc.coalesce(times, decoded.appended if decoded.appended is not None else pa.scalar(appended, pa.int64()))


def digest(schema: pa.Schema) -> bytes:
    return hashlib.blake2b(schema.serialize(), digest_size=16).digest()


def schema_from(data: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(data))


def _refuse_dictionaries(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_dictionary(field.type):
            raise BusError(
                f"column `{field.name}` is dictionary-encoded; a segment holds plain columns",
                hint=f"cast it to {field.type.value_type} in the mapping",
            )
