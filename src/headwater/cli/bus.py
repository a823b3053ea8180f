"""bus check and release; backup and restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.output import DIFFERS, FILE, File, Json, Yes, ask, assembled, print_json, stream_names

app = typer.Typer(help="The bus: its integrity, and who it waits for.", no_args_is_help=True, rich_markup_mode=None)

Only = Annotated[str | None, typer.Option("--stream", help="Only this stream.", autocompletion=stream_names)]


@app.command()
def release(
    group: Annotated[str, typer.Argument(show_default=False)],
    config: File = FILE,
    stream: Only = None,
    yes: Yes = False,
) -> None:
    """Let retention wait for a group of readers no longer.

    It is forgotten, and begins anew should it come back.

    \b
    Examples:
      headwater bus release billing --stream learning.enrollment
    """
    with assembled(config) as assembly:
        where = f"stream {stream}" if stream else "every stream"
        ask(f"forget group {group} in {where}?", yes=yes)
        assembly.bus.release(group, stream)
    print(f"group {group} is released")


@app.command()
def check(config: File = FILE, as_json: Json = False) -> None:
    """Read the whole bus and check it.

    Checksums, offsets without a gap, positions. Status 1 if it is damaged.

    \b
    Examples:
      headwater bus check
    """


def backup(
    target: Annotated[Path, typer.Argument(help="A new file.", show_default=False)], config: File = FILE
) -> None:
    """Copy the bus as it stands at one moment.

    Everything else goes on meanwhile.

    \b
    Examples:
      headwater backup backups/lms-2026-03-01.bus
    """


def restore(
    backup: Annotated[Path, typer.Argument(help="What `headwater backup` wrote.", show_default=False)],
    config: File = FILE,
    yes: Yes = False,
) -> None:
    """Put a backup in the place of the bus.

    Streams get a new incarnation, for what came after the backup is gone.

    \b
    Examples:
      headwater restore backups/lms-2026-03-01.bus
    """
