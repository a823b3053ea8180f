"""Changes that wait inside the wall: parked ones, of streams that stand still, and quarantined ones.

Their record batches are whole Arrow IPC streams, as the source knew them.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.buses.embedded import streams
from headwater.buses.embedded.segments import order_of
from headwater.buses.embedded.store import Connection, Store, damaged
from headwater.errors import BusError, BusFull
from headwater.model import Changes, Order, Parked, Reading, Rejected, Reload, TableId
from headwater.protocols import RejectedRow

PART_ROWS = 65_536
PART_BYTES = 16 * 2**20
PAGE = 500


def park(connection: Connection, parked: Parked, limit: int) -> None:
    """Raises `BusFull` when the stream may hold back no more."""
    row = streams.find(connection, parked.stream)
    parts = [(_meta(part), _packed(part.data)) for part in _parts(parked.changes)]
    held, count = connection.execute("SELECT parked_bytes, parked FROM stream WHERE id = ?", (row.id,)).fetchone()
    added = sum(len(data) for _, data in parts)
    if held + added > limit:
        raise BusFull(
            f"stream `{parked.stream}` stands still and holds back {held:,} bytes of changes; {added:,} more would "
            f"pass its limit of {limit:,} (`bus: park_bytes`). Its source stops; nothing is lost",
            hint=f"`headwater status` says why it stands still; then `headwater resume {parked.stream}`",
        )
    connection.executemany(
        "INSERT INTO parked (stream, meta, nbytes, crc, data) VALUES (?, ?, ?, ?, ?)",
        [(row.id, meta, len(data), zlib.crc32(data), data) for meta, data in parts],
    )
    # Changes that were routed while somebody resumed the stream: it goes on standing still until they are mapped.
    connection.execute(
        "UPDATE stream SET parked = ?, parked_bytes = ?, resuming = resuming OR paused IS NULL,"
        " paused = coalesce(paused, 'changes came in while it was resumed') WHERE id = ?",
        (count + len(parts), held + added, row.id),
    )


def reject(connection: Connection, rejected: Rejected, source: str | None, now: int) -> None:
    row = streams.find(connection, rejected.stream)
    if source is None:
        (source,) = connection.execute("SELECT source FROM stream WHERE id = ?", (row.id,)).fetchone()
    done = 0
    for part in _parts(rejected.changes):
        data = _packed(part.data)
        made = connection.execute(
            "INSERT INTO refused (meta, crc, data) VALUES (?, ?, ?)", (_meta(part), zlib.crc32(data), data)
        )
        reasons = rejected.reasons.slice(done, len(part))
        connection.executemany(
            "INSERT INTO rejected (stream, batch, row, source, place, field, expected, got, key, time)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (row.id, made.lastrowid, number, source, place, *why, now)
                for number, (place, why) in enumerate(zip(_places(part.data), _texts(reasons), strict=True))
            ],
        )
        done += len(part)
    connection.execute("UPDATE stream SET rejected = rejected + ? WHERE id = ?", (done, row.id))


def _texts(reasons: pa.RecordBatch) -> Iterator[tuple[str | None, ...]]:
    # SQLite binds Python values one by one; only rows that broke their contract come here, and people read them.
    columns = [pc.fill_null(reasons.column(name), "") for name in ("field", "expected", "got")]
    values = [column.to_numpy(zero_copy_only=False) for column in (*columns, reasons.column("key"))]
    return zip(*values, strict=True)


def _places(data: pa.RecordBatch) -> list[bytes]:
    """Each row's order as the 16 bytes of `segments.order_bytes`."""
    places = np.zeros(data.num_rows, dtype=[("_epoch", ">u4"), ("_commit", ">u8"), ("_index", ">u4")])
    for name in ("_epoch", "_commit", "_index"):
        places[name] = data.column(name).to_numpy()
    packed = places.tobytes()
    return [packed[start : start + 16] for start in range(0, len(packed), 16)]


