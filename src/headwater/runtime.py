"""A configured pipeline as the supervisor's parts, and what a running one is asked to do by other processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater import joining, quarantine, requests
from headwater.assembly import Assembly
from headwater.contracts.model import Contract
from headwater.model import Batch
from headwater.pipeline import standing
from headwater.plugins import sink_batch
from headwater.protocols import Bus, Sink, Source
from headwater.router import Router
from headwater.supervisor import Supervisor


class Runtime:
    """Implements `supervisor.Parts` for an assembly that holds the appender's lock."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._routes = {stream: assembly.route(stream) for stream in assembly.config.streams}

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
        return self._assembly.source(capture)

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
                sink.write(part)
        finally:
            source.close()
        sink.move(stream, joining.hand_over(self.bus, stream, capture, order))

    def pace(self, sink: str) -> tuple[int, float]:
        config = self._assembly.config.sinks[sink]
        batch = config.batch or sink_batch(config.scheme)
        return batch.events, batch.age

    def table_streams(self, capture: str, batch: Batch) -> Iterable[tuple[str, int]]:
        for changes in batch.changes:
            for stream in self._assembly.capture_streams()[capture]:
                if changes.stream in (None, stream) and changes.table == self._routes[stream].table:
                    yield stream, len(changes)

    def maintain(self) -> bool:
        return self.bus.maintain()

    def answer(self) -> None:
        if self.home is not None:
            requests.answer_all(self.home, {"replay": self.replay, "drop": self.drop})

    def replay(self, stream: str, numbers: Sequence[int] | None = None) -> dict[str, Any]:
        return asdict(quarantine.replay(self.bus, self._routes[stream], numbers))

    def drop(self, numbers: Sequence[int]) -> dict[str, Any]:
        quarantine.drop(self.bus, numbers)
        return {"dropped": list(numbers)}

    def _contract(self, stream: str) -> Contract:
        return self._assembly.contract(stream)


def start(assembly: Assembly) -> Supervisor:
    """A supervisor for a configuration that has been checked, with its streams declared on the bus.

    Raises `ConfigError`, `PromiseError`, `AppenderBusy`, and what opening the bus and looking at the sources raises.
    """
    assembly.check_promises()
    assembly.declare()
    if assembly.home is not None:
        requests.clear(assembly.home)
    return Supervisor(Runtime(assembly))
