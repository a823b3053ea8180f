"""Replay of quarantined changes: mapped again, oldest first, each appended and taken out in one atomic step.

A fact whose key has a newer event by now is superseded: taken out, not appended. An event of `kind: event` waits for
the earlier ones of its key, unless the stream is `order: relaxed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping.keys import canonical_keys
from headwater.model import Changes, Events, Mapped, Order
from headwater.protocols import Bus, RejectedRow
from headwater.router import Route

PAGE = 500


@dataclasses.dataclass(slots=True)
class Replayed:
    """The numbers of quarantined rows, by what became of them."""

    appended: list[int] = dataclasses.field(default_factory=list)
    superseded: list[int] = dataclasses.field(default_factory=list)
    rejected: list[int] = dataclasses.field(default_factory=list)
    """They break the contract still."""
    waiting: list[int] = dataclasses.field(default_factory=list)
    """Behind an earlier one of their key that is still rejected."""


def replay(bus: Bus, route: Route, numbers: Iterable[int] | None = None) -> Replayed:
    """Map the stream's quarantined rows (None: all) again. Raises `MappingError`."""
    wanted = None if numbers is None else set(numbers)
    rows = [row for row in bus.rejected(route.stream) if wanted is None or row.number in wanted]
    done = Replayed()
    blocked = _left_behind(bus, route, rows) if route.strict else set()
    for start in range(0, len(rows), PAGE):
        _replay_page(bus, route, rows[start : start + PAGE], blocked, done)
    return done


def drop(bus: Bus, numbers: Sequence[int]) -> None:
    """Give up quarantined changes for good."""
    bus.settle(Mapped(), rejected=numbers)


def _left_behind(bus: Bus, route: Route, rows: list[RejectedRow]) -> set[str]:
    """Keys with an earlier quarantined row that is not part of this replay."""
    chosen = {row.number for row in rows}
    last = {row.key: row.order for row in rows}
    return {
        row.key
        for row in bus.rejected(route.stream)
        if row.key is not None and row.number not in chosen and row.key in last and row.order < last[row.key]
    }


def _replay_page(bus: Bus, route: Route, rows: list[RejectedRow], blocked: set[str], done: Replayed) -> None:
    events: list[Events] = []
    taken: list[int] = []
    newest = _newest(bus, route, {row.key for row in rows if row.key is not None})
    for row, changes in zip(rows, bus.rejected_changes([row.number for row in rows]), strict=True):
        if row.key in blocked:
            done.waiting.append(row.number)
            continue
        mapped, rejected = route.mapping.apply(_plain(changes))
        if rejected is not None:
            done.rejected.append(row.number)
            blocked |= {row.key} if route.strict and row.key is not None else set()
            continue
        current = mapped if route.contract.kind == "event" else _not_superseded(mapped, route, newest)
        (done.appended if current or not mapped else done.superseded).append(row.number)
        events += current
        taken.append(row.number)
    if taken:
        bus.settle(Mapped(events), rejected=taken)


def _plain(changes: Changes) -> Changes:
    return dataclasses.replace(changes, reading=None)


def _newest(bus: Bus, route: Route, keys: set[str]) -> dict[str, Order]:
    """The newest order of each of these keys in the stream."""
    found: dict[str, Order] = {}
    if route.contract.kind == "event" or not keys:
        return found
    wanted = pa.array(sorted(keys), pa.string())
    for events in bus.read(route.stream, after=None, follow=False):
        texts = canonical_keys(events.data, route.contract.key)
        mask = pc.is_in(texts, wanted)
        for key, order in zip(texts.filter(mask).to_pylist(), _orders(events.data.filter(mask)), strict=True):
            found[key] = max(order, found.get(key, order))
    return found


def _not_superseded(events: list[Events], route: Route, newest: dict[str, Order]) -> list[Events]:
    kept = []
    for part in events:
        keys = canonical_keys(part.data, route.contract.key).to_pylist()
        flags = [newest.get(key, order) <= order for key, order in zip(keys, _orders(part.data), strict=True)]
        data = part.data.filter(pa.array(flags, pa.bool_()))
        if data.num_rows:
            kept.append(dataclasses.replace(part, data=data))
    return kept


def _orders(data: pa.RecordBatch) -> list[Order]:
    columns = (data.column(name).to_pylist() for name in ("_epoch", "_commit", "_index"))
    return [Order(*place) for place in zip(*columns, strict=True)]
