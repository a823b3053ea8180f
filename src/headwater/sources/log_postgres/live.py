"""Loads beside the log, one stream each: by key, chunk after chunk; one reading of all rows; or pages of one snapshot.

Each says what it leaves out of the log while its rows are newer than what has been streamed (see `windows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from headwater.faults import failpoint
from headwater.model import Op, Order, Reading, Reload
from headwater.sources.log_postgres import chunks, pages
from headwater.sources.log_postgres.chunks import Seen
from headwater.sources.log_postgres.homes import Homes, Told
from headwater.sources.log_postgres.position import Place, Progress
from headwater.sources.log_postgres.rows import Connector, Shape, Start, batches_of, behind, run
from headwater.sources.log_postgres.snapshot import Snapshot
from headwater.sources.log_postgres.subject import Hidden, Step, Subject
from headwater.sources.log_postgres.together import Together
from headwater.sources.log_postgres.windows import Keys, Window

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi


class LiveLoad(Protocol):
    """`waiting`: for the stream to pass a place. `over`: nothing of it is needed any more."""

    @property
    def waiting(self) -> bool: ...

    @property
    def over(self) -> bool: ...

    def step(self, place: Place, hidden: Hidden) -> Step | None:
        """The next part; None when there is none for now. Raises `SourceError` when the stream cannot be loaded."""

    def trimmed(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Live changes of the stream without those that are in the rows."""

    def homes(self, progress: Progress) -> Homes:
        """Which rows partial changes may rely on."""

    def told(self, progress: Progress) -> Progress:
        """With what a restart is to know of them."""

    def behind(self, lsn: int) -> None:
        """The stream has passed `lsn`."""

    def close(self) -> None: ...


