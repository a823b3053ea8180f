"""Changes of PostgreSQL's log that do not carry their whole row (TOAST), beside loads and without."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from headwater.errors import SourceError
from headwater.protocols import Load
from headwater.sources.log_postgres import chunks, units
from headwater.sources.log_postgres.reread import Found, Rereader
from tests.log_load_world import Row, World, capture

pytestmark = pytest.mark.needs("postgres")

COLUMNS = "id n big"
BIG = "repeat('x', 3000)"


@pytest.fixture
def item(database: str, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(chunks, "_FIRST_ROWS", 2)
    monkeypatch.setattr(chunks, "_MOST", 2)
    world = World(database, capture("other", "id"), capture("item", COLUMNS))
    world.execute(
        "CREATE TABLE other (id int PRIMARY KEY)",
        "CREATE TABLE item (id int PRIMARY KEY, n int, big text)",
        "ALTER TABLE item ALTER big SET STORAGE EXTERNAL",
        f"INSERT INTO item SELECT i, i, {BIG} || i FROM generate_series(1, 6) i",
    )
    return world


def news(world: World) -> list[Row]:
    return [row for row in world.rows("test.item") if row["op"] != "r"]


def test_f30_a_value_that_did_not_change_is_marked_and_not_read_again(item: World) -> None:
    item.take()
    item.execute("UPDATE item SET n = 10 WHERE id = 1")
    item.take()
    (row,) = news(item)
    assert (row["unchanged"], row["after"]["n"]) == (["big"], 10)
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f30_a_row_that_moves_to_another_key_is_whole(item: World) -> None:
    item.take()
    item.execute("UPDATE item SET id = 100 WHERE id = 1", "UPDATE item SET n = 7 WHERE id = 100")
    item.take()
    moved, touched = news(item)
    assert (moved["before"]["id"], moved["after"]["id"], moved["unchanged"]) == (1, 100, [])
    assert touched["unchanged"] == ["big"]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def told(world: World) -> list[tuple[str, int | None, int | None, list[str]]]:
    sides = [(row, row["before"], row["after"]) for row in news(world)]
    return [(row["op"], b and b["id"], a and a["id"], row["unchanged"]) for row, b, a in sides]


def test_f30_of_a_row_that_moved_and_is_gone_the_end_alone_is_told(item: World) -> None:
    item.take()
    item.execute("UPDATE item SET id = 100 WHERE id = 1", "UPDATE item SET n = 1 WHERE id = 100")
    item.execute("DELETE FROM item WHERE id = 100")
    item.take()
    assert told(item) == [("d", 1, None, []), ("d", 100, None, [])]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f30_a_row_that_moved_on_is_told_where_it_is(item: World) -> None:
    item.take()
    item.execute(
        "BEGIN",
        "UPDATE item SET id = 100 WHERE id = 1",
        "UPDATE item SET n = 7 WHERE id = 100",
        "UPDATE item SET id = 200 WHERE id = 100",
        "COMMIT",
    )
    item.take()
    assert told(item) == [("d", 1, None, []), ("u", 100, 200, [])]
    assert item.folded("test.item") == item.table("item", COLUMNS)


@pytest.mark.parametrize("begin", [("BEGIN", "COMMIT"), ("SELECT", "SELECT")])
def test_f30_a_row_that_came_back_is_whole_again(item: World, begin: tuple[str, str]) -> None:
    item.take()
    item.execute(
        begin[0],
        "UPDATE item SET id = 100 WHERE id = 1",
        "UPDATE item SET n = 7 WHERE id = 100",
        "UPDATE item SET id = 1 WHERE id = 100",
        "UPDATE item SET n = 8 WHERE id = 1",
        begin[1],
    )
    item.take()
    assert told(item) == [("d", 1, None, []), ("u", 100, 1, []), ("u", None, 1, ["big"])]
    assert item.folded("test.item") == item.table("item", COLUMNS)


@pytest.mark.parametrize("restarted", [False, True])
def test_f30_a_lost_row_is_remembered_from_batch_to_batch(
    item: World, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the batch of the move is looked at, the row has moved on already; what it was in between comes later."""
    item.take()
    item.execute("UPDATE item SET id = 100 WHERE id = 1")
    meanwhile = [
        "UPDATE item SET n = 7 WHERE id = 100",
        "UPDATE item SET id = 200 WHERE id = 100",
        "UPDATE item SET n = 8 WHERE id = 200",
        "UPDATE item SET n = 9 WHERE id = 2",
    ]
    find = Rereader.find

    def late(*args: Any) -> Found:
        while meanwhile:
            item.execute(meanwhile.pop(0))
        return find(*args)

    monkeypatch.setattr(Rereader, "find", late)
    take_until(item, 1 if restarted else 4)
    item.take()
    assert told(item) == [
        ("d", 1, None, []),
        ("u", 100, 200, []),
        ("u", None, 200, ["big"]),
        ("u", None, 2, ["big"]),
    ]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f30_behind_a_stored_transaction_every_row_is_known_to_be_there(
    item: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read on from right behind it, when the row that then changes is gone."""
    monkeypatch.setattr(units, "LARGE", 1_000)
    item.take()
    item.execute("INSERT INTO item SELECT i, i, 'small' FROM generate_series(1000, 5999) i")
    take_until(item, 5000)
    item.execute("UPDATE item SET n = 7 WHERE id = 2", "DELETE FROM item WHERE id = 2")
    item.take()
    assert told(item)[5000:] == [("u", None, 2, ["big"]), ("d", 2, None, [])]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f30_a_lost_row_that_was_made_anew_is_known_to_be_there(item: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the last that a batch has of it is a change that carries no more than a part."""
    item.take()
    item.execute("UPDATE item SET id = 100 WHERE id = 1")
    gone = ["DELETE FROM item WHERE id = 100"]
    find = Rereader.find

    def late(*args: Any) -> Found:
        while gone:
            item.execute(gone.pop())
        return find(*args)

    monkeypatch.setattr(Rereader, "find", late)
    monkeypatch.setattr(Rereader, "log_end", lambda _: 2**62)  # as if much had happened since
    take_until(item, 1)
    item.execute("BEGIN", f"INSERT INTO item VALUES (100, 1, {BIG})", "UPDATE item SET n = 2 WHERE id = 100", "COMMIT")
    take_until(item, 4)
    item.execute("UPDATE item SET n = 3 WHERE id = 100", "DELETE FROM item WHERE id = 100")
    item.take()
    assert told(item) == [
        ("d", 1, None, []),
        ("d", 100, None, []),
        ("c", None, 100, []),
        ("u", None, 100, ["big"]),
        ("u", None, 100, ["big"]),
        ("d", 100, None, []),
    ]


def take_until(world: World, count: int) -> None:
    """Until so many changes were told, without an end before."""
    with closing(world.source()) as source:
        for _ in world.stream(source, follow=True):
            if len(news(world)) >= count:
                break


def test_f30_a_lost_value_that_a_where_reads_marks_no_delete(item: World) -> None:
    item.captures = (capture("other", "id"), capture("item", COLUMNS, whole=("big",)))
    item.take()
    item.execute("UPDATE item SET id = 100 WHERE id = 1", "DELETE FROM item WHERE id = 100")
    item.take()
    assert told(item) == [("d", 1, None, []), ("d", 100, None, [])]
    assert [row["invalid"] for row in news(item)] == [None, None]


def test_a_value_that_a_where_reads_is_read_again(item: World) -> None:
    item.captures = (capture("other", "id"), capture("item", COLUMNS, whole=("big",)))
    item.take()
    item.execute("UPDATE item SET n = n + 10 WHERE id < 3", f"UPDATE item SET n = 7, big = {BIG} WHERE id = 4")
    item.take()
    assert [(row["after"]["n"], row["unchanged"], row["invalid"]) for row in news(item)] == [
        (11, [], None),
        (12, [], None),
        (7, [], None),
    ]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_a_value_that_a_where_reads_and_nobody_knows_is_marked_as_invalid(item: World) -> None:
    item.captures = (capture("other", "id"), capture("item", COLUMNS, whole=("big",)))
    item.take()
    item.execute("UPDATE item SET n = 10 WHERE id = 1", "DELETE FROM item WHERE id = 1")
    item.take()
    update, delete = news(item)
    (mark,) = update["invalid"]
    assert (mark["column"], mark["got"]) == ("big", "what the log left out, and the row is gone")
    assert update["unchanged"] == []
    assert (delete["op"], delete["invalid"]) == ("d", None)


def test_each_stream_of_a_table_gets_what_it_needs(item: World) -> None:
    second = capture("item", "id big", stream="test.second", whole=("big",))
    item.captures = (capture("other", "id"), capture("item", COLUMNS), second)
    item.take()
    item.execute("UPDATE item SET n = 10 WHERE id = 1")
    item.take()
    assert [row["unchanged"] for row in news(item)] == [["big"]]
    assert [row["unchanged"] for row in item.rows("test.second") if row["op"] == "u"] == [[]]


def test_f30_old_rows_that_are_whole_have_the_value(item: World) -> None:
    item.execute("ALTER TABLE item REPLICA IDENTITY FULL")
    item.take()
    item.execute("UPDATE item SET n = 10 WHERE id = 1", "UPDATE item SET id = 50 WHERE id = 2", "DELETE FROM item")
    item.take()
    assert [row["unchanged"] for row in news(item)] == [[]] * 8
    assert all(row["after"]["big"] for row in news(item) if row["op"] == "u")


def add_later(item: World) -> None:
    item.captures = (capture("other", "id"),)
    item.take()
    item.captures = (capture("other", "id"), capture("item", COLUMNS))
    item.take(1)  # what is written from now on is in the log


def test_f28_a_partial_change_of_a_row_that_is_yet_to_be_read_comes_after_the_whole_row(item: World) -> None:
    add_later(item)
    item.execute("UPDATE item SET n = 10 WHERE id = 5", "UPDATE item SET n = 11 WHERE id = 5")
    item.take()
    rows = [
        (row["op"], row["after"]["n"], row["unchanged"]) for row in item.rows("test.item") if row["after"]["id"] == 5
    ]
    assert rows[:3] == [("r", 11, []), ("u", 10, ["big"]), ("u", 11, ["big"])]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f28_a_partial_change_of_a_row_that_was_gone_when_rows_were_read_is_left_out(item: World) -> None:
    add_later(item)
    item.execute("UPDATE item SET n = 10 WHERE id = 5", "DELETE FROM item WHERE id = 5")
    item.take()
    assert [row["op"] for row in news(item)] == ["d"]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_a_dropped_column_breaks_only_the_stream_that_needs_it(item: World) -> None:
    item.captures = (capture("other", "id"), capture("item", COLUMNS, whole=("big",)))
    item.take()
    item.execute("UPDATE item SET n = 10 WHERE id = 1", "ALTER TABLE item DROP big")
    with pytest.raises(SourceError, match="big"):
        item.take()


def test_a_change_of_a_key_that_cannot_be_found_again_says_so(database: str) -> None:
    world = World(database, capture("item", COLUMNS, whole=("big",)))
    world.execute(
        "CREATE TABLE item (id int[] PRIMARY KEY, n int, big text)",
        "ALTER TABLE item ALTER big SET STORAGE EXTERNAL",
        f"INSERT INTO item VALUES ('{{1}}', 1, {BIG})",
    )
    world.take()
    world.execute("UPDATE item SET n = 2")
    with pytest.raises(SourceError, match="key column `id`"):
        world.take()


def test_a_load_that_was_carried_out_is_known_by_its_token(item: World) -> None:
    item.take()
    item.captures = (capture("other", "id"), capture("item", COLUMNS, load=Load("second", where="id = 3")))
    item.take()
    item.take()
    assert [row["after"]["id"] for row in item.rows("test.item")] == [1, 2, 3, 4, 5, 6, 3]


WHOLE = f"INSERT INTO item VALUES (7, 1, {BIG})"
PARTIAL = ("UPDATE item SET n = 2 WHERE id = 7", "DELETE FROM item WHERE id = 7")


def take_through(world: World, *meanwhile: str, restarted: bool = False) -> None:
    """Once the log has brought the row, these statements run, all at once, and are read if it is not `restarted`."""
    with closing(world.source()) as source:
        for _ in world.stream(source, follow=True):
            if not any(row["after"] and row["after"]["id"] == 7 for row in world.rows("test.item")):
                continue
            if meanwhile:
                world.execute(*meanwhile)
            if restarted or "d" in world.ops("test.item"):
                break
            meanwhile = ()


def told_of(world: World) -> list[tuple[str, list[str]]]:
    sides = [(row, row["after"] or row["before"]) for row in world.rows("test.item")]
    return [(row["op"], row["unchanged"]) for row, side in sides if side["id"] == 7]


@pytest.mark.parametrize("restarted", [False, True])
def test_f28_a_partial_change_of_a_row_that_the_log_brought_is_told_though_it_is_gone(
    item: World, restarted: bool
) -> None:
    add_later(item)
    item.execute(WHOLE)
    take_through(item, *PARTIAL, restarted=restarted)
    item.take()
    assert told_of(item) == [("c", []), ("u", ["big"]), ("d", [])]
    assert item.folded("test.item") == item.table("item", COLUMNS)


@pytest.mark.parametrize("broken_off", [False, True])
def test_f28_what_a_row_that_was_read_holds_is_told_from_where_its_load_was_broken_off(
    item: World, monkeypatch: pytest.MonkeyPatch, broken_off: bool
) -> None:
    """Behind its delete, which is left out, and before the transaction that made it anew and is a batch of its own."""
    add_later(item)
    item.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = 64', current_database()); END $$"
    )
    begin = chunks.begin
    written = [
        "DELETE FROM item WHERE id = 1",
        "INSERT INTO item VALUES (100, 1, 'behind the chunk')",
        "INSERT INTO item VALUES (1, 11, repeat('large', 20000))",
    ]

    def behind_what_is_written(connection: Any) -> chunks.Seen:
        item.execute(*written)
        written.clear()
        return begin(connection)

    monkeypatch.setattr(chunks, "begin", behind_what_is_written)
    with closing(item.source()) as source:
        for _ in item.stream(source, follow=False):
            if broken_off and any(row["op"] == "c" for row in item.rows("test.item")):
                break
    item.take()
    told = [(row["op"], row["after"]["n"]) for row in item.rows("test.item") if row["after"]["id"] == 1]
    assert told == ([("r", 11), ("c", 11)] if broken_off else [("r", 11)])
    assert item.folded("test.item") == item.table("item", COLUMNS)
