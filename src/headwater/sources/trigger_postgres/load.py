"""The rows that a stream begins with, or is compared with.

A load goes through the pages of each leaf, chunk by chunk, each in the very snapshot of a look: the changes that it
shows come first, the chunk's rows behind them, and whatever changes a row later comes later. Rows that were written
since the load began are left out: their changes have come, or will (a change holds the place of the row that it left).
So a load needs neither key nor order, and goes on where it was after a crash.

A reading, whose rows are compared with the stream's, is one snapshot from its beginning to its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from headwater.errors import SourceError
from headwater.model import Changes, Order, Reading, Reload
from headwater.protocols import Capture
from headwater.sources.settling import DONE
from headwater.sources.trigger_postgres.changes import ALIAS, Target, reads_of
from headwater.sources.trigger_postgres.connecting import RowReader
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.position import StreamLoad
from headwater.sources.trigger_postgres.shape import Leaf, Shape

INDICES = 2**31
"""Even numbers in an `_index`."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of a load: its rows, and how far the load has come with them. `read_twice`: a table was rewritten."""

    changes: tuple[Changes, ...]
    progress: StreamLoad
    read_twice: bool = False


def files_of(reader: RowReader, shape: Shape) -> dict[str, int]:
    """Leaf -> the file that it is stored in."""
    oids = ", ".join(str(leaf.oid) for leaf in shape.leaves)
    batch = reader.all(
        f"SELECT o, pg_catalog.pg_relation_filenode(o::oid)::bigint FROM unnest(ARRAY[{oids}]::bigint[]) o"
    )
    return {} if batch is None else {str(r["o"]): r["pg_relation_filenode"] for r in batch.to_pylist()}


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads chunks on one connection, inside the caller's snapshot. `reader` has a transaction open."""

    reader: RowReader
    names: Names
    tables: tuple[int, ...]
    """The layouts of the table's changes."""

    def chunk(self, capture: Capture, target: Target, progress: StreamLoad, pages: int, order: Order) -> Chunk:
        """The next chunk of at most `pages` pages."""
        files = files_of(self.reader, target.shape)
        leaf = _next(target.shape, progress, files)
        if leaf is None:
            return Chunk((), _done(progress))
        rewritten = progress.files[str(leaf.oid)] != files[str(leaf.oid)]
        if rewritten:
            known_files = {**progress.files, str(leaf.oid): files[str(leaf.oid)]}
            rewritten_leaves = (*progress.rewritten, str(leaf.oid))
            progress = dataclasses.replace(progress, page=0, files=known_files, rewritten=rewritten_leaves)
        elif leaf.oid != progress.leaf:
            progress = dataclasses.replace(progress, page=0)
        size = self._pages(leaf)
        end = min(size, progress.page + pages)
        left_out = progress.since if not rewritten and str(leaf.oid) not in progress.rewritten else None
        found = self._rows(capture, target, leaf, (progress.page, end), left_out)
        count = progress.count + sum(map(len, found))
        step = tuple(_labelled(capture, target, found, order))
        after = dataclasses.replace(progress, leaf=leaf.oid, page=end, count=count)
        if end >= size:
            after = dataclasses.replace(after, leaf=leaf.oid + 1, page=0)
            if _next(target.shape, after, files) is None:
                after = _done(after)
        return Chunk(step, after, rewritten)

    def _pages(self, leaf: Leaf) -> int:
        batch = self.reader.all(
            f"SELECT pg_catalog.pg_relation_size({leaf.oid}) / pg_catalog.current_setting('block_size')::bigint"
        )
        assert batch is not None
        return int(batch.column(0)[0].as_py())

    def _rows(
        self, capture: Capture, target: Target, leaf: Leaf, pages: tuple[int, int], since: str | None
    ) -> list[pa.RecordBatch]:
        selection = target.selection
        tests = [f"{ALIAS}.ctid >= '({pages[0]},0)'::tid", f"{ALIAS}.ctid < '({pages[1]},0)'::tid"]
        if since is not None:
            tests.append(f"NOT EXISTS ({self._written(leaf, pages, since)})")
        if capture.load.where:
            tests.append(f"({capture.load.where}\n)")
        sql = f"SELECT {selection.sql} FROM ONLY {leaf.sql} AS {ALIAS} WHERE {' AND '.join(tests)}"
        return [selection.convert(batch) for batch in self.reader.read(sql) if len(batch)]

    def _written(self, leaf: Leaf, pages: tuple[int, int], since: str) -> str:
        """SQL: the change that wrote the row at hand since the load began."""
        return (
            f"SELECT FROM {self.names.change} c WHERE c.leaf = {leaf.oid}::oid AND c.tid = {ALIAS}.ctid"
            f" AND c.tid >= '({pages[0]},0)'::tid AND c.tid < '({pages[1]},0)'::tid"
            f" AND c.xid >= pg_catalog.pg_snapshot_xmin('{since}')"
            f" AND NOT pg_catalog.pg_visible_in_snapshot(c.xid, '{since}')"
            f" AND c.t IN ({', '.join(map(str, self.tables))})"
        )


def _next(shape: Shape, progress: StreamLoad, files: Mapping[str, int]) -> Leaf | None:
    """The leaf to be read. One that is new since the load began holds nothing but changes."""
    for leaf in shape.leaves:
        if leaf.oid >= progress.leaf and str(leaf.oid) in progress.files and str(leaf.oid) in files:
            return leaf
    return None


def _done(progress: StreamLoad) -> StreamLoad:
    return StreamLoad(progress.token, progress.table, DONE, progress.start, count=progress.count)


def _labelled(capture: Capture, target: Target, found: list[pa.RecordBatch], order: Order) -> Iterator[Changes]:
    for batch in found:
        data = reads_of(batch, target, order)
        yield Changes(capture.table, data, stream=capture.stream)
        order = dataclasses.replace(order, index=order.index + 2 * len(batch))


class ReadingRun:
    """One complete reading under way: all rows of a table in one snapshot, part by part. Closes its connection."""

    def __init__(self, reader: RowReader, capture: Capture, target: Target, reload: Reload, since: Order) -> None:
        self._reader = reader
        self._capture = capture
        self._target = target
        self._reload = reload
        self._since = since
        selection = target.selection
        source = target.shape.sql if target.shape.partitioned else f"ONLY {target.shape.sql}"
        where = f" WHERE ({capture.load.where}\n)" if capture.load.where else ""
        self._selection = selection
        self._batches = reader.read(f"SELECT {selection.sql} FROM {source} AS {ALIAS}{where}")
        self.count = 0

    @property
    def stream(self) -> str:
        return self._capture.stream

    def part(self) -> tuple[Changes, bool]:
        """The next part, and whether it is the last, which is empty."""
        batch = next((self._selection.convert(b) for b in self._batches if len(b)), None)
        if self.count + (0 if batch is None else len(batch)) > INDICES:
            raise SourceError(f"table {self._target.shape.id} has more than {INDICES} rows: they cannot be compared")
        last = batch is None
        rows = _nothing(self._target) if batch is None else batch
        data = reads_of(rows, self._target, dataclasses.replace(self._since, index=2 * self.count))
        self.count += len(rows)
        reading = Reading(self._reload, self._since, last)
        if last:
            self._reader.end()
        return Changes(self._capture.table, data, stream=self.stream, reading=reading), last

    def done(self, progress: StreamLoad) -> StreamLoad:
        """The stream's load, once the last part was read."""
        return _done(dataclasses.replace(progress, count=self.count))

    def close(self) -> None:
        self._reader.close()


def _nothing(target: Target) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in target.schema], schema=target.schema)
