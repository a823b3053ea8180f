"""What PostgreSQL's catalog says of tables, as the values of `dialects`.

https://www.postgresql.org/docs/current/catalogs.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.dialects import ForeignKey, Table
from headwater.dialects.names import required
from headwater.dialects.postgres_options import texts_of
from headwater.dialects.postgres_types import PgColumn, PgTypes
from headwater.drivers.postgres import execute, quoted
from headwater.model import TableId

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True, slots=True)
class PgTable(Table):
    """`columns` are `PgColumn`s. `kind`: `relkind`. `placed`: a row's `ctid` is its own, and says where it is stored.

    `lowest`: of a custom query, a text that every value which `:cursor` is compared with is above.
    """

    oid: int = 0
    kind: str = "r"
    placed: bool = False
    lowest: str = ""

    @property
    def relation(self) -> str:
        """What stands in FROM."""
        if self.sql is not None:
            return f"({self.sql}\n)"
        return f"{quoted(self.id.schema)}.{quoted(self.id.name)}"

    @property
    def described(self) -> tuple[PgColumn, ...]:
        return tuple(column for column in self.columns if isinstance(column, PgColumn))

    def chosen(self, names: Sequence[str]) -> list[PgColumn]:
        """Raises `SourceError` that names the nearest column."""
        found = {column.name: column for column in self.described}
        return [found[required(name, self.columns, f"table {self.id}").name] for name in names]


_KINDS = "('r', 'p', 'v', 'm', 'f')"
_VIEWS = ("v", "m", "f")
"""Views, materialized views, foreign tables: relations that are read, and that have no key of their own."""

_TABLES = f"""
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN {_KINDS} AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND n.nspname !~* '^headwater' AND c.relname !~* '^headwater'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                  AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""
_FOUND = f"""
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text,
       c.relkind IN ('r', 'm') AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
       CASE WHEN c.relkind = 'p' THEN (SELECT sum(greatest(l.reltuples, 0)) FROM pg_catalog.pg_partition_tree(c.oid) t
                                       JOIN pg_catalog.pg_class l ON l.oid = t.relid WHERE t.isleaf)
            WHEN c.relkind = 'r' AND c.reltuples >= 0 THEN c.reltuples END::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN {_KINDS} AND c.relname = %(name)s
  AND CASE WHEN %(schema)s = '' THEN pg_catalog.pg_table_is_visible(c.oid) ELSE n.nspname = %(schema)s END
"""
_COLUMNS = """
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid::bigint, a.atttypmod,
       NOT a.attnotnull, a.attgenerated <> '', a.atthasdef OR a.attidentity <> ''
FROM pg_catalog.pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_INDEXES = """
SELECT i.indisprimary, i.indisunique,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
             WHERE k.place <= i.indnkeyatts ORDER BY k.place)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am m ON m.oid = c.relam
WHERE i.indrelid = %s AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid AND m.amname = 'btree'
ORDER BY i.indisprimary DESC, i.indexrelid
"""
_FOREIGN_KEYS = """
SELECT n.nspname::text, r.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(f.conkey) WITH ORDINALITY k(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.number ORDER BY k.place),
       ARRAY(SELECT a.attname::text FROM unnest(f.confkey) WITH ORDINALITY k(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.number ORDER BY k.place)
FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class r ON r.oid = f.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE f.conrelid = %s AND f.contype = 'f'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint p WHERE p.oid = f.conparentid AND p.conrelid = f.conrelid)
ORDER BY f.conname, f.oid
"""


def tables(connection: psycopg.Connection) -> list[TableId]:
    """The application's: neither the database's own, nor an extension's, nor Headwater's; parents, not partitions."""
    return [TableId(schema, name) for schema, name in execute(connection, _TABLES)]


def table(connection: psycopg.Connection, wanted: TableId, types: PgTypes, texts: frozenset[str]) -> PgTable | None:
    """None without such a table. A name without a schema is looked for as the server looks for it.

    `texts`: see `postgres_options.Options.as_text`; raises `ConfigError` for a column in it that the table has not.
    """
    found = execute(connection, _FOUND, {"schema": wanted.schema, "name": wanted.name})
    if not found:
        return None
    ((oid, schema, name, kind, placed, rows),) = found
    exact = TableId(schema, name)
    columns = tuple(_column(types, row) for row in execute(connection, _COLUMNS, [oid]))
    as_text = texts_of(exact, (column.name for column in columns), texts)
    indexes = execute(connection, _INDEXES, [oid])
    keys = [tuple(names) for is_primary, _, names in indexes if is_primary]
    return PgTable(
        exact,
        tuple(column.as_text() if column.name in as_text else column for column in columns),
        keys[0] if keys else (),
        unique=tuple(tuple(names) for is_primary, is_unique, names in indexes if is_unique and not is_primary),
        indexes=tuple(tuple(names) for _, _, names in indexes),
        foreign_keys=_foreign_keys(connection, oid),
        rows=rows,
        is_view=kind in _VIEWS,
        oid=oid,
        kind=kind,
        placed=placed,
    )


def _column(types: PgTypes, row: tuple[Any, ...]) -> PgColumn:
    name, declared, oid, typmod, nullable, generated, has_default = row
    column = types.column(name, oid, typmod)
    return dataclasses.replace(
        column, declared=declared, nullable=nullable, generated=generated, has_default=has_default
    )


def _foreign_keys(connection: psycopg.Connection, oid: int) -> tuple[ForeignKey, ...]:
    return tuple(
        ForeignKey(tuple(columns), TableId(schema, name), tuple(references))
        for schema, name, columns, references in execute(connection, _FOREIGN_KEYS, [oid])
    )
