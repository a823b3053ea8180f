"""The commands on a real pipeline: a small shop, from its first run to `destroy`."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headwater.cli.app import app
from headwater.errors import AppenderBusy, ConfigError, HeadwaterError

COMMAND = Path(sys.executable).with_name("headwater")
CONFIGURATION = """
headwater: 1
name: shop
bus: embedded:data
sources: {shop: "sqlite:///shop.db"}
streams:
  shop.order:
    source: shop
    table: orders
    pattern: trigger
    fields: {order_id: id}
sinks:
  service: {url: "sqlite:///service.db"}
  warehouse: {url: "duckdb:warehouse.duckdb"}
"""
CONTRACT = """
stream: shop.order
version: 1
owner: shop
kind: fact
key: [order_id]
delivery: exactly_once
changes: every
deletes: seen
consumers: [{name: billing}]
fields:
  order_id: {type: int64}
  total: {type: "decimal(10,2)", min: 0}
  state: {type: string, enum: [open, paid]}
"""


EVERYTHING = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite|_%' ESCAPE '|' ORDER BY 1, 2"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a database of three orders and its pipeline, which is the working directory."""
    (tmp_path / "contracts").mkdir()
    (tmp_path / "headwater.yaml").write_text(CONFIGURATION)
    (tmp_path / "contracts/shop.order.yaml").write_text(CONTRACT)
    monkeypatch.chdir(tmp_path)
    write(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, total DECIMAL(10,2) NOT NULL, state TEXT NOT NULL)",
        "INSERT INTO orders VALUES (1, 10.50, 'open'), (2, 20, 'paid'), (3, 30.25, 'open')",
    )
    return tmp_path


def write(*statements: str) -> None:
    with closing(sqlite3.connect("shop.db", timeout=30)) as database, database:
        for statement in statements:
            database.execute(statement)


def command(*arguments: str, status: int = 0) -> str:
    """What the command printed; it must end with `status`."""
    ended = CliRunner().invoke(app, arguments)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert ended.exit_code == status, ended.output
    return ended.output


def report(*arguments: str, status: int = 0) -> Any:
    return json.loads(command(*arguments, "--json", status=status))


def tailed(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command("tail", "shop.order", *arguments, "--json").splitlines()]


def in_sink() -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect("service.db")) as database:
        return list(database.execute('SELECT order_id, state FROM "shop_order" ORDER BY order_id'))


def test_once_catches_up_and_the_next_run_goes_on_from_there(shop: Path) -> None:
    command("run", "--once")
    assert in_sink() == [(1, "open"), (2, "paid"), (3, "open")]
    write("UPDATE orders SET state = 'paid' WHERE id = 1", "DELETE FROM orders WHERE id = 2")
    command("run", "--once")
    assert in_sink() == [(1, "paid"), (3, "open")]
    events = tailed("--from", "0")
    assert [(event["op"], event["fields"]["order_id"]) for event in events] == [
        ("r", 1),
        ("r", 2),
        ("r", 3),
        ("u", 1),
        ("d", 2),
    ]
    assert len({event["id"] for event in events}) == 5


def test_tail_shows_the_last_ones_and_begins_where_it_is_told(shop: Path) -> None:
    command("run", "--once")
    assert [event["offset"] for event in tailed("--limit", "2")] == [1, 2]
    assert [event["offset"] for event in tailed("--from", "1")] == [1, 2]
    assert tailed("--from", "2100-01-01") == []
    assert [event["fields"]["total"] for event in tailed("--from", "2000-01-01T00:00")] == ["10.50", "20.00", "30.25"]
    shown = command("tail", "shop.order", "-n", "1")
    assert "order_id=3  total=30.25  state=open" in shown
    with pytest.raises(HeadwaterError, match=r"did you mean `shop.order`"):
        command("tail", "shop.ordr")


