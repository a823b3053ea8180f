"""The load of a new slot: all its streams' rows under the snapshot that the slot exported, before the log begins.

The rows are placed below the slot's consistent point, and so below everything that is streamed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from headwater.drivers.postgres import execute
from headwater.errors import HeadwaterError, SourceError
from headwater.faults import failpoint
from headwater.model import Changes, StoredChanges
from headwater.sources.log_postgres import chunks, pages
from headwater.sources.log_postgres.pages import Leaf, Range
from headwater.sources.log_postgres.position import Place
from headwater.sources.log_postgres.rows import Connector, Shape, Start, below, run
from headwater.sources.log_postgres.subject import Step, Subject
from headwater.sources.log_postgres.together import Together

if TYPE_CHECKING:
    import psycopg
    from adbc_driver_manager import dbapi


@dataclass(frozen=True, slots=True)
class _Planned:
    """`together`: takes rows that are appended all at once; None where each range is."""

    subject: Subject
    shape: Shape
    leaves: tuple[Leaf, ...]
    together: Together | None

    @property
    def rewritten(self) -> bool:
        """Since the slot was made: such a table hides its rows from the slot's snapshot."""
        return any(leaf.file != leaf.now for leaf in self.leaves)

    def tasks(self) -> Iterator[_Task]:
        parts = [part for leaf in self.leaves for part in leaf.ranges()]
        for number, part in enumerate(parts, 1):
            yield _Task(self, part, number == len(parts))
        if not parts:
            yield _Task(self, None, True)


@dataclass(frozen=True, slots=True)
class _Task:
    """`last`: of its stream. `part`: None where there is nothing to read."""

    planned: _Planned
    part: Range | None
    last: bool


class Initial:
    """Used once. `broken`: takes the streams whose tables cannot be read; the others go on."""

    def __init__(
        self, subjects: Mapping[str, Subject], connector: Connector, snapshot: str, broken: dict[str, SourceError]
    ) -> None:
        self._subjects = subjects
        self._connector = connector
        self._name = snapshot
        self._broken = broken
        self._text = ""

    def steps(self, place: Place) -> Iterator[Step]:
        by_key = self._of(place, "keys")
        with closing(pages.pinned_by_sql(self._connector, self._name)) as connection:
            ((self._text,),) = execute(connection, "SELECT pg_catalog.pg_current_snapshot()::text")
            planned = [found for stream in self._of(place, "pages") if (found := self._plan(stream, connection))]
            for found in planned:
                place = self._put_off(found, place) if found.rewritten else place
            for step in self._read([found for found in planned if not found.rewritten], place):
                place = step.place
                yield step
        for step in self._by_keys(by_key, place) if by_key else ():
            yield step

    def _of(self, place: Place, state: str) -> list[str]:
        streams = (stream for stream in self._subjects if stream not in self._broken)
        return [stream for stream in streams if place.loads[stream].state == state]

    def _plan(self, stream: str, connection: psycopg.Connection) -> _Planned | None:
        subject = self._subjects[stream]
        execute(connection, "SAVEPOINT headwater")
        try:
            shape = subject.shape()
            together = None if subject.by_key(shape) else Together(subject)
            return _Planned(subject, shape, tuple(pages.leaves_by_sql(connection, shape)), together)
        except SourceError as error:
            self._broken[stream] = error
            return None
        finally:
            execute(connection, "ROLLBACK TO SAVEPOINT headwater")  # gives the lock back

    # page ranges

    def _read(self, planned: list[_Planned], place: Place) -> Iterator[Step]:
        put_off: set[str] = set()
        tasks = (
            task
            for one in planned
            for task in one.tasks()
            if one.subject.stream not in self._broken and one.subject.stream not in put_off
        )
        for task, found in pages.in_order(tasks, self._rows, self._connector.sql):
            stream = task.planned.subject.stream
            if stream in put_off or stream in self._broken:
                continue
            if isinstance(found, pages.Rewritten):
                put_off.add(stream)
                place = self._put_off(task.planned, place)
                yield Step((), place)
            elif isinstance(found, SourceError):
                self._broken[stream] = found
            elif isinstance(found, HeadwaterError):
                raise found
            elif (step := self._step(task, found, place)) is not None:
                place = step.place
                failpoint("log.load.initial")
                yield step

    def _rows(self, connection: psycopg.Connection, task: _Task) -> list[pa.RecordBatch]:
        if task.part is None:
            return []
        return pages.copy_range(connection, self._name, task.planned.shape, task.part, task.planned.subject.where)

    def _put_off(self, planned: _Planned, place: Place) -> Place:
        """A table that was rewritten is read beside the log."""
        if not planned.subject.by_key(planned.shape):
            return place
        progress = dataclasses.replace(place.loads[planned.subject.stream], state="keys")
        return place.with_load(planned.subject.stream, progress)

    def _step(self, task: _Task, found: list[pa.RecordBatch], place: Place) -> Step | None:
        """None while rows are gathered that are appended together."""
        subject, together = task.planned.subject, task.planned.together
        progress = place.loads[subject.stream]
        start = Start(place.epoch, below(place.start), progress.number)
        if together is None:
            changes: Sequence[Changes] | StoredChanges = subject.changes(found, start)
            count = sum(map(len, found))
        else:
            together.add(found)
            if not task.last:
                return None
            changes, count = together.placed(start), together.count
        progress = dataclasses.replace(progress, number=progress.number + count, count=progress.count + count)
        if task.last:
            return Step(changes, place.with_load(subject.stream, progress.done()), [subject.note(progress.count)])
        assert task.part is not None
        files = pages.files_of(task.planned.leaves)
        progress = dataclasses.replace(
            progress, leaf=task.part.leaf.oid, page=task.part.end, snapshot=self._text, files=files
        )
        return Step(changes, place.with_load(subject.stream, progress))

    # by key: servers that have no page ranges

    def _by_keys(self, streams: list[str], place: Place) -> Iterator[Step]:
        with closing(pages.pinned(self._connector, self._name)) as connection:
            for stream in streams:
                for step in self._by_key(stream, connection, place):
                    place = step.place
                    yield step

    def _by_key(self, stream: str, connection: dbapi.Connection, place: Place) -> Iterator[Step]:
        subject, pace = self._subjects[stream], chunks.Pace()
        while not place.loads[stream].ended:
            pace.begin()
            progress = place.loads[stream]
            run(connection, "SAVEPOINT headwater")
            try:
                chunk = chunks.read_chunk(connection, subject.shape(), progress.after, pace.rows, subject.where)
            except SourceError as error:
                run(connection, "ROLLBACK TO SAVEPOINT headwater")
                self._broken[stream] = error
                return
            pace.learn(chunk)
            step = subject.step(chunk, Start(place.epoch, below(place.start), progress.number), place, 0)
            place = step.place
            failpoint("log.load.initial")
            yield step
        yield subject.done(place)
