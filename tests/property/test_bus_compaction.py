"""Compaction never changes what a stream folds to: any order, deletes, partial events, schemas; cut anywhere."""

from __future__ import annotations

import tempfile
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.buses.embedded import EmbeddedBus, compaction, merging
from headwater.model import UNCHANGED, Events, Mapped, Op
from headwater.testing.buses import SOURCE, STREAM, Bench, declaration, events, position

rows = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([Op.CREATE, Op.UPDATE, Op.UPDATE, Op.DELETE]), st.booleans()),
    min_size=2,
    max_size=20,
)


def _event(key: int, commit: int, op: Op, *, lacks_name: bool, marked: bool) -> Events:
    lacks_name = lacks_name and op is Op.UPDATE and marked
    name = None if lacks_name or op is Op.DELETE else f"n{commit}"
    made = events([{"id": key, "name": name, "commit": commit, "op": op}])
    if not marked:
        return made
    marks = pa.array([[1] if lacks_name else None], UNCHANGED)
    return Events(STREAM, 1, made.data.append_column(pa.field("_unchanged", UNCHANGED), marks), source=SOURCE)


def _folded(bus: EmbeddedBus) -> dict[int, tuple[int, str | None, bool]]:
    """Newest commit, name, and whether the name is unknown, of each live key: in plain Python, in order."""
    found: dict[int, tuple[int, str | None, bool]] = {}
    read = [row for part in bus.read(STREAM, after=None, follow=False) for row in part.data.to_pylist()]
    for row in sorted(read, key=lambda row: int(row["_commit"])):
        key, name, lacks = row["id"], row["name"], bool(row.get("_unchanged"))
        if row["_op"] == Op.DELETE:
            found.pop(key, None)
            continue
        if lacks and key in found:
            _, name, lacks = found[key]
        found[key] = (row["_commit"], name, lacks)
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), written=rows, mixed=st.booleans())
def test_f30_f44_compaction_keeps_the_fold(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject, written: list[Any], mixed: bool
) -> None:
    monkeypatch.setattr(compaction, "CHUNK_ROWS", 4)
    monkeypatch.setattr(merging, "FAN", 5)
    commits = data.draw(st.permutations(range(len(written))))
    with tempfile.TemporaryDirectory() as directory, Bench("embedded", directory) as bench:
        bus = bench.open()
        assert isinstance(bus, EmbeddedBus)
        bus.declare([declaration(retention={"compacted": True, "tombstones": 0})])
        for number, ((key, op, lacks_name), commit) in enumerate(zip(written, commits, strict=True)):
            made = _event(key, commit, op, lacks_name=lacks_name, marked=not mixed or number % 3 > 0)
            bus.append(Mapped([made]), source=SOURCE, position=position(number))
            if data.draw(st.integers(0, 4)) == 0:
                _check_upkeep(bus)
        _check_upkeep(bus)
        assert bus.check() == []


def test_f30_f44_a_value_that_comes_late_is_not_forestalled_by_an_older_one() -> None:
    """The newest event by order lacks its name; by order the one before it comes last, behind what is compacted."""
    with tempfile.TemporaryDirectory() as directory, Bench("embedded", directory) as bench:
        bus = bench.open()
        assert isinstance(bus, EmbeddedBus)
        bus.declare([declaration(retention={"compacted": True, "tombstones": 0})])
        written = [(0, Op.UPDATE, True), (1, Op.UPDATE, False), (2, Op.UPDATE, True), (7, Op.UPDATE, True)]
        for number, (commit, op, lacks_name) in enumerate([*written, (4, Op.CREATE, False)]):
            made = _event(0, commit, op, lacks_name=lacks_name, marked=True)
            bus.append(Mapped([made]), source=SOURCE, position=position(number))
            if number == 2:
                _check_upkeep(bus)
        _check_upkeep(bus)
        assert _folded(bus) == {0: (7, "n4", False)}


def _check_upkeep(bus: EmbeddedBus) -> None:
    expected = _folded(bus)
    while bus.maintain(budget=0):
        assert _folded(bus) == expected
    assert _folded(bus) == expected
