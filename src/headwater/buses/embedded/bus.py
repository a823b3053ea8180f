"""The embedded bus: the `Bus` protocol over SQLite, and files for what is large.

What each call does lies in the modules beside this one.

One process appends, for which it holds a lock file; any number of processes of the same host read, commit cursors,
pause and resume.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

from headwater.buses.embedded import backup, finding, integrity, lock, reading, schema, store, streams, waiting
from headwater.buses.embedded.appending import Appender, Limits, purge
from headwater.buses.embedded.retention import Held, Upkeep, held_back
from headwater.buses.embedded.store import Connection, Store
from headwater.errors import BusDamaged, BusError
from headwater.model import Changes, Cursor, Events, Mapped, Order, Position
from headwater.protocols import Declaration, GroupState, PlacedNote, RejectedRow, StreamState


class EmbeddedBus:
    """`directory` holds bus.db, its write-ahead log, segment files and the appender's lock."""

    def __init__(self, directory: Path, *, append: bool, limits: Limits, codec: str = "lz4") -> None:
        self.directory = directory
        self.path = directory / store.FILE
        lock.refuse_network(directory)
        self._lock = _locked(directory) if append else None
        try:
            self._store = _opened(self.path, append=append)
            self._appender = Appender(self._store, limits, codec) if append else None
        except BaseException:
            self._unlock()
            raise
        self._signal = reading.Signal()
        self._shapes = reading.Shapes()
        self._upkeep = Upkeep(self._store, self._appender, self._shapes, codec) if self._appender else None

    # the two loops

    def position(self, source: str) -> Position | None:
        return self.positions().get(source)

    def positions(self) -> dict[str, Position]:
        with self._store.snapshot() as connection:
            rows = connection.execute("SELECT source, epoch, place, token FROM position ORDER BY source").fetchall()
        return {source: Position(epoch, int(place), token) for source, epoch, place, token in rows}

    def forget(self, source: str) -> None:
        with self._store.write() as connection:
            connection.execute("DELETE FROM position WHERE source = ?", (source,))

    def append(self, mapped: Mapped, *, source: str, position: Position) -> None:
        self._the_appender().append(mapped, source, position)
        self._signal.notify()

    def settle(self, mapped: Mapped, *, parked: Sequence[int] = (), rejected: Sequence[int] = ()) -> None:
        """Removal alone is allowed from any process; events can only come from the appender."""
        if self._appender is None and mapped == Mapped():
            with self._store.write() as connection:
                waiting.remove(connection, parked, rejected)
            return
        self._the_appender().settle(mapped, parked, rejected)
        self._signal.notify()

    def read(self, stream: str, *, after: Cursor | None, follow: bool, limit: int | None = None) -> Iterator[Events]:
        request = reading.Request(stream, after, follow, limit)
        tail = None if self._appender is None else self._appender.tail
        return reading.Reader(self._store, self._signal, self._shapes, request, tail).events()

    def cursor(self, group: str, stream: str) -> Cursor | None:
        with self._store.snapshot() as connection:
            return streams.group_cursor(connection, group, stream)

    def commit(self, group: str, stream: str, cursor: Cursor) -> None:
        with self._store.write() as connection:
            streams.commit(connection, group, stream, cursor)

    def stop(self) -> None:
        self._signal.stop()

    def close(self) -> None:
        self.stop()
        if self._appender is not None:
            self._appender.close()
        self._store.close()
        self._unlock()

    # what streams there are

    def declare(self, streams: Sequence[Declaration]) -> None:
        appender = self._the_appender()
        with appender.lock, self._store.write() as connection:
            _declare(connection, streams)

    def streams(self) -> dict[str, StreamState]:
        with self._store.snapshot() as connection:
            return streams.states(connection)

    def standing_still(self) -> frozenset[str]:
        with self._store.snapshot() as connection:
            return streams.standing_still(connection)

    def notes(self, stream: str) -> list[PlacedNote]:
        with self._store.snapshot() as connection:
            return streams.notes(connection, stream)

    def drop(self, stream: str) -> None:
        with self._store.write() as connection:
            streams.drop(connection, stream)
        if self._appender is not None:
            with self._appender.lock:
                self._appender.tail.clear()
                purge(self._store)
        self._signal.notify()

    def groups(self, stream: str) -> dict[str, GroupState]:
        with self._store.snapshot() as connection:
            return streams.groups(connection, stream)

    def release(self, group: str, stream: str | None = None) -> None:
        with self._store.write() as connection:
            streams.release(connection, group, stream)

    def offset_after(self, stream: str, order: Order) -> int:
        with self._store.snapshot() as connection:
            return finding.offset_after(self._store, self._shapes, connection, stream, order)

    def offset_at(self, stream: str, time: datetime.datetime) -> int:
        with self._store.snapshot() as connection:
            return finding.offset_at(self._store, self._shapes, connection, stream, streams.to_micros(time))

    # streams that stand still

    def pause(self, stream: str, reason: str) -> None:
        with self._store.write() as connection:
            waiting.pause(connection, stream, reason)

    def resume(self, stream: str) -> None:
        with self._store.write() as connection:
            waiting.resume(connection, stream)

    def parked(self, stream: str) -> Iterator[tuple[int, Changes]]:
        return waiting.parked(self._store, stream)

    def rejected(self, stream: str | None = None) -> Iterator[RejectedRow]:
        return waiting.rejected(self._store, stream)

    def rejected_changes(self, numbers: Sequence[int]) -> list[Changes]:
        return waiting.rejected_changes(self._store, numbers)

    def waiting_keys(self, stream: str) -> frozenset[str]:
        with self._store.snapshot() as connection:
            return waiting.waiting_keys(connection, stream)

    # upkeep: beyond the protocol

    def maintain(self, budget: float = 0.05) -> bool:
        """Merge small segments and carry out retention, for about `budget` seconds. True: there is more to do.

        By the appender, from any thread, beside appends and readers; each step is a small transaction.
        """
        self._the_appender()
        assert self._upkeep is not None
        return self._upkeep.maintain(budget)

    def held_back(self) -> list[Held]:
        """The declared groups that retention waits for, with the command that releases each."""
        with self._store.snapshot() as connection:
            return held_back(connection, streams.micros())

    def backup(self, path: Path) -> None:
        """Write a consistent copy to a new file, while everything goes on. `backup.restore` brings it back."""
        backup.backup(self._store, path)

    def check(self) -> list[str]:
        """What is wrong with the file, after reading all of it: one sentence each, none if it is sound."""
        return integrity.check(self._store, self._shapes)

    def _the_appender(self) -> Appender:
        if self._appender is None:
            raise BusError(
                f"this process reads the bus in {self.directory}; it was not opened for appending",
                hint="only one process appends: `headwater run`",
            )
        return self._appender

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _declare(connection: Connection, declarations: Sequence[Declaration]) -> None:
    for declaration in declarations:
        streams.declare(connection, declaration)


def _locked(directory: Path) -> lock.AppenderLock:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return lock.AppenderLock(directory)
    except OSError as error:
        raise BusError(
            f"cannot write in {directory}: {error.strerror}", hint="the bus needs a directory of its own"
        ) from error


def _opened(path: Path, *, append: bool) -> Store:
    if not path.exists():
        if not append:
            raise BusError(f"there is no bus in {path.parent} yet", hint="`headwater run` makes it")
        store.create(path)
    opened = Store(path)
    try:
        found = store.format_of(opened)
        if found < schema.FORMAT and append:
            store.migrate(opened)
        elif found < schema.FORMAT:
            raise BusDamaged(
                f"{path} has the older format {found}, and {schema.FORMAT} is expected",
                hint="`headwater run` brings it up to date when it starts",
            )
    except BaseException:
        opened.close()
        raise
    return opened
