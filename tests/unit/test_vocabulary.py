"""The vocabulary: one name and one type for equal things, in every stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater.contracts.findings import Site
from headwater.contracts.model import Contract
from headwater.contracts.vocabulary import RULES, Vocabulary, VocabularyFile, Written, check_vocabulary, load_vocabulary
from headwater.errors import ConfigError

VOCABULARY = Vocabulary.model_validate(
    {
        "entities": {
            "user": {"key": {"user_id": "int64"}, "owner": "accounts", "stream": "accounts.user"},
            "line": {"key": {"order_id": "int64", "line_no": "int32"}, "owner": "shop", "stream": "shop.line"},
        },
        "terms": {"money.usd": {"type": "decimal(12,2)", "unit": "USD"}, "count": {"type": "int64"}},
    }
)
HOME = {"user_id": {"type": "int64"}}


def contract(stream: str = "shop.order", key: tuple[str, ...] = ("order_no",), **fields: Any) -> Written:
    names = {name: {"type": "int64"} for name in key}
    return Written(Contract.model_validate({"stream": stream, "version": 1, "key": key, "fields": {**names, **fields}}))


def found(*contracts: Written, vocabulary: Vocabulary | None = VOCABULARY) -> list[tuple[str, str]]:
    """(rule, field), but for what this test's small world leaves out."""
    file = VocabularyFile(vocabulary, Site()) if vocabulary else None
    findings = check_vocabulary(file, contracts)
    return [(f.rule, f.field) for f in findings if f.rule not in ("ENTITY_ELSEWHERE", "FACT_ENTITY")]


@pytest.mark.parametrize(
    ("name", "spec", "rules"),
    [
        ("user_id", {"type": "int64", "ref": "user"}, []),
        ("invited_by_user_id", {"type": "int64", "ref": "user"}, []),
        ("order_id", {"type": "int64", "ref": "line"}, []),
        ("last_line_no", {"type": "int32", "ref": "line"}, []),
        ("user_id", {"type": "string", "ref": "user"}, ["REF_TYPE"]),
        ("line_no", {"type": "int64", "ref": "line"}, ["REF_TYPE"]),
        ("user", {"type": "int64", "ref": "user"}, ["REF_NAME"]),
        ("actor", {"type": "string", "ref": "user"}, ["REF_NAME", "REF_TYPE"]),
        ("user_id", {"type": "int64", "ref": "usr"}, ["REF_UNKNOWN"]),
        ("price", {"type": "decimal(12,2)", "unit": "USD", "term": "money.usd"}, []),
        ("price", {"type": "decimal(12, 2)", "unit": "USD", "term": "money.usd"}, []),
        ("price", {"type": "int64", "unit": "USD", "term": "money.usd"}, ["TERM_TYPE"]),
        ("price", {"type": "decimal(12,2)", "term": "money.usd"}, ["TERM_UNIT"]),
        ("price", {"type": "decimal(12,2)", "unit": "EUR", "term": "money.usd"}, ["TERM_UNIT"]),
        ("seats", {"type": "int64", "unit": "people", "term": "count"}, ["TERM_UNIT"]),
        ("price", {"type": "decimal(12,2)", "term": "money.us"}, ["TERM_UNKNOWN"]),
    ],
)
def test_fields(name: str, spec: dict[str, Any], rules: list[str]) -> None:
    assert found(contract("shop.order", ("order_no",), **{name: spec})) == [(rule, name) for rule in rules]


def test_an_unknown_entity_names_the_nearest() -> None:
    (finding,) = check_vocabulary(
        VocabularyFile(Vocabulary(entities={"user": VOCABULARY.entities["user"]}), Site()),
        [contract("accounts.user", ("user_id",), other_user_id={"type": "int64", "ref": "usr"})],
    )
    assert (finding.rule, finding.remedy) == ("REF_UNKNOWN", "did you mean `user`?")


def test_the_key_of_a_home_stream_is_the_entitys_identity() -> None:
    assert found(contract("accounts.user", ("user_id",))) == []
    assert found(contract("accounts.user", ("id",))) == [("ENTITY_KEY", "")]
    text = contract("accounts.user", ("id",), user_id={"type": "int64"})
    assert found(text) == [("ENTITY_KEY", "")]


def test_a_home_is_a_fact() -> None:
    event = Written(Contract.model_validate({"stream": "accounts.user", "version": 1, "kind": "event", "fields": HOME}))
    assert found(event) == [("ENTITY_HOME", "")]


def test_an_entity_has_owner_and_home() -> None:
    bare = Vocabulary.model_validate({"entities": {"user": {"key": {"user_id": "int64"}}}})
    assert found(vocabulary=bare) == [("ENTITY_OWNER", ""), ("ENTITY_HOME", "")]


def test_a_home_that_is_not_here_is_a_warning_with_the_nearest() -> None:
    findings = check_vocabulary(VocabularyFile(VOCABULARY, Site()), [contract("accounts.users", ("user_id",))])
    elsewhere = {f.change: f.remedy for f in findings if f.rule == "ENTITY_ELSEWHERE"}
    assert (
        elsewhere["entity `user`: home stream `accounts.user` has no contract here"] == "did you mean `accounts.users`?"
    )


def test_a_fact_is_about_an_entity() -> None:
    def rules(written: Written) -> list[str]:
        findings = check_vocabulary(VocabularyFile(VOCABULARY, Site()), [written])
        return [f.rule for f in findings if f.rule == "FACT_ENTITY"]

    assert rules(contract("accounts.user", ("user_id",))) == []
    assert rules(contract("shop.order")) == ["FACT_ENTITY"]
    profile = {"user_id": {"type": "int64", "ref": "user"}}
    assert rules(contract("accounts.profile", ("user_id",), **profile)) == []
    clicks = Contract.model_validate({"stream": "web.click", "version": 1, "kind": "event", "fields": HOME})
    assert rules(Written(clicks)) == []


def test_without_a_vocabulary_only_references_need_one() -> None:
    assert found(contract(), vocabulary=None) == []
    spec = {"type": "int64", "ref": "user"}
    assert found(contract(user_id=spec), vocabulary=None) == [("REF_UNKNOWN", "user_id")]


def test_findings_name_line_and_rule(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.yaml"
    path.write_text("entities:\n  user:\n    key: {user_id: int64}\n    stream: accounts.user\n")
    file = load_vocabulary(path)
    assert file is not None
    lines = {finding.rule: str(finding) for finding in check_vocabulary(file, [])}
    assert lines["ENTITY_OWNER"] == (
        f"{path}:4: ENTITY_OWNER: entity `user`: it has no owner -> write `owner:` with the team that answers for it"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entities: {user: {kye: {user_id: int64}}}", "`entities.user.kye` is not a known key; did you mean `key`?"),
        ("entities: {user: {key: {user_id: int46}}}", "unknown type `int46`"),
        ("entities: {user: {key: {}}}", "at least 1 item"),
        ("terms: {money: {type: decimal}}", "`(` is expected"),
        ("terms: ]", "not valid YAML"),
    ],
)
def test_a_vocabulary_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vocabulary.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_vocabulary(path)
    assert caught.value.message.startswith(f"{path}:1: ")
    assert message in caught.value.message


def test_no_file_is_no_vocabulary(tmp_path: Path) -> None:
    assert load_vocabulary(tmp_path / "vocabulary.yaml") is None


def test_every_rule_is_tested_here() -> None:
    text = Path(__file__).read_text()
    assert [rule for rule in RULES if f'"{rule}"' not in text] == []
