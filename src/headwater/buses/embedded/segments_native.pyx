# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is noted of a batch beside its records, in one pass over the buffers; `segments.facts` is the counterpart.

The batch is handed over by Arrow's C data interface (https://arrow.apache.org/docs/format/CDataInterface.html).
"""

from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from headwater.arrow_interface cimport ArrowArray

from headwater.model import Op

cdef struct Place:
    uint32_t epoch
    uint64_t commit
    uint32_t index

cdef struct Facts:
    Place low
    Place high
    int64_t deletes
    int64_t timed
    int64_t earliest
    int64_t latest

cdef int8_t DELETE = Op.DELETE.value


cdef bint before(Place* one, Place* other) noexcept nogil:
    if one.epoch != other.epoch:
        return one.epoch < other.epoch
    if one.commit != other.commit:
        return one.commit < other.commit
    return one.index < other.index


cdef const void* values(ArrowArray* column, int64_t offset, int64_t width) noexcept nogil:
    return <const uint8_t*>column.buffers[1] + (column.offset + offset) * width


cdef void look(ArrowArray* batch, int* places, Facts* facts) noexcept nogil:
    cdef ArrowArray* times = batch.children[places[4]]
    cdef const int8_t* op = <const int8_t*>values(batch.children[places[0]], batch.offset, 1)
    cdef const uint32_t* epoch = <const uint32_t*>values(batch.children[places[1]], batch.offset, 4)
    cdef const uint64_t* commit = <const uint64_t*>values(batch.children[places[2]], batch.offset, 8)
    cdef const uint32_t* index = <const uint32_t*>values(batch.children[places[3]], batch.offset, 4)
    cdef const int64_t* time = <const int64_t*>values(times, batch.offset, 8)
    cdef const uint8_t* valid = <const uint8_t*>times.buffers[0]
    cdef int64_t first = times.offset + batch.offset
    cdef int64_t row
    cdef Place here
    memset(facts, 0, sizeof(Facts))
    for row in range(batch.length):
        here.epoch, here.commit, here.index = epoch[row], commit[row], index[row]
        if row == 0 or before(&here, &facts.low):
            facts.low = here
        if row == 0 or before(&facts.high, &here):
            facts.high = here
        facts.deletes += op[row] == DELETE
        if valid is NULL or (valid[(first + row) >> 3] >> ((first + row) & 7)) & 1:
            if not facts.timed or time[row] < facts.earliest:
                facts.earliest = time[row]
            if not facts.timed or time[row] > facts.latest:
                facts.latest = time[row]
            facts.timed += 1


def facts(batch, columns, int64_t now):
    """Earliest and latest time, least and greatest order, deletes; `columns`: where `_op` to `_time` are in the batch.

    The batch has a row at least, and the columns have the types of `model.ORDER_FIELDS`.
    """
    cdef ArrowArray array
    cdef Facts found
    cdef int[5] places
    places[0], places[1], places[2], places[3], places[4] = columns
    batch._export_to_c(<size_t>&array)
    try:
        with nogil:
            look(&array, places, &found)
        untimed = found.timed < array.length
    finally:
        array.release(&array)
    if not found.timed:
        found.earliest = found.latest = now
    elif untimed:
        found.earliest, found.latest = min(found.earliest, now), max(found.latest, now)
    return (
        (found.earliest, found.latest),
        (found.low.epoch, found.low.commit, found.low.index),
        (found.high.epoch, found.high.commit, found.high.index),
        found.deletes,
    )
