"""How a table is best captured, as far as the table itself can tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from headwater.dialects import Column, Table

_UPDATED = re.compile(
    r"^(last_)?(updated|modified|changed|edited|written)(_(at|on|time|date|ts|timestamp|datetime))?$"
    r"|^(last_)?(update|modification|change)(_(time|date|ts|timestamp|datetime))$"
    r"|^(last_(update|change)|mtime|row_version|(update|change)_(seq|sequence|number))$"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """`why` is a whole sentence for a comment. `key`: columns to name in the configuration, () for the primary key."""

    pattern: Literal["log", "trigger", "query"]
    why: str
    cursor: str | None = None
    key: tuple[str, ...] = ()


def row_key(table: Table) -> tuple[str, ...]:
    """The columns that identify a row: the primary key, else a unique index over columns that are always set."""
    if table.key:
        return table.key
    nullable = {column.name for column in table.columns if column.nullable}
    return next((columns for columns in table.unique if not nullable.intersection(columns)), ())


@dataclass(frozen=True, slots=True)
class Obstacles:
    """Why a table's log cannot be captured, and why triggers cannot; "" where nothing stands in the way.

    `log` is None for a kind of database that has no log to follow: that is not worth a word.
    """

    log: str | None = None
    trigger: str = ""


def choose(table: Table, obstacles: Obstacles) -> Choice:
    """The log where it can be had; triggers where those can; else a cursor that is safe; else the whole table."""
    key = row_key(table)
    named = () if key == table.key else key
    if obstacles.log == "":
        return Choice("log", "From the log: each change is seen, in whole transactions as they committed.", key=named)
    reason = f"Not from the log: {obstacles.log}. " if obstacles.log else ""
    if not obstacles.trigger:
        why = f"{reason}By triggers: each change is seen, deletes and intermediate states too."
        return Choice("trigger", why, key=named)
    reason += f"Not by triggers: {obstacles.trigger}."
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
