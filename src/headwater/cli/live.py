"""How a running pipeline is shown: a live table on a terminal, plain lines or JSON lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headwater.cli.output import plain, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headwater.assembly import Assembly
    from headwater.figures import Figures, WorkerFigures

EVERY = 5.0
"""Seconds between plain lines."""


@dataclass(frozen=True, slots=True)
class StreamLine:
    stream: str
    pattern: str
    rows: int
    rows_per_second: float
    lag: int
    """Events that the slowest of its sinks has yet to take."""
    delivery: str
    state: str
    error: str


@dataclass(frozen=True, slots=True)
class SinkLine:
    sink: str
    rows: int
    rows_per_second: float
    lag: int
    state: str
    error: str


@dataclass(frozen=True, slots=True)
class Picture:
    """What is shown at one moment."""

    seconds: float
    streams: tuple[StreamLine, ...]
    sinks: tuple[SinkLine, ...]

    @property
    def lag(self) -> int:
        return max((sink.lag for sink in self.sinks), default=0)

    @property
    def troubles(self) -> dict[str, tuple[str, str]]:
        """State and error of each part that has one, by name."""
        streams = {line.stream: (line.state, line.error) for line in self.streams if line.error}
        return streams | {line.sink: (line.state, line.error) for line in self.sinks if line.error}


class Camera:
    """Takes pictures of a pipeline: the supervisor's figures, and lags as the bus knows them."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._sinks = {name: assembly.streams_of(name) for name in assembly.config.sinks}
        self._delivery = {name: assembly.guarantee(name).delivery for name in assembly.config.streams}
        self._captures = {name: assembly.capture_of(name) for name in assembly.config.streams}
        self._begin = time.monotonic()

    def picture(self, figures: Figures) -> Picture:
        from headwater.status import lag

        lags = {name: lag(self._assembly.bus, name, streams) for name, streams in self._sinks.items()}
        paused = {name for name, state in self._assembly.bus.streams().items() if state.paused is not None}
        streams = tuple(self._stream(name, figures, lags, paused) for name in self._captures)
        sinks = tuple(_sink_line(figures.workers[name], sum(lags[name].values())) for name in self._sinks)
        return Picture(time.monotonic() - self._begin, streams, sinks)

    def _stream(self, name: str, figures: Figures, lags: dict[str, dict[str, int]], paused: set[str]) -> StreamLine:
        own = figures.streams[name]
        worker = figures.workers[self._captures[name]]
        return StreamLine(
            stream=name,
            pattern=self._assembly.config.streams[name].pattern,
            rows=own.rows,
            rows_per_second=own.rows_per_second,
            lag=max((of.get(name, 0) for of in lags.values()), default=0),
            delivery=self._delivery[name],
            state="paused" if name in paused else worker.state,
            error=worker.error,
        )


def _sink_line(worker: WorkerFigures, lag: int) -> SinkLine:
    return SinkLine(worker.name, worker.rows, worker.rows_per_second, lag, worker.state, worker.error)


Show = Callable[[Picture], None]


@contextmanager
def screen(as_json: bool = False) -> Iterator[Show]:
    """What to call with each picture."""
    if as_json:
        yield lambda picture: print_json({**plain(picture), "lag": picture.lag}, indent=None)
    elif sys.stdout.isatty():
        with _table() as show:
            yield show
    else:
        lines = _Lines()
        yield lines
        lines.end()


class _Lines:
    """One line each few seconds, and one for each change of a state: fit for a log."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._unsaid: Picture | None = None
        self._troubles: dict[str, tuple[str, str]] = {}

    def __call__(self, picture: Picture) -> None:
        self._say_changes(picture)
        self._unsaid = picture
        if picture.seconds - self._last >= EVERY:
            self._say(picture)

    def end(self) -> None:
        """How it ended, whenever the last line was."""
        if self._unsaid is not None:
            self._say(self._unsaid)

    def _say(self, picture: Picture) -> None:
        self._last, self._unsaid = picture.seconds, None
        streams = sum(line.rows_per_second for line in picture.streams)
        captured, written = (sum(line.rows for line in lines) for lines in (picture.streams, picture.sinks))
        print(
            f"action=progress seconds={picture.seconds:.0f} captured={captured} written={written}"
            f" rows_per_second={streams:.0f} lag={picture.lag}",
            flush=True,
        )

    def _say_changes(self, picture: Picture) -> None:
        troubles = picture.troubles
        for name, (state, error) in troubles.items():
            if self._troubles.get(name) != (state, error):
                print(f'action={state} name={name} error="{error.splitlines()[0]}"', flush=True)
        for name in self._troubles.keys() - troubles.keys():
            print(f"action=recovered name={name}", flush=True)
        self._troubles = troubles


@contextmanager
def _table() -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False, transient=False) as live:
        yield lambda picture: live.update(drawn(picture), refresh=True)


def drawn(picture: Picture) -> RenderableType:
    """The live table: streams above, sinks below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    streams = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for head in ("stream", "pattern"):
        streams.add_column(head, no_wrap=True)
    for head in ("rows", "rows/s", "lag"):
        streams.add_column(head, justify="right", no_wrap=True, min_width=9)
    streams.add_column("delivery", no_wrap=True)
    for line in picture.streams:
        streams.add_row(line.stream, line.pattern, *_numbers(line), _delivery(line))
    streams.add_row()
    streams.add_row(*(Text(head, "bold") for head in ("sink", "", "rows", "rows/s", "lag", "state")))
    for sink in picture.sinks:
        streams.add_row(sink.sink, "", *_numbers(sink), Text(sink.state, _COLOURS.get(sink.state, "")))
    errors = [Text(f"\n{name}: {error}", "red") for name, (_, error) in picture.troubles.items()]
    return Group(streams, *errors, Text(f"\n{picture.seconds:.0f} s", "dim"))


_COLOURS = {"running": "green", "done": "green", "waiting": "yellow", "paused": "yellow", "failed": "bold red"}


def _delivery(line: StreamLine) -> str:
    words = line.delivery.replace("_", " ")
    return words if line.state in ("running", "done", "starting", "stopped") else f"[yellow]{line.state}[/] ({words})"


def _numbers(line: StreamLine | SinkLine) -> tuple[str, str, str]:
    return f"{line.rows:,}", f"{line.rows_per_second:,.0f}", f"{line.lag:,}"
