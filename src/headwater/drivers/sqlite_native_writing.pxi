# Included by sqlite_native.pyx: Arrow buffers into rows.


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
