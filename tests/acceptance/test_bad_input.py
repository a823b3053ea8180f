"""Bad input on the whole path: a clear error that names the thing, what was expected and found, and a way out; and
nothing lost: afterwards, once it is mended, every sink equals its source.

What happens to files (the bus, the targets, a full disk) is in test_bad_files.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headwater.check import check, look
from headwater.cli.app import app
from headwater.errors import (
    AppenderBusy,
    Busy,
    ConfigError,
    ContractError,
    HeadwaterError,
    MappingError,
    PromiseError,
    SourceError,
)
from tests.acceptance.project import Project, contract, program, stream, until

TWO = "INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', 20, 2);"

HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""
"""Opens a transaction by the statement given, and holds it until its input ends."""


def refused(project: Project, kind: type[HeadwaterError]) -> HeadwaterError:
    """`headwater run` does not begin, and says why."""
    with pytest.raises(kind) as found:
        project.try_run()
    return found.value


def is_well(project: Project, script: str = "") -> None:
    project.run(script)
    assert project.rows() == project.source()
    project.require_equal()


# keys of the files


@pytest.mark.parametrize(
    ("place", "wrong", "right"),
    [
        ((), "sinkss", "sinks"),
        (("bus",), "max_byte", "max_bytes"),
        (("sources", "shop"), "timezon", "timezone"),
        (("streams", "shop.item"), "on_invald", "on_invalid"),
        (("streams", "shop.item", "types", "added"), "wehre", "where"),
        (("sinks", "warehouse"), "delets", "deletes"),
        (("sinks", "warehouse", "batch"), "evnts", "events"),
    ],
)
def test_a_misspelt_key_of_the_configuration(project: Project, place: tuple[str, ...], wrong: str, right: str) -> None:
    project.config["bus"] = {"url": "embedded:data"}
    project.config["sources"]["shop"] = {"url": "sqlite:///shop.db"}
    at: Any = project.config
    for step in place:
        at = at.setdefault(step, {})
    at[wrong] = "1"
    error = refused(project, ConfigError)
    spelled = ".".join((*place, wrong))
    assert f"`{spelled}` is not a known key; did you mean `{right}`?" in error.message
    assert error.message.startswith(f"{project.directory / 'headwater.yaml'}:")
    del at[wrong]
    project.config["streams"]["shop.item"].pop("types", None)
    project.config["sinks"]["warehouse"].pop("batch", None)
    is_well(project, TWO)


@pytest.mark.parametrize(
    ("place", "wrong", "right"),
    [
        ((), "retentoin", "retention"),
        (("fields", "name"), "optinal", "optional"),
        (("retention",), "aeg", "age"),
        (("consumers", 0), "temas", "team"),
    ],
)
def test_a_misspelt_key_of_a_contract(project: Project, place: tuple[str | int, ...], wrong: str, right: str) -> None:
    made: Any = contract("shop.item", consumers=[{"name": "billing"}], retention={"tombstones": "1d"})
    project.contracts["shop.item"] = made
    at = made
    for step in place:
        at = at[step]
    at[wrong] = "1"
    error = refused(project, ContractError)
    spelled = ".".join(map(str, (*place, wrong)))
    assert f"`{spelled}` is not a known key; did you mean `{right}`?" in error.message
    assert error.message.startswith(f"{project.directory / 'contracts' / 'shop.item.yaml'}:")
    del at[wrong]
    is_well(project, TWO)


@pytest.mark.parametrize(
    ("where", "option", "message"),
    [
        ("sources", "busy_timeuot", "did you mean `busy_timeout`?"),
        ("sinks", "gaurds", "did you mean `guards`?"),
    ],
)
def test_a_misspelt_option_of_an_adapter(project: Project, where: str, option: str, message: str) -> None:
    name, url = ("shop", "sqlite:///shop.db") if where == "sources" else ("warehouse", "duckdb:warehouse.duckdb")
    project.config[where][name] = {"url": url, "options": {option: 1}}
    (text,) = project.tried()
    assert option in text
    assert message in text
    project.config[where][name] = {"url": url}
    is_well(project, TWO)


def test_an_unknown_scheme_names_the_nearest(project: Project) -> None:
    project.config["sinks"]["warehouse"]["url"] = "duckbd:warehouse.duckdb"
    errors = project.tried()
    assert "`duckbd`" in errors[0]
    assert "did you mean `duckdb`?" in errors[0]


def test_a_stream_that_is_written_twice(project: Project) -> None:
    """YAML would silently keep the last."""
    project.save()
    path = project.directory / "headwater.yaml"
    path.write_text(path.read_text() + "streams:\n  shop.item: {source: shop, table: item, pattern: trigger}\n")
    ended = CliRunner().invoke(app, ["run", "--once", "--config", str(path)])
    assert isinstance(ended.exception, ConfigError)
    assert f"{path}:" in ended.exception.message
    assert "`streams` is written twice" in ended.exception.message


# what is not there


def test_a_database_that_is_not_there(project: Project) -> None:
    project.config["sources"]["shop"] = "sqlite:///shopp.db"
    error = refused(project, SourceError)
    assert str(project.directory / "shopp.db") in error.message
    assert error.hint == f"did you mean {project.directory / 'shop.db'}?"
    assert not (project.directory / "shopp.db").exists(), "no empty database is made by looking for one"
    (project.directory / "shop.db").rename(project.directory / "shopp.db")
    project.config["sources"]["shop"] = "sqlite:///shopp.db"
    assert project.try_run() == {}


def test_a_file_that_is_no_database(project: Project) -> None:
    (project.directory / "notes.db").write_text("these are notes, and long enough to be a page header" * 40)
    project.config["sources"]["shop"] = "sqlite:///notes.db"
    error = refused(project, SourceError)
    assert f"{project.directory / 'notes.db'} is not a SQLite database" in error.message


def test_a_table_that_is_not_there(project: Project) -> None:
    project.config["streams"]["shop.item"]["table"] = "itme"
    error = refused(project, SourceError)
    assert "there is no table `itme`" in error.message
    assert error.hint == "did you mean `item`?"
    project.config["streams"]["shop.item"]["table"] = "item"
    is_well(project, TWO)


@pytest.mark.parametrize(
    "more",
    [
        {"fields": {"item_id": "idd"}},
        {"fields": {"item_id": "id", "name": "upper(nmae)"}},
        {"where": "siez > 3"},
        {"pattern": "query", "cursor": "updated_att"},
        {"pattern": "query", "key": ["idd"]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_column_that_is_not_there(project: Project, more: dict[str, Any]) -> None:
    project.config["streams"]["shop.item"] = stream(**more)
    errors = project.tried()
    nearest = {"idd": "id", "nmae": "name", "siez": "size", "updated_att": "updated_at"}
    wrong = next(word for word in nearest if word in str(more))
    assert f"`{wrong}`" in errors[0]
    assert f"did you mean `{nearest[wrong]}`?" in errors[0]
    project.config["streams"]["shop.item"] = stream()
    is_well(project, TWO)


def test_a_contract_that_is_not_there(project: Project) -> None:
    project.contracts["shop.itme"] = contract("shop.itme")
    kept = project.contracts.pop("shop.item")
    error = refused(project, ContractError)
    assert "stream `shop.item` has no contract" in error.message
    assert error.hint == "did you mean `shop.itme`?"
    project.contracts = {"shop.item": kept}
    is_well(project, TWO)


# what is not allowed

COMMAND = Path(sys.executable).with_name("headwater")
AS_ANYBODY = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root passes over all permissions
(capabilities(7), PR_CAPBSET_DROP of prctl(2)); for other users it changes nothing."""


