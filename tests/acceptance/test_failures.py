"""docs/failures.md against the tests: each one it names exists, and each one that is named after a rule is in it."""

from __future__ import annotations

import re

from tests.acceptance.snippets import ROOT

RULE = re.compile(r"def (test_f(\d+)_\w+)\(")


def in_the_tests() -> set[str]:
    places = (ROOT / "tests", ROOT / "src/headwater/testing")
    return {
        match[1]
        for place in places
        for path in place.rglob("*.py")
        for match in RULE.finditer(path.read_text(encoding="utf-8"))
    }


def rows() -> dict[str, list[str]]:
    """The tests that each rule's row lists."""
    page = (ROOT / "docs/failures.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (F\d+) \| .+? \| (.*?) ?\|$", page, re.MULTILINE)
    return {rule: re.findall(r"`(test_\w+)`", tests) for rule, tests in found}


def test_each_rule_is_shown_by_a_test() -> None:
    assert [rule for rule, tests in rows().items() if not tests] == []


def test_each_test_that_is_listed_exists() -> None:
    listed = {test for tests in rows().values() for test in tests}
    assert listed - in_the_tests() == set()


def test_each_test_of_a_rule_is_listed_at_that_rule() -> None:
    listed = {(rule, test) for rule, tests in rows().items() for test in tests}
    named = {(f"F{match[2]}", match[1]) for test in in_the_tests() if (match := RULE.match(f"def {test}("))}
    assert named - listed == set()
