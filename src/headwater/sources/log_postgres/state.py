"""The rows that feed a stream at an exact place of the log.

A temporary slot says where it begins and exports the snapshot of that place: every commit below it is in the rows, and
none from there on. The slot is gone before the rows are read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing

import psycopg
import pyarrow as pa

from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import execute
from headwater.errors import HeadwaterError
from headwater.model import Changes, Order, SourceState
from headwater.protocols import Capture
from headwater.sources.held import HeldRows
from headwater.sources.log_postgres import slot
from headwater.sources.log_postgres.begin import Setting, patient
from headwater.sources.log_postgres.names import LONGEST
from headwater.sources.log_postgres.pages import pinned
from headwater.sources.log_postgres.position import lsn_text
from headwater.sources.log_postgres.rows import (
    Connector,
    Shape,
    Start,
    batches_of,
    below,
    reads_of,
    shape_of,
)

LAST_INDEX = 2**32 - 1
"""A commit is in a snapshot with all its changes, whatever their numbers."""

_numbers = itertools.count()


def state_of(setting: Setting, capture: Capture, epoch: int) -> SourceState:
    """The snapshot is held until the changes are read to their end, closed or forgotten."""
    ending = f"_state_{os.getpid()}_{next(_numbers)}"
    name = setting.names.slot[: LONGEST - len(ending)] + ending
    connector = Connector(setting.url, setting.names.application)
    with ExitStack() as held, closing(patient(setting)) as sql:
        texts = frozenset(setting.options.as_text)
        shape = shape_of(sql, capture.table, capture.columns, capture.key, PgTypes.load(sql), texts)
        with closing(patient(setting, replication=True)) as replication:
            made = slot.make(replication, name, temporary=True)
            connection = held.enter_context(closing(pinned(connector, made.snapshot)))
        upto = _quiet_since(sql, setting, made.start)
        rows = batches_of(connection, shape.sql)
        changes = HeldRows(held.pop_all(), _changes(rows, capture, shape, Start(epoch, below(made.start), 0)))
    return SourceState(Order(epoch, upto - 1, LAST_INDEX), changes)


_ROWS = tuple(map(ord, "IUDT"))


def _quiet_since(sql: psycopg.Connection, setting: Setting, start: int) -> int:
    """The place of the capture's own slot if nothing that is captured has happened from there to `start`, else `start`.

    A capture that does not run cannot come to a place that is later than itself, though it may miss nothing.
    """
    names = setting.names
    found = slot.find(sql, names.slot)
    if found is None or found.pid is not None or found.lost or found.confirmed is None:
        return start
    if start - found.confirmed > _NEAR:
        return start
    published = execute(
        sql,
        "SELECT pg_catalog.quote_ident(pubname) FROM pg_catalog.pg_publication WHERE pubname IN (%s, %s)",
        [names.publication, names.inserts],
    )
    try:
        letters = execute(
            sql,
            "SELECT pg_catalog.get_byte(data, 0) FROM pg_catalog.pg_logical_slot_peek_binary_changes"
            "(%s, %s::pg_lsn, %s, 'proto_version', '1', 'publication_names', %s)",
            [names.slot, lsn_text(start), _GLANCE, ",".join(name for (name,) in published)],
        )
    except HeadwaterError:  # somebody reads from it by now, or the role may not
        return start
    quiet = len(letters) < _GLANCE and not any(letter in _ROWS for (letter,) in letters)
    return min(found.confirmed, start) if quiet else start


_NEAR = 256 * 2**20
"""Bytes of the log that are looked through; meanwhile the slot is not to be had by its capture."""
_GLANCE = 100
"""Messages that are looked at; behind more of them there are surely some that count."""


def _changes(batches: Iterator[pa.RecordBatch], capture: Capture, shape: Shape, start: Start) -> Iterator[Changes]:
    for batch in batches:
        yield Changes(capture.table, reads_of(shape.rows(batch), start), stream=capture.stream)
        start = Start(start.epoch, start.commit, start.number + len(batch))
