"""Rows that exchange keys within a transaction: whatever is done, the folded events are the table."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import GapError
from headwater.mapping.stream import StreamMapping
from headwater.model import Changes
from headwater.sources.log_postgres.exchange import Watch, settled
from tests import mapping_rows as rows
from tests.log_world import captured

KEY = ("id",)
CAPTURE = dataclasses.replace(captured("enrollment", "id mode price"), table=rows.TABLE)

Row = dict[str, object]
Table = list[Row]
Steps = list[tuple[str, int, int, str]]

ids, modes = st.integers(1, 4), st.sampled_from(["audit", "honor", "beta"])


def _steps(kinds: str) -> st.SearchStrategy[Steps]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9), ids, modes), max_size=12)


inserts, moves = _steps("i"), _steps("uukkkd")
transactions = st.lists(_steps("iuuukkkdt"), max_size=4)


def _row(number: int, mode: str) -> Row:
    return {"id": number, "mode": mode, "price": 1.0}


def _step(table: Table, kind: str, place: int, number: int, mode: str) -> Row | None:
    """One change of the table, as the log tells it."""
    if kind == "i":
        table.append(_row(number, mode))
        return rows.change("c", None, table[-1])
    if kind == "t" and place == 0:
        table.clear()
        return rows.change("t")
    if not table:
        return None
    place %= len(table)
    old = table[place]
    if kind == "d":
        del table[place]
        return rows.change("d", old, None)
    table[place] = _row(number, str(old["mode"])) if kind == "k" else _row(int(str(old["id"])), mode)
    return rows.change("u", old, table[place])


def _transaction(table: Table, asked: Steps) -> list[Row]:
    """At its end each key belongs to one row."""
    found = [change for step in asked if (change := _step(table, *step)) is not None]
    twice = [n for n, row in enumerate(table) if any(row["id"] == other["id"] for other in table[:n])]
    return found + [rows.change("d", table.pop(place), None) for place in reversed(twice)]


def _folded(mapping: StreamMapping, parts: list[Changes]) -> dict[int, str]:
    state: dict[int, str] = {}
    for part in parts:
        events, _ = mapping.apply(part)
        found = [row for event in events for row in event.data.to_pylist()]
        assert [(row["_commit"], row["_index"]) for row in found] == sorted(
            {(row["_commit"], row["_index"]) for row in found}
        )
        for row in found:
            if row["_op"] == int(rows.LETTERS["t"]):
                state.clear()
            elif row["_op"] == int(rows.LETTERS["d"]):
                state.pop(row["id"], None)
            else:
                state[row["id"]] = row["mode"]
    return state


def _changes(done: list[list[Row]]) -> Changes:
    return rows.changes(
        [
            {**change, "_commit": commit, "_index": 2 * index}
            for commit, found in enumerate(done)
            for index, change in enumerate(found)
        ]
    )


@settings(deadline=None)
@given(transactions, st.sampled_from([{}, {"where": "mode <> 'beta'"}]))
def test_the_folded_events_are_the_table(asked: list[Steps], where: dict[str, str]) -> None:
    table: Table = []
    done = [_transaction(table, steps) for steps in asked]
    changes = _changes(done)
    mapping = rows.mapping({"pattern": "log", "on_truncate": "event", **where})
    found = _folded(mapping, [dataclasses.replace(changes, data=settled(changes.data, KEY))])
    assert found == {row["id"]: row["mode"] for row in table if not where or row["mode"] != "beta"}
    mapping.close()


@given(inserts, moves, st.lists(st.integers(0, 12), max_size=3))
def test_what_cannot_be_settled_is_found(before: Steps, asked: Steps, cuts: list[int]) -> None:
    """A transaction in pieces is folded to the table as it is, or refused."""
    table: Table = []
    _transaction(table, before)
    state = {row["id"]: row["mode"] for row in table}
    data = _changes([_transaction(table, asked)]).data
    ends = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    watch = Watch("lms/log", [CAPTURE])
    try:
        for start, stop in itertools.pairwise(ends):
            watch.seen([Changes(rows.TABLE, data.slice(start, stop - start))])
    except GapError:
        return
    for row in data.to_pylist():
        if row["before"] is not None:
            state.pop(row["before"]["id"], None)
        if row["after"] is not None:
            state[row["after"]["id"]] = row["after"]["mode"]
    assert state == {row["id"]: row["mode"] for row in table}


def test_a_transaction_in_pieces_without_an_exchange_is_not_refused() -> None:
    table: Table = [_row(1, "audit"), _row(2, "beta")]
    steps = [("i", 0, 3, "honor"), ("u", 0, 1, "beta"), ("u", 2, 3, "beta"), ("k", 1, 4, ""), ("u", 1, 4, "audit")]
    data = _changes([_transaction(table, [*steps, ("d", 2, 3, ""), ("i", 0, 3, "audit")])]).data
    watch = Watch("lms/log", [CAPTURE])
    for place in range(len(data)):
        piece = [Changes(rows.TABLE, data.slice(place, 1))]
        assert watch.seen(piece) is piece


@pytest.mark.parametrize("letter", ["c", "u"])
def test_rows_that_do_not_exchange_keys_are_left_as_they_are(letter: str) -> None:
    old = None if letter == "c" else _row(1, "audit")
    changes = rows.changes([rows.change(letter, old, _row(1, "honor"))])
    assert settled(changes.data, KEY) is changes.data
