"""Where the trigger pattern is to be resumed, as the token of a `Position`: versioned JSON.

`anchor` is a hash of the change row `id`, which pruning keeps. A database that was restored from a copy, whose
change table was emptied, or that is another database altogether, does not show this row (F3, F83).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from headwater.drivers.sqlite import Connection, quoted
from headwater.errors import SourceError
from headwater.model import Position
from headwater.sources.trigger_sqlite.names import Names

FORMAT = 1


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """How far one stream's load has come."""

    token: str
    table: str
    state: str
    start: int = 0
    """The change id that its rows are labelled with."""
    since: int = 0
    """Rows that changes behind this id name are left to the stream."""
    after: tuple[Any, ...] | None = None
    """The identity of the last row that was read; None before the first."""
    count: int = 0
    """Rows looked at so far: the next row's ordinal."""
    schema: int = 0
    """The schema version at the load's start: VACUUM raises it, and gives new rowids."""
    again: bool = False
    """The stream could not be captured for a while, and the position went on without it."""
    reload: str = ""
    """Of a reading: how its rows are to be taken."""


@dataclass(frozen=True, slots=True)
class Place:
    incarnation: str
    epoch: int
    id: int
    anchor: str
    loads: dict[str, StreamLoad] = field(default_factory=dict)

    def position(self) -> Position:
        loads = {name: _compact(load) for name, load in self.loads.items()}
        token = {"v": FORMAT, "incarnation": self.incarnation, "id": self.id, "anchor": self.anchor, "loads": loads}
        return Position(self.epoch, self.id, json.dumps(token, separators=(",", ":")).encode())

    def with_load(self, stream: str, load: StreamLoad) -> Place:
        return dataclasses.replace(self, loads={**self.loads, stream: load})


def place_of(position: Position) -> Place:
    token = json.loads(position.token)
    if token.get("v") != FORMAT:
        raise SourceError(
            f"the position of a trigger capture has format {token.get('v')}; this version knows {FORMAT}",
            hint="run the version of Headwater that wrote it, or a newer one",
        )
    loads = {name: StreamLoad(**{**load, "after": _values(load.get("after"))}) for name, load in token["loads"].items()}
    return Place(token["incarnation"], position.epoch, token["id"], token["anchor"], loads)


def anchor_of(connection: Connection, names: Names, change: int) -> str:
    """A hash of one change row; "" when there is none. Slots added later are empty in it and do not count."""
    rows = connection.execute(f"SELECT * FROM {quoted(names.change)} WHERE id = ?", (change,))
    if not rows:
        return ""
    filled = [(i, type(v).__name__, v) for i, v in enumerate(rows[0]) if v is not None]
    return hashlib.blake2b(repr(filled).encode(), digest_size=8).hexdigest()


def _compact(load: StreamLoad) -> dict[str, Any]:
    values = {name: getattr(load, name) for name in StreamLoad.__slots__ if name != "after"}
    kept = {key: value for key, value in values.items() if value or key in ("token", "table", "state")}
    return kept if load.after is None else {**kept, "after": [_spelt(value) for value in load.after]}


def _spelt(value: Any) -> Any:
    """A SQLite value as JSON, exactly. TEXT that is not UTF-8 comes as a subclass of bytes and cannot be told apart."""
    if isinstance(value, float):
        return {"real": value.hex()}
    return {"blob": value.hex()} if isinstance(value, bytes) else value


def _values(after: list[Any] | None) -> tuple[Any, ...] | None:
    return None if after is None else tuple(map(_value, after))


def _value(item: Any) -> Any:
    if isinstance(item, dict):
        return float.fromhex(item["real"]) if "real" in item else bytes.fromhex(item["blob"])
    return item
