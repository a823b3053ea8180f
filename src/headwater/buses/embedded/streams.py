"""What the bus knows of its streams: declarations, states, groups and notes, as queries on one connection."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from headwater.buses.embedded import segments
from headwater.buses.embedded.store import Connection, Store
from headwater.contracts.model import Contract
from headwater.errors import BusError, CursorMismatch
from headwater.model import Cursor, Note
from headwater.protocols import Declaration, GroupState, PlacedNote, StreamState

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Row:
    """A stream's row, as far as appending and reading need it."""

    id: int
    name: str
    incarnation: str
    head: int
    floor: int
    gone: int
    nbytes: int
    max_bytes: int | None
    newest: bytes | None


def micros() -> int:
    return time.time_ns() // 1000


def to_time(microseconds: int) -> datetime.datetime:
    return EPOCH + datetime.timedelta(microseconds=microseconds)


def to_micros(moment: datetime.datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


def find(connection: Connection, stream: str) -> Row:
    row = connection.execute(
        "SELECT id, name, incarnation, head, floor, gone, nbytes, max_bytes, newest FROM stream WHERE name = ?",
        (stream,),
    ).fetchone()
    if row is None:
        raise unknown(connection, stream)
    return Row(*row)


def unknown(connection: Connection, stream: str) -> BusError:
    names = [name for (name,) in connection.execute("SELECT name FROM stream ORDER BY name LIMIT 20")]
    return BusError(
        f"there is no stream `{stream}` on the bus", hint=f"streams are: {', '.join(names)}" if names else "it is empty"
    )


def contract_of(connection: Connection, stream_id: int) -> Contract:
    (text,) = connection.execute("SELECT contract FROM stream WHERE id = ?", (stream_id,)).fetchone()
    return Contract.model_validate_json(text)


def declare(connection: Connection, declaration: Declaration) -> None:
    contract = declaration.contract
    values = (
        contract.model_dump_json(exclude_none=True),
        contract.version,
        declaration.source,
        declaration.fingerprint,
        contract.retention.max_bytes,
        contract.stream,
    )
    changed = connection.execute(
        "UPDATE stream SET contract = ?, version = ?, source = ?, fingerprint = ?, max_bytes = ? WHERE name = ?",
        values,
    )
    if not changed.rowcount:
        connection.execute(
            "INSERT INTO stream (contract, version, source, fingerprint, max_bytes, name, incarnation)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*values, uuid.uuid4().hex),
        )
    _declare_groups(connection, find(connection, contract.stream).id, declaration.groups)


def _declare_groups(connection: Connection, stream: int, groups: Iterable[str]) -> None:
    connection.execute("UPDATE reader SET declared = 0 WHERE stream = ?", (stream,))
    connection.executemany(
        "INSERT INTO reader (stream, name, declared) VALUES (?, ?, 1)"
        " ON CONFLICT (stream, name) DO UPDATE SET declared = 1",
        [(stream, group) for group in sorted(groups)],
    )


_STATES = """
SELECT s.name, s.incarnation, s.version, s.source, s.fingerprint, s.newest, s.head, s.nbytes, s.floor, s.last_append,
       s.paused, s.resuming, s.parked, s.parked_bytes, s.rejected,
       coalesce((SELECT min(base) FROM segment WHERE stream = s.id), s.head),
       (SELECT group_concat(name, char(10)) FROM reader WHERE stream = s.id AND declared AND NOT released)
FROM stream s ORDER BY s.name
"""


def standing_still(store: Store) -> frozenset[str]:
    return frozenset(name for (name,) in store.look("SELECT name FROM stream WHERE paused IS NOT NULL OR resuming"))


def states(connection: Connection) -> dict[str, StreamState]:
    return {row[0]: _state(row) for row in connection.execute(_STATES)}


def _state(row: tuple[object, ...]) -> StreamState:
    name, incarnation, version, source, fingerprint, newest, head, nbytes, floor, last = row[:10]
    paused, resuming, parked, parked_bytes, rejected, first, groups = row[10:]
    order = segments.order_of(newest) if isinstance(newest, bytes) else None
    return StreamState(
        stream=str(name),
        incarnation=str(incarnation),
        contract_version=_int(version),
        source=str(source),
        fingerprint=str(fingerprint),
        epoch=order.epoch if order else 0,
        order=order,
        first=_int(first),
        head=_int(head),
        nbytes=_int(nbytes),
        complete=floor == 0,
        last_append=to_time(last) if isinstance(last, int) else None,
        paused=None if paused is None else str(paused),
        resuming=bool(resuming),
        parked=_int(parked),
        parked_bytes=_int(parked_bytes),
        rejected=_int(rejected),
        groups=tuple(sorted(str(groups).split("\n"))) if groups else (),
    )


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def drop(connection: Connection, stream: str) -> None:
    """The stream vanishes at once; its segments, by then nobody's, are deleted afterwards, a few at a time."""
    row = find(connection, stream)
    connection.execute("DELETE FROM refused WHERE id IN (SELECT batch FROM rejected WHERE stream = ?)", (row.id,))
    for table in ("rejected", "parked", "note", "reader", "branch"):
        connection.execute(f"DELETE FROM {table} WHERE stream = ?", (row.id,))
    connection.execute("DELETE FROM stream WHERE id = ?", (row.id,))


# cursors


def checked(connection: Connection, row: Row, cursor: Cursor) -> int:
    """The offset of a cursor that belongs to this stream; `CursorMismatch` otherwise.

    A restored bus begins a new branch of history: cursors from before it hold up to the place where it begins.
    """
    offset = cursor.offset
    if cursor.incarnation != row.incarnation:
        upto = connection.execute(
            "SELECT upto FROM branch WHERE stream = ? AND incarnation = ?", (row.id, cursor.incarnation)
        ).fetchone()
        if upto is None:
            raise CursorMismatch(
                f"stream `{row.name}`: the cursor {offset} is of incarnation {cursor.incarnation}, "
                f"and the stream is {row.incarnation}: it, or the bus, was deleted and made again",
                hint=f"rebuild the reader: `headwater sink rebuild SINK --stream {row.name}`",
            )
        if offset > upto[0]:
            raise _ahead(row, offset, f"the bus was restored from a backup that ends at {upto[0]}")
    if offset > row.head:
        raise _ahead(row, offset, f"the stream ends at {row.head}: the bus was put back to an older state")
    return offset


def _ahead(row: Row, offset: int, why: str) -> CursorMismatch:
    return CursorMismatch(
        f"stream `{row.name}`: the cursor {offset} is ahead of the stream; {why}",
        hint=f"what the reader holds beyond that place is unknown to the bus; rebuild it: "
        f"`headwater sink rebuild SINK --stream {row.name}`",
    )


def group_cursor(connection: Connection, group: str, stream: str) -> Cursor | None:
    row = connection.execute(
        "SELECT s.incarnation, r.next FROM stream s JOIN reader r ON r.stream = s.id"
        " WHERE s.name = ? AND r.name = ? AND r.next IS NOT NULL",
        (stream, group),
    ).fetchone()
    return None if row is None else Cursor(row[0], (row[1],))


def commit(connection: Connection, group: str, stream: str, cursor: Cursor) -> None:
    row = find(connection, stream)
    offset = checked(connection, row, cursor)
    connection.execute(
        "INSERT INTO reader (stream, name, next, committed) VALUES (?, ?, ?, ?) ON CONFLICT (stream, name)"
        " DO UPDATE SET next = excluded.next, committed = excluded.committed, released = 0",
        (row.id, group, offset, micros()),
    )


def release(connection: Connection, group: str, stream: str | None) -> None:
    """A released group stays released, declared or not, until it commits a cursor again."""
    if stream is not None:
        find(connection, stream)
    connection.execute(
        "UPDATE reader SET released = 1, next = NULL, committed = NULL"
        " WHERE name = :group AND (:stream IS NULL OR stream = (SELECT id FROM stream WHERE name = :stream))",
        {"group": group, "stream": stream},
    )


def groups(connection: Connection, stream: str) -> dict[str, GroupState]:
    row = find(connection, stream)
    found = connection.execute(
        "SELECT name, next, committed, declared FROM reader WHERE stream = ? AND NOT released"
        " AND (declared OR next IS NOT NULL) ORDER BY name",
        (row.id,),
    )
    return {
        name: GroupState(
            None if place is None else Cursor(row.incarnation, (place,)),
            None if committed is None else to_time(committed),
            bool(declared),
        )
        for name, place, committed, declared in found
    }


# notes


def add_note(connection: Connection, stream: int, note: Note, place: int, now: int) -> None:
    connection.execute(
        "INSERT INTO note (stream, kind, text, place, time) VALUES (?, ?, ?, ?, ?)",
        (stream, note.kind, note.text, place, now),
    )


def notes(connection: Connection, stream: str) -> list[PlacedNote]:
    row = find(connection, stream)
    found = connection.execute("SELECT kind, text, place, time FROM note WHERE stream = ? ORDER BY id", (row.id,))
    return [PlacedNote(Note(stream, kind, text), place, to_time(time)) for kind, text, place, time in found]


def behind(connection: Connection, stream: str | None = None) -> list[tuple[str, str, int, int]]:
    """Declared groups that have not read all: group, stream, offset, head; the farthest behind first."""
    found = connection.execute(
        "SELECT r.name, s.name, coalesce(r.next, 0), s.head FROM reader r JOIN stream s ON s.id = r.stream"
        " WHERE r.declared AND NOT r.released AND coalesce(r.next, 0) < s.head"
        " AND (:stream IS NULL OR s.name = :stream) ORDER BY s.head - coalesce(r.next, 0) DESC",
        {"stream": stream},
    )
    return [(group, name, place, head) for group, name, place, head in found]
