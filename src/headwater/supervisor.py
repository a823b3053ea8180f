"""Runs a pipeline: a thread for each capture and each sink, restarted with back-off, independent of one another.

Crash-only: stopping a worker is abandoning it between two durable steps, and starting again is the only repair. A
worker whose error will not go away by itself stays failed, and says since when; the others go on. So it is within a
worker: a stream that cannot be captured or delivered is named, and the worker goes on with its other streams.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from headwater import figures
from headwater.errors import BusFull, Busy, HeadwaterError, NotConnected
from headwater.figures import Figures, Meter, WorkerFigures
from headwater.model import Batch, Mapped
from headwater.pipeline import capture, deliver
from headwater.protocols import Bus, Sink, Source
from headwater.wrap import Metered, MeteredSink

log = logging.getLogger("headwater")

TICK = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
SETTLED = 3.0
RETRIED = (NotConnected, Busy, BusFull, OSError)
"""Errors that may go away by themselves. Any other of ours needs somebody to act."""


class Parts(Protocol):
    """What a pipeline is made of. Each call makes a new part; the worker that asked closes it."""

    @property
    def bus(self) -> Bus: ...
    @property
    def home(self) -> Path | None:
        """Where the figures go."""

    def capture_streams(self) -> dict[str, tuple[str, ...]]: ...
    def sink_streams(self) -> dict[str, tuple[str, ...]]: ...
    def source(self, capture: str) -> Source: ...
    def mapping(self, capture: str) -> Resumable: ...
    def sink(self, name: str) -> Sink: ...
    def prepare(self, sink: Sink, stream: str) -> None:
        """Make the target fit for the stream, and let it join if the stream's beginning is gone."""

    def pace(self, sink: str) -> tuple[int, float]:
        """How many events a sink takes at the most, and how many seconds it lets them gather."""

    def table_streams(self, capture: str, batch: Batch) -> Iterable[tuple[str, int]]:
        """The rows of a batch by stream."""

    def maintain(self) -> bool:
        """A little housekeeping: retention, merging. True: there is more to do. Else it is called once a minute."""

    def answer(self) -> None:
        """Do what other processes ask of the appender; called at each tick."""

    def to_begin_anew(self) -> set[str]:
        """The captures that were asked for what is only done at a beginning, since the last call."""

    def stop(self) -> None:
        """Make a `prepare` that waits give up, with `NotConnected`; from any thread."""


class Resumable(Protocol):
    """A mapping with parked changes to catch up on."""

    @property
    def owed(self) -> frozenset[str]:
        """Streams whose rows are to be read again, which a capture does when it begins anew."""

    def __call__(self, batch: Batch) -> Mapped: ...
    def drain(self) -> None: ...
    def stop(self) -> None:
        """Make `drain` return at its next step; from any thread."""

    def close(self) -> None: ...


