"""Chunks of a table in the order of its key, each read in a transaction of its own beside the log.

Keys are compared in the database only (F27): how far a load has come is kept as the text that the server printed of the
last row's key, and goes back to it as a literal without a type, which takes the type of the column.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from headwater.drivers.postgres import literal, quoted
from headwater.sources.log_postgres.position import Progress, lsn_of
from headwater.sources.log_postgres.rows import ALIAS, Shape, asked, batches_of, run
from headwater.sources.log_postgres.snapshot import Snapshot

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_SNAPSHOT = "SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_wal_insert_lsn()::text"
"""The snapshot is taken before the statement runs: every commit that it shows is below the LSN."""

_FIRST_ROWS, _FEWEST, _MOST = 5_000, 50, 1_000_000
_SECONDS, _BYTES = 0.1, 8 * 2**20
_XIDS = 2**30
"""Transactions further apart than this are not compared by `age`, which wraps at 2**31."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a transaction sees. `until`: every commit that it shows is below this LSN."""

    snapshot: Snapshot
    until: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows`: of the shape's schema, perhaps with `_invalid`. `after`: the last one's key; None: the table's end."""

    rows: list[pa.RecordBatch]
    after: tuple[str, ...] | None

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    @property
    def nbytes(self) -> int:
        return sum(batch.nbytes for batch in self.rows)


class Pace:
    """How many rows a chunk has: what a tenth of a second or eight megabytes bring, whichever is less."""

    def __init__(self) -> None:
        self.rows = _FIRST_ROWS
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()

    def learn(self, chunk: Chunk) -> None:
        if chunk.after is not None:
            took = max(time.monotonic() - self._began, 1e-3)
            factor = min(_SECONDS / took, _BYTES / max(chunk.nbytes, 1), 2.0)
            self.rows = int(min(max(self.rows * max(factor, 0.1), _FEWEST), _MOST))


def begin(connection: dbapi.Connection) -> Seen:
    """Begin a transaction of one snapshot, and say what it sees."""
    run(connection, BEGIN)
    text, lsn = asked(connection, _SNAPSHOT)
    return Seen(Snapshot.parse(text), lsn_of(lsn))


def read_chunk(
    connection: dbapi.Connection, shape: Shape, after: tuple[str, ...] | None, rows: int, tests: Sequence[str] = ()
) -> Chunk:
    """The next `rows` rows behind `after` for which `tests` hold, inside the caller's transaction.

    Fewer when they are wide: what lies beyond twice the bytes of a chunk is left to the next one.
    """
    found: list[pa.RecordBatch] = []
    given, nbytes = 0, 0
    last: tuple[str, ...] | None = None
    for batch in batches_of(connection, chunk_sql(shape, after, rows, tests)):
        if not len(batch) or nbytes > 2 * _BYTES:
            given += len(batch)
            continue
        found.append(shape.rows(batch))
        given += len(batch)
        nbytes += found[-1].nbytes
        last = tuple(column[-1].as_py() for column in batch.columns[shape.width :])
    complete = given < rows and given == sum(map(len, found))
    return Chunk(found, None if complete else last)


def chunk_sql(shape: Shape, after: tuple[str, ...] | None, rows: int, tests: Sequence[str] = ()) -> str:
    """The rows, each with the texts of its key behind its columns."""
    names = key_sql(shape)
    printed = [f"{shape.types.printed(name, oid)} AS headwater_{n}" for n, (name, oid) in enumerate(names)]
    tests = [*([] if after is None else [behind_sql(shape, after)]), *(f"({test})" for test in tests)]
    where = f" WHERE {' AND '.join(tests)}" if tests else ""
    by = ", ".join(name for name, _ in names)
    select = ", ".join([shape.selection.sql, *printed])
    return f"SELECT {select} FROM {shape.source} AS {ALIAS}{where} ORDER BY {by} LIMIT {rows}"


def key_sql(shape: Shape, alias: str = ALIAS) -> list[tuple[str, int]]:
    return [(f"{alias}.{quoted(name)}", oid) for name, oid in shape.key]


def behind_sql(shape: Shape, after: Sequence[str]) -> str:
    """Whether a row's key is behind `after`."""
    return f"({', '.join(name for name, _ in key_sql(shape))}) > ({', '.join(map(literal, after))})"


def in_bus_sql(progress: Progress, files: dict[str, int], now: Snapshot) -> str | None:
    """SQL for the rows that page ranges brought before they were broken off; None where none can be told.

    They stood before the page that was reached, in a file that is still the table's, and were written by a transaction
    older than all that ran at the time of that snapshot: what is younger may have changed since, and is read again.
    """
    if not progress.snapshot:
        return None
    then = Snapshot.parse(progress.snapshot)
    whole = sorted(int(leaf) for leaf, file in progress.files.items() if files.get(leaf) == file)
    done = [str(leaf) for leaf in whole if leaf < progress.leaf]
    tests = [f"tableoid = ANY ('{{{','.join(done)}}}'::oid[])"] if done else []
    if progress.page and progress.leaf in whole:
        tests.append(f"tableoid = {progress.leaf} AND ctid < '({progress.page},0)'::tid")
    if not tests or now.xmax - then.xmin > _XIDS:
        return None
    return f"({' OR '.join(tests)}) AND {older_sql(then.xmin)}"


def older_sql(xid: int) -> str:
    """SQL for the rows whose transaction is older than `xid` (64 bits)."""
    return f"pg_catalog.age(xmin) > pg_catalog.age('{xid % 2**32}'::xid)"
