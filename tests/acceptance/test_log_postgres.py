"""PostgreSQL's log, the whole path: database, contract, bus, sink. Loss and doubling are looked at together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater import figures
from headwater.quarantine import replay
from headwater.repair import repair
from headwater.sources.log_postgres import pages, units
from headwater.testing.postgres import PostgresServer
from tests.acceptance.postgres_project import PostgresProject
from tests.acceptance.project import contract, program, until

pytestmark = pytest.mark.needs("postgres")

THREE = "INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 20), (3, 'three', 30);"
LOADED = {("r", 1, "one", 10), ("r", 2, "two", 20), ("r", 3, "three", 30)}
LARGE = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200) n)"
"""6,400 characters that do not compress: stored out of line (TOAST)."""


@pytest.fixture
def project(tmp_path: Path, database: str) -> PostgresProject:
    return PostgresProject(tmp_path, url=database)


def test_rows_are_loaded_and_changes_follow(project: PostgresProject) -> None:
    project.run(THREE)
    assert set(project.events()) == LOADED
    project.run("UPDATE item SET size = 11 WHERE id = 1; DELETE FROM item WHERE id = 2; INSERT INTO item VALUES (4);")
    assert project.events()[3:] == [("u", 1, "one", 11), ("d", 2, None, None), ("c", 4, None, None)]
    assert project.rows() == project.source()
    project.require_equal()


def test_nothing_changed_nothing_happens(project: PostgresProject) -> None:
    project.run(THREE)
    project.run()
    assert set(project.events()) == LOADED


def test_events_carry_the_commits_time_and_transaction(project: PostgresProject) -> None:
    project.run()
    project.run("BEGIN; INSERT INTO item VALUES (1); INSERT INTO item VALUES (2); COMMIT; INSERT INTO item VALUES (3);")
    with project.assembly() as assembly:
        parts = [part.data for part in assembly.bus.read("shop.item", after=None, follow=False)]
    rows = [row for part in parts for row in part.select(["_commit", "_index", "_transaction", "_time"]).to_pylist()]
    assert [row["_index"] for row in rows] == [0, 2, 0]
    assert rows[0]["_transaction"] == rows[1]["_transaction"] != rows[2]["_transaction"]
    assert rows[0]["_commit"] == rows[1]["_commit"] < rows[2]["_commit"]
    assert rows[0]["_time"] == rows[1]["_time"] <= rows[2]["_time"]


def test_f26_a_stream_added_while_it_runs_is_loaded_beside_live_changes(project: PostgresProject) -> None:
    project.sql("CREATE TABLE other (id bigint PRIMARY KEY, name text, size bigint)")
    project.sql("INSERT INTO other SELECT n, 'n' || n, n FROM generate_series(1, 20000) n")
    project.run(THREE)
    project.config["streams"]["shop.other"] = project.stream(table="public.other")
    project.contracts["shop.other"] = contract("shop.other")
    with project.running():
        for number in range(20):
            project.sql(
                f"UPDATE other SET name = 'changed' WHERE id % 20 = {number};"
                f"DELETE FROM other WHERE id = {number + 5};"
                f"INSERT INTO other VALUES ({30000 + number}, 'new', 0); INSERT INTO item VALUES ({100 + number});"
            )
        until(lambda: (project.head("shop.other") or 0) > 20000)
    project.run()
    assert project.rows(table="shop_other") == set(project.ask("SELECT id, name, size FROM other"))
    assert project.rows() == project.source()
    project.require_equal("shop.other")
    project.require_equal()


def test_f30_a_large_value_that_was_not_changed_stays_in_every_sink(project: PostgresProject) -> None:
    project.config["sinks"]["copy"] = {"url": "sqlite:///copy.db"}
    project.config["sinks"]["lake"] = {"url": "parquet:lake"}
    project.sql("ALTER TABLE item ALTER name SET STORAGE EXTERNAL")
    project.run(f"INSERT INTO item VALUES (1, {LARGE}, 1), (2, {LARGE}, 2);")
    project.run("UPDATE item SET size = 5 WHERE id = 1; UPDATE item SET id = 7 WHERE id = 2;")
    assert project.rows() == project.source()
    assert {row[1] for row in project.rows()} == {project.ask(f"SELECT {LARGE}")[0][0]}
    project.require_equal()


def test_f30_where_over_a_large_value_that_the_log_does_not_carry(project: PostgresProject) -> None:
    project.config["streams"]["shop.item"]["where"] = "name <> 'beta'"
    project.sql("ALTER TABLE item ALTER name SET STORAGE EXTERNAL")
    project.run(f"INSERT INTO item VALUES (1, {LARGE}, 1), (2, 'beta', 2);")
    project.run("UPDATE item SET size = 5; UPDATE item SET name = 'beta' WHERE id = 1;")
    assert project.rows() == set()
    project.run(f"UPDATE item SET name = {LARGE} WHERE id = 2; UPDATE item SET size = 6;")
    assert project.rows() == project.source(where="name <> 'beta'")
    project.require_equal()


def test_f33_names_with_quotes_and_dots_in_a_schema_of_their_own(project: PostgresProject) -> None:
    project.sql('CREATE SCHEMA "My.Shop"; CREATE TABLE "My.Shop"."It""em" ("I.d" int PRIMARY KEY, "na""me" text);')
    project.sql("""INSERT INTO "My.Shop"."It""em" VALUES (1, 'one')""")
    fields = {"item_id": '"I.d"', "name": '"na""me"', "size": '"I.d"'}
    project.config["streams"] = {"shop.item": project.stream(table='My.Shop.It"em', fields=fields)}
    project.run()
    project.run("""UPDATE "My.Shop"."It""em" SET "na""me" = 'uno'; INSERT INTO "My.Shop"."It""em" VALUES (2, 'two')""")
    assert project.rows() == {(1, "uno", 1), (2, "two", 2)}
    project.require_equal()


def test_a_partitioned_table_is_one_stream(project: PostgresProject) -> None:
    project.sql(
        "CREATE TABLE parted (id bigint PRIMARY KEY, name text, size bigint) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (200);"
        "INSERT INTO parted VALUES (1, 'one', 1), (101, 'hundred', 2);"
    )
    project.config["streams"]["shop.item"] = project.stream(table="public.parted")
    project.run()
    project.run(
        "UPDATE parted SET id = 150 WHERE id = 1; INSERT INTO parted VALUES (2, 'two', 2);"
        "DELETE FROM high WHERE id = 101;"
    )
    assert project.rows() == {(150, "one", 1), (2, "two", 2)} == set(project.ask("SELECT id, name, size FROM parted"))
    project.require_equal()


def test_a_truncate_deletes_every_row_of_the_stream(project: PostgresProject) -> None:
    project.run(THREE)
    project.run("BEGIN; INSERT INTO item VALUES (4); TRUNCATE item; INSERT INTO item VALUES (5); COMMIT;")
    assert project.rows() == {(5, None, None)}
    project.require_equal(expanded=True)


def test_a_table_without_a_key_is_a_stream_of_events(project: PostgresProject) -> None:
    project.sql("CREATE TABLE visit (who bigint, page text); INSERT INTO visit VALUES (1, 'a'), (1, 'a');")
    fields = {"who": {"type": "int64"}, "page": {"type": "string"}}
    project.contracts["shop.visit"] = {
        "stream": "shop.visit", "version": 1, "owner": "tests", "kind": "event", "key": [], "fields": fields,
        "deletes": "unseen",
    }  # fmt: skip
    project.config["streams"]["shop.visit"] = project.stream(table="public.visit", fields={})
    project.config["sinks"]["warehouse"]["streams"] = ["shop.item"]
    project.run()
    project.run("INSERT INTO visit VALUES (2, 'b'), (2, 'b')")
    assert project.events("shop.visit", "who", "page") == [("r", 1, "a")] * 2 + [("c", 2, "b")] * 2
    project.sql("UPDATE visit SET page = 'c'; DELETE FROM visit;")


def test_f85_a_table_whose_updates_would_fail_is_refused_and_the_application_goes_on(project: PostgresProject) -> None:
    project.sql("CREATE TABLE bare (id bigint, name text, size bigint); INSERT INTO bare VALUES (1);")
    project.config["streams"]["shop.bare"] = project.stream(table="public.bare", key=["id"])
    project.contracts["shop.bare"] = contract("shop.bare")
    errors = " ".join(project.tried())
    assert "REPLICA IDENTITY" in errors
    project.sql("UPDATE bare SET name = 'x'; DELETE FROM bare;")
    assert project.ask("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'bare'") == [(0,)]


def test_added_and_dropped_columns(project: PostgresProject) -> None:
    project.run(THREE)
    project.run("ALTER TABLE item ADD COLUMN extra int DEFAULT 5; UPDATE item SET size = 11 WHERE id = 1;")
    assert project.rows() == project.source()
    project.run("ALTER TABLE item DROP COLUMN extra; UPDATE item SET size = 12 WHERE id = 1;")
    assert project.rows() == project.source()
    project.require_equal()


def test_a_captured_column_that_changes_beyond_the_contract_pauses_the_stream_and_loses_nothing(
    project: PostgresProject,
) -> None:
    project.sql("CREATE TABLE other (id bigint PRIMARY KEY, name text, size bigint)")
    project.config["streams"]["shop.other"] = project.stream(table="public.other")
    project.contracts["shop.other"] = contract("shop.other")
    project.run(THREE)
    project.sql("ALTER TABLE item RENAME size TO amount; UPDATE item SET amount = 11 WHERE id = 1;")
    project.sql("INSERT INTO other VALUES (1, 'other', 1)")
    project.tried()
    assert project.rows(table="shop_other") == {(1, "other", 1)}, "the others go on"
    with project.assembly() as assembly:
        state = assembly.bus.streams()["shop.item"]
    assert state.paused is not None
    assert "`size`" in state.paused
    project.config["streams"]["shop.item"]["fields"]["size"] = "amount"
    with project.assembly() as assembly:
        assembly.bus.resume("shop.item")
    project.run("UPDATE item SET amount = 12 WHERE id = 2;")
    assert project.rows() == {(1, "one", 11), (2, "two", 12), (3, "three", 30)}
    project.require_equal()


def test_a_backfill_appends_the_rows_that_are_asked_for(project: PostgresProject) -> None:
    project.run(THREE)
    with project.assembly(append=True) as assembly:
        assembly.bus.settle(_mapped(assembly.backfill("shop.item", "size >= 20 AND name <> 'x;\"y'")))
    project.run("UPDATE item SET size = 31 WHERE id = 3;")
    assert sorted(event[1] for event in project.events() if event[0] == "r") == [1, 2, 2, 3, 3]
    project.run()
    assert len([event for event in project.events() if event[0] == "r"]) == 5
    assert project.rows() == project.source()
    project.require_equal()


def _mapped(note: Any) -> Any:
    from headwater.model import Mapped

    return Mapped(notes=(note,))


@pytest.mark.parametrize("loss", ["slot dropped", "slot advanced"])
def test_f03_lost_changes_are_an_error_until_they_are_repaired(project: PostgresProject, loss: str) -> None:
    project.run(THREE)
    ((slot,),) = project.ask("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    project.sql("UPDATE item SET size = 11 WHERE id = 1; DELETE FROM item WHERE id = 2;")
    if loss == "slot dropped":
        project.sql(f"SELECT pg_drop_replication_slot('{slot}')")
    else:
        project.sql(f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_insert_lsn())")
    before = project.events()
    errors = " ".join(project.tried())
    assert slot in errors
    assert "headwater repair shop/log" in errors
    assert project.events() == before
    with project.assembly(append=True) as assembly:
        assert repair(assembly, "shop/log").streams == ("shop.item",)
    project.run("INSERT INTO item VALUES (9);")
    assert project.rows() == project.source()
    assert project.notes("gap")
    project.require_equal()


def test_f55_a_value_that_arrow_cannot_hold_waits_in_quarantine(project: PostgresProject) -> None:
    project.contracts["shop.item"]["fields"]["at"] = {"type": "timestamp", "optional": True}
    project.config["streams"]["shop.item"]["fields"]["at"] = "updated_at"
    project.run("INSERT INTO item VALUES (1, 'one', 1, 'infinity'), (2, 'two', 2, '2024-01-01');")
    project.run("INSERT INTO item VALUES (3, 'three', 3, '0044-03-15 BC');")
    with project.assembly(append=True) as assembly:
        got = [(row.key, row.field, row.got) for row in assembly.bus.rejected()]
        assert [(key, field) for key, field, _ in got] == [('{"item_id":1}', "at"), ('{"item_id":3}', "at")]
        assert "infinity" in got[0][2]
        replay(assembly.bus, assembly.route("shop.item"), None)
    assert {row[0] for row in project.rows()} == {2}


def test_from_trigger_to_log_to_query_nothing_is_lost_or_doubled(tmp_path: Path, database: str) -> None:
    project = PostgresProject(tmp_path, url=database, pattern="trigger")
    project.run(THREE)
    for size, pattern in enumerate(("log", "query", "trigger"), 11):
        settings: dict[str, Any] = {"pattern": pattern}
        if pattern == "query":
            settings |= {"cursor": "updated_at"}
        project.config["streams"]["shop.item"] = project.stream(**settings)
        project.run(
            f"UPDATE item SET size = {size}, updated_at = clock_timestamp() WHERE id = 1;"
            f"INSERT INTO item VALUES ({size}, 'new', 0);"
        )
        project.contracts["shop.item"] |= {"changes": "latest", "deletes": "unseen"}
        assert project.rows() == project.source(), pattern
    project.require_equal()


def test_a_server_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "server") as server:
        project = PostgresProject(tmp_path, url=server.url)
        project.run(THREE)
        server.stop()
        with program(RUN, tmp_path / "headwater.yaml") as process:
            server.start()
            project.sql("INSERT INTO item VALUES (4, 'four', 40)")
            until(lambda: project.head() == 4)
            until(lambda: delivered(project) == 1)
            assert process.poll() is None
        assert project.rows() == project.source()


def delivered(project: PostgresProject) -> int:
    """How many events the process that runs has written into its sink."""
    shown = figures.read(project.directory / "data")
    return 0 if shown is None else shown.workers["warehouse"].rows


RUN = """
import os, signal, sys, threading
from headwater.cli import main

