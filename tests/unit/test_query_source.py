"""Query capture on SQLite: what each pattern yields, poll by poll, and what a restart makes of it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headwater.config import SourceConfig, StreamConfig
from headwater.errors import ConfigError, GapError, SourceError
from headwater.model import Batch, Op, Order, Position, Reload, TableId
from headwater.protocols import Capture, Load, Source
from headwater.sources.query import open_source

Row = tuple[Any, ...]


class Bench:
    """A database file, and captures of its table `t` (or of a query)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position: Position | None = None

    def run(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def capture(self, columns: str, identity: str, load: Load | None = None, **config: Any) -> Capture:
        if "query" not in config:
            config.setdefault("table", "t")
        stream = StreamConfig.model_validate({"source": "db", "pattern": "query", **config})
        table = TableId("", stream.table or "q.s")
        return Capture("q.s", table, tuple(columns.split()), tuple(identity.split()), stream, load or Load("initial"))

    def source(self, capture: Capture, epoch: int = 1) -> Source:
        config = SourceConfig.model_validate(f"sqlite:///{self.path}")
        return open_source(
            name="db/query/q.s", pipeline="p", config=config, captures=(capture,), epoch=epoch, config_dir="."
        )

    def batches(self, capture: Capture, *, take: int | None = None) -> list[Batch]:
        """One catch-up from where the last one ended; `take`: stopped after so many batches, as by a crash."""
        source = self.source(capture)
        found: list[Batch] = []
        reading = source.read(self.position, follow=False)
        for batch in reading:
            found.append(batch)
            self.position = batch.position
            if take is not None and len(found) == take:
                break
        reading.close()  # type: ignore[attr-defined]
        source.close()
        return found

    def changes(self, capture: Capture, **how: Any) -> list[Row]:
        return changes_in(self.batches(capture, **how))

    def crashing(self, capture: Capture) -> list[Row]:
        """The same as `changes`, with a crash after each batch."""
        found: list[Row] = []
        while batches := self.batches(capture, take=1):
            found += changes_in(batches)
        return found


def changes_in(batches: list[Batch]) -> list[Row]:
    """(letter, *values of the row)."""
    return [
        (Op(row["_op"]).letter, *row["after"].values())
        for batch in batches
        for changes in batch.changes
        for row in changes.data.to_pylist()
    ]


def orders_in(batches: list[Batch]) -> list[Order]:
    return [
        Order(row["_epoch"], row["_commit"], row["_index"])
        for batch in batches
        for changes in batch.changes
        for row in changes.data.to_pylist()
    ]


@pytest.fixture
def db(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "s.db")
    bench.run("CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, v TEXT)", "CREATE INDEX t_at ON t (at)")
    return bench


def moment(seconds: int) -> str:
    return f"2024-01-01 {seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def put(*rows: tuple[int, int | None, str]) -> str:
    values = ", ".join(f"({i}, {'NULL' if at is None else repr(moment(at))}, '{v}')" for i, at, v in rows)
    return f"INSERT OR REPLACE INTO t VALUES {values}"


# by timestamp and key


def test_load_then_polls(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at")
    db.run(put((1, 10, "a"), (2, 20, "b")))
    assert db.changes(capture) == [("r", 1, "a"), ("r", 2, "b")]
    assert db.changes(capture) == []
    db.run(put((2, 30, "B"), (3, 30, "c")))
    assert db.changes(capture) == [("u", 2, "B"), ("u", 3, "c")]
    assert db.changes(capture) == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 7])
def test_f61_equal_timestamps_across_pages_and_crashes(db: Bench, page_size: int) -> None:
    capture = db.capture("id", "id", cursor="at", page_size=page_size, look_back=0)
    db.run(put(*((n, 50, "x") for n in range(10))))
    assert db.crashing(capture) == [("r", n) for n in range(10)]
    db.run(put(*((n, 60, "x") for n in range(20, 5, -1))))
    assert db.crashing(capture) == [("u", n) for n in range(6, 21)]