def run_as_anybody(project: Project, *, well: bool = False) -> str:
    """What `headwater run --once` says when permissions hold for it."""
    project.save()
    command = [sys.executable, "-c", AS_ANYBODY, str(COMMAND), "run", "--once"]
    ended = subprocess.run(command, cwd=project.directory, capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    assert "Traceback" not in said
    assert (ended.returncode == 0) == well, said
    return " ".join(said.split())


def test_a_database_that_may_not_be_written(project: Project) -> None:
    """Triggers cannot be made: it says so; a query still reads."""
    project.sql(TWO)
    path = project.directory / "shop.db"
    path.chmod(0o444)
    said = run_as_anybody(project)
    assert str(path) in said
    assert "cannot be written" in said
    assert "hint:" in said
    project.config["streams"]["shop.item"] = stream(pattern="query")
    assert run_as_anybody(project, well=True)
    assert project.rows() == project.source()
    path.chmod(0o644)
    project.config["streams"]["shop.item"] = stream()
    is_well(project, "INSERT INTO item VALUES (3, 'three', 30, 3);")


def test_a_database_that_may_not_be_read(project: Project) -> None:
    project.sql(TWO)
    path = project.directory / "shop.db"
    path.chmod(0)
    said = run_as_anybody(project)
    assert f"{path} cannot be opened" in said
    assert "permissions" in said
    path.chmod(0o644)
    is_well(project)


def test_a_bus_whose_directory_may_not_be_written(project: Project) -> None:
    project.run(TWO)
    directory = project.directory / "data"
    for path in (*directory.iterdir(), directory):
        path.chmod(0o555 if path.is_dir() else 0o444)
    said = run_as_anybody(project)
    assert str(directory) in said
    assert "hint:" in said
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)
    is_well(project, "INSERT INTO item VALUES (3, 'three', 30, 3);")


