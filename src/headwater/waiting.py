"""Events that wait: of `kind: event` streams, those that come after a quarantined one of their key.

One idea: a change waits whole. A change of key becomes two events; if one of them must wait so must the other, and from
there on its key waits too. What waits is quarantined as the change it came from, so that replay maps it once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping.keys import canonical_keys
from headwater.model import REASONS, Changes, Events, Order, Rejected

ALWAYS = Order(0, 0, -1)
"""Below every order: a key that had a row in quarantine before these changes came."""

Change = tuple[int, int]
"""Commit and index of a change; its events have that index or the odd one behind it."""


def since(waiting: Iterable[str], *rejected: Rejected | None) -> dict[str, Order]:
    """The keys that wait, each with the order behind which it does: `waiting` all along, the others when rejected."""
    found = dict.fromkeys(waiting, ALWAYS)
    for part in filter(None, rejected):
        for key, order in zip(part.reasons.column("key").to_pylist(), _orders(part.changes.data), strict=True):
            if key is not None:
                found[key] = min(order, found.get(key, order))
    return found


def hold_back(
    events: list[Events], changes: Changes, key: tuple[str, ...], keys: Mapping[str, Order]
) -> tuple[list[Events], Rejected | None]:
    """The events that may pass, and the changes of the others. `keys`: see `since`."""
    if not keys or not events:
        return events, None
    texts = [canonical_keys(part.data, key) for part in events]
    held = _held([(part.data, text) for part, text in zip(events, texts, strict=True)], dict(keys))
    if not held:
        return events, None
    passed = [part for part in (_without(part, held) for part in events) if len(part)]
    return passed, _as_rejected(changes, held)


def joined(first: Rejected | None, second: Rejected | None) -> Rejected | None:
    """Both, in the order of the changes: replay goes by it."""
    if first is None or second is None:
        return first or second
    rows = pa.Table.from_batches([first.changes.data, second.changes.data]).combine_chunks().to_batches()[0]
    reasons = pa.Table.from_batches([first.reasons, second.reasons]).combine_chunks().to_batches()[0]
    order = pc.sort_indices(rows.select(["_epoch", "_commit", "_index"]), [(n, "ascending") for n in _ORDER])
    changes = dataclasses.replace(first.changes, data=rows.take(order))
    return Rejected(first.stream, changes, reasons.take(order))


_ORDER = ("_epoch", "_commit", "_index")


def _held(parts: list[tuple[pa.RecordBatch, pa.Array]], keys: dict[str, Order]) -> dict[Change, str]:
    """The changes that wait, each with a key for which it does. Keys that come to wait with them go into `keys`."""
    held: dict[Change, str] = {}
    while True:
        known = len(held), len(keys)
        for data, texts in parts:
            _find(data, texts, keys, held)
        if (len(held), len(keys)) == known:
            return held


def _find(data: pa.RecordBatch, texts: pa.Array, keys: dict[str, Order], held: dict[Change, str]) -> None:
    by_key = pc.is_in(texts, pa.array(sorted(keys), pa.string()))
    by_commit = pc.is_in(data.column("_commit"), pa.array(sorted({c for c, _ in held}), pa.uint64()))
    rows = pc.or_(by_key, by_commit)
    # Only events of keys that wait, and those that were committed with one that does, come here.
    for order, text in zip(_orders(data.filter(rows)), texts.filter(rows).to_pylist(), strict=True):
        change = _change(order)
        if change in held:
            keys[text] = min(order, keys.get(text, order))
        elif text in keys and order > keys[text]:
            held[change] = text


def _change(order: Order) -> Change:
    return order.commit, order.index - order.index % 2


def _without(events: Events, held: Mapping[Change, str]) -> Events:
    return dataclasses.replace(events, data=events.data.filter(pa.array(~_mask(events.data, held))))


def _mask(data: pa.RecordBatch, held: Mapping[Change, str]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(data.num_rows, dtype=bool)
    near = pc.is_in(data.column("_commit"), pa.array(sorted({c for c, _ in held}), pa.uint64()))
    places = np.flatnonzero(near.to_numpy(zero_copy_only=False))
    mask[places] = [_change(order) in held for order in _orders(data.take(pa.array(places)))]
    return mask


def _as_rejected(changes: Changes, held: Mapping[Change, str]) -> Rejected:
    data = changes.data.filter(pa.array(_mask(changes.data, held)))
    keys = [held[_change(order)] for order in _orders(data)]
    reason = {"field": "", "expected": "no earlier event of this key in quarantine", "got": "it waits"}
    reasons = pa.RecordBatch.from_pylist([{**reason, "key": key} for key in keys], schema=REASONS)
    stream = changes.stream or ""
    return Rejected(stream, dataclasses.replace(changes, data=data, reading=None), reasons)


def _orders(data: pa.RecordBatch) -> list[Order]:
    columns = (data.column(name).to_pylist() for name in _ORDER)
    return [Order(*place) for place in zip(*columns, strict=True)]
