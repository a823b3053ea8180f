"""Tables, functions and triggers of the trigger pattern, as values.

A change holds the texts of the captured columns before and after it, each printed by its type's output function, under
settings of our own: what a snapshot or the log would show, whatever the application's session has set. An array of
texts has no names in it that could need quoting; which columns it holds is said by its layout.

What must never happen is that the application's write fails because of us. A captured column that was renamed, dropped
or retyped makes the trigger's expressions fail: that is caught, around the expressions alone, so that no write lies
inside the subtransaction and it takes no transaction id. The change is then told of as one that could not be read
(`UNREADABLE`), and the table's rows are compared.

When AFTER triggers fire, other triggers or functions of the same statement may have changed the row again, and what
they did was told before. So a row that is known not to be the newest version any more (`xmax`, and for a key that was
left, a look at the table) is told of as it is now: the last change of a key always shows what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.drivers.postgres import literal, quoted
from headwater.model import Op
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.shape import Shape

UNREADABLE = 0
"""`op` of a change whose row could not be printed."""
LEAF_TRUNCATED = 6
"""`op` of a TRUNCATE of one partition."""
ANCHOR = 0
"""`t` of the row that is in the change table from its beginning to its end: without it, somebody has emptied it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the texts of changes with this `t` are. `types`: the oid of each column's type."""

    number: int
    oid: int
    columns: tuple[str, ...]
    types: tuple[int, ...]

    def slot(self, column: str) -> int | None:
        """The place of a column's text; None if it was not captured then."""
        return self.columns.index(column) if column in self.columns else None


def make_tables(names: Names) -> list[str]:
    """Numbers have no cache: a change of a row is then always numbered after the one that it had to wait for."""
    number = names.sql(f"{names.prefix}_number")
    return [
        f"CREATE SEQUENCE {number} AS bigint CACHE 1",
        f"CREATE TABLE {names.change} ("
        f"id bigint NOT NULL DEFAULT pg_catalog.nextval({names.sequence}),"
        " xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),"
        " at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),"
        " t integer NOT NULL, op smallint NOT NULL, leaf oid, tid tid, before text[], after text[])"
        " WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000)",
        f"CREATE INDEX ON {names.change} (xid, id)",
        f"CREATE TABLE {names.mark} (id bigint PRIMARY KEY, snapshot text NOT NULL)",
        f"CREATE TABLE {names.meta} (key text PRIMARY KEY, value text NOT NULL)",
    ]


def add_anchor(names: Names) -> str:
    """Gives the anchor's number."""
    return f"INSERT INTO {names.change} (t, op) VALUES ({ANCHOR}, {ANCHOR}) RETURNING id"


def anchored(names: Names, number: int) -> str:
    return f"SELECT EXISTS (SELECT FROM {names.change} WHERE id = {number} AND t = {ANCHOR})"


def make_function(names: Names, shape: Shape, layout: Layout) -> str:
    return (
        f"CREATE OR REPLACE FUNCTION {names.sql(names.function(layout.number))}() RETURNS trigger LANGUAGE plpgsql"
        f" SECURITY DEFINER SET search_path = {_search_path(shape, layout)}"
        " SET datestyle = 'ISO, YMD' SET intervalstyle = 'iso_8601' SET timezone = 'UTC'"
        " SET extra_float_digits = 3 SET bytea_output = 'hex' SET quote_all_identifiers = off"
        f" SET lc_monetary FROM CURRENT AS {literal(body(names, shape, layout))}"
    )


def make_triggers(names: Names, shape: Shape, layout: Layout) -> list[tuple[int, str, str]]:
    """(table's oid, name, SQL). Row triggers of a partitioned table pass to its partitions, those of TRUNCATE do not.

    ALWAYS: what a session writes as a replica (`session_replication_role`) is written all the same.
    """
    function = names.sql(names.function(layout.number))
    row, whole = names.trigger(layout.number, "r"), names.trigger(layout.number, "t")
    truncated = [(shape.oid, shape.sql)]
    if shape.partitioned:
        truncated += [(leaf.oid, leaf.sql) for leaf in shape.leaves]
    made = [
        (shape.oid, shape.sql, row, "AFTER INSERT OR UPDATE OR DELETE", "ROW"),
        *((oid, table, whole, "AFTER TRUNCATE", "STATEMENT") for oid, table in truncated),
    ]
    return [
        (
            oid,
            name,
            f"DROP TRIGGER IF EXISTS {quoted(name)} ON {table};"
            f"CREATE TRIGGER {quoted(name)} {when} ON {table} FOR EACH {each} EXECUTE FUNCTION {function}();"
            f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {quoted(name)}",
        )
        for oid, table, name, when, each in made
    ]


