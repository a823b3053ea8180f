"""What the log tells of one table's changes, and what this role may do with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.doctor import Enabling, Probe
from headwater.drivers.postgres import execute, quoted
from headwater.model import TableId

if TYPE_CHECKING:
    import psycopg

KINDS = {
    "v": "a view has no rows of its own in the log; capture its tables, or query it",
    "m": "a materialized view is not published; capture the tables that it is made from, or query it",
    "f": "a foreign table's rows are in another server's log; capture them there, or query it",
}

_LOOK = """
SELECT c.oid::bigint, c.relkind, c.relpersistence, pg_get_userbyid(c.relowner)::text,
       pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(n.oid, 'USAGE'),
       has_table_privilege(c.oid, 'SELECT'), has_any_column_privilege(c.oid, 'SELECT'),
       row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""

# A partitioned table's changes are those of its leaves, by their own replica identity. As for indexes, the server
# passes over those that are deferrable or not valid (RelationGetIndexList).
_LEAVES = """
SELECT leaf.relname::text, ln.nspname::text, leaf.relreplident, leaf.reltoastrelid <> 0,
       array(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a
             ON a.attrelid = leaf.oid AND a.attnum = ANY (i.indkey)
             WHERE i.indrelid = leaf.oid AND i.indisvalid AND i.indimmediate
             AND CASE leaf.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
             ORDER BY a.attnum),
       EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = leaf.oid AND i.indisprimary AND i.indimmediate),
       (SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = leaf.oid AND i.indisunique
        AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (
            SELECT 1 FROM pg_attribute a WHERE a.attrelid = leaf.oid AND a.attnum = ANY (i.indkey)
            AND NOT a.attnotnull)
        ORDER BY i.indisprimary DESC, i.indnatts, 1 LIMIT 1),
       array(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = leaf.oid AND a.attnum > 0
             AND NOT a.attisdropped AND a.attstorage IN ('x', 'e') ORDER BY a.attnum)
FROM pg_class leaf JOIN pg_namespace ln ON ln.oid = leaf.relnamespace
WHERE leaf.oid = ANY (CASE WHEN %s = 'p'
    THEN array(SELECT relid FROM pg_partition_tree(%s::oid::regclass) WHERE isleaf) ELSE ARRAY[%s::oid] END)
ORDER BY 2, 1
"""


