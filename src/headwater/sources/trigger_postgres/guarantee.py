"""What the trigger pattern gives on PostgreSQL, and what it cannot see, in whole sentences."""

from __future__ import annotations

from headwater.config import StreamConfig
from headwater.protocols import Guarantee

ORDER = (
    "The changes of a row come in the order in which they happened, transactions whole; transactions that ran side by "
    "side need not come in the order of their commits."
)
TIME = "Times are those of the statements, unless the server keeps the commits' (`track_commit_timestamp = on`)."
UNSEEN = (
    "What no trigger sees (a partition that is attached, detached or dropped, ALTER COLUMN ... TYPE, triggers that "
    "were switched off) is recovered as the difference of the rows, without its intermediate states."
)
NO_KEY = "The table has no key: what no trigger sees cannot be recovered."
DROPPED = "While the change table is missing, the application's writes fail: drop it only with `headwater destroy`."


def guarantee(config: StreamConfig, *, keyed: bool, key: tuple[str, ...] = ()) -> Guarantee:
    """`keyed`: whether the table has a key to compare rows by."""
    notes = (ORDER, TIME, UNSEEN, DROPPED) if keyed else (ORDER, TIME, UNSEEN, NO_KEY, DROPPED)
    return Guarantee("exactly_once", "every", "seen", notes)
