"""What changes become: plain columns, `where`, keys, deletes, old rows, truncates. Each promise a test."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest

from headwater.errors import MappingError, StreamStopped
from headwater.mapping.stream import (
    MappingPlan,
    StreamMapping,
    columns_identifying,
    columns_needed,
    columns_whole,
    pii_findings,
)
from headwater.model import Changes, Reading, Reload, TableId, id_seed
from headwater.model import Order as Place
from headwater.schema import events_schema
from tests.mapping_rows import COLUMNS, TABLE, change, changes, config, contract, mapped, mapping, plain, reasons


def row(key: int | None, mode: str | None = "audit", price: float | None = 1.0) -> dict[str, Any]:
    return {"id": key, "mode": mode, "price": price}


WITHOUT_BETA = {"where": "mode <> 'beta'"}


# plain columns


def test_plain_columns_pass_without_a_copy() -> None:
    batch = changes([change("c", None, row(1)), change("r", None, row(2, None, 2.5))])
    (events,), rejected = mapping().apply(batch)
    assert rejected is None
    assert plain([events]) == [
        {"op": "c", "at": (0, 0), "id": 1, "mode": "audit", "price": 1.0},
        {"op": "r", "at": (1, 0), "id": 2, "mode": None, "price": 2.5},
    ]
    source = batch.data.column("after")
    for place, name in enumerate(("id", "mode", "price")):
        assert events.data.column(name).buffers()[-1].address == source.field(place).buffers()[-1].address


def test_events_have_the_contracts_schema_and_say_where_they_come_from() -> None:
    of = contract({"id": {"type": "int64"}, "mode": {"type": "uuid", "optional": True}}, version=3)
    reading = Reading(Reload.REBUILD, Place(1, 2, 3), last=False)
    batch = Changes(TABLE, changes([change("r", None, row(1, None))]).data, "learning.enrollment", reading)
    (events,), _ = mapping(of=of).apply(batch)
    assert events.data.schema.equals(events_schema(of), check_metadata=True)
    assert (events.stream, events.version, events.source, events.type) == (
        "learning.enrollment",
        3,
        "lms/trigger",
        None,
    )
    assert events.reading == reading
    assert events.seed == id_seed("test", "lms/trigger", "learning.enrollment")
    assert not events.content_ids


def test_ids_of_query_capture_depend_on_content() -> None:
    (events,), _ = mapping({"pattern": "query"}).apply(changes([change("r", None, row(1))]))
    assert events.content_ids


def test_renamed_and_reused_columns() -> None:
    of = contract(
        {"enrollment": {"type": "int64"}, "kind": {"type": "string"}, "mode": {"type": "string"}}, key=["enrollment"]
    )
    settings = {"fields": {"enrollment": "id", "kind": "mode"}}
    assert mapped(mapping(settings, of), [change("c", None, row(1))]) == [
        {"op": "c", "at": (0, 0), "enrollment": 1, "kind": "audit", "mode": "audit"}
    ]


def test_columns_of_a_batch_are_found_by_name_whatever_their_place() -> None:
    turned = pa.schema([("extra", pa.int64()), *reversed(list(COLUMNS))])
    of = mapping()
    first = mapped(of, [change("c", None, row(1))])
    second = mapped(of, [change("c", None, {**row(1), "extra": 9})], columns=turned)
    assert first == second


def test_column_that_vanished_is_named() -> None:
    fewer = pa.schema([("id", pa.int64()), ("mode", pa.string())])
    with pytest.raises(MappingError, match="field `price`: the table has no column of that name"):
        mapping().apply(changes([change("c", None, {"id": 1, "mode": "x"})], columns=fewer))


def test_sliced_batches_and_struct_offsets() -> None:
    rows = [
        change("c", None, row(1)),
        change("u", row(1), row(2, "b")),
        change("d", row(3), None),
        change("u", row(4), row(4, "beta")),
    ]
    assert mapped(mapping(WITHOUT_BETA), rows, cut=3) == [
        {**event, "at": (event["at"][0] + 3, event["at"][1])} for event in mapped(mapping(WITHOUT_BETA), rows)
    ]


def test_null_states_hide_what_their_buffers_hold() -> None:
    batch = changes([change("c", None, row(1)), change("d", row(2), None)]).data
    after = pa.StructArray.from_arrays(
        [pa.array([1, 77]), pa.array(["a", "ghost"]), pa.array([1.0, 77.0])],
        fields=list(COLUMNS),
        mask=pa.array([False, True]),
    )
    data = batch.set_column(batch.schema.get_field_index("after"), batch.schema.field("after"), after)
    events, rejected = mapping().apply(Changes(TABLE, data))
    assert rejected is None
    assert plain(events) == [
        {"op": "c", "at": (0, 0), "id": 1, "mode": "a", "price": 1.0},
        {"op": "d", "at": (1, 0), "id": 2, "mode": None, "price": None},
    ]


def test_empty_batch_is_no_events() -> None:
    assert mapping().apply(changes([])) == ([], None)


# where


def test_row_that_leaves_where_becomes_a_delete() -> None:
    found = mapped(mapping(WITHOUT_BETA), [change("u", row(1), row(1, "beta"))])
    assert found == [{"op": "d", "at": (0, 0), "id": 1, "mode": None, "price": None}]


def test_row_that_enters_where_becomes_a_create() -> None:
    found = mapped(mapping(WITHOUT_BETA), [change("u", row(1, "beta"), row(1))])
    assert found == [{"op": "c", "at": (0, 0), "id": 1, "mode": "audit", "price": 1.0}]


def test_row_that_stays_inside_is_an_update_and_outside_nothing() -> None:
    rows = [change("u", row(1), row(1, "honor")), change("u", row(2, "beta"), row(2, "beta", 9.0))]
    assert mapped(mapping(WITHOUT_BETA), rows) == [{"op": "u", "at": (0, 0), "id": 1, "mode": "honor", "price": 1.0}]


def test_creates_and_reads_pass_where_or_do_not() -> None:
    rows = [change("c", None, row(1, "beta")), change("r", None, row(2, "beta")), change("r", None, row(3))]
    assert [event["id"] for event in mapped(mapping(WITHOUT_BETA), rows)] == [3]


def test_deletes_of_rows_outside_where_are_dropped() -> None:
    rows = [change("d", row(1, "beta"), None), change("d", row(2), None)]
    assert mapped(mapping(WITHOUT_BETA), rows) == [{"op": "d", "at": (1, 0), "id": 2, "mode": None, "price": None}]


def test_null_condition_is_false_before_and_after() -> None:
    rows = [change("c", None, row(1, None)), change("u", row(2, None), row(2)), change("u", row(3), row(3, None))]
    assert [(event["op"], event["id"]) for event in mapped(mapping(WITHOUT_BETA), rows)] == [("c", 2), ("d", 3)]


def test_delete_whose_old_row_is_its_key_alone_is_never_dropped() -> None:
    for where in ("mode <> 'beta'", "mode IS NOT NULL"):
        of = mapping({"where": where, "pattern": "query"})
        assert [event["op"] for event in mapped(of, [change("d", row(1, None, None), None)])] == ["d"]


def test_update_without_its_old_row_is_an_update_or_a_delete_with_its_key() -> None:
    of = mapping({**WITHOUT_BETA, "pattern": "query"})
    rows = [change("u", None, row(1)), change("u", None, row(2, "beta"))]
    assert mapped(of, rows) == [
        {"op": "u", "at": (0, 0), "id": 1, "mode": "audit", "price": 1.0},
        {"op": "d", "at": (1, 0), "id": 2, "mode": None, "price": None},
    ]


def test_condition_may_be_a_plain_column_and_integers_count() -> None:
    columns = pa.schema([("id", pa.int64()), ("active", pa.int64())])
    of = mapping({"where": "active"}, contract({"id": {"type": "int64"}}), columns=columns)
    rows = [change("c", None, {"id": key, "active": flag}) for key, flag in ((1, 1), (2, 0), (3, None))]
    assert [event["id"] for event in mapped(of, rows, columns=columns)] == [1]


def test_condition_that_is_none_is_refused() -> None:
    with pytest.raises(MappingError, match=r"where: `upper\(mode\)` is string, not a condition"):
        mapping({"where": "upper(mode)"})


# keys


def test_changed_key_is_a_delete_and_a_create() -> None:
    assert mapped(mapping(), [change("u", row(1), row(2, "b"), _index=4)]) == [
        {"op": "d", "at": (0, 4), "id": 1, "mode": None, "price": None},
        {"op": "c", "at": (0, 5), "id": 2, "mode": "b", "price": 1.0},
    ]


def test_changed_key_among_other_changes_keeps_their_order() -> None:
    rows = [
        change("u", row(1), row(1, "x")),
        change("u", row(1), row(2)),
        change("d", row(2), None),
        change("r", None, row(5)),
    ]
    found = [(event["op"], event["at"], event["id"]) for event in mapped(mapping(), rows, cut=1)]
    assert found == [("u", (1, 0), 1), ("d", (2, 0), 1), ("c", (2, 1), 2), ("d", (3, 0), 2), ("r", (4, 0), 5)]


def test_key_by_expression_changes_only_when_its_value_does() -> None:
    of = contract({"name": {"type": "string"}, "price": {"type": "float64", "optional": True}}, key=["name"])
    settings = {"fields": {"name": "lower(mode)"}}
    rows = [change("u", row(1, "A"), row(1, "a")), change("u", row(1, "a"), row(1, "b"))]
    found = [(event["op"], event["at"], event["name"]) for event in mapped(mapping(settings, of), rows)]
    assert found == [("u", (0, 0), "a"), ("d", (1, 0), "a"), ("c", (1, 1), "b")]


def test_changed_key_and_where_together() -> None:
    rows = [change("u", row(1), row(2, "beta")), change("u", row(3, "beta"), row(4)), change("u", row(5), row(6))]
    found = [(event["op"], event["id"]) for event in mapped(mapping(WITHOUT_BETA), rows)]
    assert found == [("d", 1), ("c", 4), ("d", 5), ("c", 6)]


def test_delete_carries_only_its_key_also_with_computed_fields() -> None:
    of = mapping({"fields": {"mode": "coalesce(mode, 'none')"}})
    assert mapped(of, [change("d", row(1), None)]) == [{"op": "d", "at": (0, 0), "id": 1, "mode": None, "price": None}]


def test_stream_of_events_without_a_key_never_splits() -> None:
    of = contract(kind="event", key=[])
    assert [e["op"] for e in mapped(mapping(of=of), [change("u", row(1), row(2))])] == ["u"]


def test_two_rows_of_one_reading_with_the_same_key_are_refused() -> None:
    of = contract({"mode": {"type": "string"}}, key=["mode"])
    rows = [change("r", None, row(1, "a")), change("r", None, row(2, "b")), change("r", None, row(3, "a"))]
    with pytest.raises(MappingError, match=r'the key \{"mode":"a"\} is that of 2 rows of `enrollment`'):
        mapping(of=of).apply(changes(rows))
    same_row_twice = [rows[0], rows[0], rows[1]]
    assert [e["mode"] for e in mapped(mapping(of=of), same_row_twice)] == ["a", "a", "b"]
    events = contract({"mode": {"type": "string"}}, key=["mode"], kind="event")
    assert len(mapped(mapping(of=events), rows)) == 3


# old rows


def test_before_is_the_old_row_as_the_contract_sees_it() -> None:
    of = contract({"id": {"type": "int64"}, "kind": {"type": "string"}})
    settings = {"before": True, "fields": {"kind": "upper(mode)"}, **WITHOUT_BETA}
    rows = [
        change("c", None, row(1)),
        change("u", row(1), row(1, "b")),
        change("u", row(1, "beta"), row(1, "c")),
        change("u", row(1), row(2, "d")),
        change("d", row(2, "e"), None),
    ]
    found = [(e["op"], e["id"], e["kind"], e["before"]) for e in mapped(mapping(settings, of), rows, cut=1)]
    assert found == [
        ("c", 1, "AUDIT", None),
        ("u", 1, "B", {"id": 1, "kind": "AUDIT"}),
        ("c", 1, "C", None),
        ("d", 1, None, {"id": 1, "kind": "AUDIT"}),
        ("c", 2, "D", None),
        ("d", 2, None, {"id": 2, "kind": "E"}),
    ]


def test_f30_unchanged_value_comes_from_the_old_row_when_it_is_there() -> None:
    rows = [
        change("u", row(1, "old"), row(1, None), _unchanged=[1]),
        change("u", row(2, "older"), row(2, "new"), _unchanged=None),
    ]
    settings = {"where": "mode <> 'old'", "pattern": "log"}
    assert mapped(mapping({"pattern": "log"}), rows, unchanged=True, cut=2) == [
        {"op": "u", "at": (2, 0), "id": 1, "mode": "old", "price": 1.0},
        {"op": "u", "at": (3, 0), "id": 2, "mode": "new", "price": 1.0},
    ]
    assert [e["id"] for e in mapped(mapping(settings), rows, unchanged=True)] == [2]


def test_f30_unchanged_value_that_nobody_knows_stays_marked() -> None:
    of = contract({"price": {"type": "float64"}, "id": {"type": "int64"}, "text": {"type": "string"}})
    settings = {"pattern": "log", "fields": {"text": "mode"}}
    rows = [
        change("u", None, row(1, None), _unchanged=[1]),
        change("u", None, row(2, "known")),
        change("d", row(3), None),
        change("u", row(4, None), row(5, None), _unchanged=[1]),
    ]
    found = [
        (e["op"], e["id"], e["text"], e.get("unchanged")) for e in mapped(mapping(settings, of), rows, unchanged=True)
    ]
    assert found == [
        ("u", 1, None, [2]),
        ("u", 2, "known", None),
        ("d", 3, None, None),
        ("d", 4, None, None),
        ("c", 5, None, [2]),
    ]


@pytest.mark.parametrize(
    ("settings", "fields", "key"),
    [
        ({"where": "mode <> 'beta'"}, None, ["id"]),
        ({"fields": {"mode": "upper(mode)"}}, None, ["id"]),
        ({}, {"mode": {"type": "string"}}, ["mode"]),
    ],
)
def test_f30_whole_row_rule_names_the_sql(settings: dict[str, Any], fields: Any, key: list[str]) -> None:
    of = mapping({"pattern": "log", **settings}, contract(fields, key=key))
    batch = changes([change("u", None, row(1, None), _unchanged=[1])], unchanged=True)
    with pytest.raises(MappingError, match="reads the column `mode`, whose value the log did not carry") as caught:
        of.apply(batch)
    assert "REPLICA IDENTITY FULL" in caught.value.hint


# truncates


def test_truncate_passes_through_for_expand_and_event() -> None:
    for policy, expands in (("expand", True), ("event", False)):
        of = mapping({"on_truncate": policy, **WITHOUT_BETA})
        assert of.expands_truncate is expands
        assert mapped(of, [change("c", None, row(1)), change("t")]) == [
            {"op": "c", "at": (0, 0), "id": 1, "mode": "audit", "price": 1.0},
            {"op": "t", "at": (1, 0), "id": None, "mode": None, "price": None},
        ]


def test_truncate_stops_the_stream_where_it_is_told_to() -> None:
    with pytest.raises(StreamStopped, match="its table was truncated") as caught:
        mapping({"on_truncate": "stop"}).apply(changes([change("c", None, row(1)), change("t")]))
    assert caught.value.stream == "learning.enrollment"


# names found before any row


def test_unknown_names_are_errors_with_the_nearest_right_one() -> None:
    for settings, message in (
        ({"fields": {"price": "round(prise, 2)"}}, r"field `price`: no column `prise`; did you mean `price`\?"),
        ({"fields": {"prise": "price"}}, r"`fields` has `prise`, which is no field .*; did you mean `price`\?"),
        ({"where": "Mode = 'x'"}, r"where: no column `Mode`; did you mean `mode`\?"),
        ({"key": ["idd"]}, r"key: no column `idd`; did you mean `id`\?"),
    ):
        with pytest.raises(MappingError, match=message):
            columns_needed(config(**settings), contract(), COLUMNS.names)


def test_field_without_a_column_is_an_error() -> None:
    of = contract({"id": {"type": "int64"}, "modes": {"type": "string"}})
    with pytest.raises(
        MappingError, match=r"field `modes`: the table has no column of that name; did you mean `mode`\?"
    ):
        mapping(of=of)


def test_columns_needed_are_those_that_something_reads() -> None:
    available = ["secret", "id", "mode", "price", "Key 2"]
    of = contract({"id": {"type": "int64"}})
    assert columns_needed(config(), of, available) == ("id",)
    assert columns_needed(config(where="mode <> 'b'"), of, available, ["Key 2"]) == ("id", "mode", "Key 2")
    assert columns_needed(config(key=["price"], fields={"id": 'id + "Key 2"'}), of, available) == (
        "id",
        "price",
        "Key 2",
    )
    assert columns_needed(config(function="m:f"), of, available) == tuple(available)


def test_columns_that_a_change_or_a_delete_must_carry() -> None:
    available = ["id", "mode", "price", "note"]
    of = contract({"id": {"type": "int64"}, "note": {"type": "string"}, "cost": {"type": "float64"}})
    settings = config(where="mode <> 'b'", fields={"cost": "price * 2"})
    assert columns_whole(settings, of, available) == ("id", "mode", "price")
    assert columns_identifying(settings, of, available) == ("id",)
    everything = config(function="m:f")
    assert (
        columns_whole(everything, of, available) == columns_identifying(everything, of, available) == tuple(available)
    )


def test_type_without_a_lossless_way_is_refused_at_once() -> None:
    columns = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us"))])
    of = contract({"id": {"type": "int64"}, "at": {"type": "timestamp"}})
    with pytest.raises(MappingError, match=r"field `at`: expected timestamp, but `at` is timestamp\[us\]"):
        mapping(of=of, columns=columns)
    moment = datetime.datetime(2024, 7, 1, 12)
    settings = {"fields": {"at": "at AT TIME ZONE 'Europe/Berlin'"}}
    (event,) = mapped(
        mapping(settings, of, columns=columns), [change("c", None, {"id": 1, "at": moment})], columns=columns
    )
    assert event["at"] == datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC)


def test_fingerprint_is_of_the_mapping_and_the_contracts_version() -> None:
    base = mapping().fingerprint
    assert mapping({"every": 5, "on_invalid": "stop"}).fingerprint == base
    others = [
        mapping(WITHOUT_BETA),
        mapping({"fields": {"price": "price + 1"}}),
        mapping({"before": True}),
        mapping({"table": "other"}),
        mapping(of=contract(version=2)),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 6


def test_personal_fields_mapped_as_they_are_are_found() -> None:
    fields = {
        "id": {"type": "int64"},
        "email": {"type": "string", "pii": "personal"},
        "phone": {"type": "string", "pii": "sensitive"},
        "name": {"type": "string", "pii": "personal"},
    }
    settings = config(fields={"email": "hash(email)", "phone": "mask(phone)", "name": "upper(name)"})
    leaks = pii_findings(settings, contract(fields), ["id", "email", "phone", "name"])
    assert [(leak.field, leak.pii) for leak in leaks] == [("name", "personal")]
    assert "hash(...)" in leaks[0].text


def test_invalid_values_matter_only_where_somebody_reads_them() -> None:
    def bad(column: str) -> list[dict[str, str]]:
        return [{"column": column, "expected": "integer", "got": "text 'x'"}]

    rows = [
        change("c", None, row(1), _invalid=bad("price")),
        change("c", None, row(2), _invalid=bad("mode")),
        change("c", None, row(3, "beta"), _invalid=bad("price")),
        change("d", row(4), None, _invalid=bad("price")),
        change("u", row(5), row(5, "beta"), _invalid=bad("price")),
        change("c", None, row(6)),
    ]
    of = mapping({"fields": {"price": "price * 2"}, **WITHOUT_BETA})
    events, rejected = of.apply(changes(rows, invalid=True, cut=1))
    assert [(e["op"], e["id"]) for e in plain(events)] == [("d", 4), ("d", 5), ("c", 6)]
    assert reasons(rejected) == [
        {"field": "price", "expected": "integer", "got": "text 'x'", "key": '{"id":1}'},
        {"field": "where", "expected": "integer", "got": "text 'x'", "key": '{"id":2}'},
    ]
    narrow = contract({"id": {"type": "int64"}})
    events, rejected = mapping(of=narrow).apply(changes(rows, invalid=True))
    assert rejected is None
    assert [e["id"] for e in plain(events)] == [1, 2, 3, 4, 5, 6]


def test_delete_is_not_lost_when_its_old_row_was_invalid_for_where() -> None:
    invalid = [{"column": "mode", "expected": "text", "got": "blob"}]
    found = mapped(mapping(WITHOUT_BETA), [change("d", row(1, None), None, _invalid=invalid)], invalid=True)
    assert [(e["op"], e["id"]) for e in found] == [("d", 1)]


def test_names_in_any_spelling_and_language() -> None:
    columns = pa.schema([("Id", pa.int64()), ("id", pa.int64()), ('a "b".c', pa.string()), ("größe", pa.int64())])
    fields = {
        "id": {"type": "int64"},
        "other": {"type": "int64"},
        "text": {"type": "string"},
        "size": {"type": "int64"},
    }
    settings = {"fields": {"other": '"Id" + 1', "text": '"a ""b"".c" || \'!\'', "size": "größe"}}
    of = mapping(settings, contract(fields), columns=columns)
    data = {"Id": 10, "id": 20, 'a "b".c': "x", "größe": 3}
    assert mapped(of, [change("c", None, data)], columns=columns) == [
        {"op": "c", "at": (0, 0), "id": 20, "other": 11, "text": "x!", "size": 3}
    ]


def test_plan_needs_no_names_for_a_mapping_alone() -> None:
    plan = MappingPlan("learning.enrollment", config(), contract(), COLUMNS)
    assert StreamMapping(plan).stream == "learning.enrollment"
    assert str(TableId("", "enrollment")) == "enrollment"
