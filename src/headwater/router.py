"""What one batch of a capture becomes: mapping, plus all that depends on the state of streams.

The mapping is pure; this is the place that knows which streams stand still (their changes are parked), which keys wait
behind the quarantine, and which readings are under way (their rows are staged, and only the difference is appended).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater import loads, waiting
from headwater.contracts.model import Contract
from headwater.errors import BusFull, MappingError, SourceError, StreamStopped
from headwater.kept import Kept
from headwater.mapping.keys import canonical_keys
from headwater.mapping.stream import Mapping
from headwater.model import (
    Batch,
    Changes,
    Cursor,
    Events,
    Mapped,
    Note,
    Op,
    Order,
    Parked,
    Reading,
    Rejected,
    Reload,
    StoredChanges,
    TableId,
    ops_of,
)
from headwater.protocols import Bus

if TYPE_CHECKING:
    from headwater.difference import Difference

HELD_BYTES = 256 * 2**20
"""How many bytes of parked and rejected changes of one stored transaction may be in memory."""

_DELETE = pa.scalar(int(Op.DELETE), pa.int8())
"""Typed: Arrow looks for other packages each time it has to guess the type of a Python number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One stream of a capture."""

    stream: str
    table: TableId
    mapping: Mapping
    contract: Contract
    strict: bool
    """Whether events of a key wait behind a quarantined one (`kind: event`, `order: strict`)."""


@dataclasses.dataclass(slots=True)
class _Collected:
    events: list[Iterable[Events]] = dataclasses.field(default_factory=list)
    rejected: list[Rejected] = dataclasses.field(default_factory=list)
    parked: list[Parked] = dataclasses.field(default_factory=list)
    notes: list[Note] = dataclasses.field(default_factory=list)
    held_bytes: int = 0
    """Of what is parked and rejected."""
    spill: Path | None = None
    live: dict[str, Kept[Events]] = dataclasses.field(default_factory=dict)
    """By stream, events of live changes in this batch, truncates too: what a reading or a truncate later in it compares
    with must hold them before they are in the bus."""

    def mapped(self) -> Mapped:
        return Mapped(chain.from_iterable(self.events), self.rejected, self.parked, self.notes)

    def park(self, parked: Parked) -> None:
        self.parked.append(parked)
        self.held_bytes += parked.changes.data.nbytes

    def reject(self, rejected: Rejected) -> None:
        self.rejected.append(rejected)
        self.held_bytes += rejected.changes.data.nbytes

    def keep(self, events: Events) -> None:
        if events.stream not in self.live:
            self.live[events.stream] = Kept(self.spill)
        self.live[events.stream].add(events)

    def kept(self, stream: str) -> Iterable[Events]:
        return self.live[stream].read() if stream in self.live else ()

    def forget(self) -> None:
        for kept in self.live.values():
            kept.clear()


@dataclasses.dataclass(slots=True)
class _Staged:
    """A reading under way: its rows, and the keys whose rows broke the contract (they are not gone)."""

    difference: Difference
    rejected_keys: set[str]


class Router:
    """Callable as the `mapping` of `pipeline.capture`; for one capture, used by one thread, but for `stop`."""

    def __init__(self, bus: Bus, routes: Iterable[Route], spill: Path) -> None:
        self._bus = bus
        self._routes = {route.stream: route for route in routes}
        self._of_table: dict[TableId, list[Route]] = {}
        for route in self._routes.values():
            self._of_table.setdefault(route.table, []).append(route)
        self._spill = spill
        self._staged: dict[str, _Staged] = {}
        self._broken_off: set[str] = set()
        """Streams that missed a part of the reading under way: the rest of it is worth nothing either."""
        self._owed: set[str] = set()
        self._emptied: dict[str, Cursor] = {}
        """Where the newest truncate of a stream was: what lies before it lives no more."""
        self._stopped = False

    def __call__(self, batch: Batch) -> Mapped:
        out = _Collected(notes=list(batch.notes))
        still = set(self._bus.standing_still())
        if not isinstance(batch.changes, tuple):
            return dataclasses.replace(out.mapped(), events=self._in_pieces(batch.changes, still, out))
        for changes in batch.changes:
            self._take(changes, still, out)
        return out.mapped()

    def _in_pieces(self, stored: StoredChanges, still: set[str], out: _Collected) -> Iterator[Events]:
        """Mapped while the bus takes the events: neither all changes nor all events are in memory at a time."""
        out.spill = self._spill
        try:
            for changes in stored:
                self._take(changes, still, out)
                yield from chain.from_iterable(out.events)
                out.events.clear()
                if not stored.truncates:
                    out.forget()
                if out.held_bytes > HELD_BYTES:
                    raise BusFull(
                        f"one transaction holds more than {HELD_BYTES:,} bytes of changes that cannot be mapped now",
                        hint="`headwater status` says which stream stands still, or whose rows break the contract",
                    )
        finally:
            out.forget()

    def _take(self, changes: Changes, still: set[str], out: _Collected) -> None:
        for route in self._targets(changes):
            if route.stream in still or self._is_broken_off(route, changes):
                self._hold(route, changes, out)
            elif not self._map(route, changes, out):
                still.add(route.stream)

    @property
    def owed(self) -> frozenset[str]:
        """Streams that stood still when a reading came: their rows are read again when the capture begins anew."""
        return frozenset(self._owed)

    def drain(self) -> None:
        """Map what is parked of the streams that were asked to resume; each piece in one atomic step."""
        for stream, state in self._bus.streams().items():
            if state.resuming and stream in self._routes:
                self._drain(self._routes[stream])

    def stop(self) -> None:
        """Make `drain` return before its next piece; from any thread."""
        self._stopped = True

    def close(self) -> None:
        for staged in self._staged.values():
            staged.difference.close()
        self._staged.clear()

    def _drain(self, route: Route) -> None:
        for number, changes in self._bus.parked(route.stream):
            out = _Collected()
            if self._stopped or not self._map(route, changes, out):
                return
            self._bus.settle(out.mapped(), parked=[number])

    def _is_broken_off(self, route: Route, changes: Changes) -> bool:
        return changes.reading is not None and route.stream in self._broken_off

    def _targets(self, changes: Changes) -> list[Route]:
        if changes.stream is not None:
            return [self._routes[changes.stream]] if changes.stream in self._routes else []
        return self._of_table.get(changes.table, [])

    def _map(self, route: Route, changes: Changes, out: _Collected) -> bool:
        """Add what `changes` became to `out`. False: the stream stops here, and `changes` are parked."""
        try:
            events, rejected = route.mapping.apply(changes)
            if route.strict:
                events, rejected = self._behind_quarantine(route, changes, events, (rejected, out))
            if changes.reading is not None:
                rejected = self._stage(route, changes.reading, events, rejected, out)
            else:
                out.events += self._expanded(route, events, out)
        except (StreamStopped, MappingError, SourceError) as error:
            self._bus.pause(route.stream, str(error))
            self._hold(route, changes, out)
            return False
        if rejected is not None:
            out.reject(rejected)
        return True

    def _hold(self, route: Route, changes: Changes, out: _Collected) -> None:
        """Park the changes of a stream that stands still. A reading is not parked but owed: it is made again later."""
        if changes.reading is None:
            out.park(Parked(route.stream, changes))
            return
        if staged := self._staged.pop(route.stream, None):
            staged.difference.close()
        if not changes.reading.last:
            self._broken_off.add(route.stream)
            return
        self._broken_off.discard(route.stream)
        if route.stream not in self._owed:  # noted once: polls may go on for as long as the stream stands still
            self._owed.add(route.stream)
            out.notes.append(loads.reading_owed(self._bus, route.stream, changes.reading.reload))

    def _behind_quarantine(
        self, route: Route, changes: Changes, events: list[Events], found: tuple[Rejected | None, _Collected]
    ) -> tuple[list[Events], Rejected | None]:
        rejected, out = found
        key = route.contract.key
        if not key:
            return events, rejected
        earlier = (part for part in out.rejected if part.stream == route.stream)
        keys = waiting.since(self._bus.waiting_keys(route.stream), *earlier, rejected)
        changes = dataclasses.replace(changes, stream=route.stream)
        passed, held = waiting.hold_back(events, changes, key, keys)
        return passed, waiting.joined(rejected, held)

    # readings

    def _stage(
        self, route: Route, reading: Reading, events: list[Events], rejected: Rejected | None, out: _Collected
    ) -> Rejected | None:
        staged = self._staged.get(route.stream)
        if staged is None:
            staged = self._staged[route.stream] = self._begun(route)
        for part in events:
            staged.difference.add(part)
        if rejected is not None:
            staged.rejected_keys |= set(filter(None, _texts(rejected.reasons.column("key"))))
            rejected = self._not_yet_known(route.stream, rejected)
        if reading.last:
            del self._staged[route.stream]
            out.events.append(self._settled(route, reading, staged, out))
        return rejected

    def _begun(self, route: Route) -> _Staged:
        from headwater.difference import Difference

        state = self._bus.streams()[route.stream]
        return _Staged(Difference(route.contract, self._spill, state=state), set())

    def _settled(self, route: Route, reading: Reading, staged: _Staged, out: _Collected) -> Iterator[Events]:
        """The difference; its first part is computed here and now, so that an error stops this stream alone."""
        before = self._bus.read(route.stream, after=self._alive_since(route.stream), follow=False)
        history = chain(before, out.kept(route.stream))
        found = staged.difference.finish(history, reading)
        key, kept = route.contract.key, staged.rejected_keys
        events = chain.from_iterable(_without_deletes_of(part, key, kept) for part in found)
        try:
            first = list(islice(events, 1))
        except BaseException:
            staged.difference.close()
            raise
        return _closing(chain(first, events), staged.difference)

    def _alive_since(self, stream: str) -> Cursor | None:
        """Where the events begin that say what lives now; None: with the first."""
        since = self._emptied.get(stream)
        if since is None:
            return None
        state = self._bus.streams()[stream]
        return since if since.incarnation == state.incarnation and since.offset >= state.first else None

    def _not_yet_known(self, stream: str, rejected: Rejected) -> Rejected | None:
        """A reading meets the same broken row each time; the quarantine has it once for each thing wrong with it."""
        known = {(row.key, row.field, row.got) for row in self._bus.rejected(stream)}
        names = ("key", "field", "got")
        rows = zip(*(_texts(rejected.reasons.column(name)) for name in names), strict=True)
        fresh = pa.array([row not in known for row in rows], pa.bool_())
        return _filtered(rejected, fresh)

    # truncates

    def _expanded(self, route: Route, events: list[Events], out: _Collected) -> list[Iterable[Events]]:
        """The events, and with `on_truncate: expand` the deletes that each TRUNCATE stands for in its place."""
        found: list[Iterable[Events]] = []
        for part in events:
            start = 0
            for place in self._truncates(route, part):
                found.append([_slice(part, start, place)])
                out.keep(_slice(part, start, place))
                found.append(self._deletes_at(route, _slice(part, place, place + 1), out))
                start = place + 1
            rest = _slice(part, start, len(part)) if start else part
            found.append((rest,))
            if out.spill is None or route.mapping.expands_truncate:
                out.keep(rest)
        return found

    def _truncates(self, route: Route, events: Events) -> list[int]:
        if not route.mapping.expands_truncate or Op.TRUNCATE not in (ops := ops_of(events.data)):
            return []
        return np.flatnonzero(np.frombuffer(ops, np.int8) == int(Op.TRUNCATE)).tolist()

    def _deletes_at(self, route: Route, truncate: Events, out: _Collected) -> Iterator[Events]:
        """A delete of each live key, all at the truncate's own place: there is no room between it and what follows."""
        place = Order(*(truncate.data.column(name)[0].as_py() for name in ("_epoch", "_commit", "_index")))
        nothing = self._begun(route)
        nothing.difference.add(_slice(truncate, 0, 0))
        deletes = self._settled(route, Reading(Reload.DIFFERENCE, place, True), nothing, out)
        out.live[route.stream].clear()
        out.keep(truncate)
        state = self._bus.streams()[route.stream]
        self._emptied[route.stream] = Cursor(state.incarnation, (state.head,))
        return (_placed(part, place) for part in deletes)


