"""Wrappers: the same protocol in, the same out, with one thing added. The engine's loops know nothing of them."""

from __future__ import annotations

import queue
import random
import threading
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


class Prefetching(_SourceWrapper):
    """Reads ahead on a thread of its own, up to `budget` bytes, while the batch before is being appended.

    The source's promises hold: what was read ahead and never appended is read again after a restart.
    """

    def __init__(self, source: Source, budget: int = 16 * 2**20) -> None:
        super().__init__(source)
        self._budget = budget

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        ahead = _Ahead(self._budget)
        thread = threading.Thread(
            target=ahead.fill, args=(self.source.read(after, follow=follow),), name=f"{self.name} read", daemon=True
        )
        thread.start()
        try:
            yield from ahead.batches()
        finally:
            ahead.abandon()
            self.source.stop()
            thread.join()


class _Ahead:
    """A queue with a byte budget; at least one batch always fits."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._queue: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._held = 0
        self._abandoned = False

    def fill(self, source: Iterator[Batch]) -> None:
        """Ends with None, or with the exception that ended the source: it is raised where the batches are taken."""
        try:
            for batch in source:
                if not self._wait_for_room(batch.nbytes):
                    return
                self._queue.put(batch)
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that reads
            self._queue.put(error)

    def batches(self) -> Iterator[Batch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            with self._room:
                self._held -= item.nbytes
                self._room.notify()

    def abandon(self) -> None:
        with self._room:
            self._abandoned = True
            self._room.notify()

    def _wait_for_room(self, nbytes: int) -> bool:
        with self._room:
            self._room.wait_for(lambda: self._abandoned or self._held == 0 or self._held + nbytes <= self._budget)
            self._held += nbytes
            return not self._abandoned


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
