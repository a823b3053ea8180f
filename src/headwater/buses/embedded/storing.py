"""Segments as rows of bus.db.

A small append is one statement. Python lets other threads run behind each step of SQLite, and takes back the right to
go on only after they had their time, so that ten short statements cost more than their work. What an append does for a
segment is therefore a trigger of its own connection: the segment, its records, the stream's head and the capture's
position go in together, and a statement outside a transaction is one (https://www.sqlite.org/lang_transaction.html,
"implicit versus explicit"). The trigger refuses what is not as the appender remembers it; then nothing was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from headwater.buses.embedded import segments
from headwater.buses.embedded.files import Place
from headwater.buses.embedded.segments import Encoded
from headwater.buses.embedded.store import Connection
from headwater.model import Position

AT_ONCE = 16
"""Segments that one statement adds at the most."""

_COLUMNS = (
    "stream", "base", "next", "count", "deletes", "min_time", "max_time", "appended", "min_order", "max_order", "type",
    "version", "source", "seed", "content_ids", "codec", "nbytes", "crc", "shape",
)  # fmt: skip
_BESIDE = ("data", "capture", "epoch", "commit_", "token")
_NO_PLACE = (None, None, None, None)

_INSERT = f"INSERT INTO segment ({', '.join(_COLUMNS)}, file, place) VALUES ({', '.join('?' * (len(_COLUMNS) + 2))})"
_MOVE = "INSERT OR REPLACE INTO position (source, epoch, place, token)"
MOVING = f"{_MOVE} VALUES (?, ?, ?, ?)"
"""The statement that moves a position; its values are those of `placed`."""
_ADD = f"({', '.join('?' * (len(_COLUMNS) + len(_BESIDE)))})"


def prepare(connection: Connection, max_bytes: int | None) -> None:
    """Make the trigger. `max_bytes`: of the whole bus."""
    columns = ", ".join(f"NULL AS {name}" for name in (*_COLUMNS, *_BESIDE))
    connection.execute(f"CREATE TEMP VIEW adding AS SELECT {columns}")
    full = "" if max_bytes is None else f"OR (SELECT sum(nbytes + parked_bytes) FROM stream) > {max_bytes:d}"
    connection.execute(
        f"""CREATE TEMP TRIGGER add_segment INSTEAD OF INSERT ON adding BEGIN
            UPDATE stream SET head = NEW.next, nbytes = nbytes + NEW.nbytes, last_append = NEW.appended,
                newest = max(coalesce(newest, NEW.max_order), NEW.max_order)
                WHERE id = NEW.stream AND head = NEW.base AND (max_bytes IS NULL OR nbytes + NEW.nbytes <= max_bytes);
            SELECT RAISE(ABORT, 'not as it was') WHERE changes() = 0 {full};
            INSERT INTO segment ({", ".join(_COLUMNS)}) VALUES ({", ".join(f"NEW.{name}" for name in _COLUMNS)});
            INSERT INTO records (segment, data) VALUES (last_insert_rowid(), NEW.data);
            {_MOVE} SELECT NEW.capture, NEW.epoch, NEW.commit_, NEW.token WHERE NEW.capture IS NOT NULL;
        END"""
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """A segment as it will be stored. `row`: the columns that need no connection."""

    shape: segments.Shape
    row: tuple[Any, ...]
    records: pa.Buffer | Place


def at_once(rows: Sequence[tuple[Ready, int]], place: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """The statement that adds segments, each with the number of its shape, and moves a position; and its values."""
    if not rows:
        return MOVING, place
    places = [*[_NO_PLACE] * (len(rows) - 1), place]
    added = zip(rows, places, strict=True)
    values = [(*segment.row, shape, segment.records, *beside) for (segment, shape), beside in added]
    return f"INSERT INTO adding VALUES {', '.join([_ADD] * len(rows))}", tuple(chain.from_iterable(values))


def placed(source: str, position: Position) -> tuple[Any, ...]:
    return (source, position.epoch, str(position.commit), position.token)


def ready(stream: int, offsets: tuple[int, int], item: Encoded, appended: int, place: Place | None = None) -> Ready:
    """A segment for the offsets from the first up to, not including, the second."""
    shape = item.shape
    row = (
        stream, *offsets, item.count, item.deletes, *item.times, appended, *item.orders, shape.type, shape.version,
        shape.source, shape.seed, shape.content_ids, item.codec, len(item.data),
        segments.checksum(item.data, *offsets, item.count),
    )  # fmt: skip
    return Ready(shape, row, item.data if place is None else place)


def insert(connection: Connection, segment: Ready) -> int:
    """Returns the number of its shape."""
    shape = shape_id(connection, segment.shape)
    place = (segment.records.file, segment.records.at) if isinstance(segment.records, Place) else (None, None)
    made = connection.execute(_INSERT, (*segment.row, shape, *place))
    if not isinstance(segment.records, Place):
        connection.execute("INSERT INTO records (segment, data) VALUES (?, ?)", (made.lastrowid, segment.records))
    return shape


def shape_id(connection: Connection, shape: segments.Shape) -> int:
    found = connection.execute("SELECT id FROM shape WHERE digest = ?", (shape.digest,)).fetchone()
    if found is not None:
        return int(found[0])
    data = shape.schema.serialize().to_pybytes()
    made = connection.execute("INSERT INTO shape (digest, schema) VALUES (?, ?)", (shape.digest, data))
    assert made.lastrowid is not None
    return made.lastrowid


def delete(connection: Connection, ids: Sequence[int]) -> None:
    rows = [(number,) for number in ids]
    connection.executemany("DELETE FROM records WHERE segment = ?", rows)
    connection.executemany("DELETE FROM segment WHERE id = ?", rows)
