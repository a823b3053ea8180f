"""Where the trigger pattern is to be resumed, as the token of a `Position`: versioned JSON.

`Identity` tells a database from a restored copy, a promoted replica or another one (F3, F83): there the transactions
that the snapshot speaks of are others.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headwater.drivers.postgres import execute
from headwater.errors import SourceError
from headwater.model import Position
from headwater.sources.trigger_postgres.snapshots import Snapshot, snapshot_of

if TYPE_CHECKING:
    import psycopg

FORMAT = 1


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """How far one stream's load has come."""

    token: str
    table: str
    state: str
    start: int = 0
    """The number that it was begun at: a repair of the table above it is news to the stream."""
    since: str = ""
    """The snapshot at its beginning: rows that later transactions wrote are left to the stream."""
    files: dict[str, int] = field(default_factory=dict)
    """Leaf -> the file that it was stored in at the beginning. A rewritten table has its rows in other places."""
    rewritten: tuple[str, ...] = ()
    """Leaves that were rewritten since, whose rows are all read."""
    leaf: int = 0
    """The leaf that is being read; those with lower oids are done."""
    page: int = 0
    """The next page of it."""
    count: int = 0
    """Rows read so far."""
    again: bool = False
    """The stream could not be captured for a while, and the position went on without it."""
    reload: str = ""
    """Of a reading: how its rows are to be taken."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is not read to its end: what `upto` sees and the place's snapshot does not, in order of numbers.

    `last`, `id`: of the last change that was read: the last number of its transaction, and its own. `index`: the next.
    """

    upto: Snapshot
    last: int = 0
    id: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Everything that `snapshot` sees is in the bus, under commits up to `commit`."""

    identity: str
    epoch: int
    commit: int
    snapshot: Snapshot
    step: Step | None = None
    loads: dict[str, StreamLoad] = field(default_factory=dict)

    def position(self) -> Position:
        token: dict[str, Any] = {
            "v": FORMAT,
            "identity": self.identity,
            "snapshot": str(self.snapshot),
            "loads": {name: _compact(load) for name, load in self.loads.items()},
        }
        if self.step is not None:
            token["step"] = [str(self.step.upto), self.step.last, self.step.id, self.step.index]
        return Position(self.epoch, self.commit, json.dumps(token, separators=(",", ":")).encode())

    def with_load(self, stream: str, load: StreamLoad) -> Place:
        return dataclasses.replace(self, loads={**self.loads, stream: load})


def place_of(position: Position) -> Place:
    token = json.loads(position.token)
    if token.get("v") != FORMAT:
        raise SourceError(
            f"the position of a trigger capture has format {token.get('v')}; this version knows {FORMAT}",
            hint="run the version of Headwater that wrote it, or a newer one",
        )
    loads = {
        name: StreamLoad(**{**load, "rewritten": tuple(load.get("rewritten", ()))})
        for name, load in token["loads"].items()
    }
    step = None
    if "step" in token:
        upto, last, number, index = token["step"]
        step = Step(snapshot_of(upto), last, number, index)
    return Place(token["identity"], position.epoch, position.commit, snapshot_of(token["snapshot"]), step, loads)


def _compact(load: StreamLoad) -> dict[str, Any]:
    values = dataclasses.asdict(load)
    return {key: value for key, value in values.items() if value or key in ("token", "table", "state")}


_IDENTITY = """
SELECT (SELECT d.oid::text FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()),
  CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'replica'
       ELSE left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) END,
  pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
"""


def identity_of(connection: psycopg.Connection, incarnation: str) -> str:
    """Of the database as this position may speak of it: system, timeline, database and our own tables.

    The system's identifier is left out where the role may not ask for it.
    """
    ((database, timeline, may_ask),) = execute(connection, _IDENTITY)
    if timeline == "replica":
        raise SourceError(
            "the server is a replica: triggers fire where the rows are written", hint="give the primary's address"
        )
    system = ""
    if may_ask:
        ((system,),) = execute(connection, "SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
    return f"{system}/{timeline}/{database}/{incarnation}"
