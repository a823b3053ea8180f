"""The one set of figures that a running pipeline keeps: for the live table, `status`, and health checks."""

from __future__ import annotations

import datetime
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headwater.model import utc_now

FILE = "health.json"
WINDOW = 5.0
"""Seconds over which rates are taken."""
FRESH = 60.0
"""Seconds after which figures are no longer believed: they are written every second, and a number that the process had
may be another's after a crash."""

Kind = Literal["capture", "sink"]
State = Literal["starting", "running", "waiting", "failed", "stopped", "done"]


@dataclass(slots=True)
class WorkerFigures:
    """One capture or one sink. `rows_per_second` is over the last five seconds; `since` is of the present state."""

    name: str
    kind: Kind
    streams: tuple[str, ...]
    state: State = "starting"
    since: datetime.datetime = field(default_factory=utc_now)
    rows: int = 0
    rows_per_second: float = 0.0
    last_batch: datetime.datetime | None = None
    error: str = ""
    retries: int = 0


@dataclass(slots=True)
class StreamFigures:
    """Rows that came from the source for one stream since the start of the process."""

    stream: str
    rows: int = 0
    rows_per_second: float = 0.0


@dataclass(slots=True)
class Figures:
    pid: int
    started: datetime.datetime
    time: datetime.datetime
    workers: dict[str, WorkerFigures]
    streams: dict[str, StreamFigures]
    trouble: str = ""
    """What is wrong with the pipeline as a whole, beside what is wrong with single workers."""

    @property
    def healthy(self) -> bool:
        return not self.trouble and not any(worker.error for worker in self.workers.values())


class Meter:
    """Collects figures from the workers' threads; `snapshot` computes the rates."""

    def __init__(self, streams: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._started = utc_now()
        self._workers: dict[str, WorkerFigures] = {}
        self._streams = {name: StreamFigures(name) for name in streams}
        self._history: deque[tuple[float, dict[str, int]]] = deque()
        self.trouble = ""

    def add(self, worker: WorkerFigures) -> None:
        with self._lock:
            self._workers[worker.name] = worker

    def enter(self, name: str, state: State, error: str = "") -> None:
        with self._lock:
            worker = self._workers[name]
            worker.retries += state == "waiting"
            if worker.state != state or worker.error != error:
                worker.state, worker.error, worker.since = state, error, utc_now()

    def count(self, name: str, rows: int, streams: Iterable[tuple[str, int]] = (), *, error: str = "") -> None:
        """Rows have moved: the worker is well, but for what `error` says of some of its streams."""
        with self._lock:
            worker = self._workers[name]
            worker.rows += rows
            worker.last_batch = utc_now()
            if worker.state != "running" or worker.error != error:
                worker.state, worker.error, worker.since = "running", error, utc_now()
            for stream, number in streams:
                self._streams[stream].rows += number

    def rows(self, name: str) -> int:
        with self._lock:
            return self._workers[name].rows

    def snapshot(self) -> Figures:
        with self._lock:
            now = utc_now()
            self._measure(time.monotonic())
            workers = {name: _copy(worker) for name, worker in self._workers.items()}
            streams = {name: StreamFigures(s.stream, s.rows, s.rows_per_second) for name, s in self._streams.items()}
            return Figures(os.getpid(), self._started, now, workers, streams, self.trouble)

    def _measure(self, now: float) -> None:
        parts = self._parts()
        self._history.append((now, {name: part.rows for name, part in parts.items()}))
        while now - self._history[0][0] > WINDOW and len(self._history) > 1:
            self._history.popleft()
        then, rows = self._history[0]
        seconds = now - then or 1.0
        for name, part in parts.items():
            part.rows_per_second = (part.rows - rows.get(name, 0)) / seconds

    def _parts(self) -> dict[str, WorkerFigures | StreamFigures]:
        workers = {f"worker {name}": worker for name, worker in self._workers.items()}
        return {**workers, **{f"stream {name}": stream for name, stream in self._streams.items()}}


def _copy(worker: WorkerFigures) -> WorkerFigures:
    return WorkerFigures(**{name: getattr(worker, name) for name in WorkerFigures.__slots__})


def write(figures: Figures, directory: Path) -> None:
    """Put the figures where a `status` in another process finds them; whole or not at all."""
    path = directory / FILE
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, default=_plain))
    partial.replace(path)


def read(directory: Path) -> Figures | None:
    """The figures of the process that runs now; None when none does."""
    found = last(directory)
    if found is None or not _lives(found.pid) or abs((utc_now() - found.time).total_seconds()) > FRESH:
        return None
    return found


def last(directory: Path) -> Figures | None:
    """The figures that the newest process left, whether it still runs or not."""
    try:
        data = json.loads((directory / FILE).read_text())
    except (OSError, ValueError):
        return None
    return Figures(
        pid=data["pid"],
        started=datetime.datetime.fromisoformat(data["started"]),
        time=datetime.datetime.fromisoformat(data["time"]),
        workers={name: _worker(item) for name, item in data["workers"].items()},
        streams={name: StreamFigures(**item) for name, item in data["streams"].items()},
        trouble=data.get("trouble", ""),
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is another user's
    return True


def _worker(item: dict[str, Any]) -> WorkerFigures:
    last = item["last_batch"]
    return WorkerFigures(
        **{
            **item,
            "streams": tuple(item["streams"]),
            "since": datetime.datetime.fromisoformat(item["since"]),
            "last_batch": datetime.datetime.fromisoformat(last) if last else None,
        }
    )


def _plain(value: object) -> object:
    """Without the copies that `dataclasses.asdict` makes: this is done every second, and by each run that ends."""
    if isinstance(value, Figures | WorkerFigures | StreamFigures):
        return {name: getattr(value, name) for name in value.__slots__}
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)
