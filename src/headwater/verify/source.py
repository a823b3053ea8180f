"""A stream against the database that feeds it: the rows of one reading, mapped, and the fold at the same place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.model import Contract
from headwater.model import Changes, Events, Op, Order, Position, Rejected
from headwater.protocols import Bus, Source, StreamState
from headwater.verify.comparison import EXAMPLES, Comparison, KeyDifference, Keys, incomparable
from headwater.verify.differences import Excuses, classify, find
from headwater.verify.tables import Tables, Workspace, quoted

_GLANCE = 0.05


class Applies(Protocol):
    """The part of a stream's mapping that is needed: changes to events, and what breaks the contract."""

    def apply(self, changes: Changes) -> tuple[list[Events], Rejected | None]: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """How a comparison with a source goes on. `wait`: seconds until a running pipeline must have caught up, 0 where
    none runs; `progress` hears, while it waits, how far the bus is behind.
    """

    wait: float = 0.0
    deletes_seen: bool = True
    progress: Callable[[str], None] = lambda text: None
    workspace: Workspace = field(default_factory=Workspace)


def verify_source(
    bus: Bus, stream: str, contract: Contract, source: Source, mapping: Applies, *, terms: Terms | None = None
) -> Comparison:
    """Compare the stream's fold with the database.

    With a source that knows the place of its reading, at exactly that place: both may go on meanwhile. With one that
    does not (query capture), keys that differ are read again until they are stable: `unsettled` is what was not.
    """
    terms = terms or Terms()
    against = f"source {source.name}"
    known = bus.streams().get(stream)
    if reason := _why_not(known, contract):
        return incomparable(stream, against, reason)
    with terms.workspace.tables(contract) as tables:
        return _Reader(bus, source, mapping, terms, tables).compared(Comparison(stream, against))


def _why_not(known: StreamState | None, contract: Contract) -> str:
    if known is None:
        return "the stream is not on the bus"
    if contract.kind == "event":
        return "what happened is not a state of rows: only a stream of facts can be compared with its database"
    if not known.complete:
        return f"the stream is kept from offset {known.first} on only, so that its fold is not the whole state"
    if known.paused is not None or known.parked:
        return f"the stream stands still ({known.paused or 'resuming'}), {known.parked} changes are parked"
    return ""


