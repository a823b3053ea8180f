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
from headwater.sources.held import HeldRows
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
    rows = _changes(batches, capture, target, order)
    return SourceState(dataclasses.replace(order, index=LAST_INDEX), HeldRows(held, rows))


def _newest(connection: Connection, names: Names) -> int:
    if find(connection, names).incarnation is None:
        raise SourceError(f"{connection.path} has no triggers of this pipeline yet", hint="`headwater run` makes them")
    ((newest,),) = connection.execute(f"SELECT max(id) FROM {quoted(names.change)}")
    return int(newest or 0)


def _changes(batches: Iterator[pa.RecordBatch], capture: Capture, target: Target, order: Order) -> Iterator[Changes]:
    for batch in batches:
        data = reads_of(batch, target.columns, order)
        order = dataclasses.replace(order, index=order.index + 2 * len(batch))
        yield Changes(capture.table, data, stream=capture.stream)
