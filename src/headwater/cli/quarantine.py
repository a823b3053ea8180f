"""quarantine list, show, replay and drop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.appender import by_the_appender
from headwater.cli.output import (
    DIFFERS,
    FILE,
    File,
    Json,
    Yes,
    ask,
    assembled,
    count,
    plain,
    print_json,
    print_table,
    stream_names,
)
from headwater.cli.tail import known_stream

if TYPE_CHECKING:
    from headwater.protocols import RejectedRow

app = typer.Typer(
    help="Changes that broke their contract: nothing of them is lost.", no_args_is_help=True, rich_markup_mode=None
)

Optional = Annotated[str | None, typer.Argument(metavar="[STREAM]", autocompletion=stream_names, show_default=False)]
Numbers = Annotated[list[int], typer.Argument(metavar="NUMBER...", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, help="At the most so many.")]
Only = Annotated[list[int] | None, typer.Option("--number", "-n", help="Only this one; may be given several times.")]


@app.command("list")
def list_(stream: Optional = None, config: File = FILE, limit: Limit = 50, as_json: Json = False) -> None:
    """What is in quarantine, oldest first, and why.

    Status 1 if there is anything.

    \b
    Examples:
      headwater quarantine list
      headwater quarantine list learning.enrollment --json
    """
    with assembled(config) as assembly:
        if stream is not None:
            known_stream(assembly, stream)
        rows = list(assembly.bus.rejected(stream))
    if as_json:
        print_json(rows[:limit])
    elif rows:
        heads = ("number", "stream", "key", "field", "expected", "got", "since")
        print_table(heads, map(_cells, rows[:limit]))
        if len(rows) > limit:
            print(f"... and {len(rows) - limit} more")
    else:
        print("nothing is in quarantine")
    raise typer.Exit(DIFFERS if rows else 0)


def _cells(row: RejectedRow) -> tuple[object, ...]:
    """`show` has the whole value."""
    got = row.got if len(row.got) <= 60 else row.got[:60] + "..."
    return row.number, row.stream, row.key, row.field, row.expected, got, row.time.isoformat(" ", "seconds")


@app.command()
def show(numbers: Numbers, config: File = FILE, as_json: Json = False) -> None:
    """The original change of quarantined rows, and why.

    \b
    Examples:
      headwater quarantine show 17
    """
    with assembled(config) as assembly:
        known = {row.number: row for row in assembly.bus.rejected()}
        _must_exist(numbers, known)
        changes = [rows.data.to_pylist()[0] for rows in assembly.bus.rejected_changes(numbers)]
    report = [{**plain(known[n]), "change": plain(change)} for n, change in zip(numbers, changes, strict=True)]
    if as_json:
        print_json(report)
        return
    for item in report:
        print("\n".join(_lines(item)))


def _lines(item: dict[str, Any]) -> Iterable[str]:
    yield f"number {item['number']}: {item['stream']} key {item['key']}, from {item['source']}, {item['time']}"
    yield f"  field {item['field'] or '-'}: expected {item['expected']}, got {item['got']}"
    for side in ("before", "after"):
        values = item["change"][side]
        if values is not None:
            yield f"  {side}: " + ", ".join(f"{name}={value!r}" for name, value in values.items())


@app.command()
def replay(
    stream: Annotated[str, typer.Argument(metavar="STREAM", autocompletion=stream_names, show_default=False)],
    config: File = FILE,
    number: Only = None,
    as_json: Json = False,
) -> None:
    """Map quarantined changes again.

    After a contract or mapping was mended. Status 1 if some break it still. A fact whose key has a newer event
    by now is superseded: taken out, not appended. A running `headwater run` is asked to do it; without one it
    is done here.

    \b
    Examples:
      headwater quarantine replay learning.enrollment
      headwater quarantine replay learning.enrollment -n 17 -n 18
    """
    _must_be_captured(config, stream)
    done = by_the_appender(config, "replay", stream=stream, numbers=number)
    if as_json:
        print_json(done)
    else:
        parts = {"appended": "appended", "superseded": "superseded", "rejected": "still broken", "waiting": "waiting"}
        print(f"{stream}: " + ", ".join(f"{len(done[name])} {words}" for name, words in parts.items()))
    raise typer.Exit(DIFFERS if done["rejected"] or done["waiting"] else 0)


@app.command()
def drop(numbers: Numbers, config: File = FILE, yes: Yes = False) -> None:
    """Give up quarantined changes for good.

    \b
    Examples:
      headwater quarantine drop 17 18 --yes
    """
    with assembled(config) as assembly:
        _must_exist(numbers, {row.number: row for row in assembly.bus.rejected()})
    ask(f"drop {count(len(numbers), 'quarantined change')} for good?", yes=yes)
    by_the_appender(config, "drop", numbers=numbers)
    print(f"dropped {count(len(numbers), 'change')}")


def _must_be_captured(config: Path, stream: str) -> None:
    """A stream that the configuration has dropped has a quarantine still, but nothing that maps its changes."""
    from headwater.errors import ConfigError

    with assembled(config) as assembly:
        known_stream(assembly, stream)
        if stream not in assembly.config.streams:
            raise ConfigError(
                f"stream `{stream}` is on the bus, but {config} does not have it, so that nothing can map its changes",
                hint="`headwater quarantine show` has them in full",
            )


def _must_exist(numbers: Iterable[int], known: dict[int, RejectedRow]) -> None:
    missing = [number for number in numbers if number not in known]
    if missing:
        text = ", ".join(map(str, missing))
        raise typer.BadParameter(f"no quarantined change has the number {text}; see `headwater quarantine list`")
