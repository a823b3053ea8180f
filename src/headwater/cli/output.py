"""What commands share: their options, the exit codes, and reports as text or as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headwater.assembly import Assembly

DIFFERS = 1
MISUSED = 2
FAILED = 3

File = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="HEADWATER_CONFIG", help="The pipeline's configuration.", show_default=True),
]
FILE = Path("headwater.yaml")
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _names(section: str) -> list[str]:
    """The names in one section of headwater.yaml, for completion: no checks, and never an error."""
    import yaml

    try:
        text = Path(os.environ.get("HEADWATER_CONFIG", FILE)).read_text(encoding="utf-8")
        found = yaml.safe_load(text)[section]
        return list(found)
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return []


def stream_names(incomplete: str) -> list[str]:
    return [name for name in _names("streams") if name.startswith(incomplete)]


def sink_names(incomplete: str) -> list[str]:
    return [name for name in _names("sinks") if name.startswith(incomplete)]


def stream_or_sink_names(incomplete: str) -> list[str]:
    return stream_names(incomplete) + sink_names(incomplete)


Stream = Annotated[str, typer.Argument(metavar="STREAM", autocompletion=stream_names, show_default=False)]
Sink = Annotated[str, typer.Argument(metavar="SINK", autocompletion=sink_names, show_default=False)]


@contextmanager
def assembled(file: Path, *, append: bool = False) -> Iterator[Assembly]:
    """The pipeline that `file` describes, opened for one command."""
    from headwater.assembly import Assembly
    from headwater.config import load

    with Assembly(load(file), append=append) as assembly:
        yield assembly


def plain(value: Any) -> Any:
    """A report as values that JSON knows. Decimals and times become exact text, bytes become hex."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name.lower()
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (decimal.Decimal, Path)):
        return str(value)
    return str(value)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    print(json.dumps(plain(value), ensure_ascii=False, indent=indent), flush=True)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; on a terminal, wide ones are cut to fit, and where that would leave too little of them, each row
    is a block of lines.
    """
    if not heads:
        return
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    if sys.stdout.isatty():
        room = os.get_terminal_size().columns - 2 * (len(widths) - 1)
        if cells and sum(min(width, _READABLE) for width in widths) > room:
            _print_blocks(heads, cells)
            return
        widths = _fitted(widths, room)
    numeric = [_is_numeric(column) for column in zip(*cells, strict=True)] or [False] * len(widths)
    for line in (list(heads), *cells):
        padded = (_padded(text, width, right) for text, width, right in zip(line, widths, numeric, strict=True))
        print("  ".join(padded).rstrip())


_READABLE = 12
"""Characters of a column that say something still."""


def _print_blocks(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    wide = max(map(len, heads))
    for number, row in enumerate(cells):
        print("\n" * bool(number), end="")
        for head, text in zip(heads, row, strict=True):
            print(f"{head.ljust(wide)}  {text}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(plain(value), ensure_ascii=False)
    return str(_scalar(value)).replace("\n", "\\n")


def _padded(text: str, width: int, right: bool) -> str:
    short = text if len(text) <= width else text[: max(width - 1, 0)] + "…"
    return short.rjust(width) if right else short.ljust(width)


def _is_numeric(column: Sequence[str]) -> bool:
    return all(text == "-" or text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit() for text in column)


def _fitted(widths: list[int], room: int) -> list[int]:
    """Take from the widest until the line fits."""
    fitted = list(widths)
    while sum(fitted) > room and max(fitted) > 6:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def ask(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone. Without a terminal to ask on, and without `--yes`, it is refused."""
    if yes:
        return
    if not sys.stdin.isatty():
        print(f"{question}\nerror: nobody to ask here; say --yes if you mean it", file=sys.stderr)
        raise typer.Exit(MISUSED)
    typer.confirm(question, abort=True)
