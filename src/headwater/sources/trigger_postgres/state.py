"""The rows that feed a stream, as one snapshot shows them, with their exact place among the changes.

On connections of its own, beside a running `read`, perhaps in another process. The snapshot is put down as a mark, with
a number; while that happens the marks are locked, so that a look comes before both or after both, and the reader cuts
its next step there. When the last reader has said that everything is in the bus, and nothing has changed since, no mark
is needed: the place is the reader's own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pyarrow as pa

from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import execute
from headwater.errors import SourceError
from headwater.model import Changes, Order, SourceState
from headwater.protocols import Capture
from headwater.sources.held import HeldRows
from headwater.sources.trigger_postgres.changes import ALIAS, Target, reads_of, target_of
from headwater.sources.trigger_postgres.connecting import REPEATABLE, Connector, RowReader, transaction
from headwater.sources.trigger_postgres.finding import find
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.shape import shape_of
from headwater.sources.trigger_postgres.snapshots import snapshot_of

if TYPE_CHECKING:
    import psycopg

LAST_INDEX = 2**32 - 1
"""A commit is in a snapshot with all its changes, whatever their numbers."""


def state_of(names: Names, capture: Capture, connector: Connector, epoch: int, texts: frozenset[str]) -> SourceState:
    """The snapshot is held until the changes are read to their end, closed or forgotten."""
    with ExitStack() as stack:
        reader = stack.enter_context(closing(connector.rows()))
        with closing(connector.sql()) as connection:
            if find(connection, names).incarnation is None:
                hint = "`headwater run` makes them"
                raise SourceError("the database has no triggers of this pipeline yet", hint=hint)
            with transaction(connection):
                execute(connection, f"LOCK TABLE {names.mark} IN ACCESS EXCLUSIVE MODE")
                commit = _placed(connection, names, reader)
            shape = shape_of(connection, capture.table, PgTypes.load(connection))
        target = target_of(shape, capture.columns, texts)
        source = shape.sql if shape.partitioned else f"ONLY {shape.sql}"
        batches = reader.read(f"SELECT {target.selection.sql} FROM {source} AS {ALIAS}")
        held = stack.pop_all()
    rows = _changes(batches, capture, target, Order(epoch, commit))
    return SourceState(Order(epoch, commit, LAST_INDEX), HeldRows(held, rows))


def _placed(connection: psycopg.Connection, names: Names, reader: RowReader) -> int:
    """Begin the snapshot, and say where it stands."""
    reader.run(REPEATABLE)
    batch = reader.all("SELECT pg_catalog.pg_current_snapshot()::text")
    assert batch is not None
    snapshot = str(batch.column(0)[0])
    ((text,),) = execute(connection, f"SELECT value FROM {names.meta} WHERE key = 'settled'")
    settled = json.loads(text)
    if settled is not None:
        unseen = snapshot_of(settled["snapshot"]).unseen("c.xid")
        if reader.all(f"SELECT c.id FROM {names.change} c WHERE {unseen} LIMIT 1") is None:
            return int(settled["commit"])
    sql = f"SELECT max(pg_catalog.nextval({names.sequence})) FROM generate_series(1, 2)"
    ((number,),) = execute(connection, sql)
    execute(connection, f"INSERT INTO {names.mark} VALUES (%s, %s)", [number, snapshot])
    return int(number)


def _changes(batches: Iterator[pa.RecordBatch], capture: Capture, target: Target, order: Order) -> Iterator[Changes]:
    for batch in batches:
        data = reads_of(target.selection.convert(batch), target, order)
        order = dataclasses.replace(order, index=order.index + 2 * len(batch))
        yield Changes(capture.table, data, stream=capture.stream)
