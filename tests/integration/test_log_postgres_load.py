"""The rows that streams of PostgreSQL's log begin with: under a slot's snapshot, and beside the log."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import closing
from typing import Any

import pytest

from headwater.drivers.postgres import connect
from headwater.errors import SourceError
from headwater.model import Reload
from headwater.protocols import Load
from headwater.sources.log_postgres import chunks, load, pages
from headwater.sources.log_postgres.live import KeyLoad
from headwater.sources.log_postgres.position import Place
from headwater.sources.log_postgres.subject import Hidden, Step
from tests.log_load_world import World, capture

pytestmark = pytest.mark.needs("postgres")

COLUMNS = "id name big"
MANY = "INSERT INTO item SELECT i, 'n' || i, repeat('x', 900) FROM generate_series(1, 400) AS i"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of a few pages and chunks of a few rows."""
    monkeypatch.setattr(pages, "_PAGES", 4)
    monkeypatch.setattr(chunks, "_FIRST_ROWS", 30)
    monkeypatch.setattr(chunks, "_MOST", 30)


@pytest.fixture
def item(database: str, small: None) -> World:
    world = World(database, capture("item", COLUMNS))
    world.execute("CREATE TABLE item (id int PRIMARY KEY, name text, big text)", MANY)
    return world


def loaded(world: World, stream: str = "test.item") -> list[str]:
    return [note.text for note in world.notes if note.kind == "loaded" and note.stream == stream]


def read(world: World, stream: str = "test.item") -> list[Any]:
    return [row["after"]["id"] for row in world.rows(stream) if row["op"] == "r"]


