"""The stream of frames, cut where transactions end.

Small transactions that have arrived together are one unit. A transaction that grows beyond `LARGE`, and one that the
server sends before it is committed (protocol 2: blocks `S`...`E`, then `c` or `A`), goes to a file and is a unit of its
own at its commit.

Relation messages hold from where they arrive on; those in a block are the block's own until its transaction commits,
and then for everybody, unless a later one has arrived meanwhile (`maybe_send_schema` in pgoutput.c).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.sources.log_postgres.spool import Spool, joined
from headwater.wire import pgoutput
from headwater.wire.pgoutput import Decoder, Frames, Loops, Malformed, Transaction
from headwater.wire.pgoutput_messages import HEADER, letters_of

LARGE = 16 * 2**20
"""Bytes of one transaction that are held in memory."""

OLD = 1_000_000
"""Microseconds: a commit that the server sends later than that is part of a backlog."""

Letters = NDArray[np.uint8]

_B, _R, _O, _T = (ord(letter) for letter in "BROT")
_MARKS = np.isin(np.arange(256), np.frombuffer(b"SEcA", np.uint8))
"""Whether a letter tells of streamed transactions."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Frames of whole transactions, from `B` to `C`."""

    frames: Frames


@dataclass(frozen=True, slots=True)
class Stored:
    """One transaction in a file. `known`: Relation messages that hold at its beginning; `told`: that hold behind it."""

    spool: Spool
    transaction: Transaction
    aborted: frozenset[int]
    known: tuple[bytes, ...]
    told: tuple[bytes, ...]
    relations: tuple[bytes, ...]
    """All that are in the file, in their sequence."""


@dataclass(slots=True)
class _Growing:
    """A transaction on its way into a file."""

    spool: Spool
    known: tuple[bytes, ...] = ()
    xid: int = 0
    origin: str = ""
    aborted: set[int] = field(default_factory=set)
    told: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Relation messages by the table's oid, each with the number of its arrival."""
    relations: list[bytes] = field(default_factory=list)


class _Places(NamedTuple):
    """Where in a run there is what, -1 for nowhere."""

    streaming: int
    first_commit: int
    last_commit: int
    begin: int
    """The first one behind all commits."""
    relation: int
    keepalive: int
    """The last one."""
    message: int
    """Likewise."""


@dataclass(slots=True)
class _Run:
    """Frames that follow one another: `letters[first:last]` of `frames`."""

    frames: Frames
    letters: Letters

    def part(self, first: int, last: int) -> _Run:
        if first == 0 and last == len(self.letters):
            return self
        return _Run(self.frames.part(first, last), self.letters[first:last])

    def where(self, letter: int) -> NDArray[np.intp]:
        return np.flatnonzero(self.letters == letter)

    @property
    def piece(self) -> tuple[memoryview, NDArray[np.int64]]:
        return self.frames.data, self.frames.ends

    def __len__(self) -> int:
        return len(self.letters)


