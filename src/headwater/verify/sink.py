"""A sink against its stream: what the sink holds, and what the stream says up to the sink's own cursor."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Literal

import pyarrow as pa

from headwater.contracts.model import Contract
from headwater.errors import CursorMismatch
from headwater.model import Cursor
from headwater.protocols import Bus, Sink, StreamState
from headwater.verify.comparison import Comparison, incomparable
from headwater.verify.differences import Excuses, classify, find
from headwater.verify.tables import Workspace


def verify_sink(
    bus: Bus,
    stream: str,
    contract: Contract,
    sink: Sink,
    *,
    mode: Literal["current", "history"] | None = None,
    workspace: Workspace | None = None,
) -> Comparison:
    """Compare the sink's rows with the stream folded to the sink's cursor, both read in one transaction of the target.

    A sink that keeps every event is compared event by event. `mode` says which of the two the sink is; without it the
    rows do, and a history that has lost all of its rows looks like a current state without any. Neither side need
    stand still.
    """
    against = f"sink {sink.name}"
    known = bus.streams().get(stream)
    if known is None:
        return incomparable(stream, against, "the stream is not on the bus")
    state = sink.state(stream)
    rows = iter(state.rows)
    first = next(rows, None)
    cursor = state.cursor or bus.cursor(sink.name, stream)
    if reason := _why_not(known, contract) or _not_of(bus, stream, cursor):
        _close(rows)
        return incomparable(stream, against, reason)
    history = mode == "history" if mode is not None else _is_history(contract, first)
    below = cursor.offset if cursor is not None else known.first
    with (workspace or Workspace()).tables(contract, history=history) as tables:
        tables.load_rows(chain([first] if first is not None else [], rows))
        tables.read(bus, stream)
        tables.below = below
        comparison = Comparison(stream, against, at=f"offset {below}")
        find(tables, comparison, rows_are_source=False)
        compacted = contract.retention.compacted
        classify(tables, comparison, Excuses(settled_below=below if compacted else None))
    return _without_compacted(comparison) if compacted and history else comparison


def _is_history(contract: Contract, first: pa.RecordBatch | None) -> bool:
    return not contract.key or bool(contract.types) or (first is not None and "_op" in first.schema.names)


def _why_not(known: StreamState, contract: Contract) -> str:
    if known.complete:
        return ""
    return (
        f"the stream is kept from offset {known.first} on only (retention of {contract.stream}), "
        "so that its fold is not the whole state"
    )


def _not_of(bus: Bus, stream: str, cursor: Cursor | None) -> str:
    """Why the cursor is none of this stream: the bus is asked, for a restored one knows cursors from before."""
    try:
        for _ in bus.read(stream, after=cursor, follow=False, limit=1):
            break
    except CursorMismatch as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    return ""


def _without_compacted(comparison: Comparison) -> Comparison:
    """A history may hold what the stream has compacted since."""
    comparison.extra = type(comparison.extra)()
    comparison.reason = "events that the stream has compacted since were not compared"
    return comparison


def _close(rows: Iterator[pa.RecordBatch]) -> None:
    """End the target's transaction, where the rows are a generator that holds one."""
    close = getattr(rows, "close", None)
    if close is not None:
        close()
