"""backfill and repair."""

from __future__ import annotations

from typing import Annotated

import typer

from headwater.cli.appender import by_the_appender
from headwater.cli.output import FILE, File, Json, Stream, Yes, ask, assembled, print_json

Where = Annotated[
    str | None, typer.Option(help="Only these rows: SQL over the table's columns, as the source knows it.")
]


def backfill(stream: Stream, config: File = FILE, where: Where = None, as_json: Json = False) -> None:
    """Append the source's rows once more, as they are now.

    Live changes go on meanwhile. Without --where, all rows. A running `headwater run` begins at once; otherwise the
    next one does. Where the log is captured, it continues where it was after a crash, and a second backfill of a stream
    follows the first. Triggers and queries read all rows, from the beginning after a crash, in the place of a backfill
    or a first load that is not finished; they refuse a stream without a key.

    \b
    Examples:
      headwater backfill learning.enrollment
      headwater backfill learning.enrollment --where "created >= '2026-01-01'"
    """
    done = by_the_appender(config, "backfill", stream=stream, where=where)
    if as_json:
        print_json(done)
    else:
        print(f"{stream}: its rows will be appended ({done['load']}); `headwater status` shows how far it is")


def repair(
    capture: Annotated[str, typer.Argument(metavar="CAPTURE", help="As `headwater status` names it: lms/log")],
    config: File = FILE,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Begin a capture anew after changes were lost.

    For a replication slot that is gone, invalidated or ahead, a server that was restored or replaced. What the capture
    keeps in the source is made again, and each table is compared with its stream: what differs is appended, and a
    note of kind `gap` says that the changes between are missing.

    \b
    Examples:
      headwater repair lms/log
    """
    from headwater.repair import repair as repaired

    ask(f"begin {capture} anew and compare every table with its stream?", yes=yes)
    with assembled(config, append=True) as assembly:
        done = repaired(assembly, capture)
    if as_json:
        print_json(done)
    else:
        print("\n".join((*done.removed, f"{', '.join(done.streams)}: compared at the next `headwater run`")))
