"""sink rewind and rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import FILE, File, Sink, Yes, ask, assembled, stream_names

if TYPE_CHECKING:
    from headwater.assembly import Assembly

app = typer.Typer(help="Deliver again what a sink was given already.", no_args_is_help=True, rich_markup_mode=None)

Only = Annotated[
    list[str] | None,
    typer.Option("--stream", help="Only this stream; may be given several times.", autocompletion=stream_names),
]


@app.command()
def rewind(
    sink: Sink,
    config: File = FILE,
    to: Annotated[str, typer.Option(help="An offset, or a time as 2026-03-01T12:00 (UTC unless it says).")] = "0",
    stream: Only = None,
    yes: Yes = False,
) -> None:
    """Let a sink read again from a place.

    Rows are not lost or doubled: writing is idempotent.

    \b
    Examples:
      headwater sink rewind warehouse
      headwater sink rewind warehouse --stream learning.enrollment --to 2026-03-01
    """
    with assembled(config) as assembly:
        streams = _chosen(assembly, sink, stream)
        ask(f"let sink {sink} read {', '.join(streams)} again from {to}?", yes=yes)
        _must_not_run(assembly, sink)
        target = assembly.sink(sink)
        try:
            for name in streams:
                offset = _rewind(assembly, target, name, to)
                print(f"{sink}: {name} is read again from offset {offset}")
        finally:
            target.close()


@app.command()
def rebuild(sink: Sink, config: File = FILE, stream: Only = None, yes: Yes = False) -> None:
    """Drop a sink's rows and let it read everything again.

    \b
    Examples:
      headwater sink rebuild warehouse
      headwater sink rebuild warehouse --stream learning.enrollment --yes
    """
    with assembled(config) as assembly:
        streams = _chosen(assembly, sink, stream)
        ask(f"drop the rows of {', '.join(streams)} in sink {sink}, and write them again?", yes=yes)
        _must_not_run(assembly, sink)
        target = assembly.sink(sink)
        try:
            for name in streams:
                target.clear(name)
                assembly.bus.release(sink, name)
                print(f"{sink}: {name} is empty and will be written again")
        finally:
            target.close()


def _rewind(assembly: Assembly, target: object, stream: str, to: str) -> int:
    from headwater.cli.tail import place
    from headwater.model import Cursor
    from headwater.protocols import Sink as SinkProtocol

    assert isinstance(target, SinkProtocol)
    state = assembly.bus.streams()[stream]
    offset = min(max(place(assembly, stream, to), state.first), state.head)
    cursor = Cursor(state.incarnation, (offset,))
    target.move(stream, cursor)
    assembly.bus.commit(target.name, stream, cursor)
    return offset


def _chosen(assembly: Assembly, sink: str, wanted: list[str] | None) -> list[str]:
    from headwater.errors import ConfigError

    if sink not in assembly.config.sinks:
        raise ConfigError(f"no sink `{sink}`", hint=f"sinks are {', '.join(assembly.config.sinks) or 'none'}")
    streams = [name for name in assembly.streams_of(sink) if name in assembly.bus.streams()]
    missing = sorted(set(wanted or ()) - set(streams))
    if missing:
        raise ConfigError(f"sink {sink} has no stream {', '.join(missing)}", hint=f"it has {', '.join(streams)}")
    return wanted or streams


def _must_not_run(assembly: Assembly, sink: str) -> None:
    """A running writer would notice a moved cursor and fail: better said at once."""
    from headwater.errors import AppenderBusy
    from headwater.status import running

    now = running(assembly.home)
    if now is not None and sink in now.workers and now.workers[sink].state in ("running", "waiting"):
        raise AppenderBusy(
            f"sink {sink} is being written by process {now.pid}", hint="stop `headwater run`, then do this again"
        )
