"""Rows of a binary COPY by the loop that makes all columns at once: the same as by the plain ones, right and wrong."""

from __future__ import annotations

import struct
from decimal import Context, Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import native
from headwater.wire import pgcopy_rows
from headwater.wire.pgcopy import SIGNATURE, CopyDecoder
from headwater.wire.pgoutput_messages import Malformed

HEADER = SIGNATURE + struct.pack(">II", 0, 0)
TRAILER = b"\xff\xff"
CODES = [
    "i2", "i4", "i8", "oid", "f4", "f8", "bool", "date", "time", "timestamp", "uuid", "text", "jsonb", "bytes",
    "numeric", "numeric(10,2)", "numeric(18,18)", "numeric(6,0)", "numeric(30,5)",
]  # fmt: skip
COLUMNS = [(f"c{number}", code) for number, code in enumerate(CODES)]

Fields = list[bytes | None]


def numeric(text: str, scale: int) -> bytes:
    """As `numeric_send` of PostgreSQL's numeric.c writes it."""
    sign, digits, _ = Decimal(text).quantize(Decimal(1).scaleb(-scale), context=Context(prec=60)).as_tuple()
    groups = -(-scale // 4)
    number = int("".join(map(str, digits))) * 10 ** (4 * groups - scale)
    words: list[int] = []
    while number:
        number, word = divmod(number, 10_000)
        words.insert(0, word)
    weight = len(words) - groups - 1 if words else 0
    while words and not words[-1]:
        words.pop()
    head = struct.pack(">HhHH", len(words), weight, 0x4000 if sign and words else 0, scale)
    return head + b"".join(struct.pack(">H", word) for word in words)


NAN = struct.pack(">HhHH", 0, 0, 0xC000, 0)


def numbers(digits: int, scale: int) -> st.SearchStrategy[bytes]:
    most = 10**digits - 1
    return st.integers(-most, most).map(lambda n: numeric(f"{n}E-{scale}", scale))


VALUES: dict[str, st.SearchStrategy[bytes]] = {
    **dict.fromkeys(("i2",), st.binary(min_size=2, max_size=2)),
    **dict.fromkeys(("i4", "oid", "f4", "date"), st.binary(min_size=4, max_size=4)),
    **dict.fromkeys(("i8", "f8", "time", "timestamp"), st.binary(min_size=8, max_size=8)),
    "bool": st.sampled_from([b"\0", b"\1"]),
    "uuid": st.binary(min_size=16, max_size=16),
    "text": st.text(max_size=9).map(str.encode),
    "jsonb": st.text(max_size=9).map(lambda text: b"\1" + text.encode()),
    "bytes": st.binary(max_size=9),
    "numeric": numbers(20, 7) | st.just(NAN),
    "numeric(10,2)": numbers(10, 2) | st.just(NAN),
    "numeric(18,18)": numbers(18, 18),
    "numeric(6,0)": numbers(6, 0),
    "numeric(30,5)": numbers(30, 5),
}

ROWS: st.SearchStrategy[list[Fields]] = st.lists(
    st.tuples(*(st.none() | VALUES[code] for code in CODES)).map(list), max_size=6
)


def encoded(rows: list[Fields]) -> bytes:
    out = b""
    for fields in rows:
        out += struct.pack(">h", len(fields))
        out += b"".join(b"\xff" * 4 if field is None else struct.pack(">i", len(field)) + field for field in fields)
    return HEADER + out + TRAILER


def outcome(data: bytes, *, at_once: bool) -> list[dict[str, object]] | str:
    """The rows, floats by their bits, numbers of a declared scale as decimals; or what is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        if not at_once:
            patch.setattr(native, "compiled", lambda name: None)
        decoder = CopyDecoder(COLUMNS)
    try:
        batch = decoder.decode(data)
        decoder.finish()
    except Malformed as error:
        return str(error)
    if batch is None:
        return []
    shown = [
        array.view(pa.int32()) if pa.types.is_float32(array.type) else
        array.view(pa.int64()) if pa.types.is_float64(array.type) else
        pc.cast(array, pa.string()) if pa.types.is_decimal(array.type) else array
        for array in batch.columns
    ]  # fmt: skip
    return [
        {code: Decimal(value) if code.startswith("numeric") and value is not None else value for code, value in row}
        for row in (zip(CODES, values, strict=True) for values in zip(*(a.to_pylist() for a in shown), strict=True))
    ]


def alike(left: object, right: object) -> bool:
    """NaN is itself here."""
    return repr(left) == repr(right) or left == right


@pytest.mark.needs("native")
@given(ROWS)
def test_f24_all_columns_at_once_are_what_each_is_by_itself(rows: list[Fields]) -> None:
    data = encoded(rows)
    assert alike(outcome(data, at_once=True), outcome(data, at_once=False))


@pytest.mark.needs("native")
@settings(max_examples=300)
@given(ROWS.filter(bool), st.data())
def test_damaged_bytes_give_the_same_values_or_the_same_error(rows: list[Fields], data: st.DataObject) -> None:
    whole = bytearray(encoded(rows))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(len(HEADER), len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert alike(outcome(bytes(whole), at_once=True), outcome(bytes(whole), at_once=False))


@pytest.mark.needs("native")
@pytest.mark.parametrize(
    ("code", "value", "text"),
    [
        ("numeric(10,2)", numeric("12345678.90", 2), "12345678.90"),
        ("numeric(10,2)", numeric("-0.05", 2), "-0.05"),
        ("numeric(10,2)", numeric("0", 2), "0.00"),
        ("numeric(18,18)", numeric("0.000000000000000001", 18), "1E-18"),
        ("numeric(6,0)", numeric("-123456", 0), "-123456"),
    ],
)
def test_a_number_of_a_declared_scale_is_a_decimal_at_once(code: str, value: bytes, text: str) -> None:
    data = HEADER + struct.pack(">hi", 1, len(value)) + value + TRAILER
    batch = CopyDecoder([("n", code)]).decode(data)
    assert batch is not None
    assert pa.types.is_decimal128(batch.schema.field("n").type)
    assert batch.column("n").to_pylist() == [Decimal(text)]


@pytest.mark.needs("native")
def test_rows_need_no_second_look_unless_something_is_odd() -> None:
    decode = pgcopy_rows.decoder_of([("n", "numeric(10,2)")])
    assert decode is not None
    for value, fits in ((numeric("1.50", 2), True), (NAN, False), (numeric("1.5", 1), False)):
        data = memoryview(struct.pack(">hi", 1, len(value)) + value + TRAILER)
        assert (decode(data, 0) is not None) == fits


@pytest.mark.needs("native")
def test_more_rows_than_there_was_room_for_at_first() -> None:
    rows: list[Fields] = [
        [None if number % 7 == 0 else struct.pack(">q", number), b"x" * (number % 90)] for number in range(5_000)
    ]
    decoder = CopyDecoder([("id", "i8"), ("text", "text")])
    batch = decoder.decode(encoded(rows))
    decoder.finish()
    assert batch is not None
    assert batch.column("id").to_pylist() == [None if n % 7 == 0 else n for n in range(5_000)]
    assert batch.column("text").to_pylist() == ["x" * (n % 90) for n in range(5_000)]
