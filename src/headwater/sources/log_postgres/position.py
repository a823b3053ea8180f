"""Where log capture stands: everything that a restart needs, as the JSON of a position.

LSNs are integers (bytes of WAL). A commit's place is the LSN of its commit record: no two commits share one, while the
end of one may be the beginning of the next (F1).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headwater.errors import SourceError
from headwater.model import Position, TableId
from headwater.sources.log_postgres.sights import Sight

VERSION = 2
"""Version 1 lacks `seen`."""

State = Literal["pages", "keys", "reading", "done"]
"""How a load goes on: page ranges of one exported snapshot; chunks by key beside the log; one whole reading; not."""

DONE: State = "done"

NOT_YET = 2**63 - 1
"""Above every LSN: of a publication that transactions still running, which began before it was made, do not know."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the load of one stream has come. `token` names it; see `protocols.Load`."""

    token: str
    state: State
    leaf: int = 0
    """Of a partitioned table's leaves, by oid, which one is read; 0 for a plain table."""
    page: int = 0
    """`pages`: everything before this page of the leaf is in the bus."""
    snapshot: str = ""
    """`pages`: the `pg_current_snapshot()` that they are, or were, read under."""
    files: Mapping[str, int] = field(default_factory=dict)
    """`pages`: the leaves' relfilenodes by oid (as text): a table that was rewritten has its rows on other pages."""
    after: tuple[str, ...] | None = None
    """`keys`: the key of the last row that is in the bus, as the texts that the server printed."""
    ended: bool = False
    """All rows are in the bus; what is left is that the log comes to `until`."""
    until: int = 0
    """Until the log has come to this LSN, it may tell of rows that were gone when the last ones were read."""
    settled: tuple[str, ...] | None = None
    """`keys`: the key up to which that is not so, whether or not the log has come there."""
    told: tuple[str, ...] = ()
    """`keys`: hashes of keys whose row the log brought meanwhile, as far as they are few; see `homes`."""
    number: int = 0
    """The ordinal of the next row; it goes on from load to load, so that no two rows share a place in the order."""
    count: int = 0
    """How many rows are in the bus."""

    def done(self) -> Progress:
        return Progress(self.token, DONE, number=self.number, count=self.count)


@dataclass(slots=True)
class _Written:
    """What all places have written alike that differ in `commit` and `lsn` only: the JSON behind these."""

    rest: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """`commit`: every commit at or below it is in the bus. `lsn`: the server may forget everything before it.

    `system`, `timeline`: of the server that the slot was made on; `slot`: the slot's name; `start`: its consistent
    point. `columns`: the columns of each table as last seen (name -> type as text), so that a change made meanwhile is
    noticed. `publications`: by name the LSN from which on the log knows it (it is read with the catalog of its time),
    or `NOT_YET`.
    `published`: how the tables stood in publications; see `publication.Arranged`.
    """

    epoch: int
    commit: int
    lsn: int
    system: str
    timeline: int
    slot: str
    start: int
    loads: Mapping[str, Progress] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    publications: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    doubt: int = 0
    """Below this LSN the log may change rows that the streams do not have; see `homes`."""
    lost: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By stream: the keys (hashes) whose row it does not have, each with the LSN below which it ends."""
    seen: Mapping[str, Sight] = field(default_factory=dict)
    """By table what the catalog said last; of one that is missing nothing is known."""
    written: _Written = field(default_factory=lambda: _Written(), init=False, repr=False, compare=False)

    def with_load(self, stream: str, progress: Progress) -> Place:
        return dataclasses.replace(self, loads={**self.loads, stream: progress})

    def with_columns(self, table: TableId, columns: Mapping[str, str]) -> Place:
        return dataclasses.replace(self, columns={**self.columns, str(table): columns})

    def moved(self, lsn: int) -> Place:
        """Every commit below `lsn` is in the bus. Done for each batch."""
        moved = Place(
            self.epoch,
            max(lsn - 1, self.commit),
            max(lsn, self.lsn),
            self.system,
            self.timeline,
            self.slot,
            self.start,
            self.loads,
            self.columns,
            self.publications,
            self.published,
            self.doubt,
            self.lost,
            self.seen,
        )
        object.__setattr__(moved, "written", self.written)
        return moved

    def position(self) -> Position:
        return Position(self.epoch, self.commit, _encoded(self))


class Late(Position):
    """The position behind changes that are yet to be read: its token is asked for once they are durable.

    `place`: what is known of it so far.
    """

    __slots__ = ("_place",)
    _place: Callable[[], Place]

    def __init__(self, place: Callable[[], Place]) -> None:
        now = place()
        object.__setattr__(self, "epoch", now.epoch)
        object.__setattr__(self, "commit", now.commit)
        object.__setattr__(self, "_place", place)

    @property
    def token(self) -> bytes:
        return _encoded(self._place())


def place_of(position: Position, name: str) -> Place:
    """Raises `SourceError` for a token that this version cannot read."""
    try:
        data: dict[str, Any] = json.loads(position.token)
        version = data.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(f"position of `{name}` is not one of PostgreSQL's log", hint=_AGAIN) from error
    if version not in (1, VERSION):
        raise SourceError(f"position of `{name}` is of format {version}, expected {VERSION}", hint=_AGAIN)
    loads = {stream: _progress(item) for stream, item in data.pop("loads").items()}
    seen = {table: Sight(**item) for table, item in data.pop("seen", {}).items()}
    return Place(epoch=position.epoch, commit=position.commit, loads=loads, seen=seen, **data)


_AGAIN = "run the version of Headwater that wrote it, or `headwater repair` to compare every table with its stream"


def _encoded(place: Place) -> bytes:
    written = place.written
    if not written.rest:
        data = _fields(place)
        del data["epoch"], data["commit"], data["lsn"], data["written"]
        data["loads"] = {stream: _fields(progress) for stream, progress in place.loads.items()}
        data["seen"] = {table: _fields(sight) for table, sight in place.seen.items()}
        written.rest = json.dumps(data, separators=(",", ":"))[1:]
    return f'{{"version":{VERSION},"lsn":{place.lsn},{written.rest}'.encode()


def _fields(value: Place | Progress | Sight) -> dict[str, Any]:
    """Without the copies that `dataclasses.asdict` makes: this is done for each batch."""
    return {name: getattr(value, name) for name in value.__slots__}


def _progress(data: dict[str, Any]) -> Progress:
    keys: dict[str, Any] = {
        name: None if (key := data.pop(name)) is None else tuple(key) for name in ("after", "settled")
    }
    told = tuple(data.pop("told", ()))
    return Progress(**data, **keys, told=told)


def lsn_of(text: str) -> int:
    """`16/B374D848` as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def lsn_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
