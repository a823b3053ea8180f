"""Values as PostgreSQL prints them and as its log carries them, without a server."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from decimal import Decimal
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import native
from headwater.dialects.postgres_types import kind_named
from headwater.dialects.postgres_values import from_adbc, from_text, from_wire
from headwater.errors import SourceError
from headwater.wire.array_text import MODULE, split_arrays

DAY = 86_400_000_000
FORMS: dict[str, Callable[[str], ModuleType]] = {"compiled": native.either, "uncompiled": native.uncompiled}


def marks_of(found: Any) -> dict[int, str]:
    if found is None:
        return {}
    return {row: mark["got"] for row, mark in zip(found.rows.to_pylist(), found.marks.to_pylist(), strict=True)}


# arrays


def printed(array: list[str | None]) -> str:
    """As `array_out` prints it: quotes only where they are needed."""
    return "{" + ",".join(map(_element, array)) + "}"


def _element(text: str | None) -> str:
    if text is None:
        return "NULL"
    plain = text and text.upper() != "NULL" and not any(c in '{},"\\' or c.isspace() for c in text)
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(st.none() | st.lists(st.none() | st.text(max_size=8), max_size=5), max_size=8), st.integers(0, 3))
def test_arrays_of_texts_come_back(arrays: list[list[str | None] | None], start: int) -> None:
    texts = pa.array([None if array is None else printed(array) for array in arrays], pa.string())
    found = split_arrays(texts.slice(start))
    found.validate(full=True)
    assert found.to_pylist() == arrays[start:]


@given(st.lists(st.none() | st.text('{},"\\NUL [1:]=é', max_size=12), max_size=8))
def test_compiled_and_uncompiled_take_any_text_apart_alike(texts: list[str | None]) -> None:
    values = pa.array(texts, pa.string())
    compiled, uncompiled = (split_arrays(values, form(MODULE)) for form in FORMS.values())
    compiled.validate(full=True)
    assert compiled.equals(uncompiled)


@pytest.mark.parametrize("text", ["", "{", "}", '{"', '{"a', "{a", "{,}", "{1,}", "{,1}", '{"a"b}', '{a"b"}', "{{1}}",
                                  "[0:1]={1,2}", '{"a\\', '{"a\\"}', "1,2", "{1}}", "{\\}"])  # fmt: skip
def test_what_is_no_plain_list_is_marked(text: str) -> None:
    for form in FORMS.values():
        assert split_arrays(pa.array([text, "{1}"]), form(MODULE)).to_pylist() == [None, ["1"]]
    values, found = from_text(pa.array([text, "{1}"]), kind_named("list<int4>"), "c")
    assert values.to_pylist() == [None, [1]]
    assert marks_of(found) == {0: text}


def test_a_list_with_one_bad_element_is_bad_as_a_whole() -> None:
    texts = ["{2024-01-01}", "{infinity,2024-01-02}", None, "{}", "{NULL}"]
    values, found = from_text(pa.array(texts), kind_named("list<date>"), "c")
    values.validate(full=True)
    assert values.to_pylist() == [[dt.date(2024, 1, 1)], None, None, [], [None]]
    assert marks_of(found) == {1: texts[1]}
    assert found is not None
    assert found.marks.to_pylist() == [{"column": "c", "expected": "list<date>", "got": texts[1]}]


# the log's binary values

DATES = [  # days since 2000-01-01, the value, or the server's text
    (0, dt.date(2000, 1, 1)),
    (-730119, dt.date(1, 1, 1)),
    (2921939, dt.date(9999, 12, 31)),
    (2921940, "10000-01-01"),
    (-730120, "0001-12-31 BC"),
    (-2451545, "4714-11-24 BC"),
    (2145031948, "5874897-12-31"),
    (2**31 - 1, "infinity"),
    (-(2**31), "-infinity"),
]
MOMENTS = [  # microseconds since 2000-01-01
    (1, dt.datetime(2000, 1, 1, 0, 0, 0, 1)),
    (-730119 * DAY, dt.datetime(1, 1, 1)),
    (2921940 * DAY - 1, dt.datetime(9999, 12, 31, 23, 59, 59, 999999)),
    (2921940 * DAY, "10000-01-01 00:00:00"),
    (-730119 * DAY - 500_000, "0001-12-31 23:59:59.5 BC"),
    (9223371331199999999, "294276-12-31 23:59:59.999999"),
    (-211813488000000000, "4714-11-24 00:00:00 BC"),
    (2**63 - 1, "infinity"),
    (-(2**63), "-infinity"),
]


def split_by_fit(pairs: list[tuple[int, Any]]) -> tuple[list[Any], dict[int, str]]:
    values = [None if isinstance(value, str) else value for _, value in pairs]
    return values, {row: value for row, (_, value) in enumerate(pairs) if isinstance(value, str)}


def test_f31_dates_of_the_binary_log() -> None:
    expected, bad = split_by_fit(DATES)
    values, found = from_wire(pa.array([raw for raw, _ in DATES], pa.int32()), kind_named("date"), "c")
    assert values.type == pa.date32()
    assert (values.to_pylist(), marks_of(found)) == (expected, bad)


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
def test_f31_moments_of_the_binary_log(kind: str) -> None:
    zone = "+00" if kind == "timestamptz" else ""
    expected, bad = split_by_fit(MOMENTS)
    raw = pa.array([None, *(raw for raw, _ in MOMENTS)], pa.int64())
    values, found = from_wire(raw, kind_named(kind), "c")
    shown = {row + 1: _zoned(text, zone) for row, text in bad.items()}
    assert (values.cast(pa.timestamp("us")).to_pylist(), marks_of(found)) == ([None, *expected], shown)


def _zoned(text: str, zone: str) -> str:
    if "infinity" in text:
        return text
    return text.replace(" BC", f"{zone} BC") if text.endswith("BC") else text + zone


def test_f31_times_of_the_binary_log() -> None:
    values, found = from_wire(pa.array([0, DAY - 1, DAY, None], pa.int64()), kind_named("time"), "c")
    assert values.to_pylist() == [dt.time(0), dt.time(23, 59, 59, 999999), None, None]
    assert marks_of(found) == {2: "24:00:00"}


def test_the_rest_of_the_binary_log() -> None:
    raw = bytes(range(16))
    uuids = pa.array([raw, None, b"\xff" * 16], pa.binary(16))
    text = "00010203-0405-0607-0809-0a0b0c0d0e0f"
    for sliced, expected in (
        (uuids, [text, None, "f" * 8 + "-ffff" * 3 + "-" + "f" * 12]),
        (uuids.slice(1, 1), [None]),
    ):
        assert from_wire(sliced, kind_named("uuid"), "c")[0].to_pylist() == expected
    assert from_wire(pa.array([1, None], pa.int16()), kind_named("int2"), "c")[0].equals(
        pa.array([1, None], pa.int32())
    )
    assert from_wire(pa.array([2**32 - 1], pa.int64()), kind_named("oid"), "c")[0].to_pylist() == [2**32 - 1]
    numbers, found = from_wire(pa.array(["1.50", "NaN", None]), kind_named("decimal(5,2)"), "c")
    assert (numbers.to_pylist(), marks_of(found)) == ([Decimal("1.50"), None, None], {1: "NaN"})
    decimals = pa.array([Decimal("1.50")], pa.decimal128(5, 2))
    assert from_wire(decimals, kind_named("decimal(5,2)"), "c") == (decimals, None)


# text and ADBC


@given(st.lists(st.none() | st.binary(max_size=6), max_size=6), st.integers(0, 2))
def test_bytes_come_back_from_hex(values: list[bytes | None], start: int) -> None:
    texts = pa.array([None if value is None else "\\x" + value.hex() for value in values], pa.string())
    assert from_text(texts.slice(start), kind_named("bytea"), "c")[0].to_pylist() == values[start:]


@pytest.mark.parametrize("text", ["\\x0", "\\000", "abcd", "\\xzz"])
def test_bytea_in_another_form_is_an_error(text: str) -> None:
    with pytest.raises(SourceError, match="column `c`: bytea is not printed as hex"):
        from_text(pa.array([text]), kind_named("bytea"), "c")


def test_text_that_is_not_utf8_is_an_error_and_names_the_column() -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    with pytest.raises(SourceError, match="column `c` holds text that is not UTF-8"):
        from_adbc(broken, kind_named("text"), "c")


def test_f34_decimals_never_pass_through_a_double() -> None:
    digits = "".join(random.Random(7).choices("123456789", k=38))
    text = f"{digits[:20]}.{digits[20:]}"
    for convert in (from_text, from_wire, from_adbc):
        assert convert(pa.array([text]), kind_named("decimal(38,18)"), "c")[0].to_pylist() == [Decimal(text)]
