"""What a binary COPY sends, whole and in pieces, right and wrong; compiled and not."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from types import ModuleType

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import native
from headwater.wire.pgcopy import SIGNATURE, CopyDecoder
from headwater.wire.pgoutput_messages import Malformed

HEADER = SIGNATURE + struct.pack(">II", 0, 0)
TRAILER = b"\xff\xff"
COLUMNS = [("id", "i8"), ("name", "text")]

Row = tuple[int | None, str | None]


def row(*values: Row) -> bytes:
    """Rows as the server sends them."""
    out = b""
    for number, name in values:
        fields = [None if number is None else struct.pack(">q", number), None if name is None else name.encode()]
        out += struct.pack(">h", 2)
        out += b"".join(b"\xff" * 4 if f is None else struct.pack(">i", len(f)) + f for f in fields)
    return out


def decoded(pieces: Sequence[bytes]) -> list[Row]:
    decoder = CopyDecoder(COLUMNS)
    batches = [batch for piece in pieces if (batch := decoder.decode(piece)) is not None]
    decoder.finish()
    return [(r["id"], r["name"]) for batch in batches for r in batch.to_pylist()]


@pytest.fixture(params=["as it runs", "uncompiled"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "uncompiled":
        monkeypatch.setattr(native, "either", native.uncompiled)
        monkeypatch.setattr(native, "compiled", lambda name: None)


ROWS = st.lists(st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.text(max_size=20)), max_size=8)


@given(ROWS, st.lists(st.integers(0, 300), max_size=6))
def test_rows_come_back_however_the_bytes_are_cut(rows: list[Row], cuts: list[int]) -> None:
    data = HEADER + row(*rows) + TRAILER
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert decoded(pieces) == rows


@given(ROWS, st.data())
def test_compiled_and_uncompiled_agree_on_damaged_bytes(rows: list[Row], data: st.DataObject) -> None:
    whole = bytearray(HEADER + row(*rows) + TRAILER)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(len(HEADER), len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert _outcome(native.either, bytes(whole)) == _outcome(native.uncompiled, bytes(whole))


def _outcome(chosen: object, data: bytes) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "either", chosen)
        if chosen is native.uncompiled:
            patch.setattr(native, "compiled", lambda name: None)
        try:
            return decoded([data])
        except Malformed as error:
            return str(error)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "begins with"),
        (SIGNATURE + struct.pack(">II", 1 << 16, 0), "oids"),
        (HEADER + row((1, "a")), "without its trailer"),
        (HEADER + struct.pack(">h", 3) + b"\0" * 40, "another number of columns"),
        (HEADER + struct.pack(">hi", 2, -2) + b"\0" * 40, "a negative length"),
        (HEADER + struct.pack(">hii", 2, 4, 7) + b"x" * 40, "without its trailer"),
        (HEADER + struct.pack(">hi", 2, 4) + b"1234" + b"\xff" * 4 + TRAILER, "4 bytes, 8 are expected"),
        (HEADER + struct.pack(">hi", 2, -1) + struct.pack(">i", 1) + b"\xc3" + TRAILER, "not UTF-8"),
    ],
)
def test_what_does_not_add_up_is_malformed(data: bytes, text: str) -> None:
    with pytest.raises(Malformed, match=text):
        decoded([data])


@pytest.mark.usefixtures("either")
def test_many_rows_at_once_make_room() -> None:
    rows: list[Row] = [(number, None if number % 3 else "x" * (number % 50)) for number in range(10_000)]
    assert decoded([HEADER + row(*rows) + TRAILER]) == rows


def test_an_empty_table_has_no_rows() -> None:
    assert decoded([HEADER + TRAILER]) == []


def test_the_module_is_one_of_those_that_may_be_compiled() -> None:
    assert isinstance(native.either("headwater.wire.pgcopy_cy"), ModuleType)
    assert "headwater.wire.pgcopy_cy" in native.EITHER
    assert pa.types.is_int64(CopyDecoder(COLUMNS).decode(HEADER + row((1, "a")) + TRAILER).schema.field("id").type)  # type: ignore[union-attr]
