"""`headwater destroy`: takes back what a pipeline made outside its own directory, and then its bus.

Sinks keep their rows: they belong to whoever reads them. What is removed from a database is found by exact names that
begin with the pipeline's, so that a neighbour loses nothing (F84).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from headwater.assembly import Assembly
from headwater.config import Config, SourceConfig
from headwater.requests import DIRECTORY as REQUESTS

BUS_FILES = ("bus.db", "bus.db-wal", "bus.db-shm", "bus.lock", "health.json")


def destroy(config: Config) -> list[str]:
    """Remove everything, and say what. Raises `AppenderBusy` while the pipeline runs."""
    with Assembly(config, append=True) as assembly:
        home = assembly.home
        begun = home is not None and (home / BUS_FILES[0]).exists()
        _ = assembly.bus  # the appender's lock: nothing may run meanwhile
        removed = [
            f"{name}: {thing}" for name, source in config.sources.items() for thing in _from_source(config, source)
        ]
    if home is not None:
        found = _bus(home)
        removed += found if begun else []  # else taking the lock has made it, a moment ago
    return removed


def _from_source(config: Config, source: SourceConfig) -> list[str]:
    """Whatever pattern captures it now: an earlier one may have left something."""
    remover = _REMOVERS.get(source.scheme)
    return remover(source, str(config.directory), config.name) if remover is not None else []


def _from_sqlite(source: SourceConfig, directory: str, pipeline: str) -> list[str]:
    from headwater.drivers.sqlite import Connection, path_of
    from headwater.sources.trigger_sqlite.install import remove
    from headwater.sources.trigger_sqlite.names import Names

    path = path_of(source.url.get_secret_value(), directory)
    if not path.exists():  # gone with everything that was in it
        return []
    with Connection(path) as connection:
        return remove(connection, Names(pipeline))


_REMOVERS: dict[str, Callable[[SourceConfig, str, str], list[str]]] = {"sqlite": _from_sqlite}


def _bus(home: Path) -> list[str]:
    removed = [path for name in BUS_FILES if (path := home / name).exists()]
    for path in removed:
        path.unlink()
    shutil.rmtree(home / REQUESTS, ignore_errors=True)
    if not any(home.iterdir()):
        home.rmdir()
    return [str(path) for path in removed]
