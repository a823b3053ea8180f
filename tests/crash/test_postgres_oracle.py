"""The oracle of the PostgreSQL crash proof must be able to fail: hand-made stories, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import pytest

from tests.crash.postgres_oracle import Audit, Event, Span, Written, compare_with_audit, folded, once_and_in_order, same

STREAM = "shop.item"
SPAN = Span(start=100, loaded=500)

ROW = dict.fromkeys(("name", "price", "amount", "tags", "body", "photo", "seen"))


def event(letter: str, commit: int, version: int | None, *, index: int = 0, key: int = 1, **values: Any) -> Event:
    """A transaction's id is its commit here. Of commit 0 is what a load reads."""
    unchanged = values.pop("unchanged", ())
    transaction = str(commit) if letter != "r" else None
    row = {"id": key, "version": version, **ROW, **values}
    return Event(letter, (1, commit, index), transaction, row, unchanged, f"{letter} {key} {commit} {index}".encode())


def emptied(commit: int, *, index: int = 0, key: int = 1) -> Event:
    """As a TRUNCATE ends a row."""
    return dataclasses.replace(event("d", commit, None, index=index, key=key), transaction=None)


def written(letter: str, xid: int, version: int | None = None, *, lsn: int | None = None) -> Written:
    return Written(letter, version, str(xid), xid if lsn is None else lsn, xid)


def audit_of(*story: Written, key: int = 1) -> Audit:
    return defaultdict(list, {key: list(story)})


STORY = (written("c", 510, 1), written("u", 520, 2), written("u", 530, 3), written("d", 540), written("c", 550, 4))
TOLD = [
    event("c", 510, 1, body="long"),
    event("u", 520, 2, unchanged=("body",)),
    event("u", 530, 3, body="other"),
    event("d", 540, None),
    event("c", 550, 4, body="long"),
]


def prove(events: list[Event], story: tuple[Written, ...] = STORY) -> None:
    once_and_in_order(STREAM, events)
    compare_with_audit(events, audit_of(*story), SPAN)


def test_the_whole_story_is_fine() -> None:
    prove(TOLD)


@pytest.mark.parametrize("place", range(len(TOLD)))
def test_f06_a_change_that_is_missing_is_found(place: int) -> None:
    with pytest.raises(AssertionError, match="never told"):
        prove([*TOLD[:place], *TOLD[place + 1 :]])


@pytest.mark.parametrize("place", range(len(TOLD)))
def test_f06_a_change_that_is_there_twice_is_found(place: int) -> None:
    with pytest.raises(AssertionError, match="twice"):
        prove([*TOLD[: place + 1], *TOLD[place:]])


@pytest.mark.parametrize("place", range(len(TOLD)))
def test_f06_a_change_that_is_told_again_later_is_found(place: int) -> None:
    """As an event of its own, with another place and another id."""
    again = dataclasses.replace(TOLD[place], order=(1, 900, 0), id=b"another")
    with pytest.raises(AssertionError, match="told twice"):
        prove([*TOLD, again])


def test_changes_in_another_order_are_found() -> None:
    with pytest.raises(AssertionError, match="behind a later one"):
        prove([TOLD[0], TOLD[2], TOLD[1], *TOLD[3:]])


def test_a_change_that_nobody_made_is_found() -> None:
    with pytest.raises(AssertionError, match="out of its order"):
        prove([*TOLD, event("u", 560, 9)])


def test_f30_an_unchanged_value_that_became_null_is_found() -> None:
    broken = [TOLD[0], event("u", 520, 2)]
    expected = folded(STREAM, TOLD[:2])
    assert expected[(1,)]["body"] == "long"
    with pytest.raises(AssertionError, match="fold"):
        same("fold", folded(STREAM, broken), expected)


def test_rows_that_are_missing_or_too_many_are_found() -> None:
    with pytest.raises(AssertionError, match="lacks"):
        same("sink", {}, {(1,): {}})
    with pytest.raises(AssertionError, match="more than it should"):
        same("sink", {(1,): {}}, {})


# what the guarantee says a load may cost


MOVED = (written("m", 510, 1), written("u", 520, 2), written("d", 530))
LOADED = (written("c", 110, 1), written("u", 120, 2), written("u", 130, 3))
EMPTIED = (written("c", 110, 1), written("t", 120), written("c", 130, 2), written("u", 140, 3))

REMADE = (written("c", 90, 1), written("d", 120), written("c", 130, 2), written("u", 140, 3))
CHANGED = (written("c", 90, 1), written("u", 120, 2), written("u", 130, 3), written("u", 140, 4))