class Units:
    """`add` what arrives, `take` what is complete. `reached`: every commit below this LSN has been added."""

    def __init__(self, directory: str) -> None:
        self.reached = 0
        self._directory = directory
        self._loops = Loops.chosen().messages
        self._ready: deque[Whole | Stored] = deque()
        self._whole: list[_Run] = []
        self._open: list[_Run] = []
        self._large: _Growing | None = None
        self._blocks: dict[int, _Growing] = {}
        self._block: _Growing | None = None
        self._known: dict[int, tuple[int, bytes]] = {}
        self._arrivals = 0
        self._pressed = False
        self._late = False

    def pressed(self) -> bool:
        """Whether the server has asked for an answer since this was asked."""
        pressed, self._pressed = self._pressed, False
        return pressed

    @property
    def behind(self) -> bool:
        """Whether the server has more to send at once: a commit was old already when it came, or it is on its way."""
        return self._late or self._block is not None or self._large is not None

    def caught_up(self) -> None:
        """Nothing more has come for a while."""
        self._late = False

    @property
    def nbytes(self) -> int:
        """Of what `take` would give from memory."""
        return sum(len(run.frames.data) for run in self._whole)

    @property
    def rows(self) -> int:
        return sum(map(len, self._whole))

    @property
    def complete(self) -> bool:
        """Whether `take` would give something."""
        return bool(self._whole or self._ready)

    @property
    def stored(self) -> bool:
        """Whether a unit waits that is to be taken alone."""
        return bool(self._ready)

    def add(self, buffer: bytes | memoryview, ends: NDArray[np.int64]) -> None:
        """Raises `Malformed` for what cannot follow what came before."""
        frames = Frames(buffer, ends)
        run = _Run(frames, letters_of(frames, self._loops))
        places = self._places(run)
        if places.streaming < 0:
            self._run(run, places)
            return
        start = 0
        for place in map(int, np.flatnonzero(_MARKS[run.letters])):
            self._run(run.part(start, place))
            self._mark(chr(run.letters[place]), run.frames[place])
            start = place + 1
        self._run(run.part(start, len(run)))

    def take(self) -> Whole | Stored | None:
        if not self._ready:
            self._flush()
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        for growing in (*self._blocks.values(), *([self._large] if self._large else [])):
            growing.spool.close()
        for unit in self._ready:
            if isinstance(unit, Stored):
                unit.spool.close()

    def _places(self, run: _Run) -> _Places:
        return _Places(*self._loops.places(run.letters.data))

    def _run(self, run: _Run, places: _Places | None = None) -> None:
        if not len(run):
            return
        if self._block is not None:
            self._to_file(self._block, run, streamed=True)
        else:
            self._plain(run, places or self._places(run))

    # transactions that come at their commit

    def _plain(self, run: _Run, places: _Places) -> None:
        self._look_at_places(run, places)
        if self._large is not None:
            run = self._go_on_with_large(self._large, run, places)
            places = self._places(run)
        if places.last_commit >= 0:
            run = self._completed(run, places)
        elif not self._open:  # what stands between transactions has been looked at
            run = run.part(places.begin if places.begin >= 0 else len(run), len(run))
        if not len(run):
            return
        self._open.append(run)
        if sum(len(part.frames.data) for part in self._open) > LARGE:
            self._begin_large()

    def _completed(self, run: _Run, places: _Places) -> _Run:
        """Keeps whole transactions; what is left of `run` from the next one's beginning on."""
        last = places.last_commit + 1
        self._late = _age(run.frames[last - 1]) > OLD and places.keepalive < last
        complete = [*self._open, run.part(0, last)]
        if places.relation >= 0 or self._open:
            for part in complete:
                self._learn(part)
        self._whole += complete
        self._open = []
        return run.part(places.begin if places.begin >= 0 else len(run), len(run))

    def _learn(self, run: _Run) -> None:
        for place in map(int, run.where(_R)):
            frame = bytes(run.frames[place])
            self._known[_table(frame)] = (self._arrival(), frame)

    def _begin_large(self) -> None:
        growing = self._large = _Growing(Spool(self._directory), tuple(frame for _, frame in self._known.values()))
        opened, self._open = self._open, []
        for run in opened:
            self._to_file(growing, run, streamed=False)

    def _go_on_with_large(self, growing: _Growing, run: _Run, places: _Places) -> _Run:
        """What is left of `run` behind the transaction's end."""
        ended = places.first_commit >= 0
        last = places.first_commit + 1 if ended else len(run)
        self._to_file(growing, run.part(0, last), streamed=False)
        if ended:
            commit = pgoutput.commit(run.frames[last - 1])
            self._large = None
            self._finish(growing, commit, streamed=False)
        return run.part(last, len(run))

    def _look_at_places(self, run: _Run, places: _Places) -> None:
        """A keepalive, and a message outside of transactions, says that every commit below it has been sent."""
        if places.keepalive >= 0:
            keepalive = pgoutput.keepalive(run.frames[places.keepalive])
            self.reached = max(self.reached, keepalive.end)
            self._late = False
            self._pressed |= keepalive.reply
        if places.message >= 0:
            frame = run.frames[places.message]
            if not pgoutput.message(frame).transactional:
                self.reached = max(self.reached, pgoutput.frame_start(frame))

    # transactions that come before their commit

    def _mark(self, letter: str, frame: memoryview) -> None:
        if letter == "S":
            self._begin_block(frame)
        elif self._block is not None:
            if letter != "E":
                raise Malformed(f"message {letter!r} within a block of a streamed transaction")
            self._block = None
        elif letter == "c":
            commit = pgoutput.stream_commit(frame)
            self._finish(self._streamed(commit.xid), commit, streamed=True)
        elif letter == "A":
            self._abort(pgoutput.stream_abort(frame))
        else:
            raise Malformed("message 'E' outside of a block of a streamed transaction")

    def _begin_block(self, frame: memoryview) -> None:
        start = pgoutput.stream_start(frame)
        if self._block is not None or self._open_transaction():
            raise Malformed(f"a block of transaction {start.xid} begins within another transaction")
        if start.first:
            self._blocks[start.xid] = _Growing(Spool(self._directory), xid=start.xid)
        elif start.xid not in self._blocks:
            raise Malformed(f"a block of transaction {start.xid}, of which nothing came before")
        self._block = self._blocks[start.xid]

    def _open_transaction(self) -> bool:
        return self._large is not None or bool(self._open)

    def _streamed(self, xid: int) -> _Growing:
        if xid not in self._blocks:
            raise Malformed(f"the commit of transaction {xid}, of which nothing came before")
        return self._blocks.pop(xid)

    def _abort(self, abort: pgoutput.Abort) -> None:
        """Of a transaction that is not known nothing was sent."""
        growing = self._blocks.get(abort.xid)
        if growing is None:
            return
        if abort.subxid == abort.xid:
            del self._blocks[abort.xid]
            growing.spool.close()
        else:
            growing.aborted.add(abort.subxid)
            growing.told.clear()  # the server tells of the tables again

    # files

    def _to_file(self, growing: _Growing, run: _Run, *, streamed: bool) -> None:
        growing.spool.add(*run.piece)
        growing.spool.truncates |= bool(len(run.where(_T)))
        for place in map(int, run.where(_O)):
            growing.origin = pgoutput.origin_of(run.frames[place])
        for place in map(int, run.where(_R)):
            frame = bytes(run.frames[place])
            frame = _plain_relation(frame) if streamed else frame
            growing.told[_table(frame)] = (self._arrival(), frame)
            growing.relations.append(frame)
        if not streamed and not growing.xid and len(begins := run.where(_B)):
            growing.xid = pgoutput.begin(run.frames[int(begins[-1])]).xid

    def _finish(self, growing: _Growing, commit: pgoutput.Commit, *, streamed: bool) -> None:
        told = growing.told.items()
        later = {table: found for table, found in told if found[0] > self._known.get(table, (0, b""))[0]}
        self._known |= later
        self._flush()
        transaction = Transaction(
            growing.xid, commit.lsn, commit.end_lsn, commit.time, growing.origin, streamed=streamed
        )
        news = tuple(frame for _, frame in later.values())
        aborted, relations = frozenset(growing.aborted), tuple(growing.relations)
        self._ready.append(Stored(growing.spool, transaction, aborted, growing.known, news, relations))

    def _flush(self) -> None:
        if self._whole:
            one = len(self._whole) == 1
            self._ready.append(Whole(self._whole[0].frames if one else Frames(*joined([r.piece for r in self._whole]))))
            self._whole = []

    def _arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals


def _age(frame: memoryview) -> int:
    """Microseconds from a commit to when the server sent it, both by the server's clock."""
    return pgoutput.sent_at(frame) - pgoutput.commit(frame).time


def _table(frame: bytes) -> int:
    """The oid in a Relation message."""
    return int.from_bytes(frame[HEADER + 1 : HEADER + 5], "big")


def _plain_relation(frame: bytes) -> bytes:
    """A Relation message of a block without the number of its subtransaction."""
    return frame[: HEADER + 1] + frame[HEADER + 5 :]


def tell(decoder: Decoder, relations: Iterable[bytes]) -> None:
    """Let a decoder know tables by their Relation messages."""
    frames = list(relations)
    if frames:
        ends = np.cumsum([len(frame) for frame in frames]).astype(np.int64)
        nobody = replace(Transaction(0, 0, 0, 0), streamed=False)
        for _ in decoder.decode(b"".join(frames), ends, transaction=nobody):
            pass
