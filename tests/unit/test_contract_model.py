"""The contract as a model: what it takes, what it refuses, and what it is written out as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.check import RULES as CHECK_RULES
from headwater.contracts import compatibility, vocabulary
from headwater.contracts.document import parse_document, write_yaml
from headwater.contracts.model import Contract, FieldSpec, Retention, dump, validated
from headwater.contracts.types import SCALARS, FieldType, parse_type
from headwater.errors import ConfigError, ContractError

DOCS = Path(__file__).parents[2] / "docs"


def contract(**more: Any) -> Contract:
    data = {"stream": "shop.order", "version": 1, "key": ["id"], "fields": {"id": {"type": "int64"}}, **more}
    return validated(Contract, data, where="contract")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"key": []}, "a fact needs a `key`"),
        ({"key": ["id", "id"]}, "`key` names a field twice"),
        ({"key": ["nr"]}, "key field `nr` is not among the fields"),
        ({"fields": {"id": {"type": "int64", "optional": True}}}, "key field `id` cannot be optional"),
        ({"fields": {"id": {"type": "float64"}}}, "float64 cannot be part of a key"),
        ({"fields": {"id": {"type": "json"}}}, "json cannot be part of a key"),
        ({"fields": {}}, "a contract has `fields`, or `types`"),
        ({"fields": {"id": {"type": "int64"}, "type": {"type": "string"}}}, "the name belongs to Headwater"),
        ({"fields": {"id": {"type": "int64"}, "_x": {"type": "string"}}}, "`fields._x` is no name"),
        ({"types": {"a": {"fields": {"id": {"type": "int64"}}}}}, "`types` is for `kind: event`"),
        ({"consumers": [{"name": "b", "fields": ["nr"]}]}, "consumer `b` uses fields that do not exist: nr"),
        ({"stream": "Shop"}, "`stream`: String should match pattern"),
        ({"version": 0}, "`version`: Input should be greater than or equal to 1"),
        ({"retention": "for ever"}, "`retention`: a mapping is expected, found str"),
        ({"compatibility": "ful"}, "did you mean `full`?"),
    ],
)
def test_what_a_contract_refuses(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract(**more)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "int46"}, "unknown type `int46`"),
        ({"type": "int64", "pattern": "a"}, "`pattern` is for strings"),
        ({"type": "string", "pattern": "("}, "is no regular expression"),
        ({"type": "string", "min": 1}, "`min` and `max` are for numbers and times"),
        ({"type": "int64", "min": 2, "max": 1}, "`min: 2` is above `max: 1`"),
        ({"type": "decimal(4,2)", "min": "10", "max": "9.5"}, "`min: 10` is above `max: 9.5`"),
        ({"type": "date", "min": "2021-01-01", "max": "2020-01-01"}, "is above"),
        ({"type": "int64", "enum": ["a"]}, "`enum` of a int64 lists int64 values, not a"),
        ({"type": "string", "enum": ["a", 1]}, "lists string values, not 1"),
        ({"type": "string", "enum": []}, "not nothing"),
        ({"type": "string", "enum": ["a", "a"]}, "`enum` lists a value twice"),
        ({"type": "bool", "enum": ["a"]}, "`enum` is for strings and integers"),
        ({"type": "string", "open": True}, "`open` is for a field with an `enum`"),
        ({"type": "int64", "default": "one"}, "`default: one` is no int64"),
        ({"type": "int64", "default": True}, "`default: True` is no int64"),
        ({"type": "decimal(4,2)", "default": "x"}, "`default: x` is no decimal(4,2)"),
    ],
)
def test_what_a_field_refuses(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract(fields={"id": {"type": "int64"}, "x": spec})
    assert "`fields.x`: " in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "decimal(4,2)", "min": "9.5", "max": "10"},
        {"type": "int64", "min": 9, "max": 10},
        {"type": "decimal(4,2)", "default": "1.50"},
        {"type": "list<int64>", "default": [1]},
        {"type": "json", "default": {"a": 1}},
        {"type": "bool", "default": False},
        {"type": "int64", "default": 0},
        {"type": "string", "default": ""},
    ],
)
def test_what_a_field_takes(spec: dict[str, Any]) -> None:
    made = contract(fields={"id": {"type": "int64"}, "x": spec}).fields["x"]
    assert {name: getattr(made, name) for name in spec} == spec


def test_event_types_that_share_a_name_share_its_type() -> None:
    def shapes(kind: str) -> dict[str, Any]:
        return {"a": {"fields": {"id": {"type": "int64"}}}, "b": {"fields": {"id": {"type": kind}}}}

    assert contract(kind="event", fields={}, types=shapes("int64")).type_names == ("a", "b")
    with pytest.raises(ContractError, match="field `id` is int64 in one type and string in another"):
        contract(kind="event", fields={}, types=shapes("string"))


def test_consumers_of_a_field() -> None:
    made = contract(consumers=[{"name": "all"}, {"name": "one", "fields": ["id"]}])
    assert made.consumers_of("id") == ["all", "one"]
    assert made.consumers_of("x") == ["all"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604800), ("1w", 604800), (12, 12)],
)
def test_durations(written: str | int, seconds: float) -> None:
    assert contract(retention={"age": written}).retention.age == seconds


@pytest.mark.parametrize(
    ("written", "forever", "keeps"),
    [
        ("forever", True, True),
        ("compacted", False, True),
        ({"age": "7d"}, False, False),
        ({"until_consumed": True}, False, False),
    ],
)
def test_retention(written: Any, forever: bool, keeps: bool) -> None:
    made = contract(retention=written)
    assert (made.retention.forever, made.keeps_history) == (forever, keeps)
    assert Retention.model_validate(made.retention.spelled) == made.retention


def test_a_changed_copy_does_not_remember_the_old_type() -> None:
    spec = FieldSpec(type="int64")
    assert spec.parsed == FieldType("int64")
    assert spec.model_copy(update={"type": "string"}).parsed == FieldType("string")


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name not in ("before", "type"))
TYPES = st.recursive(
    st.sampled_from(SCALARS).map(FieldType)
    | st.integers(1, 76).flatmap(lambda p: st.integers(0, p).map(lambda s: FieldType("decimal", p, s))),
    lambda inner: (
        inner.map(lambda t: FieldType("list", items=(t,)))
        | inner.map(lambda t: FieldType("map", items=(t,)))
        | st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(
            lambda members: FieldType("struct", items=tuple(members.values()), names=tuple(members))
        )
    ),
    max_leaves=5,
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=150)
@given(TYPES)
def test_a_type_reads_as_it_is_written(made: FieldType) -> None:
    assert parse_type(str(made)) == made


@pytest.mark.parametrize(
    "text",
    [
        *("", "int", "decimal", "decimal(0,0)", "decimal(4,5)", "decimal(77,0)", "decimal(-1,0)", "int64 int64"),
        *("list<>", "list<int64", "list int64", "map<int64,string>"),
        *("struct<>", "struct<a>", "struct<a: int64, a: int64>", "struct<A: int64>"),
    ],
)
def test_types_that_are_none(text: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_type(text)
    assert f"field type `{text}`" in caught.value.message


@settings(deadline=None, max_examples=100)
@given(
    fields=st.dictionaries(
        NAMES,
        st.builds(
            FieldSpec,
            type=TYPES.map(str),
            optional=st.booleans(),
            description=TEXTS,
            unit=st.none() | TEXTS,
            examples=st.lists(TEXTS | st.integers() | st.booleans(), max_size=2).map(tuple),
            pii=st.sampled_from(["none", "personal", "sensitive"]),
        ),
        max_size=4,
    ),
    description=TEXTS,
    retention=st.sampled_from(
        ["forever", "compacted", {"age": 1.5, "until_consumed": True}, {"compacted": True, "tombstones": 5}]
    ),
)
def test_a_contract_reads_as_it_is_written(fields: dict[str, FieldSpec], description: str, retention: Any) -> None:
    made = contract(
        fields={**fields, "id": FieldSpec(type="int64")},
        description=description,
        retention=Retention.model_validate(retention),
    )
    document = parse_document(dump(made), "contract")
    assert validated(Contract, document.data, where="contract", document=document) == made


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(PLAIN, st.booleans())
def test_yaml_reads_as_it_is_written(data: Any, flow: bool) -> None:
    assert parse_document(write_yaml(data, flow=flow), "file").data == data


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "1:30", "2020-01-01", "0o17", "017", "1_0", "1e3", "=", "<<", "~", "null"]
)
def test_words_that_some_yaml_takes_for_something_else_are_quoted(word: str) -> None:
    assert parse_document(write_yaml([word]), "file").data == [word]


def test_lines_of_keys_and_items() -> None:
    document = parse_document("a:\n  - b\n  - c: 1\n    d: {e: 2}\n", "file")
    assert document.line("a") == 1
    assert document.line("a", 1, "c") == 3
    assert document.line("a", 1, "d", "e") == 4
    assert document.line("a", 1, "d", "gone") == 4
    assert document.place("nowhere") == "file:1"


def test_aliases_are_read_and_recursion_ends() -> None:
    assert parse_document("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n", "file").data == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    data = parse_document("a: &x [*x]\n", "file").data
    assert data["a"][0] is data["a"]


@pytest.mark.parametrize(
    "text", ["a: !!python/object:os.system x", "a: !foo x", "a: *nowhere", "a: {", "\t- a", "a: b\n---\nc: d"]
)
def test_yaml_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^file:\d+: not valid YAML"):
        parse_document(text, "file")


def test_the_documentation_lists_every_rule_key_and_attribute() -> None:
    text = (DOCS / "contracts.md").read_text()
    rules = [*compatibility.RULES, *vocabulary.RULES]
    assert [rule for rule in rules if f"| `{rule}` |" not in text] == []
    keys = {*Contract.model_fields, *FieldSpec.model_fields, *Retention.model_fields}
    assert [key for key in sorted(keys) if f"`{key}" not in text] == []
    assert [name for name in SCALARS if f"`{name}`" not in text] == []


def test_the_documentation_lists_every_rule_of_check() -> None:
    text = (DOCS / "configuration.md").read_text()
    lines = [f"| `{rule}` | {severity} | {meaning} |" for rule, (severity, meaning) in CHECK_RULES.items()]
    assert [line for line in lines if line not in text] == []