class Supervisor:
    """`run` blocks until `stop` is called or, without `follow`, until everything has caught up."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stopping = threading.Event()
        self._more_to_maintain = False
        captures, sinks = parts.capture_streams(), parts.sink_streams()
        self._meter = Meter({stream for streams in captures.values() for stream in streams})
        self._captures = [_Capture(name, streams, self) for name, streams in captures.items()]
        self._sinks = [_Sink(name, streams, self) for name, streams in sinks.items()]

    def run(self, follow: bool = True, on_tick: Callable[[Figures], None] | None = None) -> int:
        """Exit status: 0 when every worker ended well, 1 when one is failed or could not catch up."""
        workers = (*self._captures, *self._sinks)
        for worker in workers:
            worker.start(follow)
        self._watch(workers, follow, on_tick)
        self._tick(on_tick)
        return 0 if self.figures().healthy else 1

    def stop(self) -> None:
        """From any thread or a signal handler: every worker returns at its next step."""
        self._stopping.set()
        self._parts.stop()
        for worker in (*self._captures, *self._sinks):
            worker.stop()

    def figures(self) -> Figures:
        return self._meter.snapshot()

    @property
    def parts(self) -> Parts:
        return self._parts

    @property
    def meter(self) -> Meter:
        return self._meter

    @property
    def stopping(self) -> threading.Event:
        return self._stopping

    @property
    def capturing(self) -> bool:
        return any(worker.alive for worker in self._captures)

    def await_captures(self, seconds: float) -> None:
        """Until one of them has ended, so many seconds at the most."""
        _first_of(self._captures, seconds)

    def _watch(self, workers: Sequence[_Worker], follow: bool, on_tick: Callable[[Figures], None] | None) -> None:
        """Tick until the workers have ended; with `follow` until told to stop."""
        ticks = 0
        while any(worker.alive for worker in workers) or (follow and not self._stopping.is_set()):
            if follow:
                self._stopping.wait(TICK)
            else:
                _first_of(workers, TICK / 5)
            if self._stopping.is_set():
                break
            ticks += 1
            self._tick(on_tick)
            if follow:
                self._look_after(ticks)
        for worker in workers:
            worker.join()

    def _tick(self, on_tick: Callable[[Figures], None] | None) -> None:
        now = self.figures()
        if self._parts.home is not None:
            self._write_figures(now, self._parts.home)
        if on_tick is not None:
            on_tick(now)

    def _write_figures(self, now: Figures, home: Path) -> None:
        """A full disk keeps others from seeing how it goes, and must not end what still goes."""
        try:
            figures.write(now, home)
        except OSError as error:
            log.warning("figures cannot be written: %s", error, extra={"action": "figures_not_written"})

    def _look_after(self, ticks: int) -> None:
        """What is nobody's work in particular. When it fails the workers go on, and health says so."""
        try:
            self._parts.answer()
            self._begin_anew()
            if self._more_to_maintain or ticks % 60 == 0:
                self._more_to_maintain = self._parts.maintain()
            self._meter.trouble = ""
        except (HeadwaterError, OSError) as error:
            self._meter.trouble = f"housekeeping of the bus: {error}"
            log.warning("%s", self._meter.trouble, extra={"action": "housekeeping_error"})
        for worker in (*self._captures, *self._sinks):
            worker.settle()

    def _begin_anew(self) -> None:
        """Captures with streams to catch up on: what is parked is mapped, and what is owed is read, at a beginning."""
        states = self._parts.bus.streams()
        resuming = {name for name, state in states.items() if state.resuming}
        flowing = {name for name, state in states.items() if state.paused is None}
        asked = self._parts.to_begin_anew()
        for capturing in self._captures:
            owes = resuming & set(capturing.streams) or flowing & capturing.owed or capturing.name in asked
            if capturing.alive and owes:
                capturing.restart()