class _Reader:
    """One comparison: reads both sides, once or until they are stable."""

    def __init__(self, bus: Bus, source: Source, mapping: Applies, terms: Terms, tables: Tables) -> None:
        self.bus = bus
        self.source = source
        self.mapping = mapping
        self.terms = terms
        self.tables = tables
        self.deadline = time.monotonic() + terms.wait
        self.refused: set[str] = set()

    def compared(self, comparison: Comparison) -> Comparison:
        order = self._read_source(comparison.stream)
        if order is None:
            return self._until_stable(comparison)
        if behind := self._wait_for(order):
            return incomparable(comparison.stream, comparison.against, behind)
        self._read_stream(comparison, order)
        comparison.at = f"{order.epoch}/{order.commit}"
        return self._classified(comparison)

    # the two sides

    def _read_source(self, stream: str) -> Order | None:
        state = self.source.state(stream)
        self.tables.load_rows(self._mapped(state.changes))
        return state.order

    def _mapped(self, changes: Iterator[Changes]) -> Iterator[pa.RecordBatch]:
        for part in changes:
            events, rejected = self.mapping.apply(part)
            if rejected is not None:
                keys = rejected.reasons.column("key").drop_null()
                self.refused.update(keys.to_pylist())
            for mapped in events:
                deleted = pc.equal(mapped.data.column("_op"), Op.DELETE.value)
                yield mapped.data.filter(pc.invert(deleted))

    def _read_stream(self, comparison: Comparison, order: Order | None) -> None:
        self.tables.read(self.bus, comparison.stream)
        self.tables.upto = order
        find(self.tables, comparison, rows_are_source=True)

    def _classified(self, comparison: Comparison) -> Comparison:
        waiting = self.bus.waiting_keys(comparison.stream)
        mappings = [note.offset for note in self.bus.notes(comparison.stream) if note.note.kind == "mapping"]
        excuses = Excuses(
            waiting=frozenset(waiting),
            refused=frozenset(self.refused),
            mapped_from=max(mappings, default=0),
            extra_deletes=not self.terms.deletes_seen,
        )
        met = classify(self.tables, comparison, excuses)
        for key in sorted(self.refused - met):  # neither in the stream nor a row that could be
            _add(comparison.quarantined if key in waiting else comparison.refused, key)
        return comparison

    # waiting for the pipeline

    def _wait_for(self, order: Order) -> str:
        """ "" once the bus holds everything up to `order`, else how far it is behind at the deadline."""
        return self._poll(partial(_behind, order))

    def _poll(self, behind: Callable[[Position | None], str]) -> str:
        while True:
            text = behind(self.bus.position(self.source.name))
            if not text or time.monotonic() >= self.deadline:
                return text
            self.terms.progress(text)
            time.sleep(_GLANCE)

    def _until_stable(self, comparison: Comparison) -> Comparison:
        """While something differs and a pipeline runs: let it poll twice, then read both sides again.

        One poll may have begun before the reading; the second cannot have. A key differs for certain once the database
        has shown the same row before and after that; what keeps changing stays `unsettled`.
        """
        self._read_stream(comparison, None)
        comparison.at = "now"
        if not self.terms.wait and self._found():
            comparison.reason = "no pipeline runs: what changed since its last poll looks like a difference"
        elif self._found():
            comparison = self._read_again(comparison)
        return self._classified(comparison)

    def _read_again(self, comparison: Comparison) -> Comparison:
        self._unsettle("true")
        while self._found("_class = 'unsettled'"):
            self.tables.db.execute("CREATE OR REPLACE TABLE earlier AS FROM found")
            if self._poll(partial(_polls_to_go, self.bus.position(self.source.name))):
                comparison.reason = f"what is unsettled had not seen two more polls after {self.terms.wait:g} s"
                break
            comparison = Comparison(comparison.stream, comparison.against, at="now")
            self.tables.forget_rows()
            self._read_source(comparison.stream)
            self._read_stream(comparison, None)
            self._unsettle(self._not_as("earlier"))
        return comparison

    def _unsettle(self, condition: str) -> None:
        self.tables.db.execute(f"UPDATE found SET _class = 'unsettled' WHERE {condition}")

    def _found(self, condition: str = "true") -> bool:
        return bool(self.tables.one(f"SELECT count(*) FROM found WHERE {condition}"))

    def _not_as(self, earlier: str) -> str:
        """The condition that a key's row in the database is another one than in an earlier reading."""
        keys = " AND ".join(f"e.{quoted(n)} = found.{quoted(n)}" for n in self.tables.identity)
        return f"NOT EXISTS (FROM {earlier} e WHERE {keys} AND e.source IS NOT DISTINCT FROM found.source)"


def _add(keys: Keys, key: str) -> None:
    keys.count += 1
    if len(keys.examples) < EXAMPLES:
        keys.examples.append(KeyDifference(json.loads(key), None, None))


def _behind(order: Order, position: Position | None) -> str:
    if position is None:
        return "behind: nothing was captured yet"
    if (position.epoch, position.commit) >= (order.epoch, order.commit):
        return ""
    if position.epoch == order.epoch:
        return f"behind by {order.commit - position.commit}: captured up to {position.commit} of {order.commit}"
    return f"behind: captured in epoch {position.epoch}, the database is in epoch {order.epoch}"


def _polls_to_go(seen: Position | None, position: Position | None) -> str:
    done = position.commit - (seen.commit if seen is not None else 0) if position is not None else 0
    return "" if done >= 2 else f"waiting for {2 - done} polls"
