"""Rows that are asked for once more, one load behind another: none of them vanishes because another is asked for."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import closing

import pytest

from headwater.model import Reload
from headwater.protocols import Load
from headwater.sources.log_postgres import begin, chunks
from headwater.sources.log_postgres.begin import mark
from headwater.sources.log_postgres.position import place_of
from tests.log_load_world import World, capture

pytestmark = pytest.mark.needs("postgres")

INITIAL = Load("initial")
LOW = Load("backfill-0", where="id <= 100", earlier=(INITIAL,))
HIGH = Load("backfill-1", where="id > 150", earlier=(INITIAL, LOW))
ROWS = list(range(1, 201))


@pytest.fixture
def item(database: str, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(chunks, "_FIRST_ROWS", 20)
    monkeypatch.setattr(chunks, "_MOST", 20)
    world = World(database, capture("item", "id name"))
    world.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text)",
        "INSERT INTO item SELECT n, 'n' || n FROM generate_series(1, 200) n",
    )
    return world


def ask(world: World, load: Load) -> None:
    world.captures = tuple(dataclasses.replace(capture, load=load) for capture in world.captures)


def read(world: World) -> list[int]:
    return [row["after"]["id"] for row in world.rows("test.item") if row["op"] == "r"]


def loaded(world: World) -> list[str]:
    return [note.text for note in world.notes if note.kind == "loaded"]


def told(count: int) -> str:
    return f"{count} rows of public.item were read"


def token(world: World) -> str:
    assert world.position is not None
    return place_of(world.position, "db/log").loads["test.item"].token


def test_a_backfill_behind_an_unfinished_one_waits_for_it(item: World) -> None:
    item.take()
    ask(item, LOW)
    item.take(3)
    item.execute("UPDATE item SET name = 'u' WHERE id % 3 = 0", "DELETE FROM item WHERE id = 7")
    ask(item, HIGH)
    item.take(3)
    assert token(item) == "backfill-0", "the test means to break off the first of the two"
    item.take()
    assert sorted(set(read(item)[200:]))[-50:] == ROWS[150:]
    assert len(read(item)[200:]) in (149, 150), "the row that is deleted meanwhile may have been read"
    assert [told(200), told(50)] == [loaded(item)[0], loaded(item)[-1]]
    assert len(loaded(item)) == 3
    assert item.folded("test.item") == item.table("item", "id name")
    item.take()
    assert len(loaded(item)) == 3, "each is carried out once"


def test_f23_a_backfill_does_not_end_the_initial_load(item: World) -> None:
    other = capture("other", "id")
    item.execute("CREATE TABLE other (id int PRIMARY KEY)")
    first, item.captures = item.captures, (other,)
    item.take()
    item.captures = (*first, other)
    item.take(3)
    assert 0 < len(read(item)) < 200, "broken off"
    item.captures = (dataclasses.replace(first[0], load=LOW), other)
    item.take()
    assert sorted(read(item)) == sorted(ROWS + ROWS[:100])
    assert [text for text in loaded(item) if "item" in text] == [told(200), told(100)]


def test_two_backfills_that_are_asked_for_before_a_start_are_both_carried_out(item: World) -> None:
    item.take()
    ask(item, HIGH)
    item.take()
    assert read(item)[200:] == ROWS[:100] + ROWS[150:]
    assert loaded(item) == [told(200), told(100), told(50)]


def test_a_slot_made_just_now_begins_with_the_first(item: World) -> None:
    ask(item, LOW)
    item.take()
    assert read(item) == ROWS + ROWS[:100]
    assert loaded(item) == [told(200), told(100)]


def test_a_comparison_takes_the_place_of_what_is_unfinished_and_a_backfill_comes_behind_it(item: World) -> None:
    item.take()
    ask(item, LOW)
    item.take(3)
    begun = len(read(item))
    compare = Load("repair-1", Reload.DIFFERENCE)
    ask(item, compare)
    item.take(2)
    ask(item, Load("backfill-2", where="id = 5", earlier=(compare,)))
    item.take()
    readings = [part for part in item.changes("test.item") if part.reading]
    assert sum(len(part) for part in readings) == 200
    assert read(item)[begun:][-1] == 5
    assert token(item) == "backfill-2"


def test_a_stream_that_comes_back_is_compared_before_a_backfill(item: World) -> None:
    item.take()
    other, item.captures = item.captures, (capture("more", "id"),)
    item.execute("CREATE TABLE more (id int PRIMARY KEY)")
    item.take()
    item.execute("INSERT INTO item VALUES (300, 'unseen')")
    item.captures = (*other, *item.captures)
    item.take(2)
    item.captures = (dataclasses.replace(other[0], load=LOW), *item.captures[1:])
    item.take()
    readings = [part for part in item.changes("test.item") if part.reading]
    assert sum(len(part) for part in readings) == 201, "cut off, it begins again, and is not forgotten"
    assert read(item)[-100:] == ROWS[:100]


@pytest.mark.parametrize("kind", ["event", "fact"])
def test_f26_what_is_written_while_a_first_publication_is_awaited_is_in_the_log_or_in_the_rows(
    item: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is read by a publication from a place behind its making: no row is read before that."""
    seen = capture("seen", "id", "" if kind == "event" else "id", kind=kind)
    other = capture("other", "id") if kind == "event" else capture("other", "id", "", kind="event")
    item.execute("CREATE TABLE other (id int PRIMARY KEY)", "CREATE TABLE seen (id int PRIMARY KEY)")
    if kind == "event":
        item.execute("ALTER TABLE seen DROP CONSTRAINT seen_pkey")
    else:
        item.execute("ALTER TABLE other DROP CONSTRAINT other_pkey")
    item.captures = (other,)
    item.take()
    item.captures = (other, seen)
    monkeypatch.setattr(begin, "mark", lambda sql: mark(sql) + 10_000)

    def write() -> None:
        for n in range(300):
            item.execute(f"INSERT INTO seen VALUES ({n})")

    writer = threading.Thread(target=write)
    source = item.source()
    with closing(source):
        for _ in item.stream(source, follow=True):
            if not writer.ident:
                writer.start()
            if any("seen" in note.text for note in item.notes if note.kind == "loaded"):
                break
    writer.join(30)
    item.take()
    rows = item.folded("test.seen") if kind == "fact" else [row["after"] for row in item.rows("test.seen")]
    assert sorted(row["id"] for row in rows) == list(range(300)), "of events nothing comes twice either"