class Writing:
    """Inserts, updates and deletes in a thread, until the block ends."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def _run(self) -> None:
        with connect(self._url, application="writer") as connection:
            while not self._stop.is_set():
                self.count += 1
                n = self.count
                connection.execute("INSERT INTO item VALUES (%s, 'new', 'b')", [10_000 + n])
                connection.execute("UPDATE item SET name = %s WHERE id = %s", [f"u{n}", n % 400])
                connection.execute("DELETE FROM item WHERE id = %s", [n % 400 + 7])
                self._began.set()

    def __enter__(self) -> Writing:
        self._thread.start()
        assert self._began.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_f22_every_reader_is_pinned_to_the_snapshot_of_the_slot(item: World) -> None:
    with Writing(item.url):
        item.take()
    item.take()
    assert len([part for batch in item.batches for part in batch.changes if part.stream]) > 5, (
        "one range proves nothing"
    )
    assert len(read(item)) == len(set(read(item)))
    news = [row["after"]["id"] for row in item.rows("test.item") if row["op"] == "c"]
    assert news
    assert not set(news) & set(read(item)), "a row came with the snapshot and with the log"
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_rows_of_the_snapshot_stand_below_the_slots_place_and_every_commit(item: World) -> None:
    item.take()
    item.execute("UPDATE item SET name = 'later' WHERE id = 1")
    item.take()
    places = [row["at"] for row in item.rows("test.item")]
    assert places == sorted(places)
    assert all(row["at"][1] % 8 == 1 for row in item.rows("test.item") if row["op"] == "r")
    assert loaded(item) == ["400 rows of public.item were read"]


def test_f23_a_broken_load_does_not_read_again_what_is_in_the_bus(item: World) -> None:
    for batches in (3, 2, 4):
        item.take(batches)
    item.take()
    assert sorted(read(item)) == list(range(1, 401))
    assert loaded(item) == ["400 rows of public.item were read"]
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f23_rows_that_changed_since_a_broken_load_come_as_they_are(item: World) -> None:
    item.take(4)
    known = set(read(item))
    item.execute("UPDATE item SET name = 'new' WHERE id IN (1, 390)", "DELETE FROM item WHERE id IN (2, 391)")
    item.take()
    again = [key for key in read(item) if read(item).count(key) > 1]
    assert set(again) <= {1}, f"of {len(known)} rows that were in the bus"
    assert item.folded("test.item") == item.table("item", COLUMNS)


@pytest.mark.parametrize("sql", ["VACUUM FULL item", "ALTER TABLE item ALTER name TYPE varchar(20)", "CLUSTER item"])
def test_f23_a_table_that_was_rewritten_since_is_read_from_its_beginning(item: World, sql: str) -> None:
    item.execute("ALTER TABLE item CLUSTER ON item_pkey", "DELETE FROM item WHERE id % 3 = 0")
    item.take(5)
    item.execute(sql)
    item.take()
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_a_table_that_is_rewritten_behind_the_snapshot_is_read_beside_the_log(item: World) -> None:
    source = item.source()
    with closing(source):
        batches = item.stream(source, follow=False)
        next(batches)
        item.execute("ALTER TABLE item ALTER id TYPE bigint")  # the snapshot would show it empty
        for _ in batches:
            pass
    assert sorted(read(item)) == list(range(1, 401))
    assert item.folded("test.item") == item.table("item", COLUMNS)


def test_f26_a_table_that_is_added_later_is_read_while_it_is_written(database: str, small: None) -> None:
    world = World(database, capture("other", "id"))
    world.execute("CREATE TABLE other (id int PRIMARY KEY)")
    world.execute("CREATE TABLE item (id int PRIMARY KEY, name text, big text)", MANY)
    world.take()
    world.captures = (*world.captures, capture("item", COLUMNS))
    with Writing(database):
        world.take()
    world.take()
    assert loaded(world)
    assert "c" in world.ops("test.item")
    assert world.folded("test.item") == world.table("item", COLUMNS)


def test_a_backfill_reads_the_rows_it_is_asked_for_and_goes_on_where_it_was_broken_off(item: World) -> None:
    item.take()
    before = len(item.batches)
    item.captures = (capture("item", COLUMNS, load=Load("again", where="id % 2 = 0 and name like 'n%'")),)
    item.take(4)
    item.take()
    item.batches = item.batches[before:]
    assert sorted(read(item)) == list(range(2, 401, 2))
    assert loaded(item) == ["200 rows of public.item were read"]


def test_a_where_that_cannot_be_evaluated_breaks_its_stream_alone(item: World) -> None:
    item.execute("CREATE TABLE other (id int PRIMARY KEY)", "INSERT INTO other VALUES (1)")
    item.take()
    item.captures = (capture("item", COLUMNS, load=Load("again", where="nothing = 1")), capture("other", "id"))
    source = item.source()
    with closing(source), pytest.raises(SourceError, match="nothing"):
        list(item.stream(source, follow=False))
    assert "nothing" in source.broken["test.item"].message
    assert list(source.broken) == ["test.item"]
    assert read(item, "test.other") == [1]


@pytest.mark.parametrize("batches", [None, 3, 5])
def test_rows_without_a_key_are_read_once_however_often_the_load_is_broken_off(
    database: str, small: None, batches: int | None
) -> None:
    world = World(database, capture("item", COLUMNS, key="", kind="event"))
    world.execute("CREATE TABLE item (id int, name text, big text)", MANY)
    if batches:
        world.take(batches)
        world.execute("INSERT INTO item VALUES (500, 'later', '')", "VACUUM item")
    world.take()
    world.execute("INSERT INTO item VALUES (501, 'later', '')")
    world.take()
    ids = sorted(row["after"]["id"] for row in world.rows("test.item"))
    assert ids == [row["id"] for row in world.table("item", "id")]


def test_rows_without_a_key_that_are_added_later_come_once(database: str, small: None) -> None:
    world = World(database, capture("other", "id"))
    world.execute("CREATE TABLE other (id int PRIMARY KEY)", "CREATE TABLE item (id int, name text, big text)", MANY)
    world.take()
    world.captures = (*world.captures, capture("item", COLUMNS, key="", kind="event"))
    stop = threading.Event()

    def write() -> None:
        with connect(database, application="writer") as connection:
            for n in range(1000, 100_000):
                connection.execute("INSERT INTO item VALUES (%s, 'new', '')", [n])
                if stop.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    world.take()
    stop.set()
    thread.join(30)
    world.take()
    ids = sorted(row["after"]["id"] for row in world.rows("test.item"))
    assert ids == [row["id"] for row in world.table("item", "id")]


def test_f33_partitions_are_read_leaf_by_leaf_under_their_root(database: str, small: None) -> None:
    world = World(database, capture("item", COLUMNS))
    world.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text, big text) PARTITION BY RANGE (id)",
        "CREATE TABLE item_a PARTITION OF item FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE item_b PARTITION OF item FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id)",
        "CREATE TABLE item_c (big text, gone int, name text, id int NOT NULL)",
        "ALTER TABLE item_c DROP gone",
        "ALTER TABLE item_b ATTACH PARTITION item_c FOR VALUES FROM (100) TO (250)",
        "CREATE TABLE item_d PARTITION OF item_b FOR VALUES FROM (250) TO (1000)",
        MANY,
    )
    world.take(8)
    assert 0 < len(read(world)) < 400
    world.execute("UPDATE item SET id = id + 500 WHERE id = 3", "DELETE FROM item WHERE id = 120")
    world.take()
    assert len(read(world)) == len(set(read(world)))
    assert world.folded("test.item") == world.table("item", COLUMNS)


def test_rows_of_a_child_are_its_own(database: str, small: None) -> None:
    world = World(database, capture("item", COLUMNS))
    world.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text, big text)", "CREATE TABLE child () INHERITS (item)"
    )
    world.execute("INSERT INTO item VALUES (1, 'a', '')", "INSERT INTO child VALUES (2, 'b', '')")
    world.take()
    assert read(world) == [1]


def test_f33_quoted_names_and_keys_of_several_columns(database: str, small: None) -> None:
    name, column = 'It"em.x', "a b'c"
    quoted = '"It""em.x"', '"a b\'c"'
    world = World(database, capture("other", "id"))
    world.execute(
        "CREATE TABLE other (id int PRIMARY KEY)",
        f"CREATE TABLE {quoted[0]} ({quoted[1]} text, n uuid, PRIMARY KEY ({quoted[1]}, n))",
        f"INSERT INTO {quoted[0]} SELECT k, gen_random_uuid()"
        " FROM unnest(ARRAY[$$it's$$, $$q\"q$$, $$b\\s$$, '', 'ä', '%']) AS k, generate_series(1, 20)",
    )
    world.take()
    wanted = capture("other", "id", stream="test.quoted")
    wanted = type(wanted)(
        "test.quoted", type(wanted.table)("public", name), (column, "n"), (column, "n"), wanted.config
    )
    world.captures = (*world.captures, wanted)
    world.take()
    rows = [(row["after"][column], row["after"]["n"]) for row in world.rows("test.quoted")]
    assert sorted(rows) == sorted(world.execute(f"SELECT {quoted[1]}, n::text FROM {quoted[0]}"))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (
            'text COLLATE "und-x-icu"',
            "SELECT chr(c) || chr(d) FROM generate_series(32, 255, 9) c, generate_series(65, 122, 9) d",
        ),
        ('text COLLATE "de-x-icu"', "SELECT k FROM unnest(ARRAY['ä', 'a', 'Z', 'z', 'ß', 'ss', 'Ä', 'A', 'b']) AS k"),
        ("uuid", "SELECT gen_random_uuid() FROM generate_series(1, 100)"),
        ("numeric", "SELECT n / 7.0 FROM generate_series(-50, 50) n"),
        ("timestamptz", "SELECT now() - n * interval '1 minute 0.000001 s' FROM generate_series(1, 100) n"),
        ("bytea", "SELECT decode(lpad(to_hex(n), 4, '0'), 'hex') FROM generate_series(1, 100) n"),
        ("char(5)", "SELECT n::text FROM generate_series(1, 100) n"),
        ("bool", "SELECT n = 1 FROM generate_series(0, 1) n"),
        ("inet", "SELECT ('10.0.0.' || n)::inet FROM generate_series(1, 100) n"),
    ],
)
def test_f27_keys_are_compared_in_the_database_alone(
    database: str, monkeypatch: pytest.MonkeyPatch, kind: str, keys: str
) -> None:
    monkeypatch.setattr(chunks, "_FIRST_ROWS", 7)
    monkeypatch.setattr(chunks, "_MOST", 7)
    world = World(database, capture("other", "id"))
    world.execute("CREATE TABLE other (id int PRIMARY KEY)", f"CREATE TABLE item (id {kind} PRIMARY KEY, big text)")
    world.execute("ALTER TABLE item ALTER big SET STORAGE EXTERNAL")
    world.execute(f"INSERT INTO item SELECT DISTINCT k, repeat('x', 2100) FROM ({keys}) AS made(k)")
    ((count,),) = world.execute("SELECT count(*) FROM item")
    world.take()
    world.captures = (*world.captures, capture("item", "id big"))
    world.take(3, follow=True)
    world.take()
    found = read(world)
    assert len(found) == len(set(found)) == count


def test_a_table_that_vanishes_breaks_its_stream_alone(item: World) -> None:
    item.execute("CREATE TABLE other (id int PRIMARY KEY)", "INSERT INTO other VALUES (1)")
    item.captures = (capture("item", COLUMNS), capture("other", "id"))
    source = item.source()
    with closing(source):
        batches = item.stream(source, follow=False)
        next(batches)
        item.execute("DROP TABLE item")
        with pytest.raises(SourceError, match=r"public\.item"):
            list(batches)
    assert list(source.broken) == ["test.item"]
    assert loaded(item, "test.other") == ["1 rows of public.other were read"]


@pytest.mark.parametrize("reload", list(Reload))
def test_a_reading_is_one_whole_and_begins_again_when_it_is_broken_off(item: World, reload: Reload) -> None:
    item.take()
    item.batches = []
    item.captures = (capture("item", COLUMNS, load=Load("all", reload)),)
    item.take(2)
    assert item.rows("test.item") == []
    item.take()
    parts = [part for part in item.changes("test.item") if part.reading is not None]
    assert [part.reading.last for part in parts if part.reading] == [False] * (len(parts) - 1) + [True]
    assert len({part.reading for part in parts if part.reading and not part.reading.last}) == 1
    assert sorted(read(item)) == list(range(1, 401))
    assert loaded(item) == ["400 rows of public.item were read"]
    item.batches = []
    item.take()
    assert item.rows("test.item") == [], "a load is carried out once"


def test_f23_servers_without_page_ranges_are_read_by_key(item: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "TID_RANGES", 10**6)
    item.take(4)
    assert 0 < len(read(item)) < 400
    item.take()
    assert sorted(read(item)) == list(range(1, 401))
    assert loaded(item) == ["400 rows of public.item were read"]


def test_nothing_is_read_of_a_stream_that_skips_its_load(item: World) -> None:
    item.captures = (capture("item", COLUMNS, load=Load("initial", skip=True)),)
    item.take()
    item.execute("INSERT INTO item VALUES (1000, 'a', 'b')")
    item.take()
    assert item.ops("test.item") == "c"


def test_a_place_in_the_order_is_never_given_twice(item: World) -> None:
    item.take()
    for token in "abc":
        item.captures = (capture("item", COLUMNS, load=Load(token, where="id < 40")),)
        item.take()
    places = [row["at"] for row in item.rows("test.item")]
    assert len(places) == 400 + 3 * 39
    assert len(set(places)) == len(places)


def as_chosen(rows: list[dict[str, Any]], name: str) -> dict[Any, dict[str, Any]]:
    """The rows that a reader has of a stream without those of this name: a READ of one of these tells it nothing."""
    state: dict[Any, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["at"]):
        before, after = row["before"], row["after"]
        if before is not None:
            state.pop(before["id"], None)
        if after is not None and after["name"] != name:
            state[after["id"]] = after
        elif after is not None and row["op"] != "r":
            state.pop(after["id"], None)
    return state


HIDING = {
    "a change": ["UPDATE item SET name = 'draft' WHERE id = 60"],
    "a new row": ["DELETE FROM item WHERE id = 60", "INSERT INTO item VALUES (60, 'draft', 'b')"],
    "there and back": [f"UPDATE item SET name = '{name}' WHERE id = 60" for name in ("draft", "public", "draft")],
    "another key": ["DELETE FROM item WHERE id = 60", "UPDATE item SET id = 60, name = 'draft' WHERE id = 390"],
    "nothing": [f"UPDATE item SET name = '{name}' WHERE id = 60" for name in ("draft", "public")],
}


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
@pytest.mark.parametrize("hiding", HIDING)
def test_a_row_that_is_not_chosen_when_it_is_read_ends(
    item: World, hiding: str, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has told of it as a chosen one; the change that is in the rows already was to take it away."""
    wanted = item.captures[0]
    item.execute("CREATE TABLE other (id int PRIMARY KEY)", f"ALTER TABLE item REPLICA IDENTITY {identity}")
    item.captures = (capture("other", "id"),)
    item.take()
    config = wanted.config.model_copy(update={"where": "name <> 'draft'"})
    item.captures = (capture("other", "id"), dataclasses.replace(wanted, config=config))
    item.take(1)
    item.execute("UPDATE item SET name = 'public' WHERE id = 60")
    chunk, statements = KeyLoad._chunk, list(HIDING[hiding])

    def late(self: KeyLoad, place: Place, hidden: Hidden) -> Step | None:
        if place.loads["test.item"].after == ("30",):
            while statements:
                item.execute(statements.pop(0))
        return chunk(self, place, hidden)

    monkeypatch.setattr(KeyLoad, "_chunk", late)
    item.take()
    assert not statements
    expected = {row["id"]: row for row in item.table("item", COLUMNS) if row["name"] != "draft"}
    assert as_chosen(item.rows("test.item"), "draft") == expected
    assert item.folded("test.item") == item.table("item", COLUMNS)
