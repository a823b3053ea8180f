"""What the log pattern gives on PostgreSQL, and what it cannot see, in whole sentences."""

from __future__ import annotations

from headwater.config import StreamConfig
from headwater.protocols import Guarantee

ORDER = "Changes come whole transaction by whole transaction, in the order of their commits."
TOAST = (
    "An update does not carry large values that it left alone, unless the table has REPLICA IDENTITY FULL: they are "
    "marked as unchanged, and sinks leave them as they are. Of a row that changes its key, or that a load has yet to "
    "read, or to read again after it was broken off, and that is gone before such a value can be looked up, the states "
    "until its end are not told."
)
LOADS = (
    "A row that a load reads while the log goes on holds its latest changes already: those that the log has yet to "
    "tell are not told one by one. If capture ends before the log has come there, those that are left are told after "
    "all, and until then the row goes back to what it was."
)
UNLOGGED = "What PostgreSQL does not write to its log is not seen: unlogged tables, sequences and large objects."
WHOLE = (
    "What is done to a whole table (partitions emptied, attached or removed, a table made again, rows rewritten by "
    "an ALTER, a publication altered) is not in the log: it is seen in the catalog at starts, and seconds later while "
    "capture runs. Then the table is compared with its stream, and what happened to its rows is not told one by one."
)
FAILOVER = (
    "A server that was restored or promoted has another log: capture stops with an error, and `headwater repair` "
    "compares every table with its stream."
)
NO_KEY = "The table has no key: rows cannot be told apart, and what a gap has cost cannot be found by comparing."


def guarantee(config: StreamConfig, *, keyed: bool, key: tuple[str, ...] = ()) -> Guarantee:
    """`keyed`: whether the table has a key to compare rows by."""
    notes = (ORDER, TOAST, LOADS, UNLOGGED, WHOLE, FAILOVER, *(() if keyed else (NO_KEY,)))
    return Guarantee("exactly_once", "every", "seen", notes)
