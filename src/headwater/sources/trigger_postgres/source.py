"""The trigger pattern as a `Source`: one instance for all captured tables of one PostgreSQL database.

One idea: **a step is what one snapshot shows beyond the last**, and its number comes from the sequence that numbers the
changes. A large step is read in pages, each its own batch; the position then says how far it has come. Loads go on
between the steps, one chunk a batch, in a snapshot of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from headwater.errors import SourceError
from headwater.faults import failpoint
from headwater.model import Batch, Position, SourceState
from headwater.protocols import Capture
from headwater.sources.trigger_postgres.connecting import Connector
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.session import Session
from headwater.sources.trigger_postgres.state import state_of


class TriggerSource:
    """See `protocols.Source`. `broken`: the streams that cannot be captured for now, and why; the others go on."""

    def __init__(
        self,
        name: str,
        names: Names,
        captures: Sequence[Capture],
        epoch: int,
        connector: Connector,
        texts: frozenset[str],
    ) -> None:
        self.name = name
        self.broken: dict[str, SourceError] = {}
        self._names = names
        self._captures = {capture.stream: capture for capture in captures}
        self._epoch = max(1, epoch)
        self._connector = connector
        self._texts = texts
        self._stopping = threading.Event()
        self._session: Session | None = None

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        """See `protocols.Source`."""
        self._close_session()
        session = self._session = Session(self._names, self._captures, self._connector, self._texts)
        self.broken = session.tables.broken
        first = session.begin(after, self._epoch)
        self._epoch = session.place.epoch
        yield first
        while not self._stopping.is_set():
            batch = session.step()
            if batch is not None:
                yield batch
            elif follow:
                session.idle(self._stopping)
            if not follow and session.finished:
                session.end()
                return

    def confirm(self, position: Position) -> None:
        """Changes are deleted later, by `read`."""
        failpoint("trigger.confirm")
        if self._session is not None:
            self._session.confirm(position)

    def state(self, stream: str) -> SourceState:
        """See `protocols.Source`. The snapshot is held until the changes are read to their end, or closed."""
        return state_of(self._names, self._captures[stream], self._connector, self._epoch, self._texts)

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        self._close_session()

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
