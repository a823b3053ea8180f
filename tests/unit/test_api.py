"""The Python API: made in code or from the file, run, and read event by event."""

from __future__ import annotations

import datetime
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headwater
from headwater import Contract, Event, Pipeline
from headwater.errors import ConfigError
from headwater.model import Op, Order

ITEM = {
    "stream": "shop.item",
    "version": 1,
    "key": ["item"],
    "fields": {
        "item": {"type": "int64"},
        "name": {"type": "string", "optional": True},
        "price": {"type": "decimal(10,2)", "min": 0},
    },
}
STREAM = {
    "source": "shop",
    "table": "item",
    "pattern": "trigger",
    "fields": {"item": "id", "price": "cast(cents as decimal(10,2)) / 100"},
}


def doubled(rows: pa.RecordBatch) -> pa.RecordBatch:
    """A mapping in Python."""
    return pa.record_batch({"item": rows.column("id"), "name": rows.column("name"), "price": rows.column("cents")})


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return new_database(tmp_path)


def new_database(directory: Path) -> Path:
    path = directory / "shop.db"
    execute(
        path,
        "PRAGMA journal_mode = wal",
        "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, cents INTEGER NOT NULL)",
        "INSERT INTO item VALUES (1, 'tea', 250), (2, NULL, 100)",
    )
    return path


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def made(database: Path, **changes: Any) -> Pipeline:
    settings: dict[str, Any] = {
        "name": "shop",
        "sources": {"shop": f"sqlite:///{database}"},
        "streams": {"shop.item": STREAM},
        "contracts": [ITEM],
        "directory": database.parent,
    }
    return Pipeline(**{**settings, **changes})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Two rows read, one changed, one deleted: four events. Tests read them as groups of their own."""
    database = new_database(tmp_path_factory.mktemp("shop"))
    with made(database) as pipeline:
        assert pipeline.run(once=True) == 0
        execute(database, "UPDATE item SET cents = 300 WHERE id = 1", "DELETE FROM item WHERE id = 2")
        assert pipeline.run(once=True) == 0
        yield pipeline


def all_of(pipeline: Pipeline, **more: Any) -> list[Event]:
    return list(pipeline.events("shop.item", follow=False, **more))


def offsets(events: list[Event]) -> list[int]:
    return [event.offset for event in events]


def test_events_are_python_values(pipeline: Pipeline) -> None:
    first, second, third, fourth = all_of(pipeline)
    assert (first.op, first.key, first.item, first["name"], str(first.price)) == ("r", {"item": 1}, 1, "tea", "2.50")
    assert (second.fields["name"], second.unchanged, second.before, second.type) == (None, (), None, None)
    assert (third.op, str(third.price), third.offset, third.version) == ("u", "3.00", 2, 1)
    assert (fourth.op, fourth.key, fourth.fields, "price" in fourth) == ("d", {"item": 2}, {"item": 2}, False)
    assert (third.time, third.transaction) == (None, None), "triggers know no commit time"
    assert first.order < third.order < fourth.order
    assert isinstance(first.order, Order)
    assert len({event.id for event in (first, second, third, fourth)}) == 4
    assert [event.id for event in all_of(pipeline)] == [first.id, second.id, third.id, fourth.id]
    assert repr(fourth) == "<Event shop.item 3 d {'item': 2}>"
    with pytest.raises(AttributeError, match="event of shop.item has no field `colour`"):
        _ = first.colour


def test_a_group_goes_on_behind_what_it_has_read(pipeline: Pipeline) -> None:
    reader = pipeline.events("shop.item", group="billing", follow=False)
    assert offsets(list(islice(reader, 3))) == [0, 1, 2]
    reader.close()  # type: ignore[attr-defined]
    assert offsets(all_of(pipeline, group="billing")) == [2, 3], "the last event was not seen to be handled"
    assert offsets(all_of(pipeline, group="billing")) == []
    assert offsets(all_of(pipeline, group="another")) == [0, 1, 2, 3]


def test_an_event_whose_handling_failed_is_read_again(pipeline: Pipeline) -> None:
    seen = []

    def handle() -> None:
        for event in pipeline.events("shop.item", group="failing", follow=False):
            seen.append(event.offset)
            _ = 1 / (1 - event.offset)

    with pytest.raises(ZeroDivisionError):
        handle()
    assert seen == [0, 1]
    assert offsets(all_of(pipeline, group="failing")) == [1, 2, 3]


def test_an_event_is_committed_when_told_so(pipeline: Pipeline) -> None:
    for event in pipeline.events("shop.item", group="telling", follow=False):
        event.commit()
        if event.offset == 1:
            break
    assert offsets(all_of(pipeline, group="telling")) == [2, 3]
    with pytest.raises(ConfigError, match="read without a group"):
        all_of(pipeline)[0].commit()


def test_a_reader_starts_where_it_is_told_unless_its_group_stands_elsewhere(pipeline: Pipeline) -> None:
    assert offsets(all_of(pipeline, start=2)) == [2, 3]
    assert offsets(all_of(pipeline, start="end")) == []
    long_ago = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    assert offsets(all_of(pipeline, start=long_ago)) == [0, 1, 2, 3]
    assert offsets(all_of(pipeline, start=long_ago + datetime.timedelta(days=36_500))) == []
    assert offsets(all_of(pipeline, start=3, group="starting")) == [3]
    assert offsets(all_of(pipeline, start="beginning", group="starting")) == []


def test_batches_are_arrow_and_count_as_read_when_the_next_is_asked_for(pipeline: Pipeline) -> None:
    parts = list(pipeline.batches("shop.item", group="lake", follow=False))
    assert pa.concat_arrays([part.data.column("item") for part in parts]).to_pylist() == [1, 2, 1, 2]
    assert list(pipeline.batches("shop.item", group="lake", follow=False)) == []


def test_sql_sees_events_and_the_current_state(pipeline: Pipeline) -> None:
    assert pipeline.sql("SELECT item, name, price::VARCHAR AS price FROM shop.item_current").to_pylist() == [
        {"item": 1, "name": "tea", "price": "3.00"}
    ]
    assert pipeline.sql("SELECT _op, count(*) AS n FROM shop.item GROUP BY ALL ORDER BY ALL").to_pylist() == [
        {"_op": "d", "n": 1},
        {"_op": "r", "n": 2},
        {"_op": "u", "n": 1},
    ]


def test_status_is_that_of_the_command(pipeline: Pipeline) -> None:
    (stream,) = pipeline.status().streams
    assert (stream.stream, stream.events, stream.pattern) == ("shop.item", 4, "trigger")


def test_readers_follow_a_running_pipeline_until_it_is_stopped(database: Path) -> None:
    with made(database) as pipeline:
        assert pipeline.run(once=True) == 0
        running = threading.Thread(target=pipeline.run)
        running.start()
        try:
            execute(database, "INSERT INTO item VALUES (3, 'salt', 90)")
            for event in pipeline.events("shop.item"):
                if event.item == 3:
                    break
        finally:
            pipeline.stop()
            running.join(timeout=30)
    assert not running.is_alive()
    assert (event.op, event.name) == ("c", "salt")


def test_code_and_file_are_written_out_as_each_other(database: Path, tmp_path: Path) -> None:
    settings = {"tea": f"duckdb:{tmp_path}/tea.duckdb"}
    sinks = {name: {"url": url, "batch": {"age": "5s"}} for name, url in settings.items()}
    with made(database, sinks=sinks) as pipeline:
        target = tmp_path / "written" / "headwater.yaml"
        pipeline.save(target)
        with Pipeline.load(target) as loaded:
            same = {"directory": pipeline.config.directory}
            assert loaded.config.model_copy(update=same) == pipeline.config
            assert loaded.contract("shop.item") == pipeline.contract("shop.item") == Contract.model_validate(ITEM)
            assert loaded.to_yaml() == pipeline.to_yaml()
        with pytest.raises(ConfigError, match="exists already"):
            pipeline.save(target)


def test_a_function_is_named_as_a_file_would_name_it(database: Path) -> None:
    settings = {key: value for key, value in STREAM.items() if key != "fields"}
    with made(database, streams={"shop.item": {**settings, "function": doubled}}) as pipeline:
        assert f"function: {__name__}:doubled" in pipeline.to_yaml()
        assert pipeline.run(once=True) == 0
        assert [str(event.price) for event in all_of(pipeline)] == ["250.00", "100.00"]
    with pytest.raises(ConfigError, match="cannot be imported by its name"):
        made(database, streams={"shop.item": {**settings, "function": lambda rows: rows}})


def test_mistakes_name_the_nearest_right_thing(database: Path) -> None:
    with pytest.raises(ConfigError, match="`streams.shop.item.patern` is not a known key; did you mean `pattern`"):
        made(database, streams={"shop.item": {**STREAM, "patern": "query"}})
    with made(database) as pipeline, pytest.raises(ConfigError, match="no stream `shop.items`") as caught:
        next(pipeline.events("shop.items"))
    assert "did you mean `shop.item`" in str(caught.value)
    with pytest.raises(ConfigError, match="contract of shop.item"):
        made(database, contracts=[{**ITEM, "kye": []}])


def test_importing_headwater_imports_neither_arrow_nor_duckdb() -> None:
    code = (
        "import sys, headwater\n"
        "headwater.Contract, headwater.ConfigError, headwater.__version__, dir(headwater)\n"
        "print(sorted({'pyarrow', 'duckdb', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    assert {name for name in headwater.__all__ if not hasattr(headwater, name)} == set()
    assert headwater.Op is Op
    with pytest.raises(AttributeError, match="no attribute `Pipelin`"):
        _ = headwater.Pipelin
