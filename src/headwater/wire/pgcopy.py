"""What `COPY (select ...) TO STDOUT (FORMAT binary)` sends, as Arrow record batches.

The format is that of https://www.postgresql.org/docs/current/sql-copy.html: a header, rows of values with their
lengths, and a trailer. Values are those of binary logical replication, and decoded by the same loops (F24); where they
are compiled, most rows are decoded by `pgcopy_rows`, which makes the same of them in one go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headwater import native
from headwater.wire.pgcopy_rows import Rows, decoder_of, plain
from headwater.wire.pgoutput_columns import Values
from headwater.wire.pgoutput_messages import Malformed

SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_HEADER = len(SIGNATURE) + 8
_OIDS = 1 << 16
"""The flag of a format that has not been sent since PostgreSQL 12."""
_LEAST = 4096
"""Places that there is room for at first."""


class CopyDecoder:
    """`columns`: name and wire code of each (see `pgoutput.Decoder`). One COPY; used by one thread.

    A code may also be `numeric(p,s)`: a number whose declared precision and scale these are. It comes as decimal128 of
    those where that is cheaper, else as the text, for all rows of a batch.
    """

    def __init__(self, columns: Sequence[tuple[str, str]]) -> None:
        self._columns = [(name, plain(code)) for name, code in columns]
        self._names = [name for name, _ in columns]
        self._rows = native.either("headwater.wire.pgcopy_cy")
        self._values = native.either("headwater.wire.pgoutput_values_cy")
        self._at_once = decoder_of(columns)
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
        found = self._at_once(view, start) if self._at_once is not None else None
        if found is None:
            found = self._column_by_column(view, start)
        self.ended = found.ended
        self._rest = b"" if self.ended else bytes(view[found.end :])
        return pa.RecordBatch.from_arrays(found.arrays, names=self._names) if found.count else None

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

    def _column_by_column(self, view: memoryview, start: int) -> Rows:
        while True:
            places = np.empty(self._room, np.int64)
            reason, count, end = self._rows.scan(view, start, len(self._columns), places.data)
            if reason in self._rows.FAULTS:
                raise Malformed(f"row {count} of {len(view)} bytes of COPY {self._rows.FAULTS[reason]} (at byte {end})")
            if reason != self._rows.ROOM:
                bases = np.arange(count, dtype=np.int64) * len(self._columns)
                arrays = Values(self._values, view, places).arrays(self._columns, bases) if count else []
                return Rows(count, end, reason == self._rows.END, arrays)
            self._room *= 4
