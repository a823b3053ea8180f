"""Puts tables and triggers into the source, finds what became of them, and takes them out again.

`arrange` is the only writer, in one short transaction, and only when something differs from what should be there: it
is called at each change of the schema version, so that what a table rebuild dropped silently is seen and made
again (F70).
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from headwater.drivers.sqlite import Connection, StatementError, quoted
from headwater.errors import SourceError
from headwater.faults import failpoint
from headwater.sources.trigger_sqlite import sql
from headwater.sources.trigger_sqlite.names import EVENTS, Names
from headwater.sources.trigger_sqlite.shape import Shape, shape_of
from headwater.sources.trigger_sqlite.sql import Layout

FORMAT = "1"
READONLY = 8
"""https://www.sqlite.org/rescode.html#readonly"""
WIDEST = 900
"""Stored columns of one table; the change table has two slots for each, and SQLite allows 2,000 columns."""


@dataclass(frozen=True, slots=True)
class Found:
    """What of ours is in a database."""

    incarnation: str | None = None
    width: int = 0
    layouts: dict[int, Layout] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    """Table -> the number of its layout."""
    recorded: dict[str, str] = field(default_factory=dict)
    """Trigger -> its text as we made it."""
    present: dict[str, str] = field(default_factory=dict)
    """Trigger -> its text as it is now."""
    repairs: dict[str, int] = field(default_factory=dict)
    """Table -> the marker from which on its changes are seen again, without a hole."""

    @property
    def missing(self) -> list[str]:
        """Triggers that are gone or were altered."""
        return [name for name, text in self.recorded.items() if self.present.get(name) != text]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What is in the database once `arrange` has returned. Tables are named as the captures name them."""

    incarnation: str
    schema_version: int
    layouts: dict[int, Layout]
    active: dict[str, Layout]
    shapes: dict[str, Shape]
    repairs: dict[str, int]
    """Table -> the marker from which on its changes are seen without a hole: a stream whose load began before it has
    missed some. Stored with the triggers, in one step, so that a crash cannot hide it."""
    broken: dict[str, SourceError]
    """Streams that cannot be captured as asked, and why."""
    marker: int | None
    """The id of the marker row, when anything was made."""


Wanted = Mapping[str, Mapping[str, frozenset[str]]]
"""Table -> stream -> columns."""


def find(connection: Connection, names: Names) -> Found:
    """Inspect; in a read transaction of the caller's, or none."""
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    present = {name: text for name, text in rows if names.owns_trigger(name)}
    if not tables.issuperset(names.tables):
        return Found(present=present)
    stored = dict(connection.execute(f"SELECT key, value FROM {quoted(names.meta)}"))
    if stored.get("format") != FORMAT:
        raise SourceError(
            f"{names.meta} in {connection.path} has format {stored.get('format')}; this version knows {FORMAT}",
            hint="run the version of Headwater that made it, or `headwater destroy` and start anew",
        )
    layouts = {}
    for key, value in stored.items():
        if key.startswith("layout."):
            number = int(key.removeprefix("layout."))
            item = json.loads(value)
            layouts[number] = Layout(number, item["table"], tuple(item["columns"]))
    width = (len(connection.execute(f"PRAGMA table_info({quoted(names.change)})")) - 3) // 2
    active, recorded, repairs = (json.loads(stored[key]) for key in ("active", "triggers", "repairs"))
    return Found(stored["incarnation"], width, layouts, active, recorded, present, repairs)


def arrange(connection: Connection, names: Names, wanted: Wanted) -> Arrangement:
    """Make triggers for the tables and columns `wanted`, and take away those that are not. Raises `Busy`.

    When not one stream can be captured as asked, everything stays as it is.
    """
    unusable: dict[str, SourceError] = {}
    while True:
        with connection.transaction():
            plan = _plan(connection, names, wanted, unusable)
        if not plan.differs or (plan.arrangement.broken and not plan.arrangement.active):
            return plan.arrangement
        try:
            return _arranged(connection, names, wanted, unusable)
        except _Unusable as error:
            unusable[error.table] = error.reason


def _arranged(connection: Connection, names: Names, wanted: Wanted, unusable: Mapping[str, SourceError]) -> Arrangement:
    with _explained(connection), connection.transaction("IMMEDIATE"):
        plan = _plan(connection, names, wanted, unusable)
        fine = [table for table in plan.arrangement.active if _refusal(connection, plan, table) is None]
        arrangement = _made(connection, names, plan)
        for table in fine:
            if refusal := _refusal(connection, plan, table):
                raise _Unusable(table, refusal)
        failpoint("trigger.install.before_commit")
    failpoint("trigger.install.after_commit")
    return arrangement


