# Values of one column, from messages into the memory of an Arrow array; layouts as `pgoutput_columns` has them.

cdef enum:
    AFTER = 4  # the fields of a row
    BEFORE = 5

cdef enum:  # how a column is written: `pgoutput_ready.OPS`
    INT2 = 0
    BYTES4 = 1
    BYTES8 = 2
    OID = 3
    BOOL = 4
    DAYS = 5
    MOMENT = 6
    DECIMAL = 7
    TEXT = 8
    BYTES = 9
    JSONB = 10
    UUID = 11

cdef int64_t POSTGRES_EPOCH = 946684800000000  # microseconds
cdef const uint8_t* HEX = b"0123456789abcdef"

cdef struct Source:
    const uint8_t* data
    int64_t size
    const int64_t* places

cdef struct Column:
    const int64_t* spec
    uint8_t* valid
    uint8_t* values
    uint8_t* texts
    int64_t nulls


cdef inline bint is_text(int64_t op) noexcept nogil:
    return op >= TEXT


cdef inline int64_t size_of(int64_t op, int64_t count) noexcept nogil:
    if op == BOOL:
        return (count + 7) // 8
    if op == DECIMAL:
        return 16 * count
    return 4 * count if op == INT2 or op == BYTES4 or op == DAYS else 8 * count


cdef inline const uint8_t* value_at(Source* source, int64_t base, int64_t column) noexcept nogil:
    """A value's first byte; its length lies in the four before it. NULL for null."""
    cdef int64_t place = source.places[base + column] if base >= 0 else -1
    return source.data + place if place >= 0 else NULL


cdef inline void clear_bit(uint8_t* bits, int64_t row) noexcept nogil:
    bits[row >> 3] &= <uint8_t>~(1 << (row & 7))


cdef inline int32_t decimal_digits(uint64_t value, uint8_t* out) noexcept nogil:
    """Writes a number of up to ten digits; how many there were."""
    cdef uint8_t[20] digits
    cdef int32_t count = 0, index
    while True:
        digits[count] = <uint8_t>(48 + value % 10)
        count += 1
        value = value // 10
        if value == 0:
            break
    for index in range(count):
        out[index] = digits[count - 1 - index]
    return count


cdef int64_t text_room(
    Source* source, const int64_t* bases, int64_t stride, int64_t count, int64_t column, const int64_t* spec
) noexcept nogil:
    """How many bytes a column's texts take; -1 if one of them is not of its type."""
    cdef int64_t total = 0, row, op = spec[0], size
    cdef const uint8_t* value
    for row in range(count):
        value = value_at(source, bases[row * stride], column)
        if value is NULL:
            continue
        size = word(value - 4)
        if op == JSONB:
            if size == 0 or value[0] != 1:
                return -1
            size -= 1
        elif op == UUID:
            if size != 16:
                return -1
            size = 36
        total += size
    return total


cdef bint write_values(
    Source* source, const int64_t* bases, int64_t stride, int64_t first, int64_t last, int64_t index, Column* column
) noexcept nogil:
    """Rows `first` to `last` of a column, behind those before them; whether all of them are plain."""
    cdef int64_t row
    cdef const uint8_t* value
    cdef bint text = is_text(column.spec[0])
    for row in range(first, last):
        value = value_at(source, bases[row * stride], index)
        if value is NULL:
            clear_bit(column.valid, row)
            column.nulls += 1
            write_null(column, row)
        elif text:
            if not write_text(column, row, value, word(value - 4)):
                return False
        elif not write_fixed(column, row, value, word(value - 4)):
            return False
    return True


cdef inline void write_null(Column* column, int64_t row) noexcept nogil:
    cdef int64_t op = column.spec[0], width
    if is_text(op):
        (<int32_t*>column.values)[row + 1] = (<int32_t*>column.values)[row]
    elif op != BOOL:
        width = size_of(op, 1)
        memset(column.values + width * row, 0, width)


cdef inline bint write_fixed(Column* column, int64_t row, const uint8_t* value, int64_t size) noexcept nogil:
    cdef int64_t op = column.spec[0]
    if op == BYTES8:
        (<uint64_t*>column.values)[row] = number(value) if size == 8 else 0
        return size == 8
    if op == BYTES4:
        (<uint32_t*>column.values)[row] = word(value) if size == 4 else 0
        return size == 4
    if op == INT2:
        (<int32_t*>column.values)[row] = <int32_t>signed_half(value) if size == 2 else 0
        return size == 2
    if op == OID:
        (<int64_t*>column.values)[row] = word(value) if size == 4 else 0
        return size == 4
    if op == BOOL:
        if size == 1 and value[0] != 0:
            column.values[row >> 3] |= <uint8_t>(1 << (row & 7))
        return size == 1
    if op == DECIMAL:
        return write_decimal(<uint64_t*>column.values + 2 * row, value, size, column.spec[1], column.spec[2])
    return write_moment(column, row, value, size)


cdef inline bint write_moment(Column* column, int64_t row, const uint8_t* value, int64_t size) noexcept nogil:
    """Numbers that are moved by the first of the column's numbers, within the two others. Infinities wrap round."""
    cdef int64_t moved
    if size != (4 if column.spec[0] == DAYS else 8):
        return False
    if column.spec[0] == DAYS:
        moved = <int32_t>word(value) + column.spec[1]
    else:
        moved = <int64_t>(number(value) + <uint64_t>column.spec[1])
    if not column.spec[2] <= moved <= column.spec[3]:
        return False
    if column.spec[0] == DAYS:
        (<int32_t*>column.values)[row] = <int32_t>moved
    else:
        (<int64_t*>column.values)[row] = moved
    return True


