"""Random events, cut into random batches, delivered again after faults at random places: the target equals a plain
fold of what was sent."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater import plugins
from headwater.errors import HeadwaterError
from headwater.model import Cursor, Op
from headwater.protocols import Sink
from headwater.testing.sink_events import Row, Script, SinkTarget, all_rows, contract_of, failing, row, sink_target

SCHEMES = plugins.known("sinks")
KEYS = st.integers(0, 4)
AGAIN: st.SearchStrategy[bool] = st.booleans()
TEXT = st.one_of(st.none(), st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=3))
"""Without the one character that a text of PostgreSQL cannot hold: such a row is refused, which is tested by itself."""


@st.composite
def histories(draw: Any) -> list[Row]:
    """Events as a source gives them, with some older ones that come once more."""
    alive: set[int] = set()
    rows: list[Row] = []
    for commit in range(draw(st.integers(1, 14))):
        rows += [_event(draw, alive, commit, 2 * index) for index in range(draw(st.integers(1, 3)))]
        if draw(AGAIN):
            late = draw(st.sampled_from(rows))
            if "_unchanged" not in late and late["_op"] != Op.TRUNCATE:
                rows.append(late)
    return rows


def _event(draw: Any, alive: set[int], commit: int, index: int) -> Row:
    key = draw(KEYS)
    what = draw(st.integers(0, 19))
    if what == 0:
        alive.clear()
        return row(Op.TRUNCATE, commit, index)
    if key not in alive:
        alive.add(key)
        op = draw(st.sampled_from([Op.CREATE, Op.READ]))
        return row(op, commit, index, id=key, name=draw(TEXT), note='"n"')
    if what < 6:
        alive.discard(key)
        return row(Op.DELETE, commit, index, id=key)
    unchanged = sorted(draw(st.sets(st.sampled_from([1, 2, 3]))))
    given_values: dict[int, tuple[str, Any]] = {1: ("name", draw(TEXT)), 3: ("note", draw(st.sampled_from(["1", "2"])))}
    values = dict(value for ordinal, value in given_values.items() if ordinal not in unchanged)
    marks: dict[str, Any] = {"_unchanged": unchanged} if unchanged else {}
    return row(Op.UPDATE, commit, index, id=key, **values, **marks)


def _folded(history: Sequence[Row]) -> dict[int, Row]:
    """The plain model: events once each, in the source's order."""
    unique = {(r["_commit"], r["_index"]): r for r in history}
    state: dict[int, Row] = {}
    fields = ["id", "name", "price", "note"]
    for _, event in sorted(unique.items(), key=lambda item: item[0]):
        if event["_op"] == Op.TRUNCATE:
            state.clear()
        elif event["_op"] == Op.DELETE:
            state.pop(event["id"], None)
        else:
            before = state.get(event["id"], {})
            kept = {fields[n] for n in event.get("_unchanged", ())}
            whole = {n: before.get(n) if n in kept else event.get(n) for n in fields}
            state[event["id"]] = {**whole, "_commit": event["_commit"], "_index": event["_index"]}
    return state


_numbers = itertools.count(1)


@pytest.fixture
def fresh(request: pytest.FixtureRequest, scheme: str) -> Callable[[Path], SinkTarget]:
    """Makes a new target in a directory; those of one database each have a schema of their own."""

    def make(directory: Path) -> SinkTarget:
        target = sink_target(scheme, directory, lambda: str(request.getfixturevalue("database")))
        target.options = {"schema": f"s{next(_numbers)}"} if scheme == "postgresql" else {}
        return target

    return make


@pytest.mark.parametrize("deletes", ["hard", "soft"])
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(history=histories(), steps=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_the_target_is_the_fold_of_the_events(
    fresh: Callable[[Path], SinkTarget], deletes: str, history: list[Row], steps: list[int], seed: int
) -> None:
    directory = Path(tempfile.mkdtemp())
    target = fresh(directory)
    try:
        sink = _delivered(target, history, steps, seed, deletes=deletes, hold=True)  # opening files is tested elsewhere
        names = ("id", "name", "price", "note", "_commit", "_index")
        found = {r["id"]: {n: r[n] for n in names} for r in all_rows(sink, "shop.item")}
        assert found == _folded(history)
        assert sink.cursor("shop.item") == Cursor("first", (len(history),))
    finally:
        target.close()
        shutil.rmtree(directory)


def _delivered(target: SinkTarget, history: Sequence[Row], steps: Sequence[int], seed: int, **options: Any) -> Sink:
    for attempt in range(200):
        sink = target.open(**options)
        try:
            with failing("sink.*=error:0.1", seed + attempt):
                sink.prepare(contract_of())
                _deliver(sink, history, steps)
            return sink
        except (OSError, HeadwaterError) as error:
            if "failpoint" not in str(error):
                raise
    raise AssertionError("two hundred attempts did not suffice")


def _deliver(sink: Sink, history: Sequence[Row], steps: Sequence[int]) -> None:
    cursor = sink.cursor("shop.item")
    script = Script(contract_of(), offset=cursor.offset if cursor else 0)
    turn = 0
    while script.offset < len(history):
        step = steps[turn % len(steps)]
        sink.write(script.events(history[script.offset : script.offset + step]))
        turn += 1
