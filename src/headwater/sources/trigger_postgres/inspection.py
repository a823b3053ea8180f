"""What of a pipeline is in a database, for `status` and `doctor`; and its removal, for `destroy`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from headwater.drivers.postgres import connect, execute
from headwater.sources.trigger_postgres.finding import Found, find
from headwater.sources.trigger_postgres.install import remove
from headwater.sources.trigger_postgres.names import Names


@dataclass(frozen=True, slots=True)
class Installed:
    """`problems` are whole sentences: what is not as it should be, and what to do."""

    incarnation: str | None
    """None: nothing is installed."""
    tables: tuple[str, ...]
    """The captured tables."""
    triggers: tuple[str, ...]
    """Of tables and of their partitions, as `table trigger`."""
    missing: tuple[str, ...]
    """Triggers and functions that are gone or were altered; the next check makes them again."""
    changes: int
    """Rows in the change table, as the server estimates them."""
    nbytes: int
    """The change table with its index."""
    problems: tuple[str, ...]


def installed(url: str, pipeline: str) -> Installed:
    """Inspect without changing anything. Raises `NotConnected`."""
    names = Names(pipeline)
    with closing(connect(url, application=names.application)) as connection:
        found = find(connection, names)
        shown = dict(
            execute(connection, _NAMES, [sorted({*found.active, *_oids(found.present), *_oids(found.missing)})])
        )
        count, nbytes = 0, 0
        if found.incarnation is not None:
            ((count, nbytes),) = execute(connection, _SIZE, [names.change])
    return Installed(
        found.incarnation,
        tuple(sorted(shown.get(oid, f"table {oid}") for oid in found.active)),
        tuple(sorted(_spelt(thing, shown) for thing in found.present if " " in thing)),
        tuple(sorted(_spelt(thing, shown) for thing in found.missing)),
        count,
        nbytes,
        tuple(_problems(names, found)),
    )


_NAMES = "SELECT c.oid::bigint, c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.oid = ANY (%s::oid[])"
_SIZE = """
SELECT greatest(c.reltuples, 0)::bigint, pg_catalog.pg_total_relation_size(c.oid)
FROM pg_catalog.pg_class c WHERE c.oid = %s::regclass
"""


def _oids(things: object) -> list[int]:
    return [int(str(thing).split(" ")[0]) for thing in things if " " in thing]  # type: ignore[attr-defined]


def _spelt(thing: str, shown: dict[int, str]) -> str:
    if " " not in thing:
        return thing
    oid, name = thing.split(" ", 1)
    return f"{shown.get(int(oid), f'table {oid}')} {name}"


def _problems(names: Names, found: Found) -> list[str]:
    if found.emptied:
        return [f"{names.change} was emptied by somebody else. `headwater run` makes it anew and compares the rows."]
    if found.incarnation is None and found.present:
        return [
            f"Triggers are there, but not all of {', '.join(names.tables)}: writes to their tables fail. "
            "Run `headwater run`, which makes them again, or `headwater destroy`, which removes the triggers."
        ]
    if found.missing:
        return [
            f"{len(found.missing)} triggers or functions are gone or were altered. "
            "`headwater run` makes them again and compares the rows."
        ]
    return []


def uninstall(url: str, pipeline: str) -> list[str]:
    """Drop exactly this pipeline's triggers, functions and tables; returns their names."""
    names = Names(pipeline)
    with closing(connect(url, application=names.application)) as connection:
        return remove(connection, names)
