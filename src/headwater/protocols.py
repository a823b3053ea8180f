"""The three protocols that adapters implement. The promises are in the docstrings; nothing else may be relied upon.

An adapter neither retries nor reconnects nor batches: it raises `NotConnected` and the framework starts it again.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import pyarrow as pa

from headwater.config import StreamConfig
from headwater.contracts.model import Contract
from headwater.errors import SourceError
from headwater.model import (
    Batch,
    Changes,
    Cursor,
    Events,
    Mapped,
    Note,
    Order,
    Position,
    Reload,
    SourceState,
    TableId,
)


@dataclass(frozen=True, slots=True)
class Load:
    """Which rows a stream begins with. A source carries out each `token` once, and keeps it in its position."""

    token: str
    reload: Reload | None = None
    """None: the stream is empty and rows go straight to the bus, chunk by chunk, resumable. Else see `Reading`."""
    skip: bool = False
    """`initial: none`: only what changes from now on."""
    where: str | None = None
    """SQL over the table's columns: which rows (a backfill). Only without `reload`."""
    earlier: tuple[Load, ...] = ()
    """What a backfill was asked for behind, oldest first: the one of them that is not finished yet goes before it.

    Of pattern `log` alone, as `where` is: others are asked for a complete reading (`Reload.REBUILD`), which stands for
    whatever load it replaces.
    """


@dataclass(frozen=True, slots=True)
class Capture:
    """What a source is to capture for one stream: internal names only."""

    stream: str
    table: TableId
    columns: tuple[str, ...]
    """The columns that the mapping reads (all others stay in the database), the key's included."""
    key: tuple[str, ...]
    """The columns that identify a row; () for a table without a key."""
    config: StreamConfig
    load: Load = field(default_factory=lambda: Load("initial"))
    kind: str = "fact"
    """The contract's: `fact` or `event`."""
    whole: tuple[str, ...] = ()
    """The columns that each change must carry, because a `where`, key or expression reads them."""
    identifying: tuple[str, ...] = ()
    """Those that the event's key is made from: a delete must carry them too."""


class Source(Protocol):
    """A database under capture by one pattern. Made by `plugins`; used by one thread, but for `stop`."""

    name: str
    """Unique in the pipeline; positions are stored under it."""

    @property
    def broken(self) -> Mapping[str, SourceError]:
        """Streams that cannot be captured for now, each with its reason, while `read` goes on with the others."""

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        """Yield every change that committed after `after`, once, in commit order.

        `None` means: carry out each capture's load, then go on, without a gap. With `follow` it never ends; without,
        it ends once everything that had committed when it was called has been yielded (a place, not a time).
        An empty batch only moves the position. Positions rise. Whatever was yielded but not appended is yielded
        again, the same, after a restart (query capture: as the source shows it then).
        Raises `NotConnected` when the source is away, `GapError` when changes are lost, `SourceError` otherwise.
        """

    def confirm(self, position: Position) -> None:
        """Let the source forget what came at or before `position`. Called only after the bus made it durable."""

    def state(self, stream: str) -> SourceState:
        """The rows that feed `stream` now, as READ changes; on a connection of its own, beside a running `read`."""

    def stop(self) -> None:
        """Make `read` return at its next step; from any thread, at any time."""

    def close(self) -> None:
        """Give back connections; what the source made in the database stays."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What a source keeps for a capture, in bytes of its log, as the source itself says."""

    behind: int
    """Written since the place up to which everything is on the bus; changes of other tables too."""
    kept: int
    """What it cannot give up yet."""
    text: str
    """The same in a sentence, with what is wrong, if anything is."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What an adapter gives, from strongest to weakest; `weakest` joins hops."""

    delivery: str
    """exactly_once | at_least_once | best_effort"""
    changes: str = "every"
    """every | latest"""
    deletes: str = "seen"
    """seen | unseen"""
    notes: tuple[str, ...] = ()
    """What it cannot see, in whole sentences, for `status` and `doctor`."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the appender says of a stream at its start."""

    contract: Contract
    source: str
    """The name of the capture that feeds it: a new one raises the stream's epoch."""
    fingerprint: str
    """Of the mapping; stored, so that a change of it is seen."""
    groups: frozenset[str] = frozenset()
    """The sinks and consumers that retention waits for."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a bus knows of one stream. `first` and `head` are offsets: of the oldest event kept, and of the next one."""

    stream: str
    incarnation: str
    contract_version: int
    source: str
    fingerprint: str
    epoch: int
    """The highest epoch among its events; 0 when there are none."""
    order: Order | None
    """Of the newest event by order."""
    first: int
    head: int
    nbytes: int
    complete: bool
    """Whether it holds, in full or compacted, everything since its beginning: its fold is the whole state."""
    last_append: datetime.datetime | None
    paused: str | None
    """The reason why it stands still; None while it flows."""
    resuming: bool
    parked: int
    parked_bytes: int
    rejected: int
    groups: tuple[str, ...]
    """The declared groups."""


@dataclass(frozen=True, slots=True)
class PlacedNote:
    note: Note
    offset: int
    time: datetime.datetime


@dataclass(frozen=True, slots=True)
class GroupState:
    cursor: Cursor | None
    committed: datetime.datetime | None
    declared: bool


@dataclass(frozen=True, slots=True)
class RejectedRow:
    number: int
    stream: str
    source: str
    order: Order
    key: str | None
    """Canonical JSON: an object of the key fields, sorted, no spaces."""
    field: str
    expected: str
    got: str
    time: datetime.datetime


