"""Single messages of `pgoutput`, for what is looked at one by one: relations, and what says where transactions are.

Layouts: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and, for the frames around
them, https://www.postgresql.org/docs/current/protocol-replication.html. Every number is big-endian; every text ends
with a NUL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater import native
from headwater.errors import SourceError

HEADER = 25
"""Bytes before the message in a frame `w`: the letter, the start and the end in the log, the server's clock."""

KEEPALIVE_SIZE = 18

EPOCH = 946_684_800_000_000
"""2000-01-01, PostgreSQL's beginning of time, in microseconds since 1970."""

_LAST = 2**63 - 1 - EPOCH


Buffer = bytes | bytearray | memoryview


class Malformed(SourceError):
    """Bytes that are no message of the protocol, or one that cannot be at this place."""


@dataclass(frozen=True, slots=True)
class WireColumn:
    """`key`: the column is a part of the replica identity."""

    name: str
    oid: int
    typmod: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the log describes it. `identity`: `d`efault, `n`othing, `f`ull or an `i`ndex."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[WireColumn, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Transaction:
    """One transaction whose messages come in several parts. `time`: microseconds since 1970 UTC.

    `streamed`: its messages begin with the number of their subtransaction, as those between `S` and `E` do. Rows are
    numbered on from one part to the next as long as it is the same object.
    """

    xid: int
    commit_lsn: int
    end_lsn: int
    time: int
    origin: str = ""
    streamed: bool = True


class Begin(NamedTuple):
    """`B`. `lsn` is that of the commit record."""

    xid: int
    lsn: int
    time: int


class Commit(NamedTuple):
    """`C`, or `c` with the `xid` of the streamed transaction (else 0)."""

    xid: int
    lsn: int
    end_lsn: int
    time: int


class Start(NamedTuple):
    """`S`: a part of the streamed transaction `xid` follows."""

    xid: int
    first: bool


class Abort(NamedTuple):
    """`A`: `subxid` was rolled back; with `subxid == xid` the whole transaction."""

    xid: int
    subxid: int


class Message(NamedTuple):
    """`M`, from `pg_logical_emit_message`."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class Keepalive(NamedTuple):
    """`k`. `end`: the end of the log as the server has sent it; `reply`: it wants an answer at once."""

    end: int
    clock: int
    reply: bool


class Frames:
    """A buffer of frames and where each ends, checked: the ends ascend and stay within the buffer."""

    __slots__ = ("data", "ends")

    def __init__(self, buffer: Buffer, ends: NDArray[np.int64]) -> None:
        self.data = memoryview(buffer).cast("B")
        self.ends = ends = np.ascontiguousarray(ends, np.int64)
        if len(ends) and (ends[0] <= 0 or (ends[1:] <= ends[:-1]).any() or ends[-1] > len(self.data)):
            raise Malformed(f"the ends of {len(self.ends)} frames do not ascend within {len(self.data)} bytes")
        if len(self.data) >= 2**31:
            raise Malformed(f"{len(self.data)} bytes of frames at once, less than {2**31} are expected")

    def part(self, first: int, last: int) -> Frames:
        """Frames `first` to `last`, which need not be checked once more."""
        if first == 0 and last == len(self.ends):
            return self
        start = self.start(first) if first < last else 0
        end = int(self.ends[last - 1]) if first < last else 0
        made = Frames.__new__(Frames)
        made.data, made.ends = self.data[start:end], self.ends[first:last] - start
        return made

    def start(self, index: int) -> int:
        """Where a frame begins."""
        return int(self.ends[index - 1]) if index else 0

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> memoryview:
        return self.data[self.start(index) : int(self.ends[index])]


def kinds(buffer: Buffer, ends: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The letter of each frame's message; 0 for a keepalive. Raises `Malformed` for any other frame."""
    return letters_of(Frames(buffer, ends), native.either("headwater.wire.pgoutput_cy"))


def letters_of(frames: Frames, loops: ModuleType) -> NDArray[np.uint8]:
    """As `kinds`. `loops`: `pgoutput_cy`."""
    found = np.empty(len(frames), np.uint8)
    bad = loops.letters(frames.data, frames.ends.data, found.data)
    if bad >= 0:
        raise bad_frame(frames[bad])
    return found


def bad_frame(frame: memoryview) -> Malformed:
    letter = bytes(frame[:1]).decode("latin-1")
    return Malformed(f"a frame {letter!r} of {len(frame)} bytes; `w` with a message or `k` is expected")


def frame_end(frame: memoryview) -> int:
    """The LSN behind what a frame `w` tells of, as far as the server says."""
    return int(_fields(">QQ", frame, 1)[1])


def frame_start(frame: memoryview) -> int:
    """The LSN of what a frame `w` tells of."""
    return int(_fields(">QQ", frame, 1)[0])


