"""What a load is of, and what a step of it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa

from headwater.model import Changes, Note, Reading, StoredChanges
from headwater.protocols import Capture
from headwater.sources.log_postgres.chunks import Chunk
from headwater.sources.log_postgres.position import Place
from headwater.sources.log_postgres.rows import Connector, Shape, Start, reads_of
from headwater.sources.log_postgres.snapshot import Snapshot


class Step(NamedTuple):
    """What a step of a load gives: as in `model.Batch`."""

    changes: Sequence[Changes] | StoredChanges
    place: Place
    notes: Sequence[Note] = ()


class Hidden(Protocol):
    """See `streamed.Streamed`."""

    def xids_not_visible(self, snapshot: Snapshot) -> bool: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What is loaded. `shape`: looks at the table as it is now. `directory`: where rows may lie for a while."""

    capture: Capture
    connector: Connector
    shape: Callable[[], Shape]
    directory: str

    @property
    def stream(self) -> str:
        return self.capture.stream

    @property
    def where(self) -> list[str]:
        return [] if self.capture.load.where is None else [self.capture.load.where]

    @property
    def chooses(self) -> bool:
        """Whether the stream may leave out rows that are read for it."""
        config = self.capture.config
        return bool(config.where or config.types or config.function)

    def changes(self, batches: Sequence[pa.RecordBatch], start: Start, reading: Reading | None = None) -> list[Changes]:
        """READ changes, counted from `start.number`."""
        found = []
        for rows in batches:
            found.append(Changes(self.capture.table, reads_of(rows, start), self.stream, reading))
            start = dataclasses.replace(start, number=start.number + len(rows))
        return found

    def by_key(self, shape: Shape) -> bool:
        """Whether the rows can be read in the order of their key, and told apart by it."""
        return self.capture.kind == "fact" and shape.unique

    def step(self, chunk: Chunk, start: Start, place: Place, until: int) -> Step:
        """What a chunk by key gives, and how far the load has come with it."""
        progress = place.loads[self.stream]
        moved = dataclasses.replace(
            progress,
            after=progress.after if chunk.after is None else chunk.after,
            ended=chunk.after is None,
            until=until,
            settled=progress.after,
            number=progress.number + len(chunk),
            count=progress.count + len(chunk),
        )
        return Step(self.changes(chunk.rows, start), place.with_load(self.stream, moved))

    def done(self, place: Place) -> Step:
        progress = place.loads[self.stream]
        return Step((), place.with_load(self.stream, progress.done()), [self.note(progress.count)])

    def note(self, count: int) -> Note:
        return Note(self.stream, "loaded", f"{count} rows of {self.capture.table} were read")
