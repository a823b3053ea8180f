# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, annotation_typing=False
"""Arrays as PostgreSQL prints them (`array_out`), taken apart: `{1,NULL,"with \\"quotes\\""}`.

Only arrays of one dimension that begin at 1 are plain lists; of any other shape nothing is read. The format is that of
https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO. Types for the compiled form are in the `.pxd` beside.
"""

from __future__ import annotations

QUOTE, COMMA, BACKSLASH, OPEN, CLOSE = b'",\\{}'


def split(
    data: memoryview, offsets: memoryview, out: memoryview, ends: memoryview, valid: memoryview, counts: memoryview
) -> int:
    """Take the elements of every row, one behind the other; how many there are.

    data: bytes; offsets: int32, one more than rows: row n is data[offsets[n]:offsets[n + 1]].
    out: bytes, room for as many as data has; ends (int32) and valid (0 or 1): room for as many elements as data has
    commas and rows together. counts: int32, the number of elements of each row, -1 for another shape.
    """
    total = 0
    for row in range(len(counts)):
        counts[row] = _row(data, offsets[row], offsets[row + 1], out, ends, valid, total)
        if counts[row] > 0:
            total += counts[row]
    return total


def _row(
    data: memoryview, start: int, end: int, out: memoryview, ends: memoryview, valid: memoryview, total: int
) -> int:
    """How many elements a row has, -1 for another shape; they are put behind the `total` that are there already."""
    if end - start < 2 or data[start] != OPEN or data[end - 1] != CLOSE:
        return -1
    last, at, n = end - 1, start + 1, total
    while at < last:
        if data[at] == QUOTE:
            valid[n] = 1
            at = _quoted(data, at + 1, last, out, ends, n)
        else:
            valid[n] = not _is_null(data, at, last)
            at = _bare(data, at, last, out, ends, n)
        if at < 0 or (at < last and (data[at] != COMMA or at + 1 == last)):
            return -1
        at += 1
        n += 1
    return n - total


def _quoted(data: memoryview, at: int, last: int, out: memoryview, ends: memoryview, n: int) -> int:
    """Copy element `n`, which begins behind its quote; the place behind the closing one, or -1."""
    to = ends[n - 1] if n else 0
    while at < last:
        byte = data[at]
        if byte == QUOTE:
            ends[n] = to
            return at + 1
        if byte == BACKSLASH:
            at += 1
            if at == last:
                break
            byte = data[at]
        out[to] = byte
        to += 1
        at += 1
    return -1


def _bare(data: memoryview, at: int, last: int, out: memoryview, ends: memoryview, n: int) -> int:
    """Copy element `n`, which has no quotes; the place behind it, or -1 for an array within the array."""
    to = ends[n - 1] if n else 0
    begin = at
    while at < last and data[at] != COMMA:
        byte = data[at]
        if byte in (OPEN, CLOSE, QUOTE, BACKSLASH):
            return -1
        out[to] = byte
        to += 1
        at += 1
    ends[n] = to
    return at if at > begin else -1


def _is_null(data: memoryview, at: int, last: int) -> int:
    """Whether NULL stands here, up to a comma or the end."""
    return (
        last - at >= 4
        and data[at] == 78  # N
        and data[at + 1] == 85
        and data[at + 2] == 76
        and data[at + 3] == 76
        and (at + 4 == last or data[at + 4] == COMMA)
    )
