"""How a table is best captured, as far as the table itself can tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from headwater.dialects import Column, Table

TRIGGERED = frozenset({"sqlite"})
"""Databases whose tables can be captured by triggers."""

_UPDATED = re.compile(
    r"^(last_)?(updated|modified|changed|edited|written)(_(at|on|time|date|ts|timestamp|datetime))?$"
    r"|^(last_)?(update|modification|change)(_(time|date|ts|timestamp|datetime))$"
    r"|^(last_(update|change)|mtime|row_version|(update|change)_(seq|sequence|number))$"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """`why` is a whole sentence for a comment. `key`: columns to name in the configuration, () for the primary key."""

    pattern: Literal["trigger", "query"]
    why: str
    cursor: str | None = None
    key: tuple[str, ...] = ()


def row_key(table: Table) -> tuple[str, ...]:
    """The columns that identify a row: the primary key, else a unique index over columns that are always set."""
    if table.key:
        return table.key
    nullable = {column.name for column in table.columns if column.nullable}
    return next((columns for columns in table.unique if not nullable.intersection(columns)), ())


def choose(table: Table, *, scheme: str, writable: bool) -> Choice:
    """Triggers where they are possible; a cursor where one is safe; else the whole table, again and again."""
    key = row_key(table)
    named = () if key == table.key else key
    if scheme in TRIGGERED and writable and not table.is_view:
        return Choice("trigger", "By triggers: each change is seen, deletes and intermediate states too.", key=named)
    reason = f"Not by triggers: {_no_triggers(table, scheme, writable)}."
    cursor = cursor_of(table)
    if cursor is not None:
        return Choice(
            "query",
            f"{reason} By query: `{cursor}` is indexed and always set, so a poll reads only what is new.",
            cursor=cursor,
            key=named,
        )
    return Choice("query", f"{reason} By query of the whole table: no column tells reliably what is new.", key=named)


def cursor_of(table: Table) -> str | None:
    """A column that says when a row last changed, is never NULL, and leads an index."""
    candidates = [c for c in table.columns if _UPDATED.match(c.name.lower()) and not c.nullable and _grows(c)]
    indexed = {index[0] for index in (*table.indexes, *table.unique, table.key) if index}
    return next((c.name for c in candidates if c.name in indexed), None)


def unindexed_cursors(table: Table) -> list[Column]:
    """Columns that would do as a cursor if they were indexed, or never NULL."""
    named = [c for c in table.columns if _UPDATED.match(c.name.lower()) and _grows(c)]
    return [c for c in named if c.name != cursor_of(table)]


def _grows(column: Column) -> bool:
    return bool(pa.types.is_timestamp(column.type) or pa.types.is_integer(column.type))


def _no_triggers(table: Table, scheme: str, writable: bool) -> str:
    if table.is_view:
        return "a view has none that see changes of its tables"
    return f"{scheme} has no trigger capture" if scheme not in TRIGGERED else "the database cannot be written here"
