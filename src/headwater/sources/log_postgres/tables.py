"""What the catalog says of the captured tables: whether their changes can be told, and by which columns.

A change of a partition is published as one of its root, but what the log holds of the old row is decided by each leaf.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headwater.drivers.postgres import execute, quoted
from headwater.errors import SourceError
from headwater.model import TableId
from headwater.protocols import Capture

if TYPE_CHECKING:
    import psycopg

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "c": "a type"}


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is stored: a plain table or a partition. `identity`: d, n, f or i, as in `pg_class.relreplident`.

    `columns`: of the index that the identity is taken from; () where there is none.
    """

    name: str
    kind: str
    persistence: str
    identity: str
    columns: tuple[str, ...]

    @property
    def told(self) -> bool:
        """Whether the log can say which row an update or a delete meant."""
        return self.identity == "f" or bool(self.columns)


@dataclass(frozen=True, slots=True)
class Described:
    """`columns`: name -> (type's oid, typmod). `owned`: whether we may publish it. `above`: what it is a part of.

    `keyed`: whether it has a primary key that is checked at once. A partition that is made later inherits that from a
    partitioned table, and nothing else that says which row was meant.
    """

    id: TableId
    oid: int
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    owned: bool
    keyed: bool = False
    above: frozenset[TableId] = frozenset()
    columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    generated: frozenset[str] = frozenset()
    unique: tuple[frozenset[str], ...] = ()
    """The columns of each unique index that holds at any time, not only at the commit."""

    @property
    def stored(self) -> tuple[Leaf, ...]:
        return self.leaves or (self.leaf,)

    @property
    def told(self) -> bool:
        return self.lasts and all(leaf.told for leaf in self.stored)

    @property
    def lasts(self) -> bool:
        """Whether what holds of the partitions will hold of those that are made later."""
        return self.keyed or self.leaf.kind != "p"

    def exchanges(self, key: Collection[str]) -> bool:
        """Whether two rows may have the same key for a while, and the log tells them apart."""
        return not any(columns <= set(key) for columns in self.unique) and all(
            leaf.identity == "f" for leaf in self.stored
        )

    @property
    def identifying(self) -> frozenset[str]:
        """The columns that the old row of every update of the key and of every delete carries."""
        kept = [frozenset(self.columns if leaf.identity == "f" else leaf.columns) for leaf in self.stored]
        return frozenset.intersection(*kept)

    @property
    def sql(self) -> str:
        return f"{quoted(self.id.schema)}.{quoted(self.id.name)}"


_TABLES = """
SELECT n.nspname::text, c.relname::text, c.oid::bigint, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       {identity}, pg_catalog.pg_has_role(c.relowner, 'USAGE'), {unique},
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate),
       ARRAY(SELECT ARRAY[an.nspname::text, a.relname::text] FROM pg_catalog.pg_partition_ancestors(c.oid) p
             JOIN pg_catalog.pg_class a ON a.oid = p.relid JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace
             WHERE a.oid <> c.oid)
FROM unnest(%s::text[], %s::text[]) AS w(schema, name)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
WHERE c.relkind NOT IN ('i', 'I', 't')
"""
_LEAVES = """
SELECT root::bigint, c.oid::regclass::text, c.relkind::text, c.relpersistence::text, c.relreplident::text, {identity}
FROM unnest(%s::oid[]) AS root, LATERAL pg_catalog.pg_partition_tree(root) p
JOIN pg_catalog.pg_class c ON c.oid = p.relid
WHERE p.isleaf AND p.relid <> root
"""
_IDENTITY = """
ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
      WHERE i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
"""
_UNIQUE = """
ARRAY(SELECT pg_catalog.array_to_json(ARRAY(
          SELECT a.attname::text FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))
      FROM pg_catalog.pg_index i
      WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
        AND i.indpred IS NULL AND i.indexprs IS NULL)
"""
_COLUMNS = """
SELECT attrelid::bigint, attname::text, atttypid::bigint, atttypmod, attgenerated <> ''
FROM pg_catalog.pg_attribute WHERE attrelid = ANY (%s::oid[]) AND attnum > 0 AND NOT attisdropped ORDER BY 1, attnum
"""


def describe(connection: psycopg.Connection, wanted: Iterable[TableId]) -> dict[TableId, Described]:
    """Those of the tables that exist."""
    names = sorted(set(wanted))
    rows = execute(
        connection,
        _TABLES.format(identity=_IDENTITY, unique=_UNIQUE),
        [[table.schema for table in names], [table.name for table in names]],
    )
    oids = [row[2] for row in rows]
    leaves = _grouped(execute(connection, _LEAVES.format(identity=_IDENTITY), [oids]))
    columns = _grouped(execute(connection, _COLUMNS, [oids]))
    return {TableId(row[0], row[1]): _described(row, leaves, columns) for row in rows}


