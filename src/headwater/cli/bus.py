"""bus check and release; backup and restore."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import DIFFERS, FILE, File, Json, Yes, ask, assembled, print_json, stream_names
from headwater.cli.tail import known_stream

if TYPE_CHECKING:
    from headwater.assembly import Assembly
    from headwater.buses.embedded import EmbeddedBus

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
        _must_read(assembly, group, stream)
        where = f"stream {stream}" if stream else "every stream"
        ask(f"forget group {group} in {where}?", yes=yes)
        assembly.bus.release(group, stream)
    print(f"group {group} is released")


def _must_read(assembly: Assembly, group: str, stream: str | None) -> None:
    from headwater.errors import ConfigError

    if stream is not None:
        known_stream(assembly, stream)
    groups = {name for one in ([stream] if stream else assembly.bus.streams()) for name in assembly.bus.groups(one)}
    if group not in groups:
        where = f"stream {stream}" if stream else "any stream"
        raise ConfigError(f"no group `{group}` reads {where}", hint=f"groups are {', '.join(sorted(groups)) or 'none'}")


@app.command()
def check(config: File = FILE, as_json: Json = False) -> None:
    """Read the whole bus and check it.

    Checksums, offsets, and everything that is stored twice. Status 1 if it is damaged.

    \b
    Examples:
      headwater bus check
    """
    with assembled(config) as assembly:
        problems = _embedded(assembly).check()
    if as_json:
        print_json(problems)
    else:
        print("\n".join(problems) or "the bus is sound")
    raise typer.Exit(DIFFERS if problems else 0)


def backup(
    target: Annotated[Path, typer.Argument(help="A new file.", show_default=False)], config: File = FILE
) -> None:
    """Copy the bus as it stands at one moment.

    Everything else goes on meanwhile.

    \b
    Examples:
      headwater backup backups/lms-2026-03-01.bus
    """
    with assembled(config) as assembly:
        _embedded(assembly).backup(target)
    print(f"wrote {target}, {target.stat().st_size:,} bytes")


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="What `headwater backup` wrote.", show_default=False)
    ],
    config: File = FILE,
    yes: Yes = False,
) -> None:
    """Put a backup in the place of the bus.

    A bus that is there is moved aside, not deleted. Streams get a new incarnation: readers that were farther than the
    backup are told so, instead of skipping what comes next.

    \b
    Examples:
      headwater restore backups/lms-2026-03-01.bus
    """
    from headwater.buses.embedded import bus_directory
    from headwater.buses.embedded import restore as restored
    from headwater.config import load

    loaded = load(config)
    directory = bus_directory(loaded.bus, str(loaded.directory))
    if not (directory / "bus.db").exists():
        restored(source, directory)
    else:
        ask(f"put {source} in the place of the bus in {directory}?", yes=yes)
        made = _beside(directory, "restored")
        try:
            restored(source, made)  # first, for a backup that is no good must not cost the bus that is there
            print(f"the bus that was there is now {_moved_aside(directory)}")
            made.rename(directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    print(f"restored {directory} from {source}")


def _beside(directory: Path, ending: str) -> Path:
    """A name beside the directory that nothing has yet."""
    names = (directory.with_name(f"{directory.name}.{ending}{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def _moved_aside(directory: Path) -> Path:
    """Under the appender's lock, for nothing may be writing it; unopened, for it may be damaged."""
    from headwater.buses.embedded.lock import AppenderLock

    aside = _beside(directory, "old")
    held = AppenderLock(directory)
    try:
        return directory.rename(aside)
    finally:
        held.release()


def _embedded(assembly: Assembly) -> EmbeddedBus:
    from headwater.buses.embedded import EmbeddedBus
    from headwater.errors import ConfigError

    if not isinstance(assembly.bus, EmbeddedBus):
        raise ConfigError(
            f"bus {assembly.config.bus.url} is not embedded: it is checked and backed up by its own tools"
        )
    return assembly.bus
