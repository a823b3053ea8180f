"""PostgreSQL's logical replication messages (plugin `pgoutput`) as Arrow record batches.

Protocols 1 and 2, in text and in binary. Frames are what `CopyData` of a replication connection carries; they come as
one buffer and the ends of its frames. The loops over messages and values are in `pgoutput_cy`, single messages in
`pgoutput_messages`; here is what happens once per relation and batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headwater.wire.pgoutput_columns import Values
from headwater.wire.pgoutput_messages import (
    EPOCH,
    HEADER,
    Abort,
    Begin,
    Buffer,
    Commit,
    Frames,
    Keepalive,
    Malformed,
    Message,
    Relation,
    Start,
    Transaction,
    WireColumn,
    begin,
    commit,
    frame_end,
    frame_start,
    keepalive,
    kinds,
    message,
    origin_of,
    relation_of,
    sent_at,
    stream_abort,
    stream_commit,
    stream_start,
    subtransaction,
)
from headwater.wire.pgoutput_tables import Known, Loops, Recipes, Tables, Wanted

__all__ = [
    "KEY_ONLY",
    "WHOLE_ROW",
    "Abort",
    "Begin",
    "Commit",
    "Decoder",
    "Frames",
    "Keepalive",
    "Loops",
    "Malformed",
    "Message",
    "ReadyRows",
    "Relation",
    "Segment",
    "Start",
    "TableRows",
    "Transaction",
    "Transactions",
    "WireColumn",
    "begin",
    "commit",
    "frame_end",
    "frame_start",
    "keepalive",
    "kinds",
    "message",
    "origin_of",
    "relation_of",
    "sent_at",
    "stream_abort",
    "stream_commit",
    "stream_start",
    "subtransaction",
]

KEY_ONLY = 1
WHOLE_ROW = 2
"""`TableRows.before_kind`."""


@dataclass(frozen=True, slots=True, eq=False)
class Transactions:
    """One element per transaction. `time`: microseconds since 1970 UTC; `origin`: "" where there is none."""

    xid: NDArray[np.uint32]
    commit_lsn: NDArray[np.uint64]
    end_lsn: NDArray[np.uint64]
    time: NDArray[np.int64]
    origin: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.xid)


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """The changes of one table under one version of its columns, in the order of the log.

    `op`: `model.Op`. `transaction`: which of the segment's transactions. `ordinal`: the place among all row changes of
    that transaction, those of tables that are not wanted included; each table of a TRUNCATE counts as one.
    `after`, `before`: the wanted columns, all null in rows without such a tuple; `before` is None if no row has one.
    `unchanged`: per wanted column which values of `after` the log did not carry (TOAST), or None. `before_kind`: 0 for
    no old tuple, `KEY_ONLY` or `WHOLE_ROW`.
    """

    relation: Relation
    op: NDArray[np.int8]
    transaction: NDArray[np.int32]
    ordinal: NDArray[np.uint32]
    after: pa.RecordBatch
    unchanged: list[NDArray[np.bool_] | None]
    before: pa.RecordBatch | None
    before_kind: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.op)


@dataclass(frozen=True, slots=True, eq=False)
class ReadyRows:
    """Likewise, as `data` of a recipe. `transaction`: which of the segment's transactions."""

    relation: Relation
    transaction: NDArray[np.int32]
    data: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.transaction)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """What the messages up to a change of a table's columns, or up to their end, tell.

    `complete`: the last transaction is over. Otherwise the next segment, or the next call for the same `Transaction`,
    begins with it again. Transactions without rows are there too. `ready`: tables whose rows are not among `tables`.
    """

    transactions: Transactions
    tables: list[TableRows]
    complete: bool
    ready: list[ReadyRows]


