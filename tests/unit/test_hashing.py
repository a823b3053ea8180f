"""The documented hash, written a second time over plain Python values, against the one over Arrow buffers."""

from __future__ import annotations

import datetime
import decimal
import struct
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.mapping.hashing import event_ids, hash_rows
from headwater.model import ORDER_FIELDS, Events, id_seed

SEED = bytes(range(16))
WRAP = 2**64
GOLDEN, SILVER = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
NULL = (0x6A09E667F3BCC908, 0xBB67AE8584CAA73B)
STRUCT = (0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1)
LENGTH = (0x510E527FADE682D1, 0x9B05688C2B3E6C1F)
EPOCH = datetime.datetime(1970, 1, 1)

Pair = tuple[int, int]


def mix(word: int) -> int:
    word %= WRAP
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WRAP
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WRAP
    return word ^ (word >> 31)


def sequence(items: list[Pair], length: int) -> Pair:
    a, b = mix(length + LENGTH[0]), mix(length + LENGTH[1])
    for k, (item_a, item_b) in enumerate(items, 1):
        a += mix(item_a ^ mix(k * GOLDEN))
        b += mix(item_b + mix(k * SILVER))
    return a % WRAP, b % WRAP


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 8].ljust(8, b"\0"), "little") for i in range(0, len(data), 8)]


def float_word(value: float) -> int:
    if value != value:
        return 0x7FF8000000000000
    return int.from_bytes(struct.pack("<d", value + 0.0), "little")


def pair(value: Any, kind: pa.DataType) -> Pair:
    if value is None:
        return NULL
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        data = value.encode() if isinstance(value, str) else value
        return sequence([(w, w) for w in words(data)], len(data))
    if pa.types.is_decimal(kind):
        unscaled = int(value.scaleb(kind.scale, decimal.Context(prec=80)))
        parts = words(unscaled.to_bytes(kind.bit_width // 8, "little", signed=True))
        return sequence([(w, w) for w in parts], 0)
    if pa.types.is_list(kind):
        return sequence([pair(item, kind.value_type) for item in value], len(value))
    if pa.types.is_map(kind):
        items = [row([(k, kind.key_type), (v, kind.item_type)], STRUCT) for k, v in value]
        return sequence(items, len(value))
    if pa.types.is_struct(kind):
        return row([(value[f.name], f.type) for f in kind], STRUCT)
    word = float_word(value) if pa.types.is_floating(kind) else integer(value) % WRAP
    return word, mix(word)


def integer(value: Any) -> int:
    if isinstance(value, datetime.datetime):
        return (value - EPOCH) // datetime.timedelta(microseconds=1)
    if isinstance(value, datetime.date):
        return (value - EPOCH.date()).days
    if isinstance(value, datetime.time):
        return (datetime.datetime.combine(EPOCH.date(), value) - EPOCH) // datetime.timedelta(microseconds=1)
    return int(value)


def row(cells: list[tuple[Any, pa.DataType]], start: Pair) -> Pair:
    x, y = start
    for value, kind in cells:
        a, b = pair(value, kind)
        x, y = mix((x ^ a) + GOLDEN), mix((y + b) ^ SILVER)
    return x, y


def expected(cells: list[tuple[Any, pa.DataType]]) -> bytes:
    x, y = row(cells, struct.unpack("<QQ", SEED))
    return struct.pack("<QQ", x, y)


def hashes(*columns: pa.Array) -> list[bytes]:
    found: list[bytes] = hash_rows(columns, SEED).to_pylist()
    return found


POINT = pa.struct([("x", pa.int32()), ("name", pa.string())])
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.decimal128(38, 3), st.decimals(min_value=-(10**20), max_value=10**20, places=3)),
    (pa.decimal256(60, 2), st.decimals(min_value=-(10**20), max_value=10**20, places=2)),
    (pa.string(), st.text(max_size=40)),
    (pa.large_string(), st.text(max_size=12)),
    (pa.binary(), st.binary(max_size=40)),
    (pa.date32(), st.dates()),
    (pa.time64("us"), st.times()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.list_(pa.string()), st.lists(st.none() | st.text(max_size=9), max_size=4)),
    (pa.list_(pa.list_(pa.int64())), st.lists(st.none() | st.lists(st.integers(-9, 9), max_size=3), max_size=3)),
    (POINT, st.fixed_dictionaries({"x": st.none() | st.integers(-9, 9), "name": st.none() | st.text(max_size=9)})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(st.text(max_size=9), st.none() | st.integers(0, 9)))),
]


@settings(max_examples=250, deadline=None)
@given(st.data(), st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.integers(0, 2), st.integers(0, 6))
def test_arrow_hash_is_the_documented_one(data: st.DataObject, kinds: list[Any], cut: int, count: int) -> None:
    values = [[data.draw(st.none() | strategy) for _ in range(count + 2 * cut)] for _, strategy in kinds]
    columns = [pa.array(column, kind) for column, (kind, _) in zip(values, kinds, strict=True)]
    cells = [
        [(column[i], kind) for column, (kind, _) in zip(values, kinds, strict=True)] for i in range(len(values[0]))
    ]
    found = hashes(*(column.slice(cut, count) for column in columns))
    assert found == [expected(row) for row in cells[cut : cut + count]]


