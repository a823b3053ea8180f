"""The values that travel: changes inside the wall, events outside it, and the places to resume at.

One idea: data is an Arrow record batch with a few `_` columns that say what happened and in which order; everything
else here is a small frozen value that names such a batch.

`Changes.data`                                       `Events.data`
    _op           int8                                   _op, _epoch, _commit, _index, _time, _transaction: the same
    _epoch        uint32                                 <field> ...   the contract's fields, nullable
    _commit       uint64                                 _unchanged    list<int16>, nullable: ordinals of fields
    _index        uint32
    _time         timestamp[us, UTC], nullable
    _transaction  string, nullable
    before        struct<column ...>, nullable           before        struct<field ...>, nullable, if the mapping asks
    after         struct<column ...>, nullable
    _unchanged    list<int16>, nullable: ordinals of `after`'s children that the log did not carry
    _invalid      list<struct<column, expected, got: string>>, nullable: values that the column's type cannot hold

`_unchanged` and `_invalid` are left out of a batch in which no row has any.
Sources number the changes of a commit 0, 2, 4, ...; the odd numbers belong to the mapping, which splits key changes.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa


class Op(enum.IntEnum):
    """What happened to a row. `letter` is Debezium's."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3
    READ = 4
    TRUNCATE = 5

    @property
    def letter(self) -> str:
        return "cudrt"[self.value - 1]


TIMESTAMP = pa.timestamp("us", tz="UTC")

INVALID = pa.list_(pa.struct([("column", pa.string()), ("expected", pa.string()), ("got", pa.string())]))
UNCHANGED = pa.list_(pa.int16())

ORDER_FIELDS: tuple[pa.Field, ...] = (
    pa.field("_op", pa.int8(), nullable=False),
    pa.field("_epoch", pa.uint32(), nullable=False),
    pa.field("_commit", pa.uint64(), nullable=False),
    pa.field("_index", pa.uint32(), nullable=False),
    pa.field("_time", TIMESTAMP),
    pa.field("_transaction", pa.string()),
)
ORDER_NAMES = tuple(f.name for f in ORDER_FIELDS)


def changes_schema(columns: pa.Schema, *, unchanged: bool = False, invalid: bool = False) -> pa.Schema:
    """The schema of `Changes.data` for a table whose columns are `columns`."""
    row = pa.struct(list(columns))
    fields = [*ORDER_FIELDS, pa.field("before", row), pa.field("after", row)]
    if unchanged:
        fields.append(pa.field("_unchanged", UNCHANGED))
    if invalid:
        fields.append(pa.field("_invalid", INVALID))
    return pa.schema(fields)


def ops_of(data: pa.RecordBatch) -> bytes:
    """The op of each row, a byte each, of changes or events: whether one occurs at all is `op in ops_of(data)`."""
    column = data.column("_op")
    values = column.buffers()[1]
    return bytes(values.slice(column.offset, len(column))) if values is not None else b""


@dataclass(frozen=True, slots=True, order=True)
class TableId:
    """A table as its database names it. `schema` is "" where the database has none (SQLite)."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True, order=True)
class Order:
    """The place of a change within its stream's source. Compared as integers, in this sequence."""

    epoch: int
    commit: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """Where a source is to be resumed. `token` is opaque outside the source that made it.

    `epoch` and `commit` repeat how far the source has come, for `status` and for `verify`: every commit at or below
    them is in the bus.
    """

    epoch: int
    commit: int
    token: bytes


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has come: the next offset to read, per partition, in one incarnation of a stream."""

    incarnation: str
    offsets: tuple[int, ...]

    @property
    def offset(self) -> int:
        """The offset in a stream of one partition."""
        (offset,) = self.offsets
        return offset

    def at(self, offset: int) -> Cursor:
        return Cursor(self.incarnation, (offset,))

    def __str__(self) -> str:
        return ",".join(map(str, self.offsets))


class Reload(enum.Enum):
    """How READ rows of a complete reading are to be taken, when the stream has content already."""

    DIFFERENCE = "difference"
    """Append only what differs from the stream's folded state: c, u and d."""
    REBUILD = "rebuild"
    """Append each row as `r`, and a `d` for each key that is gone."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Marks READ changes as a part of one complete reading of `stream`'s rows.

    Nothing of a reading reaches the bus before the part marked `last` (an empty one will do). Keys whose newest event
    has an order above `since` are left alone: a live change has overtaken the reading. A source whose process died
    within a reading starts that reading again.
    """

    reload: Reload
    since: Order
    last: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """Row-level changes of one table under one row schema. Never leaves the process."""

    table: TableId
    data: pa.RecordBatch
    stream: str | None = None
    """Set when the changes are for this stream alone (snapshot, reading); else for every stream of the table."""
    reading: Reading | None = None

    def __len__(self) -> int:
        return int(self.data.num_rows)

    @property
    def columns(self) -> pa.Schema:
        """The table's columns as the source knows them."""
        return pa.schema(list(self.data.schema.field("after").type))


