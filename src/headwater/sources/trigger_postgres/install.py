"""Puts tables, functions and triggers into the source, keeps them whole, and takes them out again.

`arrange` is the only writer, in one short transaction, and only when something differs from what should be there.
Making a trigger waits for the writers of its table to end, and whoever wants to write meanwhile waits behind it: so it
waits `GIVE_WAY` at a time and then lets them pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import execute, quoted
from headwater.errors import Busy, SourceError
from headwater.faults import failpoint
from headwater.model import TableId
from headwater.sources.trigger_postgres import sql
from headwater.sources.trigger_postgres.connecting import transaction
from headwater.sources.trigger_postgres.finding import FORMAT, FUNCTIONS, TRIGGERS, Found, find, fingerprint, present_of
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.shape import Shape, shape_of
from headwater.sources.trigger_postgres.sql import Layout

if TYPE_CHECKING:
    import psycopg

GIVE_WAY = 0.2
"""Seconds that making a trigger waits for a table's writers, and that they wait for it at the most."""
PATIENCE = 30.0

Wanted = Mapping[TableId, Mapping[str, frozenset[str]]]
"""Table -> stream -> columns."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What is in the database once `arrange` has returned.

    `repairs`: a stream whose load began before its table's number has missed some changes. Stored with the triggers, in
    one step, so that a crash cannot hide it. `broken`: streams that cannot be captured as asked, and why.
    """

    incarnation: str
    layouts: dict[int, Layout]
    active: dict[TableId, Layout]
    shapes: dict[TableId, Shape]
    repairs: dict[int, int]
    broken: dict[str, SourceError]
    fingerprint: str


_OLDER_ROWS = """
SELECT EXISTS (SELECT FROM ONLY {leaf} AS r
               WHERE age(r.xmin) >= (SELECT age(i.xmin) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = {oid}))
"""


def arrange(connection: psycopg.Connection, names: Names, wanted: Wanted, *, patience: float = PATIENCE) -> Arrangement:
    """Make triggers for the tables and columns `wanted`, and take away those that are not. Raises `Busy`.

    When not one stream can be captured as asked, everything stays as it is.
    """
    deadline = time.monotonic() + patience
    while True:
        seen = fingerprint(connection, names, wanted)  # before the plan: what is altered meanwhile is seen next time
        plan = _plan(connection, names, wanted)
        hopeless = plan.arrangement.broken and not plan.arrangement.active
        if not plan.differs or hopeless:
            return dataclasses.replace(plan.arrangement, fingerprint=seen)
        try:
            _carry_out(connection, names, plan)
        except SourceError as error:
            if _state(error) != "55P03":
                raise _explained(error, names) from error
            if time.monotonic() > deadline:
                raise Busy(f"triggers cannot be made: {error.message}", hint=_WRITERS) from error
            time.sleep(GIVE_WAY)  # whoever waits behind us goes first


_WRITERS = "a transaction has been writing to a captured table for long: pg_stat_activity names it; it must end once"


def _state(error: SourceError) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""


