"""What the trigger pattern gives, and what it cannot see, in whole sentences."""

from __future__ import annotations

from headwater.config import StreamConfig
from headwater.protocols import Guarantee

ORDER = "Changes come in the order of their statements; SQLite's triggers know neither a transaction's id nor its time."
REPLACED = (
    "Rows that OR REPLACE removes are seen through the table's unique indexes; a row that a BEFORE trigger of the "
    "application makes to collide within the same statement is not."
)
REBUILT = (
    "A rebuilt table loses its triggers: they are made again at the next wake-up, and what happened in between is "
    "recovered as the difference of the rows, without its intermediate states."
)
NO_KEY = "The table has no key: what happens while its triggers are gone cannot be recovered."
DROPPED = "While the change table is missing, the application's writes fail: drop it only with `headwater destroy`."


def guarantee(config: StreamConfig, *, keyed: bool, key: tuple[str, ...] = ()) -> Guarantee:
    """`keyed`: whether the table has a key to compare rows by."""
    notes = (ORDER, REPLACED, REBUILT, DROPPED) if keyed else (ORDER, REPLACED, REBUILT, NO_KEY, DROPPED)
    return Guarantee("exactly_once", "every", "seen", notes)
