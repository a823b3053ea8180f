"""Wrappers: the same protocol in, the same out, with one thing added. The engine's loops know nothing of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from headwater.contracts.model import Contract
from headwater.errors import SourceError
from headwater.model import Batch, Cursor, Events, Position, SourceState
from headwater.protocols import Sink, SinkState, Source


class _SourceWrapper:
    """Everything passed on; wrappers replace what they add to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name

    @property
    def broken(self) -> Mapping[str, SourceError]:
        return self.source.broken

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        return self.source.read(after, follow=follow)

    def confirm(self, position: Position) -> None:
        self.source.confirm(position)

    def state(self, stream: str) -> SourceState:
        return self.source.state(stream)

    def stop(self) -> None:
        self.source.stop()

    def close(self) -> None:
        self.source.close()


class Metered(_SourceWrapper):
    """Tells `seen` of each batch once it is durable: `confirm` comes after the append."""

    def __init__(self, source: Source, seen: Callable[[Batch], None]) -> None:
        super().__init__(source)
        self._seen = seen

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        for batch in self.source.read(after, follow=follow):
            yield batch
            self._seen(batch)


class MeteredSink:
    """Tells `seen` how many events each write has made durable."""

    def __init__(self, sink: Sink, seen: Callable[[int], None]) -> None:
        self.name = sink.name
        self.guarantee = sink.guarantee
        self._sink = sink
        self._seen = seen

    def prepare(self, contract: Contract) -> None:
        self._sink.prepare(contract)

    def cursor(self, stream: str) -> Cursor | None:
        return self._sink.cursor(stream)

    def write(self, events: Events) -> None:
        self._sink.write(events)
        self._seen(len(events))

    def move(self, stream: str, cursor: Cursor | None) -> None:
        self._sink.move(stream, cursor)

    def clear(self, stream: str) -> None:
        self._sink.clear(stream)

    def state(self, stream: str) -> SinkState:
        return self._sink.state(stream)

    def close(self) -> None:
        self._sink.close()


class Faulty(_SourceWrapper):
    """Raises `error` before a batch with `probability`: what a source on a bad network does."""

    def __init__(self, source: Source, error: Callable[[], Exception], probability: float, seed: int = 0) -> None:
        super().__init__(source)
        self._error = error
        self._probability = probability
        self._dice = random.Random(seed)

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        for batch in self.source.read(after, follow=follow):
            if self._dice.random() < self._probability:
                raise self._error()
            yield batch