cdef bint write_text(Column* column, int64_t row, const uint8_t* value, int64_t size) noexcept nogil:
    """Where there is room for it; whether it is UTF-8, where it must be."""
    cdef int64_t op = column.spec[0]
    cdef int32_t* ends = <int32_t*>column.values
    cdef uint8_t* out = column.texts + ends[row]
    if op == UUID:
        ends[row + 1] = ends[row] + 36
        write_uuid(out, value)
        return True
    if op == JSONB:
        value += 1
        size -= 1
    ends[row + 1] = ends[row] + <int32_t>size
    memcpy(out, value, size)
    return op == BYTES or is_utf8(value, size)


cdef inline void write_uuid(uint8_t* out, const uint8_t* value) noexcept nogil:
    cdef int64_t index, at = 0
    for index in range(16):
        if index == 4 or index == 6 or index == 8 or index == 10:
            out[at] = 45
            at += 1
        out[at] = HEX[value[index] >> 4]
        out[at + 1] = HEX[value[index] & 15]
        at += 2


cdef inline bint is_utf8(const uint8_t* text, int64_t size) noexcept nogil:
    """As the Unicode Standard has it, table 3-7."""
    cdef int64_t at = 0, more
    cdef uint64_t eight
    while at < size:
        if at + 8 <= size:
            memcpy(&eight, text + at, 8)
            if eight & 0x8080808080808080U == 0:
                at += 8
                continue
        if text[at] < 0x80:
            at += 1
            continue
        more = following(text[at], text[at + 1] if at + 1 < size else 0)
        if more == 0 or at + more >= size:
            return False
        while more > 0:
            at += 1
            more -= 1
            if text[at] & 0xC0 != 0x80:
                return False
        at += 1
    return True


cdef inline int64_t following(uint8_t first, uint8_t second) noexcept nogil:
    """How many bytes follow the first one of a character, 0 if none begins so."""
    if first < 0xC2 or first > 0xF4:
        return 0
    if first < 0xE0:
        return 1
    if first < 0xF0:
        return 0 if (first == 0xE0 and second < 0xA0) or (first == 0xED and second > 0x9F) else 2
    return 0 if (first == 0xF0 and second < 0x90) or (first == 0xF4 and second > 0x8F) else 3


cdef bint write_decimal(
    uint64_t* out, const uint8_t* value, int64_t size, int64_t precision, int64_t scale
) noexcept nogil:
    """A `numeric` (its layout: `pgoutput_values_cy.numeric_size`) as a number of `scale` decimals, of 128 bits."""
    cdef int64_t count, weight, index, groups = (scale + 3) // 4
    cdef uint64_t[2] sum
    cdef uint32_t digit
    if not is_exact(value, size, precision, scale):
        return False
    sum[0], sum[1] = 0, 0
    count = half(value)
    weight = signed_half(value + 2)
    for index in range(min(weight + 1, <int64_t>0), weight + 1 + groups if count > 0 else weight):
        digit = half(value + 8 + 2 * index) if 0 <= index < count else 0
        if index == weight + groups and scale % 4 > 0:
            multiply(sum, power(scale % 4), digit // power(4 - scale % 4))
        else:
            multiply(sum, 10000, digit)
    if half(value + 4) != 0:
        sum[0] = ~sum[0] + 1
        sum[1] = ~sum[1] + (1 if sum[0] == 0 else 0)
    memcpy(out, sum, 16)
    return True


cdef bint is_exact(const uint8_t* value, int64_t size, int64_t precision, int64_t scale) noexcept nogil:
    """Whether a `numeric` fits, and has no digits but those that it shows."""
    cdef int64_t count, weight, shown, behind, index
    if size < 8 or (half(value + 4) != 0 and half(value + 4) != 0x4000):
        return False
    count = half(value)
    weight = signed_half(value + 2)
    shown = half(value + 6)
    if size != 8 + 2 * count or shown > scale:
        return False
    for index in range(count):
        if half(value + 8 + 2 * index) > 9999:
            return False
    if count == 0:
        return True
    if weight >= 0 and 4 * weight + length_of(half(value + 8)) > precision - scale:
        return False
    behind = count - 1 - weight - (shown + 3) // 4
    return behind < 0 or (
        behind == 0 and (shown % 4 == 0 or half(value + 6 + 2 * count) % power(4 - shown % 4) == 0)
    )


cdef inline int64_t length_of(uint32_t group) noexcept nogil:
    """How many digits."""
    return (group > 0) + (group > 9) + (group > 99) + (group > 999)


cdef inline uint32_t power(int64_t exponent) noexcept nogil:
    """Of ten, up to the fourth."""
    return 10000 if exponent == 4 else 1000 if exponent == 3 else 100 if exponent == 2 else 10 if exponent == 1 else 1


cdef inline void multiply(uint64_t* number, uint32_t factor, uint32_t more) noexcept nogil:
    """A number of 128 bits, its lower half first."""
    cdef uint64_t low = (number[0] & 0xFFFFFFFFU) * factor + more
    cdef uint64_t middle = (number[0] >> 32) * factor + (low >> 32)
    number[0] = (middle << 32) | (low & 0xFFFFFFFFU)
    number[1] = number[1] * factor + (middle >> 32)
