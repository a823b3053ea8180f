"""`pgoutput` messages for tests: written here, recorded from a real server, and damaged."""

from __future__ import annotations

import ctypes
import mmap
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headwater.drivers.postgres import connect
from headwater.sources.log_postgres.position import lsn_of
from headwater.testing.postgres import PostgresServer
from headwater.wire.pgoutput import Decoder, Loops, Malformed, Relation, Segment, Transaction, keepalive, kinds

Value = bytes | str | None
"""Of a column in a message: binary, text, NULL; `UNCHANGED` for a value that is not sent."""

UNCHANGED = "\0unchanged"


def framed(message: bytes, *, start: int = 0, end: int = 0) -> bytes:
    return b"w" + struct.pack(">QQq", start, end, 0) + message


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def begin(xid: int, lsn: int, time: int = 0) -> bytes:
    return b"B" + struct.pack(">QqI", lsn, time, xid)


def commit(lsn: int, end: int, time: int = 0) -> bytes:
    return b"C" + struct.pack(">BQQq", 0, lsn, end, time)


def origin(name: str) -> bytes:
    return b"O" + struct.pack(">Q", 0) + text(name)


def relation(
    oid: int,
    name: str,
    columns: Sequence[tuple[str, int]],
    *,
    schema: str = "public",
    identity: str = "d",
    typmods: Mapping[str, int] | None = None,
) -> bytes:
    """`columns`: name and type; the first is the key. `typmods`: by column, where it has one."""
    head = (
        b"R" + struct.pack(">I", oid) + text(schema) + text(name) + identity.encode() + struct.pack(">H", len(columns))
    )
    described = [
        bytes([n == 0]) + text(c) + struct.pack(">Ii", kind, (typmods or {}).get(c, -1))
        for n, (c, kind) in enumerate(columns)
    ]
    return head + b"".join(described)


def row(values: Iterable[Value]) -> bytes:
    values = list(values)
    return struct.pack(">H", len(values)) + b"".join(map(_value, values))


def _value(value: Value) -> bytes:
    if value is None:
        return b"n"
    if value == UNCHANGED:
        return b"u"
    raw = value.encode() if isinstance(value, str) else value
    return (b"t" if isinstance(value, str) else b"b") + struct.pack(">I", len(raw)) + raw


def insert(oid: int, new: Sequence[Value]) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + row(new)


def update(oid: int, new: Sequence[Value], old: Sequence[Value] | None = None, kind: bytes = b"K") -> bytes:
    before = b"" if old is None else kind + row(old)
    return b"U" + struct.pack(">I", oid) + before + b"N" + row(new)


def delete(oid: int, old: Sequence[Value], kind: bytes = b"K") -> bytes:
    return b"D" + struct.pack(">I", oid) + kind + row(old)


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack(">IB", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids)


def with_xid(xid: int, message: bytes) -> bytes:
    """As it is written within a streamed transaction."""
    return message[:1] + struct.pack(">I", xid) + message[1:]


def numeric(value: Decimal) -> bytes:
    """As `numeric_send` writes it. Scale is the number of digits behind the point."""
    if not value.is_finite():
        sign = 0xC000 if value.is_nan() else 0xF000 if value < 0 else 0xD000
        return struct.pack(">hhHH", 0, 0, sign, 0)
    sign, digits, exponent = value.as_tuple()
    scale = max(-int(exponent), 0)
    whole = int("".join(map(str, digits)) or "0") * 10 ** (int(exponent) + scale)
    whole *= 10 ** (-scale % 4)
    groups: list[int] = []
    while whole:
        whole, group = divmod(whole, 10_000)
        groups.insert(0, group)
    weight = len(groups) - (scale + 3) // 4 - 1
    while groups and groups[-1] == 0:
        groups.pop()
    return struct.pack(
        f">HhHH{len(groups)}H", len(groups), weight if groups else 0, 0x4000 * bool(sign and groups), scale, *groups
    )