class Decoder:
    """Keeps what the server has told of tables, for as long as one replication connection lasts.

    `wanted` is asked for each new or changed relation: which columns (ordinals, each once) to decode with which wire
    code, or None to leave the table's rows out. Without `binary` every value is a text and the codes are not looked at.

    wire code -> Arrow type: `i2` int16, `i4` int32, `i8` int64, `oid` int64, `f4` float32, `f8` float64, `bool` bool,
    `bytes` binary, `text` and `jsonb` string, `numeric` string as the server prints it, `uuid` fixed_size_binary(16),
    `date` int32 (days since 2000), `timestamp` int64 (microseconds since 2000), `time` int64 (microseconds);
    "" (a value that the server sends as text) string.

    `loops`: the modules of the loops, compiled or not; by default as `HEADWATER_NATIVE` says. `recipes` is asked for
    each relation of which something is wanted; where it gives one, plain rows are made ready at once (`ReadyRows`).
    """

    def __init__(
        self, *, binary: bool, wanted: Wanted, recipes: Recipes | None = None, loops: Loops | None = None
    ) -> None:
        self._tables = Tables(binary, wanted, recipes)
        self._loops = loops or Loops.chosen()
        self._part: Transaction | None = None
        self._ordinal = 0

    @property
    def relations(self) -> dict[int, Relation]:
        """By oid, as they were last described."""
        return self._tables.relations

    def decode(
        self,
        buffer: Buffer,
        ends: NDArray[np.int64],
        *,
        transaction: Transaction | None = None,
        aborted: Collection[int] = (),
    ) -> Iterator[Segment]:
        """Complete frames, keepalives among them: whole transactions, from `B` to `C`.

        With `transaction`: a part of its messages, in which `B`, `C`, `S`, `E`, `A` and `c` are passed over, and rows
        of the subtransactions `aborted` are left out. A segment ends where a Relation message changes what is wanted
        of a table. Raises `Malformed`; then the decoder cannot go on. One call at a time.
        """
        return self.decode_frames(Frames(buffer, ends), transaction, aborted)

    def decode_frames(
        self, frames: Frames, transaction: Transaction | None = None, aborted: Collection[int] = ()
    ) -> Iterator[Segment]:
        """As `decode`."""
        if transaction is not self._part:
            self._part, self._ordinal = transaction, 0
        work = Work(self._loops, self._tables, frames, transaction, aborted, self._ordinal)
        yield from work.segments()
        self._ordinal = work.ordinal


