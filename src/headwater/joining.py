"""Readers that come too late: the beginning of the stream is gone, so they get the source's rows, for themselves alone.

The hand-over is exact: the rows stand at an order of the source, and the reader goes on at the first offset behind it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

from headwater.errors import HistoryGone, NotConnected
from headwater.mapping.stream import Mapping
from headwater.model import Cursor, Events, Order
from headwater.protocols import Bus, Source

PATIENCE = 60.0
"""Seconds to wait until the bus has reached the rows' order."""


def must_join(bus: Bus, stream: str, cursor: Cursor | None) -> bool:
    """Whether a reader at `cursor` (None: at the beginning) has missed events that are kept no more."""
    state = bus.streams().get(stream)
    return state is not None and cursor is None and not state.complete


def rows(source: Source, mapping: Mapping, stream: str) -> tuple[Order, Iterator[Events]]:
    """The source's rows as events of `stream`, and the order that they stand at. Raises `HistoryGone` if there is none.

    Rows that break the contract are left out: they are in quarantine already.
    """
    state = source.state(stream)
    if state.order is None:
        raise HistoryGone(
            f"stream {stream}: its beginning is no longer kept, and query capture knows no exact place to join at",
            hint="keep history (`retention: forever` or `compacted`), or capture the table by trigger or log",
        )
    return state.order, (events for changes in state.changes for events in mapping.apply(changes)[0])


def hand_over(
    bus: Bus, stream: str, capture: str, order: Order, *, patience: float = PATIENCE, until: Event | None = None
) -> Cursor:
    """Where to go on behind rows that stand at `order`; waits until the capture has come so far, or `until` is set."""
    deadline = time.monotonic() + patience
    pause = until or Event()
    while not _reached(bus, capture, order):
        if pause.wait(0.05):
            raise NotConnected(f"stream {stream}: it was stopped while a reader joined; the reader begins again")
        if time.monotonic() > deadline:
            raise HistoryGone(
                f"stream {stream}: its capture did not reach commit {order.commit} within {patience:.0f} s",
                hint="start `headwater run`, so that the capture goes on while the reader joins",
            )
    return Cursor(bus.streams()[stream].incarnation, (bus.offset_after(stream, order),))


def _reached(bus: Bus, capture: str, order: Order) -> bool:
    position = bus.position(capture)
    return position is not None and (position.epoch, position.commit) >= (order.epoch, order.commit)
