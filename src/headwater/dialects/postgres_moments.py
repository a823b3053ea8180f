"""Dates and times as PostgreSQL counts them, as Arrow's, and as the server's text where Arrow's cannot be.

PostgreSQL counts from 2000-01-01 and has both infinities as the largest and the smallest integer
(src/include/datatype/timestamp.h); Arrow counts from 1970-01-01. A year outside 1 to 9999 is beyond what most readers
of a stream can hold.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY = 86_400_000_000
"""In microseconds."""

_CYCLE = 146_097
"""Days in 400 years, after which the calendar repeats itself."""
_EPOCH = datetime.date(2000, 1, 1)
_FIRST = datetime.date(1, 1, 1).toordinal() - _EPOCH.toordinal()
_LAST = datetime.date(9999, 12, 31).toordinal() - _EPOCH.toordinal()


@dataclass(frozen=True, slots=True)
class Unit:
    """How moments are counted. `epoch`: 2000-01-01 since 1970; `lowest`, `highest`: of what fits, since 1970."""

    type: pa.DataType
    epoch: int
    lowest: int
    highest: int

    def shifted(self, raw: pa.Array) -> pa.Array:
        """From PostgreSQL's count to Arrow's. Infinities wrap round, as they do in ADBC."""
        if raw.null_count:
            return pc.add(raw, pa.scalar(self.epoch, self.type))
        values = raw.to_numpy()  # a kernel costs more than a few rows do
        return pa.array(np.add(values, self.epoch, dtype=values.dtype))

    def limited(self, count: pa.Array) -> pa.Array:
        """Arrow's count, with null for what is out of bounds."""
        low, high = _bounds(count)
        if low is None or high is None or (low >= self.lowest and high <= self.highest):
            return count
        inside = pc.and_(pc.greater_equal(count, self.lowest), pc.less_equal(count, self.highest))
        return pc.if_else(inside, count, pa.scalar(None, self.type))

    def printed(self, count: pa.Array, zone: str) -> pa.Array:
        """Arrow's count as the server prints it."""
        raw = pc.subtract(count, pa.scalar(self.epoch, self.type)).to_pylist()
        text = _date_text if self is DAYS else _moment_text
        bits = self.type.bit_width - 1
        infinite = {2**bits - 1: "infinity", -(2**bits): "-infinity"}
        return pa.array([infinite.get(value) or text(value, zone) for value in raw], pa.string())


def _bounds(count: pa.Array) -> tuple[int, int] | tuple[None, None]:
    """The least and the greatest; None where there is none."""
    if len(count) and not count.null_count:
        values = count.to_numpy()
        return int(values.min()), int(values.max())
    bounds = pc.min_max(count)
    return bounds["min"].as_py(), bounds["max"].as_py()


_SINCE_1970 = (_EPOCH - datetime.date(1970, 1, 1)).days
DAYS = Unit(pa.int32(), _SINCE_1970, _FIRST + _SINCE_1970, _LAST + _SINCE_1970)
MICROSECONDS = Unit(pa.int64(), _SINCE_1970 * DAY, (_FIRST + _SINCE_1970) * DAY, (_LAST + _SINCE_1970 + 1) * DAY - 1)


def limited_times(count: pa.Array) -> pa.Array:
    """Microseconds of a day (int64), with null for 24:00 and for what is no time of a day."""
    low, high = _bounds(count)
    if low is None or high is None or (low >= 0 and high < DAY):
        return count
    inside = pc.and_(pc.greater_equal(count, 0), pc.less(count, DAY))
    return pc.if_else(inside, count, pa.scalar(None, pa.int64()))


def printed_times(count: pa.Array) -> pa.Array:
    return pa.array([_clock(value) for value in count.to_pylist()], pa.string())


def _date_text(days: int, zone: str = "") -> str:
    year, month, day = _calendar(days)
    return f"{_shown_year(year)}-{month:02}-{day:02}{_era(year)}"


def _moment_text(microseconds: int, zone: str) -> str:
    days, rest = divmod(microseconds, DAY)
    year, month, day = _calendar(days)
    return f"{_shown_year(year)}-{month:02}-{day:02} {_clock(rest)}{zone}{_era(year)}"


def _clock(microseconds: int) -> str:
    seconds, fraction = divmod(microseconds, 1_000_000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{clock}.{fraction:06}".rstrip("0") if fraction else clock


def _calendar(days: int) -> tuple[int, int, int]:
    """Year, month and day in the Gregorian calendar, which has a year 0 here."""
    cycles, rest = divmod(days, _CYCLE)
    date = _EPOCH + datetime.timedelta(days=rest)
    return date.year + 400 * cycles, date.month, date.day


def _shown_year(year: int) -> str:
    return f"{year if year > 0 else 1 - year:04}"


def _era(year: int) -> str:
    return "" if year > 0 else " BC"