class Work:
    """One call of `Decoder.decode`: memory for what the scan finds, which grows, and segments made of it."""

    def __init__(
        self,
        loops: Loops,
        tables: Tables,
        frames: Frames,
        part: Transaction | None,
        aborted: Collection[int],
        ordinal: int,
    ) -> None:
        self._loops = loops
        self._tables = tables
        self._frames = frames
        self._part = part
        self._streamed = part is not None and part.streamed
        self._rows = np.empty((len(frames) + 1, loops.messages.ROW_FIELDS), np.int64)
        self._places = np.empty(16 * len(frames) + 64, np.int64)
        self._transactions = np.empty((len(frames) + 1, loops.messages.TRANSACTION_FIELDS), np.int64)
        if part is not None:
            self._transactions[0] = _record(part)
        left_out = np.array(sorted(aborted), np.int64).data if aborted else _NOTHING
        ends = frames.ends.data
        self._scan = loops.messages.Scan(frames.data, ends, left_out, part is not None, self._streamed, ordinal)
        self._scan.write_to(self._rows.data, self._places.data, self._transactions.data)
        self._scan.know(*tables.arrays())

    @property
    def ordinal(self) -> int:
        return int(self._scan.progress()[4])

    def segments(self) -> Iterator[Segment]:
        messages = self._loops.messages
        while (stop := self._scan.run()) != messages.DONE:
            if stop == messages.RELATION:
                yield from self._relation()
            elif stop == messages.ROOM:
                self._grow()
            else:
                raise self._fault(stop)
        _, rows, _, transactions, _, is_open = self._scan.progress()
        if is_open and self._part is None:
            raise Malformed(f"{len(self._frames)} frames end within a transaction; whole ones are expected")
        if rows or (transactions and self._part is None):
            yield self._segment()

    def _relation(self) -> Iterator[Segment]:
        frame, rows, *_ = self._scan.progress()
        relation = relation_of(self._frames[frame], streamed=self._streamed)
        known = self._tables.relations.get(relation.oid)
        if known != relation:
            described, alike = self._tables.described(relation)
            if rows and not alike:
                yield self._segment()
                self._begin_again()
            self._tables.put(described)
            self._scan.know(*self._tables.arrays())
        self._scan.pass_frame()

    def _begin_again(self) -> None:
        transactions, is_open = self._scan.progress()[3], self._scan.progress()[5]
        if is_open:
            self._transactions[0] = self._transactions[transactions - 1]
        self._scan.begin_again()

    def _grow(self) -> None:
        _, rows, values, transactions, *_ = self._scan.progress()
        self._rows = _doubled(self._rows, rows)
        self._places = _doubled(self._places, values)
        self._transactions = _doubled(self._transactions, transactions)
        self._scan.write_to(self._rows.data, self._places.data, self._transactions.data)

    def _fault(self, stop: int) -> Malformed:
        index = self._scan.progress()[0]
        frame = self._frames[index]
        letter = bytes(frame[HEADER : HEADER + 1]).decode("latin-1")
        at = self._scan.at_byte() - self._frames.start(index)
        text = self._loops.messages.FAULTS[stop]
        return Malformed(f"message {letter!r}, frame {index} of {len(frame)} bytes, {text} (at byte {at})")

    def _segment(self) -> Segment:
        _, count, _, transactions, _, is_open = self._scan.progress()
        rows, tables, ready = self._rows[:count], list[TableRows](), list[ReadyRows]()
        for slot, mine in self._by_slot(rows):
            known = self._tables.known[slot]
            if (made := self._ready(known, mine)) is not None:
                ready.append(made)
            else:
                tables.append(self._table(known, mine))
        return Segment(self._described(transactions, is_open), tables, not is_open, ready)

    def _by_slot(self, rows: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
        """Each slot with its rows."""
        if self._scan.of_several_tables():
            return _parted(rows)
        return [(int(rows[0, 0]), rows)] if len(rows) else []

    def _ready(self, known: Known, rows: NDArray[np.int64]) -> ReadyRows | None:
        if known.recipe is None or self._scan.unchanged_values():
            return None
        data = known.recipe.batch(self._frames.data, self._places.data, rows, self._transactions)
        transaction = rows[:, self._loops.messages.TRANSACTION].astype(np.int32)
        return None if data is None else ReadyRows(known.relation, transaction, data)

    def _table(self, known: Known, rows: NDArray[np.int64]) -> TableRows:
        messages = self._loops.messages
        values = Values(self._loops.values, self._frames.data, self._places)
        after, before = (np.ascontiguousarray(rows[:, field]) for field in (messages.AFTER, messages.BEFORE))
        return TableRows(
            known.relation,
            rows[:, messages.OP].astype(np.int8),
            rows[:, messages.TRANSACTION].astype(np.int32),
            rows[:, messages.ORDINAL].astype(np.uint32),
            _batch(known, values, after),
            [self._unchanged(after, place) for place in range(len(known.columns))],
            _batch(known, values, before) if np.any(before >= 0) else None,
            rows[:, messages.BEFORE_KIND].astype(np.int8),
        )

    def _unchanged(self, bases: NDArray[np.int64], column: int) -> NDArray[np.bool_] | None:
        if not self._scan.unchanged_values():
            return None
        places = np.where(bases >= 0, self._places[np.maximum(bases, 0) + column], self._loops.messages.NULL)
        mask: NDArray[np.bool_] = places == self._loops.messages.UNCHANGED
        return mask if mask.any() else None

    def _described(self, count: int, is_open: bool) -> Transactions:
        messages = self._loops.messages
        found = self._transactions[:count]
        if is_open and self._part is None:
            found[-1, messages.END] = self._end_ahead()
        return Transactions(
            found[:, messages.XID].astype(np.uint32),
            found[:, messages.COMMIT].astype(np.uint64),
            found[:, messages.END].astype(np.uint64),
            found[:, messages.TIME] + EPOCH,
            self._origins(found[:, messages.ORIGIN]),
        )

    def _origins(self, frames: NDArray[np.int64]) -> NDArray[np.object_]:
        own = self._part.origin if self._part is not None else ""
        names: NDArray[np.object_] = np.full(len(frames), own, object)
        for index in (frames >= 0).nonzero()[0]:
            names[index] = origin_of(self._frames[int(frames[index])])
        return names

    def _end_ahead(self) -> int:
        """Where the transaction ends that goes on behind the segment."""
        for index in range(self._scan.progress()[0], len(self._frames)):
            frame = self._frames[index]
            if bytes(frame[:1]) == b"w" and bytes(frame[HEADER : HEADER + 1]) == b"C":
                return _signed(commit(frame).end_lsn)
        raise Malformed(f"{len(self._frames)} frames end within a transaction; whole ones are expected")


_NOTHING = np.empty(0, np.int64).data


def _record(part: Transaction) -> tuple[int, ...]:
    """As the scan would have written it."""
    return part.xid, _signed(part.commit_lsn), _signed(part.end_lsn), part.time - EPOCH, -1


def _signed(lsn: int) -> int:
    return lsn - 2**64 if lsn >= 2**63 else lsn


def _doubled(array: NDArray[np.int64], used: int) -> NDArray[np.int64]:
    larger = np.empty((2 * len(array), *array.shape[1:]), np.int64)
    larger[:used] = array[:used]
    return larger


def _parted(rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    order = np.argsort(rows[:, 0], kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(rows[order, 0])) + 1):
        yield int(rows[group[0], 0]), rows[group]


def _batch(known: Known, values: Values, bases: NDArray[np.int64]) -> pa.RecordBatch:
    relation = known.relation
    names = [relation.columns[ordinal].name for ordinal, _ in known.columns]
    labels = [(f"{relation}.{name}", code) for name, (_, code) in zip(names, known.columns, strict=True)]
    return pa.RecordBatch.from_arrays(values.arrays(labels, bases), names=names)
