"""The oracle itself against a model: whatever a stream holds, verify accepts its fold and nothing else."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.model import Cursor
from headwater.protocols import SinkState
from headwater.schema import table_schema
from headwater.verify import verify_sink
from tests.property.test_difference import CONTRACT, Fold, Key, batch, changes, event, keys, values
from tests.streams import bus_with

ORDER = [("_epoch", pa.uint32()), ("_commit", pa.uint64()), ("_index", pa.uint32())]
SCHEMA = pa.schema([*ORDER, *table_schema(CONTRACT)])


class Shelf:
    """The reading half of a sink."""

    name = "shelf"

    def __init__(self, at: Cursor, rows: dict[Key, dict[str, Any]]) -> None:
        self.at = at
        self.data = pa.RecordBatch.from_pylist([{"id": k[0], "part": k[1], **row} for k, row in rows.items()], SCHEMA)

    def state(self, stream: str) -> SinkState:
        return SinkState(self.at, iter([self.data]))


@settings(max_examples=40, deadline=None)
@given(
    history=st.lists(changes, max_size=20),
    shuffle=st.randoms(use_true_random=False),
    cut=st.integers(0, 20),
    damage=st.none() | st.tuples(keys, st.none() | values),
)
def test_a_sink_is_equal_exactly_when_it_holds_the_fold(
    history: list[Any], shuffle: Any, cut: int, damage: tuple[Key, dict[str, Any] | None] | None
) -> None:
    numbered = list(enumerate(history, start=1))
    shuffle.shuffle(numbered)
    fold = Fold()
    for commit, change in sorted(numbered[:cut], key=lambda pair: pair[0]):
        fold.apply(commit, change)
    bus = bus_with(batch([event(*one) for one in numbered], unchanged=True), contract=CONTRACT)
    held = dict(fold.rows)
    if damage is not None:
        key, row = damage
        held.pop(key, None)
        held |= {key: row} if row is not None else {}

    at = Cursor(bus.streams()[CONTRACT.stream].incarnation, (min(cut, len(history)),))
    found = verify_sink(bus, CONTRACT.stream, CONTRACT, Shelf(at, held))  # type: ignore[arg-type]

    def by_key(difference: Any) -> Key:
        return (difference.key["id"], difference.key["part"])

    common = fold.rows.keys() & held.keys()
    assert {by_key(d) for d in found.differing} == {k for k in common if fold.rows[k] != held[k]}
    assert {by_key(d) for d in found.missing} == fold.rows.keys() - held.keys()
    assert {by_key(d) for d in found.extra} == held.keys() - fold.rows.keys()
    assert found.equal == (held == fold.rows)
