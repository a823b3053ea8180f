"""What one batch of a capture becomes: mapping, plus all that depends on the state of streams.

The mapping is pure; this is the place that knows which streams stand still (their changes are parked), which keys wait
behind the quarantine, and which readings are under way (their rows are staged, and only the difference is appended).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from headwater import loads
from headwater.contracts.model import Contract
from headwater.difference import Difference
from headwater.errors import MappingError, SourceError, StreamStopped
from headwater.mapping.keys import canonical_keys
from headwater.mapping.stream import StreamMapping
from headwater.model import (
    REASONS,
    Batch,
    Changes,
    Events,
    Mapped,
    Note,
    Op,
    Order,
    Parked,
    Reading,
    Rejected,
    Reload,
    TableId,
)
from headwater.protocols import Bus

_TRUNCATE, _DELETE = (pa.scalar(int(op), pa.int8()) for op in (Op.TRUNCATE, Op.DELETE))
"""Typed: Arrow looks for other packages each time it has to guess the type of a Python number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One stream of a capture."""

    stream: str
    table: TableId
    mapping: StreamMapping
    contract: Contract
    strict: bool
    """Whether events of a key wait behind a quarantined one (`kind: event`, `order: strict`)."""


@dataclasses.dataclass(slots=True)
class _Collected:
    events: list[Iterable[Events]] = dataclasses.field(default_factory=list)
    rejected: list[Rejected] = dataclasses.field(default_factory=list)
    parked: list[Parked] = dataclasses.field(default_factory=list)
    notes: list[Note] = dataclasses.field(default_factory=list)
    live: list[Events] = dataclasses.field(default_factory=list)
    """Events of live changes in this batch: a reading that ends here must see them before they are in the bus."""

    def mapped(self, batch: Batch | None = None) -> Mapped:
        notes = (*self.notes, *(batch.notes if batch is not None else ()))
        return Mapped(chain.from_iterable(self.events), tuple(self.rejected), tuple(self.parked), notes)


@dataclasses.dataclass(slots=True)
class _Staged:
    """A reading under way: its rows, and the keys whose rows broke the contract (they are not gone)."""

    difference: Difference
    rejected_keys: set[str]


class Router:
    """Callable as the `mapping` of `pipeline.capture`; for one capture, used by one thread."""

    def __init__(self, bus: Bus, routes: Iterable[Route], spill: Path) -> None:
        self._bus = bus
        self._routes = {route.stream: route for route in routes}
        self._spill = spill
        self._staged: dict[str, _Staged] = {}

    def __call__(self, batch: Batch) -> Mapped:
        out = _Collected()
        still = self._standing_still()
        for changes in batch.changes:
            for route in self._targets(changes):
                if route.stream in still:
                    self._hold(route, changes, out)
                elif not self._map(route, changes, out):
                    still.add(route.stream)
        return out.mapped(batch)

    def drain(self) -> None:
        """Map what is parked of the streams that were asked to resume; each piece in one atomic step."""
        for stream, state in self._bus.streams().items():
            if state.resuming and stream in self._routes:
                self._drain(self._routes[stream])

    def close(self) -> None:
        for staged in self._staged.values():
            staged.difference.close()
        self._staged.clear()

    def _drain(self, route: Route) -> None:
        for number, changes in self._bus.parked(route.stream):
            out = _Collected()
            if not self._map(route, changes, out):
                return
            self._bus.settle(out.mapped(), parked=[number])

    def _standing_still(self) -> set[str]:
        return {name for name, state in self._bus.streams().items() if state.paused is not None or state.resuming}

    def _targets(self, changes: Changes) -> list[Route]:
        if changes.stream is not None:
            return [self._routes[changes.stream]] if changes.stream in self._routes else []
        return [route for route in self._routes.values() if route.table == changes.table]

    def _map(self, route: Route, changes: Changes, out: _Collected) -> bool:
        """Add what `changes` became to `out`. False: the stream stops here, and `changes` are parked."""
        try:
            events, rejected = route.mapping.apply(changes)
            if route.strict:
                events, rejected = self._behind_quarantine(route, changes, events, rejected)
            if changes.reading is not None:
                rejected = self._stage(route, changes.reading, events, rejected, out)
            else:
                out.live += events
                out.events.append(self._expanded(route, events))
        except (StreamStopped, MappingError, SourceError) as error:
            self._bus.pause(route.stream, str(error))
            self._hold(route, changes, out)
            return False
        if rejected is not None:
            out.rejected.append(rejected)
        return True

    def _hold(self, route: Route, changes: Changes, out: _Collected) -> None:
        """Park the changes of a stream that stands still. A reading is not parked but owed: it is made again later."""
        if changes.reading is None:
            out.parked.append(Parked(route.stream, changes))
            return
        if staged := self._staged.pop(route.stream, None):
            staged.difference.close()
        if changes.reading.last:
            out.notes.append(loads.reading_owed(self._bus, route.stream))

    # events that wait

    def _behind_quarantine(
        self, route: Route, changes: Changes, events: list[Events], rejected: Rejected | None
    ) -> tuple[list[Events], Rejected | None]:
        waiting = set(self._bus.waiting_keys(route.stream))
        if rejected is not None:
            waiting |= set(_texts(rejected.reasons.column("key")))
        if not waiting or not route.contract.key:
            return events, rejected
        passed, held = _split(events, route.contract.key, waiting)
        return passed, _joined(rejected, _waiting(route, changes, held)) if held else rejected

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
            staged.rejected_keys |= set(_texts(rejected.reasons.column("key")))
            rejected = self._not_yet_known(route.stream, rejected)
        if reading.last:
            del self._staged[route.stream]
            live = [part for part in out.live if part.stream == route.stream]
            out.events.append(self._settled(route, reading, staged, live))
        return rejected

    def _begun(self, route: Route) -> _Staged:
        state = self._bus.streams()[route.stream]
        return _Staged(Difference(route.contract, self._spill, state=state), set())

    def _settled(
        self, route: Route, reading: Reading, staged: _Staged, live: Iterable[Events] = ()
    ) -> Iterator[Events]:
        """The difference; its first part is computed here and now, so that an error stops this stream alone."""
        history = chain(self._bus.read(route.stream, after=None, follow=False), live)
        found = staged.difference.finish(history, reading)
        key, kept = route.contract.key, staged.rejected_keys
        events = chain.from_iterable(_without_deletes_of(part, key, kept) for part in found)
        try:
            first = list(islice(events, 1))
        except BaseException:
            staged.difference.close()
            raise
        return _closing(chain(first, events), staged.difference)

    def _not_yet_known(self, stream: str, rejected: Rejected) -> Rejected | None:
        """A reading meets the same broken row each time; the quarantine has it once for each thing wrong with it."""
        known = {(row.key, row.field, row.got) for row in self._bus.rejected(stream)}
        names = ("key", "field", "got")
        rows = zip(*(_texts(rejected.reasons.column(name)) for name in names), strict=True)
        fresh = pa.array([row not in known for row in rows], pa.bool_())
        return _filtered(rejected, fresh)

    def _expanded(self, route: Route, events: list[Events]) -> Iterator[Events]:
        """`on_truncate: expand`: the deletes that a TRUNCATE stands for."""
        for part in events:
            place = pc.index(part.data.column("_op"), _TRUNCATE).as_py()
            if place < 0 or not route.mapping.expands_truncate:
                yield part
                continue
            row = part.data.slice(place, 1)
            since = Order(*(row.column(name)[0].as_py() for name in ("_epoch", "_commit", "_index")))
            empty = self._begun(route)
            empty.difference.add(dataclasses.replace(part, data=part.data.slice(0, 0)))
            yield from self._settled(route, Reading(Reload.DIFFERENCE, since, True), empty)


def _closing(events: Iterator[Events], difference: Difference) -> Iterator[Events]:
    try:
        yield from events
    finally:
        difference.close()


def _texts(column: pa.Array) -> list[str]:
    # Only rows that broke the contract come here: people will read them one by one.
    return list(map(str, column.to_pylist()))


def _split(events: list[Events], key: tuple[str, ...], waiting: set[str]) -> tuple[list[Events], list[Events]]:
    passed, held = [], []
    for part in events:
        mask = pc.is_in(canonical_keys(part.data, key), pa.array(sorted(waiting), pa.string()))
        held += _masked(part, mask)
        passed += _masked(part, pc.invert(mask))
    return passed, held


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


def _waiting(route: Route, changes: Changes, held: list[Events]) -> Rejected:
    """The original changes of events that must wait for an earlier event of their key."""
    places = {
        (commit, index - index % 2): key
        for part in held
        for commit, index, key in zip(
            part.data.column("_commit").to_pylist(),
            part.data.column("_index").to_pylist(),
            canonical_keys(part.data, route.contract.key).to_pylist(),
            strict=True,
        )
    }
    rows = zip(changes.data.column("_commit").to_pylist(), changes.data.column("_index").to_pylist(), strict=True)
    keys = [places.get(place) for place in rows]
    mask = pa.array([key is not None for key in keys], pa.bool_())
    reasons = [
        {"field": "", "expected": "no earlier event of this key in quarantine", "got": "it waits", "key": key}
        for key in keys
        if key is not None
    ]
    data = changes.data.filter(mask)
    return Rejected(
        route.stream, dataclasses.replace(changes, data=data), pa.RecordBatch.from_pylist(reasons, schema=REASONS)
    )


def _joined(first: Rejected | None, second: Rejected) -> Rejected:
    if first is None:
        return second
    rows = pa.Table.from_batches([first.changes.data, second.changes.data]).combine_chunks().to_batches()[0]
    reasons = pa.Table.from_batches([first.reasons, second.reasons]).combine_chunks().to_batches()[0]
    return Rejected(first.stream, dataclasses.replace(first.changes, data=rows), reasons)


def _filtered(rejected: Rejected, mask: pa.Array) -> Rejected | None:
    data = rejected.changes.data.filter(mask)
    if not data.num_rows:
        return None
    changes = dataclasses.replace(rejected.changes, data=data)
    return Rejected(rejected.stream, changes, rejected.reasons.filter(mask))
