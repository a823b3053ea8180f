"""A reading against the fold of its stream: what differs, and nothing else."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.contracts.model import Contract, EventType, FieldSpec
from headwater.difference import Difference
from headwater.errors import MappingError, SourceError
from headwater.model import Events, Order, Reading, Reload
from headwater.protocols import StreamState
from headwater.schema import events_schema
from tests.streams import ITEM, OPS, events, rows_of

CONTRACT = ITEM
SINCE = Order(1, 100, 0)


def staged(*rows: dict[str, Any], contract: Contract = CONTRACT, **more: Any) -> Events:
    """Rows of a reading, in its own commit."""
    return events([{"op": "r", "at": (2, 1, 2 * n), **row} for n, row in enumerate(rows)], contract, **more)


def found(
    reading: Sequence[Events],
    history: Sequence[Events],
    directory: Path,
    contract: Contract = CONTRACT,
    **more: Any,
) -> list[dict[str, Any]]:
    """What the difference yields, as rows like those that went in."""
    reload = more.pop("reload", Reload.DIFFERENCE)
    with Difference(contract, directory, **more) as difference:
        for part in reading:
            difference.add(part)
        out = list(difference.finish(history, Reading(reload, SINCE, last=True)))
    assert list(directory.iterdir()) == []
    return [row for part in out for row in rows_of(part)]


def test_what_differs_is_created_updated_and_deleted_in_the_order_of_the_reading(tmp_path: Path) -> None:
    history = events(
        [
            {"op": "r", "at": (1, 1, 0), "id": 1, "name": "same"},
            {"op": "r", "at": (1, 1, 2), "id": 2, "name": "old"},
            {"op": "r", "at": (1, 1, 4), "id": 3, "name": "gone"},
            {"op": "c", "at": (1, 2, 0), "id": 4, "name": "was here"},
            {"op": "d", "at": (1, 3, 0), "id": 4},
        ]
    )
    reading = staged({"id": 4, "name": "back"}, {"id": 1, "name": "same"}, {"id": 2, "name": None}, {"id": 5})

    assert found([reading], [history], tmp_path) == [
        {"op": "c", "at": (2, 1, 0), "id": 4, "name": "back"},
        {"op": "u", "at": (2, 1, 4), "id": 2, "name": None},
        {"op": "c", "at": (2, 1, 6), "id": 5, "name": None},
        {"op": "d", "at": (2, 1, 7), "id": 3, "name": None},
    ]


def test_a_rebuild_gives_every_row_and_the_vanished_keys(tmp_path: Path) -> None:
    history = events(
        [
            {"op": "r", "at": (1, 1, 0), "id": 1, "name": "same"},
            {"op": "r", "at": (1, 1, 2), "id": 2, "name": "x"},
        ]
    )
    assert found([staged({"id": 1, "name": "same"})], [history], tmp_path, reload=Reload.REBUILD) == [
        {"op": "r", "at": (2, 1, 0), "id": 1, "name": "same"},
        {"op": "d", "at": (2, 1, 1), "id": 2, "name": None},
    ]


@pytest.mark.parametrize("overtaking", ["c", "u", "d"])
@pytest.mark.parametrize("reload", list(Reload))
def test_a_key_that_a_live_change_touched_is_left_alone(tmp_path: Path, overtaking: str, reload: Reload) -> None:
    history = events(
        [
            {"op": "r", "at": (1, 1, 0), "id": 1, "name": "old"},
            {"op": overtaking, "at": (1, 101, 0), "id": 1, "name": "newer"},
            {"op": overtaking, "at": (1, 101, 2), "id": 2, "name": "newer"},
        ]
    )
    assert found([staged({"id": 1, "name": "read"})], [history], tmp_path, reload=reload) == []


def test_a_truncate_ends_what_came_before_it(tmp_path: Path) -> None:
    history = events(
        [
            {"op": "c", "at": (1, 1, 0), "id": 1, "name": "a"},
            {"op": "t", "at": (1, 2, 0)},
            {"op": "c", "at": (1, 3, 0), "id": 2, "name": "b"},
            {"op": "c", "at": (1, 3, 2), "id": 3, "name": "c"},
        ]
    )
    assert found([staged({"id": 1, "name": "a"}, {"id": 2, "name": "b"})], [history], tmp_path) == [
        {"op": "c", "at": (2, 1, 0), "id": 1, "name": "a"},
        {"op": "d", "at": (2, 1, 3), "id": 3, "name": None},
    ]


def test_a_truncate_behind_the_reading_overtakes_every_key(tmp_path: Path) -> None:
    history = events([{"op": "c", "at": (1, 1, 0), "id": 1}, {"op": "t", "at": (1, 200, 0)}])
    assert found([staged({"id": 1}, {"id": 2})], [history], tmp_path) == []


def test_order_decides_not_the_sequence_of_the_history(tmp_path: Path) -> None:
    history = events(
        [
            {"op": "u", "at": (1, 3, 0), "id": 1, "name": "newest"},
            {"op": "c", "at": (1, 2, 0), "id": 1, "name": "older"},
        ]
    )
    assert found([staged({"id": 1, "name": "newest"})], [history], tmp_path) == []


def test_f30_unchanged_fields_are_filled_from_the_events_of_the_same_life(tmp_path: Path) -> None:
    history = events(
        [
            {"op": "c", "at": (1, 1, 0), "id": 1, "name": "kept"},
            {"op": "u", "at": (1, 2, 0), "id": 1, "unchanged": ["name"]},
            {"op": "c", "at": (1, 1, 2), "id": 2, "name": "of an earlier life"},
            {"op": "d", "at": (1, 2, 2), "id": 2},
            {"op": "c", "at": (1, 3, 0), "id": 2, "name": None},
            {"op": "u", "at": (1, 4, 0), "id": 2, "unchanged": ["name"]},
        ]
    )
    reading = staged({"id": 1, "name": "kept"}, {"id": 2, "name": "of an earlier life"})
    assert found([reading], [history], tmp_path) == [
        {"op": "u", "at": (2, 1, 2), "id": 2, "name": "of an earlier life"},
    ]


def test_duplicate_keys_of_a_reading_are_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"shop\.item.*several rows with id = 7"):
        found([staged({"id": 7}), events([{"op": "r", "at": (2, 1, 9), "id": 7}])], [], tmp_path)


def test_a_reading_ordered_before_what_it_replaces_is_an_error(tmp_path: Path) -> None:
    history = events([{"op": "c", "at": (1, 90, 0), "id": 1, "name": "a"}])
    reading = events([{"op": "r", "at": (1, 80, 0), "id": 1, "name": "b"}])
    with pytest.raises(SourceError, match=r"shop\.item.*id = 1"):
        found([reading], [history], tmp_path)
    with pytest.raises(SourceError, match=r"shop\.item.*id = 1"):
        found([events([{"op": "r", "at": (1, 80, 0), "id": 2}])], [history], tmp_path)


def test_an_incomplete_stream_or_one_without_key_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"shop\.item.*offset 7"):
        Difference(CONTRACT, tmp_path, state=_state(complete=False))
    clicks = Contract(stream="web.click", version=1, kind="event", fields={"page": FieldSpec(type="string")})
    with pytest.raises(MappingError, match=r"web\.click has no key"):
        Difference(clicks, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _state(*, complete: bool) -> StreamState:
    return StreamState(
        "shop.item", "i", 1, "s", "f", 1, None, 7, 9, 0, complete, None, None, False, 0, 0, 0, ()
    )  # fmt: skip


def test_an_empty_reading_deletes_everything_behind_since(tmp_path: Path) -> None:
    history = events(
        [
            {"op": "c", "at": (1, 99, 0), "id": 1},
            {"op": "c", "at": (1, 100, 0), "id": 2},
        ]
    )
    assert found([], [history], tmp_path) == [
        {"op": "d", "at": (1, 100, 1), "id": 1, "name": None},
        {"op": "d", "at": (1, 100, 2), "id": 2, "name": None},
    ]
    assert found([], [], tmp_path) == []


def test_deletes_take_no_place_that_the_stream_has_used(tmp_path: Path) -> None:
    history = events([{"op": "c", "at": (1, 1, 0), "id": 1}, {"op": "c", "at": (2, 1, 5), "id": 2}])
    reading = staged({"id": 3})
    with Difference(CONTRACT, tmp_path) as difference:
        difference.add(reading)
        out = list(difference.finish([history], Reading(Reload.DIFFERENCE, Order(2, 0, 0), last=True)))
    assert [(row["op"], row["at"], row["id"]) for part in out for row in rows_of(part)] == [
        ("c", (2, 1, 0), 3),
        ("d", (2, 1, 6), 1),
    ]


def test_older_events_are_compared_as_the_contract_of_today_sees_them(tmp_path: Path) -> None:
    fields = {**CONTRACT.fields, "size": FieldSpec(type="int64", default=1)}
    newer = CONTRACT.model_copy(update={"version": 2, "fields": fields})
    history = events([{"op": "c", "at": (1, 1, 2 * n), "id": n, "name": "a"} for n in (1, 2)])
    reading = staged({"id": 1, "name": "a", "size": 1}, {"id": 2, "name": "a", "size": 2}, contract=newer)
    assert found([reading], [history], tmp_path, newer) == [
        {"op": "u", "at": (2, 1, 2), "id": 2, "name": "a", "size": 2},
    ]


TYPED: dict[str, tuple[Any, Any]] = {
    "bool": (True, False),
    "int32": (1, -(2**31)),
    "int64": (2**63 - 1, 2**63 - 2),
    "float32": (float("nan"), 0.5),
    "float64": (-0.0, 0.0),
    "decimal(38,6)": (decimal.Decimal("0.100000"), decimal.Decimal("0.100001")),
    "decimal(60,2)": (decimal.Decimal("1" * 58 + ".10"), decimal.Decimal("1" * 58 + ".11")),
    "string": ("a\0b", "a"),
    "bytes": (b"\0\xff", b"\0"),
    "date": (datetime.date(1, 1, 1), datetime.date(9999, 12, 31)),
    "time": (datetime.time(23, 59, 59, 999999), datetime.time(0)),
    "timestamp": (datetime.datetime(1, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    "local_timestamp": (datetime.datetime(9999, 12, 31, 23, 59, 59, 999999), datetime.datetime(2020, 1, 1)),
    "uuid": ("0" * 8 + "-0000-0000-0000-" + "0" * 12, "f" * 8 + "-0000-0000-0000-" + "0" * 12),
    "json": ('{"a":1}', '{"a": 1}'),
    "list<float64>": ([float("nan"), None], [None]),
    "map<string,decimal(50,1)>": ([("k", decimal.Decimal("1.5"))], [("k", None)]),
    "struct<x: int64, y: list<string>>": ({"x": 1, "y": ["a"]}, {"x": 1, "y": []}),
}


@pytest.mark.parametrize("kind", TYPED)
def test_values_of_every_type_are_compared_and_kept_exactly(kind: str, tmp_path: Path) -> None:
    contract = Contract(
        stream="all.types",
        version=1,
        key=("id",),
        fields={"id": FieldSpec(type="int64"), "v": FieldSpec(type=kind, optional=True)},
    )
    one, other = TYPED[kind]
    rows = [{"id": 1, "v": one}, {"id": 2, "v": one}, {"id": 3, "v": one}, {"id": 4, "v": None}, {"id": 5, "v": None}]
    history = events([{"op": "c", "at": (1, 1, 2 * n), **row} for n, row in enumerate(rows)], contract)
    reading = staged(
        {"id": 1, "v": one},
        {"id": 2, "v": other},
        {"id": 3, "v": None},
        {"id": 4, "v": None},
        {"id": 5, "v": one},
        contract=contract,
    )
    with Difference(contract, tmp_path) as difference:
        difference.add(reading)
        (changed,) = difference.finish([history], Reading(Reload.DIFFERENCE, SINCE, last=True))
    assert changed.data.schema == events_schema(contract)
    assert changed.data.column("id").to_pylist() == [2, 3, 5]
    wanted = pa.array([other, None, one], changed.data.schema.field("v").type)
    assert str(changed.data.column("v").to_pylist()) == str(wanted.to_pylist())  # text: NaN is not equal to itself


def test_bytes_strings_dates_and_decimals_can_be_keys(tmp_path: Path) -> None:
    kinds = ["bytes", "string", "date", "decimal(60,2)", "timestamp", "bool", "uuid"]
    contract = Contract(
        stream="all.keys",
        version=1,
        key=tuple(f"k{n}" for n in range(len(kinds))),
        fields={f"k{n}": FieldSpec(type=kind) for n, kind in enumerate(kinds)},
    )
    one = {f"k{n}": TYPED[kind][0] for n, kind in enumerate(kinds)}
    others = [{**one, f"k{n}": TYPED[kind][1]} for n, kind in enumerate(kinds)]
    history = events([{"op": "c", "at": (1, 1, n), **row} for n, row in enumerate([one, *others])], contract)
    reading = staged(one, *others[1:], contract=contract)
    assert found([reading], [history], tmp_path, contract) == [{"op": "d", "at": (2, 1, 13), **others[0]}]


def test_the_row_before_is_carried_where_the_stream_carries_it(tmp_path: Path) -> None:
    history = events([{"op": "c", "at": (1, 1, 0), "id": n, "name": f"n{n}"} for n in (1, 2)], before=True)
    reading = staged({"id": 1, "name": "new"}, {"id": 3, "name": "x"}, before=True)
    assert found([reading], [history], tmp_path) == [
        {"op": "u", "at": (2, 1, 0), "id": 1, "name": "new", "before": {"id": 1, "name": "n1"}},
        {"op": "c", "at": (2, 1, 2), "id": 3, "name": "x", "before": None},
        {"op": "d", "at": (2, 1, 3), "id": 2, "name": None, "before": {"id": 2, "name": "n2"}},
    ]


def test_several_event_types_keep_their_shapes_and_get_no_deletes(tmp_path: Path) -> None:
    contract = Contract(
        stream="shop.order",
        version=1,
        kind="event",
        key=("id",),
        types={
            "placed": EventType(fields={"id": FieldSpec(type="int64"), "total": FieldSpec(type="int64")}),
            "paid": EventType(fields={"id": FieldSpec(type="int64"), "by": FieldSpec(type="string")}),
        },
    )
    history = [
        events([{"op": "c", "at": (1, 1, n), "id": n, "total": 5} for n in (1, 2)], contract, type="placed"),
        events([{"op": "u", "at": (1, 2, 1), "id": 1, "unchanged": ["by"]}], contract, type="paid"),
    ]
    reading = [
        events([{"op": "r", "at": (2, 1, 0), "id": 1, "by": "card"}], contract, type="paid"),
        events([{"op": "r", "at": (2, 1, 2), "id": 3, "total": 9}], contract, type="placed"),
    ]
    assert found(reading, history, tmp_path, contract) == [
        {"op": "u", "at": (2, 1, 0), "id": 1, "by": "card", "type": "paid"},
        {"op": "c", "at": (2, 1, 2), "id": 3, "total": 9, "type": "placed"},
    ]


def test_what_identifies_events_is_carried_over(tmp_path: Path) -> None:
    with Difference(CONTRACT, tmp_path) as difference:
        difference.add(staged({"id": 1}, content_ids=True))
        (out,) = difference.finish([], Reading(Reload.DIFFERENCE, SINCE, last=True))
    assert (out.source, out.seed, out.content_ids, out.reading) == ("shop/trigger", b"0123456789abcdef", True, None)


def test_a_reading_of_many_parts_keeps_its_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.difference._GROUP_BYTES", 2_000)
    count = 25_000
    ids = pa.array(range(count), pa.int64())
    texts = pa.array([f"name {n}" for n in range(count)])
    old = _many("r", 1, ids, texts)
    changed = pa.array([f"name {n}" if n % 3 else "new" for n in range(count)])
    new = _many("r", 2, ids, changed)
    with Difference(CONTRACT, tmp_path) as difference:
        for start in range(0, count, 1_000):
            difference.add(Events("shop.item", 1, new.slice(start, 1_000)))
        out = list(difference.finish([Events("shop.item", 1, old)], Reading(Reload.DIFFERENCE, SINCE, last=True)))
    assert [i for e in out for i in e.data.column("id").to_pylist()] == list(range(0, count, 3))
    assert {name for e in out for name in e.data.column("name").to_pylist()} == {"new"}


def _many(op: str, epoch: int, ids: pa.Array, names: pa.Array) -> pa.RecordBatch:
    count = len(ids)
    columns = {
        "_op": pa.repeat(pa.scalar(OPS[op].value, pa.int8()), count),
        "_epoch": pa.repeat(pa.scalar(epoch, pa.uint32()), count),
        "_commit": pa.repeat(pa.scalar(1, pa.uint64()), count),
        "_index": pa.array(range(count), pa.uint32()),
        "id": ids,
        "name": names,
    }
    schema = events_schema(CONTRACT)
    return pa.RecordBatch.from_arrays(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema
    )