def sent_at(frame: memoryview) -> int:
    """When the server sent a frame `w`, in microseconds since 1970 by its own clock."""
    return _time(_fields(">q", frame, 17)[0])


def keepalive(frame: memoryview) -> Keepalive:
    end, clock, reply = _whole(">QqB", frame, 1)
    return Keepalive(end, _time(clock), bool(reply))


def begin(frame: memoryview) -> Begin:
    lsn, time, xid = _whole(">QqI", frame)
    return Begin(xid, lsn, _time(time))


def commit(frame: memoryview) -> Commit:
    """Of `C`."""
    _, lsn, end_lsn, time = _whole(">BQQq", frame)
    return Commit(0, lsn, end_lsn, _time(time))


def stream_start(frame: memoryview) -> Start:
    xid, first = _whole(">IB", frame)
    return Start(xid, first == 1)


def stream_commit(frame: memoryview) -> Commit:
    """Of `c`."""
    xid, _, lsn, end_lsn, time = _whole(">IBQQq", frame)
    return Commit(xid, lsn, end_lsn, _time(time))


def stream_abort(frame: memoryview) -> Abort:
    return Abort(*_whole(">II", frame))


def subtransaction(frame: memoryview) -> int:
    """The number that a message between `S` and `E` begins with: of the transaction or of one within it."""
    return int(_fields(">I", frame, HEADER + 1)[0])


def message(frame: memoryview, *, streamed: bool = False) -> Message:
    at = HEADER + 1 + 4 * streamed
    flags, lsn = _fields(">BQ", frame, at)
    prefix, at = name_at(frame, at + 9)
    (size,) = _fields(">I", frame, at)
    content = bytes(frame[at + 4 :])
    if len(content) != size:
        raise Malformed(f"message `M` with a content of {len(content)} bytes, it says {size}")
    return Message(bool(flags & 1), lsn, prefix, content)


def origin_of(frame: memoryview) -> str:
    """The name in an `O`."""
    name, at = name_at(frame, HEADER + 9)
    _ended(frame, at)
    return name


def relation_of(frame: memoryview, *, streamed: bool = False) -> Relation:
    """Of `R`. The schema is "" for `pg_catalog`'s."""
    at = HEADER + 1 + 4 * streamed
    (oid,) = _fields(">I", frame, at)
    schema, at = name_at(frame, at + 4)
    name, at = name_at(frame, at)
    identity, count = _fields(">BH", frame, at)
    columns = _Columns(frame, at + 3)
    found = tuple(next(columns) for _ in range(count))
    _ended(frame, columns.at)
    if chr(identity) not in "dnfi":
        raise Malformed(
            f"relation {schema}.{name} with the replica identity {chr(identity)!r}, one of d n f i expected"
        )
    return Relation(oid, schema or "pg_catalog", name, chr(identity), found)


class _Columns(Iterator[WireColumn]):
    def __init__(self, frame: memoryview, at: int) -> None:
        self.frame = frame
        self.at = at

    def __next__(self) -> WireColumn:
        (flags,) = _fields(">B", self.frame, self.at)
        name, at = name_at(self.frame, self.at + 1)
        oid, typmod = _fields(">Ii", self.frame, at)
        self.at = at + 8
        return WireColumn(name, oid, typmod, bool(flags & 1))


def name_at(frame: memoryview, at: int) -> tuple[str, int]:
    """The text at `at`, and where the next field is."""
    text, nul, _ = bytes(frame[at:]).partition(b"\0")
    if not nul:
        raise _short(frame, at)
    try:
        return text.decode(), at + len(text) + 1
    except UnicodeDecodeError as error:
        raise Malformed(f"{_named(frame)}: a name that is not UTF-8: {text!r}") from error


def _fields(layout: str, frame: memoryview, at: int) -> tuple[int, ...]:
    if len(frame) - at < struct.calcsize(layout):
        raise _short(frame, at)
    return struct.unpack_from(layout, frame, at)


def _whole(layout: str, frame: memoryview, at: int = HEADER + 1) -> tuple[int, ...]:
    """The fields of a message that has no others."""
    fields = _fields(layout, frame, at)
    _ended(frame, at + struct.calcsize(layout))
    return fields


def _ended(frame: memoryview, at: int) -> None:
    if at != len(frame):
        raise Malformed(f"{_named(frame)} is over after {at} bytes, and there are {len(frame)}")


def _time(time: int) -> int:
    if time > _LAST:
        raise Malformed(f"a time {time} microseconds behind 2000-01-01, which 64 bits do not hold since 1970")
    return time + EPOCH


def _short(frame: memoryview, at: int) -> Malformed:
    return Malformed(f"{_named(frame)} ends within a field: {len(frame)} bytes, more are expected from {at} on")


def _named(frame: memoryview) -> str:
    letter = bytes(frame[HEADER : HEADER + 1] if bytes(frame[:1]) == b"w" else frame[:1]).decode("latin-1")
    return f"message {letter!r}"
