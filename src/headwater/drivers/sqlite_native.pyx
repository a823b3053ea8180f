# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One SQLite connection that steps rows straight into Arrow buffers, and binds Arrow buffers, without the GIL.

It calls the library that Python's `sqlite3` has loaded, by addresses (see `sqlite_library`), so prototypes are written
out here (https://www.sqlite.org/c3ref/funclist.html) and no header is needed. It gives exactly what `StdlibEngine`
gives: values, marks and errors; a property test compares them.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

import pyarrow as pa

from headwater.drivers.sqlite_errors import StatementError, error_of
from headwater.drivers.sqlite_values import (
    BYTES,
    SHOWN,
    EXACT,
    VARIANT,
    Misfit,
    bindable,
    check_count,
    check_width,
    decoded,
    expected_of,
    got,
    with_misfits,
)

include "sqlite_native_library.pxi"


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef int past_deadline(void* deadline) noexcept nogil:
    return now() > (<double*>deadline)[0]


cdef class _Statement:
    """A prepared statement; it keeps its connection open until it is finalized."""

    cdef sqlite3_stmt* pointer
    cdef NativeEngine engine

    def __dealloc__(self):
        if self.pointer is not NULL:
            lib.finalize(self.pointer)

    cdef void finalize(self):
        if self.pointer is not NULL:
            with nogil:
                lib.finalize(self.pointer)
            self.pointer = NULL

    cdef int bind(self, parameters) except -1:
        """By position or by name, as Python's `sqlite3` does."""
        cdef int count = lib.bind_parameter_count(self.pointer)
        cdef int index
        cdef const char* name
        if hasattr(parameters, "keys"):
            for index in range(1, count + 1):
                name = lib.bind_parameter_name(self.pointer, index)
                if name is NULL:
                    raise StatementError(f"{self.engine.path}: parameter {index} has no name, and values are given by name")
                key = (<bytes>name)[1:].decode()
                if key not in parameters:
                    raise StatementError(f"{self.engine.path}: there is no value for parameter :{key}")
                self.bind_one(index, parameters[key])
            return 0
        check_count(self.engine.path, count, len(parameters))
        for index in range(count):
            self.bind_one(index + 1, parameters[index])
        return 0

    cdef int bind_one(self, int index, value) except -1:
        cdef int code
        cdef bytes raw
        if value is None:
            code = lib.bind_null(self.pointer, index)
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise StatementError(f"{self.engine.path}: an integer does not fit SQLite's 64 bits: {value}")
            code = lib.bind_int64(self.pointer, index, value)
        elif isinstance(value, float):
            code = lib.bind_double(self.pointer, index, value)
        elif isinstance(value, str):
            raw = encoded(self.engine.path, value)
            code = lib.bind_text(self.pointer, index, PyBytes_AS_STRING(raw), <int>PyBytes_GET_SIZE(raw), TRANSIENT)
        elif isinstance(value, (bytes, bytearray, memoryview)):
            raw = bytes(value)
            code = lib.bind_blob64(self.pointer, index, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), TRANSIENT)
        else:
            raise StatementError(f"{self.engine.path}: a {type(value).__name__} cannot be a parameter")
        if code != OK:
            raise self.engine.error()
        return 0

    cdef object column(self, int index):
        """The value as a Python object."""
        cdef int kind = lib.column_type(self.pointer, index)
        cdef const char* data
        if kind == INTEGER:
            return lib.column_int64(self.pointer, index)
        if kind == REAL:
            return lib.column_double(self.pointer, index)
        if kind == NULL_TYPE:
            return None
        data = lib.column_text(self.pointer, index) if kind == TEXT else lib.column_blob(self.pointer, index)
        raw = PyBytes_FromStringAndSize(data if data is not NULL else EMPTY, lib.column_bytes(self.pointer, index))
        return decoded(raw) if kind == TEXT else raw


cdef bytes encoded(path, str text):
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StatementError(f"{path}: text cannot be written as UTF-8: {error.reason}") from error


