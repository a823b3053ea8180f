"""Where query capture stands: everything that a restart needs, as the bytes of a position.

A line of JSON, then the look-back window as it lies in memory. Values of cursor and key are kept exactly as the
database gave them, and only the database compares them (F27).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headwater.errors import SourceError
from headwater.model import Position
from headwater.sources.query.window import HASH, Window

VERSION = 1


@dataclass(frozen=True, slots=True)
class Place:
    """`commit`: the number of the last statement whose rows were yielded; numbers are never used twice.

    `load`: the token of the load that is done or, while `loading`, under way; `after` is the key it has come to.
    `anchor`: cursor and key of the row behind which each poll reads again; `mark` its cursor on the number line,
    `floor` a cursor value below the anchor's (for `:cursor`), `high` the highest cursor seen, on the number line.
    `window`: the rows behind the anchor that the stream has already.
    """

    commit: int = 0
    load: str | None = None
    loading: bool = False
    after: tuple[Any, ...] | None = None
    anchor: tuple[Any, ...] | None = None
    mark: int | None = None
    floor: Any = None
    high: int | None = None
    window: Window = field(default_factory=Window)
    compared: float = 0.0
    """When all rows were last read, in seconds since 1970."""
    nulls: int = 0
    """How many rows no poll can see, as last said."""
    shape: str = ""
    """What the cursor values belong to: another cursor, key or table makes them meaningless."""

    def position(self, epoch: int) -> Position:
        return Position(epoch, self.commit, _encode(self))


def place_of(position: Position, name: str) -> Place:
    """Raises `SourceError` for a token that this version cannot read."""
    head, _, tail = position.token.partition(b"\n")
    try:
        data = json.loads(head)
        version = data.pop("version")
    except (ValueError, KeyError, AttributeError) as error:
        raise SourceError(f"position of `{name}` is not one of query capture", hint=_AGAIN) from error
    if version != VERSION:
        raise SourceError(f"position of `{name}` is of format {version}, expected {VERSION}", hint=_AGAIN)
    return _decode(data, tail)


_AGAIN = "read the source again under a new load, or run the version of Headwater that wrote the position"


def _encode(place: Place) -> bytes:
    head = {
        "version": VERSION,
        "commit": place.commit,
        "load": place.load,
        "loading": place.loading,
        "after": _values(place.after),
        "anchor": _values(place.anchor),
        "mark": place.mark,
        "floor": _value(place.floor),
        "high": place.high,
        "compared": place.compared,
        "nulls": place.nulls,
        "shape": place.shape,
    }
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + place.window.to_bytes()


def _decode(data: dict[str, Any], tail: bytes) -> Place:
    for name in ("after", "anchor"):
        data[name] = None if data[name] is None else tuple(map(_parsed, data[name]))
    data["floor"] = _parsed(data["floor"])
    if len(tail) % (2 * HASH.byte_width):
        raise SourceError("position of query capture is cut short", hint=_AGAIN)
    return Place(**data, window=Window.from_bytes(tail))


def _values(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else [_value(value) for value in values]


def _value(value: Any) -> Any:
    """JSON that gives back the same value of the same type."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return ["b", base64.b64encode(value).decode()]
    if isinstance(value, float):
        return ["f", value.hex()]
    if isinstance(value, int):
        return ["i", str(value)]
    if isinstance(value, str):
        return ["s", value]
    raise TypeError(f"a cursor or key value is a number, text or bytes, not {type(value).__name__}")


def _parsed(value: Any) -> Any:
    if value is None:
        return None
    kind, text = value
    parsers: dict[str, Callable[[str], Any]] = {"b": base64.b64decode, "f": float.fromhex, "i": int, "s": str}
    return parsers[kind](text)


def raw(scalar: pa.Scalar) -> Any:
    """The Python value of a hidden column: of a struct, the one child that is set."""
    value = scalar.as_py()
    if isinstance(value, dict):
        return next((child for child in value.values() if child is not None), None)
    return value
