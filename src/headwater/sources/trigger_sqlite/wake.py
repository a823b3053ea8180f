"""Notices that somebody has committed: `PRAGMA data_version`, every half millisecond while there is traffic.

Asking takes a shared lock for some microseconds. In WAL mode that hinders nobody. With a rollback journal a writer
without busy time-out could meet it, so there the file is looked at first (`stat`, no lock), and SQLite is asked
only for as long as the file's time stamp, which may be coarse, could hide a further commit. Once a second it is seen
whether the path still names the file that is open.
"""

from __future__ import annotations

import threading
import time

from headwater.dialects.sqlite_file import OpenedFile
from headwater.drivers.sqlite import Connection

FASTEST, SLOWEST = 0.0005, 0.020
ACTIVE = 0.1
"""Seconds without a commit after which the pauses begin to grow."""
COARSE = 0.05
"""No file system in use stamps a file that is being written to more coarsely (Linux: one tick, at most 10 ms)."""
ANYWAY = 1.0
"""Even an unchanged file is asked about this often."""


class Wake:
    """For one connection, in one thread. `quiet` is how long nobody has committed.

    `wait` raises `NotConnected` when the database's file was replaced.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._wal = connection.execute("PRAGMA journal_mode")[0][0] == "wal"
        self._version = connection.data_version()
        self.file = OpenedFile(connection.path)
        self._stamp = self._stamped()
        self._pause = FASTEST
        now = time.monotonic()
        self._changed = now
        self._touched = self._asked = self._looked = now

    @property
    def quiet(self) -> float:
        return time.monotonic() - self._changed

    def stir(self) -> None:
        """The application has written: it is not quiet."""
        self._changed = time.monotonic()

    def disregard(self) -> None:
        """What was committed until now was our own; the caller looks at once for what came beside it."""
        self._version = self._connection.data_version()

    def wait(self, stopping: threading.Event) -> bool:
        """Sleep one pause; then whether somebody has committed since the last call."""
        if stopping.wait(self._pause):
            return False
        now = time.monotonic()
        if now - self._looked > ANYWAY:
            self._looked = now
            self.file.check()
        if self._is_new(now):
            self._changed, self._pause = now, FASTEST
            return True
        if now - self._changed > ACTIVE:
            self._pause = min(SLOWEST, self._pause * 1.1)
        return False

    def _is_new(self, now: float) -> bool:
        if not self._wal and not self._worth_asking(now):
            return False
        self._asked = now
        version = self._connection.data_version()
        new, self._version = version != self._version, version
        return new

    def _worth_asking(self, now: float) -> bool:
        stamp = self._stamped()
        if stamp != self._stamp:
            self._stamp, self._touched = stamp, now
        return now - self._touched < COARSE or now - self._asked > ANYWAY

    def _stamped(self) -> tuple[int, int, int]:
        found = self.file.check()
        return found.st_mtime_ns, found.st_size, found.st_ino