Count = tuple[TableId, str | None, int]
"""How many changes of a table, for one stream or (None) for each stream of it."""


class StoredChanges(Protocol):
    """The changes of a transaction that is too large for memory: read from where they lie, as often as asked."""

    truncates: bool
    """Whether a TRUNCATE is among them."""

    def __iter__(self) -> Iterator[Changes]: ...
    def counts(self) -> list[Count]:
        """Known once they have been read to their end."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a source yields: whole transactions, in commit order by (`_commit`, `_index`), and the position behind."""

    changes: tuple[Changes, ...] | StoredChanges
    position: Position
    nbytes: int = 0
    notes: tuple[Note, ...] = ()

    def counts(self) -> list[Count]:
        if isinstance(self.changes, tuple):
            return [(changes.table, changes.stream, len(changes)) for changes in self.changes]
        return self.changes.counts()

    def __len__(self) -> int:
        return sum(number for _, _, number in self.counts())


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a stream's readers and `status` must know from a place on: made durable with the events beside it.

    `kind`: `gap` (changes were missed and repaired by difference), `mapping` (a new mapping holds from here),
    `schema` (the source's table changed), `loaded` (a snapshot or reading is complete).
    """

    stream: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one stream, one contract version and one event type."""

    stream: str
    version: int
    data: pa.RecordBatch
    type: str | None = None
    """The event type, in contracts that declare several."""
    source: str = ""
    """The capture that the events come from; with `seed` it makes their ids."""
    seed: bytes = b""
    content_ids: bool = False
    """Ids depend on the content too: query capture, where a retried poll may see other rows under the same order."""
    reading: Reading | None = None
    after: Cursor | None = None
    """Set by a bus's reader: the cursor before and, as `cursor`, behind these events."""
    cursor: Cursor | None = None
    offsets: pa.Array | None = None
    """uint64, set by a bus's reader: the offset of each event."""

    def __len__(self) -> int:
        return int(self.data.num_rows)

    @property
    def fields(self) -> list[str]:
        """The contract fields' names, in order."""
        return [name for name in self.data.schema.names if not name.startswith("_") and name != "before"]


def id_seed(pipeline: str, source: str, stream: str) -> bytes:
    """The 16 bytes that tell apart equal orders in different pipelines, sources and streams."""
    text = "\0".join((pipeline, source, stream))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Rejected:
    """One stream's changes that broke the contract, as the source knew them, with the reason for each row.

    `reasons`: field, expected, got (strings), `key` (the event key as canonical JSON, or null if it has none);
    one row per row of `changes.data`, in the same order.
    """

    stream: str
    changes: Changes
    reasons: pa.RecordBatch


REASONS = pa.schema([("field", pa.string()), ("expected", pa.string()), ("got", pa.string()), ("key", pa.string())])


@dataclass(frozen=True, slots=True)
class Parked:
    """Changes that a paused or stopped stream has yet to map."""

    stream: str
    changes: Changes


@dataclass(frozen=True, slots=True)
class Mapped:
    """What one batch became: what a bus appends in one atomic step, together with the source's position.

    `events` may be computed while they are taken, once; all else is complete only when they have been.
    """

    events: Iterable[Events] = ()
    rejected: Sequence[Rejected] = ()
    parked: Sequence[Parked] = ()
    notes: Sequence[Note] = ()


@dataclass(frozen=True, slots=True)
class SourceState:
    """The rows that feed one stream, as one reading of the source shows them.

    `order`: every change up to it is in the rows and none above it; None where the pattern knows no such place
    (query capture).
    """

    order: Order | None
    changes: Iterator[Changes] = field(default_factory=lambda: iter(()))


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
