"""`headwater destroy`: takes back what a pipeline made outside its own directory, and then its bus.

Sinks keep their rows: they belong to whoever reads them. What is removed from a database is found by exact names that
begin with the pipeline's, so that a neighbour loses nothing (F84).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.assembly import Assembly
from headwater.buses.embedded.store import DIRECTORY as SEGMENTS
from headwater.config import Config
from headwater.requests import DIRECTORY as REQUESTS

if TYPE_CHECKING:
    import psycopg

BUS_FILES = ("bus.db", "bus.db-wal", "bus.db-shm", "bus.lock", "health.json")


@dataclass(frozen=True, slots=True)
class Torn:
    """`left`: what belongs to somebody else, who made it for this pipeline, with the SQL that takes it away."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def destroy(config: Config) -> Torn:
    """Remove everything, and say what. Raises `AppenderBusy` while the pipeline runs."""
    torn = Torn()
    with Assembly(config, append=True) as assembly:
        home = assembly.home
        begun = home is not None and (home / BUS_FILES[0]).exists()
        _ = assembly.bus  # the appender's lock: nothing may run meanwhile
        for name, source in config.sources.items():
            remover = _REMOVERS.get(source.scheme)
            if remover is not None:  # whatever pattern captures now: an earlier one may have left something
                found = remover(config, name)
                torn.removed.extend(f"{name}: {thing}" for thing in found.removed)
                torn.left.extend(f"{name}: {thing}" for thing in found.left)
    if home is not None:
        found_files = _bus(home)
        torn.removed.extend(found_files if begun else [])  # else taking the lock has made it, a moment ago
    return torn


def _from_sqlite(config: Config, source: str) -> Torn:
    from headwater.drivers.sqlite import Connection, path_of
    from headwater.sources.trigger_sqlite.install import remove
    from headwater.sources.trigger_sqlite.names import Names

    path = path_of(config.sources[source].url.get_secret_value(), str(config.directory))
    if not path.exists():  # gone with everything that was in it
        return Torn()
    with Connection(path) as connection:
        return Torn(remove(connection, Names(config.name)))


def _from_postgres(config: Config, source: str) -> Torn:
    """The slot first: it alone makes the server keep what nobody will ever read."""
    from headwater.drivers.postgres import connect
    from headwater.sources.log_postgres.names import Names
    from headwater.sources.log_postgres.slot import drop_slot
    from headwater.sources.trigger_postgres.install import remove
    from headwater.sources.trigger_postgres.names import Names as TriggerNames

    settings = config.sources[source]
    torn = Torn(drop_slot(settings, config.name, source))
    names = Names(config.name, source)
    with connect(settings.url.get_secret_value(), application=names.application) as connection:
        torn.removed.extend(remove(connection, TriggerNames(config.name)))
        for publication in (names.publication, names.inserts):
            _drop_publication(connection, publication, torn)
    return torn


def _drop_publication(connection: psycopg.Connection, name: str, torn: Torn) -> None:
    """One that the tables' owner has made, as `headwater grants` says, is not ours to drop."""
    from headwater.drivers.postgres import execute, quoted

    sql = "SELECT pg_has_role(pubowner, 'USAGE'), pubowner::regrole::text FROM pg_publication WHERE pubname = %s"
    for ours, owner in execute(connection, sql, [name]):
        if ours:
            execute(connection, f"DROP PUBLICATION {quoted(name)}")
            torn.removed.append(f"publication {name}")
        else:
            torn.left.append(f"publication {name}, which belongs to {owner}: DROP PUBLICATION {quoted(name)};")


_REMOVERS: dict[str, Callable[[Config, str], Torn]] = {"sqlite": _from_sqlite, "postgresql": _from_postgres}


def _bus(home: Path) -> list[str]:
    removed = [path for name in BUS_FILES if (path := home / name).exists()]
    for path in removed:
        path.unlink()
    for directory in (REQUESTS, SEGMENTS):
        shutil.rmtree(home / directory, ignore_errors=True)
    if not any(home.iterdir()):
        home.rmdir()
    return [str(path) for path in removed]
