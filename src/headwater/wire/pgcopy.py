"""What `COPY (select ...) TO STDOUT (FORMAT binary)` sends, as Arrow record batches.

The format is that of https://www.postgresql.org/docs/current/sql-copy.html: a header, rows of values with their
lengths, and a trailer. Values are those of binary logical replication, and decoded by the same loops (F24).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headwater import native
from headwater.wire.pgoutput_columns import Values
from headwater.wire.pgoutput_messages import Malformed

SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_HEADER = len(SIGNATURE) + 8
_OIDS = 1 << 16
"""The flag of a format that has not been sent since PostgreSQL 12."""
_LEAST = 4096
"""Places that there is room for at first."""


class CopyDecoder:
    """`columns`: name and wire code of each (see `pgoutput.Decoder`). One COPY; used by one thread."""

    def __init__(self, columns: Sequence[tuple[str, str]]) -> None:
        self._columns = list(columns)
        self._names = [name for name, _ in columns]
        self._rows = native.either("headwater.wire.pgcopy_cy")
        self._values = native.either("headwater.wire.pgoutput_values_cy")
        self._room = _LEAST
        self._rest = b""
        self._begun = self.ended = False

    def decode(self, data: bytes | memoryview) -> pa.RecordBatch | None:
        """The rows that are whole with `data`; what is left waits for the next call. Raises `Malformed`."""
        if self._rest:
            data = self._rest + bytes(data)
        view = memoryview(data).cast("B") if not isinstance(data, memoryview) else data
        start = 0 if self._begun else self._header(view)
        if start < 0:
            self._rest = bytes(view)
            return None
        places, count, end = self._scanned(view, start)
        self._rest = b"" if self.ended else bytes(view[end:])
        if not count:
            return None
        bases = np.arange(count, dtype=np.int64) * len(self._columns)
        values = Values(self._values, view, places)
        return pa.RecordBatch.from_arrays(values.arrays(self._columns, bases), names=self._names)

    def finish(self) -> None:
        """Raises `Malformed` unless the trailer has come."""
        if not self.ended:
            raise Malformed(f"COPY ended without its trailer, {len(self._rest)} bytes into a row")

    def _header(self, view: memoryview) -> int:
        """Where the rows begin, or -1 while the header is not whole."""
        if len(view) < _HEADER:
            return -1
        if bytes(view[: len(SIGNATURE)]) != SIGNATURE:
            raise Malformed(f"COPY begins with {bytes(view[: len(SIGNATURE)])!r}, expected {SIGNATURE!r}")
        flags = int.from_bytes(view[len(SIGNATURE) : len(SIGNATURE) + 4], "big")
        extension = int.from_bytes(view[len(SIGNATURE) + 4 : _HEADER], "big")
        if flags & _OIDS:
            raise Malformed("COPY has oids in its rows, which no server since PostgreSQL 12 sends")
        if len(view) < _HEADER + extension:
            return -1
        self._begun = True
        return _HEADER + extension

    def _scanned(self, view: memoryview, start: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int, int]:
        while True:
            places = np.empty(self._room, np.int64)
            reason, count, end = self._rows.scan(view, start, len(self._columns), places.data)
            if reason in self._rows.FAULTS:
                raise Malformed(f"row {count} of {len(view)} bytes of COPY {self._rows.FAULTS[reason]} (at byte {end})")
            if reason != self._rows.ROOM:
                self.ended = reason == self._rows.END
                return places, count, end
            self._room *= 4
