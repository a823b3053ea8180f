"""Copies of a bus, and their way back.

A backup is one consistent state, taken while appends go on. A restored bus begins a new branch of history: each stream
gets a new incarnation, and cursors of the old one hold up to the backup's end. A reader that was farther than that is
told so (`CursorMismatch`), however far the restored stream has grown by then; it can never silently skip.

Sources resume from the restored positions. Whether what came after them is still in the database is theirs to find out
(a change table that was pruned beyond the position, a log that was dropped): they raise `GapError`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from headwater.buses.embedded import appending, lock, store
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
    connection = source.connect()
    try:
        with _fresh(partial) as copy:
            store.copy(connection, copy, source.path)
            store.verify(copy, partial)
    finally:
        connection.close()
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
        _branch(partial)
        failpoint("bus.restore.before_rename")
        store.publish(partial, target)
    finally:
        held.release()


def _branch(path: Path) -> None:
    """Begin a new branch of history, and delete what lay beyond the heads."""
    copy = Store(path)
    try:
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
