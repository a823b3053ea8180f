"""Rows that no key tells apart: all that a load reads of them reaches the bus in one append.

Were they appended page by page, a load that is broken off would have to say which rows are there already, and nothing
does: an UPDATE gives a row another transaction, and one of a subtransaction is in no snapshot's list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from headwater.kept import Kept
from headwater.model import Changes, Count
from headwater.sources.log_postgres.rows import Start
from headwater.sources.log_postgres.subject import Subject


class Together:
    """See `model.StoredChanges`. `add` rows, then say where they are `placed`. `count`: how many there are."""

    truncates = False

    def __init__(self, subject: Subject) -> None:
        self.count = 0
        self._subject = subject
        self._kept = Kept[Changes](Path(subject.directory))
        self._start = Start(0, 0, 0)

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        for rows in batches:
            self._kept.add(Changes(self._subject.capture.table, rows, self._subject.stream))
            self.count += len(rows)

    def placed(self, start: Start) -> Together:
        self._start = start
        return self

    def __iter__(self) -> Iterator[Changes]:
        start = self._start
        for part in self._kept.read():
            yield from self._subject.changes([part.data], start)
            start = dataclasses.replace(start, number=start.number + len(part))

    def counts(self) -> list[Count]:
        return [(self._subject.capture.table, self._subject.stream, self.count)]
