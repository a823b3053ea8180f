"""A step of the change table in pages: whole transactions while they are small, parts of one that is large."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headwater.sources.trigger_postgres.changes import Page, page_sql, xids_sql
from headwater.sources.trigger_postgres.look import Seen, Transactions
from headwater.sources.trigger_postgres.names import Names

if TYPE_CHECKING:
    from headwater.sources.trigger_postgres.connecting import RowReader


def page_of(reader: RowReader, names: Names, seen: Seen, size: int, time: str) -> tuple[Page | None, Seen | None]:
    """The next page of about `size` rows, and what is left of the step. `time`: see `page_sql`."""
    found = seen.transactions
    if not len(found):
        return None, None
    if seen.rest.last == found.last[0] or found.count[0] > size:
        return _part(reader, names, seen, size, time)
    whole = max(1, int(np.searchsorted(np.cumsum(found.count), size, "right")))
    rows = reader.all(page_sql(names, time, f"c.xid = ANY ({xids_sql(found.xids[:whole])})"))
    page = None if rows is None else _ordered(rows, found, whole, seen.rest.index)
    last = int(found.last[whole - 1])
    return page, _rest(seen, whole, last, last, 0 if page is None else len(page.rows))


def _part(reader: RowReader, names: Names, seen: Seen, size: int, time: str) -> tuple[Page | None, Seen | None]:
    """Of the first transaction alone."""
    found, rest = seen.transactions, seen.rest
    last = int(found.last[0])
    after = rest.id if rest.last == last else 0
    where = f"c.xid = '{found.xids[0]}'::pg_catalog.xid8 AND c.id > {after}"
    rows = reader.all(f"{page_sql(names, time, where)} LIMIT {size}")
    if rows is None:
        return None, _rest(seen, 1, last, last, 0)
    page = Page(rows, _indices(rest.index, len(rows)))
    newest = int(rows.column("id")[-1].as_py())
    return page, _rest(seen, 1 if len(rows) < size else 0, last, newest, len(rows))


def _rest(seen: Seen, done: int, last: int, newest: int, rows: int) -> Seen | None:
    left = np.arange(len(seen.transactions)) >= done
    if not left.any():
        return None
    step = dataclasses.replace(seen.rest, last=last, id=newest, index=seen.rest.index + 2 * rows)
    return dataclasses.replace(seen, transactions=seen.transactions.only(left), rest=step)


def _ordered(rows: pa.RecordBatch, found: Transactions, count: int, index: int) -> Page:
    """Transaction by transaction, each by number."""
    by_xid = np.argsort(found.xids[:count])
    xids, ids = (rows.column(name).to_numpy() for name in ("xid", "id"))
    place = by_xid[np.searchsorted(found.xids[:count][by_xid], xids)]
    order = np.lexsort((ids, place))
    return Page(rows.take(pa.array(order)), _indices(index, len(rows)))


def _indices(start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.arange(start, start + 2 * count, 2).astype(np.uint32)