def test_status_tells_positions_lags_and_promises(shop: Path) -> None:
    command("run", "--once")
    status = report("status")
    (stream,) = status["streams"]
    assert (stream["stream"], stream["state"], stream["events"]) == ("shop.order", "stopped", 3)
    assert stream["guarantee"]["delivery"] == "exactly_once"
    assert stream["guarantee"]["notes"], "what triggers cannot see is said"
    places = {sink["sink"]: sink["streams"][0] for sink in status["sinks"]}
    assert {name: (place["cursor"], place["lag_events"]) for name, place in places.items()} == {
        "service": (3, 0),
        "warehouse": (3, 0),
    }
    assert "shop.order" in command("status")


def test_a_paused_stream_loses_nothing(shop: Path) -> None:
    command("run", "--once")
    command("pause", "shop.order", "--reason", "the books are closed")
    write("INSERT INTO orders VALUES (4, 1, 'open')")
    command("run", "--once")
    (stream,) = report("status", status=1)["streams"]
    assert (stream["state"], stream["paused"], stream["parked"]) == ("paused", "the books are closed", 1)
    assert len(tailed("--from", "0")) == 3
    command("resume", "shop.order")
    command("run", "--once")
    assert [event["fields"]["order_id"] for event in tailed("--from", "3")] == [4]
    assert in_sink()[-1] == (4, "open")


def test_f55_a_broken_row_waits_in_quarantine_and_is_replayed(shop: Path) -> None:
    command("run", "--once")
    write("INSERT INTO orders VALUES (4, -1, 'open'), (5, 5, 'open'), (6, 6, 'lost')")
    command("run", "--once")
    assert [row[0] for row in in_sink()] == [1, 2, 3, 5]
    rows = report("quarantine", "list", status=1)
    assert [(row["key"], row["field"]) for row in rows] == [('{"order_id":4}', "total"), ('{"order_id":6}', "state")]
    (shown,) = report("quarantine", "show", str(rows[0]["number"]))
    assert shown["change"]["after"]["id"] == 4
    (stream,) = report("status", status=1)["streams"]
    assert stream["quarantine"] == {"rows": 2, "keys": ['{"order_id":4}', '{"order_id":6}'], "more_keys": 0}

    path = shop / "contracts/shop.order.yaml"
    path.write_text(path.read_text().replace(", min: 0", ""))
    replayed = report("quarantine", "replay", "shop.order", status=1)
    assert (replayed["appended"], replayed["rejected"]) == ([rows[0]["number"]], [rows[1]["number"]])
    command("quarantine", "drop", str(rows[1]["number"]), "--yes")
    assert "nothing" in command("quarantine", "list")
    command("run", "--once")
    assert in_sink()[3] == (4, "open")


def test_a_sink_is_rewound_and_rebuilt(shop: Path) -> None:
    command("run", "--once")
    with closing(sqlite3.connect("service.db")) as database, database:
        database.execute('DELETE FROM "shop_order" WHERE order_id = 3')
    assert "missing" in command("verify", "service", status=1)
    command("sink", "rewind", "service", "--to", "1", "--yes")
    command("run", "--once")
    command("verify", "service")
    command("sink", "rebuild", "warehouse", "--yes")
    assert report("status")["sinks"][1]["streams"][0]["lag_events"] == 3
    command("run", "--once")
    command("verify", "warehouse")


def test_verify_names_what_differs(shop: Path) -> None:
    command("run", "--once")
    assert command("verify").count("equal") == 3
    with closing(sqlite3.connect("service.db")) as database, database:
        database.execute("UPDATE \"shop_order\" SET state = 'odd' WHERE order_id = 2")
    found = {entry["against"]: entry for entry in report("verify", status=1)}
    assert found["source shop/trigger"]["equal"]
    assert found["sink warehouse"]["equal"]
    (difference,) = found["sink service"]["differing"]["examples"]
    assert (difference["key"], difference["target"]["state"]) == ({"order_id": 2}, "odd")


