"""Segment files: where the records of large appends lie, beside bus.db.

The one idea: a file holds bytes, and only SQLite knows what they are. Bytes are added behind those that are there and
made durable; then a transaction names them (file, place in it, length, checksum). Bytes that no row names do not exist
for anybody: that is all that a crash, a failed append or a full disk can leave.

A file goes, and its unnamed end is cut off, once no row names it and no reader holds an older state that does. The
second is so when SQLite's log could be folded back whole and emptied: that waits for every reader
(https://www.sqlite.org/pragma.html#pragma_wal_checkpoint, TRUNCATE).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from headwater.buses.embedded.store import DIRECTORY, Connection, Store, damaged, sync_directory
from headwater.errors import BusError, BusFull
from headwater.faults import failpoint

MOST_BYTES = 64 * 2**20
"""A file of so many bytes gets no more."""
THIN = 0.5
"""What is left in a file is moved into SQLite when it is less than this part of the file."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Place:
    """Where records lie: the number of a file, and the first of their bytes in it."""

    file: int
    at: int


def path_of(bus: Path, number: int) -> Path:
    """The file of this number, of the bus whose bus.db is `bus`."""
    return bus.parent / DIRECTORY / f"{number:010}"


def numbers(bus: Path) -> list[int]:
    """Of the files that are there."""
    try:
        return sorted(int(name) for name in os.listdir(bus.parent / DIRECTORY) if name.isdecimal())
    except FileNotFoundError:
        return []


def read(bus: Path, place: Place, nbytes: int, what: str) -> bytes:
    """The bytes at a place. Within the transaction that found it. `what` they are, and the file, is for the error."""
    path = path_of(bus, place.file)
    try:
        with _translated(path), open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), nbytes, place.at)
    except FileNotFoundError as error:
        raise damaged(bus, f"{what}: the file is missing") from error
    if len(data) < nbytes:
        raise damaged(bus, f"{what}: the file ends at {place.at + len(data)}, before {place.at + nbytes}")
    return data


class Writer:
    """Adds to the newest file: `write` any number of times, `sync`, commit, and then `keep`; or `undo`, or `abandon`.

    By one thread at a time. What was there when it was made is not written to again.
    """

    def __init__(self, bus: Path, number: int) -> None:
        self.first = number
        """Files from this number on may have bytes that a transaction is yet to name; those before it are finished."""
        self._bus = bus
        self._number = number
        self._handle: int | None = None
        self._end = 0
        self._kept = 0
        self._named = True
        """Whether the directory durably holds the names of the files."""

    def write(self, data: pa.Buffer) -> Place:
        handle = self._file()
        place = Place(self._number, self._end)
        view = memoryview(data)
        with _translated(path_of(self._bus, place.file)):
            while view:
                written = os.pwrite(handle, view, self._end)
                self._end += written
                view = view[written:]
        failpoint("bus.file.written")
        return place

    def sync(self) -> None:
        """All that was written is durable when this returns."""
        assert self._handle is not None
        with _translated(path_of(self._bus, self._number)):
            os.fdatasync(self._handle)
            if not self._named:
                sync_directory(path_of(self._bus, self._number).parent)
                self._named = True
        failpoint("bus.file.synced")

    def keep(self) -> None:
        """A transaction has named what was written."""
        self.first, self._kept = self._number, self._end

    def undo(self) -> None:
        """No transaction will name what was written since `keep`: give its space back."""
        for number in range(self.first, self._number + 1):
            with contextlib.suppress(OSError):  # what cannot be given back now is unnamed, and goes with `sweep`
                if self._kept and number == self.first:
                    os.truncate(path_of(self._bus, number), self._kept)
                else:
                    path_of(self._bus, number).unlink()
        self.abandon()

    def abandon(self) -> None:
        """Nobody can say whether a transaction names what was written: leave it, and go on in another file."""
        if self._handle is not None:
            self.close()
            self._number += 1
        self.first, self._kept, self._end = self._number, 0, 0

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _file(self) -> int:
        if self._handle is not None and self._end >= MOST_BYTES:
            with _translated(path_of(self._bus, self._number)):
                os.fdatasync(self._handle)
            self.close()
            self._number += 1
        if self._handle is None:
            self._handle = self._made(path_of(self._bus, self._number))
            self._end, self._named = 0, False
            failpoint("bus.file.made")
        return self._handle

    def _made(self, path: Path) -> int:
        with _translated(path):
            if not path.parent.exists():
                path.parent.mkdir()
                sync_directory(path.parent.parent)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def writer(store: Store) -> Writer:
    """One that goes on behind every file that is there or named."""
    with store.snapshot() as connection:
        named = connection.execute("SELECT max(file) FROM segment").fetchone()[0] or 0
    return Writer(store.path, max([named, *numbers(store.path)]) + 1)


