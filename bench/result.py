"""What a benchmark measures: a ratio to a yardstick in the same run, the median of three alternating runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

RUNS = 3


@dataclass(frozen=True, slots=True)
class Result:
    """`measured` and `yardstick` are sentences with figures; `ratio` is what `asked` is about, where it is a ratio."""

    what: str
    asked: str
    measured: str
    reached: bool
    ratio: float | None = None
    yardstick: str = ""
    notes: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    """Settings, versions and sizes that the figure depends on, by what they are of."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Seconds of both sides: medians."""

    ours: float
    yardstick: float

    @property
    def ratio(self) -> float:
        """Our speed as a part of the yardstick's: 1.0 is as fast, 0.5 takes twice as long."""
        return self.yardstick / self.ours


Clock = Callable[[], float]


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def compared(ours: Callable[[], object], yardstick: Callable[[], object], *, runs: int = RUNS) -> Compared:
    """Both, turn by turn, so that a slow minute of the machine slows both. Each prepares its own fresh state."""
    times = [(seconds(ours), seconds(yardstick)) for _ in range(runs)]
    return Compared(statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))


def median(run: Callable[[], float], *, runs: int = RUNS) -> float:
    return statistics.median(run() for _ in range(runs))


Unit = Literal["events/s", "rows/s", "MB/s", "ms", "s", "MB"]


def figure(value: float, unit: Unit) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
