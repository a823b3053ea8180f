"""Query capture of one stream: a load, then polls, and complete readings where the pattern needs them.

Three ways to go over the rows make up every pattern. A load reads all rows by key, chunk by chunk. A reading does the
same, marked so that only differences come of it: bulk polls, reconciliation, repair. A pass reads what lies behind the
look-back window's anchor (`poll`). Each record batch has a commit number of its own, for each is what one statement
saw.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects import Dialect
from headwater.errors import ConfigError, GapError, SourceError
from headwater.faults import failpoint
from headwater.model import (
    TIMESTAMP,
    Batch,
    Changes,
    Note,
    Op,
    Order,
    Position,
    Reading,
    Reload,
    SourceState,
    changes_schema,
)
from headwater.protocols import Capture
from headwater.sources.query.poll import LookBack, Pass, behind
from headwater.sources.query.position import Place, place_of
from headwater.sources.query.promises import LOOK_BACK
from headwater.sources.query.rows import CapturedRows, Part
from headwater.sources.query.window import Window

_END = 2**32 - 1


class QuerySource:
    """See `protocols.Source`. `open_dialect` gives a new dialect of its own to each thread that asks."""

    def __init__(self, name: str, capture: Capture, open_dialect: Callable[[], Dialect], epoch: int) -> None:
        self.name = name
        self.broken: dict[str, SourceError] = {}
        self._capture = capture
        self._open_dialect = open_dialect
        self._epoch = epoch
        self._stopping = threading.Event()
        self._running: CapturedRows | None = None

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        if self._stopping.is_set():
            return
        epoch = self._epoch if after is None else max(self._epoch, after.epoch)
        place = Place() if after is None else place_of(after, self.name)
        try:
            with closing(self._open_dialect()) as dialect, closing(CapturedRows(dialect, self._capture)) as rows:
                self._running = rows
                yield from _Run(self._capture, rows, place, epoch, self._stopping).batches(follow)
        except SourceError:
            if not self._stopping.is_set():  # else `stop` has interrupted a statement
                raise
        finally:
            self._running = None

    def confirm(self, position: Position) -> None:
        """Nothing in the database waits for it."""

    def state(self, stream: str) -> SourceState:
        if stream != self._capture.stream:
            raise SourceError(f"`{self.name}` feeds {self._capture.stream}, not {stream}")
        return SourceState(None, self._state())

    def _state(self) -> Iterator[Changes]:
        with closing(self._open_dialect()) as dialect, closing(CapturedRows(dialect, self._capture)) as rows:
            for commit, part in enumerate(rows.by_key(None), 1):
                yield _changes(self._capture, part, Op.READ, self._epoch, commit)

    def stop(self) -> None:
        self._stopping.set()
        running = self._running
        if running is not None:
            running.interrupt()

    def close(self) -> None:
        """Connections belong to `read` and are given back when it ends."""
        self.stop()


class _Run:
    """One call of `read`."""

    def __init__(
        self, capture: Capture, rows: CapturedRows, place: Place, epoch: int, stopping: threading.Event
    ) -> None:
        self._capture = capture
        self._config = capture.config
        self._rows = rows
        self._place = place
        self._epoch = epoch
        self._stopping = stopping
        self._look_back = _look_back(capture, rows)
        self._said_disorder = False

    def batches(self, follow: bool) -> Iterator[Batch]:
        bulk = self._rows.cursor is None
        fresh = self._place.load != self._capture.load.token
        if fresh or self._place.loading:
            yield from self._load(fresh)
            if bulk and not follow and fresh:  # rows that an interrupted load had read before may have changed
                return
        elif self._place.shape != self._rows.shape:
            yield from self._repair("the cursor, key or table of this stream was changed")
        else:
            yield from self._say_nulls()
        if bulk and follow:  # the load, or the last comparison of an earlier run, was a poll already
            self._wait(min(self._config.every, self._place.compared + self._config.every - time.time()))
        while not self._stopping.is_set():
            started = time.monotonic()
            self._rows.refresh()
            yield from self._poll(follow)
            if not follow:
                return
            self._wait(started + self._config.every - time.monotonic())

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._stopping.wait(seconds)

    # loads and readings

    def _load(self, fresh: bool) -> Iterator[Batch]:
        load, before = self._capture.load, self._place
        if load.skip:
            self._begin(fill=True)
            yield self._settled("only what changes from here on is captured")
        elif load.reload is not None:
            self._begin()
            yield from self._reading(load.reload, before, self._note("loaded", "all rows were compared"))
        else:
            if fresh:
                self._begin()
            yield from self._initial()

    def _begin(self, *, fill: bool = False) -> None:
        """Note how far the cursor is now, before the first row is read. `fill`: take the window's rows as read."""
        self._place = Place(
            commit=self._place.commit, load=self._capture.load.token, loading=True, shape=self._rows.shape
        )
        if self._rows.cursor is None:
            return
        start = behind(self._rows.newest(), self._look_back)
        self._place = dataclasses.replace(
            self._place,
            high=start.high,
            anchor=start.anchor,
            mark=start.mark,
            floor=start.floor,
            window=start.window if fill else Window(),
        )

    def _initial(self) -> Iterator[Batch]:
        for part in self._rows.by_key(self._place.after):
            self._place = dataclasses.replace(
                self._place,
                commit=self._place.commit + 1,
                after=part.at(len(part) - 1),
                window=self._remembered(self._place.window, part),
            )
            yield self._batch((_changes(self._capture, part, Op.READ, self._epoch, self._place.commit),))
            if self._stopping.is_set():
                return
        yield self._settled("all rows were read")

    def _remembered(self, window: Window, part: Part) -> Window:
        """The window with those rows of a part that polls will meet again."""
        if self._rows.cursor is None or not self._look_back.measured:
            return window
        if self._place.mark is not None:
            part = part.where(pc.fill_null(pc.greater_equal(part.marks, self._place.mark), True))
        window = window.plus(part.seen()) if len(part) else window
        self._look_back.check(window)
        return window

    def _settled(self, text: str) -> Batch:
        """The end of a load: an empty batch with a position of its own, and what has to be said."""
        self._place = dataclasses.replace(self._place, loading=False, after=None, compared=time.time())
        notes = self._note_nulls()
        return self._batch((), (self._note("loaded", text), *notes))

    def _reading(self, reload: Reload, restart: Place, *notes: Note) -> Iterator[Batch]:
        """All rows, marked. The position stays at `restart`, where a restart begins anew, until the last part."""
        since = Order(self._epoch, self._place.commit, _END)
        commit, window = self._place.commit, self._place.window
        for part in self._rows.by_key(None):
            commit += 1
            window = self._remembered(window, part)
            marked = Reading(reload, since, last=False)
            changes = _changes(self._capture, part, Op.READ, self._epoch, commit, marked)
            yield _sized((changes,), restart.position(self._epoch))
            if self._stopping.is_set():
                return
        self._place = dataclasses.replace(
            self._place, commit=commit + 1, window=window, loading=False, after=None, compared=time.time()
        )
        end = Reading(reload, since, last=True)
        empty = _empty(self._capture, self._rows.table.schema(self._capture.columns), end)
        notes = (*notes, *self._note_nulls())
        yield self._batch((empty,), notes)

    def _compare(self) -> Iterator[Batch]:
        yield from self._reading(Reload.DIFFERENCE, self._place)

    def _repair(self, reason: str) -> Iterator[Batch]:
        """What a cursor cannot tell any more is told by comparing all rows."""
        if not self._capture.key:
            raise GapError(
                f"stream {self._capture.stream}: {reason}, and without a key its rows cannot be compared",
                hint="rebuild the stream, or capture it under another name",
            )
        before = self._place
        self._begin()
        yield from self._reading(Reload.DIFFERENCE, before, self._note("gap", f"{reason}; all rows were compared"))

    # polls

    def _poll(self, follow: bool) -> Iterator[Batch]:
        if self._rows.cursor is None:
            yield from self._compare()
            return
        yield from self._pass(follow)
        if self._is_due() and not self._stopping.is_set():
            yield from self._compare()

    def _is_due(self) -> bool:
        """Whether it is time for the reconciliation: also when the clock was put back since the last one."""
        every, passed = self._config.reconcile_deletes, time.time() - self._place.compared
        return every is not None and not 0 <= passed < every

    def _pass(self, follow: bool) -> Iterator[Batch]:
        end = None if follow else self._rows.newest_mark()
        scan = Pass(self._place, self._look_back)
        for part in self._rows.by_cursor(self._place.anchor, self._place.floor):
            new = scan.take(part)
            if len(new):
                scan.place = dataclasses.replace(scan.place, commit=scan.place.commit + 1)
                self._place = scan.place
                op = Op.CREATE if self._rows.by_id else Op.UPDATE
                yield self._batch((_changes(self._capture, new, op, self._epoch, self._place.commit),))
            if self._stopping.is_set() or (_beyond(part, end) and not scan.went_back):
                return
        scan.finish()
        self._place = scan.place
        if scan.met:
            yield from self._say_disorder(scan.went_back)
        else:
            yield from self._check_direction()

    def _check_direction(self) -> Iterator[Batch]:
        """Behind the anchor there is nothing: is there anything at all, and where?"""
        newest, mark = self._rows.newest_mark(), self._place.mark
        if newest is None and self._place.high is not None:  # every row is gone; whatever comes next is new
            self._place = dataclasses.replace(self._place, anchor=None, mark=None, floor=None, high=None)
            yield self._batch(())
        elif newest is not None and mark is not None and newest < mark:
            yield from self._repair(
                f"the highest `{self._rows.cursor}` of {self._capture.table} went back, beyond the look-back window"
            )

    def _say_disorder(self, went_back: bool) -> Iterator[Batch]:
        if went_back and not self._said_disorder:
            self._said_disorder = True
            text = (
                f"`{self._rows.cursor}` of {self._capture.table} is not sorted by its values (texts of several forms?):"
                " polls may miss rows until all are compared"
            )
            yield self._batch((), (self._note("schema", text),))

    def _say_nulls(self) -> Iterator[Batch]:
        if notes := self._note_nulls():
            yield self._batch((), notes)

    # what is yielded

    def _batch(self, changes: tuple[Changes, ...], notes: tuple[Note, ...] = ()) -> Batch:
        failpoint("query.before_batch")
        return _sized(changes, self._place.position(self._epoch), notes)

    def _note(self, kind: str, text: str) -> Note:
        return Note(self._capture.stream, kind, text)

    def _note_nulls(self) -> tuple[Note, ...]:
        count = self._rows.unseen_by_polls()
        if count == self._place.nulls:
            return ()
        self._place = dataclasses.replace(self._place, nulls=count)
        columns = ", ".join(filter(None, (self._rows.cursor, *self._capture.key)))
        return (self._note("schema", f"{count} rows have NULL in {columns}: no poll sees them"),)


