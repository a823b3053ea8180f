"""What a replication connection receives, as one buffer of frames and where each of them ends.

The loop is compiled where it can be: it calls the very libpq that psycopg has loaded, by its addresses, on psycopg's
own connection, so the two never mix libraries. Otherwise the same goes through psycopg. In both, a stream that flows
densely is left to gather for a moment before the socket is read again, because a server sends each message by itself,
and to wake up for each would cost more than the message.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headwater import native

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

NAP, LONG_NAP = 300e-6, 3e-3
"""Seconds for which a dense stream may gather, and a backlog."""

PLENTY = 65_536
"""Bytes: whoever gets as many at once goes on at once."""

WINDOW = 2e-3
DENSE = 30.0
MOST = 200.0
"""A stream is dense with more than `DENSE` messages in about the last `WINDOW` seconds; no more than `MOST` count."""

FUNCTIONS = ("PQgetCopyData", "PQconsumeInput", "PQfreemem")

Collected = tuple[memoryview, NDArray[np.int64], bool]


class Receiver:
    """Of one connection in COPY mode. Used by one thread, which also sends (`pgconn.put_copy_data`)."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._collect = _native(pgconn) or _by_psycopg(pgconn)
        self._poll = select.poll()
        self._poll.register(pgconn.socket, select.POLLIN)
        self._pace = Pace()
        self._ended = False

    def receive(
        self, budget: int, timeout: float, *, hurried: bool = True
    ) -> tuple[memoryview, NDArray[np.int64]] | None:
        """What is there, up to the frame with which `budget` bytes are reached; waits for something, `timeout` seconds.

        Without `hurried` the stream is left to gather, even before its first message. Empty when nothing came. None:
        the server has ended the stream, or the connection is lost: see `pgconn.get_result()` and
        `pgconn.error_message`.
        """
        if self._ended:
            return None
        self._pace.rest(hurried=hurried)
        data, ends, self._ended = self._collect(budget)
        if not len(ends) and not self._ended:
            self._poll.poll(timeout * 1000)
            data, ends, self._ended = self._collect(budget)
        self._pace.got(len(ends), plenty=len(data) >= min(budget, PLENTY))
        return None if self._ended and not len(ends) else (data, ends)


class Pace:
    """Whether to let a stream gather: never at first or after a pause."""

    def __init__(self) -> None:
        self._recent = 0.0
        self._last = 0.0
        self._plenty = False

    def rest(self, *, hurried: bool) -> None:
        if self._plenty:
            return
        if not hurried:
            time.sleep(LONG_NAP)
        elif self._recent > DENSE:
            time.sleep(NAP)

    def got(self, messages: int, *, plenty: bool) -> None:
        """`plenty`: there may be more at once."""
        now = time.monotonic()
        kept = self._recent * math.exp((self._last - now) / WINDOW) if messages else 0.0
        self._recent = min(kept + messages, MOST)
        self._last = now
        self._plenty = plenty


def _native(pgconn: PGconn) -> Callable[[int], Collected] | None:
    module = native.compiled("headwater.drivers.postgres_native")
    found = addresses() if module is not None else None
    if module is None or found is None:
        return None
    module.bind_library(found)
    reads = 2 if pgconn.ssl_in_use else 1  # a record's rest may wait within the TLS library, where no poll sees it

    def collect(budget: int) -> Collected:
        pointer = pgconn.pgconn_ptr  # type: ignore[attr-defined]
        if pointer is None:
            return memoryview(b""), np.empty(0, np.int64), True
        data, ends, ended = module.collect(pointer, budget, reads)
        return data, np.frombuffer(ends, np.int64), ended

    return collect


def _by_psycopg(pgconn: PGconn) -> Callable[[int], Collected]:
    import psycopg

    reads = 2 if pgconn.ssl_in_use else 1

    def collect(budget: int) -> Collected:
        data, ends, empty, before = bytearray(), [], 0, 0
        try:
            while len(data) < budget:
                size, payload = pgconn.get_copy_data(1)
                if size > 0:
                    data += payload
                    ends.append(len(data))
                    continue
                if size < 0:
                    return memoryview(data), np.array(ends, np.int64), True
                empty += len(data) - before < _SMALL
                if empty > reads:
                    break
                before = len(data)
                pgconn.consume_input()
        except psycopg.Error:
            return memoryview(data), np.array(ends, np.int64), True
        return memoryview(data), np.array(ends, np.int64), False

    return collect


_SMALL = 4096


@functools.cache
def addresses() -> Mapping[str, int] | None:
    """Of the functions in the libpq that psycopg uses; None where it cannot be told which one that is."""
    from psycopg import pq

    for path in _candidates(pq.__impl__):
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # only what is loaded already
            found = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in FUNCTIONS}
        except (OSError, AttributeError):
            continue
        if library.PQlibVersion() == pq.version():
            return {name: address for name, address in found.items() if address is not None}
    return None


def _candidates(implementation: str) -> list[str]:
    if implementation != "binary":
        from psycopg.pq.misc import find_libpq_full_path

        return [path for path in (find_libpq_full_path(),) if path]
    import psycopg_binary

    package = Path(next(iter(psycopg_binary.__path__)))
    return [str(path) for path in sorted(package.parent.glob("psycopg_binary.libs/libpq-*"))]
