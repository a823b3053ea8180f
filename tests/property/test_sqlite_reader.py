"""The native engine and Python's own give the same: values, marks, errors, whatever a database holds."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.drivers.sqlite import Connection, Engine
from headwater.drivers.sqlite_library import engine_module
from headwater.drivers.sqlite_stdlib import StdlibEngine
from headwater.drivers.sqlite_values import PHYSICAL, VARIANT
from headwater.errors import HeadwaterError

pytestmark = pytest.mark.needs("native")

MODEST = settings(deadline=None, max_examples=60)

integers = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**53, 2**53 + 1, -(2**53), -(2**53) - 1, 2**63 - 1, -(2**63)])
)
reals = st.one_of(
    st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, 2.0**53, 2.0**53 + 2, 1e300, float("inf")])
)
texts = st.one_of(st.text(max_size=60), st.sampled_from(["", "\0", "a\0b", "é" * 50, "𝄞", "x" * 500, "\ud7ff\ue000"]))
blobs = st.one_of(st.binary(max_size=60), st.sampled_from([b"", b"\0", b"\xff" * 300]))
wild = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"12345678\xff", b"\xf0\x80\x80\x80", b"\xc3"]
    ),
)


class Raw(bytes):
    """Bytes to be stored as TEXT, well-formed or not."""


values = st.one_of(st.none(), integers, reals, texts, blobs, wild.map(Raw))
rows_of = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[values] * n), min_size=1, max_size=12))


@contextlib.contextmanager
def database(rows: Sequence[tuple[Any, ...]], encoding: str = "UTF-8") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "p.db")
        width = len(rows[0])
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA encoding = '{encoding}'")
            connection.execute(f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(width))})")
            for row in rows:
                marks = ", ".join("CAST(? AS TEXT)" if isinstance(v, Raw) else "?" for v in row)
                connection.execute(f"INSERT INTO t VALUES ({marks})", [_plain(v) for v in row])
            connection.commit()
        yield path


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, Raw) else value


def engines(path: Path) -> list[Engine]:
    module = engine_module()
    assert module is not None
    uri = f"file:{quote(str(path))}?mode=rwc"
    return [StdlibEngine(uri, str(path), 5.0), module.NativeEngine(uri, str(path), 5.0)]


def outcomes(path: Path, use: Callable[[Engine], Any]) -> list[Any]:
    """What each engine gives, or how it refuses."""
    found: list[Any] = []
    for engine in engines(path):
        try:
            found.append(use(engine))
        except HeadwaterError as error:
            found.append((type(error), getattr(error, "code", None)))
        finally:
            engine.close()
    return found


def everything(engine: Engine, columns: pa.Schema, size: int) -> list[list[Any]]:
    rows = engine.open("SELECT * FROM t ORDER BY rowid", (), columns)
    batches = list(iter(lambda: rows.fetch(size), None))
    rows.close()
    for batch in batches:
        batch.validate(full=True)
    return [[_exact(row) for row in batch.to_pylist()] for batch in batches]


def _exact(row: dict[str, Any]) -> dict[str, Any]:
    """Floats as their bits, and a row without marks as one with none."""
    return {name: repr(value) for name, value in {"_invalid": None, **row}.items()}


@MODEST
@given(rows_of, st.data(), st.integers(1, 5))
@example([(b"\xff" * 70_000, Raw(b"\xff" * 70_000), "é" * 40_000, "")], None, 3)
def test_both_read_the_same(rows: list[tuple[Any, ...]], data: Any, size: int) -> None:
    kinds = [VARIANT] * len(rows[0]) if data is None else [data.draw(st.sampled_from(PHYSICAL)) for _ in rows[0]]
    columns = pa.schema([pa.field(f"c{n}", kind) for n, kind in enumerate(kinds)])
    with database(rows) as path:
        stdlib, native = outcomes(path, lambda engine: everything(engine, columns, size))
    assert native == stdlib


@MODEST
@given(rows_of, st.sampled_from(["UTF-16le", "UTF-16be"]))
def test_both_read_utf16_databases_the_same(rows: list[tuple[Any, ...]], encoding: str) -> None:
    columns = pa.schema([pa.field(f"c{n}", VARIANT) for n in range(len(rows[0]))])
    with database(rows, encoding) as path:
        stdlib, native = outcomes(path, lambda engine: everything(engine, columns, 100))
    assert native == stdlib


@MODEST
@given(rows_of)
def test_both_execute_the_same(rows: list[tuple[Any, ...]]) -> None:
    def use(engine: Engine) -> list[str]:
        found = engine.execute("SELECT * FROM t", ())
        bound = [engine.execute("SELECT ?, typeof(?1)", (_plain(value),)) for row in rows for value in row]
        named = [engine.execute("SELECT :a", {"a": _plain(value), "unused": 1}) for row in rows for value in row]
        return [repr(found), repr(bound), repr(named)]

    with database(rows) as path:
        stdlib, native = outcomes(path, use)
    assert native == stdlib


arrow_columns = st.one_of(
    st.lists(st.none() | integers, min_size=5, max_size=5).map(lambda v: pa.array(v, pa.int64())),
    st.lists(st.none() | st.integers(-128, 127), min_size=5, max_size=5).map(lambda v: pa.array(v, pa.int8())),
    st.lists(st.none() | st.integers(0, 2**64 - 1), min_size=5, max_size=5).map(lambda v: pa.array(v, pa.uint64())),
    st.lists(st.none() | st.floats(), min_size=5, max_size=5).map(lambda v: pa.array(v, pa.float64())),
    st.lists(st.none() | st.floats(width=32), min_size=5, max_size=5).map(lambda v: pa.array(v, pa.float32())),
    st.lists(st.none() | st.booleans(), min_size=5, max_size=5).map(lambda v: pa.array(v, pa.bool_())),
    st.lists(st.none() | texts, min_size=5, max_size=5).map(lambda v: pa.array(v, pa.string())),
    st.lists(st.none() | texts, min_size=5, max_size=5).map(lambda v: pa.array(v, pa.large_string())),
    st.lists(st.none() | texts, min_size=5, max_size=5).map(lambda v: pa.array(v, pa.string_view())),
    st.lists(st.none() | blobs, min_size=5, max_size=5).map(lambda v: pa.array(v, pa.binary())),
    st.lists(st.none() | blobs, min_size=5, max_size=5).map(lambda v: pa.array(v, pa.large_binary())),
    st.just(pa.nulls(5)),
    st.just(pa.array([1, None, 3, 4, 5], pa.decimal128(5, 2))),
)


@MODEST
@given(st.lists(arrow_columns, min_size=1, max_size=4), st.integers(0, 4), st.booleans())
def test_both_write_the_same(columns: list[pa.Array], start: int, unique: bool) -> None:
    batch = pa.RecordBatch.from_arrays(columns, names=[f"c{n}" for n in range(len(columns))]).slice(start)
    names = ", ".join(batch.schema.names)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for engine in engines(Path(directory, "w.db")):
            engine.execute("DROP TABLE IF EXISTS t", ())
            engine.execute(f"CREATE TABLE t ({names}{', UNIQUE (c0)' if unique else ''})", ())
            try:
                written: Any = engine.write(f"INSERT INTO t VALUES ({', '.join('?' * len(columns))})", batch)
            except HeadwaterError as error:
                written = (type(error), getattr(error, "code", None))
            found.append((written, repr(engine.execute("SELECT * FROM t ORDER BY rowid", ()))))
            engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT", ()), ("SELECT 1; SELECT 2", ()), ("SELECT * FROM nowhere", ()), ("SELECT ?", ()), ("SELECT 1", (1,)),
        ("SELECT ?", (2**63,)), ("SELECT :a", {"b": 1}), ("SELECT ?", (object(),)), ("SELECT ?", ("\ud800",)),
        ("SELECT '\0'", ()), ("SELECT \ud800", ()), ("INSERT INTO t VALUES (1)", ()),
        ("SELECT abs(-9223372036854775808)", ()),
        ("SELECT 1 -- more", ()), ("SELECT 1; /* more */ ;", ()), ("SELECT zeroblob(2000000000)", ()),
    ],
)  # fmt: skip
def test_both_refuse_the_same(sql: str, parameters: Any) -> None:
    with database([(1,)]) as path, closing(sqlite3.connect(path)) as other:
        other.execute("CREATE UNIQUE INDEX u ON t (c0)")
        stdlib, native = outcomes(path, lambda engine: engine.execute(sql, parameters))
    assert native == stdlib


def test_wide_rows_end_a_batch_early() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "w.db")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE t (c0)")
            connection.executemany("INSERT INTO t VALUES (zeroblob(?))", [(3_000_000 + n,) for n in range(30)])
            connection.commit()
        with closing(Connection(path)) as connection_:
            batches = list(connection_.read("SELECT c0 FROM t", (), pa.schema([("c0", pa.binary())]), rows=1000))
    sizes = [len(value.as_buffer()) for batch in batches for value in batch.column(0)]
    assert sizes == [3_000_000 + n for n in range(30)]
    assert max(batch.nbytes for batch in batches) < 40 * 2**20
