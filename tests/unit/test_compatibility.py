"""Each rule of compatibility, stated as a pair of versions and who breaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.contracts.compatibility import LEVELS, RULES, Site, judge, sides_of
from headwater.contracts.document import parse_document
from headwater.contracts.model import Contract
from headwater.contracts.resolution import Resolution, resolve
from headwater.contracts.types import parse_type

ID: dict[str, Any] = {"type": "int64"}
SHORT = {"age": "7d"}
"""A retention without the floor of streams that keep history."""


def contract(version: int = 1, level: str = "full_transitive", **more: Any) -> Contract:
    data = {"stream": "s", "version": version, "key": ["id"], "compatibility": level, "retention": SHORT, **more}
    if "types" not in data:
        data["fields"] = {"id": ID, **data.pop("fields", {})}
    return Contract.model_validate(data)


def broken(old: dict[str, Any], new: dict[str, Any], level: str = "full") -> list[tuple[str, str]]:
    """(rule, field) of what a change from `old` to `new` breaks."""
    found = judge([contract(1, level, **old)], contract(2, level, **new))
    return [(finding.rule, finding.field) for finding in found]


def field(**spec: Any) -> dict[str, Any]:
    return {"fields": {"x": {"type": "string", **spec}}}


NOTHING: dict[str, Any] = {}

BACKWARD = [
    # old, new, rule: a reader on the new version meets old events
    (NOTHING, field(), "FIELD_REQUIRED"),
    (field(optional=True), field(), "NULL_REFUSED"),
    (field(optional=True), field(default="a"), "NULL_REFUSED"),  # a default is for absence, not for null
    (field(type="int64"), field(type="int32"), "TYPE_NARROWED"),
    (field(type="string"), field(type="int64"), "TYPE_NARROWED"),
    (field(type="decimal(10,2)"), field(type="decimal(8,2)"), "TYPE_NARROWED"),
    (field(type="decimal(10,2)"), field(type="decimal(10,3)"), "TYPE_NARROWED"),
    (field(type="timestamp"), field(type="local_timestamp"), "TYPE_NARROWED"),
    (field(type="string"), field(type="uuid"), "TYPE_NARROWED"),
    (field(type="list<int64>"), field(type="list<int32>"), "TYPE_NARROWED"),
    (field(type="int64"), field(type="float64"), "TYPE_LOSSY"),
    (field(type="bytes"), field(type="string"), "TYPE_LOSSY"),
    (field(enum=["a", "b"]), field(enum=["a"]), "ENUM_NARROWED"),
    (field(), field(enum=["a"]), "ENUM_NARROWED"),
    (field(enum=["a"], open=True), field(enum=["a"]), "ENUM_CLOSED"),
    (field(type="int64"), field(type="int64", min=0), "RANGE_NARROWED"),
    (field(type="int64", min=0), field(type="int64", min=1), "RANGE_NARROWED"),
    (field(type="int64", max=9), field(type="int64", max=8), "RANGE_NARROWED"),
    (field(type="date", min="2020-01-01"), field(type="date", min="2021-01-01"), "RANGE_NARROWED"),
]

FORWARD = [
    # a reader still on the old version meets new events
    (field(), NOTHING, "FIELD_REMOVED"),
    (field(), field(optional=True), "NULL_ALLOWED"),
    (field(type="int32"), field(type="int64"), "TYPE_WIDENED"),
    (field(type="decimal(10,2)"), field(type="decimal(12,2)"), "TYPE_WIDENED"),
    (field(type="string"), field(type="bytes"), "TYPE_WIDENED"),
    (field(type="struct<a: int32>"), field(type="struct<a: int64>"), "TYPE_WIDENED"),
    (field(enum=["a"]), field(enum=["a", "b"]), "ENUM_WIDENED"),
    (field(enum=["a"]), field(), "ENUM_WIDENED"),
    (field(enum=["a"]), field(enum=["a"], open=True), "ENUM_WIDENED"),
    (field(type="int64", min=0), field(type="int64"), "RANGE_WIDENED"),
    (field(type="int64", max=8), field(type="int64", max=9), "RANGE_WIDENED"),
    (field(type="decimal(4,2)", max="9.5"), field(type="decimal(4,2)", max="10"), "RANGE_WIDENED"),
]

BOTH = [
    # what no registry checks
    (field(pattern="a+"), field(pattern="a*"), "PATTERN_CHANGED"),
    (field(), field(pattern="a+"), "PATTERN_CHANGED"),
    (field(default="a"), field(default="b"), "DEFAULT_CHANGED"),
    (field(unit="USD"), field(unit="EUR"), "UNIT_CHANGED"),
    (field(unit="USD"), field(), "UNIT_CHANGED"),
    (field(ref="user"), field(ref="learner"), "REF_CHANGED"),
    (field(term="money"), field(term="price"), "TERM_CHANGED"),
    (field(pii="personal"), field(), "PII_CHANGED"),
    (field(), field(pii="sensitive"), "PII_CHANGED"),
    ({"key": ["id"], **field()}, {"key": ["id", "x"], **field()}, "KEY_CHANGED"),
    ({"kind": "fact"}, {"kind": "event"}, "KIND_CHANGED"),
    ({"delivery": "exactly_once"}, {"delivery": "at_least_once"}, "DELIVERY_WEAKER"),
    ({"delivery": "at_least_once"}, {"delivery": "best_effort"}, "DELIVERY_WEAKER"),
    ({"changes": "every"}, {"changes": "latest"}, "CHANGES_WEAKER"),
    ({"deletes": "seen"}, {"deletes": "unseen"}, "DELETES_WEAKER"),
    ({"retention": "forever"}, {"retention": "compacted"}, "RETENTION_SHORTER"),
    ({"retention": "forever"}, {"retention": SHORT}, "RETENTION_SHORTER"),
    ({"retention": "compacted"}, {"retention": SHORT}, "RETENTION_SHORTER"),
    ({"retention": SHORT}, {"retention": "compacted"}, "RETENTION_SHORTER"),
    ({"retention": {"age": "7d"}}, {"retention": {"age": "6d"}}, "RETENTION_SHORTER"),
    ({"retention": {"age": "7d", "until_consumed": True}}, {"retention": {"age": "9d"}}, "RETENTION_SHORTER"),
    (
        {"retention": {"compacted": True, "tombstones": "2d"}},
        {"retention": {"compacted": True, "tombstones": "1d"}},
        "RETENTION_SHORTER",
    ),
]

SAFE = [
    (NOTHING, field(optional=True)),
    (NOTHING, field(default="a")),
    (field(optional=True), NOTHING),
    (field(default="a"), NOTHING),
    (field(), field(description="what it is", examples=["a"], deprecated="use y")),
    (field(enum=["a"], open=True), field(enum=["a", "b"], open=True)),
    (field(type="int64", min=0), field(type="int64", min=0.0)),
    (field(type="decimal(4,2)", max="9.50"), field(type="decimal(4,2)", max=9.5)),
    (field(type="struct<a: int64>"), field(type="struct<a: int64, b: string>")),
    (field(type="decimal(10, 2)"), field(type="decimal(10,2)")),
    ({"delivery": "at_least_once"}, {"delivery": "exactly_once"}),
    ({"changes": "latest"}, {"changes": "every"}),
    ({"deletes": "unseen"}, {"deletes": "seen"}),
    ({"retention": {"age": "7d"}}, {"retention": {"age": "8d"}}),
    ({"retention": {"age": "7d"}}, {"retention": {"age": "7d", "until_consumed": True}}),
    ({"owner": "a", "description": "b"}, {"owner": "c", "description": "d"}),
    ({"consumers": [{"name": "a", "fields": ["id"]}]}, {"consumers": [{"name": "b", "fields": ["id"]}]}),
]


def rules(old: dict[str, Any], new: dict[str, Any], level: str) -> set[str]:
    return {rule for rule, _ in broken(old, new, level)} - {"HISTORY_FLOOR"}


@pytest.mark.parametrize(("old", "new", "rule"), BACKWARD)
def test_what_readers_of_old_events_do_not_survive(old: dict[str, Any], new: dict[str, Any], rule: str) -> None:
    assert rules(old, new, "backward") == {rule}
    assert rule not in rules(old, new, "forward")
    assert rule in rules(old, new, "full")
    assert rules(old, new, "none") == set()


@pytest.mark.parametrize(("old", "new", "rule"), FORWARD)
def test_what_old_readers_do_not_survive(old: dict[str, Any], new: dict[str, Any], rule: str) -> None:
    assert rules(old, new, "forward") == {rule}
    assert rule not in rules(old, new, "backward")
    assert rule in rules(old, new, "full")
    assert rules(old, new, "none") == set()


@pytest.mark.parametrize(("old", "new", "rule"), BOTH)
def test_what_no_registry_checks(old: dict[str, Any], new: dict[str, Any], rule: str) -> None:
    for level in ("backward", "forward", "full"):
        assert rules(old, new, level) == {rule}
    assert rules(old, new, "none") == set()


@pytest.mark.parametrize(("old", "new"), SAFE)
def test_what_breaks_nobody(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert rules(old, new, "full") == set()


def test_every_rule_is_stated_here() -> None:
    stated = {rule for _, _, rule in [*BACKWARD, *FORWARD, *BOTH]}
    assert stated | {"EVENT_TYPE_REMOVED", "SHAPE_CHANGED", "HISTORY_FLOOR", "COMPATIBILITY_WEAKER"} == set(RULES)


# Versions: 1 has `x`, 2 has none, 3 has `x` of another type. 3 against 2 is fine, 3 against 1 is not.
GONE_AND_BACK = (field(type="int64", optional=True), NOTHING, field(type="string", optional=True))


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "none"])
def test_transitive_levels_look_at_every_version_others_at_the_last(level: str) -> None:
    first, second, third = (contract(n, level, **more) for n, more in enumerate(GONE_AND_BACK, 1))
    found = {finding.rule for finding in judge([first, second], third)}
    expected = {"backward": {"TYPE_NARROWED"}, "forward": {"TYPE_WIDENED"}}
    wanted = set().union(*(expected[side] for side in ("backward", "forward") if side in LEVELS[level]))
    assert found == (wanted if "transitive" in level else set())


def test_one_finding_for_a_change_that_breaks_several_versions() -> None:
    history = [contract(1), contract(2)]
    (finding,) = judge(history, contract(3, **field()))
    assert finding.change == "is new and required"
    assert finding.breaks == "readers on v3 that meet events of v2"


def test_types_of_events_are_compared_one_by_one() -> None:
    def shop(version: int, **types: Any) -> Contract:
        shapes = {name: {"fields": {"id": ID, **fields}} for name, fields in types.items()}
        return contract(version, kind="event", types=shapes)

    placed = {"total": {"type": "int64"}}
    old = shop(1, placed=placed, paid={})
    assert judge([old], shop(2, placed=placed, paid={}, shipped={})) == []
    assert [f.rule for f in judge([old], shop(2, placed=placed))] == ["EVENT_TYPE_REMOVED"]
    (finding,) = judge([old], shop(2, placed={}, paid={}))
    assert (finding.rule, finding.field) == ("FIELD_REMOVED", "placed.total")
    assert [f.rule for f in judge([old], contract(2, kind="event"))] == ["SHAPE_CHANGED"]


@pytest.mark.parametrize("retention", ["forever", "compacted", {"compacted": True, "tombstones": "9d"}])
@pytest.mark.parametrize("level", LEVELS)
def test_streams_that_keep_history_need_backward_transitive(level: str, retention: Any) -> None:
    found = {finding.rule for finding in judge([], contract(1, level, retention=retention))}
    assert found == (set() if level in ("backward_transitive", "full_transitive") else {"HISTORY_FLOOR"})


def test_streams_that_forget_need_no_floor() -> None:
    assert judge([], contract(1, "none", retention={"age": "7d", "until_consumed": True})) == []


def test_a_level_cannot_be_lowered_on_the_way() -> None:
    old = contract(1, "full")
    assert [f.rule for f in judge([old], contract(2, "backward"))] == ["COMPATIBILITY_WEAKER"]
    assert [f.rule for f in judge([old], contract(2, "none"))] == ["COMPATIBILITY_WEAKER"]
    assert judge([old], contract(2, "full_transitive")) == []


def test_a_finding_says_where_what_who_and_how() -> None:
    text = (
        "stream: s\nversion: 2\nkey: [id]\nretention: {age: 7d}\n"
        "consumers: [{name: billing, fields: [price]}, {name: search}, {name: mail, fields: [id]}]\n"
        "fields:\n  id: {type: int64}\n  price:\n    type: int64\n    unit: EUR\n"
    )
    document = parse_document(text, "contracts/s.yaml")
    new = Contract.model_validate(document.data)
    old = contract(1, fields={"price": {"type": "int64", "unit": "USD"}}, consumers=[{"name": "finance"}])
    (finding,) = judge([old], new, Site(document))
    assert str(finding) == (
        'contracts/s.yaml:10: UNIT_CHANGED field "price": unit USD became EUR '
        "-> whoever relied on v1, of the declared consumers: billing, finance, search "
        "-> add a field with the new unit beside it; deprecate the old one"
    )


def test_an_accepted_version_is_not_judged_against_its_successors() -> None:
    assert judge([contract(1), contract(2, **field(optional=True))], contract(1)) == []


PROMOTIONS = [
    ("int32", "int64", Resolution.EXACT),
    ("int32", "float64", Resolution.EXACT),
    ("float32", "float64", Resolution.EXACT),
    ("int32", "float32", Resolution.LOSSY),
    ("int64", "float32", Resolution.LOSSY),
    ("int64", "float64", Resolution.LOSSY),
    ("string", "bytes", Resolution.EXACT),
    ("bytes", "string", Resolution.LOSSY),
    ("uuid", "string", Resolution.EXACT),
    ("json", "string", Resolution.EXACT),
    ("string", "json", Resolution.IMPOSSIBLE),
    ("int64", "int32", Resolution.IMPOSSIBLE),
    ("float64", "float32", Resolution.IMPOSSIBLE),
    ("bool", "int32", Resolution.IMPOSSIBLE),
    ("int32", "decimal(10,0)", Resolution.IMPOSSIBLE),
    ("date", "timestamp", Resolution.IMPOSSIBLE),
    ("date", "int32", Resolution.IMPOSSIBLE),
    ("time", "int64", Resolution.IMPOSSIBLE),
    ("local_timestamp", "timestamp", Resolution.IMPOSSIBLE),
    ("decimal(10,2)", "decimal(12,2)", Resolution.EXACT),
    ("decimal(10,2)", "decimal(12,4)", Resolution.IMPOSSIBLE),
    ("list<int32>", "list<int64>", Resolution.EXACT),
    ("list<int64>", "list<float64>", Resolution.LOSSY),
    ("list<string>", "string", Resolution.IMPOSSIBLE),
    ("map<string,int32>", "map<string,int64>", Resolution.EXACT),
    ("struct<a: int32, b: string>", "struct<b: string, a: int64>", Resolution.EXACT),
    ("struct<a: int32>", "struct<b: int32>", Resolution.EXACT),
    ("struct<a: int64>", "struct<a: int32, b: string>", Resolution.IMPOSSIBLE),
]


@pytest.mark.parametrize(("writer", "reader", "expected"), PROMOTIONS)
def test_what_a_reader_can_take(writer: str, reader: str, expected: Resolution) -> None:
    assert resolve(reader=parse_type(reader), writer=parse_type(writer)) is expected


SCALARS = st.sampled_from(
    ["bool", "int32", "int64", "float64", "decimal(10,2)", "string", "bytes", "timestamp", "uuid"]
)
TYPES = st.recursive(
    SCALARS,
    lambda inner: (
        inner.map("list<{}>".format)
        | inner.map("map<string,{}>".format)
        | st.tuples(inner, inner).map(lambda pair: f"struct<a: {pair[0]}, b: {pair[1]}>")
    ),
    max_leaves=4,
)
SPECS = st.fixed_dictionaries(
    {"type": TYPES}, optional={"optional": st.booleans(), "unit": st.sampled_from(["m", "s"])}
)
SHAPES = st.dictionaries(st.sampled_from(["a", "b", "c"]), SPECS)


@settings(deadline=None, max_examples=100)
@given(SHAPES)
def test_a_version_that_changes_nothing_breaks_nothing(shape: dict[str, Any]) -> None:
    assert broken({"fields": shape}, {"fields": shape}) == []


@settings(deadline=None, max_examples=200)
@given(SHAPES, SHAPES)
def test_full_is_backward_and_forward(old: dict[str, Any], new: dict[str, Any]) -> None:
    by_level = {
        level: set(broken({"fields": old}, {"fields": new}, level)) for level in ("backward", "forward", "full")
    }
    assert by_level["full"] == by_level["backward"] | by_level["forward"]


@settings(deadline=None, max_examples=200)
@given(SHAPES, SHAPES)
def test_what_is_backward_one_way_is_forward_the_other_way(old: dict[str, Any], new: dict[str, Any]) -> None:
    there = rules({"fields": old}, {"fields": new}, "backward")
    back = rules({"fields": new}, {"fields": old}, "forward")
    lossless = "TYPE_LOSSY" not in there and "TYPE_WIDENED" not in back
    assert bool(there) == bool(back) or not lossless


def test_sides() -> None:
    assert sides_of("none") == frozenset()
    assert sides_of("full_transitive") == {"backward", "forward", "both"}
