"""What stands in the way of the better patterns, table by table, as `choose` wants to know it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from headwater.config import Config, SourceConfig
from headwater.dialects import Table
from headwater.doctor import examine
from headwater.doctor.choice import Obstacles

ObstaclesOf = Callable[[Table], Obstacles]


@contextlib.contextmanager
def looking(source: SourceConfig, *, pipeline: str, name: str) -> Iterator[ObstaclesOf]:
    """Asks the database itself, where that takes more than a look at the table. `name`: the source's."""
    if source.scheme == "sqlite":
        yield lambda table: Obstacles(trigger=_sqlite(source.url.get_secret_value(), table))
        return
    examination = examine(Config(name=pipeline, sources={name: source}), name)
    if examination is None:
        yield lambda table: Obstacles(trigger=f"{source.scheme} has no trigger capture")
        return
    with contextlib.closing(examination):
        yield lambda table: Obstacles(examination.log(table).why_not, examination.trigger(table).why_not)


def _sqlite(url: str, table: Table) -> str:
    """SQLite writes a journal beside the file, so the folder counts too."""
    from headwater.drivers.sqlite import path_of

    if table.is_view:
        return "a view has none that see changes of its tables"
    path = path_of(url, Path.cwd())
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return "" if writable else "the database cannot be written here"
