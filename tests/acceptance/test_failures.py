"""docs/failures.md against the tests: each one it names exists, and each one that is named after a rule is in it.

With `HEADWATER_UPDATE=1` the page's lists are written anew.
"""

from __future__ import annotations

import os
import re
import textwrap

from tests.acceptance.snippets import ROOT

PAGE = ROOT / "docs/failures.md"
TEST = re.compile(r"def (test((?:_f\d+)+)_\w+)\(")
RULE = re.compile(r"^\*\*(F\d+)\*\* (.+?)\n(?:\n((?:\*   .+\n)+))?", re.MULTILINE)


def in_the_tests() -> dict[str, set[str]]:
    """The tests named after each rule. One test may be named after several."""
    found: dict[str, set[str]] = {}
    for place in (ROOT / "tests", ROOT / "src/headwater/testing"):
        for path in place.rglob("*.py"):
            for match in TEST.finditer(path.read_text(encoding="utf-8")):
                for number in re.findall(r"f(\d+)", match[2]):
                    found.setdefault(f"F{int(number)}", set()).add(match[1])
    return found


def on_the_page() -> dict[str, set[str]]:
    page = PAGE.read_text(encoding="utf-8")
    return {match[1]: set(re.findall(r"`(test_\w+)`", match[3] or "")) for match in RULE.finditer(page)}


def rewritten(page: str) -> str:
    named = in_the_tests()

    def row(match: re.Match[str]) -> str:
        tests = "".join(f"*   `{test}`\n" for test in sorted(named.get(match[1], ())))
        return textwrap.dedent(f"**{match[1]}** {match[2]}\n\n") + tests

    return RULE.sub(row, page)


def test_the_page_lists_the_tests_that_are_named_after_each_rule() -> None:
    if os.environ.get("HEADWATER_UPDATE"):
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    later = PAGE.read_text(encoding="utf-8").split("## Not yet")[1]
    expected = {rule: tests for rule, tests in in_the_tests().items() if rule in on_the_page() or rule not in later}
    assert on_the_page() == expected


def test_each_rule_is_shown_by_a_test() -> None:
    assert [rule for rule, tests in on_the_page().items() if not tests] == []
