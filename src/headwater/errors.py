"""Every error that Headwater raises on purpose, in one tree.

    HeadwaterError
    ├── ConfigError              headwater.yaml or a contract file cannot be used as written
    │   ├── ContractError        a contract, vocabulary or compatibility rule is broken
    │   ├── PromiseError         a contract promises more than its path can give
    │   └── MissingExtra         a client library is not installed; the hint is the pip line
    ├── NotConnected             the other side is away: the framework retries with back-off
    │   └── Busy                 somebody else holds the file or the lock for now
    ├── SourceError              a source cannot go on; trying again will not help
    │   └── GapError             changes were lost before they were captured; names the gap and the repair
    ├── MappingError             an expression, key or `where` that cannot be evaluated
    ├── StreamStopped            a stream must stop (policy `stop`); the others go on
    ├── BusError
    │   ├── AppenderBusy         a second process wants to append
    │   ├── BusDamaged           a bus file is cut short, altered, or of a newer format
    │   ├── BusFull              a size or byte limit was reached; nothing was dropped
    │   └── HistoryGone          the offset asked for is no longer kept
    ├── SinkError
    │   ├── CursorMismatch       another writer moved the sink's cursor, or it is of another incarnation
    │   └── RowRefused           single rows that the target refuses
    └── VerifyError              a comparison that cannot be made

Each names the thing, what was expected and what was found, and carries a `hint`: what to do.
"""

from __future__ import annotations


class HeadwaterError(Exception):
    """`str()` is the message and, on a second line, the hint."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(HeadwaterError):
    pass


class ContractError(ConfigError):
    pass


class PromiseError(ConfigError):
    pass


class MissingExtra(ConfigError):
    pass


class NotConnected(HeadwaterError):
    pass


class Busy(NotConnected):
    pass


class SourceError(HeadwaterError):
    pass


class GapError(SourceError):
    pass


class MappingError(HeadwaterError):
    pass


class StreamStopped(HeadwaterError):
    """`stream` names the one that stops."""

    def __init__(self, stream: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.stream = stream


class BusError(HeadwaterError):
    pass


class AppenderBusy(BusError):
    pass


class BusDamaged(BusError):
    pass


class BusFull(BusError):
    pass


class HistoryGone(BusError):
    pass


class SinkError(HeadwaterError):
    pass


class CursorMismatch(SinkError):
    pass


class RowRefused(SinkError):
    pass


class VerifyError(HeadwaterError):
    pass