def _described(row: tuple[Any, ...], leaves: dict[int, list[Any]], columns: dict[int, list[Any]]) -> Described:
    schema, name, oid, kind, persistence, identity, of_index, owned, unique, keyed, above = row
    found = columns.get(oid, [])
    return Described(
        id=TableId(schema, name),
        oid=oid,
        leaf=Leaf(f"{schema}.{name}", kind, persistence, identity, tuple(of_index)),
        leaves=tuple(_leaf(found) for found in leaves.get(oid, [])),
        owned=owned,
        keyed=keyed,
        above=frozenset(TableId(*one) for one in above),
        columns={column: (type_oid, typmod) for column, type_oid, typmod, _ in found},
        generated=frozenset(column for column, _, _, generated in found if generated),
        unique=tuple(frozenset(columns) for columns in unique),
    )


def _leaf(row: Sequence[Any]) -> Leaf:
    name, kind, persistence, identity, columns = row
    return Leaf(name, kind, persistence, identity, tuple(columns))


def _grouped(rows: Sequence[tuple[Any, ...]]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for first, *rest in rows:
        found.setdefault(first, []).append(rest)
    return found


def check(capture: Capture, known: Mapping[TableId, Described]) -> SourceError | None:
    """Why the log cannot feed this stream; None if it can. Nothing has been changed in the database yet (F85)."""
    described = known.get(capture.table)
    if described is None:
        return SourceError(f"there is no table {capture.table}")
    return _unfit(described, known) or _missing(capture, described) or _untold(capture, described)


def _unfit(described: Described, known: Mapping[TableId, Described]) -> SourceError | None:
    if described.leaf.kind not in ("r", "p"):
        kind = _KINDS.get(described.leaf.kind, "not a table")
        return SourceError(
            f"{described.id} is {kind}: the log holds changes of tables only", hint="capture it with `pattern: query`"
        )
    for leaf in described.stored:
        if leaf.kind == "f":
            return SourceError(f"partition {leaf.name} of {described.id} is a foreign table: its changes are elsewhere")
        if leaf.persistence != "p":
            kind = "unlogged" if leaf.persistence == "u" else "temporary"
            return SourceError(
                f"table {leaf.name} is {kind}: its changes are not in the log", hint=_logged(leaf, described)
            )
    if both := described.above & known.keys():
        return SourceError(
            f"table {described.id} is a partition of {min(both)}, and captured too: its changes come as that one's",
            hint="capture the partitioned table alone, with a `where` that chooses",
        )
    return None


def _logged(leaf: Leaf, described: Described) -> str:
    if leaf.persistence == "u":
        return f"ALTER TABLE {described.sql if leaf is described.leaf else leaf.name} SET LOGGED;"
    return "a temporary table is seen by its session alone"


def _missing(capture: Capture, described: Described) -> SourceError | None:
    for column in capture.columns:
        if column not in described.columns:
            return SourceError(f"table {described.id} has no column `{column}`")
        if column in described.generated:
            return SourceError(
                f"column `{column}` of {described.id} is generated, and the log does not hold generated columns",
                hint="compute it in `fields`, or capture the table with `pattern: query` or `trigger`",
            )
    return None


def _untold(capture: Capture, described: Described) -> SourceError | None:
    """A publication of updates makes those of a table without replica identity fail."""
    mute = next((leaf for leaf in described.stored if not leaf.told), None)
    if mute is not None:
        return None if capture.kind == "event" else _nameless(described, mute)
    if not described.lasts:
        return None if capture.kind == "event" else _heirless(described)
    if described.leaf.identity == "f" and (other := [leaf for leaf in described.stored if leaf.identity != "f"]):
        return SourceError(
            f"table {described.id} has REPLICA IDENTITY FULL and its partition {other[0].name} has not: "
            "old rows would come with values missing",
            hint=f"ALTER TABLE {other[0].name} REPLICA IDENTITY FULL;",
        )
    needed = set(capture.identifying or capture.key) - described.identifying
    if needed and capture.kind != "event":
        return SourceError(
            f"table {described.id}: the log does not say `{'`, `'.join(sorted(needed))}` of a row that was deleted, "
            f"which stream {capture.stream} needs for its key",
            hint=f"ALTER TABLE {described.sql} REPLICA IDENTITY FULL;",
        )
    return None


def _heirless(described: Described) -> SourceError:
    return SourceError(
        f"table {described.id} is partitioned and has no primary key: a partition that is made later would have none, "
        "and its updates and deletes, if published, would fail in the application",
        hint=f"ALTER TABLE {described.sql} ADD PRIMARY KEY (...); or capture it with `pattern: trigger`; "
        "or declare the stream `kind: event`: then inserts alone are captured",
    )


def _nameless(described: Described, leaf: Leaf) -> SourceError:
    why = "REPLICA IDENTITY NOTHING" if leaf.identity == "n" else "no primary key"
    name = described.sql if leaf is described.leaf else leaf.name
    text = f"table {leaf.name} has {why}: were its updates and deletes published, they would fail in the application"
    return SourceError(
        text,
        hint=f"ALTER TABLE {name} ADD PRIMARY KEY (...); or ALTER TABLE {name} REPLICA IDENTITY FULL; "
        "or declare the stream `kind: event`: then inserts alone are captured",
    )
