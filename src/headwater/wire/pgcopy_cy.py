# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# mypy: disable-error-code="untyped-decorator, valid-type, no-any-return"
"""The loop over the rows of `COPY ... (FORMAT binary)`: where each value begins.

Cython in pure Python mode, as `pgoutput_cy`: without a compiler the same lines run as they are. A value's length, which
is checked here, lies in the four bytes before its place; `pgoutput_values_cy` reads values by their places alone.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from headwater.wire import uncompiled as cython

NULL = -1  # in `places`
MORE, END, ROOM = 0, 1, 2  # why `scan` stopped: the next row is not whole; the trailer; `places` is full
FAULTS = {10: "has another number of columns than the statement", 11: "has a value of a negative length"}


def scan(  # noqa: C901 - one loop, which a function call for each value would slow down
    data: cython.const[cython.uchar][::1],
    start: cython.longlong,
    columns: cython.longlong,
    places: cython.longlong[::1],
) -> tuple[int, int, int]:
    """Whole rows from `start` on: the reason to stop, how many there were, and where the next one begins.

    `places` gets one element for each value, row by row.
    """
    size: cython.longlong = data.shape[0]
    row: cython.longlong = start
    at: cython.longlong
    length: cython.longlong
    column: cython.longlong
    written: cython.longlong = 0
    reason: cython.int = 0
    with cython.nogil:
        while reason == 0:
            if size - row < 2:
                break
            length = (data[row] << 8) | data[row + 1]
            if length == 65535:
                reason = 1
                break
            if length != columns:
                reason = 10
                break
            if places.shape[0] - written < columns:
                reason = 2
                break
            at = row + 2
            for column in range(columns):
                if size - at < 4:
                    at = -1
                    break
                if data[at] >= 128:  # a negative number: only -1 is one that is sent
                    if data[at] & data[at + 1] & data[at + 2] & data[at + 3] != 255:
                        reason = 11
                        break
                    places[written + column] = -1
                    at += 4
                    continue
                length = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3]
                at += 4
                if size - at < length:
                    at = -1
                    break
                places[written + column] = at
                at += length
            if at < 0 or reason != 0:
                break
            written += columns
            row = at
    return reason, written // columns if columns else 0, row
