"""128-bit hashes of rows, the same in every process and for ever: event ids, and exact de-duplication of rows.

Not a cryptographic hash: it tells apart what was not made to collide. The algorithm is fixed; ids that are stored
elsewhere depend on it, and `tests/unit/test_hashing.py` holds golden values.

All numbers are unsigned 64-bit integers that wrap. `mix` is the finaliser of splitmix64 (Steele, Lea, Flood: Fast
Splittable Pseudorandom Number Generators, 2014). Each value becomes a pair (a, b):

    null                      (NULL_A, NULL_B)
    bool, integers, dates,    (w, mix(w)), w the value, sign-extended; times and timestamps by their integer, in the
      times, timestamps         unit of their type. So a widened integer keeps its hash
    float32, float64          likewise, w the bits of the float64; -0.0 counts as 0.0, every NaN as 0x7ff8000000000000
    decimal                   as the sequence of the 64-bit words of its unscaled integer, lowest first, 2 up to 38
                                digits, else 4
    string, bytes             as the sequence of its bytes, eight to a word, little-endian, the last padded with zeros
    list, map                 as the sequence of its items' pairs; a map is a list of struct<key, value>
    struct                    a row hash of its children, begun with (STRUCT_A, STRUCT_B)

A sequence of n words or pairs (a word w is the pair (w, w)) and a length L (bytes, or items; decimals: 0):

    a = mix(L + LENGTH_A) + sum over k of mix(a_k ^ mix((k + 1) * GOLDEN))
    b = mix(L + LENGTH_B) + sum over k of mix(b_k + mix((k + 1) * SILVER))

A row begins with the seed's two little-endian words and takes in one column after the other:

    x = mix((x ^ a) + GOLDEN),  y = mix((y + b) ^ SILVER)

The hash is x then y, little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.model import Events

Words = npt.NDArray[np.uint64]
Pair = tuple[Words, Words]

_U = np.uint64
GOLDEN, SILVER = _U(0x9E3779B97F4A7C15), _U(0xD1B54A32D192ED03)
NULL_A, NULL_B = _U(0x6A09E667F3BCC908), _U(0xBB67AE8584CAA73B)
STRUCT_A, STRUCT_B = _U(0x3C6EF372FE94F82B), _U(0xA54FF53A5F1D36F1)
LENGTH_A, LENGTH_B = _U(0x510E527FADE682D1), _U(0x9B05688C2B3E6C1F)
_MIX_1, _MIX_2 = _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_NAN = _U(0x7FF8000000000000)
_BLOCK = 16_384
"""Rows at a time, so that the working arrays stay in the processor's cache."""
_BLOCK_BYTES = 1 << 20


def hash_rows(columns: Sequence[pa.Array], seed: bytes) -> pa.Array:
    """One `fixed_size_binary(16)` per row over all columns; `seed` is 16 bytes."""
    count = len(columns[0]) if columns else 0
    out = np.empty((count, 2), dtype="<u8")
    for start in range(0, count, _BLOCK):
        block = [column.slice(start, _BLOCK) for column in columns]
        x, y = _row(block, *np.frombuffer(seed, dtype="<u8", count=2))
        out[start : start + _BLOCK, 0] = x
        out[start : start + _BLOCK, 1] = y
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(out)])


def event_ids(events: Events) -> pa.Array:
    """The ids of events: of their seed and order, and of every field (so of the key) where the order alone may not do.

    The same change keeps its id through any retry.
    """
    data = events.data
    names = ["_epoch", "_commit", "_index"]
    if events.content_ids:
        names += ["_op", *events.fields]
    return hash_rows([data.column(name) for name in names], events.seed)


def _row(columns: Sequence[pa.Array], x: np.uint64, y: np.uint64) -> Pair:
    count = len(columns[0])
    first, second = np.full(count, x, dtype=_U), np.full(count, y, dtype=_U)
    for column in columns:
        a, b = _pair(column)
        first = _mix((first ^ a) + GOLDEN)
        second = _mix((second + b) ^ SILVER)
    return first, second


def _mix(words: Words) -> Words:
    """splitmix64's finaliser; writes over its argument."""
    words ^= words >> _U(30)
    words *= _MIX_1
    words ^= words >> _U(27)
    words *= _MIX_2
    words ^= words >> _U(31)
    return words


def _pair(array: pa.Array) -> Pair:
    """The pairs of a column's values, nulls included."""
    array = _plain(array)
    a, b = _values(array)
    if array.null_count:
        null = array.is_null().to_numpy(zero_copy_only=False)
        a, b = np.where(null, NULL_A, a), np.where(null, NULL_B, b)
    return a, b