@dataclass(frozen=True, slots=True)
class Leaf:
    """In the sequence of `_LEAVES`: a table, or a partition with rows. `identifies`: its replica identity's columns."""

    name: str
    schema: str
    setting: str
    has_toast: bool
    identifies: tuple[str, ...]
    has_key: bool
    candidate: str | None
    large: tuple[str, ...]

    @property
    def full(self) -> bool:
        return self.setting == "f"

    @property
    def identified(self) -> bool:
        return self.full or bool(self.identifies)

    @property
    def sql_name(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def fix(self) -> str:
        if self.has_key:
            return f"ALTER TABLE {self.sql_name} REPLICA IDENTITY DEFAULT;"
        if self.candidate is not None:
            index = self.candidate.rpartition(".")[2]
            return f"ALTER TABLE {self.sql_name} REPLICA IDENTITY USING INDEX {index};"
        return f"{full_identity(self.sql_name)}  -- or, better, a primary key: whole old rows make the log longer"


def full_identity(sql_name: str) -> str:
    return f"ALTER TABLE {sql_name} REPLICA IDENTITY FULL;"


@dataclass(frozen=True, slots=True)
class Relation:
    """In the sequence of `_LOOK`, and the leaves."""

    oid: int
    kind: str
    persistence: str
    owner: str
    owned: bool
    may_use_schema: bool
    may_select: bool
    may_select_some: bool
    rows_hidden: bool
    leaves: tuple[Leaf, ...]

    @property
    def readable(self) -> bool:
        return self.may_use_schema and self.may_select

    def grants(self, table: TableId, role: str) -> Iterator[str]:
        """What `role` lacks to read the table."""
        if not self.may_use_schema:
            yield f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {quoted(role)};"
        if not self.may_select:
            yield f"GRANT SELECT ON {sql_name(table)} TO {quoted(role)};"

    @property
    def unidentified(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if not leaf.identified)

    @property
    def large(self) -> tuple[str, ...]:
        """The columns whose values an update may leave out of the log."""
        names = [name for leaf in self.leaves if leaf.has_toast and not leaf.full for name in leaf.large]
        return tuple(dict.fromkeys(names))


def look(connection: psycopg.Connection, table: TableId) -> Relation | None:
    """None: the table went between two looks."""
    rows = execute(connection, _LOOK, (table.schema, table.name))
    if not rows:
        return None
    (row,) = rows
    leaves = execute(connection, _LEAVES, (row[1], row[0], row[0]))
    values: list[Any] = [*row, tuple(_leaf(leaf) for leaf in leaves)]
    return Relation(*values)


def _leaf(row: tuple[Any, ...]) -> Leaf:
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
    return Leaf(*values)


def sql_name(table: TableId) -> str:
    return f"{quoted(table.schema)}.{quoted(table.name)}"


@dataclass(frozen=True, slots=True)
class Needs:
    """What one stream wants of the log, as in `protocols.Capture`; without a contract that can be read, nothing."""

    kind: str = "fact"
    columns: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    identifying: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogView:
    """One table as log capture sees it."""

    table: TableId
    relation: Relation
    role: str

    def hindrance(self) -> Enabling | None:
        """Why its log cannot be captured, whatever the server allows; None where it can."""
        relation = self.relation
        if relation.kind in KINDS:
            return Enabling(KINDS[relation.kind])
        if relation.persistence == "u":
            logged = f"ALTER TABLE {sql_name(self.table)} SET LOGGED;  -- writes the table into the log once"
            return Enabling("an unlogged table is not in the log", (logged,))
        if not relation.readable:
            return Enabling(
                f"{self.role} may not read it, which the first load needs",
                tuple(self._grants()),
            )
        if relation.unidentified:
            return Enabling(self._identity_text(), tuple(leaf.fix() for leaf in relation.unidentified))
        return None

    def probes(self, streams: Mapping[str, Needs]) -> Iterator[Probe]:
        """`streams`: those that capture its log; what stands in their way is a problem."""
        yield self._read_probe(bool(streams))
        if self.relation.rows_hidden:
            yield self._hidden_probe()
        if self.relation.kind not in ("r", "p") or self.relation.persistence != "p":
            return
        if self.relation.kind == "p":
            yield self._partitions_probe()
        yield self._identity_probe(streams)
        if self.relation.large:
            yield self._toast_probe(streams)

    def _grants(self) -> Iterator[str]:
        return self.relation.grants(self.table, self.role)

    def _read_probe(self, wanted: bool) -> Probe:
        if self.relation.readable:
            return Probe("select", "good", f"{self.role} may read it")
        some = " (some columns alone)" if self.relation.may_select_some else ""
        text = f"{self.role} may not read it{some}"
        return Probe("select", "problem" if wanted else "warning", text, "\n".join(self._grants()))

    def _hidden_probe(self) -> Probe:
        text = f"row-level security hides rows from {self.role}: loads and queries would miss them, the log would not"
        return Probe("row security", "problem", text, f"ALTER ROLE {quoted(self.role)} BYPASSRLS;")

    def _partitions_probe(self) -> Probe:
        count = len(self.relation.leaves)
        text = f"{count or 'no'} partition{'s' * (count != 1)}, whose changes are told as the table's own"
        return Probe("partitions", "good", text)

    def _identity_text(self) -> str:
        missing = self.relation.unidentified
        names = ", ".join(leaf.name for leaf in missing[:5]) + (", ..." if len(missing) > 5 else "")
        which = "" if self.relation.kind == "r" else f" of {names}"
        return (
            f"no replica identity{which}: if its updates and deletes were published, the application's own UPDATE and "
            "DELETE would fail, so Headwater refuses to publish them"
        )

    def _identity_probe(self, streams: Mapping[str, Needs]) -> Probe:
        missing = self.relation.unidentified
        if missing:
            fixes = "\n".join(leaf.fix() for leaf in missing)
            if streams and all(needs.kind == "event" for needs in streams.values()):
                return Probe("replica identity", "good", "none: its inserts alone are published, as events")
            return Probe("replica identity", "problem" if streams else "warning", self._identity_text(), fixes)
        if all(leaf.full for leaf in self.relation.leaves):
            text = "FULL: updates and deletes carry the whole old row, and the log is longer for it"
            return Probe("replica identity", "good", text)
        columns = dict.fromkeys(name for leaf in self.relation.leaves for name in leaf.identifies)
        return Probe("replica identity", "good", f"deletes and key changes carry {', '.join(columns)}")

    def _toast_probe(self, streams: Mapping[str, Needs]) -> Probe:
        """A long value that an UPDATE leaves alone is not in the log, unless the whole old row is (F30)."""
        large = self.relation.large
        read = {name: stream for stream, needs in streams.items() for name in needs.whole if name in large}
        text = f"an update does not carry a long value of {', '.join(large)} that it left alone; sinks keep theirs"
        if not read:
            return Probe("large values", "good", text)
        by = ", ".join(f"{name} ({stream})" for name, stream in read.items())
        text += f". But an expression, a key or `where` reads {by}: such rows are read again by key, one by one"
        return Probe("large values", "warning", text, full_identity(sql_name(self.table)))