class _Worker:
    """A thread that runs `_work` again and again, with a pause after an error, until told to stop."""

    kind: figures.Kind = "capture"

    def __init__(self, name: str, streams: tuple[str, ...], supervisor: Supervisor) -> None:
        self.name = name
        self.streams = streams
        self._supervisor = supervisor
        self._parts = supervisor.parts
        self._meter = supervisor.meter
        self._stopping = supervisor.stopping
        self._thread: threading.Thread | None = None
        self._began: float | None = None
        self._meter.add(WorkerFigures(name, self.kind, streams))

    def start(self, follow: bool) -> None:
        self._thread = threading.Thread(target=self._run, args=(follow,), name=self.name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def settle(self) -> None:
        """A worker that had an error is well again when it moved rows, or has gone on for a while without one."""
        if self._began is not None and time.monotonic() - self._began > SETTLED:
            self._meter.enter(self.name, "running")

    def join(self, seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Interrupt what `_work` waits for."""

    def restart(self) -> None:
        """End the present `_work`; the next begins at once."""

    def _work(self, follow: bool) -> None:
        raise AssertionError("a worker has work")

    def _run(self, follow: bool) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            rows = self._rows()
            self._began = time.monotonic()
            try:
                self._work(follow)
            except (HeadwaterError, OSError) as error:
                again = isinstance(error, RETRIED) if follow else self._worth_another(error, pause)
                self._began = None
                self._report(error, again)
                if not again:
                    return
                pause = FIRST_PAUSE if self._rows() > rows else min(pause * 2, LONGEST_PAUSE)
                self._stopping.wait(pause)
                continue
            except BaseException as error:  # a defect of ours: say so, stop this worker, keep the others
                self._began = None
                self._report(error, retried=False)
                raise
            if not follow:
                self._meter.enter(self.name, "done")
                return
        self._meter.enter(self.name, "stopped")

    def _worth_another(self, error: Exception, pause: float) -> bool:
        """A run that is to end gives a busy database a few seconds, and no more."""
        return isinstance(error, RETRIED) and pause < 2.0

    def _rows(self) -> int:
        return self._meter.rows(self.name)

    def _report(self, error: BaseException, retried: bool) -> None:
        text = str(error) or type(error).__name__
        self._meter.enter(self.name, "waiting" if retried else "failed", text)
        level = logging.WARNING if retried else logging.ERROR
        log.log(level, "%s %s: %s", self.kind, self.name, text, extra={"action": "worker_error", "worker": self.name})


def _first_of(workers: Sequence[_Worker], seconds: float) -> None:
    """Wait for the first that runs, so many seconds at the most."""
    for worker in workers:
        if worker.alive:
            worker.join(seconds)
            return


class _Capture(_Worker):
    kind = "capture"
    _source: Source | None = None
    _mapping: Resumable | None = None

    @property
    def owed(self) -> frozenset[str]:
        mapping = self._mapping
        return frozenset() if mapping is None else mapping.owed

    def stop(self) -> None:
        if (mapping := self._mapping) is not None:
            mapping.stop()
        self.restart()

    def restart(self) -> None:
        if (source := self._source) is not None:
            source.stop()

    def settle(self) -> None:
        if trouble := self._trouble():
            self._meter.enter(self.name, "running", trouble)
        else:
            super().settle()

    def _work(self, follow: bool) -> None:
        mapping = self._parts.mapping(self.name)
        source = self._parts.source(self.name)
        try:
            self._mapping, self._source = mapping, source
            if not self._stopping.is_set():
                mapping.drain()
            if not self._stopping.is_set():
                capture(Metered(source, self._seen), mapping, self._parts.bus, follow=follow)
        finally:
            self._mapping = self._source = None
            source.close()
            mapping.close()

    def _trouble(self) -> str:
        source = self._source
        broken = None if source is None else source.broken
        return _texts(dict(broken).values()) if broken else ""

    def _seen(self, batch: Batch) -> None:
        if rows := len(batch):
            self._meter.count(self.name, rows, self._parts.table_streams(self.name, batch), error=self._trouble())


class _Sink(_Worker):
    kind = "sink"

    def settle(self) -> None:
        """Each round through the streams says how it went; one that takes long says nothing yet."""

    def _work(self, follow: bool) -> None:
        sink = self._parts.sink(self.name)
        limit, age = self._parts.pace(self.name)
        delivering = _Delivering(self._parts, MeteredSink(sink, self._seen), limit, self._stopping)
        try:
            while not self._stopping.is_set():
                last = not follow and not self._supervisor.capturing
                written = sum(map(delivering.step, self.streams))
                self._say(delivering.broken, last)
                if last:
                    return
                if written < limit and follow:
                    self._stopping.wait(age)
                elif written < limit:
                    self._supervisor.await_captures(min(age, 0.1))
        finally:
            self._trouble = ""
            sink.close()

    _trouble = ""

    def _say(self, broken: Mapping[str, HeadwaterError], last: bool) -> None:
        """A stream that cannot be delivered stops alone; the sink has failed when there is nothing else left to do."""
        if broken and (last or len(broken) == len(self.streams)):
            raise next(iter(broken.values()))
        text = _texts(broken.values())
        if text != self._trouble:
            log.error("sink %s: %s", self.name, text, extra={"action": "stream_error", "worker": self.name})
        self._trouble = text
        if not self._stopping.is_set():
            self._meter.enter(self.name, "running", text)

    def _seen(self, rows: int) -> None:
        self._meter.count(self.name, rows, error=self._trouble)


class _Delivering:
    """One sink's streams, each from where it stands until it cannot go on."""

    def __init__(self, parts: Parts, sink: Sink, limit: int, until: threading.Event) -> None:
        self.broken: dict[str, HeadwaterError] = {}
        self._prepared: set[str] = set()
        self._parts = parts
        self._sink = sink
        self._limit = limit
        self._until = until

    def step(self, stream: str) -> int:
        """Deliver what there is; the number of events. Raises what may go away by itself."""
        if stream in self.broken or self._until.is_set():
            return 0
        try:
            if stream not in self._prepared:
                self._parts.prepare(self._sink, stream)
                self._prepared.add(stream)
            return deliver(self._parts.bus, stream, self._sink, follow=False, limit=self._limit, until=self._until)
        except RETRIED:
            raise
        except HeadwaterError as error:
            self.broken[stream] = error
            return 0


def _texts(errors: Iterable[HeadwaterError]) -> str:
    return "; ".join(map(str, errors))