def end_with_the_test():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)

print("ready", flush=True)
threading.Thread(target=end_with_the_test, daemon=True).start()
sys.argv = ["headwater", "run", "--config", sys.argv[1]]
main()
"""


@pytest.mark.parametrize(
    "change",
    ["TRUNCATE item", "ALTER TABLE item ALTER size TYPE numeric(20,0)", "CLUSTER item USING item_pkey"],
)
def test_a_table_that_is_rewritten_while_it_is_loaded_neither_hangs_nor_loses(
    project: PostgresProject, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGES", 16)
    project.sql("INSERT INTO item SELECT n, repeat('x', 100), n FROM generate_series(1, 60000) n")
    with project.running():
        until(lambda: (project.head() or 0) > 0)
        project.sql(f"SET lock_timeout = '20s'; {change}")
        project.sql("INSERT INTO item VALUES (400001, 'new', 1); DELETE FROM item WHERE id = 7;")
        until(lambda: "loaded" in {note[0] for note in project.all_notes()})
    project.run()
    assert project.rows() == project.source()
    project.require_equal(expanded=True)


def test_rows_that_exchange_keys_in_one_transaction(project: PostgresProject) -> None:
    """A deferrable key may belong to two rows for a while: the row that leaves it does not take the other with it."""
    project.sql(
        "ALTER TABLE item DROP CONSTRAINT item_pkey; ALTER TABLE item ADD PRIMARY KEY (id) DEFERRABLE;"
        "ALTER TABLE item REPLICA IDENTITY FULL;"
    )
    project.run(THREE)
    project.run("UPDATE item SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id < 3")
    assert project.rows() == project.source() == {(2, "one", 10), (1, "two", 20), (3, "three", 30)}
    project.run(
        "UPDATE item SET id = id + 1; BEGIN; UPDATE item SET name = 'x', size = 0; UPDATE item SET id = 7 - id;"
    )
    assert project.rows() == project.source()
    project.require_equal()


def test_rows_that_exchange_keys_in_a_large_transaction_are_a_gap_that_can_be_repaired(
    project: PostgresProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LARGE", 10_000)
    project.sql(
        "ALTER TABLE item DROP CONSTRAINT item_pkey; ALTER TABLE item ADD PRIMARY KEY (id) DEFERRABLE;"
        "ALTER TABLE item REPLICA IDENTITY FULL; INSERT INTO item SELECT n, 'n' || n, n FROM generate_series(1, 1000) n"
    )
    project.run()
    project.sql("UPDATE item SET id = id + 1")
    assert "exchanged keys in a transaction that is too large" in " ".join(project.tried())
    assert project.rows() == {(n, f"n{n}", n) for n in range(1, 1001)}, "nothing of it is in the bus"
    with project.assembly(append=True) as assembly:
        repair(assembly, "shop/log")
    project.run("INSERT INTO item VALUES (5000, 'new', 1)")
    assert project.rows() == project.source()
    project.require_equal()