def _explained(error: SourceError, names: Names) -> SourceError:
    if _state(error) != "42501":
        return error
    return SourceError(
        f"triggers cannot be made: {error.message}",
        hint=f"this role must own the captured tables and may create in the database, or own the schema {names.schema}",
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    found: Found
    arrangement: Arrangement
    texts: dict[int, str]
    holed: frozenset[int]
    """Tables (oids) whose triggers are new, or were gone or altered, or whose rows changed without them."""

    @property
    def differs(self) -> bool:
        active = {layout.oid: layout.number for layout in self.arrangement.active.values()}
        return (
            self.found.incarnation is None
            or bool(self.holed)
            or self.found.texts != self.texts
            or self.found.present != self.found.recorded
            or self.found.active != active
        )


def _plan(connection: psycopg.Connection, names: Names, wanted: Wanted) -> _Plan:
    found = find(connection, names)
    types = PgTypes.load(connection)
    layouts, active, shapes = dict(found.layouts), {}, {}
    texts: dict[int, str] = {}
    holed: set[int] = set()
    broken: dict[str, SourceError] = {}
    for table, streams in sorted(wanted.items()):
        shape = _shape(connection, table, streams, types, broken)
        columns = frozenset[str]().union(*(c for stream, c in streams.items() if stream not in broken))
        if shape is None or broken.keys() >= streams.keys():
            continue
        layout = _layout(shape, columns, layouts, found.active.get(shape.oid))
        layouts[layout.number], active[table], shapes[table] = layout, layout, shape
        texts[layout.number] = _text(names, shape, layout)
        if not _whole(connection, names, found, shape, layout):
            holed.add(shape.oid)
    arrangement = Arrangement(
        found.incarnation or secrets.token_hex(8), layouts, active, shapes, found.repairs, broken, ""
    )
    return _Plan(found, arrangement, texts, frozenset(holed))


def _shape(
    connection: psycopg.Connection,
    table: TableId,
    streams: Mapping[str, frozenset[str]],
    types: PgTypes,
    broken: dict[str, SourceError],
) -> Shape | None:
    """The table, if it can have triggers; what is wrong goes to `broken`, by stream."""
    try:
        shape = shape_of(connection, table, types)
    except SourceError as error:
        broken.update(dict.fromkeys(streams, error))
        return None
    known = {column.name for column in shape.columns}
    for stream, columns in streams.items():
        for column in sorted(columns - known):
            broken[stream] = SourceError(
                f"table {table} has no column {column}",
                hint=f"its columns are {', '.join(sorted(known))}; adapt the stream's `fields` in headwater.yaml",
            )
    return shape


def _layout(shape: Shape, columns: frozenset[str], layouts: dict[int, Layout], current: int | None) -> Layout:
    """The table's present layout if it holds just these columns, else a new one under a new number."""
    needed = (*shape.key, *(c.name for c in shape.columns if c.name in columns and c.name not in shape.key))
    types = tuple(shape.column(name).oid for name in needed)
    if current is not None:
        known = layouts[current]
        if dict(zip(known.columns, known.types, strict=True)) == dict(zip(needed, types, strict=True)):
            return known
    return Layout(max(layouts, default=0) + 1, shape.oid, needed, types)


def _text(names: Names, shape: Shape, layout: Layout) -> str:
    parts = [sql.make_function(names, shape, layout), *(text for _, _, text in sql.make_triggers(names, shape, layout))]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _whole(connection: psycopg.Connection, names: Names, found: Found, shape: Shape, layout: Layout) -> bool:
    """Whether the table's triggers have been in place, and right, all the time."""
    if shape.oid not in found.active:
        return False
    old = found.layouts[found.active[shape.oid]]
    kept = {name: oid for name, oid in zip(layout.columns, layout.types, strict=True) if name in old.columns}
    if any(old.types[old.columns.index(name)] != oid for name, oid in kept.items()):
        return False  # ALTER COLUMN ... TYPE has rewritten the rows
    mine = {names.function(old.number), names.trigger(old.number, "r"), names.trigger(old.number, "t")}
    recorded = {thing: text for thing, text in found.recorded.items() if thing.split(" ")[-1] in mine}
    if not recorded or any(found.present.get(thing) != text for thing, text in recorded.items()):
        return False
    row = names.trigger(old.number, "r")
    added = [leaf for leaf in shape.leaves if f"{leaf.oid} {row}" not in recorded]
    return not any(
        execute(connection, _OLDER_ROWS.format(leaf=leaf.sql, oid=leaf.oid))[0][0] for leaf in added
    )  # a partition that was attached with rows in it


def _carry_out(connection: psycopg.Connection, names: Names, plan: _Plan) -> None:
    with transaction(connection):
        execute(connection, f"SET LOCAL lock_timeout = {int(GIVE_WAY * 1000)}")
        if plan.found.incarnation is None:
            _make_tables(connection, names)
        _drop_things(connection, names, {f"{names.prefix}_{number}" for number in plan.texts})
        for layout in plan.arrangement.active.values():
            shape = next(s for s in plan.arrangement.shapes.values() if s.oid == layout.oid)
            if _in_place(names, plan, layout, shape):
                continue
            execute(connection, sql.make_function(names, shape, layout))
            for _, _, text in sql.make_triggers(names, shape, layout):
                execute(connection, text)
        _write_meta(connection, names, plan)
        failpoint("trigger.install.before_commit")
    failpoint("trigger.install.after_commit")


def _in_place(names: Names, plan: _Plan, layout: Layout, shape: Shape) -> bool:
    """Whether there is nothing to make for a table: no lock is asked for then."""
    found = plan.found
    if layout.oid in plan.holed or found.texts.get(layout.number) != plan.texts[layout.number]:
        return False
    return all(f"{oid} {name}" in found.present for oid, name, _ in sql.make_triggers(names, shape, layout))


def _make_tables(connection: psycopg.Connection, names: Names) -> None:
    known = execute(connection, "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s", [names.schema])
    if not known:
        execute(connection, f"CREATE SCHEMA {quoted(names.schema)}")
    # Some of the tables left: somebody removed one, and what the others hold belongs to no incarnation any more.
    _drop_tables(connection, names)
    for statement in sql.make_tables(names):
        execute(connection, statement)
    ((anchor,),) = execute(connection, sql.add_anchor(names))
    put(connection, names, "anchor", str(anchor))


def _write_meta(connection: psycopg.Connection, names: Names, plan: _Plan) -> None:
    arrangement = plan.arrangement
    layouts = [dataclasses.astuple(layout) for layout in arrangement.layouts.values()]
    values = {
        "format": FORMAT,
        "incarnation": arrangement.incarnation,
        "arranged": json.dumps(
            {
                "active": {layout.oid: layout.number for layout in arrangement.active.values()},
                "recorded": present_of(connection, names),
                "texts": plan.texts,
                "layouts": layouts,
            }
        ),
    }
    for key, value in values.items():
        put(connection, names, key, value)
    for oid in sorted(plan.holed):
        repair(connection, names, oid)


def put(connection: psycopg.Connection, names: Names, key: str, value: str) -> None:
    execute(
        connection,
        f"INSERT INTO {names.meta} VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )


def repair(connection: psycopg.Connection, names: Names, oid: int) -> None:
    """From now on a stream of this table whose load began before has missed changes."""
    execute(
        connection,
        f"INSERT INTO {names.meta} VALUES (%s, pg_catalog.nextval({names.sequence})::text)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [f"repair.{oid}"],
    )


def remove(connection: psycopg.Connection, names: Names) -> list[str]:
    """Drop this pipeline's triggers, functions and tables, and nothing else. Returns their names."""
    with transaction(connection):
        execute(connection, f"SET LOCAL lock_timeout = {int(PATIENCE * 1000)}")
        dropped = [*_drop_things(connection, names, set()), *_drop_tables(connection, names)]
        if dropped and _is_empty(connection, names):
            execute(connection, f"DROP SCHEMA {quoted(names.schema)}")
            dropped.append(f"schema {names.schema}")
    return dropped


def _drop_things(connection: psycopg.Connection, names: Names, keep: set[str]) -> list[str]:
    """Triggers, then their functions; not those of the functions in `keep`."""
    dropped = []
    prefix = names.trigger(0, "r").removesuffix("0_r")
    for oid, name, inherited, table, _ in execute(connection, TRIGGERS, [prefix, prefix]):
        of = name.removeprefix(prefix[:1]).rsplit("_", 1)[0]
        if names.owns_trigger(name) and not inherited and of not in keep:
            ((found,),) = execute(connection, "SELECT %s::oid::regclass::text", [oid])
            execute(connection, f"DROP TRIGGER {quoted(name)} ON {found}")
            dropped.append(f"trigger {name} on {table}")
    for name, _ in execute(connection, FUNCTIONS, [names.schema, f"{names.prefix}_"]):
        if names.owns_function(name) and name not in keep:
            execute(connection, f"DROP FUNCTION {names.sql(name)}()")
            dropped.append(f"function {names.schema}.{name}")
    return dropped


def _drop_tables(connection: psycopg.Connection, names: Names) -> list[str]:
    rows = execute(
        connection,
        "SELECT c.relkind::text, c.relname::text FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind IN ('r', 'S') ORDER BY c.relkind = 'S'",
        [names.schema, [*names.tables, f"{names.prefix}_number"]],
    )
    kinds = {"r": "TABLE", "S": "SEQUENCE"}
    for kind, name in rows:  # tables before the sequence that they use
        execute(connection, f"DROP {kinds[kind]} {names.sql(name)}")
    return [f"{kinds[kind].lower()} {names.schema}.{name}" for kind, name in rows]


def _is_empty(connection: psycopg.Connection, names: Names) -> bool:
    rows = execute(
        connection,
        "SELECT 1 FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_namespace n ON n.oid = d.refobjid"
        " WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND n.nspname = %s LIMIT 1",
        [names.schema],
    )
    return not rows
