# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Rows of `COPY ... (FORMAT binary)` into the memory of Arrow arrays, all columns of a row at a time.

An addition to the plain loops (`pgcopy_cy`, `pgoutput_values_cy`), which go over the rows once for each column: the
bytes are read once here. What is not as expected, however little, is left to those: `rows` then returns None.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from headwater.wire.byte_order cimport half, number, signed_half, word

FIXED, BYTES, DECIMAL, PLACE = 0, 1, 2, 3
"""What a column gets of a value: so many bytes, in the machine's order; any number of them; a decimal128 of at most 18
digits; or (int64) where it begins, below zero for NULL.
"""
MORE, END = 0, 1
"""Why there are no more rows: the next one is not whole; the trailer."""

cdef enum:
    _FIXED = 0
    _BYTES = 1
    _DECIMAL = 2
    _PLACE = 3
    _MORE = 0
    _END = 1
    _ODD = 2
    _NO_MEMORY = 3

cdef int64_t _BASE = 10000
cdef int64_t _FULL = 900000000000000  # times _BASE, and a digit more, is less than 2**63
cdef int64_t _FIRST_ROWS = 1024


cdef struct Column:
    int kind
    int version  # BYTES: what each value begins with; 0: nothing
    int scale
    int groups  # DECIMAL: digits to the base of 10000 behind the point
    int64_t divisor, limit  # DECIMAL: of the number with so many digits; what the result is below
    int64_t width
    int64_t room  # of `values`, in bytes, where their number differs
    bint nulls
    unsigned char* values
    unsigned char* valid
    int32_t* offsets


cdef class Memory:
    """Memory from malloc, as a buffer; freed with the last view of it."""

    cdef void* pointer
    cdef int64_t size

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.pointer if self.pointer is not NULL else <char*>b"", self.size, 0, flags)

    def __dealloc__(self):
        free(self.pointer)


cdef object handed_over(void** pointer, int64_t size):
    """A buffer of so many bytes; the rest is given back."""
    cdef Memory made = Memory.__new__(Memory)
    cdef void* smaller = realloc(pointer[0], size if size > 0 else 1)
    made.pointer = smaller if smaller is not NULL else pointer[0]
    made.size = size
    pointer[0] = NULL
    return made


cdef inline void turned(const unsigned char* data, unsigned char* out, int64_t width) noexcept nogil:
    """A number from the wire's order to the machine's."""
    cdef uint16_t two
    cdef uint32_t four
    cdef uint64_t eight
    if width == 8:
        eight = number(data)
        memcpy(out, &eight, 8)
    elif width == 4:
        four = word(data)
        memcpy(out, &four, 4)
    elif width == 2:
        two = <uint16_t>half(data)
        memcpy(out, &two, 2)
    else:
        memcpy(out, data, width)


cdef bint decimal(const unsigned char* data, int64_t size, Column* column, unsigned char* out) noexcept nogil:
    """A number as decimal128; False for what is none, or does not fit. For the format see `pgoutput_values_cy`."""
    cdef int64_t count, weight, sign, position, digit
    cdef int64_t value = 0
    cdef int64_t high
    if size < 8:
        return False
    count, weight, sign = half(data), signed_half(data + 2), half(data + 4)
    if size != 8 + 2 * count or (sign != 0 and sign != 0x4000) or half(data + 6) != column.scale:
        return False
    if count > weight + 1 + column.groups:
        return False
    position = weight
    while position >= -column.groups:
        digit = half(data + 8 + 2 * (weight - position)) if weight - position < count else 0
        if digit >= _BASE or value > _FULL:
            return False
        value = value * _BASE + digit
        position -= 1
    if value % column.divisor != 0:
        return False
    value = value // column.divisor
    if value >= column.limit:
        return False
    value = -value if sign != 0 else value
    high = -1 if value < 0 else 0
    memcpy(out, &value, 8)
    memcpy(out + 8, &high, 8)
    return True


cdef bint room_for_rows(Column* columns, int64_t count, int64_t rows, int64_t room) noexcept nogil:
    """Room for more rows in every column; `rows` are there."""
    cdef Column* column
    cdef void* larger
    cdef int64_t index
    for index in range(count):
        column = &columns[index]
        larger = realloc(column.valid, room)
        if larger is NULL:
            return False
        column.valid = <unsigned char*>larger
        memset(column.valid + rows, 1, room - rows)
        if column.kind == _BYTES:
            larger = realloc(column.offsets, (room + 1) * sizeof(int32_t))
            if larger is NULL:
                return False
            column.offsets = <int32_t*>larger
            if rows == 0:
                column.offsets[0] = 0
        else:
            larger = realloc(column.values, room * column.width)
            if larger is NULL:
                return False
            column.values = <unsigned char*>larger
    return True


