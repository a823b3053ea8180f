# Included by sqlite_native.pyx: the prototypes of the library's functions, and how their addresses are taken.

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    int CLOCK_MONOTONIC

ctypedef void sqlite3
ctypedef void sqlite3_stmt

ctypedef int (*progress_t)(void*) noexcept nogil

cdef struct Library:
    int (*open_v2)(const char*, sqlite3**, int, const char*) noexcept nogil
    int (*close_v2)(sqlite3*) noexcept nogil
    const char* (*errmsg)(sqlite3*) noexcept nogil
    int (*extended_errcode)(sqlite3*) noexcept nogil
    int (*extended_result_codes)(sqlite3*, int) noexcept nogil
    int (*busy_timeout)(sqlite3*, int) noexcept nogil
    int (*prepare_v2)(sqlite3*, const char*, int, sqlite3_stmt**, const char**) noexcept nogil
    int (*step)(sqlite3_stmt*) noexcept nogil
    int (*reset)(sqlite3_stmt*) noexcept nogil
    int (*finalize)(sqlite3_stmt*) noexcept nogil
    int (*clear_bindings)(sqlite3_stmt*) noexcept nogil
    void (*interrupt)(sqlite3*) noexcept nogil
    int (*get_autocommit)(sqlite3*) noexcept nogil
    int (*total_changes)(sqlite3*) noexcept nogil
    void (*progress_handler)(sqlite3*, int, progress_t, void*) noexcept nogil
    int (*bind_parameter_count)(sqlite3_stmt*) noexcept nogil
    const char* (*bind_parameter_name)(sqlite3_stmt*, int) noexcept nogil
    int (*bind_null)(sqlite3_stmt*, int) noexcept nogil
    int (*bind_int64)(sqlite3_stmt*, int, int64_t) noexcept nogil
    int (*bind_double)(sqlite3_stmt*, int, double) noexcept nogil
    int (*bind_text)(sqlite3_stmt*, int, const char*, int, void*) noexcept nogil
    int (*bind_blob64)(sqlite3_stmt*, int, const void*, uint64_t, void*) noexcept nogil
    int (*column_count)(sqlite3_stmt*) noexcept nogil
    int (*column_type)(sqlite3_stmt*, int) noexcept nogil
    int64_t (*column_int64)(sqlite3_stmt*, int) noexcept nogil
    double (*column_double)(sqlite3_stmt*, int) noexcept nogil
    const char* (*column_text)(sqlite3_stmt*, int) noexcept nogil
    const char* (*column_blob)(sqlite3_stmt*, int) noexcept nogil
    int (*column_bytes)(sqlite3_stmt*, int) noexcept nogil

cdef Library lib
cdef bint bound = False

cdef enum:
    OK = 0
    ROW = 100
    DONE = 101
    OPEN_FLAGS = 0x2 | 0x4 | 0x40 | 0x10000  # READWRITE, CREATE (the URI's `mode` narrows both), URI, FULLMUTEX
    INTEGER = 1
    REAL = 2
    TEXT = 3
    BLOB = 4
    NULL_TYPE = 5
    TOO_BIG = 18
    VARIANT_KIND = 0
    MOST_ROWS = 65536
    STEPS_BETWEEN_CHECKS = 4000

cdef void* TRANSIENT = <void*><size_t>-1
cdef const char* EMPTY = b""

cdef int64_t EXACT_INTEGER = EXACT
cdef int64_t BATCH_BYTES = BYTES
cdef int64_t SHOWN_BYTES = SHOWN


def bind_library(addresses):
    """Take the library's functions; `addresses` are as `sqlite_library.addresses` gives them."""
    global bound
    lib.open_v2 = <int (*)(const char*, sqlite3**, int, const char*) noexcept nogil><size_t>addresses["open_v2"]
    lib.close_v2 = <int (*)(sqlite3*) noexcept nogil><size_t>addresses["close_v2"]
    lib.errmsg = <const char* (*)(sqlite3*) noexcept nogil><size_t>addresses["errmsg"]
    lib.extended_errcode = <int (*)(sqlite3*) noexcept nogil><size_t>addresses["extended_errcode"]
    lib.extended_result_codes = <int (*)(sqlite3*, int) noexcept nogil><size_t>addresses["extended_result_codes"]
    lib.busy_timeout = <int (*)(sqlite3*, int) noexcept nogil><size_t>addresses["busy_timeout"]
    lib.prepare_v2 = <int (*)(sqlite3*, const char*, int, sqlite3_stmt**, const char**) noexcept nogil><size_t>addresses["prepare_v2"]
    lib.step = <int (*)(sqlite3_stmt*) noexcept nogil><size_t>addresses["step"]
    lib.reset = <int (*)(sqlite3_stmt*) noexcept nogil><size_t>addresses["reset"]
    lib.finalize = <int (*)(sqlite3_stmt*) noexcept nogil><size_t>addresses["finalize"]
    lib.clear_bindings = <int (*)(sqlite3_stmt*) noexcept nogil><size_t>addresses["clear_bindings"]
    lib.interrupt = <void (*)(sqlite3*) noexcept nogil><size_t>addresses["interrupt"]
    lib.get_autocommit = <int (*)(sqlite3*) noexcept nogil><size_t>addresses["get_autocommit"]
    lib.total_changes = <int (*)(sqlite3*) noexcept nogil><size_t>addresses["total_changes"]
    lib.progress_handler = <void (*)(sqlite3*, int, progress_t, void*) noexcept nogil><size_t>addresses["progress_handler"]
    lib.bind_parameter_count = <int (*)(sqlite3_stmt*) noexcept nogil><size_t>addresses["bind_parameter_count"]
    lib.bind_parameter_name = <const char* (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["bind_parameter_name"]
    lib.bind_null = <int (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["bind_null"]
    lib.bind_int64 = <int (*)(sqlite3_stmt*, int, int64_t) noexcept nogil><size_t>addresses["bind_int64"]
    lib.bind_double = <int (*)(sqlite3_stmt*, int, double) noexcept nogil><size_t>addresses["bind_double"]
    lib.bind_text = <int (*)(sqlite3_stmt*, int, const char*, int, void*) noexcept nogil><size_t>addresses["bind_text"]
    lib.bind_blob64 = <int (*)(sqlite3_stmt*, int, const void*, uint64_t, void*) noexcept nogil><size_t>addresses["bind_blob64"]
    lib.column_count = <int (*)(sqlite3_stmt*) noexcept nogil><size_t>addresses["column_count"]
    lib.column_type = <int (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["column_type"]
    lib.column_int64 = <int64_t (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["column_int64"]
    lib.column_double = <double (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["column_double"]
    lib.column_text = <const char* (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["column_text"]
    lib.column_blob = <const char* (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["column_blob"]
    lib.column_bytes = <int (*)(sqlite3_stmt*, int) noexcept nogil><size_t>addresses["column_bytes"]
    bound = True
