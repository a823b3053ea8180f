"""What of a pipeline is in a database, for `status` and `doctor`; and its removal, for `destroy`."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.drivers.sqlite import Connection, path_of, quoted
from headwater.sources.trigger_sqlite.install import find, remove
from headwater.sources.trigger_sqlite.names import Names


@dataclass(frozen=True, slots=True)
class Installed:
    """`problems` are whole sentences: what is not as it should be, and what to do."""

    incarnation: str | None
    """None: nothing is installed."""
    tables: tuple[str, ...]
    """The captured tables."""
    triggers: tuple[str, ...]
    missing: tuple[str, ...]
    """Triggers that are gone or were altered; the next wake-up makes them again."""
    changes: int
    """Rows in the change table, at the most: the range of their ids."""
    newest: int
    """The newest change's id."""
    problems: tuple[str, ...]


def installed(url: str, pipeline: str, *, directory: str | None = None) -> Installed:
    """Inspect without changing anything. Raises `SourceError` for a missing file, `Busy`."""
    names = Names(pipeline)
    with Connection(path_of(url, directory), readonly=True) as connection, connection.transaction():
        found = find(connection, names)
        lowest, newest = 0, 0
        if found.incarnation is not None:
            ((lowest, newest),) = connection.execute(
                f"SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM {quoted(names.change)}"
            )
        return Installed(
            found.incarnation,
            tuple(sorted(found.active)),
            tuple(sorted(found.present)),
            tuple(sorted(found.missing)),
            newest - lowest + 1 if found.incarnation is not None else 0,
            newest,
            tuple(_problems(names, found.incarnation, found.present, found.missing)),
        )


def _problems(names: Names, incarnation: str | None, present: dict[str, str], missing: list[str]) -> list[str]:
    if incarnation is None and present:
        return [
            f"Triggers are there, but not all of {', '.join(names.tables)}: writes to their tables fail. "
            "Run `headwater run`, which makes them again, or `headwater destroy`, which removes the triggers."
        ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        return [
            f"{len(missing)} triggers are gone or were altered ({shown}): a table was rebuilt. "
            "`headwater run` makes them again and compares the rows."
        ]
    return []


def uninstall(url: str, pipeline: str, *, directory: str | None = None) -> list[str]:
    """Drop exactly this pipeline's triggers and tables; returns their names. Raises `Busy`."""
    with Connection(path_of(url, directory)) as connection:
        return remove(connection, Names(pipeline))
