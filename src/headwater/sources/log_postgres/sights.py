"""What happens to captured tables that the log does not tell of, seen in the catalog.

One idea: **of each table a small record that becomes another one when that happens**, read by one query that waits for
nobody's lock. It is stored with the position, so that a start sees what was done while nothing was captured.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from headwater.drivers.postgres import execute
from headwater.model import TableId
from headwater.sources.log_postgres.names import Names

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True, slots=True)
class Sight:
    """One table. `file`: persistence and relfilenode of its rows. `columns`: of each captured one its attnum and the
    `xmin` of its row in `pg_attribute`, which each ALTER of it writes anew. `parts`: by oid every partition below it,
    with its file and the transaction that attached it. `published`: marks of how our publications hold it, separated by
    spaces; as long as one of them stays, it has been published without a break.
    """

    oid: int
    file: str
    columns: Mapping[str, str]
    parts: Mapping[str, str]
    published: str


class Difference(NamedTuple):
    """`of_events`: whether it matters to a stream of events, which keeps what was."""

    kind: Literal["gap", "schema"]
    text: str
    of_events: bool


_LOOK = """
WITH RECURSIVE w AS (
  SELECT g.place, g.columns, c.oid, c.relkind, c.relpersistence::text || c.relfilenode AS file
  FROM unnest(%s::text[], %s::text[], %s::jsonb[]) WITH ORDINALITY AS g(schema, name, columns, place)
  JOIN pg_catalog.pg_namespace n ON n.nspname = g.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = g.name AND c.relkind IN ('r', 'p')
), tree AS (
  SELECT w.oid AS root, i.inhrelid AS oid, i.xmin AS attached
  FROM w JOIN pg_catalog.pg_inherits i ON i.inhparent = w.oid WHERE w.relkind = 'p'
  UNION ALL
  SELECT t.root, i.inhrelid, i.xmin FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
)
SELECT w.place, jsonb_build_object(
  'oid', w.oid::bigint,
  'file', w.file,
  'columns', (SELECT coalesce(jsonb_object_agg(a.attname, a.attnum || ' ' || a.xmin), '{}')
              FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped AND w.columns ? a.attname::text),
  'parts', (SELECT coalesce(jsonb_object_agg(t.oid, c.relpersistence::text || c.relfilenode || ' ' || t.attached), '{}')
            FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE t.root = w.oid),
  'published', (SELECT coalesce(string_agg(concat_ws('.', p.oid, p.xmin, r.oid), ' ' ORDER BY p.oid), '')
                FROM pg_catalog.pg_publication p
                LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = w.oid
                WHERE p.pubname = ANY (%s) AND (p.puballtables OR r.oid IS NOT NULL)))::text
FROM w
"""
_BORN = """
SELECT a.attrelid::bigint FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_attribute s ON s.attrelid = a.attrelid AND s.attnum = -1 AND s.xmin = a.xmin AND s.cmin = a.cmin
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relfilenode IN (0, c.oid)
WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 GROUP BY 1
"""
"""Partitions that were made as such, and never emptied: ATTACH writes the columns' rows anew, by a later command than
the one that made them, while those of the system columns stay; and a file keeps the oid's number until it is replaced.
"""


def look(connection: psycopg.Connection, names: Names, wanted: Mapping[TableId, Collection[str]]) -> dict[str, Sight]:
    """Of those tables that exist, by name. `wanted`: the captured columns of each."""
    tables = list(wanted)
    parameters = [
        [table.schema for table in tables],
        [table.name for table in tables],
        [json.dumps(sorted(wanted[table])) for table in tables],
        [names.publication, names.inserts],
    ]
    rows = execute(connection, _LOOK, parameters)
    return {str(tables[place - 1]): Sight(**json.loads(text)) for place, text in rows}


def differences(connection: psycopg.Connection, before: Sight, now: Sight) -> list[Difference]:
    """What was done in between that the log does not tell of."""
    if before == now:
        return []
    if before.oid != now.oid:
        return [Difference("gap", "it is another table than before, of the same name", True)]
    return [*_of_file(before, now), *_of_columns(before, now), *_of_parts(connection, before, now)]


def _of_file(before: Sight, now: Sight) -> Iterator[Difference]:
    if before.file[0] != now.file[0]:
        yield Difference("gap", "it was made logged, or unlogged", True)
    if before.published and set(before.published.split()).isdisjoint(now.published.split()):
        yield Difference("gap", "it was not published for a while, or its publication was altered", True)


def _of_columns(before: Sight, now: Sight) -> Iterator[Difference]:
    """New rows of a table (TRUNCATE, VACUUM FULL) alone are none: the log tells, or no value is another one."""
    rewritten = before.file != now.file or any(now.parts.get(oid, was) != was for oid, was in before.parts.items())
    for name in sorted(before.columns.keys() & now.columns.keys()):
        was, found = before.columns[name].split(), now.columns[name].split()
        if was[0] != found[0]:
            yield Difference("schema", f"column `{name}` was dropped and added again", False)
        elif was != found and rewritten:
            yield Difference("schema", f"column `{name}` was altered and the rows rewritten", False)


def _of_parts(connection: psycopg.Connection, before: Sight, now: Sight) -> Iterator[Difference]:
    gone = before.parts.keys() - now.parts.keys()
    both = [(before.parts[oid].split(), now.parts[oid].split()) for oid in before.parts.keys() & now.parts.keys()]
    away = [found for was, found in both if was[1] != found[1]]
    emptied = [found for was, found in both if was[1] == found[1] and was[0] != found[0]]
    added = now.parts.keys() - before.parts.keys()
    born = {str(oid) for (oid,) in execute(connection, _BORN, [[int(oid) for oid in added]])} if added else set()
    brought = added - born
    for number, text, of_events in (
        (len(gone), "dropped or detached", False),
        (len(away), "detached and attached again", True),
        (len(emptied), "emptied or rewritten", False),
        (len(brought), "attached with rows of their own, or emptied", True),
    ):
        if number:
            yield Difference("gap", f"partitions were {text} ({number})", of_events)
