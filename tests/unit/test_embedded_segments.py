"""Events to segments and back: the bytes, the bounds beside them, and how adjacent events become one."""

from __future__ import annotations

import dataclasses
import datetime
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.buses.embedded import segments
from headwater.errors import BusError
from headwater.model import Events, Op, Order
from headwater.testing.buses import T0, events, numbered


def _lines(count: int, size: int = 0) -> Events:
    return events([{"id": n, "name": "x" * size, "commit": n} for n in range(count)])


@pytest.mark.parametrize("codec", segments.CODECS)
def test_a_message_gives_back_the_batch(codec: str) -> None:
    batch = _lines(1000, size=20).data
    data, used = segments.message(batch, codec)
    assert used == codec
    found = segments.decoded(data, segments.schema_from(batch.schema.serialize().to_pybytes()), 7)
    assert found.data.equals(batch)
    assert found.offsets.to_pylist() == list(range(7, 1007))


def test_small_batches_are_not_compressed() -> None:
    assert segments.message(numbered(1, 2).data, "zstd")[1] == "none"


def test_dictionary_columns_are_refused_by_name() -> None:
    batch = numbered(1).data.append_column("mode", pa.array(["a"]).dictionary_encode())
    with pytest.raises(BusError, match="`mode` is dictionary-encoded"):
        segments.places_in(batch.schema)


def test_adjacent_events_of_one_shape_become_one_piece() -> None:
    parts = [numbered(1), numbered(2), numbered(), numbered(3, stream="shop.other"), numbered(4)]
    other = dataclasses.replace(numbered(5), type="paid")
    found = list(segments.pieces([*parts, other]))
    assert [(stream, shape.type, batch.column("_commit").to_pylist()) for stream, shape, batch in found] == [
        ("shop.order", None, [1, 2]),
        ("shop.other", None, [3]),
        ("shop.order", None, [4]),
        ("shop.order", "paid", [5]),
    ]


def test_schemas_that_differ_only_in_metadata_stay_apart() -> None:
    plain = numbered(1)
    marked = plain.data.schema.with_metadata({"headwater": "1"})
    parts = [plain, dataclasses.replace(plain, data=plain.data.cast(marked))]
    found = list(segments.pieces(parts))
    assert [batch.schema.metadata for _, _, batch in found] == [None, {b"headwater": b"1"}]


def test_large_batches_are_cut_by_rows_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "PIECE_ROWS", 100)
    by_rows = [batch.num_rows for _, _, batch in segments.pieces([_lines(250)])]
    assert by_rows == [84, 84, 82]
    monkeypatch.setattr(segments, "PIECE_BYTES", 4096)
    cut = [batch for _, _, batch in segments.pieces([_lines(90, size=2000)])]
    assert len(cut) >= 90 * 2000 // 8192
    assert pa.Table.from_batches(cut).column("id").to_pylist() == list(range(90))


def test_order_bytes_sort_as_the_triple() -> None:
    edge = [0, 1, 255, 256, 2**31, 2**32 - 1]
    orders = [Order(e, c, i) for e in edge for c in [*edge, 2**63, 2**64 - 1] for i in edge]
    shuffled = orders.copy()
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=segments.order_bytes) == sorted(orders)
    assert [segments.order_of(segments.order_bytes(order)) for order in orders] == orders


def test_ranges_are_of_the_triple_not_of_its_parts() -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "epoch": 1, "commit": 90, "index": 9},
        {"id": 2, "epoch": 2, "commit": 5, "index": 0, "op": Op.DELETE},
        {"id": 3, "epoch": 2, "commit": 4, "index": 70},
        {"id": 4, "epoch": 1, "commit": 90, "index": 3},
    ]
    batch = events(rows).data
    low, high = segments.order_range(batch)
    assert (segments.order_of(low), segments.order_of(high)) == (Order(1, 90, 3), Order(2, 5, 0))
    assert segments.deletes(batch) == 1
    assert segments.below(batch, Order(2, 4, 70)).tolist() == [True, False, False, True]
    assert segments.below(batch, Order(2, 4, 70), or_at=True).tolist() == [True, False, True, True]


def test_times_fall_back_to_when_it_was_appended() -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "commit": 1, "time": T0}, {"id": 2, "commit": 2}]
    start = int(T0.timestamp() * 1e6)
    assert segments.time_range(events(rows).data, start + 5) == (start, start + 5)
    assert segments.time_range(events(rows[:1]).data, start + 5) == (start, start)
    assert segments.time_range(events(rows[1:]).data, start + 5) == (start + 5, start + 5)


numbers = st.integers(0, 3) | st.integers(0, 2**32 - 1)
noted = st.fixed_dictionaries(
    {
        "commit": numbers | st.integers(0, 2**64 - 1),
        "epoch": numbers,
        "index": numbers,
        "op": st.sampled_from(Op),
        "time": st.none() | st.datetimes(T0.replace(tzinfo=None, year=1900), timezones=st.just(datetime.UTC)),
    }
)


@pytest.mark.needs("native")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(noted, min_size=1, max_size=12), st.integers(0, 3), st.sampled_from([0, 2**61]))
def test_compiled_notes_are_those_of_the_kernels(rows: list[dict[str, Any]], skipped: int, now: int) -> None:
    batch = events(rows).data
    batch = batch.slice(min(skipped, batch.num_rows - 1))
    places = segments.places_in(batch.schema)
    assert places == (0, 1, 2, 3, 4)
    assert segments.facts(batch, now, places) == segments.facts(batch, now, None)


def test_columns_of_other_types_are_left_to_the_kernels() -> None:
    schema = numbered(1).data.schema
    other = schema.set(0, pa.field("_op", pa.int16()))
    assert segments.places_in(other) is None
    assert segments.places_in(schema.remove(4)) is None


def test_stored_again_with_holes_keeps_offsets_and_append_times() -> None:
    batch = numbered(1, 2, 3).data
    found = segments.Decoded(batch, pa.array([4, 7, 8], pa.uint64()), pa.array([100, 200, 300]))
    packed = segments.repacked(segments.shape_of(numbered(1)), found, 999, "lz4")
    assert packed.times == (100, 300)
    assert packed.shape.schema.names[-2:] == ["_offset", "_appended"]
    again = segments.decoded(packed.data, packed.shape.schema, 4)
    assert again.data.equals(batch)
    assert again.offsets.to_pylist() == [4, 7, 8]
    assert segments.event_times(again, 0).to_pylist() == [100, 200, 300]