EXCUSED: dict[str, tuple[tuple[Written, ...], list[Event]]] = {
    "a row that moved and was gone": (MOVED, [event("d", 530, None)]),
    "what a row that was read holds": (LOADED, [event("r", 101, 2), event("u", 130, 3)]),
    "a row that was gone when it was to be loaded": (
        (written("u", 110, 1), written("u", 120, 2), written("d", 130)),
        [event("d", 130, None)],
    ),
    "what a load that was broken off had read": (
        (written("c", 90, 1), written("u", 120, 2), written("d", 130)),
        [event("r", 101, 1), event("d", 130, None)],
    ),
    "a row read ahead of a TRUNCATE": (
        EMPTIED,
        [event("r", 101, 3), emptied(120), event("c", 130, 2), event("u", 140, 3)],
    ),
    "an end before a load that was read ahead of it was broken off": (
        REMADE,
        [event("r", 101, 3), event("c", 130, 2), event("u", 140, 3)],
    ),
    "nothing of what a row held, for the load was broken off at once": (
        REMADE,
        [event("r", 101, 3), event("d", 120, None), event("c", 130, 2), event("u", 140, 3)],
    ),
}

NOT_EXCUSED: dict[str, tuple[tuple[Written, ...], list[Event]]] = {
    "a row that moved and was told": (MOVED, [event("c", 510, 1), event("d", 530, None)]),
    "a row that moved and did not end": (MOVED[:2], []),
    "what came behind the row that was read": (LOADED, [event("r", 101, 2)]),
    "the end of a row that was read": (
        (written("c", 90, 1), written("d", 130)),
        [event("r", 101, 1)],
    ),
    "a row that was told before it was gone": (
        (written("c", 110, 1), written("u", 120, 2), written("d", 130)),
        [event("c", 110, 1), event("d", 130, None)],
    ),
    "a row that had been loaded": (
        (written("c", 90, 1), written("u", 520, 2), written("d", 530)),
        [event("r", 101, 1), event("d", 530, None)],
    ),
    "a change behind the first one that was told once more": (
        CHANGED,
        [event("r", 101, 4), event("u", 120, 2), event("u", 140, 4)],
    ),
    "an end behind the first change that was told once more": (
        (written("c", 90, 1), written("u", 110, 2), *REMADE[1:]),
        [event("r", 101, 3), event("u", 110, 2), event("c", 130, 2), event("u", 140, 3)],
    ),
    "what came behind the row that was read for a change without a part": (
        CHANGED,
        [event("r", 113, 3), event("u", 120, 2, unchanged=("body",)), event("u", 140, 4)],
    ),
    "what came between the row that was read and a TRUNCATE": (
        (written("c", 105, 1), written("d", 110), written("c", 115, 2), written("t", 120)),
        [event("r", 101, 1), emptied(120)],
    ),
    "what comes once more behind a TRUNCATE": (EMPTIED, [event("r", 101, 3), emptied(120), event("u", 140, 3)]),
}


def with_truncates(events: list[Event], story: tuple[Written, ...]) -> tuple[list[Event], Audit]:
    """A TRUNCATE is known by what else its transaction tells: here, of key 2."""
    audit = audit_of(*story)
    for item in [item for item in story if item.letter == "t"]:
        audit[2].append(written("c", int(item.xid), -1))
        events = [*events, event("c", int(item.xid), -1, index=9, key=2)]
    return sorted(events, key=lambda item: item.order), audit


@pytest.mark.parametrize("name", EXCUSED)
def test_f28_what_a_load_excuses(name: str) -> None:
    story, events = EXCUSED[name]
    told, audit = with_truncates(events, story)
    compare_with_audit(told, audit, SPAN)


@pytest.mark.parametrize("name", NOT_EXCUSED)
def test_f28_what_nothing_excuses(name: str) -> None:
    story, events = NOT_EXCUSED[name]
    told, audit = with_truncates(events, story)
    with pytest.raises(AssertionError, match="never told"):
        compare_with_audit(told, audit, SPAN)


def of_two(first: list[Event], second: list[Event]) -> None:
    """`REMADE` of key 1, and `CHANGED` of key 2, in the same transactions."""
    audit = audit_of(*REMADE)
    audit[2] = list(CHANGED)
    compare_with_audit(sorted([*first, *second], key=lambda item: item.order), audit, SPAN)


def test_f28_a_load_is_broken_off_at_one_place_for_all_rows() -> None:
    """Whatever one row's window left out lies below what another's told once more."""
    first = [event("r", 101, 3), event("c", 130, 2, index=2), event("u", 140, 3, index=2)]
    second = [event("r", 101, 4, key=2, index=2), event("u", 130, 3, key=2), event("u", 140, 4, key=2)]
    of_two(first, second)
    with pytest.raises(AssertionError, match="item 1: never told, but item 2 was from 120 on"):
        of_two(first, [*second, event("u", 120, 2, key=2)])


def test_f28_what_the_log_had_passed_when_a_row_was_read_is_not_left_out() -> None:
    told = [event("u", commit, version, key=2) for commit, version in ((120, 2), (130, 3), (140, 4))]
    with pytest.raises(AssertionError, match="item 1: never told"):
        of_two([event("r", 135, 3), event("u", 140, 3, index=2)], told)
    of_two([event("d", 120, None, index=2), event("c", 130, 2, index=2), event("r", 135, 3)], told)


def test_f22_what_the_slots_snapshot_held_and_the_log_told_again_is_found() -> None:
    with pytest.raises(AssertionError, match="the slot's snapshot held it"):
        prove([event("r", 93, 1), event("c", 95, 1)], (written("c", 90, 1),))