class _Unusable(Exception):
    """Rolls back triggers with which the application could not write."""

    def __init__(self, table: str, refusal: StatementError) -> None:
        super().__init__(table)
        self.table = table
        self.reason = SourceError(
            f"table {table}: with triggers on it SQLite would refuse writes: {refusal.message}",
            hint="an index or a default of the table cannot be used in a trigger; use `pattern: query`",
        )


def _refusal(connection: Connection, plan: _Plan, table: str) -> StatementError | None:
    """Why SQLite cannot compile a write to the table as it is: only then does it look into the triggers.

    Writes of no row, as EXPLAIN lets unknown functions pass (and SQLite 3.40 then crashes).
    """
    shape = plan.arrangement.shapes[table]
    name, column = quoted(shape.table), quoted(next(c for c in shape.columns if c not in shape.generated))
    writes = (
        f"INSERT INTO {name}({column}) SELECT NULL WHERE 0",
        f"UPDATE {name} SET {column} = NULL WHERE 0",
        f"DELETE FROM {name} WHERE 0",
    )
    try:
        for write in writes:
            connection.execute(write)
    except StatementError as error:
        return error
    return None


@contextmanager
def _explained(connection: Connection) -> Iterator[None]:
    try:
        yield
    except StatementError as error:
        if error.code & 0xFF != READONLY:
            raise
        raise SourceError(
            f"{connection.path} cannot be written: triggers cannot be made",
            hint="give this user write permission on the file and its folder, or use `pattern: query`: it only reads",
        ) from error


def lift(connection: Connection, names: Names) -> Found:
    """Drop the triggers for a change of the schema, inside the caller's transaction; `relay` makes them again."""
    found = find(connection, names)
    for name in found.present:
        connection.execute(f"DROP TRIGGER {quoted(name)}")
    return found


def relay(connection: Connection, names: Names, lifted: Found, *, complete: bool) -> Arrangement:
    """Make triggers again for the tables and columns that are left. `complete`: no row was changed meanwhile."""
    wanted = {table: _left(connection, table, lifted.layouts[number]) for table, number in lifted.active.items()}
    plan = _plan(connection, names, {table: {"": columns} for table, columns in wanted.items() if columns is not None})
    plan = dataclasses.replace(plan, holed=frozenset() if complete else plan.holed)
    return _made(connection, names, plan)


def _left(connection: Connection, table: str, layout: Layout) -> frozenset[str] | None:
    present = {row[1] for row in connection.execute(f"PRAGMA table_xinfo({quoted(table)})")}
    return frozenset(present.intersection(layout.columns)) if present else None


@dataclass(frozen=True, slots=True)
class _Plan:
    found: Found
    arrangement: Arrangement
    texts: dict[str, str]
    holed: frozenset[str]
    """Tables whose triggers are new, or were gone or altered."""

    @property
    def differs(self) -> bool:
        active = {table: layout.number for table, layout in self.arrangement.active.items()}
        return (
            self.found.incarnation is None
            or self.found.present != self.texts
            or self.found.recorded != self.texts
            or self.found.active != active
        )


def _plan(
    connection: Connection, names: Names, wanted: Wanted, unusable: Mapping[str, SourceError] = MappingProxyType({})
) -> _Plan:
    found = find(connection, names)
    layouts, active, shapes = dict(found.layouts), {}, {}
    texts: dict[str, str] = {}
    holed: set[str] = set()
    broken: dict[str, SourceError] = {}
    for table, streams in sorted(wanted.items()):
        if table in unusable:
            broken.update(dict.fromkeys(streams, unusable[table]))
            continue
        shape = _shape(connection, table, streams, found, broken)
        columns = frozenset[str]().union(*(c for stream, c in streams.items() if stream not in broken))
        if shape is None or broken.keys() >= streams.keys():
            continue
        layout = _layout(shape, columns, layouts, found.active.get(table))
        layouts[layout.number], active[table], shapes[table] = layout, layout, shape
        mine = sql.triggers(names, shape, layout)
        texts.update(mine)
        if table not in found.active or not _whole(names, found, shape, layout, table):
            holed.add(table)
    arrangement = Arrangement(
        found.incarnation or secrets.token_hex(8),
        connection.schema_version(),
        layouts,
        active,
        shapes,
        found.repairs,
        broken,
        None,
    )
    return _Plan(found, arrangement, texts, frozenset(holed))


def _shape(
    connection: Connection,
    table: str,
    streams: Mapping[str, frozenset[str]],
    found: Found,
    broken: dict[str, SourceError],
) -> Shape | None:
    """The table, if it can have triggers; what is wrong goes to `broken`, by stream."""
    try:
        shape = shape_of(connection, table, tuple(found.present))
    except SourceError as error:
        broken.update(dict.fromkeys(streams, error))
        return None
    for stream, columns in streams.items():
        try:
            _check_columns(shape, columns)
        except SourceError as error:
            broken[stream] = error
    return shape


