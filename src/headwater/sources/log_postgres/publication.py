"""The publications that the log is read by: an explicit list of tables, whole rows, every row.

There are two: one for tables whose updates and deletes can be told, one for the inserts of the others. Nothing is
altered that is right already, so that a role without DDL privileges can run what an owner has made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headwater.drivers.postgres import execute, quoted
from headwater.errors import SourceError
from headwater.faults import failpoint
from headwater.model import TableId
from headwater.protocols import Capture
from headwater.sources.log_postgres.names import Names
from headwater.sources.log_postgres.tables import Described, check, describe

if TYPE_CHECKING:
    import psycopg

EVERYTHING = frozenset(("insert", "update", "delete", "truncate"))
INSERTS = frozenset(("insert", "truncate"))


@dataclass(slots=True)
class Arranged:
    """What can be captured. `publications`: the names to read by; `made`: those of them that were made just now.

    `found`, `published`: how the captured tables stood in the publications before anything was altered, and how they
    stand now, each as marks separated by spaces. A mark is the publication's oid and the xmin of its row (which every
    ALTER of its options writes anew), the oid of the table's row in it, and the table's: as long as one of them stays,
    the table has been published without a break, and as it must be.
    """

    tables: dict[TableId, Described]
    publications: tuple[str, ...] = ()
    broken: dict[str, SourceError] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    found: dict[str, str] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """A publication as it is. `mark`: of its row. `tables`: by oid the oid of each one's row in it. `narrowed`: tables
    of which it shows not all; `whole`: FOR ALL TABLES.
    """

    mark: str
    publish: frozenset[str]
    via_root: bool
    whole: bool
    owned: bool
    tables: Mapping[int, int]
    narrowed: Mapping[int, str]

    def holds(self, oid: int) -> bool:
        return self.whole or oid in self.tables


def arrange(connection: psycopg.Connection, names: Names, captures: Iterable[Capture]) -> Arranged:
    """Make the publications, or bring them to what the configuration asks for. What must not be is in `broken`."""
    captures = tuple(captures)
    tables = describe(connection, [capture.table for capture in captures])
    arranged = Arranged(tables)
    known = {table: described for table, described in tables.items() if described.leaf.kind in ("r", "p")}
    for capture in captures:
        error = check(capture, {**tables, **known})
        if error is not None:
            arranged.broken[capture.stream] = _of_stream(capture.stream, error)
    chosen = {capture.table for capture in captures if capture.stream not in arranged.broken}
    told = {table for table in chosen if tables[table].told}
    everything = _Publication(connection, names.publication, EVERYTHING, arranged)
    inserts = _Publication(connection, names.inserts, INSERTS, arranged)
    arranged.found = _marks(tables, everything.found, inserts.found)
    everything.bring(told, captures)
    inserts.bring(chosen - told, captures)
    everything.leave_out(told)
    inserts.leave_out(chosen - told)
    arranged.published = _marks(tables, *(_find(connection, name) for name in arranged.publications))
    return arranged


def _marks(tables: Mapping[TableId, Described], *publications: _Found | None) -> dict[str, str]:
    """Of each table that is published, by its name; see `Arranged`."""
    marks: dict[str, list[str]] = {}
    for found in publications:
        for table, described in tables.items():
            if found is not None and found.holds(described.oid):
                mark = f"{found.mark}.{found.tables.get(described.oid, 0)}.{described.oid}"
                marks.setdefault(str(table), []).append(mark)
    return {table: " ".join(of_table) for table, of_table in marks.items()}


def known(connection: psycopg.Connection, name: str) -> bool:
    return _find(connection, name) is not None


def remove(connection: psycopg.Connection, names: Names) -> list[str]:
    """Drop what there is; what was dropped, in words."""
    removed = []
    for name in (names.publication, names.inserts):
        if _find(connection, name) is not None:
            execute(connection, f"DROP PUBLICATION {quoted(name)}")
            removed.append(f"publication {name}")
    return removed


class _Publication:
    def __init__(self, connection: psycopg.Connection, name: str, publish: frozenset[str], arranged: Arranged) -> None:
        self._connection = connection
        self._name = name
        self._publish = publish
        self._arranged = arranged
        self.found = _find(connection, name)

    def bring(self, wanted: set[TableId], captures: Collection[Capture]) -> None:
        """Make it hold `wanted`, each whole; streams whose tables it cannot hold are broken."""
        found, tables = self.found, self._arranged.tables
        for table in sorted(wanted):
            error = self._objection(tables[table], found)
            if error is not None:
                wanted = wanted - {table}
                self._break(table, captures, error)
        if found is not None:
            self._alter(found, wanted)
        elif wanted:
            self._create(wanted)
        if found is not None or wanted:
            self._arranged.publications += (self._name,)

    def _objection(self, table: Described, found: _Found | None) -> SourceError | None:
        if found is not None and (what := found.narrowed.get(table.oid)):
            return SourceError(
                f"publication {self._name} was altered: it shows {what} of {table.id}",
                hint=f"ALTER PUBLICATION {quoted(self._name)} DROP TABLE {table.sql}; the next start adds it whole",
            )
        missing = found is None or not found.holds(table.oid)
        if missing and not (table.owned and (found is None or found.owned)):
            add = (
                f"CREATE PUBLICATION {quoted(self._name)} FOR"
                if found is None
                else f"ALTER PUBLICATION {quoted(self._name)} ADD"
            )
            options = f" WITH ({_options(self._publish)})" if found is None else ""
            return SourceError(
                f"publication {self._name} lacks table {table.id}, and this role may not add it",
                hint=f"its owner can: {add} TABLE {_listed(table)}{options}; `headwater grants` prints all of it",
            )
        return None

    def _break(self, table: TableId, captures: Collection[Capture], error: SourceError) -> None:
        for capture in captures:
            if capture.table == table:
                self._arranged.broken.setdefault(capture.stream, _of_stream(capture.stream, error))

    def _create(self, wanted: set[TableId]) -> None:
        tables = ", ".join(_listed(self._arranged.tables[table]) for table in sorted(wanted))
        self._ddl(f"CREATE PUBLICATION {quoted(self._name)} FOR TABLE {tables} WITH ({_options(self._publish)})")
        self._arranged.made.add(self._name)

    def _alter(self, found: _Found, wanted: set[TableId]) -> None:
        tables = self._arranged.tables
        if wanted and (found.publish != self._publish or not found.via_root):
            self._ddl(f"ALTER PUBLICATION {quoted(self._name)} SET ({_options(self._publish)})")
        if found.whole:
            return
        missing = [table for table in sorted(wanted) if tables[table].oid not in found.tables]
        if missing:
            listed = ", ".join(_listed(tables[table]) for table in missing)
            self._ddl(f"ALTER PUBLICATION {quoted(self._name)} ADD TABLE {listed}")

    def leave_out(self, wanted: set[TableId]) -> None:
        """Tables that are captured no longer, or whose updates would fail while they are published."""
        found = self.found
        surplus = set[int]() if found is None else set(found.tables) - {self._arranged.tables[t].oid for t in wanted}
        if found is not None and surplus and found.owned:
            rows = execute(
                self._connection,
                "SELECT oid::regclass::text FROM pg_class WHERE oid = ANY (%s::oid[])",
                [list(surplus)],
            )
            if rows:
                self._ddl(
                    f"ALTER PUBLICATION {quoted(self._name)} DROP TABLE ONLY {', ONLY '.join(t for (t,) in rows)}"
                )

    def _ddl(self, sql: str) -> None:
        failpoint("log.publication")
        try:
            execute(self._connection, sql)
        except SourceError as error:
            raise SourceError(
                f"publication {self._name} cannot be made as it must be: {error.message}",
                hint=f"`headwater grants` prints the privileges that are needed; or let an owner run: {sql};",
            ) from error


_FIND = """
SELECT p.oid::bigint, p.xmin::text, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, p.puballtables,
       pg_catalog.pg_has_role(p.pubowner, 'USAGE')
