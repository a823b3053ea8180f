"""`headwater check`: each rule, with its place, and what is well passed over in silence."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater import config as configuration
from headwater.check import RULES, Problem, Survey, check, look, rendered
from headwater.contracts.store import ContractStore
from headwater.protocols import Guarantee

CONFIG: dict[str, Any] = {
    "headwater": 1,
    "name": "lms",
    "sources": {"lms": "sqlite:///lms.db"},
    "streams": {
        "learning.enrollment": {
            "source": "lms",
            "table": "enrollment",
            "pattern": "trigger",
            "fields": {"enrollment_id": "id", "price": "round(price, 2)"},
        }
    },
    "sinks": {"warehouse": {"url": "duckdb:w.duckdb"}},
}
CONTRACT: dict[str, Any] = {
    "stream": "learning.enrollment",
    "version": 1,
    "owner": "enrolments",
    "key": ["enrollment_id"],
    "delivery": "exactly_once",
    "changes": "every",
    "deletes": "seen",
    "fields": {
        "enrollment_id": {"type": "int64"},
        "email": {"type": "string", "optional": True},
        "price": {"type": "decimal(10,2)", "optional": True},
    },
}
STREAM = "learning.enrollment"


class World:
    """A project on disk, with a database; edited by each test before it is checked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = json.loads(json.dumps(CONFIG))
        self.contract = json.loads(json.dumps(CONTRACT))
        self.vocabulary: dict[str, Any] | None = None
        (root / "contracts").mkdir()
        self.accept = True
        with closing(sqlite3.connect(root / "lms.db")) as connection:
            connection.execute(
                "CREATE TABLE enrollment (id INTEGER PRIMARY KEY, email TEXT, price DECIMAL(10,2), at TIMESTAMP)"
            )
            connection.execute("CREATE TABLE keyless (id INTEGER, email TEXT, price DECIMAL(10,2))")

    @property
    def stream(self) -> dict[str, Any]:
        stream: dict[str, Any] = self.config["streams"][STREAM]
        return stream

    @property
    def store(self) -> ContractStore:
        return ContractStore(self.root / "contracts")

    def write(self) -> None:
        (self.root / "headwater.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        self.write_contract(self.contract)
        if self.vocabulary is not None:
            (self.root / "vocabulary.yaml").write_text(yaml.safe_dump(self.vocabulary))

    def write_contract(self, contract: dict[str, Any]) -> None:
        (self.root / "contracts" / f"{STREAM}.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))

    def problems(self, survey: Survey | None = None) -> list[Problem]:
        self.write()
        if self.accept and not self.store.newest(STREAM):
            self.store.accept(STREAM)
        config = configuration.load(self.root / "headwater.yaml")
        return check(config, self.store, survey=look(config) if survey is None else survey)

    def found(self, survey: Survey | None = None) -> list[tuple[str, str, str]]:
        return [(p.severity, p.rule, p.subject) for p in self.problems(survey)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_is_well_is_passed_over(world: World) -> None:
    assert world.found() == []


def test_a_contract_that_is_not_there(world: World) -> None:
    world.config["streams"]["learning.enrolment"] = world.config["streams"].pop(STREAM)
    (unused, missing) = sorted(world.problems(), key=lambda problem: problem.rule, reverse=True)[:2]
    assert (unused.rule, unused.hint) == ("CONTRACT_UNUSED", "did you mean `learning.enrolment`?")
    assert (missing.rule, missing.subject, missing.line) == ("CONTRACT_INVALID", "learning.enrolment", 6)
    assert missing.hint == "did you mean `learning.enrollment`?"


def test_a_contract_that_cannot_be_read_does_not_hide_other_problems(world: World) -> None:
    world.accept = False
    world.contract["knid"] = "fact"
    world.config["sinks"]["warehouse"]["streams"] = ["learning.enrolment"]
    (contract, sink) = world.problems()
    assert (contract.rule, contract.line) == ("CONTRACT_INVALID", 18)
    assert contract.message == "`knid` is not a known key; did you mean `kind`?"
    assert (sink.rule, sink.hint) == ("SINK_MATCHES_NOTHING", "did you mean `learning.enrollment`?")


def test_a_url_that_no_adapter_knows(world: World) -> None:
    world.config["sinks"]["warehouse"]["url"] = "duckdbb:warehouse.duckdb"
    world.config["bus"] = "kafka://broker"
    bus, sink = sorted(world.problems(), key=lambda problem: problem.subject)
    assert (bus.rule, bus.subject, bus.severity) == ("NO_ADAPTER", "bus", "error")
    assert bus.hint.startswith("known are embedded")
    assert (sink.rule, sink.subject, sink.hint) == ("NO_ADAPTER", "warehouse", "did you mean `duckdb`?")


def test_not_accepted(world: World) -> None:
    world.accept = False
    assert world.found() == [("warning", "NOT_ACCEPTED", STREAM)]
    world.store.accept(STREAM)
    world.contract["version"] = 2
    (problem,) = world.problems()
    assert problem.message == "version 2 is not accepted: the engine goes by v1"


def test_changed_after_accept(world: World) -> None:
    assert world.found() == []
    world.contract["fields"]["email"]["optional"] = False
    (problem,) = world.problems()
    assert (problem.severity, problem.rule, problem.hint) == ("error", "CHANGED_AFTER_ACCEPT", "write `version: 2`")


def test_what_a_new_version_breaks(world: World) -> None:
    assert world.found() == []
    world.contract["version"] = 2
    world.contract["fields"]["email"]["optional"] = False
    assert ("error", "NULL_REFUSED", "email") in world.found()


def test_tampered(world: World) -> None:
    assert world.found() == []
    path = world.store.published(STREAM) / "v1.yaml"
    path.write_text(path.read_text() + "# and more\n")
    (problem,) = world.problems()
    assert (problem.severity, problem.rule, problem.path) == ("error", "TAMPERED", str(path))


def test_no_owner(world: World) -> None:
    world.contract["owner"] = ""
    assert world.found() == [("warning", "NO_OWNER", STREAM)]


def test_a_mapping_for_a_field_that_is_not(world: World) -> None:
    world.stream["fields"]["prize"] = "price"
    (problem,) = world.problems()
    assert (problem.severity, problem.rule, problem.hint) == ("error", "UNKNOWN_FIELD", "did you mean `price`?")
    assert problem.line == 13


def test_a_field_without_a_column(world: World) -> None:
    del world.stream["fields"]["enrollment_id"]
    (problem,) = world.problems()
    assert (problem.rule, problem.subject, problem.message) == (
        "UNKNOWN_COLUMN",
        "enrollment_id",
        "no column has its name",
    )


def test_a_field_from_a_misspelt_column(world: World) -> None:
    world.stream["fields"]["email"] = "emial"
    (problem,) = world.problems()
    assert (problem.rule, problem.message) == ("UNKNOWN_COLUMN", "the table has no column `emial`")
    assert problem.hint.endswith("did you mean `email`?")


def test_cursor_and_key_without_a_column(world: World) -> None:
    world.stream.update(pattern="query", cursor="att", key=["idd"])
    world.contract.update(changes="latest", deletes="unseen")
    assert world.found() == [("error", "UNKNOWN_COLUMN", STREAM)] * 2
    assert {problem.hint for problem in world.problems()} == {"did you mean `at`?", "did you mean `id`?"}


def test_a_table_that_is_not_there(world: World) -> None:
    world.stream["table"] = "enrolment"
    (problem,) = world.problems()
    assert (problem.severity, problem.rule, problem.hint) == ("error", "UNKNOWN_TABLE", "did you mean `enrollment`?")


def test_a_fact_needs_a_key(world: World) -> None:
    world.stream["table"] = "keyless"
    assert world.found() == [("error", "NO_KEY", STREAM)]
    world.stream["key"] = ["id"]
    assert world.found() == []


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("round(price", "`round(price` is no SQL expression"),
        ("sum(price)", "an aggregate"),
        ("round(prize, 2)", "no column `prize`; did you mean `price`?"),
        ("(select 1)", "a query"),
    ],
)
def test_an_expression_that_cannot_be(world: World, expression: str, message: str) -> None:
    world.stream["fields"]["price"] = expression
    (problem,) = world.problems()
    assert (problem.severity, problem.rule, problem.subject, problem.line) == ("error", "EXPRESSION", "price", 12)
    assert message in problem.message


def test_a_where_that_cannot_be(world: World) -> None:
    world.stream["where"] = "mode <> 'beta'"
    (problem,) = world.problems()
    assert (problem.rule, problem.line) == ("EXPRESSION", 13)
    assert "no column `mode`" in problem.message


def test_without_a_look_at_the_database_expressions_are_parsed_all_the_same(world: World) -> None:
    world.stream["where"] = "mode <> 'beta'"
    world.stream["fields"]["price"] = 'round("The Price", 2)'
    assert world.found(Survey()) == []
    world.stream["where"] = "mode <>"
    assert world.found(Survey()) == [("error", "EXPRESSION", STREAM)]


def test_a_mirror_of_its_table(world: World) -> None:
    del world.stream["fields"]["price"]
    assert world.found() == [("warning", "MIRRORS_TABLE", STREAM)]


@pytest.mark.parametrize("change", ["rename", "compute", "filter", "describe"])
def test_a_contract_of_its_own_is_no_mirror(world: World, change: str) -> None:
    del world.stream["fields"]["price"]
    if change == "rename":
        world.contract["fields"]["amount"] = world.contract["fields"].pop("price")
        world.stream["fields"]["amount"] = "price"
    elif change == "compute":
        world.stream["fields"]["price"] = "price * 2"
    elif change == "filter":
        world.stream["where"] = "price > 0"
    else:
        world.contract["fields"]["price"]["description"] = "What the learner paid."
    assert world.found() == []


def test_personal_data_that_leaves_as_it_is(world: World) -> None:
    world.contract["fields"]["email"]["pii"] = "personal"
    assert world.found() == [("warning", "PII_PLAIN", "email")]
    for private in ("hash(email)", "hash(lower(email), 'salt')", "mask(email)"):
        world.stream["fields"]["email"] = private
        assert world.found() == []
    world.stream["fields"]["email"] = "lower(email)"
    assert world.found() == [("warning", "PII_PLAIN", "email")]


def test_promises_that_the_path_cannot_keep(world: World) -> None:
    world.stream.update(pattern="query", cursor="at")
    problems = [problem for problem in world.problems() if problem.rule == "PROMISE"]
    assert [problem.message for problem in problems] == [
        "it promises `changes: every`, its path gives `latest`",
        "it promises `deletes: seen`, its path gives `unseen`",
    ]
    assert all(problem.severity == "error" for problem in problems)
    survey = Survey(guarantees={STREAM: Guarantee("best_effort", "every", "seen", ("It may lose some.",))})
    (problem,) = world.problems(survey)
    assert problem.hint.startswith("It may lose some.")


def test_sinks_that_name_no_stream(world: World) -> None:
    world.config["sinks"]["warehouse"]["streams"] = ["learning.*", "billing.*", "learning.enrolment"]
    assert world.found() == [
        ("error", "SINK_MATCHES_NOTHING", "warehouse"),
        ("warning", "SINK_PATTERN_UNUSED", "warehouse"),
    ]


def test_event_types(world: World) -> None:
    shape = {"fields": {"enrollment_id": {"type": "int64", "description": "which"}}}
    world.contract.update(kind="event", types={"begun": shape, "ended": shape})
    del world.contract["fields"]
    world.stream["fields"] = {}
    mapped = {"fields": {"enrollment_id": "id"}}
    world.stream["types"] = {"begun": mapped, "endde": mapped}
    assert world.found() == [("error", "UNKNOWN_TYPE", STREAM)] * 2
    world.stream["types"] = {"begun": mapped, "ended": {**mapped, "where": "nothing = 1"}}
    assert world.found() == [("error", "EXPRESSION", STREAM)]
    world.stream["types"] = {"begun": mapped, "ended": mapped}
    assert world.found() == []


def test_vocabulary(world: World) -> None:
    world.contract["fields"]["user_id"] = {"type": "string", "ref": "user", "optional": True}
    world.stream["fields"]["user_id"] = "email"
    assert world.found() == [("error", "REF_UNKNOWN", "user_id")]
    world.vocabulary = {"entities": {"user": {"key": {"user_id": "int64"}, "owner": "a", "stream": "a.user"}}}
    assert sorted(world.found()) == [
        ("error", "REF_TYPE", "user_id"),
        ("warning", "ENTITY_ELSEWHERE", ""),
        ("warning", "FACT_ENTITY", STREAM),
    ]
    world.vocabulary = {"entitys": {}}
    assert world.found() == [("error", "CONTRACT_INVALID", "vocabulary.yaml")]


def test_a_source_that_is_away(world: World) -> None:
    world.config["sources"]["lms"] = "nosql://here"
    assert world.found() == [("warning", "SOURCE_AWAY", STREAM)]


def test_a_source_with_an_unknown_option_is_an_error_that_names_it_once(world: World) -> None:
    world.config["sources"]["lms"] = {"url": "postgresql://localhost/nowhere", "options": {"strreaming": "off"}}
    (problem,) = world.problems()
    assert (problem.severity, problem.rule, problem.subject) == ("error", "SOURCE_REFUSED", "lms")
    assert "`strreaming` is not a known key; did you mean `streaming`?" in problem.message
    assert problem.line > 1


def test_a_function_is_not_looked_into(world: World) -> None:
    world.stream["fields"] = {}
    world.stream["function"] = "module:callable"
    assert world.found() == []


@pytest.mark.parametrize(
    ("sql", "more", "found"),
    [
        ("", {}, ["KEY_NOT_UNIQUE"]),
        ("CREATE UNIQUE INDEX one ON enrollment (email)", {}, []),
        ("CREATE UNIQUE INDEX two ON enrollment (email, price)", {}, ["KEY_NOT_UNIQUE"]),
        ("", {"key": ["email"]}, []),
    ],
)
def test_a_key_that_nothing_makes_unique(world: World, sql: str, more: dict[str, Any], found: list[str]) -> None:
    with closing(sqlite3.connect(world.root / "lms.db")) as connection:
        connection.execute(sql)
    world.stream["fields"]["enrollment_id"] = "email"
    world.contract["fields"]["enrollment_id"] = {"type": "string"}
    world.stream.update(more)
    assert [p.rule for p in world.problems() if p.rule in ("KEY_NOT_UNIQUE", "NO_KEY")] == found


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"pattern": "query"}, "`pattern: query` without a `cursor` compares all rows with the whole stream"),
        ({"pattern": "query", "cursor": "at", "reconcile_deletes": "1h"}, "`reconcile_deletes` compares all rows"),
        ({"pattern": "query", "cursor": "at"}, None),
        ({"pattern": "trigger"}, None),
    ],
)
def test_a_comparison_needs_the_whole_stream(world: World, more: dict[str, Any], found: str | None) -> None:
    world.contract |= {"retention": {"age": "7d"}, "changes": "latest", "deletes": "unseen"}
    world.stream.update(more)
    problems = [problem for problem in world.problems() if problem.rule == "RETENTION"]
    assert [problem.message.startswith(found or "") for problem in problems] == ([True] if found else [])
    assert all("retention: forever" in problem.hint for problem in problems)


def test_text_names_place_severity_rule_and_remedy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    world.contract["owner"] = ""
    assert rendered(world.problems()) == (
        "contracts/learning.enrollment.yaml:3: warning: NO_OWNER learning.enrollment: "
        "nobody answers for it -> write `owner:` with the team that does"
    )


def test_json_and_annotations(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    world.stream["fields"]["price"] = "100 %\n"
    problems = world.problems()
    (item,) = json.loads(rendered(problems, "json"))
    assert (item["severity"], item["path"], item["rule"]) == ("error", "headwater.yaml", "EXPRESSION")
    (line,) = rendered(problems, "github-actions").split("\n")
    assert line.startswith("::error file=headwater.yaml,line=12,title=EXPRESSION::price: ")
    assert "%25" in line


def test_made_in_code_without_a_file(world: World) -> None:
    world.write()
    config = configuration.load(world.root / "headwater.yaml")
    (world.root / "headwater.yaml").unlink()
    assert [problem.rule for problem in check(config, world.store)] == ["NOT_ACCEPTED"]


def test_every_rule_is_tested_here() -> None:
    text = Path(__file__).read_text()
    assert [rule for rule in RULES if f'"{rule}"' not in text] == []
