"""A table as its triggers must know it, from the catalog: columns, key, and where its rows are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import execute, quoted
from headwater.errors import SourceError
from headwater.model import TableId

if TYPE_CHECKING:
    import psycopg

_TABLE = """
SELECT c.oid::bigint, c.relkind::text, c.relpersistence::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind NOT IN ('i', 'I', 't')
"""
_COLUMNS = """
SELECT attname::text, atttypid::bigint, atttypmod FROM pg_catalog.pg_attribute
WHERE attrelid = %s::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_KEY = """
SELECT a.attname::text FROM pg_catalog.pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum
WHERE i.indrelid = %s::oid AND a.attrelid = i.indrelid AND i.indisprimary ORDER BY k.place
"""
_LEAVES = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text
FROM pg_catalog.pg_partition_tree(%s::oid) p
JOIN pg_catalog.pg_class c ON c.oid = p.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE p.isleaf AND c.relkind <> 'p' ORDER BY c.oid
"""
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "c": "a type"}
_LASTING = {"u": "unlogged", "t": "temporary"}


@dataclass(frozen=True, slots=True)
class PgField:
    """A column. `oid`, `typmod`: as in `pg_attribute`."""

    name: str
    oid: int
    typmod: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where rows are stored: the table itself, or a partition."""

    oid: int
    sql: str


@dataclass(frozen=True, slots=True)
class Shape:
    """`key`: the primary key's columns, () without one."""

    id: TableId
    oid: int
    columns: tuple[PgField, ...]
    key: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    partitioned: bool
    types: PgTypes

    @property
    def sql(self) -> str:
        return f"{quoted(self.id.schema)}.{quoted(self.id.name)}"

    def column(self, name: str) -> PgField:
        return next(column for column in self.columns if column.name == name)

    def printed(self, row: str, names: Sequence[str]) -> str:
        """SQL: the texts of a row's columns, as the types' own output functions print them."""
        texts = [self.types.printed(f"{row}.{quoted(name)}", self.column(name).oid) for name in names]
        return f"ARRAY[{', '.join(texts)}]::pg_catalog.text[]"

    def same_key(self, left: str, right: str) -> str:
        """SQL: whether two rows have the same key, by the key's own equality."""
        return " AND ".join(f"{left}.{quoted(name)} = {right}.{quoted(name)}" for name in self.key)


def shape_of(connection: psycopg.Connection, table: TableId, types: PgTypes) -> Shape:
    """Raises `SourceError` for what cannot have triggers that see its rows change."""
    found = execute(connection, _TABLE, [table.schema, table.name])
    if not found:
        raise SourceError(
            f"there is no table {table}", hint="it was dropped or renamed; adapt `table` in headwater.yaml"
        )
    ((oid, kind, persistence),) = found
    if kind not in "rp":
        raise SourceError(
            f"{table} is {_KINDS.get(kind, 'not a table')}: PostgreSQL has no triggers on it that see its rows change",
            hint="capture the tables beneath it, or use `pattern: query`",
        )
    leaves = [(oid, table.schema, table.name, kind, persistence)]
    if kind == "p":
        leaves = execute(connection, _LEAVES, [oid])
    for _, _, name, leaf_kind, leaf_persistence in leaves:
        _check_leaf(table, name, leaf_kind, leaf_persistence)
    return Shape(
        id=table,
        oid=int(oid),
        columns=tuple(PgField(*row) for row in execute(connection, _COLUMNS, [oid])),
        key=tuple(name for (name,) in execute(connection, _KEY, [oid])),
        leaves=tuple(Leaf(int(o), f"{quoted(schema)}.{quoted(name)}") for o, schema, name, _, _ in leaves),
        partitioned=kind == "p",
        types=types,
    )


def _check_leaf(table: TableId, name: str, kind: str, persistence: str) -> None:
    if kind == "f":
        raise SourceError(f"partition {name} of {table} is a foreign table: its changes are elsewhere")
    if persistence in _LASTING:
        raise SourceError(
            f"table {name} is {_LASTING[persistence]}: a crash empties it, and no trigger sees that",
            hint="ALTER TABLE ... SET LOGGED, or use `pattern: query`",
        )
