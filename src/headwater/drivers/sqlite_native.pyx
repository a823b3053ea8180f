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
    SHOWN_BYTES = 160
    MOST_ROWS = 65536
    STEPS_BETWEEN_CHECKS = 4000

cdef void* TRANSIENT = <void*><size_t>-1
cdef const char* EMPTY = b""

cdef int64_t EXACT_INTEGER = EXACT
cdef int64_t BATCH_BYTES = BYTES


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


# reading


cdef struct Column:
    # One Arrow array in the making. `kind` is a storage class, or VARIANT_KIND with four children behind it.
    int kind
    int source          # the statement's column
    uint8_t* valid      # bitmap
    char* fixed         # 8 bytes a row: INTEGER, REAL
    int32_t* offsets    # TEXT, BLOB
    char* data
    int64_t used
    int64_t room
    int64_t filled      # rows whose end is in `offsets`
    int64_t count       # rows that are not null


cdef struct Bad:
    # A value that does not fit, or its beginning.
    int64_t row
    int source
    int kind
    int64_t integer
    double real
    int64_t size
    char shown[SHOWN_BYTES]


cdef class _Memory:
    """Memory from malloc, as a buffer; freed with the last array that lies in it."""

    cdef void* pointer
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.pointer if self.pointer is not NULL else <void*>EMPTY, self.size, 0, flags)

    def __dealloc__(self):
        free(self.pointer)


cdef object _buffer(void* pointer, int64_t size):
    """Takes the memory over."""
    cdef _Memory memory = _Memory.__new__(_Memory)
    memory.pointer = pointer
    memory.size = size
    return pa.py_buffer(memory)


