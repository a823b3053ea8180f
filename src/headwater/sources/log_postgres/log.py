"""One replication session: from `START_REPLICATION` to decoded transactions.

The server tells of each table once a session, so the decoder, what it knows of tables, and the frames on disk live
exactly as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headwater.model import Changes
from headwater.sources.log_postgres.begin import Setting
from headwater.sources.log_postgres.changes import Shaper
from headwater.sources.log_postgres.position import Place
from headwater.sources.log_postgres.spool import SpooledChanges
from headwater.sources.log_postgres.stream import Chunk, start
from headwater.sources.log_postgres.units import Stored, Units, Whole, tell
from headwater.wire.pgoutput import Decoder, Relation, Segment, Transactions
from headwater.wire.pgoutput_messages import relation_of

if TYPE_CHECKING:
    import psycopg

BATCH_BYTES = 4 * 2**20
BATCH_ROWS = 20_000

GATHERING = 0.5
"""Seconds for which a backlog may gather to a whole batch: many small ones cost many times as much."""

Passing = Callable[[list[Changes]], list[Changes]]
"""What each part of a stored transaction goes through before it is handed on."""


class Log:
    """Units are taken one at a time: `next`, then `segments` or `stored`."""

    def __init__(
        self,
        connection: psycopg.Connection,
        setting: Setting,
        place: Place,
        publications: tuple[str, ...],
        shaper: Shaper,
    ) -> None:
        self._shaper = shaper
        self._origin = setting.options.origin
        self._decoder = self._new_decoder()
        self._units = Units(setting.directory)
        self._connection = connection
        self.stream = start(connection, setting, place, publications, binary=shaper.binary)

    @property
    def reached(self) -> int:
        """Every commit below this LSN has been given by `next`, once that has given None."""
        return self._units.reached

    @property
    def pressed(self) -> bool:
        """Whether the server wants to hear of it at once; asked once."""
        return self._units.pressed()

    def next(self, timeout: float) -> Whole | Stored | None:
        """What has arrived together, within limits; None when nothing comes for `timeout` seconds, or when woken."""
        if not self._units.behind:
            self._await(timeout)
        if self._units.behind:
            self._gather(time.monotonic() + GATHERING)
        return self._units.take()

    def _await(self, timeout: float) -> None:
        """Until a transaction is complete, or nothing comes. Those behind it are never waited for."""
        while not self._units.complete and not self._units.behind and self._add(self.stream.take(timeout)):
            timeout = 0.0

    def _gather(self, until: float) -> None:
        """Of a backlog a whole batch, or what comes until then."""
        while self._units.behind and not self._enough() and (left := until - time.monotonic()) > 0:
            if not self._add(self.stream.take(left, BATCH_BYTES)):
                self._units.caught_up()
                return

    def _add(self, chunk: Chunk | None) -> bool:
        if chunk is None:
            return False
        self._units.add(*chunk)
        self.stream.hurried = not self._units.behind
        return True

    def _enough(self) -> bool:
        units = self._units
        return units.stored or units.nbytes >= BATCH_BYTES or units.rows >= BATCH_ROWS

    def segments(self, unit: Whole) -> Iterator[Segment]:
        """Raises `TextNeeded`; then the session cannot go on."""
        return self._decoder.decode_frames(unit.frames)

    def stored(self, unit: Stored, passing: Passing) -> SpooledChanges:
        """Raises `TextNeeded`, now and not later."""
        for relation in self.relations(unit):
            self._shaper.wanted(relation)

        def decoder() -> Decoder:
            made = self._new_decoder()
            tell(made, unit.known)
            return made

        def shaped(segment: Segment) -> Iterator[Changes]:
            keep = np.ones(len(segment.transactions), np.bool_)
            yield from passing([changes for _, changes in self._shaper.changes(segment, keep)])

        return SpooledChanges(unit.spool, unit.transaction, unit.aborted, decoder, shaped)

    def learn(self, unit: Stored) -> None:
        """What a stored transaction told of tables holds for those behind it."""
        tell(self._decoder, unit.told)

    def relations(self, unit: Stored) -> list[Relation]:
        """Every description of a table in a stored transaction, in its sequence."""
        return [relation_of(memoryview(frame)) for frame in unit.relations]

    def counted(self, transactions: Transactions, commit: int) -> NDArray[np.bool_]:
        """Which transactions are above `commit`, and of an origin that is wanted."""
        keep: NDArray[np.bool_] = transactions.commit_lsn > np.uint64(max(commit, 0))
        if self._origin == "none":
            keep &= transactions.origin == ""
        return keep

    def counts(self, unit: Stored, commit: int) -> bool:
        transaction = unit.transaction
        return transaction.commit_lsn > commit and not (self._origin == "none" and transaction.origin)

    def close(self) -> None:
        self.stream.close()
        self._units.close()
        self._connection.close()

    def _new_decoder(self) -> Decoder:
        return Decoder(binary=self._shaper.binary, wanted=self._shaper.wanted, recipes=self._shaper.recipe)
