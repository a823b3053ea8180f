# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What arrives on a connection in COPY mode, taken out of libpq into one piece of memory, without the GIL.

It calls the libpq that psycopg has loaded, by addresses (see `postgres_receiver`), so prototypes are written out here
(https://www.postgresql.org/docs/current/libpq-copy.html) and no header is needed.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.time cimport nanosleep, timespec

ctypedef int (*get_copy_data_t)(void*, char**, int) noexcept nogil
ctypedef int (*consume_input_t)(void*) noexcept nogil
ctypedef void (*freemem_t)(void*) noexcept nogil

cdef get_copy_data_t get_copy_data = NULL
cdef consume_input_t consume_input = NULL
cdef freemem_t freemem = NULL

cdef int64_t SMALL = 4096  # bytes: less than this from one read of the socket, and it is as good as empty
cdef int64_t DENSE = 12288  # bytes: what libpq reads at once is less than this only where the socket is empty then
cdef long NAP = 300000  # nanoseconds
cdef int64_t FIRST_BYTES = 65536
cdef int64_t FIRST_FRAMES = 1024

cdef enum:
    WAITING = 0
    ENDED = 1
    NO_MEMORY = 2


def bind_library(addresses):
    """`addresses`: function name -> address."""
    global get_copy_data, consume_input, freemem
    get_copy_data = <get_copy_data_t><size_t>addresses["PQgetCopyData"]
    consume_input = <consume_input_t><size_t>addresses["PQconsumeInput"]
    freemem = <freemem_t><size_t>addresses["PQfreemem"]


cdef class Memory:
    """Memory from malloc, as a buffer; freed with the last view of it."""

    cdef char* pointer
    cdef int64_t size
    cdef int64_t room

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.pointer if self.pointer is not NULL else <char*>b"", self.size, 0, flags)

    def __dealloc__(self):
        free(self.pointer)

    cdef bint make_room(self, int64_t more) noexcept nogil:
        cdef int64_t room = self.room
        cdef char* larger
        if self.size + more <= room:
            return True
        while room < self.size + more:
            room = room * 2
        larger = <char*>realloc(self.pointer, room)
        if larger is NULL:
            return False
        self.pointer = larger
        self.room = room
        return True

    cdef bint add(self, const void* data, int64_t size) noexcept nogil:
        if not self.make_room(size):
            return False
        memcpy(self.pointer + self.size, data, size)
        self.size += size
        return True

    cdef void give_back(self) noexcept nogil:
        """Memory beyond the size."""
        cdef char* smaller
        if 0 < self.size < self.room // 4 * 3:
            smaller = <char*>realloc(self.pointer, self.size)
            if smaller is not NULL:
                self.pointer = smaller
                self.room = self.size


cdef Memory memory(int64_t room):
    cdef Memory made = Memory.__new__(Memory)
    made.pointer = <char*>malloc(room)
    if made.pointer is NULL:
        raise MemoryError()
    made.room = room
    return made


cdef int taken(void* connection, int64_t budget, int reads, Memory data, Memory ends) noexcept nogil:
    """Read the socket and libpq's buffer until little comes, or `budget` bytes are there."""
    cdef char* payload
    cdef int size
    cdef int empty = 0
    cdef int64_t before = data.size
    while data.size < budget:
        payload = NULL
        size = get_copy_data(connection, &payload, 1)
        if size > 0:
            if not data.add(payload, size) or not ends.add(&data.size, sizeof(int64_t)):
                freemem(payload)
                return NO_MEMORY
            freemem(payload)
            continue
        if size < 0:
            return ENDED
        if data.size - before < SMALL:
            empty += 1
            if empty > reads:
                return WAITING
        before = data.size
        if not consume_input(connection):
            return ENDED
    return WAITING


def collect(size_t connection, int64_t budget, int reads):
    """The payloads that are there (bytes), where each ends (int64, bytes), and whether the stream has ended.

    `connection`: the PGconn's address. `reads`: after so many reads that bring little, the socket counts as empty.
    """
    cdef Memory data = memory(FIRST_BYTES)
    cdef Memory ends = memory(FIRST_FRAMES * sizeof(int64_t))
    cdef int state
    with nogil:
        state = taken(<void*>connection, budget, reads, data, ends)
        data.give_back()
        ends.give_back()
    if state == NO_MEMORY:
        raise MemoryError()
    return memoryview(data), memoryview(ends), state == ENDED


cdef int gathered(void* connection, int64_t budget, Memory data) noexcept nogil:
    """Payloads as they come, waited for, until `budget` bytes are there."""
    cdef char* payload
    cdef int size
    cdef int64_t before = -DENSE
    while data.size < budget:
        payload = NULL
        size = get_copy_data(connection, &payload, 1)
        if size == 0:
            if data.size - before < DENSE:
                nap()
            before = data.size
            size = get_copy_data(connection, &payload, 0)
        if size <= 0:
            return ENDED
        if not data.add(payload, size):
            freemem(payload)
            return NO_MEMORY
        freemem(payload)
    return WAITING


cdef void nap() noexcept nogil:
    """A server sends what it copies by eight kilobytes: to wake up for each costs more than to read it."""
    cdef timespec pause
    pause.tv_sec, pause.tv_nsec = 0, NAP
    nanosleep(&pause, NULL)


def gather(size_t connection, int64_t budget):
    """Payloads of `budget` bytes or a little more, waited for, one behind the other; and whether the stream has ended.

    `connection`: the PGconn's address.
    """
    cdef Memory data = memory(budget + FIRST_BYTES)
    cdef int state
    with nogil:
        state = gathered(<void*>connection, budget, data)
        data.give_back()
    if state == NO_MEMORY:
        raise MemoryError()
    return memoryview(data), state == ENDED