class _Transaction:
    """A connection that is made when it is needed, and given up with whatever fails on it."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self.connection: dbapi.Connection | None = None

    def begin(self, hidden: Hidden) -> Seen | None:
        """None: a commit that was streamed is not visible yet."""
        if self.connection is None:
            self.connection = self._connector.arrow()
        seen = chunks.begin(self.connection)
        if hidden.xids_not_visible(seen.snapshot):
            run(self.connection, "ROLLBACK")
            return None
        return seen

    @property
    def made(self) -> dbapi.Connection:
        assert self.connection is not None
        return self.connection

    def close(self) -> None:
        if self.connection is not None:
            with suppress(Exception):  # of a connection that may be broken
                self.connection.close()
            self.connection = None


class KeyLoad:
    """Chunks in the order of the key, each in a transaction of its own; one window at a time.

    Before the log has come to where a chunk was read, it may tell of rows that were gone by then. So a chunk, an empty
    one too, is settled only there, and the load is done when the last one is.
    """

    def __init__(self, subject: Subject, progress: Progress) -> None:
        capture = subject.capture
        self._subject = subject
        self._key = capture.identifying or capture.key
        self._transaction = _Transaction(subject.connector)
        self._pace = chunks.Pace()
        self._window: Window | None = None
        self._truncate: tuple[int, int] | None = None
        """The place of the TRUNCATE that ends the window."""
        self._until = progress.until
        self._reached = 0
        self._told = Told(progress.told)
        self.over = False

    @property
    def waiting(self) -> bool:
        return self._reached < self._until

    def step(self, place: Place, hidden: Hidden) -> Step | None:
        if self.waiting or self.over:
            return None
        if place.loads[self._subject.stream].ended:
            self.over = True
            self.close()
            return self._subject.done(place)
        try:
            return self._chunk(place, hidden)
        except BaseException:
            self.close()
            raise

    def _chunk(self, place: Place, hidden: Hidden) -> Step | None:
        self._pace.begin()
        seen = self._transaction.begin(hidden)
        if seen is None:
            return None
        progress = place.loads[self._subject.stream]
        shape = self._subject.shape()
        connection = self._transaction.made
        tests = self._subject.where
        if progress.snapshot:
            files = pages.files_of(pages.leaves_of(connection, shape))
            in_bus = chunks.in_bus_sql(progress, files, seen.snapshot)
            tests += [f"NOT ({in_bus})"] if in_bus else []
        chunk = chunks.read_chunk(connection, shape, progress.after, self._pace.rows, tests)
        run(connection, "COMMIT")
        failpoint("log.load.chunk")
        self._pace.learn(chunk)
        keys = Keys([[rows.column(name) for name in self._key] for rows in chunk.rows])
        rows = chunk.rows if self._subject.chooses else ()
        self._window, self._truncate = Window(seen.snapshot, seen.until, keys, self._key, rows), None
        self._until = seen.until
        start = Start(place.epoch, behind(place.commit), progress.number)
        return self._subject.step(chunk, start, place, seen.until)

    def trimmed(self, data: pa.RecordBatch) -> pa.RecordBatch:
        if self._window is None or (self._truncate is not None and _place(data, 0) > self._truncate):
            return data
        kept, goes_on = self._window.trimmed(data)
        if not goes_on:  # kept by its place: a stored transaction may be read once more
            ops = data.column("_op").to_numpy()
            self._truncate = _place(data, int((ops == Op.TRUNCATE).argmax()))
        return kept

    def homes(self, progress: Progress) -> Homes:
        if not self.waiting:
            return Homes(not progress.ended, progress.after, told=self._told)
        by_row = self._truncate is None and self._key == self._subject.capture.key
        keys = self._window.keys if self._window is not None and by_row else None
        return Homes(True, progress.settled, keys, self._told)

    def told(self, progress: Progress) -> Progress:
        written = self._told.written()
        return progress if written == progress.told else dataclasses.replace(progress, told=written)

    def behind(self, lsn: int) -> None:
        self._reached = max(self._reached, lsn)
        if not self.waiting:
            self._window = None

    def close(self) -> None:
        self._transaction.close()


class ReadingLoad:
    """All rows as one `model.Reading`, in one snapshot; only its last part moves the position.

    Then it is a load by key that has ended, and waits for the log to come to where the rows were read.
    """

    waiting = False

    def __init__(self, subject: Subject, reload: Reload) -> None:
        self.over = False
        self._subject = subject
        self._reload = reload
        self._transaction = _Transaction(subject.connector)
        self._parts: Iterator[pa.RecordBatch] | None = None
        self._start = Start(0, 0, 0)
        self._count = 0
        self._until = 0

    def step(self, place: Place, hidden: Hidden) -> Step | None:
        if self.over:
            return None
        try:
            if self._parts is None and not self._begin(place, hidden):
                return None
            return self._part(place)
        except BaseException:
            self.close()
            raise

    def _begin(self, place: Place, hidden: Hidden) -> bool:
        seen = self._transaction.begin(hidden)
        if seen is None:
            return False
        progress = place.loads[self._subject.stream]
        self._until = seen.until
        self._start = Start(place.epoch, behind(place.commit), progress.number)
        self._count = 0
        self._parts = self._read(self._subject.shape())
        return True

    def _read(self, shape: Shape) -> Iterator[pa.RecordBatch]:
        """The last batch is empty."""
        for batch in batches_of(self._transaction.made, shape.sql):
            if len(batch):
                yield shape.rows(batch)
        yield _no_rows(shape)

    def _part(self, place: Place) -> Step:
        assert self._parts is not None
        rows = next(self._parts)
        failpoint("log.load.reading")
        last = not len(rows)
        reading = Reading(self._reload, Order(self._start.epoch, self._start.commit), last)
        start = dataclasses.replace(self._start, number=self._start.number + self._count)
        found = self._subject.changes([rows], start, reading)
        self._count += len(rows)
        if not last:
            return Step(found, place)
        self.over = True
        self._transaction.close()
        progress = place.loads[self._subject.stream]
        number = progress.number + self._count
        ended = Progress(progress.token, "keys", ended=True, until=self._until, number=number, count=self._count)
        return Step(found, place.with_load(self._subject.stream, ended))

    def trimmed(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return data

    def homes(self, progress: Progress) -> Homes:
        return Homes(True)

    def told(self, progress: Progress) -> Progress:
        return progress

    def behind(self, lsn: int) -> None:
        pass

    def close(self) -> None:
        self._transaction.close()
        self._parts = None


class PageLoad:
    """All rows of one snapshot, for those that no key tells apart: read page by page, and appended together.

    Broken off, nothing of them is in the bus, and they are read anew. What the snapshot shows is left out of the log,
    until that has come to where it was taken. Until there is a snapshot all changes are left out: it will show them.
    """

    def __init__(self, subject: Subject, progress: Progress) -> None:
        self._subject = subject
        self._transaction = _Transaction(subject.connector)
        self._snapshot = Snapshot.parse(progress.snapshot) if progress.ended else None
        self._until = progress.until
        self._reached = 0
        self._shape: Shape | None = None
        self._ranges: Iterator[pages.Range] = iter(())
        self._rows = Together(subject)
        self._appended = progress.ended
        self.over = False

    @property
    def waiting(self) -> bool:
        return self._appended and not self.over

    def step(self, place: Place, hidden: Hidden) -> Step | None:
        if self.over:
            return None
        if self._appended:
            return self._end(place)
        try:
            if self._shape is None and not self._begin(hidden):
                return None
            return self._part(place)
        except BaseException:
            self.close()
            raise

    def _begin(self, hidden: Hidden) -> bool:
        seen = self._transaction.begin(hidden)
        if seen is None:
            return False
        shape = self._subject.shape()
        leaves = pages.leaves_of(self._transaction.made, shape)
        if any(leaf.file != leaf.now for leaf in leaves):  # rewritten in this moment: its rows are hidden from us
            self._transaction.close()
            return False
        self._shape, self._snapshot, self._until = shape, seen.snapshot, seen.until
        self._ranges = (part for leaf in leaves for part in leaf.ranges())
        return True

    def _part(self, place: Place) -> Step | None:
        assert self._shape is not None
        part = next(self._ranges, None)
        if part is None:
            return self._append(place)
        self._rows.add(pages.read_range(self._transaction.made, self._shape, part, self._subject.where))
        failpoint("log.load.pages")
        return None

    def _append(self, place: Place) -> Step:
        self._transaction.close()
        self._appended = True
        progress = place.loads[self._subject.stream]
        rows, self._rows = self._rows, Together(self._subject)
        rows.placed(Start(place.epoch, behind(place.commit), progress.number))
        moved = dataclasses.replace(
            progress,
            ended=True,
            until=self._until,
            snapshot=str(self._snapshot),
            number=progress.number + rows.count,
            count=rows.count,
        )
        return Step(rows, place.with_load(self._subject.stream, moved))

    def _end(self, place: Place) -> Step | None:
        if self._reached < self._until:
            return None
        self.over = True
        return self._subject.done(place)

    def trimmed(self, data: pa.RecordBatch) -> pa.RecordBatch:
        if self.over:
            return data
        if self._snapshot is None:
            return data.slice(0, 0)
        return Window(self._snapshot, self._until, None).trimmed(data)[0]

    def homes(self, progress: Progress) -> Homes:
        return Homes(False)

    def told(self, progress: Progress) -> Progress:
        return progress

    def behind(self, lsn: int) -> None:
        self._reached = max(self._reached, lsn)

    def close(self) -> None:
        """What was begun is begun again, under the snapshot that was taken."""
        self._transaction.close()
        self._ranges = iter(())


def _place(data: pa.RecordBatch, row: int) -> tuple[int, int]:
    return data.column("_commit")[row].as_py(), data.column("_index")[row].as_py()


def _no_rows(shape: Shape) -> pa.RecordBatch:
    columns = shape.selection.columns
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in columns], schema=columns)


def load_of(subject: Subject, progress: Progress) -> LiveLoad:
    """What carries on with a load that is not done."""
    reload = subject.capture.load.reload
    if progress.state == "reading" and reload is not None:
        return ReadingLoad(subject, reload)
    if progress.state == "keys":
        return KeyLoad(subject, progress)
    return PageLoad(subject, progress)
