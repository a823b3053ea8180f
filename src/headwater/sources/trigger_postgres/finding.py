"""What of ours is in a database, and whether anything about it was altered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headwater.drivers.postgres import execute
from headwater.errors import SourceError
from headwater.model import TableId
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.sql import Layout, anchored

if TYPE_CHECKING:
    import psycopg

FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Found:
    """What of ours is in a database. Things are named `function` and `table's oid trigger`."""

    incarnation: str | None = None
    layouts: dict[int, Layout] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)
    """Table's oid -> the number of its layout."""
    recorded: dict[str, str] = field(default_factory=dict)
    """Thing -> what it was when we had made it."""
    present: dict[str, str] = field(default_factory=dict)
    """Thing -> what it is now."""
    repairs: dict[int, int] = field(default_factory=dict)
    """Table's oid -> the number from which on its changes are seen again, without a hole."""
    texts: dict[int, str] = field(default_factory=dict)
    """Layout -> a hash of the SQL that made its triggers."""
    emptied: bool = False
    """Whether somebody else has deleted changes: the tables are made anew, under another incarnation (F3)."""

    @property
    def missing(self) -> list[str]:
        """Things that are gone or were altered."""
        return [name for name, text in self.recorded.items() if self.present.get(name) != text]


_TABLES = """
SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind = 'r'
"""
TRIGGERS = """
SELECT t.tgrelid::bigint, t.tgname::text, t.tgparentid <> 0, pn.nspname || '.' || c.relname,
       concat_ws(' ', t.tgenabled, t.tgtype, p.proname, t.tgqual IS NULL, t.tgattr)
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = c.relnamespace
WHERE NOT t.tgisinternal AND starts_with(t.tgname::text, %s) OR t.tgparentid <> 0 AND starts_with(t.tgname::text, %s)
"""
FUNCTIONS = """
SELECT p.proname::text, md5(concat_ws(' ', p.prosrc, p.prosecdef, p.proconfig))
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = %s AND starts_with(p.proname::text, %s)
"""
_FINGERPRINT = """
WITH w AS (SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence
             FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS g(schema, name)
             JOIN pg_catalog.pg_namespace n ON n.nspname = g.schema
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = g.name)
SELECT md5(concat_ws(' ',
  (SELECT string_agg(w::text, ';' ORDER BY w.oid) FROM w),
  (SELECT string_agg(concat_ws(' ', attrelid, attname, atttypid, atttypmod), ';' ORDER BY attrelid, attnum)
     FROM pg_catalog.pg_attribute JOIN w ON attrelid = w.oid WHERE attnum > 0 AND NOT attisdropped),
  (SELECT string_agg(concat_ws(' ', w.oid, p.relid), ';' ORDER BY w.oid, p.relid)
     FROM w, LATERAL pg_catalog.pg_partition_tree(w.oid) p),
  (SELECT string_agg(concat_ws(' ', indrelid, indkey), ';' ORDER BY indrelid)
     FROM pg_catalog.pg_index JOIN w ON indrelid = w.oid WHERE indisprimary)))
"""


def find(connection: psycopg.Connection, names: Names) -> Found:
    """Inspect, without changing anything."""
    present = present_of(connection, names)
    ((count,),) = execute(connection, _TABLES, [names.schema, list(names.tables)])
    if count < len(names.tables):
        return Found(present=present)
    stored = dict(execute(connection, f"SELECT key, value FROM {names.meta}"))
    if stored.get("format") != FORMAT:
        raise SourceError(
            f"{names.meta} has format {stored.get('format')}; this version knows {FORMAT}",
            hint="run the version of Headwater that made it, or `headwater destroy` and start anew",
        )
    arranged = json.loads(stored["arranged"])
    layouts = [Layout(number, oid, tuple(columns), tuple(types)) for number, oid, columns, types in arranged["layouts"]]
    ((whole,),) = execute(connection, anchored(names, int(stored["anchor"])))
    return Found(
        stored["incarnation"] if whole else None,
        {layout.number: layout for layout in layouts},
        _by_number(arranged["active"]),
        arranged["recorded"],
        present,
        {int(key.removeprefix("repair.")): int(value) for key, value in stored.items() if key.startswith("repair.")},
        _by_number(arranged["texts"]),
        emptied=not whole,
    )


def _by_number(stored: Mapping[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in stored.items()}


def present_of(connection: psycopg.Connection, names: Names) -> dict[str, str]:
    functions = execute(connection, FUNCTIONS, [names.schema, f"{names.prefix}_"])
    found = {name: text for name, text in functions if names.owns_function(name)}
    prefix = names.trigger(0, "r").removesuffix("0_r")
    for oid, name, _, _, text in execute(connection, TRIGGERS, [prefix, prefix]):
        if names.owns_trigger(name):
            found[f"{oid} {name}"] = text
    return found


def fingerprint(connection: psycopg.Connection, names: Names, wanted: Iterable[TableId]) -> str:
    """A text that becomes another one when something was altered that `arrange` should look at."""
    tables = sorted(wanted)
    parameters = {"schemas": [t.schema for t in tables], "names": [t.name for t in tables]}
    ((tables_hash,),) = execute(connection, _FINGERPRINT, parameters)
    return json.dumps([tables_hash, sorted(present_of(connection, names).items())])
