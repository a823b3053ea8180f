"""Transactions that are too large for memory, or that come before they are committed: their frames in a file.

The file has no name: whatever ends this process ends it too. Its transaction is decoded from it piece by piece, each
time that it is read.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from headwater.model import Changes, Count, TableId
from headwater.wire.pgoutput import Decoder, Segment, Transaction

PIECE = 2 * 2**20
"""Bytes of frames that are written, and decoded, at a time."""

_HEAD = struct.Struct("<II")


def directory_for(preferred: str) -> str:
    """`preferred` if files can be made there, else the system's."""
    return preferred if os.access(preferred, os.W_OK | os.X_OK) else tempfile.gettempdir()


class Spool:
    """Frames, added in their sequence. `truncates`: whether a TRUNCATE is among them."""

    def __init__(self, directory: str) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=directory, prefix="headwater-spool-")  # noqa: SIM115
        self._waiting: list[tuple[bytes | memoryview, NDArray[np.int64]]] = []
        self._waiting_bytes = 0
        self.nbytes = 0
        self.truncates = False

    def add(self, buffer: bytes | memoryview, ends: NDArray[np.int64]) -> None:
        """`ends`: of the frames, from the beginning of `buffer`."""
        self._waiting.append((buffer, ends))
        self._waiting_bytes += len(buffer)
        self.nbytes += len(buffer)
        if self._waiting_bytes >= PIECE:
            self._flush()

    def pieces(self) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
        """What was added, some frames at a time. Any number of times, one after the other."""
        self._flush()
        self._file.seek(0)
        while head := self._file.read(_HEAD.size):
            count, size = _HEAD.unpack(head)
            ends = np.frombuffer(self._file.read(8 * count), np.int64)
            yield self._file.read(size), ends

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        self._file.seek(0, os.SEEK_END)
        buffer, ends = joined(self._waiting)
        self._file.write(_HEAD.pack(len(ends), len(buffer)))
        self._file.write(ends.tobytes())
        self._file.write(buffer)
        self._waiting, self._waiting_bytes = [], 0


def joined(
    pieces: Sequence[tuple[bytes | memoryview, NDArray[np.int64]]],
) -> tuple[bytes | memoryview, NDArray[np.int64]]:
    """Frames in one buffer."""
    if len(pieces) == 1:
        return pieces[0]
    starts = np.cumsum([0, *(len(buffer) for buffer, _ in pieces)])
    ends = [part + start for (_, part), start in zip(pieces, starts[:-1], strict=True)]
    return b"".join(buffer for buffer, _ in pieces), np.concatenate(ends)


class SpooledChanges:
    """See `model.StoredChanges`. `decoder` makes a decoder that knows what the session knew when the frames began."""

    def __init__(
        self,
        spool: Spool,
        transaction: Transaction,
        aborted: frozenset[int],
        decoder: Callable[[], Decoder],
        shaped: Callable[[Segment], Iterator[Changes]],
    ) -> None:
        self.truncates = spool.truncates
        self._spool = spool
        self._transaction = transaction
        self._aborted = aborted
        self._decoder = decoder
        self._shaped = shaped
        self._counts: dict[TableId, int] | None = None

    def __iter__(self) -> Iterator[Changes]:
        decoder, counts = self._decoder(), Counter[TableId]()
        for buffer, ends in self._spool.pieces():
            for segment in decoder.decode(buffer, ends, transaction=self._transaction, aborted=self._aborted):
                for changes in self._shaped(segment):
                    counts[changes.table] += len(changes)
                    yield changes
        self._counts = counts

    @property
    def complete(self) -> bool:
        """Whether they have been read to their end."""
        return self._counts is not None

    def counts(self) -> list[Count]:
        if not self.complete:
            for _ in self:
                pass
        return [(table, None, number) for table, number in (self._counts or {}).items()]
