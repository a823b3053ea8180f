"""What stands where: each stream from its source to each sink, as values that can be printed or sent as JSON.

Everything here comes from what is durable on the bus, and from the figures that a running process leaves beside it; so
`status` tells the truth whether or not something runs.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headwater import figures, plugins
from headwater.errors import HeadwaterError
from headwater.model import Cursor, Order, Position, utc_now
from headwater.protocols import Bus, GroupState, Guarantee, Pending, PlacedNote, StreamState

if TYPE_CHECKING:
    from headwater.assembly import Assembly

KEYS_SHOWN = 20
IDLE = datetime.timedelta(days=1)
"""A group that has not moved for this long while events wait for it is named."""


@dataclass(frozen=True, slots=True)
class NoteStatus:
    kind: str
    text: str
    offset: int
    time: datetime.datetime


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A reader of a stream that is no sink of this configuration. `idle`: it holds retention back."""

    group: str
    offset: int | None
    lag_events: int
    committed: datetime.datetime | None
    declared: bool
    idle: bool
    release: str
    """The command that makes retention stop waiting for it."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Keys apart from their rows: later events of a key may be waiting behind its first."""

    rows: int
    keys: tuple[str, ...]
    more_keys: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """`state`: flowing, paused, resuming, failed, waiting, stopped (no process), empty or away (not configured)."""

    stream: str
    state: str
    pattern: str
    capture: str
    position: Order | None
    """The place in the source up to which everything is on the bus."""
    events: int
    """Offsets given so far; the next event's offset."""
    first: int
    nbytes: int
    last_append: datetime.datetime | None
    idle_seconds: float | None
    guarantee: Guarantee | None
    paused: str | None
    parked: int
    parked_bytes: int
    quarantine: Quarantine
    notes: tuple[NoteStatus, ...]
    groups: tuple[GroupStatus, ...]
    error: str = ""
    rows_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """A capture whose source keeps something for it. `pending`: None while the source cannot be asked."""

    capture: str
    streams: tuple[str, ...]
    pending: Pending | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """One stream in one sink. `lag_seconds`: how long the oldest event that is not in the sink has waited."""

    stream: str
    cursor: int | None
    lag_events: int
    lag_seconds: float
    delivery: str
    """Of the whole path: the weakest of capture, bus and sink; `unknown` while the source cannot be looked at."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    sink: str
    state: str
    since: datetime.datetime | None
    error: str
    streams: tuple[DeliveryStatus, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatusReport:
    pipeline: str
    running: bool
    pid: int | None
    started: datetime.datetime | None
    streams: tuple[StreamStatus, ...]
    sinks: tuple[SinkStatus, ...]
    captures: tuple[CaptureStatus, ...] = ()
    trouble: str = ""
    """What is wrong with the running pipeline as a whole."""

    @property
    def healthy(self) -> bool:
        """Nothing failed, nothing stands still, nothing waits in quarantine."""
        return not (
            self.trouble
            or any(s.error or s.paused or s.quarantine.rows for s in self.streams)
            or any(s.error for s in self.sinks)
        )


def status(assembly: Assembly) -> StatusReport:
    """Read everything once. Sources are opened for a look at their catalogue alone, targets are not."""
    now = running(assembly.home)
    view = _View(assembly, now)
    known = [*assembly.config.streams, *sorted(set(view.states) - set(assembly.config.streams))]
    return StatusReport(
        pipeline=assembly.config.name,
        running=now is not None,
        pid=now.pid if now else None,
        started=now.started if now else None,
        streams=tuple(view.stream(name) for name in known),
        sinks=tuple(view.sink(name) for name in assembly.config.sinks),
        captures=tuple(_captures(assembly)),
        trouble=now.trouble if now else "",
    )


def _captures(assembly: Assembly) -> Iterator[CaptureStatus]:
    for name, streams in assembly.capture_streams().items():
        source, pattern = name.split("/")[:2]
        config = assembly.config.sources[source]
        ask = plugins.source_pending(config.scheme, pattern)
        if ask is None:
            continue
        try:
            yield CaptureStatus(name, streams, ask(name=name, pipeline=assembly.config.name, config=config))
        except HeadwaterError as error:
            yield CaptureStatus(name, streams, None, error.message)


FRESH = datetime.timedelta(seconds=15)
"""A running pipeline writes its figures each second; older ones were left behind by one that was killed."""


def running(home: Path | None) -> figures.Figures | None:
    """The figures of the pipeline that runs now, if one does."""
    found = figures.read(home) if home is not None else None
    if found is None or utc_now() - found.time > FRESH:
        return None
    ended = all(worker.state in ("stopped", "done") for worker in found.workers.values())
    return None if ended and found.workers else found


def lag(bus: Bus, group: str, streams: Iterable[str]) -> dict[str, int]:
    """How many events of each stream `group` has yet to take: an upper bound where compaction left holes."""
    states = bus.streams()
    return {
        name: _behind(states[name], bus.cursor(group, name)) if name in states else 0  # not made yet
        for name in streams
    }


class _View:
    """One look at a pipeline: what several parts of the report share is read once."""

    def __init__(self, assembly: Assembly, now: figures.Figures | None) -> None:
        self.assembly = assembly
        self.bus = assembly.bus
        self.figures = now
        self.last = figures.last(assembly.home) if assembly.home is not None else None
        self.promised: dict[str, tuple[Guarantee | None, str]] = {}
        self.states = self.bus.streams()
        self.positions = self.bus.positions()
        self.time = utc_now()

    def stream(self, name: str) -> StreamStatus:
        config = self.assembly.config.streams.get(name)
        state = self.states.get(name)
        capture = self.assembly.capture_of(name) if config else (state.source if state else "")
        worker = self.figures.workers.get(capture) if self.figures else None
        rate = self.figures.streams.get(name) if self.figures else None
        return StreamStatus(
            stream=name,
            state=_stream_state(state, worker, configured=config is not None),
            pattern=config.pattern if config else "",
            capture=capture,
            position=_place(self.positions.get(capture)),
            events=state.head if state else 0,
            first=state.first if state else 0,
            nbytes=state.nbytes if state else 0,
            last_append=state.last_append if state else None,
            idle_seconds=self._since(state.last_append) if state else None,
            guarantee=self._promised(name)[0] if config else None,
            paused=state.paused if state else None,
            parked=state.parked if state else 0,
            parked_bytes=state.parked_bytes if state else 0,
            quarantine=self._quarantine(state),
            notes=tuple(_notes(self.bus.notes(name))) if state else (),
            groups=tuple(self._groups(name, state)) if state else (),
            error=self._error(capture) or (self._promised(name)[1] if config else ""),
            rows_per_second=rate.rows_per_second if rate else None,
        )

    def sink(self, name: str) -> SinkStatus:
        worker = self.figures.workers.get(name) if self.figures else None
        guarantee = self.assembly.sink(name).guarantee
        return SinkStatus(
            sink=name,
            state=worker.state if worker else "stopped",
            since=worker.since if worker else None,
            error=self._error(name),
            streams=tuple(self._delivery(name, stream, guarantee) for stream in self.assembly.streams_of(name)),
            notes=guarantee.notes,
        )

    def _promised(self, stream: str) -> tuple[Guarantee | None, str]:
        """What its capture gives; or why nobody can tell: the rest of the report is true all the same."""
        if stream not in self.promised:
            try:
                self.promised[stream] = (self.assembly.guarantee(stream), "")
            except HeadwaterError as error:
                self.promised[stream] = (None, str(error))
        return self.promised[stream]

    def _error(self, worker: str) -> str:
        """What is wrong with a worker, or was when the newest run ended: nobody has mended it since."""
        if self.figures is not None:
            return self.figures.workers[worker].error if worker in self.figures.workers else ""
        left = self.last.workers.get(worker) if self.last is not None else None
        return f"in its last run: {left.error}" if left is not None and left.error else ""

    def _delivery(self, sink: str, stream: str, guarantee: Guarantee) -> DeliveryStatus:
        state = self.states.get(stream)
        cursor = self.bus.cursor(sink, stream) if state else None
        behind = _behind(state, cursor) if state else 0
        given, _ = self._promised(stream)
        return DeliveryStatus(
            stream=stream,
            cursor=cursor.offset if cursor else None,
            lag_events=behind,
            lag_seconds=self._waited(stream, cursor) if behind else 0.0,
            delivery=weaker(given.delivery, guarantee.delivery) if given is not None else "unknown",
        )

    def _waited(self, stream: str, cursor: Cursor | None) -> float:
        """The age of the oldest event behind `cursor`: since its commit, or, where that is unknown, the last append."""
        state = self.states[stream]
        known = cursor if cursor is not None and cursor.incarnation == state.incarnation else None
        for events in self.bus.read(stream, after=known, follow=False, limit=1):
            time = events.data.column("_time")[0].as_py() or state.last_append
            return self._since(time) or 0.0
        return 0.0

    def _quarantine(self, state: StreamState | None) -> Quarantine:
        if state is None or not state.rejected:
            return Quarantine(0, (), 0)
        keys = sorted(self.bus.waiting_keys(state.stream))
        return Quarantine(state.rejected, tuple(keys[:KEYS_SHOWN]), max(len(keys) - KEYS_SHOWN, 0))

    def _groups(self, stream: str, state: StreamState) -> Iterator[GroupStatus]:
        for name, group in self.bus.groups(stream).items():
            if name not in self.assembly.config.sinks:
                yield self._group(name, stream, group, state)

    def _group(self, name: str, stream: str, group: GroupState, state: StreamState) -> GroupStatus:
        behind = _behind(state, group.cursor)
        quiet = group.committed is None or self.time - group.committed > IDLE
        return GroupStatus(
            group=name,
            offset=group.cursor.offset if group.cursor else None,
            lag_events=behind,
            committed=group.committed,
            declared=group.declared,
            idle=bool(behind) and quiet,
            release=f"headwater bus release {name} --stream {stream}",
        )

    def _since(self, time: datetime.datetime | None) -> float | None:
        return None if time is None else max((self.time - time).total_seconds(), 0.0)


DELIVERIES = ("exactly_once", "at_least_once", "best_effort")


def weaker(first: str, second: str) -> str:
    """The weaker of two promises of delivery."""
    return max(first, second, key=DELIVERIES.index)


def _behind(state: StreamState, cursor: Cursor | None) -> int:
    if cursor is None or cursor.incarnation != state.incarnation:
        return state.head - state.first
    return max(state.head - max(cursor.offset, state.first), 0)


def _place(position: Position | None) -> Order | None:
    return None if position is None else Order(position.epoch, position.commit)


def _notes(placed: Iterable[PlacedNote]) -> Iterator[NoteStatus]:
    for item in placed:
        yield NoteStatus(item.note.kind, item.note.text, item.offset, item.time)


def _stream_state(state: StreamState | None, worker: figures.WorkerFigures | None, *, configured: bool) -> str:
    if not configured:
        return "away"
    if state is not None and state.paused is not None:
        return "paused"
    if state is not None and state.resuming:
        return "resuming"
    if worker is None:
        return "stopped" if state is not None else "empty"
    return "flowing" if worker.state == "running" else worker.state