def _slice(events: Events, start: int, stop: int) -> Events:
    return dataclasses.replace(events, data=events.data.slice(start, stop - start))


def _placed(events: Events, place: Order) -> Events:
    """All at one place; their ids are told apart by their keys."""
    index = pa.repeat(pa.scalar(place.index, pa.uint32()), len(events))
    data = events.data.set_column(
        events.data.schema.get_field_index("_index"), events.data.schema.field("_index"), index
    )
    return dataclasses.replace(events, data=data, content_ids=True)


def _closing(events: Iterator[Events], difference: Difference) -> Iterator[Events]:
    try:
        yield from events
    finally:
        difference.close()


def _texts(column: pa.Array) -> list[str | None]:
    # Only rows that broke the contract come here: people will read them one by one.
    return list(column.to_pylist())


def _masked(events: Events, mask: pa.Array) -> list[Events]:
    data = events.data.filter(mask)
    return [dataclasses.replace(events, data=data)] if data.num_rows else []


def _without_deletes_of(events: Events, key: tuple[str, ...], kept: set[str]) -> list[Events]:
    """A row that broke the contract is not gone, although the reading lacks it."""
    if not kept:
        return [events]
    deleted = pc.equal(events.data.column("_op"), _DELETE)
    known = pc.is_in(canonical_keys(events.data, key), pa.array(sorted(kept), pa.string()))
    return _masked(events, pc.invert(pc.and_(deleted, known)))


def _filtered(rejected: Rejected, mask: pa.Array) -> Rejected | None:
    data = rejected.changes.data.filter(mask)
    if not data.num_rows:
        return None
    changes = dataclasses.replace(rejected.changes, data=data)
    return Rejected(rejected.stream, changes, rejected.reasons.filter(mask))
