"""The log pattern as a `Source`: one instance for all captured tables of one PostgreSQL database.

One idea: **a position moves at a commit, and a commit is told by its place.** Whole transactions that have arrived
together are one batch. Whatever the server sends again after a restart, commits at or below the stored place are left
out (F1); whatever it has sent, it is told to forget only what `confirm` was called for (F2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headwater.errors import NotConnected, SourceError
from headwater.faults import failpoint
from headwater.model import Batch, Position, SourceState
from headwater.protocols import Capture
from headwater.sources.log_postgres.begin import Setting, Stopping
from headwater.sources.log_postgres.session import Session
from headwater.sources.log_postgres.state import state_of


class LogSource:
    """See `protocols.Source`."""

    def __init__(self, name: str, setting: Setting, captures: Sequence[Capture], epoch: int) -> None:
        self.name = name
        self._broken: Mapping[str, SourceError] = {}
        self._setting = setting
        self._captures = {capture.stream: capture for capture in captures}
        self._epoch = max(1, epoch)
        self._session: Session | None = None
        self._stopping = Stopping()

    @property
    def broken(self) -> Mapping[str, SourceError]:
        """See `protocols.Source`; those of the last `read` when it is over."""
        return self._broken if self._session is None else self._session.broken

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        """See `protocols.Source`."""
        while not self._stopping:
            self._close_session()
            try:
                session = Session(self._setting, self._captures, after, self._epoch, self._stopping)
            except NotConnected:
                if self._stopping:
                    return
                raise
            self._session = session
            self._epoch = session.place.epoch
            yield from session.batches(follow)
            if not session.begins_anew:
                break
            after = session.place.position()
        if not follow and self.broken and not self._stopping:
            raise next(iter(self.broken.values()))  # at the end of a run it must be said what was not captured

    def confirm(self, position: Position) -> None:
        """The server is told within its next status update."""
        failpoint("log.confirm")
        if self._session is not None:
            self._session.confirm(position)

    def state(self, stream: str) -> SourceState:
        """See `protocols.Source`. The snapshot is held until the changes are read to their end, or closed."""
        return state_of(self._setting, self._captures[stream], self._epoch)

    def stop(self) -> None:
        self._stopping.set()
        if (session := self._session) is not None:
            session.wake()

    def close(self) -> None:
        self._close_session()

    def _close_session(self) -> None:
        if self._session is not None:
            self._broken = self._session.broken
            self._session.close()
            self._session = None