cdef int bytes_added(Column* column, int64_t row, const unsigned char* data, int64_t size) noexcept nogil:
    cdef int64_t used = column.offsets[row]
    cdef int64_t room = column.room
    cdef void* larger
    if column.version != 0:
        if size == 0 or data[0] != column.version:
            return _ODD
        data += 1
        size -= 1
    if used + size > room:
        if used + size > INT32_MAX:
            return _ODD
        while room < used + size:
            room += room
        larger = realloc(column.values, room)
        if larger is NULL:
            return _NO_MEMORY
        column.values = <unsigned char*>larger
        column.room = room
    memcpy(column.values + used, data, size)
    column.offsets[row + 1] = <int32_t>(used + size)
    return 0


cdef void null_added(Column* column, int64_t row) noexcept nogil:
    column.nulls = True
    column.valid[row] = 0
    if column.kind == _BYTES:
        column.offsets[row + 1] = column.offsets[row]
    else:
        memset(column.values + row * column.width, 255 if column.kind == _PLACE else 0, column.width)


cdef inline int added(Column* column, int64_t row, const unsigned char* data, int64_t at, int64_t size) noexcept nogil:
    """A value, which begins at `at`. Other than 0: why not."""
    if column.kind == _BYTES:
        return bytes_added(column, row, data + at, size)
    if column.kind == _FIXED:
        if size != column.width:
            return _ODD
        turned(data + at, column.values + row * column.width, size)
    elif column.kind == _PLACE:
        memcpy(column.values + row * 8, &at, 8)
    elif not decimal(data + at, size, column, column.values + row * 16):
        return _ODD
    return 0


cdef int taken(
    const unsigned char* data, int64_t size, Column* columns, int64_t width, int64_t* at, int64_t* rows
) noexcept nogil:
    """Whole rows, from `at` on, where it then is; why it went no further."""
    cdef int64_t place, column, length
    cdef int64_t room = 0
    cdef int found
    while size - at[0] >= 2:
        place = half(data + at[0])
        if place == 65535:
            return _END
        if place != width:
            return _ODD
        if rows[0] == room:
            room = max(room + room, _FIRST_ROWS)
            if not room_for_rows(columns, width, rows[0], room):
                return _NO_MEMORY
        place = at[0] + 2
        for column in range(width):
            if size - place < 4:
                return _MORE
            length = <int32_t>word(data + place)
            place += 4
            if length < 0:
                if length != -1:
                    return _ODD
                null_added(&columns[column], rows[0])
                continue
            if size - place < length:
                return _MORE
            found = added(&columns[column], rows[0], data, place, length)
            if found != 0:
                return found
            place += length
        rows[0] += 1
        at[0] = place
    return _MORE


cdef int64_t power_of_ten(int64_t exponent) noexcept:
    cdef int64_t power = 1
    for _ in range(exponent):
        power *= 10
    return power


cdef void set_up(Column* column, int kind, int64_t width, int argument, int64_t digits) noexcept:
    column.kind = kind
    column.width = width
    column.room = 4096
    if kind == _BYTES:
        column.version = argument
    elif kind == _DECIMAL:
        column.scale = argument
        column.groups = (argument + 3) // 4
        column.divisor = power_of_ten(4 * column.groups - argument)
        column.limit = power_of_ten(digits)


cdef list made_of(Column* columns, int64_t width, int64_t rows):
    cdef list found = []
    cdef int64_t index, size
    cdef Column* column
    for index in range(width):
        column = &columns[index]
        valid = handed_over(<void**>&column.valid, rows)
        offsets = None
        size = rows * column.width
        if column.kind == _BYTES:
            size = column.offsets[rows]
            offsets = handed_over(<void**>&column.offsets, (rows + 1) * sizeof(int32_t))
        found.append((valid if column.nulls else None, handed_over(<void**>&column.values, size), offsets))
    return found


def rows(const unsigned char[::1] data, int64_t start, list kinds):
    """Whole rows from `start` on: the reason to stop, how many there were, where the next one begins, and the columns.

    `kinds`: (kind, width in bytes, argument, digits) of each column; the argument is BYTES' version or DECIMAL's
    scale. A column: a byte for each row that is not NULL (None: no row is), values, and for BYTES int32 offsets.
    None: there is something that only the plain loops can read, or name.
    """
    cdef int64_t width = len(kinds)
    cdef int64_t at = start
    cdef int64_t count = 0
    cdef int64_t index
    cdef int reason
    cdef Column* columns = <Column*>calloc(max(width, 1), sizeof(Column))
    if columns is NULL:
        raise MemoryError()
    try:
        for index in range(width):
            kind, size, argument, digits = kinds[index]
            set_up(&columns[index], kind, size, argument, digits)
            if columns[index].kind == _BYTES:
                columns[index].values = <unsigned char*>malloc(columns[index].room)
                if columns[index].values is NULL:
                    raise MemoryError()
        with nogil:
            reason = taken(&data[0] if data.shape[0] else NULL, data.shape[0], columns, width, &at, &count)
        if reason == _NO_MEMORY:
            raise MemoryError()
        if reason == _ODD:
            return None
        return reason, count, at, made_of(columns, width, count) if count else []
    finally:
        for index in range(width):
            free(columns[index].valid)
            free(columns[index].values)
            free(columns[index].offsets)
        free(columns)
