"""SQLite's result codes as errors of the one tree (https://www.sqlite.org/rescode.html)."""

from __future__ import annotations

from headwater.errors import Busy, HeadwaterError, NotConnected, SourceError

BUSY, LOCKED, INTERRUPT, FULL, CANTOPEN, NOTADB, CORRUPT, CONSTRAINT = 5, 6, 9, 13, 14, 26, 11, 19


class StatementError(SourceError):
    """A statement that SQLite refused. `code` is its extended result code, -1 when it was never sent."""

    def __init__(self, message: str, *, code: int = -1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ConstraintError(StatementError):
    """A row that a constraint or a unique index refuses."""


class Interrupted(StatementError):
    """`Connection.interrupt` ended the statement."""


def error_of(path: str, code: int, message: str) -> HeadwaterError:
    """The error for a result code, naming the file."""
    kind = code & 0xFF
    if kind in (BUSY, LOCKED):
        return Busy(
            f"{path} is locked by another program: {message}", hint="it is tried again; a longer `busy_timeout` waits"
        )
    if kind in (NOTADB, CORRUPT):
        what = "is not a SQLite database" if kind == NOTADB else "is damaged"
        return StatementError(f"{path} {what}: {message}", code=code, hint="check the path in the source's URL")
    if kind == CANTOPEN:
        return NotConnected(f"{path} cannot be opened: {message}", hint="check the file and its folder's permissions")
    if kind == CONSTRAINT:
        return ConstraintError(f"{path}: {message}", code=code)
    if kind == INTERRUPT:
        return Interrupted(f"{path}: {message}", code=code)
    return StatementError(f"{path}: {message}", code=code)
