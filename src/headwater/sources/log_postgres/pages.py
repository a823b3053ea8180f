"""Page ranges of tables, read in parallel under one snapshot and handed over in order.

Every range is read under the same exported snapshot (F22). At most two more than there are readers are in memory. A
range is about five megabytes of what the table keeps on disk, its TOAST included.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from headwater.drivers.postgres import execute, literal
from headwater.drivers.postgres_copy import copied
from headwater.errors import HeadwaterError, SourceError
from headwater.sources.log_postgres.chunks import BEGIN
from headwater.sources.log_postgres.rows import ALIAS, Connector, Shape, batches_of, run
from headwater.wire.pgcopy import CopyDecoder

if TYPE_CHECKING:
    import psycopg
    from adbc_driver_manager import dbapi

WORKERS = min(2, os.cpu_count() or 1)
TID_RANGES = 140000
"""The first version that reads a page range without reading the whole table (`server_version_num`)."""
_PAGES = 640
_PAGE_BYTES = 8192

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is stored: a plain table, or one partition. `step`: the pages of one range.

    `file`: its relfilenode as the snapshot knows it; `now`: as it is. They differ when the table was rewritten since,
    and a rewritten table hides its rows from older snapshots.
    """

    oid: int
    source: str
    pages: int
    step: int
    file: int
    now: int

    def ranges(self, first: int = 0) -> Iterator[Range]:
        for page in range(first, self.pages, self.step):
            yield Range(self, page, min(page + self.step, self.pages))


@dataclass(frozen=True, slots=True)
class Range:
    leaf: Leaf
    first: int
    end: int

    def sql(self, shape: Shape, tests: Iterable[str] = ()) -> str:
        ctid = f"ctid >= '({self.first},0)'::tid AND ctid < '({self.end},0)'::tid"
        where = " AND ".join([ctid, *(f"({test})" for test in tests)])
        return f"SELECT {shape.selection.sql} FROM {self.leaf.source} AS {ALIAS} WHERE {where}"


_LEAVES = """
SELECT c.oid::bigint AS oid,
       'ONLY ' || pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS source,
       pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint AS pages,
       pg_catalog.pg_table_size(c.oid) AS nbytes,
       c.relfilenode::bigint AS file, pg_catalog.pg_relation_filenode(c.oid)::bigint AS now,
       pg_catalog.current_setting('server_version_num')::int AS version
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = {oid} AND c.relkind <> 'p'
   OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree({oid}::regclass) WHERE isleaf) AND c.relkind = 'r'
ORDER BY c.oid
"""


_LOCK = "LOCK TABLE {source} IN ACCESS SHARE MODE"


def leaves_of(connection: dbapi.Connection, shape: Shape) -> list[Leaf]:
    """By oid. Within a transaction: the table is locked against rewriting to its end, and its size is of now."""
    run(connection, _LOCK.format(source=shape.source))
    rows = pa.Table.from_batches(batches_of(connection, _LEAVES.format(oid=shape.oid))).to_pylist()
    return [_leaf(*row.values()) for row in rows]


def leaves_by_sql(connection: psycopg.Connection, shape: Shape) -> list[Leaf]:
    """As `leaves_of`, without the third of a second that it takes to connect in Arrow."""
    execute(connection, _LOCK.format(source=shape.source))
    return [_leaf(*row) for row in execute(connection, _LEAVES.format(oid=shape.oid))]


def _leaf(oid: int, source: str, pages: int, nbytes: int, file: int, now: int, version: int) -> Leaf:
    return Leaf(oid, source, pages, _step(pages, nbytes, version), file, now)


def files_of(leaves: Iterable[Leaf]) -> dict[str, int]:
    """The relfilenodes by leaf."""
    return {str(leaf.oid): leaf.now for leaf in leaves}


def _step(pages: int, nbytes: int, version: int) -> int:
    share = min(1.0, pages * _PAGE_BYTES / max(nbytes, 1))
    step = max(1, int(_PAGES * share))
    return step if version >= TID_RANGES else max(step, pages // 16 + 1)


def pinned(connector: Connector, snapshot: str) -> dbapi.Connection:
    """A connection in a transaction that sees what the exported `snapshot` saw."""
    connection = connector.arrow()
    try:
        run(connection, BEGIN, f"SET TRANSACTION SNAPSHOT {literal(snapshot)}")
    except BaseException:
        connection.close()
        raise
    return connection


def pinned_by_sql(connector: Connector, snapshot: str) -> psycopg.Connection:
    """Likewise, not in Arrow."""
    connection = connector.sql()
    try:
        _pin(connection, snapshot)
    except BaseException:
        connection.close()
        raise
    return connection


def _pin(connection: psycopg.Connection, snapshot: str) -> None:
    execute(connection, f"{BEGIN}; SET TRANSACTION SNAPSHOT {literal(snapshot)}")


class Rewritten(SourceError):
    """A table was rewritten (TRUNCATE, ALTER, VACUUM FULL) and hides its rows from the snapshot by now."""


def copy_range(
    connection: psycopg.Connection, snapshot: str, shape: Shape, part: Range, tests: Iterable[str] = ()
) -> list[pa.RecordBatch]:
    """As `read_range`, by a binary COPY: a third of the processor's time (docs/decisions/0009).

    In a transaction of its own: a lock that outlived the range would keep an ALTER waiting, and all others behind it.
    Raises `Rewritten`.
    """
    _pin(connection, snapshot)
    decoder = CopyDecoder(shape.selection.codes)
    found = [decoder.decode(data) for data in copied(connection, part.sql(shape, tests))]
    decoder.finish()
    ((file,),) = execute(connection, f"SELECT pg_catalog.pg_relation_filenode({part.leaf.oid})::bigint")
    execute(connection, "COMMIT")
    if file != part.leaf.now:
        raise Rewritten(f"table {shape.table} was rewritten while its rows were read")
    return [shape.selection.convert_copied(batch) for batch in found if batch is not None]


def read_range(
    connection: dbapi.Connection, shape: Shape, part: Range, tests: Iterable[str] = ()
) -> list[pa.RecordBatch]:
    """The rows of a range, of the shape's schema, perhaps with `_invalid`."""
    return [shape.rows(batch) for batch in batches_of(connection, part.sql(shape, tests)) if len(batch)]


def in_order(
    tasks: Iterable[T],
    work: Callable[[psycopg.Connection, T], R],
    connect: Callable[[], psycopg.Connection],
    workers: int = WORKERS,
) -> Iterator[tuple[T, R | HeadwaterError]]:
    """Each task and what came of it, in the order of the tasks; beside it, `workers` + 1 wait or are under way."""
    idle: queue.SimpleQueue[psycopg.Connection] = queue.SimpleQueue()

    def one(task: T) -> R | HeadwaterError:
        try:
            connection = idle.get_nowait()
        except queue.Empty:
            connection = connect()
        try:
            found = work(connection, task)
        except BaseException as error:  # its transaction has failed with it
            connection.close()
            if isinstance(error, HeadwaterError):
                return error
            raise
        idle.put(connection)
        return found

    waiting: deque[tuple[T, Future[R | HeadwaterError]]] = deque()
    with ThreadPoolExecutor(workers, "headwater-load") as pool:
        try:
            for given in tasks:
                waiting.append((given, pool.submit(one, given)))
                if len(waiting) > workers + 1:
                    task, future = waiting.popleft()
                    yield task, future.result()
            while waiting:
                task, future = waiting.popleft()
                yield task, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            while not idle.empty():
                idle.get_nowait().close()