def _look_back(capture: Capture, rows: CapturedRows) -> LookBack:
    """Moments have a look-back in time, numbers one in numbers, anything else none."""
    config = capture.config
    column = rows.table.column(config.cursor) if config.cursor is not None else None
    kind = pa.null() if column is None else column.type
    moments = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if config.look_back is not None and not moments:
        raise ConfigError(
            f"stream {capture.stream}: `look_back` is a time, but cursor `{config.cursor}` is not",
            hint="use `look_back_ids` for a cursor that is a number; others have no look-back",
        )
    span = 0
    if moments:
        span = round((LOOK_BACK if config.look_back is None else config.look_back) * 1_000_000)
    elif pa.types.is_integer(kind):
        span = config.look_back_ids
    measured = moments or pa.types.is_integer(kind)
    return LookBack(span, config.look_back_rows, measured, capture.stream)


def _beyond(part: Part, end: int | None) -> bool:
    last = pc.max(part.marks).as_py()
    return end is not None and last is not None and last > end


def _changes(capture: Capture, part: Part, op: Op, epoch: int, commit: int, reading: Reading | None = None) -> Changes:
    count = len(part)
    row = pa.StructArray.from_arrays(part.data.columns, fields=list(part.data.schema))
    order = [
        pa.repeat(pa.scalar(op.value, pa.int8()), count),
        pa.repeat(pa.scalar(epoch, pa.uint32()), count),
        pa.repeat(pa.scalar(commit, pa.uint64()), count),
        pa.array(np.arange(count, dtype=np.uint32) * 2),
        pa.nulls(count, TIMESTAMP),
        pa.nulls(count, pa.string()),
    ]
    arrays = [*order, pa.nulls(count, row.type), row]
    schema = changes_schema(part.data.schema, invalid=part.invalid is not None)
    if part.invalid is not None:
        arrays.append(part.invalid)
    data = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return Changes(capture.table, data, capture.stream, reading)


def _empty(capture: Capture, columns: pa.Schema, reading: Reading) -> Changes:
    data = pa.RecordBatch.from_arrays(
        [pa.array([], f.type) for f in changes_schema(columns)], schema=changes_schema(columns)
    )
    return Changes(capture.table, data, capture.stream, reading)


def _sized(changes: tuple[Changes, ...], position: Position, notes: tuple[Note, ...] = ()) -> Batch:
    return Batch(changes, position, sum(int(c.data.nbytes) for c in changes), notes)
