"""Asking a running pipeline to do what only the appender may: small files beside the bus, answered by the supervisor.

`ask` leaves `<id>.request` and waits for `<id>.answer`; both are JSON and appear whole, by rename. Without a running
pipeline nobody answers, and the caller takes the appender's lock itself.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headwater.errors import BusError, HeadwaterError

DIRECTORY = "requests"
Handler = Callable[..., dict[str, Any]]


def ask(home: Path, what: str, *, patience: float = 60.0, **arguments: Any) -> dict[str, Any]:
    """The running pipeline's answer. Raises `BusError` when it refuses, or does not answer in time."""
    directory = home / DIRECTORY
    directory.mkdir(exist_ok=True)
    name = uuid.uuid4().hex
    request, answer = directory / f"{name}.request", directory / f"{name}.answer"
    _put(request, {"what": what, "arguments": arguments})
    deadline = time.monotonic() + patience
    while not answer.exists():
        if time.monotonic() > deadline:
            request.unlink(missing_ok=True)
            raise BusError(
                f"the running pipeline did not answer `{what}` within {patience:.0f} s",
                hint="see `headwater status`; stop it and give the command again",
            )
        time.sleep(0.02)
    found: dict[str, Any] = json.loads(answer.read_text())
    answer.unlink()
    if "error" in found:
        raise BusError(found["error"], hint=found["hint"])
    return found


def answer_all(home: Path, handlers: Mapping[str, Handler]) -> None:
    """Carry out what is asked; by the supervisor, at each tick."""
    for request in sorted((home / DIRECTORY).glob("*.request")):
        try:
            asked = json.loads(request.read_text())
        except FileNotFoundError:  # the caller gave up
            continue
        _put(request.with_suffix(".answer"), _carry_out(handlers, asked))
        request.unlink(missing_ok=True)


def clear(home: Path) -> None:
    """Remove what an earlier run left unanswered; at the start."""
    for path in (home / DIRECTORY).glob("*"):
        path.unlink(missing_ok=True)


def _carry_out(handlers: Mapping[str, Handler], asked: dict[str, Any]) -> dict[str, Any]:
    """What one asks for and cannot have is that one's error; the pipeline goes on."""
    handler = handlers.get(asked["what"])
    if handler is None:
        return {"error": f"this pipeline does not know `{asked['what']}`", "hint": "is it an older version?"}
    try:
        return handler(**asked["arguments"])
    except HeadwaterError as error:
        return {"error": error.message, "hint": error.hint}
    except (OSError, TypeError, KeyError) as error:
        return {"error": f"`{asked['what']}` failed: {type(error).__name__}: {error}", "hint": ""}


def _put(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)
