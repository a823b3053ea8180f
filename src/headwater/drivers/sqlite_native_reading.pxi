# Included by sqlite_native.pyx: rows into Arrow buffers.


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
    # A value that does not fit; of texts and blobs, the beginning lies at `at` in `bad_bytes`.
    int64_t row
    int source
    int kind
    int64_t integer
    double real
    int64_t size
    int64_t at


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
    cdef char* bad_bytes
    cdef int64_t bad_used
    cdef int64_t bad_bytes_room
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
        free(self.bad_bytes)

    def fetch(self, rows):
        """At most `rows` rows, fewer when they are wide; None at the end."""
        cdef int64_t most = min(rows, MOST_ROWS)
        cdef int code = ROW
        if self.done:
            return None
        if self.statement.pointer is NULL:
            raise StatementError(f"{self.statement.engine.path}: the rows are closed")
        self.rows = self.taken = self.bad_count = self.bad_used = 0
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
            return self.keep(bad, data, min(bad.size, SHOWN_BYTES))
        return True

    cdef bint keep(self, Bad* bad, const char* data, int64_t size) noexcept nogil:
        """Copy what is shown of a value; it counts towards the size of the batch."""
        cdef void* grown
        if self.bad_used + size > self.bad_bytes_room:
            self.bad_bytes_room = max(4096, 2 * (self.bad_used + size))
            grown = realloc(self.bad_bytes, self.bad_bytes_room)
            if grown is NULL:
                return False
            self.bad_bytes = <char*>grown
        bad.at = self.bad_used
        if size:
            memcpy(self.bad_bytes + self.bad_used, data, size)
        self.bad_used += size
        self.taken += size
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
            begin = PyBytes_FromStringAndSize(self.bad_bytes + bad.at, min(bad.size, SHOWN_BYTES))
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