def test_golden_values_never_change() -> None:
    columns = [
        pa.array([1, None, -1], pa.int64()),
        pa.array(["", "ünïcode and more than eight bytes", None]),
        pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-0.01")], pa.decimal128(10, 2)),
        pa.array([[1.5, None], [], None], pa.list_(pa.float64())),
    ]
    assert [value.hex() for value in hashes(*columns)] == GOLDEN_HASHES


GOLDEN_HASHES = [
    "52868c40eb2f461214e57182744c0631",
    "ed5c7c0586bb7f7a6a277bd5f8fca7b7",
    "b0185324e9eb95c5f020b93ba0b73d81",
]


def test_null_empty_and_zero_differ() -> None:
    texts = hashes(pa.array([None, "", "\0", "\0\0"]))
    numbers = hashes(pa.array([None, 0, 1]))
    lists = hashes(pa.array([None, [], [None], [None, None]], pa.list_(pa.int64())))
    assert [len(set(found)) for found in (texts, numbers, lists)] == [4, 3, 4]


def test_value_cannot_move_to_the_next_column() -> None:
    left, right = pa.array(["ab", "a"]), pa.array(["c", "bc"])
    assert len(set(hashes(left, right))) == 2
    assert hashes(pa.array([1]), pa.array([2])) != hashes(pa.array([2]), pa.array([1]))


def test_zeros_and_nans_are_canonical() -> None:
    odd = pa.array([struct.unpack("<d", bytes([1, 0, 0, 0, 0, 0, 0xF8, 0xFF]))[0], float("nan"), float("nan")])
    assert len(set(hashes(odd))) == 1
    assert hashes(pa.array([-0.0])) == hashes(pa.array([0.0]))
    assert hashes(pa.array([1.5], pa.float32())) == hashes(pa.array([1.5], pa.float64()))


def test_widened_integers_and_large_strings_keep_their_hash() -> None:
    assert hashes(pa.array([-5], pa.int8())) == hashes(pa.array([-5], pa.int64()))
    assert hashes(pa.array(["x" * 20])) == hashes(pa.array(["x" * 20], pa.large_string()))
    assert hashes(pa.array(["abc"]).dictionary_encode()) == hashes(pa.array(["abc"]))
    assert hashes(pa.array(["abc", None], pa.string_view())) == hashes(pa.array(["abc", None]))
    assert hashes(pa.array([b"abcd"], pa.binary(4))) == hashes(pa.array([b"abcd"]))


def test_long_values_and_many_rows_cross_the_blocks() -> None:
    texts = ["x" * (3 * 2**20), "", "y", None] + [str(n) for n in range(40_000)]
    found = hashes(pa.array(texts), pa.array(range(len(texts))))
    some = [0, 1, 2, 3, 16_383, 16_384, 16_385, 40_003]
    assert [found[n] for n in some] == [expected([(texts[n], pa.string()), (n, pa.int64())]) for n in some]
    assert len(set(found)) == len(texts)


def test_null_lists_that_span_items_hash_as_null() -> None:
    values = pa.array([1, 2, 3])
    spanning = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), values, mask=pa.array([True, False]))
    assert hashes(spanning) == hashes(pa.array([None, [3]], pa.list_(pa.int64())))


@pytest.mark.parametrize("count", [0, 1])
def test_no_rows_and_no_columns(count: int) -> None:
    assert len(hash_rows([pa.nulls(count)], SEED)) == count
    assert len(hash_rows([], SEED)) == 0


def events(rows: list[dict[str, Any]], *, content: bool = False, stream: str = "s") -> Events:
    schema = pa.schema([*ORDER_FIELDS, pa.field("id", pa.int64()), pa.field("name", pa.string())])
    data = pa.RecordBatch.from_pylist(rows, schema=schema)
    return Events(stream, 1, data, source="a", seed=id_seed("p", "a", stream), content_ids=content)


BASE = {"_op": 1, "_epoch": 1, "_commit": 2, "_index": 3, "id": 4, "name": "x"}


def test_event_ids_depend_on_seed_and_order_alone() -> None:
    same = {**BASE, "_op": 2, "id": 5, "name": None}
    others = [{**BASE, "_epoch": 2}, {**BASE, "_commit": 3}, {**BASE, "_index": 4}, {**BASE, "_commit": 3, "_index": 2}]
    ids = event_ids(events([BASE, same, *others])).to_pylist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5
    assert event_ids(events([BASE], stream="t")).to_pylist() != ids[:1]


def test_event_ids_of_query_capture_depend_on_the_content_too() -> None:
    others = [{**BASE, "id": 5}, {**BASE, "name": None}, {**BASE, "_op": 3}]
    ids = event_ids(events([BASE, BASE, *others], content=True)).to_pylist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert event_ids(events([BASE])).to_pylist() != ids[:1]


def test_event_ids_do_not_depend_on_the_batch() -> None:
    rows = [{**BASE, "_index": n} for n in range(5)]
    whole = event_ids(events(rows))
    part = events(rows)
    sliced = Events(part.stream, 1, part.data.slice(2, 2), seed=part.seed)
    assert event_ids(sliced).to_pylist() == whole.to_pylist()[2:4]
