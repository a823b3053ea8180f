"""The publications of log capture as their tables' owner makes them, so that the role that captures owns nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from headwater.drivers.postgres import execute, literal, quoted
from headwater.model import TableId
from headwater.sources.log_postgres.names import Names
from headwater.sources.log_postgres.publication import EVERYTHING, INSERTS
from headwater.sources.log_postgres.tables import Described, describe

if TYPE_CHECKING:
    import psycopg


def publish_sql(connection: psycopg.Connection, names: Names, tables: Iterable[TableId]) -> tuple[str, ...]:
    """One statement for tables whose updates and deletes can be told, one for the others."""
    described = describe(connection, tables).values()
    there = {name for (name,) in execute(connection, "SELECT pubname::text FROM pg_publication")}
    told = [table for table in described if table.told]
    mute = [table for table in described if not table.told]
    kinds = ((names.publication, told, EVERYTHING), (names.inserts, mute, INSERTS))
    return tuple(publication_sql(name, chosen, ops, there=name in there) for name, chosen, ops in kinds if chosen)


def publication_sql(name: str, tables: Sequence[Described], publish: frozenset[str], *, there: bool) -> str:
    """`there`: the publication exists, and lacks the tables. A table that others inherit from is meant alone."""
    listed = ", ".join(table.sql if table.leaf.kind == "p" else f"ONLY {table.sql}" for table in tables)
    if there:
        return f"ALTER PUBLICATION {quoted(name)} ADD TABLE {listed};"
    ops = ", ".join(op for op in ("insert", "update", "delete", "truncate") if op in publish)
    options = f"publish = {literal(ops)}, publish_via_partition_root = true"
    return f"CREATE PUBLICATION {quoted(name)} FOR TABLE {listed}\n  WITH ({options});"