def remove(connection: Connection, parked: Sequence[int], rejected: Sequence[int]) -> None:
    """Take these out for good. Unknown numbers are an error: somebody else settled them."""
    for number in parked:
        row = connection.execute("SELECT stream, nbytes FROM parked WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise _settled("parked changes", number)
        connection.execute("DELETE FROM parked WHERE id = ?", (number,))
        connection.execute(
            "UPDATE stream SET parked = parked - 1, parked_bytes = parked_bytes - ? WHERE id = ?", (row[1], row[0])
        )
    for number in rejected:
        row = connection.execute("SELECT stream, batch FROM rejected WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise _settled("quarantined row", number)
        connection.execute("DELETE FROM rejected WHERE number = ?", (number,))
        connection.execute("UPDATE stream SET rejected = rejected - 1 WHERE id = ?", (row[0],))
        connection.execute(
            "DELETE FROM refused WHERE id = :batch AND NOT EXISTS (SELECT 1 FROM rejected WHERE batch = :batch)",
            {"batch": row[1]},
        )
    flow_again(connection)


def _settled(what: str, number: int) -> BusError:
    return BusError(
        f"there is no {what} with number {number}; nothing was changed",
        hint="it was replayed or dropped meanwhile: `headwater quarantine list` shows what is there",
    )


def pause(connection: Connection, stream: str, reason: str) -> None:
    row = streams.find(connection, stream)
    connection.execute("UPDATE stream SET paused = ?, resuming = 0 WHERE id = ?", (reason, row.id))


def resume(connection: Connection, stream: str) -> None:
    row = streams.find(connection, stream)
    connection.execute("UPDATE stream SET resuming = paused IS NOT NULL WHERE id = ?", (row.id,))
    flow_again(connection)


def flow_again(connection: Connection) -> None:
    """A stream that was asked to resume flows once nothing of it is parked."""
    connection.execute("UPDATE stream SET paused = NULL, resuming = 0 WHERE resuming AND parked = 0")


def parked(store: Store, stream: str) -> Iterator[tuple[int, Changes]]:
    last = 0
    while True:
        with store.snapshot() as connection:
            row = connection.execute(
                "SELECT p.id, p.meta, p.crc, p.data FROM parked p JOIN stream s ON s.id = p.stream"
                " WHERE s.name = ? AND p.id > ? ORDER BY p.id LIMIT 1",
                (stream, last),
            ).fetchone()
        if row is None:
            return
        last, meta, crc, data = row
        yield last, _changes(store, f"parked changes {last} of stream `{stream}`", meta, _sound(store, data, crc, last))


def rejected(store: Store, stream: str | None) -> Iterator[RejectedRow]:
    last = 0
    while True:
        with store.snapshot() as connection:
            rows = connection.execute(
                "SELECT r.number, s.name, r.source, r.place, r.key, r.field, r.expected, r.got, r.time"
                " FROM rejected r JOIN stream s ON s.id = r.stream"
                " WHERE r.number > :last AND (:stream IS NULL OR s.name = :stream) ORDER BY r.number LIMIT :page",
                {"last": last, "stream": stream, "page": PAGE},
            ).fetchall()
        for number, name, source, place, key, field, expected, got, time in rows:
            last = number
            when = streams.to_time(time)
            yield RejectedRow(number, name, source, order_of(place), key, field, expected, got, when)
        if len(rows) < PAGE:
            return


def rejected_changes(store: Store, numbers: Sequence[int]) -> list[Changes]:
    found = []
    batches: dict[int, Changes] = {}
    with store.snapshot() as connection:
        for number in numbers:
            row = connection.execute("SELECT batch, row FROM rejected WHERE number = ?", (number,)).fetchone()
            if row is None:
                raise _settled("quarantined row", number)
            if row[0] not in batches:
                batches[row[0]] = _refused(store, connection, row[0])
            whole = batches[row[0]]
            found.append(dataclasses.replace(whole, data=whole.data.slice(row[1], 1)))
    return found


def _refused(store: Store, connection: Connection, number: int) -> Changes:
    meta, crc, data = connection.execute("SELECT meta, crc, data FROM refused WHERE id = ?", (number,)).fetchone()
    return _changes(store, f"quarantined changes {number}", meta, _sound(store, data, crc, number))


def waiting_keys(connection: Connection, stream: str) -> frozenset[str]:
    found = connection.execute(
        "SELECT DISTINCT r.key FROM rejected r JOIN stream s ON s.id = r.stream WHERE s.name = ? AND r.key IS NOT NULL",
        (stream,),
    )
    return frozenset(key for (key,) in found)


# record batches


def _parts(changes: Changes) -> Iterator[Changes]:
    """Slices that are small enough for a blob; only the last one ends a reading."""
    rows = max(len(changes), 1)
    count = max(-(-rows // PART_ROWS), -(-changes.data.nbytes // PART_BYTES), 1)
    size = -(-rows // count)
    for start in range(0, rows, size):
        reading = changes.reading
        if reading is not None and start + size < rows:
            reading = dataclasses.replace(reading, last=False)
        yield dataclasses.replace(changes, data=changes.data.slice(start, size), reading=reading)


def _packed(data: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _sound(store: Store, data: bytes, crc: int, number: int) -> bytes:
    if not is_sound(data, crc):
        raise damaged(store.path, f"the checksum of waiting changes {number} does not match")
    return data


def is_sound(data: bytes, crc: int) -> bool:
    return zlib.crc32(data) == crc


def _changes(store: Store, what: str, meta: str, data: bytes) -> Changes:
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            batches = list(reader)
            batch = batches[0]
    except (pa.ArrowException, IndexError) as error:
        raise damaged(store.path, f"{what} cannot be decoded: {error}") from error
    about: dict[str, Any] = json.loads(meta)
    return Changes(TableId(*about["table"]), batch, about["stream"], _reading(about["reading"]))


def _meta(changes: Changes) -> str:
    reading = changes.reading
    about = {
        "table": [changes.table.schema, changes.table.name],
        "stream": changes.stream,
        "reading": None
        if reading is None
        else {
            "reload": reading.reload.value,
            "since": [reading.since.epoch, reading.since.commit, reading.since.index],
            "last": reading.last,
        },
    }
    return json.dumps(about)


def _reading(about: dict[str, Any] | None) -> Reading | None:
    return None if about is None else Reading(Reload(about["reload"]), Order(*about["since"]), about["last"])
