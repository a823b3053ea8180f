"""The manifest of one stream's table: the single place at which a write becomes true.

It names the files that count, in which sequence, and the cursor behind them. A file that it does not name is a
leftover of a crash.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from headwater.errors import SinkError
from headwater.model import Cursor
from headwater.sinks.books import fields_of
from headwater.sinks.placing import WATERMARK
from headwater.sinks.upsert import Table

FORMAT = 1
FOLDER = "_headwater"
NAME = f"{FOLDER}/manifest.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One batch, not yet in a published file. `number` rises for ever."""

    number: int
    rows: int

    @property
    def name(self) -> str:
        """Not `.parquet`: a reader that globs recursively must not take it for a table's file."""
        return f"{FOLDER}/{self.number:012d}.part"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`published`: the files that plain readers see; `guards`: the file of deleted keys."""

    pipeline: str
    sink: str
    stream: str
    mode: str
    soft: bool
    version: int
    key: tuple[str, ...]
    fields: dict[str, str]
    incarnation: str | None = None
    offsets: tuple[int, ...] = ()
    floor: WATERMARK | None = None
    number: int = 0
    """Of the newest part ever written."""
    parts: tuple[Part, ...] = ()
    published: tuple[str, ...] = ()
    guards: str | None = None

    @property
    def cursor(self) -> Cursor | None:
        return None if self.incarnation is None else Cursor(self.incarnation, self.offsets)

    @property
    def files(self) -> list[str]:
        """Every file that counts."""
        guards = [] if self.guards is None else [self.guards]
        return [*self.published, *guards, *(part.name for part in self.parts)]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def owner(self) -> tuple[str, str, str]:
        return self.pipeline, self.sink, self.stream

    def at(self, cursor: Cursor | None) -> Manifest:
        if cursor is None:
            return replace(self, incarnation=None, offsets=())
        return replace(self, incarnation=cursor.incarnation, offsets=cursor.offsets)

    def shaped(self, table: Table) -> Manifest:
        """With the shape of a newer contract."""
        return replace(self, version=table.contract.version, fields=json.loads(fields_of(table.contract)))

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def new_manifest(pipeline: str, sink: str, table: Table) -> Manifest:
    contract = table.contract
    return Manifest(
        pipeline, sink, contract.stream, table.mode, table.soft, contract.version, table.key,
        json.loads(fields_of(contract)),
    )  # fmt: skip


def parsed(data: bytes, where: str) -> Manifest:
    try:
        found: dict[str, Any] = json.loads(data)
        written = found.pop("format")
    except (ValueError, KeyError) as error:
        raise SinkError(f"{where} is damaged: {error}", hint="`headwater sink rebuild` writes it anew") from error
    if written > FORMAT:
        raise SinkError(
            f"{where} was written by a newer Headwater (format {written}, known is {FORMAT})", hint="upgrade Headwater"
        )
    for name in ("key", "offsets", "published"):
        found[name] = tuple(found[name])
    found["parts"] = tuple(Part(**part) for part in found["parts"])
    found["floor"] = None if found["floor"] is None else tuple(found["floor"])
    return Manifest(**found)
