"""What each pattern of capture can see. The one place that says so: `doctor` and the documentation use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

Way = Literal["log", "trigger", "outbox", "query by timestamp", "query by id", "bulk query"]


@dataclass(frozen=True, slots=True)
class Sight:
    inserts: str
    updates: str
    hard_deletes: str
    each_intermediate_state: str
    order_and_transactions: str
    rows_that_commit_late: str
    load_on_the_source: str
    code_change_in_the_application: str
    needs: str
    misses: tuple[str, ...] = ()
    """The same as whole sentences: what somebody who chooses this will not see."""
    misses_there: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is missed besides on one kind of database, by its URL scheme."""

    def misses_on(self, scheme: str) -> tuple[str, ...]:
        return self.misses + self.misses_there.get(scheme, ())


_DELETES_BY_KEYS = "Deleted rows are only noticed when the keys are compared (`reconcile_deletes`)."
_LATEST = "Of several changes between two polls, only the last is seen."
_NO_ORDER = "The order of changes to different rows, and what belongs to one transaction, is not seen."
_LATE = "A row that commits later than the look-back window allows is only found by reconciliation."

SIGHTS: dict[Way, Sight] = {
    "log": Sight("yes", "yes", "yes", "yes", "yes", "yes", "least", "none", "log privileges"),
    "trigger": Sight(
        *("yes", "yes", "yes", "yes", "yes (SQLite: order only)", "yes"),
        *("on each write", "none", "DDL privileges"),
        misses_there={"sqlite": ("Which changes belong to one transaction is not seen (SQLite).",)},
    ),
    "outbox": Sight(
        *("what the code emits", "what the code emits", "what the code emits", "yes", "yes", "yes"),
        *("on each write", "yes", "a table"),
        ("What the application's code does not emit does not exist.",),
    ),
    "query by timestamp": Sight(
        *("yes", "latest state", "only by key reconciliation", "no", "no"),
        "within the look-back window, later by reconciliation",
        *("on each poll", "none", "an indexed, always-set column"),
        (_DELETES_BY_KEYS, _LATEST, _NO_ORDER, _LATE),
    ),
    "query by id": Sight(
        *("yes", "no", "no", "n/a", "no", "within the look-back window, later by reconciliation"),
        *("on each poll", "none", "a growing key"),
        ("Updates are not seen.", "Deletes are not seen.", _NO_ORDER, _LATE),
    ),
    "bulk query": Sight(
        *("yes", "latest state", "by difference", "no", "no", "yes"),
        *("heavy", "none", "nothing"),
        (_LATEST, _NO_ORDER, "Each poll reads the whole table."),
    ),
}


def markdown() -> str:
    """The table for the documentation."""
    rows = [f.name for f in fields(Sight) if f.type == "str"]
    lines = ["| | " + " | ".join(SIGHTS) + " |", "|---" * (len(SIGHTS) + 1) + "|"]
    for name in rows:
        cells = [str(getattr(sight, name)) for sight in SIGHTS.values()]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
