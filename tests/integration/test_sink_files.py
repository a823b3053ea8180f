"""What other programs do to a sink's target, and what it does to them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from headwater.errors import Busy, CursorMismatch, NotConnected, RowRefused, SinkError
from headwater.model import Cursor, Op
from headwater.protocols import Sink
from headwater.testing.sink_events import Script, SinkTarget, contract_of, row, rows_in

C, U, D = Op.CREATE, Op.UPDATE, Op.DELETE

FILES = ["duckdb", "sqlite"]


@pytest.fixture
def script() -> Script:
    return Script(contract_of())


@pytest.fixture
def duck(tmp_path: Path) -> Iterator[SinkTarget]:
    yield from _target("duckdb:t.duckdb", tmp_path)


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[SinkTarget]:
    yield from _target("sqlite:t.db", tmp_path)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[SinkTarget]:
    yield from _target("parquet:lake", tmp_path)


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SinkTarget]:
    yield from _target(f"{request.param}:t.file", tmp_path)


def _target(url: str, directory: Path) -> Iterator[SinkTarget]:
    target = SinkTarget(url, directory)
    yield target
    target.close()


def _prepared(target: SinkTarget, script: Script, **options: Any) -> Sink:
    sink = target.open(**options)
    sink.prepare(script.contract)
    return sink


HOLD_DUCKDB = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""

HOLD_SQLITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""


def _rows(sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def _holder(code: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(("scheme", "code"), [("duckdb", HOLD_DUCKDB), ("sqlite", HOLD_SQLITE)])
def test_a_locked_file_is_busy_and_names_the_holder(tmp_path: Path, script: Script, scheme: str, code: str) -> None:
    target = SinkTarget(f"{scheme}:t.file", tmp_path)
    sink = _prepared(target, script)
    batch = script.events([row(C, 1, id=1, name="a")])
    with _holder(code, tmp_path / "t.file") as process:
        with pytest.raises(Busy, match=r"t\.file") as raised:
            sink.write(batch)
        if scheme == "duckdb":
            assert f"PID {process.pid}" in str(raised.value)
        process.communicate("go\n")
    sink.write(batch)
    assert rows_in(sink)[1]["name"] == "a"
    target.close()


def test_others_read_the_duckdb_file_between_batches(duck: SinkTarget, script: Script) -> None:
    sink = _prepared(duck, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    code = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).sql('from shop_item').fetchall())"
    path = duck.directory / "t.duckdb"
    found = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert found.stdout == "[(1, 'a', None, None, 1, 1, 0)]\n"


def test_hold_keeps_the_duckdb_file_from_others(duck: SinkTarget, script: Script) -> None:
    sink = _prepared(duck, script, hold=True)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    assert rows_in(sink)[1]["name"] == "a"
    code = "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True)"
    path = duck.directory / "t.duckdb"
    found = subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True)
    assert "Could not set lock" in found.stderr
    sink.close()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_others_read_the_sqlite_file_within_a_batch(lite: SinkTarget, script: Script) -> None:
    sink = _prepared(lite, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    with closing(sqlite3.connect(lite.directory / "t.db")) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT id, name FROM shop_item").fetchall() == [(1, "a")]
        sink.write(script.events([row(U, 2, id=1, name="b")]))
        assert reader.execute("SELECT id, name FROM shop_item").fetchall() == [(1, "a")]
        reader.execute("COMMIT")
        assert reader.execute("SELECT id, name FROM shop_item").fetchall() == [(1, "b")]


def _unique(target: SinkTarget, path: Path) -> None:
    sql = "CREATE UNIQUE INDEX users_own ON shop_item (name)"
    if target.url.startswith("duckdb"):
        with duckdb.connect(str(path)) as connection:
            connection.execute(sql)
    else:
        with closing(sqlite3.connect(path)) as lite_connection:
            lite_connection.execute(sql)


def test_f44_a_unique_value_moves_from_row_to_row(file: SinkTarget, script: Script) -> None:
    sink = _prepared(file, script)
    sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b")]))
    sink.close()
    _unique(file, file.directory / "t.file")
    swap = [
        row(U, 2, id=1, name="spare"),
        row(U, 3, id=2, name="a"),
        row(U, 4, 0, id=1, name="spare too"),
        row(U, 4, 2, id=2, name="aside"),
        row(U, 4, 4, id=1, name="a"),
        row(U, 4, 6, id=2, name="b"),
        row(C, 5, id=3, name="c"),
    ]
    sink.write(script.events(swap))
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "a", 2: "b", 3: "c"}
    assert sink.cursor("shop.item") == Cursor("first", (9,))


def test_f55_only_the_row_that_is_refused_stops(file: SinkTarget, script: Script) -> None:
    sink = _prepared(file, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    sink.close()
    _unique(file, file.directory / "t.file")
    batch = [row(C, 2, id=2, name="b"), row(C, 3, id=3, name="a"), row(C, 4, id=4, name="d")]
    with pytest.raises(RowRefused, match=r'\{"id":3\} at \(epoch 1, commit 3, index 0\)'):
        sink.write(script.events(batch))
    assert sorted(rows_in(sink)) == [1, 2]
    assert sink.cursor("shop.item") == Cursor("first", (2,))


def test_f83_a_file_that_was_deleted_is_filled_from_the_beginning(file: SinkTarget, script: Script) -> None:
    sink = _prepared(file, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    for path in file.directory.glob("t.file*"):
        path.unlink()
    with pytest.raises((CursorMismatch, SinkError)):
        sink.write(script.events([row(C, 2, id=2, name="b")]))
    again = _prepared(file, script)
    assert again.cursor("shop.item") is None
    again.write(Script(contract_of()).events([row(C, 1, id=1, name="a"), row(C, 2, id=2, name="b")]))
    assert sorted(rows_in(again)) == [1, 2]


def test_f83_a_table_that_was_dropped_is_named(file: SinkTarget, script: Script) -> None:
    sink = _prepared(file, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    sink.close()
    path = file.directory / "t.file"
    if file.url.startswith("duckdb"):
        with duckdb.connect(str(path)) as connection:
            connection.execute("DROP TABLE shop_item")
    else:
        with closing(sqlite3.connect(path)) as lite_connection:
            lite_connection.execute("DROP TABLE shop_item")
    with pytest.raises(SinkError, match="`shop_item`.*dropped behind"):
        file.open().prepare(script.contract)
    file.open().clear("shop.item")
    assert rows_in(_prepared(file, script)) == {}


def test_a_table_of_somebody_else_is_left_alone(file: SinkTarget, script: Script) -> None:
    path = file.directory / "t.file"
    if file.url.startswith("duckdb"):
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE shop_item AS SELECT 42 AS theirs")
    else:
        with closing(sqlite3.connect(path)) as lite_connection:
            lite_connection.execute("CREATE TABLE shop_item AS SELECT 42 AS theirs")
    with pytest.raises(SinkError, match="Headwater did not make"):
        file.open().prepare(script.contract)
    file.open().clear("shop.item")
    with duckdb.connect(str(path)) if file.url.startswith("duckdb") else closing(sqlite3.connect(path)) as found:
        assert found.execute("SELECT theirs FROM shop_item").fetchall() == [(42,)]


@pytest.mark.parametrize("scheme", FILES)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, script: Script, scheme: str) -> None:
    (tmp_path / "t.file").write_bytes(b"certainly no database" * 1000)
    with pytest.raises(SinkError, match=r"t\.file"):
        SinkTarget(f"{scheme}:t.file", tmp_path).open().prepare(script.contract)


@pytest.mark.parametrize("scheme", FILES)
def test_a_missing_folder_is_named(tmp_path: Path, script: Script, scheme: str) -> None:
    with pytest.raises(NotConnected, match=r"no folder .*nowhere"):
        SinkTarget(f"{scheme}:nowhere/t.file", tmp_path).open().prepare(script.contract)


def test_sqlite_values_as_others_see_them(lite: SinkTarget) -> None:
    kinds = {"price": "decimal(10,2)", "at": "timestamp", "on": "date", "ok": "bool", "tags": "list<decimal(5,1)>"}
    fields = {"id": {"type": "int64"}, **{name: {"type": kind, "optional": True} for name, kind in kinds.items()}}
    script = Script(contract_of(fields=fields))
    sink = _prepared(lite, script)
    values: dict[str, Any] = {"price": 1, "at": 1_709_164_799_123_456, "on": 19_782, "ok": True, "tags": [2, None]}
    sink.write(script.events([row(C, 1, id=1, **values)]))
    with closing(sqlite3.connect(lite.directory / "t.db")) as reader:
        assert reader.execute('SELECT price, at, "on", ok, tags, datetime(at) FROM shop_item').fetchall() == [
            ("1.00", "2024-02-28T23:59:59.123456Z", "2024-02-29", 1, '["2.0",null]', "2024-02-28 23:59:59")
        ]


def test_soft_deletes_as_others_see_them(duck: SinkTarget, script: Script) -> None:
    sink = _prepared(duck, script, deletes="soft")
    sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b")]))
    sink.write(script.events([row(D, 2, id=1, _time=1_700_000_000_000_000)]))
    with duckdb.connect(str(duck.directory / "t.duckdb"), read_only=True) as reader:
        found = reader.execute(
            "SELECT id, name, _deleted, epoch_us(_deleted_at), _commit FROM shop_item ORDER BY id"
        ).fetchall()
    assert found == [(1, "a", True, 1_700_000_000_000_000, 2), (2, "b", False, None, 1)]


def test_plain_readers_of_parquet_see_the_current_state(lake: SinkTarget, script: Script) -> None:
    sink = _prepared(lake, script)
    for n in range(1, 30):
        sink.write(script.events([row(C, n, id=n, name=f"n{n}"), row(D, n, 2, id=n - 1)]))
        found = _rows(f"SELECT id, name FROM '{lake.directory}/lake/shop_item/*.parquet'")
        assert len(found) == 1
        assert found[0][0] <= n
    sink.close()
    assert _rows(f"SELECT id, name FROM '{lake.directory}/lake/**/*.parquet'") == [(29, "n29")]
    notes = pq.read_schema(lake.directory / "lake/shop_item/current.parquet").metadata
    assert (notes[b"headwater.offset"], notes[b"headwater.incarnation"]) == (b"58", b"first")


def test_plain_readers_of_parquet_see_a_growing_history(lake: SinkTarget, script: Script) -> None:
    sink = _prepared(lake, script, mode="history")
    seen = 0
    for n in range(1, 30):
        sink.write(script.events([row(C, n, id=n, name=f"n{n}")]))
        found = _rows(f"SELECT _offset FROM '{lake.directory}/lake/shop_item/*.parquet' ORDER BY 1")
        assert found == [(k,) for k in range(len(found))]
        assert len(found) >= seen
        seen = len(found)
    sink.close()
    again = _prepared(lake, script, mode="history")
    again.write(script.events([row(D, 30, id=1)]))
    again.close()
    found = _rows(f"SELECT _offset, _op FROM '{lake.directory}/lake/shop_item/*.parquet' ORDER BY 1")
    assert found == [(k, "c") for k in range(29)] + [(29, "d")]
    assert [p.name for p in (lake.directory / "lake/shop_item").glob("*.parquet")] == ["events-000001.parquet"]


def test_a_parquet_table_in_a_foreign_folder_is_refused(lake: SinkTarget, script: Script) -> None:
    folder = lake.directory / "lake/shop_item"
    folder.mkdir(parents=True)
    (folder / "theirs.parquet").write_bytes(b"x")
    with pytest.raises(SinkError, match=r"theirs\.parquet.*did not make"):
        lake.open().prepare(script.contract)


def test_a_newer_or_damaged_manifest_is_refused(lake: SinkTarget, script: Script) -> None:
    _prepared(lake, script).write(script.events([row(C, 1, id=1, name="a")]))
    manifest = lake.directory / "lake/shop_item/_headwater/manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(SinkError, match="newer Headwater"):
        lake.open().prepare(script.contract)
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(SinkError, match="damaged"):
        lake.open().prepare(script.contract)
    manifest.write_text(text)


def test_a_lost_or_cut_parquet_file_is_named(lake: SinkTarget, script: Script) -> None:
    sink = _prepared(lake, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    sink.close()
    path = lake.directory / "lake/shop_item/current.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(SinkError, match=r"current\.parquet is damaged"):
        rows_in(sink)
    path.unlink()
    with pytest.raises(SinkError, match=r"current\.parquet is gone"):
        rows_in(sink)
