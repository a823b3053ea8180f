"""tail: the events of one stream, for people and, with --json, for programs."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.output import FILE, File, Json, Stream, assembled, plain, print_json

if TYPE_CHECKING:
    from headwater.assembly import Assembly
    from headwater.model import Events

From = Annotated[
    str | None,
    typer.Option("--from", help="An offset, or a time as 2026-03-01T12:00 (UTC unless it says). Unset: the last ones."),
]
WIDE = 60
"""Characters of a value that people get to see."""


def tail(
    stream: Stream,
    config: File = FILE,
    from_: From = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="At the most so many events. 10 at first.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    as_json: Json = False,
) -> None:
    """Show the events of a stream, oldest first. Works while `headwater run` does, and without it.

    \b
    Examples:
      headwater tail learning.enrollment
      headwater tail learning.enrollment --follow --json | jq .fields.price
      headwater tail learning.enrollment --from 2026-03-01 --limit 100
    """
    with assembled(config) as assembly:
        signal.signal(signal.SIGTERM, lambda *_: assembly.bus.stop())
        signal.signal(signal.SIGINT, lambda *_: assembly.bus.stop())
        shown = limit if limit is not None else None if follow or from_ else 10
        for event in _events(assembly, stream, _start(assembly, stream, from_, shown), follow, shown):
            if as_json:
                print_json(event, indent=None)
            else:
                print(line(event), flush=True)


def place(assembly: Assembly, stream: str, text: str) -> int:
    """What a person means by OFFSET|TIME, as an offset."""
    if text.isdigit():
        return int(text)
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"`{text}` is neither an offset nor a time as 2026-03-01T12:00") from error
    known = time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)
    return assembly.bus.offset_at(stream, known)


def known_stream(assembly: Assembly, stream: str) -> Any:
    """The stream's state on the bus, or an error that names those that are there."""
    import difflib

    from headwater.errors import ConfigError

    states = assembly.bus.streams()
    if stream in states:
        return states[stream]
    near = difflib.get_close_matches(stream, states, 1)
    names = ", ".join(sorted(states)) or "none yet: give `headwater run` first"
    hint = f"did you mean `{near[0]}`?" if near else f"streams are {names}"
    raise ConfigError(f"no stream `{stream}` is on the bus", hint=hint)


def _start(assembly: Assembly, stream: str, from_: str | None, shown: int | None) -> int:
    state = known_stream(assembly, stream)
    wanted = place(assembly, stream, from_) if from_ is not None else state.head - (shown or 10)
    return int(min(max(wanted, state.first), state.head))


def _events(assembly: Assembly, stream: str, offset: int, follow: bool, limit: int | None) -> Iterator[dict[str, Any]]:
    from headwater.model import Cursor

    after = Cursor(known_stream(assembly, stream).incarnation, (offset,))
    left = limit
    for events in assembly.bus.read(stream, after=after, follow=follow, limit=min(limit or 1000, 1000)):
        rows = list(as_dicts(events))
        yield from rows[:left]
        left = None if left is None else left - len(rows)
        if left is not None and left <= 0:
            return


def as_dicts(events: Events) -> Iterator[dict[str, Any]]:
    """Each event as people and programs see it: no internal name, and only what it carries."""
    from headwater.mapping.hashing import event_ids
    from headwater.model import Op

    ids = event_ids(events).to_pylist()
    offsets = events.offsets.to_pylist() if events.offsets is not None else [None] * len(ids)
    for row, event_id, offset in zip(events.data.to_pylist(), ids, offsets, strict=True):
        missing = {events.fields[n] for n in row.get("_unchanged") or ()}
        event = {
            "stream": events.stream,
            "offset": offset,
            "id": event_id,
            "op": Op(row["_op"]).letter,
            "time": row["_time"],
            "transaction": row["_transaction"],
            "order": [row["_epoch"], row["_commit"], row["_index"]],
            "version": events.version,
        }
        if events.type is not None:
            event["type"] = events.type
        if missing:
            event["unchanged"] = sorted(missing)
        event["fields"] = {name: row[name] for name in events.fields if name not in missing}
        yield plain(event)


def line(event: dict[str, Any]) -> str:
    """One event on one line."""
    time = (event["time"] or "-").replace("T", " ").split("+")[0]
    kind = f" {event['type']}" if "type" in event else ""
    fields = event["fields"].items()
    shown = ((name, value) for name, value in fields if not (event["op"] == "d" and value is None))
    text = "  ".join(f"{name}={_short(value)}" for name, value in shown)
    return f"{event['offset']}  {time}  {event['op']}{kind}  {text}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= WIDE else text[: WIDE - 1] + "…"