def test_sql_asks_the_current_state_and_the_events(shop: Path) -> None:
    command("run", "--once")
    write("UPDATE orders SET state = 'paid' WHERE id = 1")
    command("run", "--once")
    assert report("sql", "select state, count(*) as n from shop.order_current group by state order by state") == [
        {"state": "open", "n": 1},
        {"state": "paid", "n": 2},
    ]
    assert "10.50" in command("sql", "select total from shop.order_current where order_id = 1")
    assert command("sql", "select order_id from shop.order_current where false").splitlines() == ["order_id"]


def test_a_backup_is_restored_as_a_new_incarnation(shop: Path) -> None:
    command("run", "--once")
    command("backup", "copy.bus")
    write("INSERT INTO orders VALUES (4, 1, 'open')")
    command("run", "--once")
    command("bus", "check")
    command("restore", "copy.bus", "--yes")
    command("bus", "check")
    assert len(tailed("--from", "0")) == 3


def test_f83_a_sink_that_was_not_beyond_the_backup_is_compared_as_before(shop: Path) -> None:
    command("run", "--once")
    command("backup", "copy.bus")
    command("restore", "copy.bus", "--yes")
    assert [(entry["against"], entry["equal"], entry["rows_target"]) for entry in report("verify")] == [
        ("source shop/trigger", True, 3),
        ("sink service", True, 3),
        ("sink warehouse", True, 3),
    ]


def test_f83_a_sink_beyond_the_backup_is_said_to_be_by_run_verify_and_status(shop: Path) -> None:
    command("run", "--once")
    command("backup", "copy.bus")
    write("DELETE FROM orders WHERE id = 2")
    command("run", "--once")
    command("restore", "copy.bus", "--yes")
    assert subprocess.run([COMMAND, "run", "--once"], capture_output=True).returncode == 1
    found = {entry["against"]: entry for entry in report("verify", status=1)}
    assert (found["source shop/trigger"]["equal"], found["sink service"]["comparable"]) == (True, False)
    assert "restored from a backup" in found["sink service"]["reason"]
    errors = [sink["error"] for sink in report("status", status=1)["sinks"]]
    assert ["restored from a backup" in error and error.startswith("in its last run") for error in errors] == [True] * 2
    command("sink", "rebuild", "service", "--yes")
    command("sink", "rebuild", "warehouse", "--yes")
    command("run", "--once")
    command("status")
    assert in_sink() == [(1, "open"), (3, "open")]


@pytest.mark.parametrize("bad", ["nowhere.bus", "headwater.yaml"])
def test_a_backup_that_is_no_good_does_not_cost_the_bus_that_is_there(shop: Path, bad: str) -> None:
    command("run", "--once")
    with pytest.raises(HeadwaterError, match=bad):
        command("restore", bad, "--yes")
    assert [event["fields"]["order_id"] for event in tailed("--from", "0")] == [1, 2, 3]
    assert sorted(path.name for path in shop.glob("data*")) == ["data"]


def test_times_and_sums_come_out_of_sql(shop: Path) -> None:
    command("run", "--once")
    (row,) = report("sql", "select sum(order_id) as n, timestamptz '2026-03-01 12:00:00+00' as t from shop.order")
    assert row == {"n": 6, "t": "2026-03-01T12:00:00+00:00"}
    assert report("sql", "select 1 as a, 2 as b", "--limit", "1") == [{"a": 1, "b": 2}]
    assert "... and more" in command("sql", "from shop.order", "--limit", "2")
    for nothing in ("", " ; ", "/* a remark */"):
        with pytest.raises(ConfigError, match="there is no query"):
            command("sql", nothing)


def test_a_stream_that_nobody_knows_has_no_quarantine(shop: Path) -> None:
    command("run", "--once")
    for words in (["list", "shop.ordr"], ["replay", "shop.ordr"]):
        with pytest.raises(ConfigError, match="did you mean `shop.order`"):
            command("quarantine", *words)