cdef class NativeRows:
    """The rows of one running statement, batch by batch."""

    cdef _Statement statement
    cdef object schema
    cdef Column* columns
    cdef int width          # of `columns`, children included
    cdef int64_t capacity
    cdef int64_t rows
    cdef int64_t taken      # bytes of texts and blobs
    cdef Bad* bad
    cdef int64_t bad_count
    cdef int64_t bad_room
    cdef bint done

    def __cinit__(self, NativeEngine engine, str sql, parameters, schema):
        cdef int found, place = 0
        self.schema = schema
        self.statement = engine.prepare(sql)
        found = lib.column_count(self.statement.pointer)
        if found != len(schema):
            self.statement.finalize()
            check_width(found, schema)
        self.statement.bind(parameters)
        self.width = sum(5 if field.type == VARIANT else 1 for field in schema)
        self.columns = <Column*>calloc(self.width + 1, sizeof(Column))
        if self.columns is NULL:
            raise MemoryError
        for number, field in enumerate(schema):
            for kind in _kinds(field.type):
                self.columns[place].kind = kind
                self.columns[place].source = number
                place += 1

    def __dealloc__(self):
        self.forget()
        free(self.columns)
        free(self.bad)

    def fetch(self, rows):
        """At most `rows` rows, fewer when they are wide; None at the end."""
        cdef int64_t most = min(rows, MOST_ROWS)
        cdef int code = ROW
        if self.done:
            return None
        if self.statement.pointer is NULL:
            raise StatementError(f"{self.statement.engine.path}: the rows are closed")
        self.rows = self.taken = self.bad_count = 0
        with nogil:
            while self.rows < most and self.taken < BATCH_BYTES:
                code = lib.step(self.statement.pointer)
                if code != ROW:
                    break
                if self.rows == self.capacity and not self.grow(min(most, max(1024, 4 * self.capacity))):
                    code = -1
                    break
                if not self.take_row():
                    code = -1
                    break
        if code == -1:
            self.forget()
            raise MemoryError
        if code != ROW:
            self.done = True
            if code != DONE:
                self.forget()
                raise self.statement.engine.error()
        return self.batch() if self.rows else None

    def close(self):
        self.done = True
        self.forget()
        self.statement.finalize()

    cdef bint grow(self, int64_t capacity) noexcept nogil:
        """Room for more rows in every column; new validity bits are 0."""
        cdef int index
        cdef Column* c
        for index in range(self.width):
            c = &self.columns[index]
            if not widened(<void**>&c.valid, (self.capacity + 7) // 8, (capacity + 7) // 8):
                return False
            if c.kind == INTEGER or c.kind == REAL:
                if not widened(<void**>&c.fixed, self.capacity * 8, capacity * 8):
                    return False
            elif c.kind != VARIANT_KIND:
                if not widened(<void**>&c.offsets, (self.capacity + 1) * 4 if self.capacity else 0, (capacity + 1) * 4):
                    return False
        self.capacity = capacity
        return True

    cdef bint take_row(self) noexcept nogil:
        cdef int index = 0
        cdef Column* c
        while index < self.width:
            c = &self.columns[index]
            if c.kind == VARIANT_KIND:
                if not self.take_variant(c):
                    return False
                index += 5
            else:
                if not self.take_plain(c):
                    return False
                index += 1
        self.rows += 1
        return True

    cdef bint take_plain(self, Column* c) noexcept nogil:
        cdef int kind = lib.column_type(self.statement.pointer, c.source)
        cdef int64_t integer
        cdef double real
        if kind == NULL_TYPE:
            return True
        if kind == c.kind:
            return self.take_value(c, kind)
        if kind == INTEGER and c.kind == REAL:
            integer = lib.column_int64(self.statement.pointer, c.source)
            if -EXACT_INTEGER <= integer <= EXACT_INTEGER:
                (<double*>c.fixed)[self.rows] = <double>integer
                self.set_valid(c)
                return True
        elif kind == REAL and c.kind == INTEGER:
            real = lib.column_double(self.statement.pointer, c.source)
            if -EXACT_INTEGER <= real <= EXACT_INTEGER and floor(real) == real:
                (<int64_t*>c.fixed)[self.rows] = <int64_t>real
                self.set_valid(c)
                return True
        return self.report(c, kind)

    cdef bint take_variant(self, Column* c) noexcept nogil:
        cdef int kind = lib.column_type(self.statement.pointer, c.source)
        cdef int64_t before
        if kind == NULL_TYPE:
            return True
        before = c[kind].count
        if not self.take_value(&c[kind], kind):
            return False
        if c[kind].count > before:
            self.set_valid(c)
        return True

    cdef bint take_value(self, Column* c, int kind) noexcept nogil:
        cdef const char* data
        cdef int64_t size
        if kind == INTEGER:
            (<int64_t*>c.fixed)[self.rows] = lib.column_int64(self.statement.pointer, c.source)
        elif kind == REAL:
            (<double*>c.fixed)[self.rows] = lib.column_double(self.statement.pointer, c.source)
        else:
            if kind == TEXT:
                data = lib.column_text(self.statement.pointer, c.source)
            else:
                data = lib.column_blob(self.statement.pointer, c.source)
            size = lib.column_bytes(self.statement.pointer, c.source)
            if kind == TEXT and not is_utf8(<const uint8_t*>data, size):
                return self.report(c, kind)
            if not append(c, self.rows, data, size):
                return False
            self.taken += size
        self.set_valid(c)
        return True

    cdef void set_valid(self, Column* c) noexcept nogil:
        c.valid[self.rows >> 3] |= <uint8_t>(1 << (self.rows & 7))
        c.count += 1

    cdef bint report(self, Column* c, int kind) noexcept nogil:
        """Note a value that does not fit; it stays null."""
        cdef Bad* bad
        cdef const char* data
        cdef void* grown
        if self.bad_count == self.bad_room:
            self.bad_room = max(16, 2 * self.bad_room)
            grown = realloc(self.bad, self.bad_room * sizeof(Bad))
            if grown is NULL:
                return False
            self.bad = <Bad*>grown
        bad = &self.bad[self.bad_count]
        self.bad_count += 1
        bad.row, bad.source, bad.kind, bad.size = self.rows, c.source, kind, 0
        if kind == INTEGER:
            bad.integer = lib.column_int64(self.statement.pointer, c.source)
        elif kind == REAL:
            bad.real = lib.column_double(self.statement.pointer, c.source)
        else:
            if kind == TEXT:
                data = lib.column_text(self.statement.pointer, c.source)
            else:
                data = lib.column_blob(self.statement.pointer, c.source)
            bad.size = lib.column_bytes(self.statement.pointer, c.source)
            if bad.size:
                memcpy(bad.shown, data, min(bad.size, SHOWN_BYTES))
        return True

    cdef object batch(self):
        """The arrays of what was taken; their memory is theirs from here on."""
        cdef int index = 0
        arrays = []
        while index < self.width:
            if self.columns[index].kind == VARIANT_KIND:
                arrays.append(self.variant(index))
                index += 5
            else:
                arrays.append(self.array(index))
                index += 1
        self.capacity = 0
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return with_misfits(batch, [self.misfit(n) for n in range(self.bad_count)]) if self.bad_count else batch

    cdef object variant(self, int index):
        children = [self.array(index + 1 + n) for n in range(4)]
        return pa.StructArray.from_buffers(VARIANT, self.rows, [self.validity(index)], children=children)

    cdef object array(self, int index):
        cdef Column* c = &self.columns[index]
        cdef int kind = c.kind
        cdef int64_t rows = self.rows, used
        type_ = _TYPES[kind]
        if not c.count:
            self.release(c)
            return pa.nulls(rows, type_)
        if kind == INTEGER or kind == REAL:
            data = _buffer(c.fixed, rows * 8)
            c.fixed = NULL
            return pa.Array.from_buffers(type_, rows, [self.validity(index), data])
        pad(c, rows)
        used = c.used
        offsets = _buffer(c.offsets, (rows + 1) * 4)
        data = _buffer(c.data, used)
        c.offsets, c.data = NULL, NULL
        c.used = c.room = c.filled = 0
        return pa.Array.from_buffers(type_, rows, [self.validity(index), offsets, data])

    cdef object validity(self, int index):
        cdef Column* c = &self.columns[index]
        if c.count == self.rows:
            self.release(c)
            return None
        bits = _buffer(c.valid, (self.rows + 7) // 8)
        c.valid = NULL
        c.count = 0
        return bits

    cdef object misfit(self, int64_t number):
        cdef Bad* bad = &self.bad[number]
        field = self.schema.field(bad.source)
        if bad.kind == INTEGER:
            shown = got(bad.integer, "integer", 0)
        elif bad.kind == REAL:
            shown = got(bad.real, "real", 0)
        else:
            begin = PyBytes_FromStringAndSize(bad.shown, min(bad.size, SHOWN_BYTES))
            shown = got(begin, "text" if bad.kind == TEXT else "blob", bad.size)
        return Misfit(bad.row, field.name, expected_of(field.type), shown)

    cdef void release(self, Column* c):
        free(c.valid)
        free(c.fixed)
        free(c.offsets)
        free(c.data)
        c.valid, c.fixed, c.offsets, c.data = NULL, NULL, NULL, NULL
        c.used = c.room = c.filled = c.count = 0

    cdef void forget(self):
        cdef int index
        if self.columns is not NULL:
            for index in range(self.width):
                self.release(&self.columns[index])
        self.capacity = 0


_TYPES = {INTEGER: pa.int64(), REAL: pa.float64(), TEXT: pa.string(), BLOB: pa.binary(), VARIANT_KIND: VARIANT}


def _kinds(type_):
    """The kinds of a column and of its children."""
    if type_ == VARIANT:
        return (VARIANT_KIND, INTEGER, REAL, TEXT, BLOB)
    return (next(kind for kind, known in _TYPES.items() if known == type_),)


cdef bint widened(void** pointer, int64_t old, int64_t new) noexcept nogil:
    """More memory, zeros behind the old."""
    cdef void* grown = realloc(pointer[0], new)
    if grown is NULL:
        return False
    memset(<char*>grown + old, 0, new - old)
    pointer[0] = grown
    return True


cdef void pad(Column* c, int64_t rows) noexcept nogil:
    """Empty ends for the null rows before `rows`."""
    while c.filled < rows:
        c.filled += 1
        c.offsets[c.filled] = <int32_t>c.used


cdef bint append(Column* c, int64_t row, const char* data, int64_t size) noexcept nogil:
    cdef void* grown
    cdef int64_t room
    pad(c, row)
    if c.used + size > c.room:
        room = max(max(c.used + size, 2 * c.room), 4096)
        grown = realloc(c.data, room)
        if grown is NULL:
            return False
        c.data, c.room = <char*>grown, room
    if size:
        memcpy(c.data + c.used, data, size)
    c.used += size
    c.filled = row + 1
    c.offsets[c.filled] = <int32_t>c.used
    return True


cdef bint is_utf8(const uint8_t* data, int64_t size) noexcept nogil:
    """Well-formed UTF-8 (Unicode 15, table 3-7): what Python decodes, and nothing else."""
    cdef int64_t at = 0
    cdef uint64_t eight
    cdef uint8_t lead, second
    cdef int more
    while at < size:
        if at + 8 <= size:
            memcpy(&eight, data + at, 8)
            if not eight & 0x8080808080808080ULL:
                at += 8
                continue
        lead = data[at]
        if lead < 0x80:
            at += 1
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        if at + more >= size:
            return False
        second = data[at + 1]
        if (second & 0xC0) != 0x80:
            return False
        if (lead == 0xE0 and second < 0xA0) or (lead == 0xED and second > 0x9F):
            return False
        if (lead == 0xF0 and second < 0x90) or (lead == 0xF4 and second > 0x8F):
            return False
        if more > 1 and (data[at + 2] & 0xC0) != 0x80:
            return False
        if more > 2 and (data[at + 3] & 0xC0) != 0x80:
            return False
        at += more + 1
    return True


# writing


cdef struct Input:
    # One Arrow array to be bound. `wide`: 64-bit offsets.
    int kind
    bint wide
    const uint8_t* valid
    const char* values
    const char* offsets
    int64_t offset


cdef int _write(NativeEngine engine, _Statement statement, list arrays, int64_t rows) except -1:
    cdef int width = len(arrays), column, code = OK
    cdef int64_t row
    cdef Input* inputs = <Input*>calloc(width + 1, sizeof(Input))
    keep = [array.buffers() for array in arrays]
    if inputs is NULL:
        raise MemoryError
    try:
        for column in range(width):
            _input(&inputs[column], arrays[column], keep[column])
        with nogil:
            for row in range(rows):
                code = write_row(statement.pointer, inputs, width, row)
                if code != DONE:
                    break
        if rows and code == TOO_BIG:
            raise error_of(engine.path, code, "string or blob too big")
        if rows and code != DONE:
            raise engine.error()
        lib.reset(statement.pointer)
    finally:
        statement.finalize()
        free(inputs)
    return 0


cdef int write_row(sqlite3_stmt* statement, Input* inputs, int width, int64_t row) noexcept nogil:
    cdef int column, code
    for column in range(width):
        code = bind_value(statement, column + 1, &inputs[column], row)
        if code != OK:
            return code
    code = lib.step(statement)
    while code == ROW:  # RETURNING
        code = lib.step(statement)
    if code == DONE:
        lib.reset(statement)
    return code


cdef int bind_value(sqlite3_stmt* statement, int index, Input* c, int64_t row) noexcept nogil:
    """Memory is bound as it lies there (SQLITE_STATIC): it outlives the statement."""
    cdef int64_t at = c.offset + row, start, end
    cdef const char* data
    if c.kind == NULL_TYPE or (c.valid is not NULL and not (c.valid[at >> 3] >> (at & 7)) & 1):
        return lib.bind_null(statement, index)
    if c.kind == INTEGER:
        return lib.bind_int64(statement, index, (<const int64_t*>c.values)[at])
    if c.kind == REAL:
        return lib.bind_double(statement, index, (<const double*>c.values)[at])
    if c.wide:
        start, end = (<const int64_t*>c.offsets)[at], (<const int64_t*>c.offsets)[at + 1]
    else:
        start, end = (<const int32_t*>c.offsets)[at], (<const int32_t*>c.offsets)[at + 1]
    data = c.values + start if end > start else EMPTY
    if end - start > 0x7FFFFFFF:
        return TOO_BIG
    if c.kind == TEXT:
        return lib.bind_text(statement, index, data, <int>(end - start), NULL)
    return lib.bind_blob64(statement, index, data, <uint64_t>(end - start), NULL)


cdef int _input(Input* target, array, buffers) except -1:
    type_ = array.type
    target.offset = array.offset
    if pa.types.is_null(type_):
        target.kind = NULL_TYPE
        return 0
    target.wide = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
    target.valid = <const uint8_t*><size_t>(buffers[0].address if buffers[0] is not None else 0)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        target.kind = INTEGER if pa.types.is_integer(type_) else REAL
        target.values = <const char*><size_t>(buffers[1].address if buffers[1] is not None else 0)
        return 0
    target.kind = TEXT if pa.types.is_string(type_) or pa.types.is_large_string(type_) else BLOB
    target.offsets = <const char*><size_t>(buffers[1].address if buffers[1] is not None else 0)
    target.values = <const char*><size_t>(buffers[2].address if buffers[2] is not None else 0)
    return 0
