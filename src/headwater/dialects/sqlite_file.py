"""Which file a path names. A database that is replaced (a restore, a deployment) leaves connections at the old file,
where nothing happens any more: without a look at the path capture would be silent and healthy (F80, F83).
"""

from __future__ import annotations

import os
from pathlib import Path

from headwater.errors import NotConnected


class OpenedFile:
    """The file that a connection was just opened on. Looked at by path, never by an open file: closing one would drop
    this process's locks on it (fcntl(2))."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._found()

    def check(self) -> os.stat_result:
        """Raises `NotConnected` when the path names another file by now, or none."""
        found = self._stat()
        if (found.st_dev, found.st_ino) != self._file:
            raise NotConnected(
                f"{self.path} was replaced by another file", hint="it is opened anew; see `headwater status` for gaps"
            )
        return found

    def _found(self) -> tuple[int, int]:
        found = self._stat()
        return found.st_dev, found.st_ino

    def _stat(self) -> os.stat_result:
        try:
            return os.stat(self.path)
        except FileNotFoundError as error:
            raise NotConnected(f"{self.path} is gone", hint="was it moved? it is looked for again") from error