def _plain(array: pa.Array) -> pa.Array:
    """Types that are other spellings of a type above, as that type."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    if pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.binary())
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return array.cast(pa.decimal128(kind.precision, kind.scale))
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return array.cast(pa.large_list(kind.value_field))
    return array


def _values(array: pa.Array) -> Pair:
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), NULL_A, dtype=_U), np.full(len(array), NULL_B, dtype=_U)
    if pa.types.is_floating(kind):
        return _word_pair(_float_words(array))
    if pa.types.is_decimal(kind):
        return _decimals(array)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _texts(array, np.int32)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _texts(array, np.int64)
    if pa.types.is_map(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(array)
    if pa.types.is_struct(kind):
        return _row([_child(array, i) for i in range(kind.num_fields)], STRUCT_A, STRUCT_B)
    return _word_pair(_integer_words(array))


def _child(array: pa.StructArray, place: int) -> pa.Array:
    """A child as long as its parent, wherever the parent was cut."""
    return array.field(place)


def _word_pair(words: Words) -> Pair:
    return words, _mix(words.copy())


def _fixed(array: pa.Array, dtype: npt.DTypeLike, width: int = 1) -> npt.NDArray[Any]:
    """A fixed-width column's raw values, `width` to a row, past the column's offset; nulls hold anything."""
    buffer = array.buffers()[1]
    item = np.dtype(dtype).itemsize * width
    if buffer is None or not len(array):
        return np.zeros(len(array) * width, dtype=dtype)
    return np.frombuffer(buffer, dtype=dtype, count=len(array) * width, offset=array.offset * item)


def _integer_words(array: pa.Array) -> Words:
    kind = array.type
    if pa.types.is_boolean(kind):
        bits: Words = array.cast(pa.uint8()).fill_null(0).to_numpy().astype(_U)
        return bits
    signed = not pa.types.is_unsigned_integer(kind)
    dtype = np.dtype(f"<{'i' if signed else 'u'}{kind.bit_width // 8}")
    values = _fixed(array, dtype)
    return values.astype(np.int64).view(_U) if signed else values.astype(_U)


def _float_words(array: pa.Array) -> Words:
    values = _fixed(array, np.dtype(f"<f{array.type.bit_width // 8}")).astype(np.float64)
    values += 0.0  # -0.0 + 0.0 is 0.0
    words = values.view(_U)
    words[np.isnan(values)] = _NAN
    return words


def _decimals(array: pa.Array) -> Pair:
    width = array.type.bit_width // 64
    words = _fixed(array, "<u8", width).astype(_U).reshape(-1, width)
    a, b = _length_pair(np.zeros(len(array), dtype=_U))
    for k in range(width):
        more_a, more_b = _terms(words[:, k], words[:, k], np.full(1, k, dtype=_U))
        a += more_a
        b += more_b
    return a, b


def _length_pair(lengths: Words) -> Pair:
    return _mix(lengths + LENGTH_A), _mix(lengths + LENGTH_B)


def _terms(a: Words, b: Words, k: Words) -> Pair:
    place = k + _U(1)
    return _mix(a ^ _mix(place * GOLDEN)), _mix(b + _mix(place * SILVER))


def _offsets(array: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[np.int64]:
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) + 1, dtype=np.int64)
    size = np.dtype(dtype).itemsize
    return np.frombuffer(buffer, dtype=dtype, count=len(array) + 1, offset=array.offset * size).astype(np.int64)


def _texts(array: pa.Array, dtype: npt.DTypeLike) -> Pair:
    offsets = _offsets(array, dtype)
    buffer = array.buffers()[2]
    a, b = _length_pair(np.diff(offsets).astype(_U))
    if buffer is None or offsets[0] == offsets[-1]:
        return a, b
    data = np.frombuffer(buffer, dtype=np.uint8)
    start = 0
    while start < len(array):  # in stretches of about a megabyte, for the same reason as the blocks of rows
        stop = int(np.searchsorted(offsets, offsets[start] + _BLOCK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), len(array))
        more_a, more_b = _byte_sums(data, offsets[start : stop + 1])
        a[start:stop] += more_a
        b[start:stop] += more_b
        start = stop
    return a, b


def _byte_sums(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Pair:
    lengths = np.diff(offsets)
    counts = (lengths + 7) >> 3
    padded = np.zeros(int(offsets[-1] - offsets[0]) + 8, dtype=np.uint8)
    padded[:-8] = data[offsets[0] : offsets[-1]]
    at_any_byte = np.ndarray(len(padded) - 7, dtype="<u8", buffer=padded, strides=(1,))
    ends = np.cumsum(counts)
    k = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(ends - counts, counts)
    words = at_any_byte[np.repeat(offsets[:-1] - offsets[0], counts) + 8 * k].astype(_U)
    last = ends[counts > 0] - 1
    spare = (8 * counts - lengths)[counts > 0].astype(_U)
    words[last] &= _U(0xFFFFFFFFFFFFFFFF) >> (spare << _U(3))
    return _sums(*_terms(words, words, k.astype(_U)), ends, counts)


def _sums(a: Words, b: Words, ends: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Pair:
    """The sums over each row's stretch; differences of running sums, which wrap and so stay exact."""
    zero = np.zeros(1, dtype=_U)
    total_a, total_b = np.concatenate([zero, np.cumsum(a)]), np.concatenate([zero, np.cumsum(b)])
    return total_a[ends] - total_a[ends - counts], total_b[ends] - total_b[ends - counts]


def _lists(array: pa.Array) -> Pair:
    offsets = _offsets(array, np.int64 if pa.types.is_large_list(array.type) else np.int32)
    counts = np.diff(offsets)
    if array.null_count:  # a null list may span items; they are not its value
        counts = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, counts)
    a, b = _length_pair(counts.astype(_U))
    ends = np.cumsum(counts)
    if not len(ends) or not ends[-1]:
        return a, b
    k = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(ends - counts, counts)
    items_a, items_b = _pair(_items(array).take(pa.array(np.repeat(offsets[:-1], counts) + k)))
    more_a, more_b = _sums(*_terms(items_a, items_b, k.astype(_U)), ends, counts)
    return a + more_a, b + more_b


def _items(array: pa.Array) -> pa.Array:
    """The items that a list's offsets count, from the very first one on."""
    if pa.types.is_map(array.type):
        fields = [array.type.key_field, array.type.item_field]
        return pa.StructArray.from_arrays([array.keys, array.items], fields=fields)
    return array.values
