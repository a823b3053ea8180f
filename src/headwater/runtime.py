"""A configured pipeline as the supervisor's parts, and what a running one is asked to do by other processes."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from headwater import joining, quarantine, requests
from headwater.assembly import Assembly
from headwater.contracts.model import Contract
from headwater.errors import CursorMismatch, HeadwaterError, NotConnected
from headwater.model import Batch, Cursor, Mapped
from headwater.pipeline import standing
from headwater.plugins import sink_batch
from headwater.protocols import Bus, Sink, Source
from headwater.router import Router
from headwater.supervisor import Supervisor
from headwater.wrap import Prefetching

SWITCH_SECONDS = 0.0005
"""After which a thread gives way to another: at Python's own 5 ms a commit would wait for a sink's bookkeeping."""


class Runtime:
    """Implements `supervisor.Parts` for an assembly that holds the appender's lock."""

    def __init__(self, assembly: Assembly) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what threads have freed: 80 MB more at the peak
        _share_heaps()
        self._assembly = assembly
        self._routes = {stream: assembly.route(stream) for stream in assembly.config.streams}
        self._fed = {
            capture: [(stream, self._routes[stream].table) for stream in streams]
            for capture, streams in assembly.capture_streams().items()
        }
        self._stopping = threading.Event()
        self._anew: set[str] = set()

    @property
    def bus(self) -> Bus:
        return self._assembly.bus

    @property
    def home(self) -> Path | None:
        return self._assembly.home

    def capture_streams(self) -> dict[str, tuple[str, ...]]:
        return self._assembly.capture_streams()

    def sink_streams(self) -> dict[str, tuple[str, ...]]:
        return self._assembly.sink_streams()

    def source(self, capture: str) -> Source:
        source = self._assembly.source(capture)
        polled = self._assembly.config.streams[self.capture_streams()[capture][0]].pattern == "query"
        return Prefetching(source) if polled else source

    def mapping(self, capture: str) -> Router:
        return self._assembly.router(capture)

    def sink(self, name: str) -> Sink:
        return self._assembly.sink(name)

    def prepare(self, sink: Sink, stream: str) -> None:
        sink.prepare(self._contract(stream))
        if joining.must_join(self.bus, stream, standing(self.bus, stream, sink)):
            self._join(sink, stream)

    def _join(self, sink: Sink, stream: str) -> None:
        capture = self._assembly.capture_of(stream)
        source = self._assembly.source(capture)
        try:
            order, events = joining.rows(source, self._assembly.route(stream).mapping, stream)
            sink.clear(stream)
            sink.prepare(self._contract(stream))
            for part in events:
                self._check_stopping(sink.name, stream)
                sink.write(part)
        finally:
            source.close()
        sink.move(stream, joining.hand_over(self.bus, stream, capture, order, until=self._stopping))

    def _check_stopping(self, sink: str, stream: str) -> None:
        if self._stopping.is_set():
            raise NotConnected(f"sink {sink}: it was stopped while it joined stream {stream}; it begins again")

    def stop(self) -> None:
        self._stopping.set()

    def pace(self, sink: str) -> tuple[int, float]:
        config = self._assembly.config.sinks[sink]
        batch = config.batch or sink_batch(config.scheme)
        return batch.events, batch.age

    def table_streams(self, capture: str, batch: Batch) -> Iterable[tuple[str, int]]:
        return [
            (stream, number)
            for table, only, number in batch.counts()
            for stream, its_table in self._fed[capture]
            if only in (None, stream) and table == its_table
        ]

    def maintain(self) -> bool:
        return self.bus.maintain()

    def answer(self) -> None:
        if self.home is not None:
            handlers: dict[str, requests.Handler] = {
                "replay": self.replay,
                "drop": self.drop,
                "backfill": self.backfill,
            }
            requests.answer_all(self.home, handlers)

    def replay(self, stream: str, numbers: Sequence[int] | None = None) -> dict[str, Any]:
        return asdict(quarantine.replay(self.bus, self._routes[stream], numbers))

    def drop(self, numbers: Sequence[int]) -> dict[str, Any]:
        quarantine.drop(self.bus, numbers)
        return {"dropped": list(numbers)}

    def backfill(self, stream: str, where: str | None = None) -> dict[str, Any]:
        """The capture begins anew, and with the stream's rows."""
        note = self._assembly.backfill(stream, where)
        self.bus.settle(Mapped(notes=(note,)))
        self._anew.add(self._assembly.capture_of(stream))
        return {"stream": stream, "where": where, "load": note.text.split()[0]}

    def to_begin_anew(self) -> set[str]:
        """The captures that were asked for something which is only done at a beginning."""
        asked, self._anew = self._anew, set()
        return asked

    def _contract(self, stream: str) -> Contract:
        return self._assembly.contract(stream)


def _share_heaps() -> None:
    """glibc gives each thread a heap that keeps what the thread has freed: two shared ones took 30 MB less at the peak
    of a capture beside a sink (mallopt(3), M_ARENA_MAX = -8). Other C libraries have no such call."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(-8, 2)


def start(assembly: Assembly) -> Supervisor:
    """A supervisor for a configuration that has been checked, with its streams declared on the bus.

    Raises `ConfigError`, `PromiseError`, `AppenderBusy`, and what opening the bus and looking at the sources raises;
    `CursorMismatch` when a sink is ahead of the bus.
    """
    assembly.check_accepted()
    assembly.check_promises()
    assembly.declare()
    _refuse_older_bus(assembly)
    if assembly.home is not None:
        requests.clear(assembly.home)
    return Supervisor(Runtime(assembly))


def _refuse_older_bus(assembly: Assembly) -> None:
    """A sink that is ahead of its stream tells that the bus was put back to an older state (F83).

    It has to be seen before anything is appended: once other events have taken the lost ones' offsets, nobody can tell,
    and the sink would skip them.
    """
    states = assembly.bus.streams()
    for name, streams in assembly.sink_streams().items():
        for stream, cursor in _cursors(assembly, name, streams):
            state = states[stream]
            if cursor.incarnation == state.incarnation and cursor.offset > state.head:
                raise CursorMismatch(
                    f"stream `{stream}`: sink {name} stands at offset {cursor.offset}, and the stream ends at "
                    f"{state.head}: the bus was put back to an older state",
                    hint="put a bus back by `headwater restore`; what the sink holds beyond that place is unknown to "
                    f"the bus: `headwater sink rebuild {name} --stream {stream}`",
                )


def _cursors(assembly: Assembly, name: str, streams: Sequence[str]) -> list[tuple[str, Cursor]]:
    """Where a sink stands; nothing of one that is away or broken: its worker says so, and the others go on (F56)."""
    try:
        with closing(assembly.sink(name)) as sink:
            found = [(stream, sink.cursor(stream)) for stream in streams]
    except (HeadwaterError, OSError):
        return []
    return [(stream, cursor) for stream, cursor in found if cursor is not None]
