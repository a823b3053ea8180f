"""The commands, gathered. Bodies import what they use when they run, so that `--help` and completion answer at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from headwater.cli import bus, contract, grants, look, mend, quarantine, sink, start, streams, tail
from headwater.cli.output import DIFFERS, FAILED, MISUSED
from headwater.errors import ConfigError, HeadwaterError

HELP = f"""Data liberation: databases to trustworthy event streams, and streams to the stores where people need them.

Begin with `headwater demo`, or with your own database:

\b
  headwater init sqlite:///path/to/your.db
  headwater run

Every report takes --json. Exit status: 0 done; {DIFFERS} done, and the report is bad news (a difference, a problem);
{MISUSED} wrong usage or configuration; {FAILED} could not be done.
"""

app = typer.Typer(
    name="headwater",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

BEGIN: tuple[Callable[..., None], ...] = (start.init, start.run, start.demo)
LOOK: tuple[Callable[..., None], ...] = (
    look.status,
    tail.tail,
    look.sql,
    look.doctor,
    grants.grants,
    look.check,
    look.verify,
)
MEND: tuple[Callable[..., None], ...] = (
    streams.pause,
    streams.resume,
    mend.backfill,
    mend.repair,
    bus.backup,
    bus.restore,
    streams.destroy,
)
APART: tuple[Callable[..., None], ...] = (start.migrate, start.schema, start.version)
GROUPS = {"contract": contract.app, "quarantine": quarantine.app, "sink": sink.app, "bus": bus.app}

for command in (*BEGIN, *LOOK, *MEND, *APART):
    app.command()(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        start.version(as_json=False)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def run() -> int:
    """Parse, run, and turn what Headwater raises into a message and an exit status."""
    try:
        app(standalone_mode=True)
    except HeadwaterError as error:
        return _failed(error)
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except OSError as error:  # a file that cannot be read or written: the message names it
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _failed(error: HeadwaterError) -> int:
    if os.environ.get("HEADWATER_TRACEBACK"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    return MISUSED if isinstance(error, ConfigError) else FAILED


def _forget_stdout() -> None:
    """The reader of our output is gone (`headwater tail x | head`): what is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