cdef class NativeEngine:
    """See `sqlite.Engine` for what each method promises."""

    cdef sqlite3* db
    cdef double deadline
    cdef readonly str path
    cdef dict cache

    native = True

    def __cinit__(self, str uri, str path, double busy_timeout):
        cdef bytes name = uri.encode()
        cdef const char* raw = name
        cdef int code
        if not bound:
            raise StatementError(f"{path}: the native engine was given no library")
        self.path = path
        self.cache = {}
        with nogil:
            code = lib.open_v2(raw, &self.db, OPEN_FLAGS, NULL)
        if code != OK:
            raise self.error()
        lib.extended_result_codes(self.db, 1)
        lib.busy_timeout(self.db, <int>(busy_timeout * 1000))

    def __dealloc__(self):
        if self.db is not NULL:
            lib.close_v2(self.db)

    cdef object error(self):
        return error_of(self.path, lib.extended_errcode(self.db), lib.errmsg(self.db).decode("utf-8", "replace"))

    cdef _Statement prepare(self, str sql):
        cdef bytes text = encoded(self.path, sql)
        cdef const char* raw = text
        cdef const char* tail = NULL
        cdef int size = <int>PyBytes_GET_SIZE(text)
        cdef int code
        cdef _Statement statement = _Statement.__new__(_Statement)
        self.check_open()
        if b"\0" in text:
            raise StatementError(f"{self.path}: a statement cannot hold a NUL")
        statement.engine = self
        with nogil:
            code = lib.prepare_v2(self.db, raw, size + 1, &statement.pointer, &tail)
        if code != OK:
            raise self.error()
        if statement.pointer is NULL:
            raise StatementError(f"{self.path}: there is no statement in {sql!r}")
        if tail is not NULL and not _is_blank(tail):
            raise StatementError(f"{self.path}: one statement at a time")
        return statement

    cdef int check_open(self) except -1:
        if self.db is NULL:
            raise StatementError(f"{self.path}: the connection is closed")
        return 0

    def execute(self, str sql, parameters):
        cdef _Statement statement
        cdef int code, index, count
        cdef list rows = []
        self.check_open()
        statement = self.cache.pop(sql, None)
        if statement is None:
            statement = self.prepare(sql)
        statement.bind(parameters)
        count = lib.column_count(statement.pointer)
        try:
            while True:
                with nogil:
                    code = lib.step(statement.pointer)
                if code != ROW:
                    break
                rows.append(tuple([statement.column(index) for index in range(count)]))
            if code != DONE:
                raise self.error()
        finally:
            lib.reset(statement.pointer)
            lib.clear_bindings(statement.pointer)
        if len(self.cache) < 64:
            self.cache[sql] = statement
        return rows

    def open(self, str sql, parameters, columns):
        return NativeRows(self, sql, parameters, columns)

    def write(self, str sql, batch):
        cdef _Statement statement = self.prepare(sql)
        cdef int before = lib.total_changes(self.db)
        arrays = bindable(self.path, batch)
        check_count(self.path, lib.bind_parameter_count(statement.pointer), len(arrays))
        _write(self, statement, arrays, batch.num_rows)
        return lib.total_changes(self.db) - before

    @property
    def in_transaction(self):
        return self.db is not NULL and not lib.get_autocommit(self.db)

    def limit(self, seconds):
        """Interrupt what runs from now on after so many seconds. None: never."""
        self.check_open()
        if seconds is None:
            lib.progress_handler(self.db, 0, NULL, NULL)
            return
        self.deadline = now() + seconds
        lib.progress_handler(self.db, STEPS_BETWEEN_CHECKS, past_deadline, &self.deadline)

    def interrupt(self):
        if self.db is not NULL:
            lib.interrupt(self.db)

    def close(self):
        cdef sqlite3* db = self.db
        self.cache.clear()
        self.db = NULL
        if db is not NULL:
            with nogil:
                lib.close_v2(db)


cdef bint _is_blank(const char* tail):
    """Whether nothing but white space and comments is left."""
    rest = (<bytes>tail).lstrip(b" \t\r\n\f")
    while rest.startswith((b"--", b"/*")):
        end = b"\n" if rest.startswith(b"--") else b"*/"
        rest = rest[2:].partition(end)[2].lstrip(b" \t\r\n\f")
    return not rest


include "sqlite_native_reading.pxi"
include "sqlite_native_writing.pxi"