@dataclass(frozen=True)
class Recording:
    """Frames of one session. `binary`: with that option."""

    frames: list[bytes]
    binary: bool

    def kinds(self) -> str:
        """The letter of each message, keepalives left out."""
        return bytes(kind for kind in kinds(*joined(self.frames)) if kind).decode()


def joined(frames: Iterable[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """As the decoder takes them."""
    frames = list(frames)
    return b"".join(frames), np.cumsum([len(frame) for frame in frames], dtype=np.int64)


def recorded(url: str, slot: str, publication: str, *, version: int = 1, binary: bool = False) -> Recording:
    """Everything up to now, from a slot that is there."""
    with connect(url, application="headwater tests") as other:
        found = other.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        other.execute("SELECT pg_logical_emit_message(false, 'headwater tests', 'end')")
    assert found is not None
    target, frames = lsn_of(str(found[0])), []
    options = f"proto_version '{version}', publication_names '{publication}', messages 'true', binary '{binary}'"
    options += ", streaming 'on'" if version > 1 else ""
    with closing(connect(url, application="headwater tests", replication=True)) as connection:
        connection.pgconn.exec_(f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 ({options})'.encode())
        while True:
            _, data = connection.pgconn.get_copy_data(0)
            frame = bytes(data)
            if frame[:1] == b"k":
                if keepalive(memoryview(frame)).end > target:
                    break
            elif frame[25:26] == b"M" and frame.endswith(b"headwater tests\0\0\0\0\3end"):
                break
            else:
                frames.append(frame)
    return Recording(frames, binary)


def slots(server: PostgresServer, database: str, names: Sequence[str]) -> None:
    for name in names:
        server.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')", database=database)


def everything(code: Callable[[int], str] | None = None) -> Callable[[Relation], list[tuple[int, str]]]:
    """All columns; `code`: type -> wire code."""
    return lambda relation: [(n, code(column.oid) if code else "") for n, column in enumerate(relation.columns)]


WIRE = {
    16: "bool", 17: "bytes", 20: "i8", 21: "i2", 23: "i4", 25: "text", 26: "oid", 114: "text", 700: "f4", 701: "f8",
    1043: "text", 1082: "date", 1083: "time", 1114: "timestamp", 1184: "timestamp", 1700: "numeric", 2950: "uuid",
    3802: "jsonb",
}  # fmt: skip
"""Type -> wire code."""


def wire(oid: int) -> str:
    return WIRE.get(oid, "text")


@dataclass
class Outcome:
    """What a decoder made of frames, as values that can be compared; the error's text if there was one."""

    seen: list[object] = field(default_factory=list)
    error: str = ""


def outcome(
    loops: Loops,
    frames: tuple[bytes | memoryview, NDArray[np.int64]],
    *,
    binary: bool,
    wanted: Callable[[Relation], Sequence[tuple[int, str]] | None],
    transaction: Transaction | None = None,
    aborted: Iterable[int] = (),
) -> Outcome:
    found = Outcome()
    decoder = Decoder(binary=binary, wanted=wanted, loops=loops)
    try:
        for segment in decoder.decode(*frames, transaction=transaction, aborted=list(aborted)):
            found.seen.append(shown(segment))
    except Malformed as error:
        found.error = str(error)
    return found


def shown(segment: Segment) -> object:
    transactions = segment.transactions
    head = [list(a) for a in (transactions.xid, transactions.commit_lsn, transactions.end_lsn, transactions.time)]
    tables = [
        (
            table.relation,
            [table.op.tolist(), table.transaction.tolist(), table.ordinal.tolist(), table.before_kind.tolist()],
            _written(table.after),
            _written(table.before),
            [None if mask is None else mask.tolist() for mask in table.unchanged],
        )
        for table in segment.tables
    ]
    return head, list(transactions.origin), tables, segment.complete


def _written(batch: pa.RecordBatch | None) -> str:
    """With its types; as text, so that NaN equals NaN."""
    return "" if batch is None else f"{batch.schema}: {batch.to_pydict()}"


EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def damaged(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """One to four blows to frames, or to their order."""
    frames = list(frames)
    for _ in range(rng.randint(1, 4)):
        index = rng.randrange(len(frames))
        frames[index] = rng.choice(BLOWS)(rng, frames[index]) or b"w"
        if rng.random() < 0.15:
            other = rng.randrange(len(frames))
            frames[index], frames[other] = frames[other], frames[index]
        if rng.random() < 0.1 and len(frames) > 1:
            del frames[rng.randrange(len(frames))]
        if rng.random() < 0.1:
            frames.insert(rng.randrange(len(frames)), rng.choice(frames))
    return frames


def _flip(rng: random.Random, frame: bytes) -> bytes:
    at = rng.randrange(len(frame))
    return frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]


def _cut(rng: random.Random, frame: bytes) -> bytes:
    return frame[: rng.randrange(len(frame))]


def _insert(rng: random.Random, frame: bytes) -> bytes:
    at = rng.randrange(len(frame) + 1)
    return frame[:at] + rng.randbytes(rng.randint(1, 9)) + frame[at:]


def _remove(rng: random.Random, frame: bytes) -> bytes:
    at = rng.randrange(len(frame))
    return frame[:at] + frame[at + rng.randint(1, 9) :]


def _number(rng: random.Random, frame: bytes) -> bytes:
    """An extreme number of 1, 2 or 4 bytes, or one next to what is there: lengths and counts above all."""
    width = rng.choice((1, 2, 4))
    at = rng.randrange(len(frame))
    there = int.from_bytes(frame[at : at + width])
    number = rng.choice((rng.choice(EXTREMES), there + 1, there - 1)) & ((1 << 8 * width) - 1)
    return frame[:at] + number.to_bytes(width) + frame[at + width :]


BLOWS: tuple[Callable[[random.Random, bytes], bytes], ...] = (_flip, _cut, _insert, _remove, _number, _number)


class Guarded:
    """Memory right behind which nothing may be read: whoever does dies."""

    def __init__(self, size: int) -> None:
        pages = -(-size // mmap.PAGESIZE) + 1
        self._map = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        self._end = pages * mmap.PAGESIZE
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(address + self._end), mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def holding(self, data: bytes) -> memoryview:
        """The data, at the very end."""
        begin = self._end - len(data)
        self._map[begin : self._end] = data
        return memoryview(self._map)[begin : self._end]


def sampled(rng: random.Random, recording: Recording) -> list[bytes]:
    """A run of transactions from a recording, behind the relations that come before it."""
    letters = [frame[25:26] for frame in recording.frames]
    first = rng.choice([n for n, letter in enumerate(letters) if letter in b"BS"])
    last = min(first + rng.randint(2, 25), len(letters))
    known = [recording.frames[n] for n in range(first) if letters[n] == b"R"]
    return [*known, *recording.frames[first:last]]


def any_columns(rng: random.Random) -> Callable[[Relation], list[tuple[int, str]] | None]:
    """Mostly the right codes, now and then others, fewer columns or none."""
    seed = rng.random()

    def wanted(relation: Relation) -> list[tuple[int, str]] | None:
        own = random.Random(f"{seed}{relation}")
        if own.random() < 0.1:
            return None
        columns = [(n, wire(column.oid)) for n, column in enumerate(relation.columns) if own.random() < 0.9]
        strange = sorted({*WIRE.values(), ""})
        return [(n, own.choice(strange) if own.random() < 0.03 else code) for n, code in columns]

    return wanted


def transactions_of(frames: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The frames of each transaction, from `B` to `C`; what is between them is left out."""
    found: list[bytes] = []
    for frame in frames:
        if frame[25:26] == b"B" or found:
            found.append(frame)
        if frame[25:26] == b"C":
            yield found
            found = []
