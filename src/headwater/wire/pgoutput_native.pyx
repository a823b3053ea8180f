# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Rows of one table from messages into one record batch: one piece of memory, written once, and one import.

For columns of common types, whose values are written as their Arrow type has them at once (`pgoutput_ready` says how).
A value that is not plain (out of its type's bounds, not well formed) is nothing for here: then there is no batch, and
the loops over single columns see to it, with its mark or its error. A property test compares the two.

The structure that Arrow imports: https://arrow.apache.org/docs/format/CDataInterface.html.
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from headwater.arrow_interface cimport ArrowArray
from headwater.wire.byte_order cimport half, number, signed_half, word

import pyarrow as pa

include "pgoutput_native_values.pxi"

cdef enum:
    HEADS = 6  # `_op` to `_transaction`; then `before` and `after`
    XID_DIGITS = 10
    ALIGNMENT = 64
    SLICE = 524288  # bytes of messages over which all columns go before the next ones: they fit a processor's cache
    ROW_FIELDS = 7
    TRANSACTION_FIELDS = 5
    SPEC_FIELDS = 4

cdef struct Arena:
    char* base
    int64_t used

cdef struct Work:
    Source source
    const int64_t* rows
    int64_t count
    const int64_t* transactions
    const int64_t* specs
    int64_t width


cdef void released(ArrowArray* array) noexcept nogil:
    """Of the whole; the parts have nothing of their own."""
    free(array.private_data)
    array.release = NULL


cdef void* room(Arena* arena, int64_t size) noexcept nogil:
    """Memory, or NULL while it is only counted."""
    cdef int64_t at = arena.used
    arena.used += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return arena.base + at if arena.base is not NULL else NULL


cdef ArrowArray* array_of(Arena* arena, int64_t length, int64_t buffers, int64_t children) noexcept nogil:
    cdef ArrowArray* made = <ArrowArray*>room(arena, sizeof(ArrowArray))
    cdef void* pointers = room(arena, 8 * (buffers + children))
    if made is not NULL:
        memset(made, 0, sizeof(ArrowArray))
        memset(pointers, 0, 8 * (buffers + children))
        made.length = length
        made.n_buffers = buffers
        made.n_children = children
        made.buffers = <const void**>pointers
        made.children = <ArrowArray**>pointers + buffers
        made.release = released
    return made


cdef void hold(ArrowArray* array, int64_t index, void* buffer) noexcept nogil:
    if array is not NULL:
        array.buffers[index] = buffer


cdef void child(ArrowArray* parent, int64_t index, ArrowArray* array) noexcept nogil:
    if parent is not NULL:
        parent.children[index] = array


# where everything lies

cdef ArrowArray* laid_out(Arena* arena, Work* work, bint olds, const int64_t* sizes) noexcept nogil:
    """`olds`: some rows have an old state. `sizes`: of the texts of each column of `after`, then of `before`."""
    cdef ArrowArray* root = array_of(arena, work.count, 1, HEADS + 2)
    cdef int64_t index, bits
    for index in range(HEADS):
        child(root, index, head_of(arena, work.count, index))
    child(root, HEADS, side_of(arena, work, sizes + work.width if olds else NULL))
    child(root, HEADS + 1, side_of(arena, work, sizes))
    return root


cdef ArrowArray* head_of(Arena* arena, int64_t count, int64_t index) noexcept nogil:
    cdef int* widths = [1, 4, 8, 4, 8]
    cdef ArrowArray* array
    if index < 5:
        array = array_of(arena, count, 2, 0)
        hold(array, 1, room(arena, widths[index] * count))
        return array
    array = array_of(arena, count, 3, 0)
    hold(array, 1, room(arena, 4 * (count + 1)))
    hold(array, 2, room(arena, XID_DIGITS * count))
    return array


cdef ArrowArray* side_of(Arena* arena, Work* work, const int64_t* sizes) noexcept nogil:
    """Without `sizes` no row has this state: all columns are the same zeros then."""
    cdef ArrowArray* struct_ = array_of(arena, work.count, 1, work.width)
    cdef int64_t bits = (work.count + 7) // 8, index, op
    cdef void* zeros = room(arena, 16 * (work.count + 1)) if sizes is NULL else NULL
    cdef ArrowArray* array
    hold(struct_, 0, zeros if sizes is NULL else room(arena, bits))
    if zeros is not NULL:
        memset(zeros, 0, 16 * (work.count + 1))
        struct_.null_count = work.count
    for index in range(work.width):
        op = work.specs[index * SPEC_FIELDS]
        array = array_of(arena, work.count, 3 if is_text(op) else 2, 0)
        child(struct_, index, array)
        if sizes is NULL:
            all_null(array, zeros)
            continue
        hold(array, 0, room(arena, bits))
        hold(array, 1, room(arena, 4 * (work.count + 1) if is_text(op) else size_of(op, work.count)))
        if is_text(op):
            hold(array, 2, room(arena, sizes[index]))
    return struct_


cdef void all_null(ArrowArray* array, void* zeros) noexcept nogil:
    cdef int64_t index
    if array is not NULL:
        array.null_count = array.length
        for index in range(array.n_buffers):
            array.buffers[index] = zeros


# what is written there

cdef bint measured(Work* work, int64_t field, int64_t* sizes) noexcept nogil:
    """How many bytes the texts of each column take."""
    cdef int64_t index
    for index in range(work.width):
        if is_text(work.specs[index * SPEC_FIELDS]):
            sizes[index] = text_room(&work.source, work.rows + field, ROW_FIELDS, work.count, index,
                                     work.specs + index * SPEC_FIELDS)
            if not 0 <= sizes[index] < 2147483647:
                return False
    return True


cdef bint write_side(Work* work, ArrowArray* struct_, int64_t field) noexcept nogil:
    """The values of one side of each row."""
    cdef int64_t step = max(work.count * SLICE // max(work.source.size, 1), 1024)
    cdef int64_t first, last, index
    cdef Column column
    absent(work, struct_, field)
    for index in range(work.width):
        memset(<void*>struct_.children[index].buffers[0], 0xFF, (work.count + 7) // 8)
        if is_text(work.specs[index * SPEC_FIELDS]):
            (<int32_t*>struct_.children[index].buffers[1])[0] = 0
        elif work.specs[index * SPEC_FIELDS] == BOOL:
            memset(<void*>struct_.children[index].buffers[1], 0, (work.count + 7) // 8)
    first = 0
    while first < work.count:
        last = min(first + step, work.count)
        for index in range(work.width):
            column = column_of(struct_.children[index], work.specs + index * SPEC_FIELDS)
            if not write_values(&work.source, work.rows + field, ROW_FIELDS, first, last, index, &column):
                return False
            struct_.children[index].null_count += column.nulls
        first = last
    for index in range(work.width):
        if struct_.children[index].null_count == 0:
            struct_.children[index].buffers[0] = NULL
    return True


cdef Column column_of(ArrowArray* array, const int64_t* spec) noexcept nogil:
    cdef Column found
    found.spec = spec
    found.valid = <uint8_t*>array.buffers[0]
    found.values = <uint8_t*>array.buffers[1]
    found.texts = <uint8_t*>array.buffers[2] if array.n_buffers > 2 else NULL
    found.nulls = 0
    return found


cdef void absent(Work* work, ArrowArray* struct_, int64_t field) noexcept nogil:
    """Which rows have no such side."""
    cdef uint8_t* valid = <uint8_t*>struct_.buffers[0]
    cdef int64_t row, missing = 0
    memset(valid, 0xFF, (work.count + 7) // 8)
    for row in range(work.count):
        if work.rows[row * ROW_FIELDS + field] < 0:
            clear_bit(valid, row)
            missing += 1
    struct_.null_count = missing
    if missing == 0:
        struct_.buffers[0] = NULL


cdef void write_heads(Work* work, ArrowArray* root, int64_t epoch) noexcept nogil:
    cdef const int64_t* fields
    cdef const int64_t* transaction
    cdef int8_t* op = <int8_t*>root.children[0].buffers[1]
    cdef uint32_t* epochs = <uint32_t*>root.children[1].buffers[1]
    cdef int64_t* commit = <int64_t*>root.children[2].buffers[1]
    cdef uint32_t* index = <uint32_t*>root.children[3].buffers[1]
    cdef int64_t* time = <int64_t*>root.children[4].buffers[1]
    cdef int32_t* ends = <int32_t*>root.children[5].buffers[1]
    cdef uint8_t* digits = <uint8_t*>root.children[5].buffers[2]
    cdef int64_t row
    ends[0] = 0
    for row in range(work.count):
        fields = work.rows + row * ROW_FIELDS
        transaction = work.transactions + fields[2] * TRANSACTION_FIELDS
        op[row] = <int8_t>fields[1]
        epochs[row] = <uint32_t>epoch
        commit[row] = transaction[1]
        index[row] = <uint32_t>(<uint64_t>fields[3] * 2)
        time[row] = transaction[3] + POSTGRES_EPOCH
        ends[row + 1] = ends[row] + decimal_digits(<uint64_t>transaction[0], digits + ends[row])


cdef bint has_olds(Work* work) noexcept nogil:
    cdef int64_t row
    for row in range(work.count):
        if work.rows[row * ROW_FIELDS + BEFORE] >= 0:
            return True
    return False


cdef bint made(Work* work, int64_t epoch, ArrowArray* into) noexcept nogil:
    """Whether every value is plain, and there is memory; `into` owns it then."""
    cdef Arena arena
    cdef ArrowArray* root
    cdef bint olds = has_olds(work), fine
    cdef int64_t* sizes = <int64_t*>malloc(16 * work.width + 16)
    cdef char* memory = NULL
    if sizes is NULL:
        return False
    fine = measured(work, AFTER, sizes) and (not olds or measured(work, BEFORE, sizes + work.width))
    if fine:
        arena.base, arena.used = NULL, 0
        laid_out(&arena, work, olds, sizes)
        memory = <char*>malloc(arena.used + ALIGNMENT)
        fine = memory is not NULL
    if fine:
        arena.base = memory + (ALIGNMENT - <uintptr_t>memory % ALIGNMENT)
        arena.used = 0
        root = laid_out(&arena, work, olds, sizes)
        write_heads(work, root, epoch)
        fine = write_side(work, root.children[HEADS + 1], AFTER)
        fine = fine and (not olds or write_side(work, root.children[HEADS], BEFORE))
    free(sizes)
    if not fine:
        free(memory)
        return False
    into[0] = root[0]
    into.private_data = memory
    return True


def batch(
    const uint8_t[::1] data,
    const int64_t[::1] places,
    const int64_t[:, ::1] rows,
    const int64_t[:, ::1] transactions,
    const int64_t[:, ::1] specs,
    int64_t epoch,
    schema,
):
    """The rows as a batch of `schema`, or None where a value is not plain.

    `data`, `places`, `rows`, `transactions`: as `pgoutput_cy.Scan` leaves them, with no unchanged values among them.
    `specs`: per column how it is written, and three numbers; see `pgoutput_ready`.
    """
    cdef Work work
    cdef ArrowArray array
    cdef bint fine
    work.count = rows.shape[0]
    work.width = specs.shape[0]
    if work.count == 0 or work.width == 0 or transactions.shape[0] == 0 or places.shape[0] == 0:
        return None
    work.source.data = &data[0] if data.shape[0] else NULL
    work.source.size = data.shape[0]
    work.source.places = &places[0]
    work.rows = &rows[0, 0]
    work.transactions = &transactions[0, 0]
    work.specs = &specs[0, 0]
    with nogil:
        fine = made(&work, epoch, &array)
    return pa.RecordBatch._import_from_c(<uintptr_t>&array, schema) if fine else None
