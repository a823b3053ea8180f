"""Who may append: a lock file, held with flock by the one appender for its life. It is let go by any death."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from headwater.errors import AppenderBusy, BusError

FILE = "bus.lock"

_NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "gluster", "lustre", "9p", "fuse.sshfs", "fuse.s3", "ncpfs", "beegfs")


class AppenderLock:
    """Taken when made; `AppenderBusy` names the process that has it."""

    def __init__(self, directory: Path) -> None:
        self._handle = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._handle, 200).decode(errors="replace").strip()
            os.close(self._handle)
            raise _busy(directory, holder) from None
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{os.getpid()} {socket.gethostname()}\n".encode())

    def release(self) -> None:
        os.close(self._handle)


def _busy(directory: Path, holder: str) -> AppenderBusy:
    pid, _, host = holder.partition(" ")
    who = f"process {pid} on {host}" if pid else "another process"
    return AppenderBusy(
        f"{who} already appends to the bus in {directory}; there can be one",
        hint=f"look at it with `ps -fp {pid or 'PID'}` and stop it with `kill {pid or 'PID'}`; "
        "`status`, `tail`, `sql` and readers work beside it",
    )


def refuse_network(directory: Path) -> None:
    """SQLite's write-ahead log needs memory that all its processes share: a local disk."""
    kind = filesystem(directory)
    if kind.startswith(_NETWORK):
        raise BusError(
            f"the bus in {directory} would lie on a network file system ({kind})",
            hint="put it on a local disk: `bus: embedded:/var/lib/headwater`",
        )


def filesystem(directory: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that `directory` lies on; "" where the system does not say.

    Format: proc(5), mountinfo: the mount point is the fifth field, the type the first behind the single dash.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    target = f"{directory.resolve()}/"
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].encode().decode("unicode_escape").rstrip("/") + "/"
        if target.startswith(point) and len(point) >= len(best):
            best, kind = point, right.split(" ", 1)[0]
    return kind
