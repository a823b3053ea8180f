# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Events whose fields are columns of the changes as they are, without a Python object for each column.

Arrays pass by the Arrow C data interface (https://arrow.apache.org/docs/format/CDataInterface.html): children may be
moved out of an array one by one, so those that the events are made of get a new parent, and the rest is released. No
value is copied.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memset

from headwater.arrow_interface cimport ArrowArray

cdef enum:
    OP = 0
    UPDATE = 2
    DELETE = 3
    TRUNCATE = 5
    ORDER = 6  # columns that changes and events have in common
    BEFORE = 6
    AFTER = 7


cdef class Projection:
    """`schema`: of the events. `places`: for each field the ordinal of its column in `after`, each at most once.

    `required`: the fields that must have a value. `keyed`: whether an old row may tell of another key.
    """

    cdef object _import
    cdef object _schema
    cdef bint _keyed
    cdef int _count
    cdef int* _places
    cdef bint* _required

    def __cinit__(self, batch_type, schema, places, required, keyed):
        self._import = batch_type._import_from_c
        self._schema = schema
        self._keyed = keyed
        self._count = len(places)
        self._places = <int*>calloc(self._count + 1, sizeof(int))
        self._required = <bint*>calloc(self._count + 1, sizeof(bint))
        if self._places == NULL or self._required == NULL:
            raise MemoryError
        for number in range(self._count):
            self._places[number] = places[number]
            self._required[number] = required[number]

    def __dealloc__(self):
        free(self._places)
        free(self._required)

    def __call__(self, data):
        """The events of `Changes.data` without `_unchanged` and `_invalid`; None where one of its rows is not plain.

        Plain: created, read, or updated without an old row, with a value for each required field.
        """
        cdef ArrowArray changes, events
        memset(&changes, 0, sizeof(ArrowArray))
        memset(&events, 0, sizeof(ArrowArray))
        data._export_to_c(<size_t>&changes)
        try:
            if not self._plain(&changes) or not self._moved(&changes, &events):
                return None
        finally:
            changes.release(&changes)
        try:
            return self._import(<size_t>&events, self._schema)
        finally:
            if events.release != NULL:
                events.release(&events)

    cdef bint _plain(self, ArrowArray* changes) noexcept:
        cdef ArrowArray* after = changes.children[AFTER]
        cdef ArrowArray* before = changes.children[BEFORE]
        cdef ArrowArray* ops = changes.children[OP]
        cdef int64_t rows = changes.length
        cdef ArrowArray* column
        cdef int number
        if changes.offset or after.length != rows or not rows:
            return False
        if _has(ops, DELETE, rows) or _has(ops, TRUNCATE, rows) or _nulls(after, after.offset, rows):
            return False
        if self._keyed and _has(ops, UPDATE, rows) and _nulls(before, before.offset, rows) != rows:
            return False
        for number in range(self._count):
            if self._required[number]:
                column = after.children[self._places[number]]
                if column.null_count and _nulls_within(column, after):
                    return False
        return True

    cdef bint _moved(self, ArrowArray* changes, ArrowArray* events) noexcept:
        """False: there is no memory; then `events` holds nothing."""
        cdef ArrowArray* after = changes.children[AFTER]
        cdef ArrowArray* child
        cdef int total = ORDER + self._count
        cdef int number
        cdef ArrowArray* own = <ArrowArray*>calloc(total, sizeof(ArrowArray))
        events.children = <ArrowArray**>calloc(total, sizeof(ArrowArray*))
        events.buffers = <const void**>calloc(1, sizeof(void*))
        if own == NULL or events.children == NULL or events.buffers == NULL:
            free(own)
            free(events.children)
            free(events.buffers)
            return False
        for number in range(total):
            child = changes.children[number] if number < ORDER else after.children[self._places[number - ORDER]]
            own[number] = child[0]
            child.release = NULL
            events.children[number] = &own[number]
            if number >= ORDER and (after.offset or child.length != after.length):
                own[number].offset += after.offset
                own[number].length = after.length
                own[number].null_count = -1 if child.null_count else 0
        events.length = changes.length
        events.n_buffers = 1
        events.n_children = total
        events.private_data = own
        events.release = _release
        return True


cdef void _release(ArrowArray* array) noexcept nogil:
    cdef int64_t number
    for number in range(array.n_children):
        if array.children[number].release != NULL:
            array.children[number].release(array.children[number])
    free(array.private_data)
    free(array.children)
    free(array.buffers)
    array.release = NULL


cdef bint _has(ArrowArray* ops, int op, int64_t rows) noexcept:
    return memchr(<const uint8_t*>ops.buffers[1] + ops.offset, op, rows) != NULL


cdef int64_t _nulls_within(ArrowArray* column, ArrowArray* parent) noexcept:
    if parent.offset or column.length != parent.length:
        return _counted(column, column.offset + parent.offset, parent.length)
    return _nulls(column, column.offset, column.length)


cdef int64_t _nulls(ArrowArray* array, int64_t start, int64_t rows) noexcept:
    return array.null_count if array.null_count >= 0 else _counted(array, start, rows)


cdef int64_t _counted(ArrowArray* array, int64_t start, int64_t rows) noexcept:
    """The zero bits of the validity bitmap; it may be left out where nothing is null."""
    cdef const uint8_t* bits = <const uint8_t*>array.buffers[0]
    cdef int64_t row = start, end = start + rows, found = 0
    if bits == NULL:
        return 0
    while row < end:
        if row % 8 == 0 and bits[row // 8] == 255 and row + 8 <= end:
            row += 8
        else:
            found += 1 - ((bits[row // 8] >> (row % 8)) & 1)
            row += 1
    return found