FROM pg_catalog.pg_publication p WHERE p.pubname = %s
"""
_NARROWED = "prattrs IS NOT NULL, prqual IS NOT NULL"
"""Since PostgreSQL 15."""


def _find(connection: psycopg.Connection, name: str) -> _Found | None:
    rows = execute(connection, _FIND, [name])
    if not rows:
        return None
    ((oid, xmin, *ops, via_root, whole, owned),) = rows
    narrowed = _NARROWED if connection.info.server_version >= 150000 else "false, false"
    tables = execute(
        connection,
        f"SELECT prrelid::bigint, oid::bigint, {narrowed} FROM pg_catalog.pg_publication_rel WHERE prpubid = %s",
        [oid],
    )
    return _Found(
        mark=f"{oid}.{xmin}",
        publish=frozenset(op for op, on in zip(("insert", "update", "delete", "truncate"), ops, strict=True) if on),
        via_root=via_root,
        whole=whole,
        owned=owned,
        tables={table: row for table, row, _, _ in tables},
        narrowed={t: "some columns" if columns else "some rows" for t, _, columns, rows in tables if columns or rows},
    )


def _options(publish: frozenset[str]) -> str:
    ops = ", ".join(sorted(publish, key=("insert", "update", "delete", "truncate").index))
    return f"publish = '{ops}', publish_via_partition_root = true"


def _listed(table: Described) -> str:
    """A table that others inherit from is meant alone, as its name is."""
    return table.sql if table.leaf.kind == "p" else f"ONLY {table.sql}"


def _of_stream(stream: str, error: SourceError) -> SourceError:
    return SourceError(f"stream {stream}: {error.message}", hint=error.hint)