def steps(store: Store, adding: Writer) -> Iterator[None]:
    """Give back the space of what no row names any more; a small transaction between two steps."""
    for number in _thin(store, adding):
        with store.snapshot() as connection:
            left = in_files(connection, number)
        for segment in left:
            with store.write() as connection:
                take_in(connection, store.path, segment)
            yield
    sweep(store, adding)
    yield


def sweep(store: Store, adding: Writer) -> None:
    """Remove what no row names; if somebody still reads an older state, nothing: then another time."""
    finished = _finished(store, adding)
    used = _used(store)
    ends = {number: used[number].end if number in used else 0 for number in finished}
    extra = [number for number, end in ends.items() if not end or _size(store, number) > end]
    if not extra or not store.empty_log():
        return
    for number in extra:
        path = path_of(store.path, number)
        with _translated(path):
            if ends[number]:
                os.truncate(path, ends[number])
            else:
                path.unlink()
        failpoint("bus.file.swept")


def in_files(connection: Connection, file: int | None = None) -> list[int]:
    """Segments whose records lie in this file, or in any."""
    if file is None:
        found = connection.execute("SELECT id FROM segment WHERE file IS NOT NULL")
    else:
        found = connection.execute("SELECT id FROM segment WHERE file = ?", (file,))
    return [number for (number,) in found]


def take_in(connection: Connection, bus: Path, segment: int) -> None:
    """The records of a segment, if they lie in a file of the bus `bus`, into the database of the connection."""
    row = connection.execute(
        "SELECT file, place, nbytes FROM segment WHERE id = ? AND file IS NOT NULL", (segment,)
    ).fetchone()
    if row is None:
        return
    file, place, nbytes = row
    data = read(bus, Place(file, place), nbytes, f"segment {segment}, {path_of(bus, file)}")
    connection.execute("INSERT INTO records (segment, data) VALUES (?, ?)", (segment, data))
    connection.execute("UPDATE segment SET file = NULL, place = NULL WHERE id = ?", (segment,))


def _thin(store: Store, adding: Writer) -> list[int]:
    finished = _finished(store, adding)
    used = _used(store)
    return [n for n in finished if n in used and used[n].nbytes < THIN * used[n].end]


def _finished(store: Store, adding: Writer) -> list[int]:
    """Files that get no more bytes. To be asked for before asking what rows name of them."""
    found = numbers(store.path)
    return [number for number in found if number < adding.first]


@dataclass(frozen=True, slots=True)
class _Used:
    """What rows name of a file: up to where, and how many bytes."""

    end: int
    nbytes: int


def _used(store: Store) -> dict[int, _Used]:
    with store.snapshot() as connection:
        rows = connection.execute(
            "SELECT file, max(place + nbytes), sum(nbytes) FROM segment WHERE file IS NOT NULL GROUP BY file"
        ).fetchall()
    return {number: _Used(end, nbytes) for number, end, nbytes in rows}


def _size(store: Store, number: int) -> int:
    return path_of(store.path, number).stat().st_size


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The system's errors as the bus's own; but for a missing file, which may mean several things."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = BusFull if error.errno in _NO_SPACE else BusError
        raise kind(
            f"{path}: cannot write or read the disk ({error.strerror}); nothing of this step was kept",
            hint=f"look at `df -h {path.parent}` and the system log; the bus goes on by itself once there is space",
        ) from error