def test_f56_targets_whose_directory_may_not_be_written(project: Project) -> None:
    """Those sinks fail alone, and each says which file."""
    directory = project.directory / "target"
    directory.mkdir(mode=0o555)
    kinds = ("duckdb", "sqlite", "parquet")
    project.config["sinks"] |= {f"copy_{kind}": {"url": f"{kind}:target/made.{kind}"} for kind in kinds}
    project.sql(TWO)
    said = run_as_anybody(project)
    assert project.rows() == project.source()
    for kind in kinds:
        assert re.search(f"{directory}/made.{kind}[^{{}}]*?hint: check[^{{}}]*?permissions", said), said
    directory.chmod(0o755)
    is_well(project, "DELETE FROM item WHERE id = 1;")


# a database that somebody else has


def test_a_database_that_is_locked_is_tried_again(project: Project) -> None:
    project.config["sources"]["shop"] = {"url": "sqlite:///shop.db", "options": {"busy_timeout": 0.1}}
    project.sql(TWO)
    path = project.directory / "shop.db"
    with program(HOLD, path, "BEGIN IMMEDIATE") as holder, project.running() as supervisor:
        until(lambda: supervisor.figures().workers["shop/trigger"].state == "waiting")
        workers = supervisor.figures().workers
        assert f"{path} is locked by another program" in workers["shop/trigger"].error
        assert "busy_timeout" in workers["shop/trigger"].error
        assert workers["warehouse"].error == "", "the sinks have nothing to do with it"
        assert holder.stdin is not None
        holder.stdin.close()
        until(lambda: project.head() == 2)
    is_well(project)


def test_a_database_without_wal_that_is_locked_when_the_run_begins(project: Project) -> None:
    project.sql(TWO)
    project.sql("PRAGMA journal_mode = DELETE;")
    project.config["sources"]["shop"] = {"url": "sqlite:///shop.db", "options": {"busy_timeout": 0.1}}
    with program(HOLD, project.directory / "shop.db", "BEGIN EXCLUSIVE"):
        error = refused(project, Busy)
        assert str(project.directory / "shop.db") in error.message
        assert "busy_timeout" in error.hint
    is_well(project)


# cursors


@pytest.fixture
def polled(project: Project) -> Project:
    """By a cursor that may be NULL and has no index."""
    project.sql("ALTER TABLE item ADD COLUMN seen INTEGER;")
    project.config["streams"]["shop.item"] = stream(
        pattern="query", cursor="seen", look_back_ids=0, reconcile_deletes="1h"
    )
    return project


