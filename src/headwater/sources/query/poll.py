"""One pass over what lies behind the anchor: which rows are new, and where the anchor may move to.

The anchor follows the highest cursor seen at the distance of the look-back. Every pass reads everything behind it, in
the database's order, and leaves out what the window knows. So each place that a pass reaches is whole: a restart
passes over the window once more and finds nothing there that it has had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import SourceError
from headwater.mapping.hashing import hash_rows
from headwater.sources.query.position import Place
from headwater.sources.query.rows import SEED, Part
from headwater.sources.query.window import Window, joined


@dataclass(frozen=True, slots=True)
class LookBack:
    """`span`: the distance on the number line, if the cursor is `measured`; `rows`: how many may lie within."""

    span: int
    rows: int
    measured: bool
    stream: str

    def check(self, window: Window) -> None:
        self.check_count(len(window))

    def check_count(self, count: int) -> None:
        if count > self.rows:
            raise SourceError(
                f"stream {self.stream}: {count} rows lie within the look-back window, at most {self.rows} may",
                hint="raise `look_back_rows`, or lower `look_back` (`look_back_ids` for ids)",
            )


@dataclass(slots=True)
class _Log:
    """The rows that this pass has read behind the anchor, in order."""

    seen: Window = field(default_factory=Window)
    marks: pa.Array = field(default_factory=lambda: pa.array([], pa.int64()))
    parts: list[tuple[int, Part]] = field(default_factory=list)
    """Each part with the number of its first row in `seen`; it may be below 0."""


class Pass:
    """Used once: `take` each part in turn."""

    def __init__(self, place: Place, look_back: LookBack) -> None:
        self.place = place
        self._look_back = look_back
        self._rest = place.window
        self._log = _Log()
        self.met = False
        """Whether there was any row at all."""
        self.went_back = False
        """Whether a cursor was lower than one before it, although the database sorts it behind."""

    def take(self, part: Part) -> Part:
        """The part's rows that are new; `place` is then behind it, but for the number of the commit."""
        self.met = True
        seen = part.seen()
        new = part.where(pc.invert(self._rest.knows(seen.idents, seen.rows)))
        self._remember(part, seen)
        high = pc.max(part.marks).as_py()
        if high is not None:
            known = self.place.high
            self.place = dataclasses.replace(self.place, high=high if known is None else max(high, known))
        self._move_anchor()
        window = self._rest.plus(self._log.seen.newest())
        self._look_back.check(window)
        self.place = dataclasses.replace(self.place, window=window)
        return new

    def finish(self) -> None:
        """At the end of the pass: what was not met any more is gone, or lies elsewhere."""
        self.place = dataclasses.replace(self.place, window=self._log.seen.newest())

    def _remember(self, part: Part, seen: Window) -> None:
        self._rest = self._rest.without(seen.idents)
        log = self._log
        self._note_order(part.marks)
        log.parts.append((len(log.seen), part))
        log.seen = Window(
            pa.concat_arrays([log.seen.idents, seen.idents]), pa.concat_arrays([log.seen.rows, seen.rows])
        )
        log.marks = pa.concat_arrays([log.marks, part.marks])

    def _note_order(self, marks: pa.Array) -> None:
        values = marks.drop_null().to_numpy()
        self.went_back = self.went_back or bool((np.diff(values) < 0).any())

    def _move_anchor(self) -> None:
        log = self._log
        if self.place.high is None:
            return
        within = pc.fill_null(pc.less_equal(log.marks, self.place.high - self._look_back.span), False)
        places = np.flatnonzero(within.to_numpy(zero_copy_only=False))
        if not len(places):
            return
        row = int(places[-1])
        start, part = next((start, part) for start, part in reversed(log.parts) if start <= row)
        anchor = part.at(row - start)
        self.place = dataclasses.replace(
            self.place, anchor=anchor, mark=log.marks[row].as_py(), floor=self._floor(anchor, row)
        )
        self._forget(row + 1)

    def _floor(self, anchor: tuple[Any, ...], row: int) -> Any:
        """The last cursor value before the new anchor that differs from it."""
        wanted = None
        for start, part in reversed(self._log.parts):
            cursors = part.by[0].slice(0, max(row - start + 1, 0))
            if not len(cursors):
                continue
            hashes = hash_rows([cursors], SEED)
            wanted = hashes[-1] if wanted is None else wanted
            others = np.flatnonzero(pc.not_equal(hashes, wanted).to_numpy(zero_copy_only=False))
            if len(others):
                return part.at(int(others[-1]))[0]
        old = self.place.anchor
        return self.place.floor if old is None or old[0] == anchor[0] else old[0]

    def _forget(self, count: int) -> None:
        log = self._log
        log.seen, log.marks = log.seen.since(count), log.marks.slice(count)
        log.parts = [(start - count, part) for start, part in log.parts if start - count + len(part) > 0]


def behind(newest: Iterable[Part], look_back: LookBack) -> Place:
    """Where polls are to begin, from the rows with the highest cursors down: high, anchor, mark, floor, window."""
    place, kept, count = Place(), [], 0
    for part in newest:
        if place.high is None:
            place = dataclasses.replace(place, high=pc.max(part.marks).as_py())
        row = _first_outside(part, place.high, look_back.span)
        within = len(part) if row is None else row
        kept.append(part.where(pa.array(np.arange(len(part)) < within)).seen())
        count += within
        look_back.check_count(count)
        if row is not None:
            place = dataclasses.replace(
                place, anchor=part.at(row), mark=part.marks[row].as_py(), floor=_lower(part, row)
            )
            break
    return dataclasses.replace(place, window=joined(kept))


def _first_outside(part: Part, high: int | None, span: int) -> int | None:
    """The first row, from the highest cursor down, that the look-back does not reach."""
    if high is None:
        return None
    places = np.flatnonzero(pc.fill_null(pc.less_equal(part.marks, high - span), False).to_numpy(zero_copy_only=False))
    return int(places[0]) if len(places) else None


def _lower(part: Part, row: int) -> Any:
    """A cursor value below that of a row, if the part shows one."""
    lower = pc.fill_null(pc.less(part.marks, part.marks[row]), False)
    places = np.flatnonzero(lower.to_numpy(zero_copy_only=False))
    return part.at(int(places[0]))[0] if len(places) else None
