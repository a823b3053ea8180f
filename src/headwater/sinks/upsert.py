"""SQL that brings a target up to date: text for the databases whose tables are written by key and order.

A `Table` is one stream in one target. Beside it lies a table of guards: the order of each deleted key, so that an
event that is older than the delete cannot bring the row back. With soft deletes the row itself is the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from headwater.contracts.model import Contract
from headwater.contracts.types import FieldType
from headwater.model import TIMESTAMP
from headwater.schema import table_schema
from headwater.sinks.placing import ORDER, table_name

HISTORY = pa.schema(
    [
        ("_op", pa.int8()),
        ("_epoch", pa.uint32()),
        ("_commit", pa.uint64()),
        ("_index", pa.uint32()),
        ("_time", TIMESTAMP),
        ("_offset", pa.uint64()),
        ("_unchanged", pa.string()),
    ]
)
"""What a history table holds before the fields; `_unchanged` names the fields that the event did not carry."""

CURRENT = pa.schema([("_epoch", pa.uint32()), ("_commit", pa.uint64()), ("_index", pa.uint32())])
SOFT = pa.schema([("_deleted", pa.bool_()), ("_deleted_at", TIMESTAMP)])


def quoted(name: str) -> str:
    """A name as an SQL identifier, in DuckDB and in SQLite."""
    return '"' + name.replace('"', '""') + '"'


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, names))


@dataclass(frozen=True)
class Table:
    """One stream in one target."""

    contract: Contract
    mode: str
    soft: bool

    @property
    def name(self) -> str:
        return table_name(self.contract.stream)

    @property
    def guard(self) -> str:
        """The table of deleted keys. Streams cannot have such a name: it is reserved."""
        return f"headwater_deleted_{self.name}"

    @property
    def key(self) -> tuple[str, ...]:
        return self.contract.key

    @property
    def current(self) -> bool:
        return self.mode == "current"

    @property
    def guarded(self) -> bool:
        return self.current and not self.soft

    @cached_property
    def fields(self) -> pa.Schema:
        """The contract's columns."""
        return table_schema(self.contract)

    @cached_property
    def types(self) -> dict[str, FieldType]:
        types = {name: spec.parsed for name, spec in self.contract.all_fields.items()}
        return {"type": FieldType("string"), **types} if self.contract.types else types

    @cached_property
    def own(self) -> pa.Schema:
        """Headwater's columns."""
        if not self.current:
            return HISTORY
        return pa.schema([*CURRENT, *SOFT]) if self.soft else CURRENT

    @cached_property
    def columns(self) -> pa.Schema:
        return pa.schema([*self.fields, *self.own])

    @property
    def values(self) -> tuple[str, ...]:
        """The columns that an upsert sets."""
        return tuple(name for name in self.columns.names if name not in self.key)


def create(table: Table, type_of: Callable[[str], str], *, primary: bool) -> str:
    """`primary`: whether the key is declared as one."""
    lines = [f"{quoted(name)} {type_of(name)}" for name in table.columns.names]
    if primary and table.current:
        lines.append(f"PRIMARY KEY ({listed(table.key)})")
    return f"CREATE TABLE {quoted(table.name)} ({', '.join(lines)})"


def create_guard(table: Table, type_of: Callable[[str], str], *, primary: bool) -> str:
    lines = [f"{quoted(name)} {type_of(name)}" for name in (*table.key, *ORDER, "_at")]
    if primary:
        lines.append(f"PRIMARY KEY ({listed(table.key)})")
    return f"CREATE TABLE {quoted(table.guard)} ({', '.join(lines)})"


def same_key(table: Table, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{quoted(k)} = {right}.{quoted(k)}" for k in table.key)


def triple(relation: str = "") -> str:
    dot = f"{relation}." if relation else ""
    return "(" + ", ".join(f"{dot}{name}" for name in ORDER) + ")"


def newer(left: str, right: str) -> str:
    return f"{triple(left)} > {triple(right)}"


def select(table: Table) -> str:
    """The rows that `state` shows: live ones, or every event."""
    where = " WHERE NOT _deleted" if table.current and table.soft else ""
    return f"SELECT {{columns}} FROM {quoted(table.name)}{where}"
