"""What is kept for how long, and the upkeep that sees to it: dropping by age, merging, compaction, and files.

Nothing that a declared group has yet to read is dropped when the contract says `until_consumed`; the groups that hold
something back are named, with the command that releases them.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from headwater.buses.embedded import compaction, files, merging, storing, streams
from headwater.buses.embedded.appending import Appender
from headwater.buses.embedded.reading import Shapes
from headwater.buses.embedded.rewriting import Kept, Workshop
from headwater.buses.embedded.store import Connection, Store
from headwater.contracts.model import Contract, Retention

DROP = 64
"""Segments dropped in one transaction."""


@dataclass(frozen=True, slots=True)
class Held:
    """A declared group that retention waits for. `unread`: events; `bytes_held`: of segments that are due."""

    group: str
    stream: str
    offset: int
    unread: int
    bytes_held: int
    committed: datetime.datetime | None
    command: str


@dataclass(frozen=True, slots=True)
class _Stream:
    id: int
    name: str
    contract: Contract
    compacted: int
    consumed: int | None
    """What every declared group has read; None if there is no such group."""


class Upkeep:
    """Does a slice of the work at each call; one call at a time."""

    def __init__(self, store: Store, appender: Appender, shapes: Shapes, codec: str) -> None:
        self._store, self._appender, self._shapes, self._codec = store, appender, shapes, codec
        self._turn = threading.Lock()
        self._steps: Iterator[None] | None = None

    def maintain(self, budget: float) -> bool:
        deadline = time.monotonic() + budget
        with self._turn:
            steps, self._steps = self._steps or self._all(), None
            for _ in steps:
                if time.monotonic() >= deadline:
                    self._steps = steps
                    return True
        return False

    def _all(self) -> Iterator[None]:
        with self._store.snapshot() as connection:
            found = _streams(connection)
        for stream in found:
            shop = Workshop(self._store, self._appender, self._shapes, self._codec, stream.id, stream.name)
            kept, now = stream.contract.retention, streams.micros()
            yield from _drop_old(shop, kept, stream.consumed, now)
            yield from merging.steps(shop, kept.age)
            if kept.compacted and stream.consumed != 0:
                limit = 2**62 if stream.consumed is None else stream.consumed
                bounds = compaction.Bounds(stream.compacted, limit, now)
                yield from compaction.steps(shop, stream.contract, bounds)
        yield from files.steps(self._store, self._appender.writer)


def _streams(connection: Connection) -> list[_Stream]:
    rows = connection.execute(
        "SELECT id, name, contract, compacted, (SELECT min(coalesce(next, 0)) FROM reader"
        " WHERE stream = stream.id AND declared AND NOT released) FROM stream ORDER BY name"
    )
    return [
        _Stream(number, name, Contract.model_validate_json(contract), compacted, consumed)
        for number, name, contract, compacted, consumed in rows
    ]


def _drop_old(shop: Workshop, retention: Retention, consumed: int | None, now: int) -> Iterator[None]:
    due = _due(shop.kept(), retention, consumed, now) if retention.age is not None or retention.until_consumed else []
    for start in range(0, len(due), DROP):
        part = due[start : start + DROP]
        with shop.store.write() as connection:
            changed = connection.execute(
                "UPDATE stream SET floor = ?, nbytes = nbytes - ? WHERE id = ?",
                (part[-1].next, sum(kept.nbytes for kept in part), shop.id),
            )
            if changed.rowcount:
                shop.appender.tail.forget(shop.id, part[-1].next)
                storing.delete(connection, [kept.id for kept in part])
        yield


def _due(kept: list[Kept], retention: Retention, consumed: int | None, now: int) -> list[Kept]:
    """The oldest segments, as far as nothing speaks for them."""
    due = []
    for part in kept:
        if not _is_old(part.appended, retention, consumed, now):
            break
        if retention.until_consumed and consumed is not None and part.next > consumed:
            break
        due.append(part)
    return due


def _is_old(appended: int, retention: Retention, consumed: int | None, now: int) -> bool:
    """Without an age, being read by every declared group is enough; but somebody must have read it."""
    if retention.age is None:
        return consumed is not None
    return appended <= now - int(retention.age * 1e6)


_WAITING = """
SELECT r.name, coalesce(r.next, 0), r.committed, s.head - coalesce(r.next, 0),
       (SELECT coalesce(sum(nbytes), 0) FROM segment WHERE stream = s.id AND appended <= :due
        AND next > coalesce(r.next, 0))
FROM reader r JOIN stream s ON s.id = r.stream
WHERE s.id = :stream AND r.declared AND NOT r.released AND coalesce(r.next, 0) < s.head
"""


def held_back(connection: Connection, now: int) -> list[Held]:
    """Groups that hold back events whose time has come, in streams whose retention drops or compacts."""
    found = []
    for stream in _streams(connection):
        retention = stream.contract.retention
        if not (retention.until_consumed or retention.compacted):
            continue
        due = {"stream": stream.id, "due": now - int((retention.age or 0) * 1e6)}
        for group, place, committed, unread, nbytes in connection.execute(_WAITING, due):
            since = None if committed is None else streams.to_time(committed)
            command = f"headwater bus release {group} --stream {stream.name}"
            if nbytes:
                found.append(Held(group, stream.name, place, unread, nbytes, since, command))
    return found
