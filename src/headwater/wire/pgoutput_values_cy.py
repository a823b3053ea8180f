# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# mypy: disable-error-code="untyped-decorator, valid-type, no-any-return"
"""The loops of the `pgoutput` decoder over the values of one column, from messages into the memory of an Arrow array.

Like `pgoutput_cy` in pure Python mode. A value begins at `places[bases[row] + column]`, a negative base or place being
NULL; its length, which `Scan` checked, lies in the four bytes before it. A result below zero is -1 - row of a value
that cannot be of its type. `valid` is one byte per row.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from headwater.wire import uncompiled as cython

if cython.compiled:
    from cython.cimports.libc.string import memcpy


def fixed(
    data: cython.const[cython.uchar][::1],
    places: cython.const[cython.longlong][::1],
    bases: cython.const[cython.longlong][::1],
    column: cython.longlong,
    width: cython.longlong,
    out: cython.uchar[::1],
    valid: cython.uchar[::1],
) -> int:
    """Values of `width` bytes as they are; NULL as zeros. Returns how many are NULL."""
    row: cython.longlong
    place: cython.longlong
    nulls: cython.longlong = 0
    bad: cython.longlong = -1
    with cython.nogil:
        for row in range(bases.shape[0]):
            place = places[bases[row] + column] if bases[row] >= 0 else -1
            if place < 0:
                valid[row] = 0
                nulls += 1
                fill(out, row * width, width, 0)
            elif word(data, place - 4) == width:
                valid[row] = 1
                copy(data, place, out, row * width, width)
            else:
                bad = row
                break
    return -1 - bad if bad >= 0 else nulls


def sizes(
    data: cython.const[cython.uchar][::1],
    places: cython.const[cython.longlong][::1],
    bases: cython.const[cython.longlong][::1],
    column: cython.longlong,
    version: cython.longlong,
    offsets: cython.int[::1],
    valid: cython.uchar[::1],
) -> int:
    """Where each value's bytes begin and end, in `offsets`, the first of which is given; how many are NULL.

    `version`: each value begins with this byte, which is not counted; 0 for none.
    """
    row: cython.longlong
    place: cython.longlong
    size: cython.longlong
    total: cython.longlong = offsets[0]
    nulls: cython.longlong = 0
    bad: cython.longlong = -1
    with cython.nogil:
        for row in range(bases.shape[0]):
            place = places[bases[row] + column] if bases[row] >= 0 else -1
            if place < 0:
                valid[row] = 0
                nulls += 1
            else:
                valid[row] = 1
                size = word(data, place - 4)
                if version > 0:
                    if size == 0 or data[place] != version:
                        bad = row
                        break
                    size -= 1
                total += size
            offsets[row + 1] = total
    return -1 - bad if bad >= 0 else nulls


def texts(
    data: cython.const[cython.uchar][::1],
    places: cython.const[cython.longlong][::1],
    bases: cython.const[cython.longlong][::1],
    column: cython.longlong,
    version: cython.longlong,
    offsets: cython.const[cython.int][::1],
    out: cython.uchar[::1],
) -> None:
    """The bytes that `sizes` has measured."""
    row: cython.longlong
    size: cython.longlong
    skipped: cython.longlong = 1 if version > 0 else 0
    with cython.nogil:
        for row in range(bases.shape[0]):
            size = offsets[row + 1] - offsets[row]
            if size > 0:
                copy(data, places[bases[row] + column] + skipped, out, offsets[row], size)


def numeric_room(
    data: cython.const[cython.uchar][::1],
    places: cython.const[cython.longlong][::1],
    bases: cython.const[cython.longlong][::1],
    column: cython.longlong,
) -> int:
    """How many bytes the numbers of a column take as text at most."""
    row: cython.longlong
    place: cython.longlong
    size: cython.longlong
    total: cython.longlong = 0
    bad: cython.longlong = -1
    with cython.nogil:
        for row in range(bases.shape[0]):
            place = places[bases[row] + column] if bases[row] >= 0 else -1
            if place >= 0:
                size = numeric_size(data, place, word(data, place - 4))
                if size < 0:
                    bad = row
                    break
                total += size
    return -1 - bad if bad >= 0 else total


def numerics(
    data: cython.const[cython.uchar][::1],
    places: cython.const[cython.longlong][::1],
    bases: cython.const[cython.longlong][::1],
    column: cython.longlong,
    offsets: cython.int[::1],
    out: cython.uchar[::1],
    valid: cython.uchar[::1],
) -> int:
    """The numbers that `numeric_room` has measured, as the server prints them; offsets and result as with `sizes`."""
    row: cython.longlong
    place: cython.longlong
    at: cython.longlong = offsets[0]
    nulls: cython.longlong = 0
    with cython.nogil:
        for row in range(bases.shape[0]):
            place = places[bases[row] + column] if bases[row] >= 0 else -1
            if place < 0:
                valid[row] = 0
                nulls += 1
            else:
                valid[row] = 1
                at = numeric_text(data, place, out, at)
            offsets[row + 1] = at
    return nulls


@cython.cfunc
@cython.exceptval(check=False)
@cython.nogil
def numeric_size(
    data: cython.const[cython.uchar][::1], place: cython.longlong, size: cython.longlong
) -> cython.longlong:
    """The most bytes that a number takes as text; -1 if it is none.

    A number is four of two bytes (how many digits follow; the power of 10000 of the first, signed; the sign; how many
    decimals to print) and the digits, each below 10000, of two bytes (`numeric_send` in PostgreSQL's numeric.c).
    """
    count: cython.longlong
    weight: cython.longlong
    sign: cython.longlong
    scale: cython.longlong
    digit: cython.longlong
    if size < 8:
        return -1
    count = half(data, place)
    sign = half(data, place + 4)
    scale = half(data, place + 6)
    if size != 8 + 2 * count or scale > 16383:
        return -1
    if sign != 0 and sign != 0x4000:
        return 9 if sign == 0xC000 or sign == 0xD000 or sign == 0xF000 else -1
    for digit in range(count):
        if half(data, place + 8 + 2 * digit) > 9999:
            return -1
    weight = signed(half(data, place + 2))
    return 6 + scale + (4 * (weight + 1) if weight > 0 else 4)


@cython.cfunc
@cython.exceptval(check=False)
@cython.nogil
def numeric_text(
    data: cython.const[cython.uchar][::1], place: cython.longlong, out: cython.uchar[::1], at: cython.longlong
) -> cython.longlong:
    """Writes one number and returns where it ends."""
    count: cython.longlong = half(data, place)
    weight: cython.longlong = signed(half(data, place + 2))
    sign: cython.longlong = half(data, place + 4)
    scale: cython.longlong = half(data, place + 6)
    end: cython.longlong
    index: cython.longlong
    if sign != 0 and sign != 0x4000:
        return special(sign, out, at)
    if sign != 0:
        out[at] = ord("-")
        at += 1
    if weight < 0:
        out[at] = ord("0")
        at += 1
    else:
        at = leading(digit_at(data, place, count, 0), out, at)
        for index in range(1, weight + 1):
            at = four(digit_at(data, place, count, index), out, at)
    if scale > 0:
        out[at] = ord(".")
        at += 1
        end = at + scale
        index = weight + 1
        while at < end:
            at = four(digit_at(data, place, count, index), out, at)
            index += 1
        at = end
    return at


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def digit_at(
    data: cython.const[cython.uchar][::1], place: cython.longlong, count: cython.longlong, index: cython.longlong
) -> cython.longlong:
    """A digit to the base of 10000; those that were not sent are zero."""
    return half(data, place + 8 + 2 * index) if 0 <= index < count else 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def four(digit: cython.longlong, out: cython.uchar[::1], at: cython.longlong) -> cython.longlong:
    out[at] = 48 + digit // 1000
    out[at + 1] = 48 + digit // 100 % 10
    out[at + 2] = 48 + digit // 10 % 10
    out[at + 3] = 48 + digit % 10
    return at + 4


@cython.cfunc
@cython.exceptval(check=False)
@cython.nogil
def leading(digit: cython.longlong, out: cython.uchar[::1], at: cython.longlong) -> cython.longlong:
    """Without zeros before it."""
    power: cython.longlong = 1000
    while power > 1 and digit < power:
        power = power // 10
    while power > 0:
        out[at] = 48 + digit // power % 10
        at += 1
        power = power // 10
    return at


@cython.cfunc
@cython.exceptval(check=False)
@cython.nogil
def special(sign: cython.longlong, out: cython.uchar[::1], at: cython.longlong) -> cython.longlong:
    """NaN, Infinity or -Infinity."""
    if sign == 0xC000:
        out[at] = out[at + 2] = ord("N")
        out[at + 1] = ord("a")
        return at + 3
    if sign == 0xF000:
        out[at] = ord("-")
        at += 1
    out[at] = ord("I")
    out[at + 1] = out[at + 4] = ord("n")
    out[at + 2] = ord("f")
    out[at + 3] = out[at + 5] = ord("i")
    out[at + 6] = ord("t")
    out[at + 7] = ord("y")
    return at + 8


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def copy(
    data: cython.const[cython.uchar][::1],
    place: cython.longlong,
    out: cython.uchar[::1],
    at: cython.longlong,
    size: cython.longlong,
) -> cython.void:
    if cython.compiled:
        if size == 8:
            memcpy(cython.address(out[at]), cython.address(data[place]), 8)
        elif size == 4:
            memcpy(cython.address(out[at]), cython.address(data[place]), 4)
        else:
            memcpy(cython.address(out[at]), cython.address(data[place]), size)
    else:
        out[at : at + size] = data[place : place + size]


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def fill(out: cython.uchar[::1], at: cython.longlong, size: cython.longlong, byte: cython.int) -> cython.void:
    index: cython.longlong
    for index in range(at, at + size):
        out[index] = byte


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def signed(unsigned: cython.longlong) -> cython.longlong:
    """Two bytes as a number with a sign."""
    return unsigned - 65536 if unsigned >= 32768 else unsigned


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def half(data: cython.const[cython.uchar][::1], at: cython.longlong) -> cython.longlong:
    """Two bytes without a sign."""
    high: cython.longlong = data[at]
    low: cython.longlong = data[at + 1]
    return (high << 8) | low


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def word(data: cython.const[cython.uchar][::1], at: cython.longlong) -> cython.longlong:
    """Four bytes without a sign."""
    return (half(data, at) << 16) | half(data, at + 2)
