"""Canonical keys: what `json.dumps` with sorted keys and no spaces would write, without a row in Python."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.mapping.keys import canonical_keys


def canonical(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=5), st.booleans()),
        max_size=6,
    )
)
def test_keys_are_canonical_json(rows: list[tuple[str, int, bytes, bool]]) -> None:
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    kinds = {"zeta": pa.string(), "id": pa.int64(), "b": pa.binary(), "a": pa.bool_()}
    data = pa.record_batch({n: pa.array(c, k) for (n, k), c in zip(kinds.items(), columns, strict=True)})
    expected = [
        canonical({"zeta": text, "id": number, "b": base64.b64encode(raw).decode(), "a": flag})
        for text, number, raw, flag in rows
    ]
    found = canonical_keys(data, ["zeta", "id", "b", "a"])
    assert found.type == pa.string()
    assert found.to_pylist() == expected


def test_control_characters_quotes_and_backslashes() -> None:
    texts = [chr(code) + "x" for code in range(0x80)] + ['a"b\\c', "\\n", "é𝄞\u2028"]
    data = pa.record_batch({"k": pa.array(texts)})
    assert canonical_keys(data, ["k"]).to_pylist() == [canonical({"k": text}) for text in texts]


def test_decimals_dates_and_times_are_strings() -> None:
    moment = datetime.datetime(2024, 2, 29, 23, 59, 58, 7)
    data = pa.record_batch(
        {
            "d": pa.array([decimal.Decimal("1.50")], pa.decimal128(10, 2)),
            "day": pa.array([datetime.date(2024, 2, 29)]),
            "clock": pa.array([datetime.time(1, 2, 3, 4)], pa.time64("us")),
            "at": pa.array([moment.replace(tzinfo=datetime.UTC)], pa.timestamp("us", "UTC")),
            "local": pa.array([moment], pa.timestamp("us")),
        }
    )
    (key,) = canonical_keys(data, ["d", "day", "clock", "at", "local"]).to_pylist()
    assert json.loads(key) == {
        "d": "1.50",
        "day": "2024-02-29",
        "clock": "01:02:03.000004",
        "at": "2024-02-29T23:59:58.000007Z",
        "local": "2024-02-29T23:59:58.000007",
    }


def test_null_in_a_key_and_no_key_at_all() -> None:
    data = pa.record_batch({"a": pa.array([1, None, 3]), "b": pa.array(["x", "y", None])})
    assert canonical_keys(data, ["a", "b"]).to_pylist() == ['{"a":1,"b":"x"}', None, None]
    assert canonical_keys(data, []).to_pylist() == [None, None, None]


def test_sliced_batch_and_field_order() -> None:
    data = pa.record_batch({"b": pa.array([1, 2, 3]), "a": pa.array([b"\xff", b"", b"zz"])}).slice(1, 2)
    assert canonical_keys(data, ["b", "a"]).to_pylist() == ['{"a":"","b":2}', '{"a":"eno=","b":3}']