class Bus(Protocol):
    """Where streams live. One process appends; any number read and commit cursors."""

    def position(self, source: str) -> Position | None:
        """The position of the last append of `source`, read from durable storage."""

    def positions(self) -> dict[str, Position]:
        """Of every source that ever appended."""

    def forget(self, source: str) -> None:
        """Delete a source's position (`destroy`, a source that is gone)."""

    def append(self, mapped: Mapped, *, source: str, position: Position) -> None:
        """Make events, rejected and parked changes, notes **and** the position durable in one atomic step.

        On return it survives kill -9 and power loss; on an exception nothing of it will ever be seen. Readers see all
        of it or nothing. Events of a stream get dense offsets in the sequence given. The position's token is asked for
        once all events were taken, not before. Raises `BusFull` before anything is dropped.
        """

    def read(self, stream: str, *, after: Cursor | None, follow: bool, limit: int | None = None) -> Iterator[Events]:
        """Yield the events behind `after` in offset order, each with `after`, `cursor` and `offsets` set.

        `None` starts at the oldest kept. With `follow` it waits for more; without, it ends at the head seen when it was
        called. `limit` bounds the events in one yield. Raises `CursorMismatch` for a cursor of another incarnation,
        `HistoryGone` for one below what is kept.
        """

    def cursor(self, group: str, stream: str) -> Cursor | None:
        """What `group` last committed."""

    def commit(self, group: str, stream: str, cursor: Cursor) -> None:
        """Make a group's cursor durable. Retention may then drop what every declared group has passed."""

    def maintain(self, budget: float = 0.05) -> bool:
        """Housekeeping (retention, merging) for about `budget` seconds; by the appender. True: there is more to do."""

    def stop(self) -> None:
        """Make every `read` that follows return; from any thread."""

    def close(self) -> None: ...

    # what streams there are

    def declare(self, streams: Sequence[Declaration]) -> None:
        """Make streams that do not exist yet and store what changed of the others; by the appender, at its start.

        A stream that is no longer declared stays readable and keeps its groups; nothing is dropped.
        """

    def streams(self) -> dict[str, StreamState]:
        """Every stream on the bus, declared or not, by name."""

    def standing_still(self) -> frozenset[str]:
        """The streams that are paused, or resuming; asked for with each batch."""

    def notes(self, stream: str) -> list[PlacedNote]:
        """What was noted of a stream, oldest first."""

    def drop(self, stream: str) -> None:
        """Delete a stream and all that hangs on it. Made again, it is a new incarnation."""

    def groups(self, stream: str) -> dict[str, GroupState]:
        """The groups that have committed a cursor or are declared."""

    def release(self, group: str, stream: str | None = None) -> None:
        """Forget a group, so that retention no longer waits for it."""

    def offset_after(self, stream: str, order: Order) -> int:
        """The first offset whose event has an order above `order`; the head if there is none.

        Events of lower orders may lie behind it (a replay, a reading): a reader that joins there gets them again.
        """

    def offset_at(self, stream: str, time: datetime.datetime) -> int:
        """The first offset whose event was appended, or committed at its source, at or after `time`."""

    # streams that stand still

    def pause(self, stream: str, reason: str) -> None:
        """From now on the stream's changes are parked. Takes effect at the appender's next append, from any process."""

    def resume(self, stream: str) -> None:
        """Ask the appender to map what is parked and go on. Any process."""

    def parked(self, stream: str) -> Iterator[tuple[int, Changes]]:
        """What is parked, in the order in which it came, each with its number."""

    def rejected(self, stream: str | None = None) -> Iterator[RejectedRow]:
        """The quarantine: one row a rejected change, oldest first."""

    def rejected_changes(self, numbers: Sequence[int]) -> list[Changes]:
        """The original changes of quarantined rows, one row each, in the sequence asked for."""

    def waiting_keys(self, stream: str) -> frozenset[str]:
        """The keys (canonical JSON) that have a row in quarantine."""

    def settle(self, mapped: Mapped, *, parked: Sequence[int] = (), rejected: Sequence[int] = ()) -> None:
        """Append `mapped` and remove these parked or rejected changes, in one atomic step (resume, replay, drop)."""


@dataclass(frozen=True, slots=True)
class SinkState:
    """A sink's rows of one stream and the cursor that they stand at, read in one transaction.

    Record batches of `_epoch`, `_commit`, `_index` and the contract's fields (mode `current`: live rows only, one a
    key; mode `history`: every event, with `_op`).
    """

    cursor: Cursor | None
    rows: Iterator[pa.RecordBatch]


@runtime_checkable
class Sink(Protocol):
    """A store that streams are written into. One thread per sink; independent of every other sink."""

    name: str
    guarantee: Guarantee

    def prepare(self, contract: Contract) -> None:
        """Make what the stream needs in the target, or add what a newer version added. Never drops a column."""

    def cursor(self, stream: str) -> Cursor | None:
        """How far the target has come, as the target itself says. None: nothing was ever written.

        A sink that cannot store a cursor returns None always; the bus's cursor for the group is then used.
        """

    def write(self, events: Events) -> None:
        """Make `events` durable in the target, with `events.cursor`, in one transaction where it has one.

        Idempotent. A row from a later order is never overwritten by an earlier one; `_unchanged` columns are left
        alone. The cursor moves by compare-and-set from `events.after`; if another writer was faster: `CursorMismatch`.
        """

    def move(self, stream: str, cursor: Cursor | None) -> None:
        """Set the cursor by decree (`rewind`, a late joiner's snapshot). None forgets it."""

    def clear(self, stream: str) -> None:
        """Drop the stream's rows and cursor (`rebuild`)."""

    def state(self, stream: str) -> SinkState:
        """What `verify` compares; from a read of the target that shares nothing with `write`'s caches."""

    def close(self) -> None: ...
