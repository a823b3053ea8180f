"""The replication connection: a thread that reads it, and tells the server on its own clock how far the bus has come.

One idea: **nothing that happens behind this thread can cost the connection.** It answers while the bus appends, and
while its buffer is full and it reads no more (F9); what it says is durable is what `confirm` was told, never what it
has received (F2).
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headwater.dialects.postgres_options import Options
from headwater.drivers.postgres import literal, quoted, translated
from headwater.drivers.postgres_receiver import Receiver
from headwater.errors import GapError, HeadwaterError, NotConnected, SourceError
from headwater.sources.log_postgres.begin import Setting
from headwater.sources.log_postgres.position import Place, lsn_text
from headwater.sources.log_postgres.slot import ask, result_of
from headwater.sources.log_postgres.spool import joined

if TYPE_CHECKING:
    import psycopg
    from psycopg.errors import Diagnostic

BUDGET = 16 * 2**20
"""Bytes that wait to be taken before the thread reads no more."""

AT_ONCE = 4 * 2**20
"""Bytes that are taken together."""

STATUS_SECONDS = 5.0
PAUSE_SECONDS = 0.05
"""Between two status updates, unless the server asks."""
SILENCE_SECONDS = 60.0
"""After half of it the server is asked for an answer; after all of it the connection is taken for dead (F11)."""

UNDEFINED = "42704"
"""The SQLSTATE of an object that does not exist: while the log is decoded, only publications are looked up by name."""

ENCODING = ("22021", "22P05")
"""SQLSTATEs of a text that is none in the encoding it is sent in."""

LASTING = ("0A", "22", "42", "54", "XX")
"""SQLSTATEs (their beginnings) of what the server would say again at the same place of the log."""

PASSES_OVER = 180000
"""The first server that goes on without a publication that is not there, and only warns (`LoadPublications`)."""

ABSENT = "55000"
"""The SQLSTATE of that warning."""

POSTGRES_EPOCH = 946_684_800

Chunk = tuple[bytes | memoryview, NDArray[np.int64]]
"""Frames, and where each ends."""


class Stream:
    """One `START_REPLICATION`. `take`, `confirm`, `ask` and `close`; from the thread that captures, but for `wake`."""

    def __init__(
        self,
        connection: psycopg.Connection,
        receiver: Receiver,
        confirmed: int,
        *,
        ended: Callable[[], HeadwaterError],
        missed: Callable[[], HeadwaterError | None] = lambda: None,
        every: float = STATUS_SECONDS,
    ) -> None:
        self._ended = ended
        self._missed = missed
        self._every = every
        self._connection = connection
        self._receiver = receiver
        self._budget = BUDGET
        self._chunks: deque[Chunk] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._woken = False
        self._closing = False
        self.drained = False
        """Whether everything that had arrived has been read."""
        self._confirmed = confirmed
        self.said_at = 0.0
        self._asked = self._answers = False
        self._nudged, self._nudge = os.pipe()
        os.set_blocking(self._nudged, False)
        os.set_blocking(self._nudge, False)
        self._thread = threading.Thread(target=self._run, name="headwater log stream", daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> Chunk | None:
        """What has arrived since; None after `timeout` seconds, or when woken. Raises what ended the connection."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._error or self._woken, timeout)
            self._woken = False
            if self._chunks:
                was_full = self._held >= self._budget
                chunks = self._taken()
            elif self._error is not None:
                raise self._error
            else:
                return None
        if was_full:
            self._prod()
        return joined(chunks)

    def _taken(self) -> list[Chunk]:
        chunks, size = [self._chunks.popleft()], 0
        while self._chunks and (size := size + len(chunks[-1][0])) < AT_ONCE:
            chunks.append(self._chunks.popleft())
        self._held -= sum(len(data) for data, _ in chunks)
        return chunks

    def wake(self) -> None:
        """Make `take` return; from any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def confirm(self, lsn: int) -> None:
        """The bus holds everything below `lsn`. The server hears of it soon."""
        if lsn > self._confirmed:
            self._confirmed = lsn
            if time.monotonic() - self.said_at >= PAUSE_SECONDS:
                self._prod()

    def ask(self) -> None:
        """Ask the server for a keepalive."""
        self._asked = self._answers = True
        self._prod()

    def answer(self) -> None:
        """Say at once how far the bus has come."""
        self._answers = True
        self._prod()

    def close(self) -> None:
        """What was confirmed has been said when this returns, if the server still listens."""
        self._closing = True
        self._prod()
        self._thread.join()
        os.close(self._nudged)
        os.close(self._nudge)

    def _prod(self) -> None:
        with contextlib.suppress(BlockingIOError):  # enough of them wait
            os.write(self._nudge, b"x")

    # the thread

    def _run(self) -> None:
        try:
            _Conversation(self._connection, lambda: self._confirmed, self._every).hold(self)
        except Exception as error:  # noqa: BLE001 - handed to the thread that captures
            self._end(error)

    def _end(self, error: Exception) -> None:
        known = error if isinstance(error, HeadwaterError) else translated(error, "")
        with self._changed:
            self._error = known
            self._changed.notify_all()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def nudged(self) -> int:
        return self._nudged

    def wishes(self) -> tuple[bool, bool]:
        """Whether something is to be said at once, and whether an answer is wanted to it."""
        answers, self._answers = self._answers, False
        asked, self._asked = self._asked, False
        return answers, asked

    @property
    def full(self) -> bool:
        return self._held >= self._budget

    def receive(self) -> bool:
        """Read what has arrived, until there is no more or no room; whether there was anything."""
        some = False
        while not self.full:
            chunk = self._receiver.receive(self._budget // 16, 0.0)
            if missed := self._missed():
                raise missed
            if chunk is None:
                raise self._ended()
            self.drained = not len(chunk[1])
            if self.drained:
                break
            some = True
            with self._changed:
                self._chunks.append(chunk)
                self._held += len(chunk[0])
                self._changed.notify_all()
        return some


def _ended(connection: psycopg.Connection, publications: str, capture: str) -> HeadwaterError:
    """A server that has ended the stream is asked again: if it has nothing for us any more, the next start says so.

    But it decodes the log with the catalog of its time, and will stumble each time where a publication was not there,
    or over a value that it cannot send. What it was is told by its SQLSTATE: the words are in the server's language.
    """
    from psycopg.pq import DiagnosticField

    result = connection.pgconn.get_result()
    state = ((result.error_field(DiagnosticField.SQLSTATE) if result is not None else None) or b"").decode()
    why = (result.error_message if result is not None else connection.pgconn.error_message) or b""
    text = why.decode(errors="replace").strip() or "no reason given"
    if state == UNDEFINED:
        return _absent(publications, capture, text)
    if not state.startswith(LASTING):
        return NotConnected(f"the server has ended the replication: {text}")
    repair = f"`headwater repair {capture}` makes a new slot behind it and compares every table with its stream"
    cause = "mend what it names"
    if state in ENCODING:
        cause = "the database's encoding is one that promises nothing (SQL_ASCII): mend the value in its table"
    return SourceError(f"the server cannot send its log (SQLSTATE {state}): {text}", hint=f"{cause}; then {repair}")


def _absent(publications: str, capture: str, text: str) -> GapError:
    return GapError(
        f"a publication of {publications} was not there while the log was written, so it cannot be read: {text}",
        hint=f"`headwater repair {capture}` makes a new slot and compares every table with its stream",
    )


def _listen(
    connection: psycopg.Connection, publications: tuple[str, ...], capture: str
) -> Callable[[], GapError | None]:
    """What the server says, instead of ending the stream, of changes that it leaves out."""
    warnings: list[str] = []

    def take(notice: Diagnostic) -> None:
        text = notice.message_primary or ""
        if notice.sqlstate == ABSENT and any(name in text for name in publications):
            warnings.append(text)

    if connection.info.server_version >= PASSES_OVER:
        ask(connection, "SET client_min_messages = 'warning'")
        connection.add_notice_handler(take)
    return lambda: _absent(", ".join(publications), capture, warnings[0]) if warnings else None


class _Conversation:
    """When to say what. `confirmed`: the LSN below which everything is durable."""

    def __init__(self, connection: psycopg.Connection, confirmed: Callable[[], int], every: float) -> None:
        self._every = every
        self._pgconn = connection.pgconn
        self._confirmed = confirmed
        self._said = 0
        self._said_at = 0.0
        self._heard_at = time.monotonic()
        self._pleaded = False

    def hold(self, stream: Stream) -> None:
        while not stream.closing:
            self._wait(stream)
            if stream.receive():
                self._heard_at, self._pleaded = time.monotonic(), False
            self._speak(stream)
        self._status(False)

    def _wait(self, stream: Stream) -> None:
        poll = select.poll()
        for file in (stream.nudged, *([] if stream.full else [self._pgconn.socket])):
            poll.register(file, select.POLLIN)
        patience = self._every / 5 if stream.full or stream.drained else 0.0  # what libpq holds, no socket tells
        if any(file == stream.nudged for file, _ in poll.poll(patience * 1000)):
            os.read(stream.nudged, 4096)

    def _speak(self, stream: Stream) -> None:
        now = time.monotonic()
        silence = 0.0 if stream.full else now - self._heard_at
        if stream.full:
            self._heard_at = now
        if silence > SILENCE_SECONDS:
            raise NotConnected(
                f"the server has been silent for {silence:.0f} seconds: the connection is taken for dead"
            )
        answers, asks = stream.wishes()
        pleads = silence > SILENCE_SECONDS / 2 and not self._pleaded
        self._pleaded |= pleads
        pause = now - self._said_at
        news = self._confirmed() > self._said and pause >= PAUSE_SECONDS
        if answers or pleads or news or pause >= self._every:
            self._status(asks or pleads)
            stream.said_at = self._said_at

    def _status(self, reply: bool) -> None:
        """A standby status update: written, flushed and applied are one for us."""
        lsn = self._confirmed()
        clock = int((time.time() - POSTGRES_EPOCH) * 1_000_000)
        self._pgconn.put_copy_data(struct.pack(">cQQQqB", b"r", lsn, lsn, lsn, clock, reply))
        self._pgconn.flush()
        self._said, self._said_at = lsn, time.monotonic()


def start(
    connection: psycopg.Connection, setting: Setting, place: Place, publications: tuple[str, ...], *, binary: bool
) -> Stream:
    """From `place` on; commits below its LSN stay away, the server may still send some that are in the bus."""
    from psycopg import errors, pq

    command = start_command(connection.info.server_version, setting.options, place, publications, binary=binary)
    every = _status_every(connection)
    missed = _listen(connection, publications, setting.name)
    try:
        connection.pgconn.send_query(command.encode())
        result = result_of(connection, command)
    except connection.Error as error:
        raise translated(error, "") from error
    if result is None:
        raise NotConnected("the server ended the connection instead of beginning the replication")
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise translated(errors.error_from_result(result), "")

    def ended() -> HeadwaterError:
        return _ended(connection, ", ".join(publications), setting.name)

    return Stream(connection, Receiver(connection.pgconn), place.lsn, ended=ended, missed=missed, every=every)


def start_command(version: int, options: Options, place: Place, publications: tuple[str, ...], *, binary: bool) -> str:
    """`START_REPLICATION` as far as the server's `version` goes."""
    chosen = {"proto_version": "1", "publication_names": ",".join(map(quoted, publications))}
    if version >= 140000:
        chosen |= {"messages": "true"}
        chosen |= {"binary": "true"} if binary else {}
        chosen |= {"proto_version": "2", "streaming": "on"} if options.streaming == "auto" else {}
    if version >= 160000:
        chosen |= {"origin": options.origin}
    listed = ", ".join(f"{quoted(name)} {literal(value)}" for name, value in chosen.items())
    return f"START_REPLICATION SLOT {quoted(place.slot)} LOGICAL {lsn_text(place.lsn)} ({listed})"


def _status_every(connection: psycopg.Connection) -> float:
    """A server that waits less long for a sign of life gets it more often."""
    ((timeout,),) = ask(connection, "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'")
    return min(STATUS_SECONDS, int(timeout) / 4000) if int(timeout) else STATUS_SECONDS