def test_a_cursor_that_is_null_is_said_and_found_by_reconciliation(polled: Project) -> None:
    polled.run("INSERT INTO item VALUES (1, 'one', 10, 1, 1), (2, 'two', 20, 2, NULL);")
    assert polled.rows() == polled.source(), "the load reads every row"
    polled.run("UPDATE item SET size = 21 WHERE id = 2; INSERT INTO item VALUES (3, 'three', 30, 3, 3);")
    assert polled.rows() == {(1, "one", 10), (2, "two", 20), (3, "three", 30)}
    assert [text for text in polled.notes("schema") if "1 rows have NULL in seen" in text]
    with polled.assembly() as assembly:
        notes = assembly.guarantee("shop.item").notes
    assert any("`seen` is NULL" in note and "by the reconciliation" in note for note in notes)
    polled.config["streams"]["shop.item"]["reconcile_deletes"] = "0s"
    is_well(polled)


def test_a_cursor_without_an_index_is_a_warning_of_doctor(polled: Project) -> None:
    polled.save()
    ended = CliRunner().invoke(app, ["doctor", "--config", str(polled.directory / "headwater.yaml")])
    assert "seen has no index: each poll reads the whole table" in " ".join(ended.output.split())
    assert 'CREATE INDEX "item_seen_idx" ON "item" ("seen");' in " ".join(ended.output.split())


def test_a_cursor_that_goes_back_is_said_and_repaired(polled: Project) -> None:
    polled.run("INSERT INTO item VALUES (1, 'one', 10, 1, 1000), (2, 'two', 20, 2, 2000);")
    polled.run("UPDATE item SET seen = seen - 1500, size = size + 1; DELETE FROM item WHERE id = 1;")
    (gap,) = polled.notes("gap")
    assert "the highest `seen` of item went back" in gap
    assert "all rows were compared" in gap
    is_well(polled, "INSERT INTO item VALUES (3, 'three', 30, 3, 501);")


# duplicate stream keys


@pytest.mark.parametrize("pattern", ["trigger", "query"])
def test_two_rows_with_one_stream_key(project: Project, pattern: str) -> None:
    """The stream stands still and names the key; once the mapping identifies rows, it goes on."""
    project.config["streams"]["shop.item"] = stream(pattern=pattern, fields={"item_id": "size"})
    project.contracts["shop.item"]["fields"].pop("size")
    project.sql("INSERT INTO item VALUES (1, 'one', 7, 1), (2, 'two', 7, 2), (3, 'three', 30, 3);")
    said = " ".join(project.tried())
    with project.assembly() as assembly:
        rules = {problem.rule for problem in check(assembly.config, assembly.contracts, survey=look(assembly.config))}
        assert "KEY_NOT_UNIQUE" in rules
        if (paused := assembly.bus.streams()["shop.item"].paused) is not None:
            said += paused
            assembly.bus.resume("shop.item")
    assert "shop.item" in said
    assert '{"item_id":7}' in said
    project.config["streams"]["shop.item"] = stream(pattern=pattern)
    project.contracts["shop.item"] = contract("shop.item", 2)
    is_well(project)


def test_a_second_row_of_one_stream_key_that_comes_later_is_found_by_verify(project: Project) -> None:
    """No batch shows both rows: the later change wins, and the comparison with the source says which key."""
    project.config["streams"]["shop.item"] = stream(fields={"item_id": "size"})
    project.contracts["shop.item"]["fields"].pop("size")
    project.run("INSERT INTO item VALUES (1, 'one', 7, 1);")
    project.run("INSERT INTO item VALUES (2, 'two', 7, 2);")
    assert project.rows("item_id, name") == {(7, "two")}
    with pytest.raises(MappingError) as found:
        project.require_equal()
    assert 'the key {"item_id":7} is that of 2 rows of `item`' in found.value.message


# promises