@pytest.mark.parametrize("look_back", [0, 5, 60])
def test_f6_a_crash_after_any_batch_neither_loses_nor_repeats(db: Bench, look_back: int) -> None:
    capture = db.capture("id at v", "id", cursor="at", page_size=2, look_back=look_back)
    db.run(put(*((n, n // 3, "a") for n in range(9))))
    seen = db.changes(capture, take=2)
    db.run(put((0, 100, "moved"), (8, 101, "moved"), (50, 102, "new")))
    seen += db.crashing(capture)
    newest = {row[1]: (row[0], row[3]) for row in seen}
    assert newest == {
        0: ("u", "moved"), 1: ("r", "a"), 2: ("r", "a"), 3: ("r", "a"), 4: ("r", "a"), 5: ("r", "a"),
        6: ("r", "a"), 7: ("r", "a"), 8: ("r", "moved"), 50: ("r", "new"),
    }  # fmt: skip
    assert len(seen) == 11


def test_f60_rows_that_commit_late_within_the_look_back_are_seen_once(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", look_back="30s")
    db.run(put((1, 100, "a"), (2, 110, "b")))
    db.changes(capture)
    db.run(put((3, 81, "late"), (4, 100, "tie"), (5, 120, "new")))
    assert sorted(db.changes(capture)) == [("u", 3, "late"), ("u", 4, "tie"), ("u", 5, "new")]
    assert db.changes(capture) == []
    db.run(put((6, 80, "too late"), (7, 91, "in time")))
    assert db.changes(capture) == [("u", 7, "in time")]


def test_f60_what_is_later_than_the_look_back_is_found_by_reconciliation(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", look_back="30s", reconcile_deletes=0)
    db.run(put((1, 100, "a"), (2, 200, "b")))
    db.changes(capture)
    db.run(put((3, 5, "very late")))
    batches = db.batches(capture)
    assert changes_in(batches) == [("r", 1, "a"), ("r", 2, "b"), ("r", 3, "very late")]
    marks = [c.reading for b in batches for c in b.changes]
    assert [(m.reload, m.last) for m in marks if m] == [(Reload.DIFFERENCE, False), (Reload.DIFFERENCE, True)]


def test_an_update_within_the_look_back_that_keeps_its_timestamp_is_seen(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at")
    db.run(put((1, 10, "a"), (2, 20, "b")))
    db.changes(capture)
    db.run("UPDATE t SET v = 'A' WHERE id = 1")
    assert db.changes(capture) == [("u", 1, "A")]
    assert db.changes(capture) == []


def test_a_row_that_moves_while_a_pass_is_under_way_is_seen_once_in_each_state(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", page_size=1)
    db.run(put((1, 10, "a")))
    db.changes(capture)
    db.run(put((2, 20, "b"), (3, 30, "c")))
    found: list[Batch] = []
    with closing(db.source(capture)) as source:
        for batch in source.read(db.position, follow=False):
            if not found:
                db.run("UPDATE t SET v = 'B', at = '2024-01-01 00:00:30' WHERE id = 2")
            found.append(batch)
            db.position = batch.position
    assert changes_in(found) == [("u", 2, "b"), ("u", 2, "B"), ("u", 3, "c")]
    assert db.changes(capture) == []


def test_the_application_is_never_locked_out_while_a_batch_is_under_way(db: Bench) -> None:
    db.run(put(*((n, n, "a") for n in range(6))))
    for config in ({}, {"cursor": "at"}, {"query": "SELECT id, at FROM t", "key": ["id"]}):
        capture = db.capture("id", "id", page_size=2, **config)
        with closing(db.source(capture)) as source, closing(sqlite3.connect(db.path, timeout=0)) as application:
            for number, _ in enumerate(source.read(None, follow=False)):
                application.execute("UPDATE t SET v = ? WHERE id = 1", (str(number),))
                application.commit()


def test_the_look_back_is_bounded_and_says_so(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", look_back_rows=3)
    db.run(put(*((n, 10, "a") for n in range(4))))
    with pytest.raises(SourceError, match="4 rows lie within the look-back window, at most 3 may(.|\n)*look_back_rows"):
        db.changes(capture)


def test_the_window_moves_on(db: Bench) -> None:
    capture = db.capture("id", "id", cursor="at", look_back="10s", look_back_rows=30)
    seen = []
    for start in range(0, 200, 10):
        db.run(put(*((n, n, "a") for n in range(start, start + 10))))
        seen += db.changes(capture)
    assert [row[1] for row in seen] == list(range(200))


def test_rows_with_a_null_cursor_are_loaded_counted_and_reconciled(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", reconcile_deletes=0)
    db.run(put((1, None, "a"), (2, 20, "b")))
    batches = db.batches(capture)
    assert changes_in(batches)[:2] == [("r", 1, "a"), ("r", 2, "b")]
    notes = [note.text for batch in batches for note in batch.notes if note.kind == "schema"]
    assert notes == ["1 rows have NULL in at, id: no poll sees them"]
    db.run(put((3, None, "c")))
    assert ("r", 3, "c") in db.changes(capture)


def test_polls_do_not_see_rows_with_a_null_cursor(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at")
    db.run(put((2, 20, "b")))
    db.changes(capture)
    db.run(put((3, None, "c")))
    batches = db.batches(capture)
    assert changes_in(batches) == []
    assert [note.text for b in batches for note in b.notes] == ["1 rows have NULL in at, id: no poll sees them"]
    assert db.batches(capture) == []


def test_a_cursor_that_went_back_is_said_and_repaired(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", look_back="5s")
    db.run(put((1, 1000, "a"), (2, 1100, "b")))
    db.changes(capture)
    db.run("DELETE FROM t", put((1, 10, "restored"), (3, 20, "c")))
    batches = db.batches(capture)
    assert changes_in(batches) == [("r", 1, "restored"), ("r", 3, "c")]
    assert [n.text for b in batches for n in b.notes if n.kind == "gap"] == [
        "the highest `at` of t went back, beyond the look-back window; all rows were compared"
    ]
    assert all(c.reading and c.reading.reload is Reload.DIFFERENCE for b in batches for c in b.changes)
    db.run(put((4, 30, "d")))
    assert db.changes(capture) == [("u", 4, "d")]


def test_a_crash_within_a_repair_repairs_again(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", look_back="5s", page_size=1)
    db.run(put((1, 900, "a"), (2, 1000, "b")))
    db.changes(capture)
    db.run("DELETE FROM t", put((1, 10, "restored"), (3, 20, "c")))
    assert db.changes(capture, take=1) == [("r", 1, "restored")]
    batches = db.batches(capture)
    assert changes_in(batches) == [("r", 1, "restored"), ("r", 3, "c")]
    assert [c.reading.last for b in batches for c in b.changes if c.reading] == [False, False, True]


def test_a_table_that_was_emptied_starts_again(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at")
    db.run(put((1, 1000, "a")))
    db.changes(capture)
    db.run("DELETE FROM t")
    assert db.changes(capture) == []
    db.run(put((1, 5, "b")))
    assert db.changes(capture) == [("u", 1, "b")]


def test_texts_of_several_forms_are_said(db: Bench) -> None:
    capture = db.capture("id", "id", cursor="at")
    db.run("INSERT INTO t VALUES (1, '2024-01-01 10:00:00', 'x'), (2, '2024-01-01T09:59:50', 'x')")
    notes = [note.text for batch in db.batches(capture) for note in batch.notes if note.kind == "schema"]
    assert len(notes) == 1
    assert notes[0].startswith("`at` of t is not sorted by its values")


def test_an_invalid_value_is_marked_and_passes(db: Bench) -> None:
    capture = db.capture("id n", "id", cursor="at")
    db.run("ALTER TABLE t ADD COLUMN n INTEGER", put_n(1, "'abc'"), put_n(2, "5"))
    (batch, *_) = db.batches(capture)
    (first, *_) = batch.changes
    assert first.data.column("_invalid").to_pylist() == [
        [{"column": "n", "expected": "int64", "got": "text 'abc'"}],
        None,
    ]


def put_n(number: int, literal: str) -> str:
    return f"INSERT INTO t VALUES ({number}, '{moment(number)}', 'x', {literal})"


def test_a_clock_that_was_put_back_does_not_put_the_reconciliation_off(
    db: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = db.capture("id v", "id", cursor="at", reconcile_deletes=3600)
    db.run(put((1, 10, "a")))
    db.changes(capture)
    now = time.time()
    monkeypatch.setattr("headwater.sources.query.source.time.time", lambda: now - 100_000)
    assert [c.reading is not None for b in db.batches(capture) for c in b.changes] == [True, True]
    assert db.batches(capture) == [], "and it is done once"


def test_f20_a_bulk_load_that_was_interrupted_is_compared_once_it_is_done(db: Bench) -> None:
    """What had committed when the run began is in the stream when it ends, also of rows that were read before."""
    capture = db.capture("id v", "id", page_size=1)
    db.run(put((1, 10, "a"), (2, 10, "b"), (3, 10, "c")))
    assert db.changes(capture, take=2) == [("r", 1, "a"), ("r", 2, "b")]
    db.run("DELETE FROM t WHERE id = 1", "UPDATE t SET v = 'B' WHERE id = 2")
    found = db.batches(capture)
    assert changes_in(found) == [("r", 3, "c"), ("r", 2, "B"), ("r", 3, "c")]
    assert [c.reading.last for b in found for c in b.changes if c.reading] == [False, False, True]


def test_a_clock_that_was_put_back_does_not_put_bulk_polls_off(db: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = db.capture("id v", "id", every="50ms")
    db.run(put((1, 10, "a")))
    db.batches(capture)
    now = time.time()
    monkeypatch.setattr("headwater.sources.query.source.time.time", lambda: now - 100_000)
    source = db.source(capture)
    found: list[Batch] = []
    polling = threading.Thread(target=lambda: found.append(next(source.read(db.position, follow=True))), daemon=True)
    polling.start()
    polling.join(10)
    source.close()
    assert len(found) == 1


# by timestamp without a key


def test_a_table_without_a_key_is_captured_by_timestamp(db: Bench) -> None:
    db.run("CREATE TABLE log (at DATETIME, v TEXT)", "INSERT INTO log VALUES ('2024-01-01 00:00:01', 'x')")
    capture = db.capture("v", "", table="log", cursor="at", page_size=2)
    assert db.changes(capture) == [("r", "x")]
    db.run("INSERT INTO log VALUES " + ", ".join("('2024-01-01 00:00:01', 'x')" for _ in range(5)))
    assert db.crashing(capture) == [("u", "x")] * 5


# by id


def test_by_id(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="id", page_size=2, look_back_ids=10)
    db.run(put((5, 1, "a"), (7, 1, "b")))
    assert db.changes(capture) == [("r", 5, "a"), ("r", 7, "b")]
    db.run(put((6, 1, "late"), (8, 1, "c"), (9, 1, "d"), (7, 1, "update, not seen")))
    assert db.changes(capture) == [("c", 6, "late"), ("c", 8, "c"), ("c", 9, "d")]
    assert db.changes(capture) == []


def test_f60_ids_below_the_look_back_are_missed(db: Bench) -> None:
    capture = db.capture("id", "id", cursor="id", look_back_ids=2)
    db.run(put((5, 1, "a"), (8, 1, "a"), (10, 1, "b")))
    db.changes(capture)
    db.run(put((7, 1, "beyond"), (9, 1, "within")))
    assert db.changes(capture) == [("c", 9)]


# bulk


def test_bulk_loads_once_and_then_compares(db: Bench) -> None:
    capture = db.capture("id v", "id", page_size=2)
    db.run(put((1, 1, "a"), (2, 1, "b"), (3, 1, "c")))
    first = db.batches(capture)
    assert changes_in(first) == [("r", 1, "a"), ("r", 2, "b"), ("r", 3, "c")]
    assert all(c.reading is None for b in first for c in b.changes)
    db.run("DELETE FROM t WHERE id = 2")
    second = db.batches(capture)
    assert changes_in(second) == [("r", 1, "a"), ("r", 3, "c")]
    assert [c.reading.last for b in second for c in b.changes if c.reading] == [False, True]
    third = db.batches(capture)
    assert min(orders_in(third)) > max(orders_in(second)) > max(orders_in(first))
    assert [b.notes for b in third] == [(), ()]


def test_f23_an_interrupted_load_goes_on_where_it_was(db: Bench) -> None:
    capture = db.capture("id", "id", page_size=2)
    db.run(put(*((n, 1, "a") for n in range(7))))
    first = db.batches(capture, take=2)
    rest = db.batches(capture)
    assert changes_in(first) == [("r", 0), ("r", 1), ("r", 2), ("r", 3)]
    loaded = [b for b in rest if not any(c.reading for c in b.changes)]
    assert changes_in(loaded) == [("r", 4), ("r", 5), ("r", 6)]
    assert min(orders_in(rest)) > max(orders_in(first))


def test_an_interrupted_reading_begins_anew(db: Bench) -> None:
    capture = db.capture("id", "id", page_size=2)
    db.run(put(*((n, 1, "a") for n in range(3))))
    db.batches(capture)
    before = db.position
    partial = db.batches(capture, take=1)
    assert changes_in(partial) == [("r", 0), ("r", 1)]
    assert partial[0].position == before
    assert changes_in(db.batches(capture)) == [("r", 0), ("r", 1), ("r", 2)]


# loads


def test_skip_captures_only_what_changes_from_now_on(db: Bench) -> None:
    capture = db.capture("id v", "id", load=Load("initial", skip=True), cursor="at")
    db.run(put((1, 10, "a"), (2, 20, "b")))
    assert db.changes(capture) == []
    db.run(put((2, 25, "B"), (3, 5, "c")))
    assert db.changes(capture) == [("u", 3, "c"), ("u", 2, "B")]


def test_a_new_load_token_is_carried_out_once(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at")
    db.run(put((1, 10, "a")))
    db.batches(capture)
    rebuilt = dataclasses.replace(capture, load=Load("rebuild-1", Reload.REBUILD))
    batches = db.batches(rebuilt)
    assert changes_in(batches) == [("r", 1, "a")]
    assert [(c.reading.reload, c.reading.last) for b in batches for c in b.changes if c.reading] == [
        (Reload.REBUILD, False),
        (Reload.REBUILD, True),
    ]
    assert db.batches(rebuilt) == []
    db.run(put((2, 11, "b")))
    assert db.changes(rebuilt) == [("u", 2, "b")]


def test_another_cursor_is_a_gap_that_is_repaired(db: Bench) -> None:
    db.run(put((1, 10, "a")))
    db.batches(db.capture("id v", "id", cursor="at"))
    batches = db.batches(db.capture("id v", "id", cursor="id"))
    assert changes_in(batches) == [("r", 1, "a")]
    assert [n.kind for b in batches for n in b.notes] == ["gap"]


def test_without_a_key_a_gap_is_an_error(db: Bench) -> None:
    db.run("CREATE TABLE log (at DATETIME, n INTEGER NOT NULL)", "INSERT INTO log VALUES ('2024-01-01', 1)")
    db.batches(db.capture("n", "", table="log", cursor="at"))
    with pytest.raises(GapError, match="without a key its rows cannot be compared"):
        db.batches(db.capture("n", "", table="log", cursor="n"))


# custom SQL

JOIN = "SELECT t.id, t.v, p.name, t.at FROM t JOIN p ON p.id = t.p WHERE t.at > :cursor"


@pytest.fixture
def joined(db: Bench) -> Bench:
    db.run(
        "ALTER TABLE t ADD COLUMN p INTEGER",
        "CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT)",
        "INSERT INTO p VALUES (1, 'one'), (2, 'two')",
    )
    return db


def put_p(*rows: tuple[int, int, str, int]) -> str:
    values = ", ".join(f"({i}, '{moment(at)}', '{v}', {p})" for i, at, v, p in rows)
    return f"INSERT OR REPLACE INTO t VALUES {values}"


@pytest.mark.parametrize("look_back", [0, 60])
def test_custom_sql_with_a_cursor(joined: Bench, look_back: int) -> None:
    capture = joined.capture("id v name", "id", query=JOIN, key=["id"], cursor="at", page_size=2, look_back=look_back)
    joined.run(put_p((1, 10, "a", 1), (2, 10, "b", 2), (3, 10, "c", 1), (4, 99, "no parent", 7)))
    assert joined.changes(capture) == [("r", 1, "a", "one"), ("r", 2, "b", "two"), ("r", 3, "c", "one")]
    joined.run(put_p(*((n, 200, "d", 2) for n in range(5, 10))))
    assert joined.crashing(capture) == [("u", n, "d", "two") for n in range(5, 10)]
    assert joined.changes(capture) == []
    joined.run(put_p((9, 200, "D", 2), (3, 201, "e", 2)))
    expected = [("u", 3, "e", "two")] if look_back == 0 else [("u", 9, "D", "two"), ("u", 3, "e", "two")]
    assert joined.changes(capture) == expected


def test_a_view_in_bulk(joined: Bench) -> None:
    joined.run("CREATE VIEW w AS SELECT p, count(*) AS n FROM t GROUP BY p", put_p((1, 1, "a", 1), (2, 1, "b", 1)))
    capture = joined.capture("p n", "p", table="w", key=["p"])
    assert joined.changes(capture) == [("r", 1, "2")]


def test_duplicate_keys_are_an_error(joined: Bench) -> None:
    joined.run(put_p((1, 1, "a", 1), (2, 1, "b", 1)))
    capture = joined.capture("p v", "p", query="SELECT p, v FROM t", key=["p"])
    with pytest.raises(SourceError, match=r"rows of q.s have the same key \(p\)"):
        joined.changes(capture)


# errors, state, stopping


@pytest.mark.parametrize(
    ("columns", "key", "config", "error", "message"),
    [
        ("id", "id", {"cursor": "atx"}, SourceError, "has no column `atx`\n  hint: did you mean `at`"),
        ("id w", "id", {}, SourceError, "has no column `w`"),
        ("id", "", {}, ConfigError, "has no key, so two readings cannot be compared"),
        ("id", "", {"cursor": "at", "reconcile_deletes": 60}, ConfigError, "`reconcile_deletes` compares rows by key"),
        ("id", "id", {"cursor": "id", "look_back": "5s"}, ConfigError, "`look_back` is a time, but cursor `id` is not"),
        ("id", "id", {"table": "tt"}, SourceError, "there is no table `tt`"),
    ],
)
def test_what_cannot_work_is_said(
    db: Bench, columns: str, key: str, config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        db.changes(db.capture(columns, key, **config))
    assert message in str(raised.value)


def test_a_position_of_another_format_is_refused(db: Bench) -> None:
    capture = db.capture("id", "id", cursor="at")
    db.run(put((1, 1, "a")))
    db.batches(capture)
    assert db.position is not None
    head, _, tail = db.position.token.partition(b"\n")
    newer = json.dumps({**json.loads(head), "version": 2}).encode() + b"\n" + tail
    db.position = dataclasses.replace(db.position, token=newer)
    with pytest.raises(SourceError, match="is of format 2, expected 1"):
        db.batches(capture)
    db.position = dataclasses.replace(db.position, token=b"\x00trigger")
    with pytest.raises(SourceError, match="is not one of query capture"):
        db.batches(capture)


def test_state_is_every_row_on_its_own_connection(db: Bench) -> None:
    capture = db.capture("id v", "id", cursor="at", page_size=2)
    db.run(put((1, 1, "a"), (2, None, "b"), (3, 2, "c")))
    source = db.source(capture)
    state = source.state("q.s")
    assert state.order is None
    rows = [row["after"] for changes in state.changes for row in changes.data.to_pylist()]
    assert rows == [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}, {"id": 3, "v": "c"}]
    with pytest.raises(SourceError, match=r"feeds q.s, not other"):
        source.state("other")
    source.close()


def test_the_statement_timeout_is_named(db: Bench) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    capture = db.capture("i", "i", query=endless, key=["i"], statement_timeout="50ms")
    with pytest.raises(SourceError, match=r"statement timeout of 0.05 s"):
        db.changes(capture)


def test_epochs_never_fall(db: Bench) -> None:
    capture = db.capture("id", "id", cursor="at")
    db.run(put((1, 1, "a")))
    batches = list(db.source(capture, epoch=7).read(None, follow=False))
    assert (batches[-1].position.epoch, orders_in(batches)) == (7, [Order(7, 1, 0)])
    db.run(put((2, 2, "b")))
    (batch,) = db.source(capture, epoch=3).read(batches[-1].position, follow=False)
    assert (batch.position.epoch, batch.position.commit, changes_in([batch])) == (7, 2, [("u", 2)])


def test_f40_a_page_of_wide_rows_comes_in_parts(db: Bench) -> None:
    db.run(*(f"INSERT INTO t VALUES ({n}, '{moment(n)}', printf('%.*c', 2000000, 'x'))" for n in range(50)))
    capture = db.capture("id v", "id", cursor="at")
    batches = db.batches(capture)
    found = [(row["_op"], row["after"]["id"]) for b in batches for c in b.changes for row in c.data.to_pylist()]
    assert found == [(Op.READ, n) for n in range(50)]
    assert max(batch.nbytes for batch in batches) < 40 * 2**20
