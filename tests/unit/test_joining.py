"""Late joiners: who must join, what rows they get, and where exactly they go on."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from headwater import joining
from headwater.buses.memory import MemoryBus
from headwater.errors import HistoryGone, NotConnected
from headwater.model import Changes, Order, SourceState
from headwater.protocols import StreamState
from tests import mapping_rows
from tests.streams import append, bus_with, events, rows_of


class Trimmed(MemoryBus):
    """As if retention had dropped the beginning."""

    def streams(self) -> dict[str, StreamState]:
        return {name: dataclasses.replace(state, complete=False) for name, state in super().streams().items()}


class Source:
    """A source that shows rows and nothing else."""

    def __init__(self, order: Order | None, changes: tuple[Changes, ...] = ()) -> None:
        self._state = SourceState(order, iter(changes))

    def state(self, stream: str) -> SourceState:
        return self._state


def row(number: int, commit: int, index: int = 0) -> dict[str, object]:
    return {"op": "c", "at": (1, commit, index), "id": number}


def test_only_a_reader_without_a_cursor_of_a_stream_without_its_beginning_must_join() -> None:
    whole, trimmed = bus_with(events([row(1, 1)])), Trimmed()
    trimmed.declare([whole._streams["shop.item"].declaration])
    assert not joining.must_join(whole, "shop.item", None)
    assert joining.must_join(trimmed, "shop.item", None)
    part = next(whole.read("shop.item", after=None, follow=False))
    assert not joining.must_join(trimmed, "shop.item", part.cursor)
    assert not joining.must_join(whole, "shop.none", None)


def test_the_rows_are_the_sources_through_the_mapping_and_broken_ones_are_left_out() -> None:
    fields = {**mapping_rows.FIELDS, "mode": {"type": "string", "enum": ["audit"]}}
    mapping = mapping_rows.mapping({}, mapping_rows.contract(fields=fields))
    after = [{"id": n, "mode": mode, "price": 1.0} for n, mode in ((1, "audit"), (2, "wrong"), (3, "audit"))]
    changes = mapping_rows.changes([mapping_rows.change("r", None, values) for values in after])
    order, found = joining.rows(Source(Order(1, 7), (changes,)), mapping, mapping.stream)  # type: ignore[arg-type]
    assert order == Order(1, 7)
    assert [(r["op"], r["id"]) for part in found for r in rows_of(part)] == [("r", 1), ("r", 3)]


def test_a_source_that_knows_no_place_is_a_refusal_that_says_why() -> None:
    mapping = mapping_rows.mapping()
    with pytest.raises(HistoryGone, match="query capture knows no exact place"):
        joining.rows(Source(None), mapping, mapping.stream)  # type: ignore[arg-type]


def test_the_hand_over_is_behind_the_rows_order_and_not_one_event_more() -> None:
    bus = bus_with(events([row(1, 1), row(2, 2), row(3, 3)]))
    append(bus, events([row(4, 4)]), position=(1, 4))
    cursor = joining.hand_over(bus, "shop.item", "shop/trigger", Order(1, 2, 2**32 - 1))
    rest = [r["id"] for part in bus.read("shop.item", after=cursor, follow=False) for r in rows_of(part)]
    assert rest == [3, 4]


def test_an_event_of_a_lower_order_that_came_late_hides_none_before_it() -> None:
    """A replay from quarantine, or the end of a long reading, while the reader took its rows."""
    bus = bus_with(events([row(1, 1), row(7, 7), row(8, 8), row(2, 2)]))
    append(bus, events([row(9, 9)]), position=(1, 9))
    cursor = joining.hand_over(bus, "shop.item", "shop/trigger", Order(1, 5))
    rest = [r["id"] for part in bus.read("shop.item", after=cursor, follow=False) for r in rows_of(part)]
    assert rest == [7, 8, 2, 9]


def test_the_hand_over_waits_until_the_capture_has_come_so_far() -> None:
    bus = bus_with(events([row(1, 1)]))
    late = threading.Timer(0.1, lambda: append(bus, events([row(2, 5), row(3, 6)]), position=(1, 6)))
    late.start()
    cursor = joining.hand_over(bus, "shop.item", "shop/trigger", Order(1, 5, 2**32 - 1))
    late.join()
    assert [r["id"] for part in bus.read("shop.item", after=cursor, follow=False) for r in rows_of(part)] == [3]


def test_a_capture_that_does_not_come_so_far_is_named() -> None:
    with pytest.raises(HistoryGone, match="did not reach commit 9"):
        joining.hand_over(bus_with(events([row(1, 1)])), "shop.item", "shop/trigger", Order(1, 9), patience=0.05)


def test_a_join_that_waits_gives_up_when_it_is_told_to_stop() -> None:
    """Else SIGTERM would take as long as the patience."""
    told = threading.Event()
    told.set()
    with pytest.raises(NotConnected, match="begins again"):
        joining.hand_over(bus_with(events([row(1, 1)])), "shop.item", "shop/trigger", Order(1, 9), until=told)


def test_positions_are_compared_by_epoch_first() -> None:
    bus = bus_with(events([row(1, 1)]))
    append(bus, events([{"op": "c", "at": (2, 1, 0), "id": 2}]), position=(2, 1))
    cursor = joining.hand_over(bus, "shop.item", "shop/trigger", Order(1, 900))
    assert [r["id"] for part in bus.read("shop.item", after=cursor, follow=False) for r in rows_of(part)] == [2]
