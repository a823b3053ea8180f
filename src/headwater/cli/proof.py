"""Comparisons as text: one line each, and below it the keys that differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headwater.cli.output import count, plain

if TYPE_CHECKING:
    from headwater.verify.comparison import Comparison, KeyDifference

SHOWN = 5
"""Keys of a class that people get to see; `--json` has more."""
WORDS = {
    "differing": "differ",
    "missing": "missing",
    "extra": "too many",
    "repeated": "there more than once",
    "quarantined": "in quarantine",
    "older_mapping": "written under an older mapping",
    "unsettled": "changed meanwhile",
    "unseen_deletes": "deleted unseen",
}


def lines(comparison: Comparison) -> Iterator[str]:
    head = f"{comparison.stream} against {comparison.against}"
    if not comparison.comparable:
        yield f"not comparable  {head}: {comparison.reason}"
        return
    found = [f"{len(keys):,} {WORDS[name]}" for name, keys in comparison.classes().items() if keys]
    rows = count(comparison.rows_target, "row")
    reason = f" ({comparison.reason})" if comparison.reason else ""
    yield f"{'equal  ' if comparison.equal else 'differs'}  {head}: {', '.join([rows, *found])}{reason}"
    for name, keys in comparison.classes().items():
        for difference in list(keys)[:SHOWN]:
            yield f"           {WORDS[name]}: {_difference(difference)}"


def _difference(difference: KeyDifference) -> str:
    if difference.fields():
        pairs = (
            f"{name} is {_value(difference.target, name)}, expected {_value(difference.source, name)}"
            for name in difference.fields()
        )
        return f"{plain(difference.key)}: " + ", ".join(pairs)
    return str(plain(difference.key))


def _value(row: dict[str, Any] | None, name: str) -> str:
    return repr(plain(row[name])) if row is not None else "-"