def promising(**more: Any) -> dict[str, Any]:
    return contract("shop.item", **more)


@pytest.mark.parametrize(
    ("promise", "settings", "expected"),
    [
        ({"changes": "every"}, {"pattern": "query"}, "it promises `changes: every`, its path gives `latest`"),
        (
            {"deletes": "seen"},
            {"pattern": "query", "cursor": "updated_at"},
            "it promises `deletes: seen`, its path gives `unseen`",
        ),
    ],
)
def test_a_contract_that_promises_more_than_its_path_gives(
    project: Project, promise: dict[str, Any], settings: dict[str, Any], expected: str
) -> None:
    project.contracts["shop.item"] = promising(**promise)
    project.config["streams"]["shop.item"] = stream(**settings)
    error = refused(project, PromiseError)
    assert error.message == f"contract shop.item v1: {expected}"
    assert "headwater doctor" in error.hint
    assert not project.made(), "nothing was touched"
    project.config["streams"]["shop.item"] = stream()
    is_well(project, TWO)


def test_exactly_once_without_a_key_is_more_than_a_timestamp_gives(project: Project) -> None:
    project.sql("CREATE TABLE log (text TEXT, at INTEGER NOT NULL);")
    project.contracts = {
        "shop.log": {
            "stream": "shop.log", "version": 1, "owner": "tests", "kind": "event",
            "fields": {"text": {"type": "string"}},
        }
    }  # fmt: skip
    project.config["streams"] = {"shop.log": {"source": "shop", "table": "log", "pattern": "query", "cursor": "at"}}
    project.config["sinks"]["warehouse"]["mode"] = "history"
    error = refused(project, PromiseError)
    assert "it promises `delivery: exactly_once`, its path gives `at_least_once`" in error.message
    project.contracts["shop.log"]["delivery"] = "at_least_once"
    project.run("INSERT INTO log VALUES ('first', 1), ('first', 1);")
    assert sorted(project.events("shop.log", "text")) == [("r", "first")] * 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"kind": "event", "key": []}, "`retention: compacted` keeps the newest event of each key"),
        (
            {
                "kind": "event",
                "fields": {},
                "types": {"added": {"fields": {"item_id": {"type": "int64"}}}},
            },
            "`retention: compacted` would drop the earlier of two events of different `types`",
        ),
    ],
)
def test_a_stream_that_cannot_be_compacted(project: Project, more: dict[str, Any], expected: str) -> None:
    project.contracts["shop.item"] = promising(retention="compacted", **more)
    error = refused(project, ContractError)
    assert expected in error.message
    assert str(project.directory / "contracts" / "shop.item.yaml") in error.message
    assert not project.made()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "`pattern: query` without a `cursor` compares all rows with the whole stream"),
        ({"cursor": "updated_at", "reconcile_deletes": "1h"}, "`reconcile_deletes` compares all rows with the whole"),
    ],
)
@pytest.mark.parametrize("retention", [{"age": "7d"}, {"until_consumed": True}], ids=str)
def test_a_comparison_with_a_stream_that_forgets(
    project: Project, settings: dict[str, Any], retention: dict[str, Any], expected: str
) -> None:
    project.contracts["shop.item"] = promising(retention=retention)
    project.config["streams"]["shop.item"] = stream(pattern="query", **settings)
    error = refused(project, PromiseError)
    assert expected in error.message
    assert f"`retention: {next(iter(retention))}` drops events" in error.message
    assert "retention: forever" in error.hint
    assert not project.made()
    project.contracts["shop.item"] = promising(retention="compacted")
    is_well(project, TWO)


# two runs


def test_two_runs_on_one_bus(project: Project) -> None:
    with project.running():
        until(lambda: project.head() == 0)
        error = refused(project, AppenderBusy)
        assert f"process {os.getpid()} " in error.message
        assert str(project.directory / "data") in error.message
        assert f"kill {os.getpid()}" in error.hint
        project.sql(TWO)
        until(lambda: project.head() == 2)
    is_well(project)