def test_verify_tells_rows_that_the_contract_refuses_apart(shop: Path) -> None:
    write("INSERT INTO orders VALUES (4, 1, 'lost')", "INSERT INTO orders VALUES (5, 'much', 'open')")
    command("run", "--once")
    waiting = report("verify", "shop.order")[0]
    assert (waiting["equal"], waiting["quarantined"]["count"], waiting["refused"]["count"]) == (True, 2, 0)
    (number,) = [row["number"] for row in report("quarantine", "list", status=1) if row["field"] == "state"]
    command("quarantine", "drop", str(number), "--yes")
    dropped = report("verify", "shop.order")[0]
    assert [example["key"] for example in dropped["refused"]["examples"]] == [{"order_id": 4}]
    assert [example["key"] for example in dropped["quarantined"]["examples"]] == [{"order_id": 5}]
    assert "1 in quarantine, 1 refused by the contract" in command("verify", "shop.order")


def test_one_stream_that_cannot_be_mapped_does_not_hide_the_others(shop: Path) -> None:
    command("run", "--once")
    command("migrate", "shop", "ALTER TABLE orders DROP COLUMN total")
    (stream,) = report("status", status=1)["streams"]
    assert (stream["events"], stream["guarantee"]) == (3, None)
    assert "field `total`: the table has no column of that name" in stream["error"]
    found = {entry["against"]: entry for entry in report("verify", status=1)}
    assert "has no column" in found["its source"]["reason"]
    assert [found[f"sink {name}"]["equal"] for name in ("service", "warehouse")] == [True, True]


def test_a_database_that_is_away_does_not_keep_status_from_telling_the_rest(shop: Path) -> None:
    command("run", "--once")
    (shop / "shop.db").rename(shop / "elsewhere")
    found = report("status", status=1)
    assert "there is no database file" in found["streams"][0]["error"]
    assert [sink["streams"][0]["cursor"] for sink in found["sinks"]] == [3, 3]
    assert "there is no database file" in command("status", status=1)


def test_a_group_that_nobody_needs_is_released(shop: Path) -> None:
    command("run", "--once")
    assert [group["group"] for group in report("status")["streams"][0]["groups"]] == ["billing"]
    command("bus", "release", "billing", "--yes")


def test_a_group_that_reads_nothing_cannot_be_released(shop: Path) -> None:
    command("run", "--once")
    with pytest.raises(ConfigError, match="groups are .*billing"):
        command("bus", "release", "biling", "--yes")


def test_destroy_has_nothing_to_remove_of_a_pipeline_that_never_ran(shop: Path) -> None:
    assert command("destroy", "--yes") == "pipeline shop has left nothing to remove\n"
    assert not (shop / "data").exists()


def test_destroy_asks_first_and_leaves_the_application_as_it_was(shop: Path) -> None:
    with closing(sqlite3.connect("shop.db")) as database:
        before = list(database.execute(EVERYTHING))
    command("run", "--once")
    assert "say --yes" in command("destroy", status=2)
    assert in_sink()
    command("destroy", "--yes")
    with closing(sqlite3.connect("shop.db")) as database:
        assert list(database.execute(EVERYTHING)) == before
    assert not (shop / "data").exists()
    assert in_sink() == [(1, "open"), (2, "paid"), (3, "open")]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_run_streams_until_it_is_told_to_stop(shop: Path, stop: signal.Signals) -> None:
    with running() as process:
        until(lambda: report("status")["running"])
        write("INSERT INTO orders VALUES (7, 7, 'open')")
        until(lambda: [event for event in tailed("--limit", "1") if event["fields"]["order_id"] == 7])
        until(lambda: (7, "open") in in_sink())
        process.send_signal(stop)
        assert process.wait(timeout=30) == 0
    assert report("status")["running"] is False


def test_what_only_the_appender_may_do_is_asked_of_the_running_pipeline(shop: Path) -> None:
    write("INSERT INTO orders VALUES (8, 8, 'lost')")
    with running():
        until(lambda: report("status", status=1)["streams"][0]["quarantine"]["rows"] == 1)
        (row,) = report("quarantine", "list", status=1)
        assert report("quarantine", "replay", "shop.order", status=1)["rejected"] == [row["number"]]
        command("quarantine", "drop", str(row["number"]), "--yes")
        command("pause", "shop.order")
        write("INSERT INTO orders VALUES (9, 9, 'open')")
        until(lambda: report("status", status=1)["streams"][0]["parked"] == 1)
        command("resume", "shop.order")
        until(lambda: (9, "open") in in_sink())


