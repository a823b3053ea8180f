"""Copies of a bus, and their way back.

A backup is one consistent state in one file, taken while appends go on. A restored bus begins a new branch of history:
each stream gets a new incarnation, and cursors of the old one hold up to the backup's end. A reader that was farther
than that is told so (`CursorMismatch`), however far the restored stream has grown by then; it can never silently skip.

Sources resume from the restored positions. Whether what came after them is still in the database is theirs to find out
(a change table that was pruned beyond the position, a log that was dropped): they raise `GapError`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from headwater.buses.embedded import appending, files, lock, store
from headwater.buses.embedded.store import Connection, Store
from headwater.errors import BusError
from headwater.faults import failpoint


def backup(source: Store, path: Path) -> None:
    """Write a copy of the bus to the new file `path`; durable on return."""
    _refuse_existing(path, "a backup never overwrites: choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BusError(f"cannot write in {path.parent}: {error.strerror}", hint="choose another place") from error
    partial = path.with_name(path.name + ".partial")
    with source.snapshot() as connection, _fresh(partial) as copy:
        _copy(connection, copy, source.path)
        store.verify(copy, partial)
    failpoint("bus.backup.before_rename")
    store.publish(partial, path)


def restore(path: Path, directory: Path) -> None:
    """Make the bus in `directory`, where there must be none, from a backup."""
    target = directory / store.FILE
    if not path.exists():
        raise BusError(f"there is no backup {path}", hint="`headwater backup FILE` makes one")
    _refuse_existing(target, f"restore never overwrites: move {directory} away first")
    directory.mkdir(parents=True, exist_ok=True)
    lock.refuse_network(directory)
    held = lock.AppenderLock(directory)
    try:
        _refuse_existing(target, "another process restored it meanwhile")
        store.refuse_orphans(target)
        partial = directory / (store.FILE + ".new")
        with contextlib.closing(store.opened_read_only(path)) as source, _fresh(partial) as copy:
            store.copy(source, copy, path)
            store.verify(copy, path)
        _branch(partial, path)
        failpoint("bus.restore.before_rename")
        store.publish(partial, target)
    finally:
        held.release()


def _copy(connection: Connection, copy: Connection, path: Path) -> None:
    """The state of the bus `path` that this transaction sees, with what lies in files taken in."""
    connection.execute("SELECT count(*) FROM stream").fetchone()  # a transaction sees the state of its first look
    store.copy(connection, copy, path)
    with store.translated(path):
        copy.execute("BEGIN")
        for segment in files.in_files(copy):
            files.take_in(copy, path, segment)
        copy.execute("COMMIT")


def _branch(path: Path, origin: Path) -> None:
    """Begin a new branch of history, in the present format, without files."""
    copy = Store(path)
    try:
        store.migrate(copy)
        with copy.snapshot() as connection:
            left = files.in_files(connection)
        for segment in left:
            with copy.write() as connection:
                files.take_in(connection, origin, segment)
        with copy.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO branch (stream, incarnation, upto) SELECT id, incarnation, head FROM stream"
            )
            for (number,) in connection.execute("SELECT id FROM stream").fetchall():
                connection.execute("UPDATE stream SET incarnation = ? WHERE id = ?", (uuid.uuid4().hex, number))
        appending.purge(copy)
    finally:
        copy.close()
    store.fold_log(path)


@contextlib.contextmanager
def _fresh(path: Path) -> Iterator[Connection]:
    for name in (path.name, path.name + "-wal", path.name + "-shm", path.name + "-journal"):
        path.with_name(name).unlink(missing_ok=True)
    with contextlib.closing(store.blank(path)) as connection:
        yield connection


def _refuse_existing(path: Path, hint: str) -> None:
    if path.exists():
        raise BusError(f"{path} exists already", hint=hint)