def _check_columns(shape: Shape, columns: frozenset[str]) -> None:
    for column in sorted(columns):
        if column not in shape.columns:
            raise SourceError(
                f"table {shape.table} has no column {column}",
                hint=f"its columns are {', '.join(shape.columns)}; adapt the stream's `fields` in headwater.yaml",
            )
    if len(columns) > WIDEST:
        raise SourceError(f"{len(columns)} columns of table {shape.table} are to be captured; {WIDEST} are possible")


def _layout(shape: Shape, columns: frozenset[str], layouts: dict[int, Layout], current: int | None) -> Layout:
    """The table's present layout if it holds just these columns, else a new one under a new number."""
    identity = shape.key or ("",)
    needed = (*identity, *(c for c in shape.columns if c in columns and c not in identity))
    known = layouts[current].columns if current is not None else ()
    if current is not None and known[: len(identity)] == identity and set(known) == set(needed):
        return layouts[current]
    return Layout(max(layouts, default=0) + 1, shape.table, needed)


def _whole(names: Names, found: Found, shape: Shape, layout: Layout, table: str) -> bool:
    """Whether the table's triggers have been in place, and right, all the time."""
    number = found.active[table]
    recorded = {n: t for n, t in found.recorded.items() if n in {names.trigger(number, e) for e in EVENTS}}
    if not recorded or any(found.present.get(name) != text for name, text in recorded.items()):
        return False
    # With another index than they know, they may have missed a replaced row; the application's triggers alter nothing.
    old = found.layouts[number]
    alike = [dataclasses.replace(shape, foreign_triggers=flag) for flag in (False, True)]
    return any(sql.triggers(names, s, old) == recorded for s in alike) if _fits(old, shape) else layout != old


def _fits(layout: Layout, shape: Shape) -> bool:
    return all(column in shape.columns for column in layout.columns if column)


def _made(connection: Connection, names: Names, plan: _Plan) -> Arrangement:
    marker = _carry_out(connection, names, plan)
    repairs = {**plan.found.repairs, **dict.fromkeys(plan.holed, marker)}
    _write_meta(connection, names, plan, repairs)
    version = connection.schema_version()
    return dataclasses.replace(plan.arrangement, marker=marker, repairs=repairs, schema_version=version)


def _carry_out(connection: Connection, names: Names, plan: _Plan) -> int:
    found, arrangement = plan.found, plan.arrangement
    for name, text in found.present.items():
        if plan.texts.get(name) != text:
            connection.execute(f"DROP TRIGGER {quoted(name)}")
    width = max([found.width, 1, *(len(layout.columns) for layout in arrangement.active.values())])
    for statement in _table_statements(connection, names, found, width):
        connection.execute(statement)
    for name, text in plan.texts.items():
        if found.present.get(name) != text:
            connection.execute(text)
    return add_marker(connection, names)


def add_marker(connection: Connection, names: Names) -> int:
    """A row that is no change: an id of its own, for a reading to be labelled with."""
    connection.execute(f"INSERT INTO {quoted(names.change)}(t, op) VALUES (0, {sql.MARKER})")
    ((marker,),) = connection.execute(f"SELECT max(id) FROM {quoted(names.change)}")
    return int(marker)


def _table_statements(connection: Connection, names: Names, found: Found, width: int) -> list[str]:
    if found.incarnation is not None:
        return sql.widen(names, found.width, width)
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    # Two of three tables left: somebody removed one, and what the others hold belongs to no incarnation any more.
    rest = [f"DROP TABLE {quoted(name)}" for (name,) in rows if name in names.tables]
    return rest + sql.make_tables(names, width)


def _write_meta(connection: Connection, names: Names, plan: _Plan, repairs: dict[str, int]) -> None:
    arrangement = plan.arrangement
    values = {
        "format": FORMAT,
        "incarnation": arrangement.incarnation,
        "active": json.dumps({table: layout.number for table, layout in arrangement.active.items()}),
        "triggers": json.dumps(plan.texts),
        "repairs": json.dumps(repairs),
    }
    for number, layout in arrangement.layouts.items():
        values[f"layout.{number}"] = json.dumps({"table": layout.table, "columns": layout.columns})
    for item in values.items():
        connection.execute(f"INSERT OR REPLACE INTO {quoted(names.meta)}(key, value) VALUES (?, ?)", item)


def remove(connection: Connection, names: Names) -> list[str]:
    """Drop this pipeline's triggers and tables, and nothing else. Returns their names."""
    dropped = []
    with connection.transaction("IMMEDIATE"):
        rows = connection.execute("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'table')")
        for kind, name in sorted(rows, reverse=True):  # triggers before the tables that they write to
            if (kind == "trigger" and names.owns_trigger(name)) or (kind == "table" and name in names.tables):
                connection.execute(f"DROP {kind.upper()} {quoted(name)}")
                dropped.append(name)
    return dropped
