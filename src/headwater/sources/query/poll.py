"""One pass over what lies behind the anchor: which rows are new, and where the anchor may move to.

The anchor follows the highest cursor seen at the distance of the look-back. Every pass reads everything behind it, in
the database's order, and leaves out what the window knows. So each place that a pass reaches is whole: a restart
passes over the window once more and finds nothing there that it has had.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import SourceError
from headwater.sources.query.position import Place
from headwater.sources.query.rows import Part
from headwater.sources.query.window import Window


@dataclass(frozen=True, slots=True)
class LookBack:
    """`span`: the distance on the number line; `rows`: how many rows may be remembered for it."""

    span: int
    rows: int
    stream: str

    def check(self, window: Window) -> None:
        if len(window) > self.rows:
            raise SourceError(
                f"stream {self.stream}: {len(window)} rows lie within the look-back window, at most {self.rows} may",
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
        self.went_back = False
        """Whether a cursor was lower than one before it, although the database sorts it behind."""

    def take(self, part: Part) -> Part:
        """The part's rows that are new; `place` is then behind it, but for the number of the commit."""
        seen = part.seen()
        new = part.where(pc.invert(self._rest.knows(seen.idents, seen.rows)))
        self._remember(part, seen)
        high = pc.max(part.marks).as_py()
        if high is not None:
            known = self.place.high
            self.place = dataclasses.replace(self.place, high=high if known is None else max(high, known))
        self._move_anchor()
        window = self._rest.plus(self._log.seen)
        self._look_back.check(window)
        self.place = dataclasses.replace(self.place, window=window)
        return new

    def finish(self) -> None:
        """At the end of the pass: what was not met any more is gone, or lies elsewhere."""
        self.place = dataclasses.replace(self.place, window=self._log.seen)

    def _remember(self, part: Part, seen: Window) -> None:
        """A row that moved while the pass was under way counts where it is now; its old hash must not stay."""
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
        for start, part in reversed(self._log.parts):
            cursors, last = part.by[0], row - start
            for index in range(min(last, len(part) - 1), -1, -1):
                value = part.at(index)[0]
                if value != anchor[0]:
                    return value
        old = self.place.anchor
        return self.place.floor if old is None or old[0] == anchor[0] else old[0]

    def _forget(self, count: int) -> None:
        log = self._log
        log.seen, log.marks = log.seen.since(count), log.marks.slice(count)
        log.parts = [(start - count, part) for start, part in log.parts if start - count + len(part) > 0]
