"""The rows that feed one stream, read in the ways that query capture needs: by key, by cursor, newest first, all.

Every statement is short (one page) and over before its rows are handed on: a read lock that was held while a batch is
on its way to the bus would lock the application out of a database without WAL.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects import STORED, Dialect, Query, Table
from headwater.errors import ConfigError, SourceError
from headwater.mapping.hashing import hash_rows
from headwater.model import INVALID
from headwater.protocols import Capture
from headwater.sources.query.position import raw
from headwater.sources.query.window import Window

SEED = b"query look-back "
_PARTS = 2
"""Record batches of one page; a reader ends a batch early where rows are wide, so there may be more."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one statement: `data` as a change's `after`, `invalid` beside it, and what the source knows of each.

    `by`: the exact values that the statement was ordered by; `identity`: those of them that identify a row.
    `marks`: the cursor on the number line, null where it cannot be read. `compared`: what a row's hash is made of.
    """

    data: pa.RecordBatch
    invalid: pa.Array | None
    by: tuple[pa.Array, ...]
    identity: tuple[pa.Array, ...]
    compared: tuple[pa.Array, ...]
    marks: pa.Array

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def at(self, row: int) -> tuple[Any, ...]:
        """The exact values of `by` in one row, to go on from."""
        return tuple(raw(values[row]) for values in self.by)

    def where(self, keep: pa.Array) -> Part:
        return Part(
            self.data.filter(keep),
            None if self.invalid is None else self.invalid.filter(keep),
            _filtered(self.by, keep),
            _filtered(self.identity, keep),
            _filtered(self.compared, keep),
            self.marks.filter(keep),
        )

    def seen(self) -> Window:
        """The rows as the look-back window remembers them."""
        idents = hash_rows(self.identity, SEED)
        return Window(idents, hash_rows(self.compared, SEED) if self.compared else idents)


def _filtered(arrays: Sequence[pa.Array], keep: pa.Array) -> tuple[pa.Array, ...]:
    return tuple(array.filter(keep) for array in arrays)


class CapturedRows:
    """One capture on one connection. `by_id`: the cursor is the key, so that rows are only ever new."""

    def __init__(self, dialect: Dialect, capture: Capture) -> None:
        self._dialect = dialect
        self._capture = capture
        self._page_size = capture.config.page_size
        self.cursor = capture.config.cursor
        self.by_id = self.cursor is not None and capture.key == (self.cursor,)
        self._key = capture.key or (STORED,)
        self._by = self._key if self.cursor is None else (self.cursor, *(k for k in self._key if k != self.cursor))
        self.table = self._inspected()
        self._check()
        self._reader = dialect.reader(statement_timeout=capture.config.statement_timeout)

    def interrupt(self) -> None:
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()

    def refresh(self) -> None:
        """Look at the table again: columns may have changed their types, and one that is gone is an error."""
        self._dialect.check()
        if self._capture.config.query is None:
            self.table = self._inspected()
            self._check()

    @property
    def shape(self) -> str:
        """What exact cursor and key values belong to."""
        sql = self._capture.config.query or str(self._capture.table)
        return "\0".join((sql, self.cursor or "", *self._key))

    @property
    def columns(self) -> tuple[str, ...]:
        """The captured columns, and the cursor if it is not among them."""
        names = self._capture.columns
        return names if self.cursor is None or self.cursor in names else (*names, self.cursor)

    # the ways to read

    def by_key(self, after: Sequence[Any] | None) -> Iterator[Part]:
        """All rows behind a key, in the key's order; without a key, in the order in which they are stored."""
        return self._pages(self._key, after)

    def by_cursor(self, after: Sequence[Any] | None, floor: Any) -> Iterator[Part]:
        """The rows behind a (cursor, key), in that order. `floor` stands for `:cursor`; None: below every value."""
        return self._pages(self._by, after, floor=floor)

    def newest(self) -> Iterator[Part]:
        """From the highest (cursor, key) down."""
        return self._pages(self._by, None, descending=True)

    def newest_mark(self) -> int | None:
        """The highest cursor, on the number line; None without rows."""
        query = self._dialect.page(self.table, self.columns, self._by, None, 1, descending=True)
        marks = [part.marks[0].as_py() for part in self._page(query, self._by, None)]
        return marks[0] if marks else None

    def unseen_by_polls(self) -> int:
        """How many rows have NULL in the cursor or the key."""
        watched = [name for name in self._by if self._may_be_null(name)]
        if not watched:
            return 0
        (batch,) = self._read(self._dialect.nulls(self.table, watched), None)
        return int(batch.column(0)[0].as_py())

    def _pages(
        self, by: Sequence[str], after: Sequence[Any] | None, *, floor: Any = None, descending: bool = False
    ) -> Iterator[Part]:
        size = self._page_size
        while True:
            query = self._dialect.page(self.table, self.columns, by, after, size, descending=descending)
            parts = self._page(query, by, floor)
            for part in parts:
                after = part.at(len(part) - 1)
                yield part
            if len(parts) < _PARTS and sum(map(len, parts)) < size:
                return

    def _page(self, query: Query, by: Sequence[str], floor: Any) -> list[Part]:
        """Of wide rows only the beginning of the page, as much as may be in memory."""
        with closing(self._read(query, floor)) as batches:
            return [self._part(batch, by) for batch in itertools.islice(batches, _PARTS)]

    def _read(self, query: Query, floor: Any) -> Generator[pa.RecordBatch, None, None]:
        if self.table.sql is not None:
            cursor = self._dialect.lowest if floor is None else floor
            query = dataclasses.replace(query, parameters={**query.parameters, "cursor": cursor})
        yield from self._reader.read(query, rows=self._page_size)

    def _part(self, batch: pa.RecordBatch, by: Sequence[str]) -> Part:
        captured, columns = len(self._capture.columns), len(self.columns)
        values = [batch.column(n) for n in range(columns)]
        hidden = tuple(batch.column(columns + n) for n in range(len(by)))
        invalid = batch.column(columns + len(by)) if batch.num_columns > columns + len(by) else None
        given = pa.nulls(len(values[0]), INVALID) if invalid is None else invalid
        part = Part(
            pa.RecordBatch.from_arrays(values[:captured], schema=self.table.schema(self._capture.columns)),
            invalid,
            hidden,
            tuple(hidden[by.index(name)] for name in self._key),
            () if self.by_id else (*values, given),
            self._marks(batch),
        )
        if not self._key_is_unique:
            self._check_identity(part)
        return part

    def _marks(self, batch: pa.RecordBatch) -> pa.Array:
        if self.cursor is None:
            return pa.nulls(batch.num_rows, pa.int64())
        return number_line(batch.column(self.columns.index(self.cursor)))

    @property
    def _key_is_unique(self) -> bool:
        keys = (self.table.key, *self.table.unique) if self.table.sql is None else ()
        return self._key == (STORED,) or any(set(key) <= set(self._key) for key in keys if key)

    def _check_identity(self, part: Part) -> None:
        if pc.count_distinct(hash_rows(part.identity, SEED)).as_py() < len(part):
            raise SourceError(
                f"stream {self._capture.stream}: rows of {self._capture.table} have the same key"
                f" ({', '.join(self._capture.key)})",
                hint="name the columns that together identify a row as `key` of the stream",
            )

    # what must be right before anything is read

    def _inspected(self) -> Table:
        capture = self._capture
        if capture.config.query is not None:
            return self._dialect.relation(capture.table, capture.config.query, capture.key)
        return self._dialect.table(capture.table)

    def _may_be_null(self, name: str) -> bool:
        column = self.table.column(name)
        return column is not None and column.nullable

    def _check(self) -> None:
        capture, config = self._capture, self._capture.config
        names = [*capture.columns, *(name for name in self._by if name != STORED)]
        self._dialect.whole(self.table, names)  # raises an error that names the nearest column
        where = f"stream {capture.stream}"
        if capture.key:
            return
        hint = "name the columns that identify a row as `key` of the stream"
        if config.cursor is None:
            raise ConfigError(f"{where}: {capture.table} has no key, so two readings cannot be compared", hint=hint)
        if config.reconcile_deletes is not None:
            raise ConfigError(f"{where}: `reconcile_deletes` compares rows by key, and there is none", hint=hint)
        if self.table.is_view:
            raise ConfigError(f"{where}: a view without a key cannot be read page by page", hint=hint)


def number_line(values: pa.Array) -> pa.Array:
    """Cursor values as int64 (moments in microseconds), so that distances can be told; 0 where there are none."""
    kind = values.type
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    if pa.types.is_date(kind):
        return values.cast(pa.timestamp("us")).cast(pa.int64())
    if pa.types.is_integer(kind):
        return values.cast(pa.int64())
    return pa.repeat(pa.scalar(0, pa.int64()), len(values))
