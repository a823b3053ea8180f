"""The captured tables as they are now: their triggers, kept whole, and what a page of changes means."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headwater.errors import SourceError
from headwater.model import Changes, Note, Op, TableId
from headwater.protocols import Capture
from headwater.sources.trigger_postgres import changes
from headwater.sources.trigger_postgres.changes import Page, Target
from headwater.sources.trigger_postgres.finding import fingerprint
from headwater.sources.trigger_postgres.install import Arrangement, arrange, repair
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.sql import LEAF_TRUNCATED, UNREADABLE

if TYPE_CHECKING:
    import psycopg

    from headwater.sources.trigger_postgres.connecting import RowReader

CHECK = 1.0
"""Seconds after which it is seen again whether the triggers are whole."""


class Tables:
    """`broken`: streams that cannot be captured for now, and why; `notes`: what is to be said of streams."""

    arrangement: Arrangement

    def __init__(
        self, connection: psycopg.Connection, names: Names, captures: Mapping[str, Capture], texts: frozenset[str]
    ) -> None:
        self._connection = connection
        self._names = names
        self._captures = captures
        self._texts = texts
        self._targets: dict[int, Target] = {}
        self._checked = 0.0
        self.broken: dict[str, SourceError] = {}
        self.notes: list[Note] = []

    def altered(self) -> bool:
        """Whether somebody has altered a table or a trigger since `arrange`; asked once in a while."""
        if time.monotonic() - self._checked < CHECK:
            return False
        self._checked = time.monotonic()
        return fingerprint(self._connection, self._names, self._wanted()) != self.arrangement.fingerprint

    def arrange(self, patience: float) -> None:
        """Make or mend the triggers. Raises `Busy`."""
        wanted = self._wanted()
        self.arrangement = arrange(self._connection, self._names, wanted, patience=patience)
        self._checked = time.monotonic()
        self._targets = {}
        for table, shape in self.arrangement.shapes.items():
            kept = frozenset[str]().union(
                *(c for stream, c in wanted[table].items() if stream not in self.arrangement.broken)
            )
            chosen = [column.name for column in shape.columns if column.name in kept]
            self._targets[shape.oid] = changes.target_of(shape, chosen, self._texts)
        self._find_broken(self.arrangement.broken)

    def target(self, capture: Capture) -> Target:
        """What the rows of one stream's load look like."""
        return changes.target_of(self.arrangement.shapes[capture.table], capture.columns, self._texts)

    def layouts(self, oid: int) -> tuple[int, ...]:
        return tuple(n for n, layout in self.arrangement.layouts.items() if layout.oid == oid)

    def decode(self, reader: RowReader, page: Page, order: tuple[int, int]) -> tuple[list[Changes], set[int]]:
        """A page as changes, and the tables (oids) of which it says that something was not seen."""
        found: list[Changes] = []
        missed: set[int] = set()
        numbers, ops = (page.rows.column(name).to_numpy() for name in ("t", "op"))
        for number in np.unique(numbers):
            layout = self.arrangement.layouts.get(int(number))
            if layout is None:
                continue
            mine = numbers == number
            if _unseen(ops[mine]):
                missed.add(layout.oid)
            target = self._targets.get(layout.oid)
            part = page.of(mine & (ops > UNREADABLE) & (ops < LEAF_TRUNCATED))
            if target is not None and len(part.rows):
                now = changes.present_texts(reader, self._names, layout, target, part)
                found.append(changes.changes_of(part, layout, target, order, now))
        return found, missed

    def repair(self, oids: set[int]) -> None:
        """Make durable that changes of these tables were missed."""
        for oid in oids:
            repair(self._connection, self._names, oid)

    def _wanted(self) -> dict[TableId, dict[str, frozenset[str]]]:
        wanted: dict[TableId, dict[str, frozenset[str]]] = {}
        for stream, capture in self._captures.items():
            wanted.setdefault(capture.table, {})[stream] = frozenset(capture.columns)
        return wanted

    def _find_broken(self, found: Mapping[str, SourceError]) -> None:
        before = dict(self.broken)
        self.broken.clear()
        for stream, error in found.items():
            text = f"stream {stream}: {error.message}"
            self.broken[stream] = SourceError(text, hint=error.hint)
            if stream not in before or before[stream].message != text:
                note = f"{text}; nothing of it is captured until that is mended"
                self.notes.append(Note(stream, "schema", note))


def _unseen(ops: npt.NDArray[np.int16]) -> bool:
    """TRUNCATE of a partitioned table is told of its partitions too."""
    leaves = bool((ops == LEAF_TRUNCATED).any()) and not bool((ops == Op.TRUNCATE).any())
    return leaves or bool((ops == UNREADABLE).any())
