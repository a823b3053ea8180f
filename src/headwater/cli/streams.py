"""pause, resume and destroy."""

from __future__ import annotations

from typing import Annotated

import typer

from headwater.cli.output import FILE, File, Stream, Yes, ask, assembled
from headwater.cli.tail import known_stream


def pause(
    stream: Stream,
    config: File = FILE,
    reason: Annotated[str, typer.Option(help="What `status` says of it.")] = "paused by hand",
) -> None:
    """Let a stream stand still.

    Its changes are parked on the bus, nothing is lost, and the others go on.

    \b
    Examples:
      headwater pause learning.enrollment --reason "while finance closes the month"
    """
    with assembled(config) as assembly:
        known_stream(assembly, stream)
        assembly.bus.pause(stream, reason)
    print(f"{stream} is paused; `headwater resume {stream}` lets it go on")


def resume(stream: Stream, config: File = FILE) -> None:
    """Let a paused stream go on.

    What was parked is mapped first, by the running process or the next one.

    \b
    Examples:
      headwater resume learning.enrollment
    """
    with assembled(config) as assembly:
        known_stream(assembly, stream)
        assembly.bus.resume(stream)
    print(f"{stream} goes on")


def destroy(config: File = FILE, yes: Yes = False) -> None:
    """Remove what this pipeline made in its sources, and its bus.

    Slots, publications, triggers and their tables go, by their exact names; a neighbour's are left alone. Sinks keep
    their rows.

    \b
    Examples:
      headwater destroy
      headwater destroy --yes
    """
    from headwater.config import load
    from headwater.teardown import destroy as removed

    loaded = load(config)
    sources = ", ".join(loaded.sources)
    ask(f"remove what pipeline {loaded.name} made in {sources}, and every event on its bus, for good?", yes=yes)
    torn = removed(loaded)
    said = [f"removed {thing}" for thing in torn.removed] + [f"left {thing}" for thing in torn.left]
    print("\n".join(said) or f"pipeline {loaded.name} has left nothing to remove")
