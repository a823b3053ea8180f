# Numbers as PostgreSQL sends them: the most significant byte first.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef inline uint32_t half(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 8) | at[1]


cdef inline int64_t signed_half(const uint8_t* at) noexcept nogil:
    return <int64_t>(half(at) ^ 0x8000) - 0x8000


cdef inline uint32_t word(const uint8_t* at) noexcept nogil:
    return (half(at) << 16) | half(at + 2)


cdef inline uint64_t number(const uint8_t* at) noexcept nogil:
    return (<uint64_t>word(at) << 32) | word(at + 4)