def test_two_runs_on_one_bus_are_one_too_many(shop: Path) -> None:
    with running() as process:
        until(lambda: report("status")["running"])
        with pytest.raises(AppenderBusy, match=f"process {process.pid} "):
            command("run", "--once")
        until(lambda: (1, "open") in in_sink())


def test_check_names_what_is_wrong_and_where(shop: Path) -> None:
    assert "NOT_ACCEPTED" in command("check")
    path = shop / "headwater.yaml"
    path.write_text(path.read_text().replace("{order_id: id}", "{order_id: idd}"))
    (problem,) = [found for found in report("check", status=1) if found["severity"] == "error"]
    assert (problem["rule"], problem["subject"]) == ("UNKNOWN_COLUMN", "order_id")
    assert "::error file=headwater.yaml,line=" in command("check", "--github", status=1)
    path.write_text(path.read_text().replace("pattern:", "patern:"))
    with pytest.raises(ConfigError, match="did you mean `pattern`"):
        command("check")


def test_contracts_are_listed_compared_and_accepted(shop: Path) -> None:
    assert [row["state"] for row in report("contract", "list")] == ["not accepted"]
    command("contract", "accept")
    assert [row["state"] for row in report("contract", "list")] == ["accepted"]
    path = shop / "contracts/shop.order.yaml"
    path.write_text(path.read_text().replace("decimal(10,2)", "decimal(12,2)"))
    assert "write `version: 2`" in command("contract", "diff", "shop.order", status=1)
    path.write_text(path.read_text().replace("decimal(12,2)", "decimal(10,2)"))
    path.write_text(path.read_text().replace("version: 1", "version: 2").replace("decimal(10,2)", "decimal(8,2)"))
    found = report("contract", "diff", "shop.order", status=1)
    assert '+  total: {type: "decimal(8,2)", min: 0}' in found["diff"]
    assert found["findings"], "a narrower type breaks full_transitive compatibility"
    with pytest.raises(ConfigError, match="total"):
        command("contract", "accept", "shop.order")
    accepted = shop / "contracts/published/shop.order/v1.yaml"
    accepted.write_text(accepted.read_text().replace("shop\n", "someone else\n"))
    assert "changed" in command("contract", "list", status=1)


def test_doctor_says_what_is_possible(shop: Path) -> None:
    command("run", "--once")
    (table,) = report("doctor")
    ways = {pattern["way"]: pattern for pattern in table["patterns"]}
    assert (ways["trigger"]["possible"], ways["trigger"]["chosen"]) == (True, True)
    assert ways["query by timestamp"]["enable"], "the SQL that would make it possible"
    assert "ALTER TABLE" in command("doctor", "shop")
    with pytest.raises(ConfigError, match="did you mean `shop`"):
        command("doctor", "shp")


def test_f70_migrate_drops_a_column_beneath_the_triggers(shop: Path) -> None:
    write("ALTER TABLE orders ADD COLUMN note TEXT")
    command("run", "--once")
    assert "1 statement" in command("migrate", "shop", "ALTER TABLE orders DROP COLUMN note")
    write("INSERT INTO orders VALUES (4, 1, 'open')")
    command("run", "--once")
    assert in_sink()[-1] == (4, "open")


@contextmanager
def running() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([COMMAND, "run"], stdout=subprocess.DEVNULL, env={**os.environ})
    try:
        until(lambda: Path("data/health.json").exists())
        yield process
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait for a condition; commands that fail because it is too early for them count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
            last: object = "it stayed false"
        except (AssertionError, HeadwaterError, IndexError, sqlite3.Error) as error:
            last = error
        assert time.monotonic() < deadline, last
