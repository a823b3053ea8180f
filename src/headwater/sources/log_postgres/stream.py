"""The replication connection: a thread that reads it, and tells the server on its own clock how far the bus has come.

One idea: **nothing that happens behind this thread can cost the connection.** It answers while the bus appends, and
while its buffer is full and it reads no more (F9); what it says is durable is what `confirm` was told, never what it
has received (F2).
"""

from __future__ import annotations

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

BUDGET = 8 * 2**20
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
    """One `START_REPLICATION`. `take`, `confirm`, `ask` and `close`; from the thread that captures, but for `wake`.

    Who waits in `take` reads by itself, for each hand-over between threads costs as much as the mapping of a few rows.
    This thread reads while the other is at work: at once if there is a backlog, else after a while.
    """

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
        self.hurried = True
        """Whether what arrives is wanted at once; a backlog is read in larger pieces."""
        self.speaking = threading.Lock()
        """Held by whoever uses the connection."""
        self.heard_at = time.monotonic()
        """When the server was last heard of."""
        self.taking = False
        """Whether `take` waits, and reads."""
        self._error: Exception | None = None
        self._woken = False
        self._closing = False
        self._confirmed = confirmed
        self.said_at = 0.0
        self._asked = self._answers = False
        self.nudged = Bell()
        self._rung = Bell()
        self._arrivals = select.poll()
        for file in (connection.pgconn.socket, self._rung.fileno):
            self._arrivals.register(file, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="headwater log stream", daemon=True)
        self._thread.start()

    def take(self, timeout: float, least: int = 0) -> Chunk | None:
        """What has arrived since, once `least` bytes have or after `timeout` seconds.

        None if that is nothing, or when woken. Raises what ended the connection.
        """
        self.taking = True
        try:
            was_full = self.full
            self._await(time.monotonic() + timeout, least)
            self._woken = False
        finally:
            self.taking = False
        chunks = self._taken()
        if was_full or not self.hurried:
            self.nudged.ring()
        if not chunks and self._error is not None:
            raise self._error
        return joined(chunks) if chunks else None

    def _await(self, deadline: float, least: int) -> None:
        """Read until there is enough, it is time, or somebody has rung."""
        while self._error is None:
            self._read()
            left = deadline - time.monotonic()
            if (self._held and (self.full or self._held >= least)) or self._error or self._woken or left <= 0:
                return
            self._arrivals.poll(left * 1000)
            self._rung.heard()

    def _read(self) -> None:
        try:
            self.receive()
        except Exception as error:  # noqa: BLE001 - raised once all that had arrived is taken
            self._end(error)

    def _taken(self) -> list[Chunk]:
        chunks, size = list[Chunk](), 0
        with self.speaking:
            while self._chunks and size < AT_ONCE:
                chunks.append(self._chunks.popleft())
                size += len(chunks[-1][0])
            self._held -= size
        return chunks

    def wake(self) -> None:
        """Make `take` return; from any thread."""
        self._woken = True
        self._rung.ring()

    def confirm(self, lsn: int) -> None:
        """The bus holds everything below `lsn`. The server hears of it soon."""
        if lsn > self._confirmed:
            self._confirmed = lsn
            if time.monotonic() - self.said_at >= PAUSE_SECONDS:
                self.nudged.ring()

    def ask(self) -> None:
        """Ask the server for a keepalive."""
        self._asked = self._answers = True
        self.nudged.ring()

    def answer(self) -> None:
        """Say at once how far the bus has come."""
        self._answers = True
        self.nudged.ring()

    def close(self) -> None:
        """What was confirmed has been said when this returns, if the server still listens."""
        self._closing = True
        self.nudged.ring()
        self._thread.join()
        self.nudged.close()
        self._rung.close()

    # the thread

    def _run(self) -> None:
        try:
            _Conversation(self._connection, lambda: self._confirmed, self._every).hold(self)
        except Exception as error:  # noqa: BLE001 - handed to the thread that captures
            self._end(error)

    def _end(self, error: Exception) -> None:
        self._error = error if isinstance(error, HeadwaterError) else translated(error, "")
        self._rung.ring()

    @property
    def closing(self) -> bool:
        """Whether nothing more is to be read."""
        return self._closing or self._error is not None

    def wishes(self) -> tuple[bool, bool]:
        """Whether something is to be said at once, and whether an answer is wanted to it."""
        answers, self._answers = self._answers, False
        asked, self._asked = self._asked, False
        return answers, asked

    @property
    def full(self) -> bool:
        return self._held >= self._budget

    def receive(self) -> None:
        """Read what has arrived, until there is no more or no room."""
        piece = self._budget // 8
        with self.speaking:
            while not self.full:
                chunk = self._receiver.receive(piece, 0.0, hurried=self.hurried)
                if missed := self._missed():
                    raise missed
                if chunk is None:
                    raise self._ended()
                if len(chunk[1]):
                    self._chunks.append(chunk)
                    self._held += len(chunk[0])
                    self.heard_at = time.monotonic()
                if len(chunk[0]) < piece:
                    return


class Bell:
    """Wakes whoever polls `fileno`; `ring` from any thread, behind `close` too, and from a signal handler within it."""

    def __init__(self) -> None:
        self.fileno, self._write = os.pipe()
        os.set_blocking(self.fileno, False)
        os.set_blocking(self._write, False)
        self._rings = False
        self._open = True
        self._lock = threading.RLock()

    def ring(self) -> None:
        with self._lock:  # the number of a file that is closed may soon be another's
            if not self._open or self._rings:
                return
            self._rings = True
            os.write(self._write, b"x")

    def heard(self) -> bool:
        """Whether it has rung; it is silent then."""
        if not self._rings:
            return False
        with self._lock:
            self._rings = False
            os.read(self.fileno, 1)
        return True

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self.fileno)
            os.close(self._write)


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
    """When to say what, and when to read. `confirmed`: the LSN below which everything is durable."""

    def __init__(self, connection: psycopg.Connection, confirmed: Callable[[], int], every: float) -> None:
        self._every = every
        self._pgconn = connection.pgconn
        self._confirmed = confirmed
        self._said = 0
        self._said_at = self._pleaded_at = 0.0

    def hold(self, stream: Stream) -> None:
        while not stream.closing:
            nudged = self._wait(stream)
            if not stream.taking and not (stream.hurried and nudged):
                stream.receive()
            if not stream.closing:
                self._speak(stream)
        with stream.speaking:
            self._status(False)

    def _wait(self, stream: Stream) -> bool:
        """Until there is something to do; whether somebody has rung."""
        poll = select.poll()
        idle = stream.full or stream.taking or stream.hurried
        for file in (stream.nudged.fileno, *([] if idle else [self._pgconn.socket])):
            poll.register(file, select.POLLIN)
        poll.poll(self._every / 5 * 1000)
        return stream.nudged.heard()

    def _speak(self, stream: Stream) -> None:
        now = time.monotonic()
        if stream.full:
            stream.heard_at = now
        silence = now - stream.heard_at
        if silence > SILENCE_SECONDS:
            raise NotConnected(
                f"the server has been silent for {silence:.0f} seconds: the connection is taken for dead"
            )
        answers, asks = stream.wishes()
        pleads = silence > SILENCE_SECONDS / 2 and self._pleaded_at < stream.heard_at
        pause = now - self._said_at
        news = self._confirmed() > self._said and pause >= PAUSE_SECONDS
        if answers or pleads or news or pause >= self._every:
            with stream.speaking:
                self._status(asks or pleads)
            self._pleaded_at = now if pleads else self._pleaded_at
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
