"""A look at the change table: which transactions have become visible since the last, in one statement.

The statement sees one snapshot and says which. It reads the marks too: whoever has locked them (`state`) has it wait
before its snapshot is taken (a lock comes first, see PostgreSQL's sources, exec_simple_query), so that looks, marks and
the numbers that they draw have one order.

Of a step, changes are given in the order of their transactions' last numbers: a transaction that had to wait for
another to end (for a row's lock) has a number after it, so the changes of each row are in the order in which they
happened. Transactions that ran side by side need not be in the order of their commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headwater.drivers.postgres import execute
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.position import Place, Step
from headwater.sources.trigger_postgres.snapshots import Snapshot, snapshot_of

if TYPE_CHECKING:
    import psycopg

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Transactions:
    """Transactions with changes, by their last numbers, which rise; with the number of their changes."""

    xids: Ints
    last: Ints
    count: Ints

    def __len__(self) -> int:
        return len(self.xids)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Transactions:
        return Transactions(self.xids[chosen], self.last[chosen], self.count[chosen])


@dataclass(frozen=True, slots=True)
class Seen:
    """A step: what `upto` sees and the one before did not. Its changes are of commit `commit`."""

    commit: int
    upto: Snapshot
    transactions: Transactions
    rest: Step
    """How far it has been read."""
    mark: bool = False
    """Somebody has read rows in this snapshot: the position comes here, even if nothing has changed."""

    @property
    def rows(self) -> int:
        return int(self.transactions.count.sum())


def look(connection: psycopg.Connection, names: Names, place: Place) -> list[Seen]:
    """The steps beyond the place, which lies at the end of one. Empty but for the last, they may hold no changes."""
    sql = f"""
SELECT pg_catalog.pg_current_snapshot()::text,
  (SELECT array_agg(m.id || ' ' || m.snapshot ORDER BY m.id) FROM {names.mark} m WHERE m.id > {place.commit}),
  (SELECT pg_catalog.nextval({names.sequence})
     FROM (SELECT FROM {names.change} c WHERE {place.snapshot.unseen("c.xid")} LIMIT 1) y),
  x.xid, x.last, x.count
FROM (SELECT) AS one LEFT JOIN (
  SELECT c.xid::text::bigint AS xid, max(c.id) AS last, count(*) AS count
  FROM {names.change} c WHERE {place.snapshot.unseen("c.xid")} GROUP BY c.xid) x ON true
ORDER BY x.last"""
    rows = execute(connection, sql)
    text, marks, number, *_ = rows[0]
    found = _transactions([row[3:] for row in rows if row[3] is not None])
    upto = snapshot_of(text)
    return _cut(found, marks or [], Seen(number or place.commit, upto, found, Step(upto)))


def rest_of(connection: psycopg.Connection, names: Names, place: Place, step: Step) -> Seen:
    """A step that was cut off, from where it was."""
    sql = f"""
SELECT c.xid::text::bigint, max(c.id) AS last, count(*) FROM {names.change} c
WHERE {place.snapshot.unseen("c.xid")} AND pg_catalog.pg_visible_in_snapshot(c.xid, '{step.upto}')
GROUP BY c.xid HAVING max(c.id) >= {step.last} ORDER BY 2"""
    return Seen(place.commit, step.upto, _transactions(execute(connection, sql)), step)


def _transactions(rows: list[tuple[int, ...]]) -> Transactions:
    xids, last, count = np.array(rows, np.int64).reshape(-1, 3).T
    return Transactions(xids, last, count)


def _cut(found: Transactions, marks: list[str], whole: Seen) -> list[Seen]:
    """A step for each mark, with what its snapshot sees, and one for the rest."""
    steps = []
    for mark in marks:
        number, text = mark.split(" ")
        snapshot = snapshot_of(text)
        seen = snapshot.sees(found.xids)
        steps.append(Seen(int(number), snapshot, found.only(seen), Step(snapshot), mark=True))
        found = found.only(~seen)
    return [*steps, Seen(max(whole.commit, *(s.commit for s in steps), 0), whole.upto, found, whole.rest)]
