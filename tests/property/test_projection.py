"""What is put together by the compiled projection equals what the mapping makes of the same changes row by row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import native
from headwater.mapping.projection import MODULE
from headwater.model import Changes, Events, Rejected
from tests.mapping_rows import change, changes, contract, mapping

pytestmark = pytest.mark.needs("native")

KINDS = {
    "id": (pa.int64(), "int64", st.integers(-(2**63), 2**63 - 1)),
    "mode": (pa.string(), "string", st.text(max_size=4)),
    "active": (pa.bool_(), "bool", st.booleans()),
    "price": (pa.decimal128(10, 2), "decimal(10,2)", st.decimals("-99", "99", places=2)),
    "tags": (pa.list_(pa.int32()), "list<int32>", st.lists(st.none() | st.integers(0, 9), max_size=3)),
}
COLUMNS = pa.schema([(name, kind) for name, (kind, _, _) in KINDS.items()])
STATE = st.fixed_dictionaries({name: st.none() | values for name, (_, _, values) in KINDS.items()})
WHOLE = st.fixed_dictionaries({name: values for name, (_, _, values) in KINDS.items()})
PLAIN = st.builds(lambda letter, after: change(letter, None, after), st.sampled_from("cru"), WHOLE)
ANY = st.one_of(
    PLAIN,
    st.builds(lambda before, after: change("u", before, after), st.none() | WHOLE | STATE, WHOLE | STATE),
    st.builds(lambda letter, after: change(letter, None, after), st.sampled_from("cr"), STATE),
    st.builds(lambda before: change("d", before), WHOLE),
    st.just(change("t")),
)


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(PLAIN, min_size=1, max_size=20) | st.lists(ANY, min_size=1, max_size=20),
    cut=st.integers(0, 9),
    required=st.sets(st.sampled_from(["mode", "active", "tags"])),
    renamed=st.booleans(),
    more=st.sampled_from([{}, {"min": 0}, {"max": 3}]),
    keyed=st.booleans(),
)
def test_the_compiled_projection_gives_what_the_mapping_gives(
    rows: list[dict[str, Any]], cut: int, required: set[str], renamed: bool, more: dict[str, Any], keyed: bool
) -> None:
    names = [name for name in KINDS if not renamed or name != "active"]
    fields = {name: {"type": KINDS[name][1], "optional": name not in {"id", *required}} for name in names}
    fields["price"] |= more
    own = {"fields": {"flag": "active"}} if renamed else {}
    if renamed:
        fields = {"flag": {"type": "bool", "optional": True}, **fields}
    of = contract(fields, kind="fact" if keyed else "event", key=["id"] if keyed else [])
    batch = changes(rows, columns=COLUMNS, cut=cut)
    with pytest.MonkeyPatch.context() as patch:
        fast = _outcome(own, of, batch)
        patch.setattr(native, "compiled", lambda name: None)
        slow = _outcome(own, of, batch)
    _compare(fast, slow)


def _outcome(own: dict[str, Any], of: Any, batch: Changes) -> tuple[list[Events], Rejected | None]:
    return mapping(own, of, columns=COLUMNS).apply(batch)


def _compare(fast: tuple[list[Events], Rejected | None], slow: tuple[list[Events], Rejected | None]) -> None:
    assert len(fast[0]) == len(slow[0])
    for one, other in zip(fast[0], slow[0], strict=True):
        one.data.validate(full=True)
        assert one.data.schema.equals(other.data.schema, check_metadata=True)
        assert one.data.equals(other.data)
        assert [c.null_count for c in one.data.columns] == [c.null_count for c in other.data.columns]
    assert (fast[1] is None) == (slow[1] is None)
    if fast[1] is not None and slow[1] is not None:
        assert fast[1].changes.data.equals(slow[1].changes.data)
        assert fast[1].reasons.equals(slow[1].reasons)


@pytest.mark.parametrize(("start", "count"), [(0, 20), (3, 9), (8, 8), (17, 1)])
def test_states_that_are_a_part_of_longer_ones_pass(start: int, count: int) -> None:
    """A slice of the struct leaves its children whole; what counts as null must be counted within the slice."""
    rows = [change("c", None, {"id": n, "mode": None if n in (0, 19) else "a", "price": float(n)}) for n in range(20)]
    whole = changes(rows).data
    part = whole.column("after").slice(start, count)
    order = [whole.column(number).slice(start, count) for number in range(7)]
    data = pa.RecordBatch.from_arrays([*order, part], schema=whole.schema)
    (events,), rejected = mapping().apply(Changes(changes(rows).table, data))
    events.data.validate(full=True)
    assert rejected is None
    assert events.data.column("id").to_pylist() == list(range(start, start + count))
    assert events.data.column("mode").null_count == part.field(1).null_count


ROW = {"id": 1, "mode": "a", "active": True, "price": None, "tags": None}


@pytest.mark.parametrize(
    "row",
    [
        change("u", {**ROW, "id": 2}, ROW),
        change("c", None, {**ROW, "mode": None}),
        change("c", None, {**ROW, "id": None}),
        change("d", ROW),
        change("t"),
    ],
)
def test_a_row_that_is_not_plain_is_left_to_the_mapping(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    of = contract({name: {"type": KINDS[name][1], "optional": name in ("price", "tags")} for name in KINDS})
    batch = changes([change("c", None, ROW), row], columns=COLUMNS)
    fast = _outcome({}, of, batch)
    monkeypatch.setattr(native, "compiled", lambda name: None)
    _compare(fast, _outcome({}, of, batch))


def test_plain_changes_go_by_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison above would compare the mapping with itself."""
    of = mapping()
    of.apply(changes([change("c", None, {"id": 1, "mode": "a", "price": 1.0})]))
    monkeypatch.setattr(type(of), "_pending", None)
    (events,), _ = of.apply(changes([change("r", None, {"id": 2, "mode": None, "price": 1.0})]))
    assert events.data.column("id").to_pylist() == [2]


def test_the_changes_live_as_long_as_their_events() -> None:
    """Memory passes from one owner to the other and is neither freed early nor kept."""
    of = mapping()
    before = pa.total_allocated_bytes()
    kept = [
        of.apply(changes([change("c", None, {"id": n, "mode": "x" * 50, "price": 0.5}) for n in range(100)]))[0][0]
        for _ in range(20)
    ]
    assert all(events.data.column("mode").to_pylist() == ["x" * 50] * 100 for events in kept)
    del kept
    assert pa.total_allocated_bytes() == before


def test_the_module_is_one_of_those_that_native_names() -> None:
    assert MODULE in native.COMPILED
