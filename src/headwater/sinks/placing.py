"""What every sink decides in the same way: the target's names, whether a batch may move the cursor, and what a batch
is cut into when the target objects to the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import CursorMismatch
from headwater.mapping.keys import canonical_keys
from headwater.model import Cursor, Events, Op

ORDER = ("_epoch", "_commit", "_index")

WATERMARK = tuple[int, int, int]
"""An order triple, as the database compares it."""


def table_name(stream: str) -> str:
    """The table of a stream: dots become underscores. Two streams of one name are refused by `prepare`."""
    return stream.replace(".", "_")


def moves(sink: str, events: Events, stored: Cursor | None, believed: Cursor | None) -> bool:
    """Whether `events` go behind the `stored` cursor; False when they are in the target already.

    `believed` is what this writer last knew of the target: a writer that believes in a cursor that is gone is a
    zombie, or its target was replaced. Raises `CursorMismatch`.
    """
    if events.cursor is None or stored == events.cursor:
        return events.cursor is None
    if stored is None:
        if believed is None:
            return True
        raise _mismatch(sink, events, f"none, though this writer left it at {believed}")
    if events.after is None or stored.incarnation != events.after.incarnation:
        raise _mismatch(sink, events, f"{stored} of incarnation {stored.incarnation}")
    if stored != events.after:
        raise _mismatch(sink, events, str(stored))
    return True


def _mismatch(sink: str, events: Events, found: str) -> CursorMismatch:
    expected = f"{events.after} of incarnation {events.after.incarnation}" if events.after else "no cursor"
    return CursorMismatch(
        f"sink {sink}, stream {events.stream}: the target's cursor is expected to be {expected}, found {found}",
        hint="another process writes to this target, or the stream or the target was made anew; "
        "stop the other one, or start over with `headwater sink rebuild`",
    )


def halved(events: Events) -> Iterator[Events]:
    """The events in two parts, each with its own cursor: cut between two commits if there are several, as near to the
    middle as can be."""
    epoch, commit = (np.asarray(events.data.column(name)) for name in ("_epoch", "_commit"))
    starts = np.flatnonzero((epoch[1:] != epoch[:-1]) | (commit[1:] != commit[:-1])) + 1
    middle = len(events) // 2
    cut = int(starts[np.abs(starts - middle).argmin()]) if len(starts) else middle
    yield from _parts(events, [0, cut, len(events)])


def _parts(events: Events, places: list[int]) -> Iterator[Events]:
    for start, end in itertools.pairwise(places):
        yield replace(
            events,
            data=events.data.slice(start, end - start),
            after=_cursor_at(events, start),
            cursor=_cursor_at(events, end),
            offsets=None if events.offsets is None else events.offsets.slice(start, end - start),
        )


def _cursor_at(events: Events, row: int) -> Cursor | None:
    if events.cursor is None or events.after is None or events.offsets is None or row == len(events):
        return events.cursor
    return events.after if row == 0 else events.after.at(events.offsets[row].as_py())


def divisible(events: Events) -> bool:
    """Whether parts of these events can be written on their own: each needs a cursor of its own."""
    return len(events) > 1 and (events.cursor is None or events.offsets is not None)


def deletes(data: pa.RecordBatch) -> pa.Array:
    return pc.equal(data.column("_op"), int(Op.DELETE))


def truncation(data: pa.RecordBatch) -> WATERMARK | None:
    """The order of the truncate that a fold begins with, if it does."""
    if not data.num_rows or data.column("_op")[0].as_py() != Op.TRUNCATE:
        return None
    epoch, commit, index = (data.column(name)[0].as_py() for name in ORDER)
    return epoch, commit, index


def above(data: pa.RecordBatch | pa.Table, floor: WATERMARK) -> pa.Array:
    """Which rows have an order above `floor`."""
    epoch, commit, index = (data.column(name) for name in ORDER)
    later = pc.greater(index, floor[2])
    later = pc.or_(pc.greater(commit, floor[1]), pc.and_(pc.equal(commit, floor[1]), later))
    return pc.or_(pc.greater(epoch, floor[0]), pc.and_(pc.equal(epoch, floor[0]), later))


def named_row(events: Events, key: tuple[str, ...], row: int = 0) -> str:
    """A row for an error message: its key, and its place in the order."""
    one = events.data.slice(row, 1)
    epoch, commit, index = (one.column(name)[0].as_py() for name in ORDER)
    name = canonical_keys(one, key)[0].as_py() or "without a key"
    return f"stream {events.stream}, key {name} at (epoch {epoch}, commit {commit}, index {index})"