def body(names: Names, shape: Shape, layout: Layout) -> str:
    """The function's text. `o`, `n`: what is told, at `v` of leaf `l`; `s`, `a`: see `_settled`; `e`: an error."""
    old, new = shape.printed("OLD", layout.columns), shape.printed("NEW", layout.columns)
    target = f"INSERT INTO {names.change}(t, op, leaf, tid, before, after) VALUES ({layout.number},"
    truncated = f"CASE WHEN TG_RELID = {shape.oid}::oid THEN {Op.TRUNCATE:d} ELSE {LEAF_TRUNCATED} END"
    return f"""
DECLARE o text[]; n text[]; v tid; l oid := TG_RELID; a boolean := false; s boolean := false; p smallint; e text;
  x text[]; y tid; z oid;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    {target} {truncated}, TG_RELID, NULL, NULL, NULL);
    RETURN NULL;
  END IF;
  BEGIN
    IF TG_OP = 'INSERT' THEN
      p := {Op.CREATE:d}; n := {new}; v := NEW.ctid;
    ELSIF TG_OP = 'UPDATE' THEN
      p := {Op.UPDATE:d}; o := {old}; n := {new}; v := NEW.ctid;
    ELSE
      p := {Op.DELETE:d}; o := {old};
    END IF;
{_settled(shape, layout)}
  EXCEPTION WHEN OTHERS THEN
    e := SQLERRM; p := {UNREADABLE}; o := NULL; n := NULL; v := NULL; l := TG_RELID; a := false;
  END;
  IF a THEN
    {target} CASE WHEN x IS NULL THEN {Op.DELETE:d} ELSE {Op.UPDATE:d} END, z, y, o, x);
    o := n;
    IF p IS NOT NULL AND NOT s THEN p := {Op.CREATE:d}; o := NULL; END IF;
  END IF;
  IF p IS NOT NULL THEN
    {target} p, l, v, o, CASE WHEN p = {UNREADABLE} THEN ARRAY[e] ELSE n END);
  END IF;
  RETURN NULL;
END"""


def _settled(shape: Shape, layout: Layout) -> str:
    """PL/pgSQL: what is told when the row, or the place that it left, is not as this change left it.

    `s`: the row is not the newest version any more; `xmax` alone may be a lock. `a`: the key that was left is told of
    by itself, as the row that has it now (`x`), or as a delete.
    """
    if not shape.key or not set(shape.key) <= set(layout.columns):
        return ""
    find = f"SELECT {shape.printed('r', layout.columns)}, r.ctid, r.tableoid"
    moved = f"NOT ({shape.same_key('OLD', 'NEW')})"
    return f"""
    s := TG_OP <> 'DELETE' AND NEW.xmax <> '0'::pg_catalog.xid;
    IF s THEN
      {find} INTO x, y, z FROM {shape.sql} AS r WHERE {shape.same_key("r", "NEW")};
      s := y IS DISTINCT FROM NEW.ctid OR z IS DISTINCT FROM TG_RELID;
      IF s THEN n := x; v := y; l := z; END IF;
      x := NULL;
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND {moved}) THEN
      {find} INTO x, y, z FROM {shape.sql} AS r WHERE {shape.same_key("r", "OLD")};
      IF TG_OP = 'UPDATE' THEN
        a := x IS NOT NULL OR s;
      ELSIF x IS NOT NULL THEN
        p := {Op.UPDATE:d}; n := x; v := y; l := z;
      END IF;
    END IF;
    IF s AND n IS NULL THEN p := NULL; ELSIF s AND NOT a THEN p := {Op.UPDATE:d}; o := n; END IF;"""


def _search_path(shape: Shape, layout: Layout) -> str:
    """Types' schemas too: the equality of a key may be an extension's."""
    bases = [shape.types.base(oid)[0] for oid in layout.types]
    schemas = dict.fromkeys(["pg_catalog", *(base.schema for base in bases if base is not None)])
    return ", ".join([*map(quoted, schemas), "pg_temp"])


def present_row(shape: Shape, layout: Layout, row: str, change: str) -> str:
    """SQL: whether `row` is the one that a change left behind: keys from their texts."""
    tests = []
    for name in shape.key:
        slot = layout.slot(name)
        text = "NULL" if slot is None else f"{change}.after[{slot + 1}]"
        tests.append(f"{row}.{quoted(name)} = {shape.types.parsed(text, shape.column(name).oid)}")
    return " AND ".join(tests) or "false"
