"""The rows that feed a stream, as one snapshot shows them, with their exact place among the changes.

On a connection of its own, beside a running `read`. Within one read transaction the newest change id and the rows
belong together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pyarrow as pa

from headwater.config import SourceConfig
from headwater.dialects.sqlite import SqliteDialect, open_dialect
from headwater.drivers.sqlite import Connection, quoted
from headwater.errors import SourceError
from headwater.model import Changes, Order, SourceState
from headwater.protocols import Capture
from headwater.sources.trigger_sqlite.changes import Target, reads_of, rows_of, target_of
from headwater.sources.trigger_sqlite.install import find
from headwater.sources.trigger_sqlite.load import chunk_sql
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.shape import shape_of

LAST_INDEX = 2**32 - 1
"""A commit is in a snapshot with all its changes, whatever their numbers."""


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens the source's database, each time anew."""

    config: SourceConfig
    directory: str

    def __call__(self) -> SqliteDialect:
        return open_dialect(config=self.config, directory=self.directory)


def state_of(names: Names, capture: Capture, opener: Opener, epoch: int) -> SourceState:
    """The snapshot is held until the changes are read to their end, closed or forgotten."""
    with ExitStack() as stack:
        dialect = stack.enter_context(closing(opener()))
        connection = stack.enter_context(dialect.connect())
        stack.enter_context(connection.transaction())
        order = Order(epoch, _newest(connection, names))
        table = dialect.table(capture.table)
        target = target_of(table, capture.columns, shape_of(connection, table.id.name))
        sql = chunk_sql(target.shape, target.names, None, behind=False, bounded=False)
        batches = rows_of(sql, target, dialect.times).read(connection, {})
        held = stack.pop_all()
    return SourceState(dataclasses.replace(order, index=LAST_INDEX), _Snapshot(held, batches, capture, target, order))


def _newest(connection: Connection, names: Names) -> int:
    if find(connection, names).incarnation is None:
        raise SourceError(f"{connection.path} has no triggers of this pipeline yet", hint="`headwater run` makes them")
    ((newest,),) = connection.execute(f"SELECT max(id) FROM {quoted(names.change)}")
    return int(newest or 0)


class _Snapshot:
    """An iterator that gives its transaction back even if it is never begun, which a generator would not."""

    def __init__(
        self, held: ExitStack, batches: Iterator[pa.RecordBatch], capture: Capture, target: Target, order: Order
    ) -> None:
        self._held = held
        self._batches = batches
        self._capture = capture
        self._target = target
        self._next = order

    def __iter__(self) -> Iterator[Changes]:
        return self

    def __next__(self) -> Changes:
        batch = next(self._batches, None)
        if batch is None:
            self.close()
            raise StopIteration
        data = reads_of(batch, self._target.columns, self._next)
        self._next = dataclasses.replace(self._next, index=self._next.index + 2 * len(batch))
        return Changes(self._capture.table, data, stream=self._capture.stream)

    def close(self) -> None:
        self._batches = iter(())
        self._held.close()

    def __del__(self) -> None:
        self.close()
