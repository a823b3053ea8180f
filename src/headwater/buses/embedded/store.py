"""bus.db as SQLite keeps it: connections, transactions, and its errors in our words.

The one module that knows the client library. One connection writes, under a lock of its own; each reader takes a
connection for the length of one short transaction, so that the write-ahead log can be folded back beneath them.
Never open bus.db by any other means in this process: closing the file would drop SQLite's POSIX locks on it
(https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headwater.buses.embedded import schema
from headwater.errors import BusDamaged, BusError, BusFull, Busy, HeadwaterError
from headwater.faults import failpoint

Connection = sqlite3.Connection

FILE = "bus.db"
DIRECTORY = "segments"
"""Where the files beside it lie: see `files`."""
PAGE = 8_192
CHECKPOINT = 16 * 2**20
"""Bytes of write-ahead log at which it is folded back into the file."""
BUSY_MS = 30_000
EMPTYING_MS = 100
"""How long writers may be kept waiting while the log is emptied."""

_NO_SPACE = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE")
"""How SQLite says that the disk is full: tried again, for somebody may make room."""

_REFUSED = "SQLITE_CONSTRAINT_TRIGGER"
"""RAISE in a trigger."""

_FOLD = "PRAGMA wal_checkpoint(PASSIVE)"

_SETTINGS = (
    f"PRAGMA busy_timeout={BUSY_MS}",
    "PRAGMA synchronous=FULL",
    f"PRAGMA wal_autocheckpoint={CHECKPOINT // PAGE}",
    f"PRAGMA journal_size_limit={CHECKPOINT}",
    "PRAGMA temp_store=MEMORY",
)


class Store:
    """An open bus.db."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._spare: list[Connection] = []
        self._pool = threading.Lock()
        self._closed = False
        self._writer = self.connect()
        try:
            with translated(path):
                _check_format(self._writer, path)
        except BaseException:
            self._writer.close()
            raise

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: durable when the block ends, undone when it raises."""
        with self._writing, translated(self.path):
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                failpoint("bus.write.before_commit")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        failpoint("bus.write.after_commit")

    def execute(self, statement: str, values: Sequence[Any]) -> bool:
        """One statement that is a transaction by itself: durable on return. False: a trigger of ours refused it."""
        failpoint("bus.write.before_commit")
        with self._writing:
            try:
                self._writer.execute(statement, values)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorname", "") == _REFUSED:
                    return False
                raise _ours(error, self.path) from error
        failpoint("bus.write.after_commit")
        return True

    def empty_log(self) -> bool:
        """Fold the log back and empty it. True: nobody reads a state from before.

        False: somebody still does, or the disk is too full for it.
        """
        with self._writing, translated(self.path):
            self._writer.execute(f"PRAGMA busy_timeout={EMPTYING_MS}")
            try:
                (busy, *_) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname not in _NO_SPACE:
                    raise
                return False
            finally:
                self._writer.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        return not busy

    def checkpoint_at(self, nbytes: int) -> None:
        """How large the log may get until a commit of ours folds it back."""
        with self._writing, translated(self.path):
            self._writer.execute(f"PRAGMA wal_autocheckpoint={nbytes // PAGE}")

    def fold_back(self) -> None:
        """Fold the log back while others write and read, and then, while nobody writes, what they added meanwhile.

        What cannot be written stays in the log, where it is as safe, until the next time; reads name what is damaged.
        """
        try:
            connection = self.borrow()
        except HeadwaterError:  # no file can be opened, or the bus was closed
            return
        try:
            with contextlib.suppress(sqlite3.Error):
                connection.execute(_FOLD)
                connection.execute(_FOLD)
                with self._writing:
                    connection.execute(_FOLD)
        finally:
            self.give_back(connection)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A short read transaction: all statements in the block see the same state."""
        connection = self.borrow()
        try:
            with translated(self.path), reading(connection):
                yield connection
        finally:
            self.give_back(connection)

    def look(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of one query, which needs no transaction around it."""
        connection = self.borrow()
        try:
            return connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise _ours(error, self.path) from error
        finally:
            self.give_back(connection)

    def connect(self) -> Connection:
        """A connection of the caller's own, to be closed by the caller."""
        with translated(self.path):
            return connected(self.path)

    def close(self) -> None:
        with self._pool:
            self._closed = True
            spare, self._spare = self._spare, []
        for connection in spare:
            connection.close()
        with self._writing:
            self._writer.close()

    def borrow(self) -> Connection:
        """A connection for a reader that runs longer than one transaction; to be given back."""
        with self._pool:
            if self._closed:
                raise BusError(f"the bus {self.path} has been closed")
            if self._spare:
                return self._spare.pop()
        return self.connect()

    def give_back(self, connection: Connection) -> None:
        with self._pool:
            if not self._closed:
                self._spare.append(connection)
                return
        connection.close()


@contextlib.contextmanager
def reading(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def connected(path: Path) -> Connection:
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode=rw", uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000
    )
    try:
        for setting in _SETTINGS:
            connection.execute(setting)
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: Path) -> None:
    """Make an empty bus. It appears under its name only when it is whole, so an empty file is always a damaged one."""
    refuse_orphans(path)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with translated(path):
        connection = sqlite3.connect(new, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size={PAGE}")
            connection.execute("BEGIN")
            for statement in schema.TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={schema.FORMAT}")
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
    failpoint("bus.create.before_rename")
    publish(new, path)


def publish(new: Path, path: Path) -> None:
    """Give a finished file its name, durably."""
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    new.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def migrate(store: Store) -> None:
    """Bring an older file to the present format, in one transaction."""
    with store.write() as connection:
        found = _number(connection, "user_version")
        for step in range(found, schema.FORMAT):
            for statement in schema.MIGRATIONS[step]:
                connection.execute(statement)
            failpoint("bus.migrate.step")
        connection.execute(f"PRAGMA user_version={schema.FORMAT}")


def format_of(store: Store) -> int:
    with store.snapshot() as connection:
        return _number(connection, "user_version")


def blank(path: Path) -> Connection:
    """A file that a copy is to be written into."""
    with translated(path):
        return sqlite3.connect(path, isolation_level=None)


def opened_read_only(path: Path) -> Connection:
    """A bus file that nobody writes: a backup, perhaps on a read-only medium."""
    with translated(path):
        connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None)
        try:
            with translated(path):
                _check_format(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def copy(source: Connection, target: Connection, path: Path) -> None:
    """All pages in one step: one state of the source, while others write to it. The copy has no log beside it."""
    with translated(path):
        source.backup(target, pages=-1)
        target.execute("PRAGMA journal_mode=DELETE")


def verify(connection: Connection, path: Path) -> None:
    """Raises `BusDamaged` if SQLite finds the structure of the file unsound."""
    with translated(path):
        found = [text for (text,) in connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise damaged(path, "; ".join(found))


def fold_log(path: Path) -> None:
    """Leave a closed bus file whole, without a log beside it, and in the mode in which it is opened."""
    with translated(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as the bus's own."""
    try:
        yield
    except sqlite3.Error as error:
        raise _ours(error, path) from error


def _ours(error: sqlite3.Error, path: Path) -> Exception:
    text = str(error)
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy(
            f"{path}: another process has held the write lock for {BUSY_MS // 1000} s",
            hint=f"find it with `fuser -v {path}`",
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return damaged(path, text)
    if name == "SQLITE_FULL" or name.startswith("SQLITE_IOERR"):
        kind = BusFull if name in _NO_SPACE else BusError
        return kind(
            f"{path}: cannot write or read the disk ({text}); nothing of this step was kept",
            hint=f"look at `df -h {path.parent}` and the system log; the bus goes on by itself once there is space",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
        return BusError(
            f"{path}: cannot be opened for writing ({text})",
            hint=f"this user needs to read and write {path.parent} and the files in it",
        )
    return BusError(f"{path}: {text}")


def damaged(path: Path, what: str) -> BusDamaged:
    return BusDamaged(
        f"{path} is damaged: {what}",
        hint="stop every process that uses it, keep a copy of the directory, and restore a backup "
        "with `headwater restore`; without one, move the directory away: capture then begins anew",
    )


def _check_format(connection: Connection, path: Path) -> None:
    application = _number(connection, "application_id")
    if application != schema.APPLICATION_ID:
        raise damaged(path, f"not a Headwater bus (application id {application:#x})")
    found = _number(connection, "user_version")
    if found > schema.FORMAT:
        raise BusDamaged(
            f"{path} has format {found}, and this Headwater knows formats up to {schema.FORMAT}",
            hint="upgrade Headwater: `pip install -U headwater`",
        )


def refuse_orphans(path: Path) -> None:
    log, beside = path.with_name(path.name + "-wal"), path.parent / DIRECTORY
    if log.exists() and log.stat().st_size:
        raise _orphaned(path, f"its write-ahead log {log.name} is there", log)
    if beside.exists() and any(beside.iterdir()):
        raise _orphaned(path, f"its events are in {beside.name}", beside)


def _orphaned(path: Path, what: str, left: Path) -> BusDamaged:
    return BusDamaged(
        f"{path} is missing, but {what}",
        hint=f"bring {path.name} back, or restore a backup; if the bus was deleted on purpose, delete {left} too",
    )


def _number(connection: Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
