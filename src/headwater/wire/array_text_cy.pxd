cimport cython

cdef unsigned char QUOTE, COMMA, BACKSLASH, OPEN, CLOSE

@cython.locals(row=Py_ssize_t, total=Py_ssize_t)
cpdef Py_ssize_t split(
    const unsigned char[::1] data, const int[::1] offsets, unsigned char[::1] out, int[::1] ends,
    unsigned char[::1] valid, int[::1] counts
)

@cython.locals(last=Py_ssize_t, at=Py_ssize_t, n=Py_ssize_t)
cdef Py_ssize_t _row(
    const unsigned char[::1] data, Py_ssize_t start, Py_ssize_t end, unsigned char[::1] out, int[::1] ends,
    unsigned char[::1] valid, Py_ssize_t total
) noexcept nogil

@cython.locals(to=Py_ssize_t, byte=cython.uchar)
cdef Py_ssize_t _quoted(
    const unsigned char[::1] data, Py_ssize_t at, Py_ssize_t last, unsigned char[::1] out, int[::1] ends, Py_ssize_t n
) noexcept nogil

@cython.locals(to=Py_ssize_t, byte=cython.uchar, begin=Py_ssize_t)
cdef Py_ssize_t _bare(
    const unsigned char[::1] data, Py_ssize_t at, Py_ssize_t last, unsigned char[::1] out, int[::1] ends, Py_ssize_t n
) noexcept nogil

cdef bint _is_null(const unsigned char[::1] data, Py_ssize_t at, Py_ssize_t last) noexcept nogil
