"""One SQLite connection through Python's own `sqlite3`: slower than the native one, and there without a compiler.

Both give the same values, marks and errors; a property test compares them.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from headwater.drivers.sqlite_errors import Interrupted, StatementError, error_of
from headwater.drivers.sqlite_values import (
    BYTES,
    EXACT,
    VARIANT,
    Misfit,
    Undecodable,
    bindable,
    check_width,
    decoded,
    expected_of,
    got,
    with_misfits,
)

Parameters = Sequence[Any] | Mapping[str, Any]


class StdlibEngine:
    """See `sqlite.Engine` for what each method promises."""

    native = False

    def __init__(self, uri: str, path: str, busy_timeout: float) -> None:
        self._path = path
        self._deadline = 0.0
        with self._errors():
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False
            )
        self._connection.text_factory = decoded

    def execute(self, sql: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    def open(self, sql: str, parameters: Parameters, columns: pa.Schema) -> StdlibRows:
        with self._errors():
            return StdlibRows(self, self._connection.execute(sql, parameters), columns)

    def write(self, sql: str, batch: pa.RecordBatch) -> int:
        """Without the native module each value becomes a Python object."""
        rows = zip(*(column.to_pylist() for column in bindable(self._path, batch)), strict=True)
        before = self._connection.total_changes
        with self._errors():
            self._connection.executemany(sql, rows)
        return self._connection.total_changes - before

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def limit(self, seconds: float | None) -> None:
        """Interrupt what runs from now on after so many seconds. None: never."""
        if seconds is None:
            self._connection.set_progress_handler(None, 0)
            return
        self._deadline = time.monotonic() + seconds
        self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 4_000)

    def interrupt(self) -> None:
        self._connection.interrupt()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(self._path, error) from error
        except sqlite3.Warning as error:  # Python 3.11 warns, later ones raise
            raise StatementError(f"{self._path}: {error}") from error
        except OverflowError as error:
            raise StatementError(f"{self._path}: an integer does not fit SQLite's 64 bits: {error}") from error
        except UnicodeEncodeError as error:
            raise StatementError(f"{self._path}: text cannot be written as UTF-8: {error.reason}") from error


def _translated(path: str, error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return error_of(path, code, str(error))
    if isinstance(error, sqlite3.ProgrammingError) and "interrupt" in str(error):
        return Interrupted(f"{path}: {error}")
    return StatementError(f"{path}: {error}")


class StdlibRows:
    """The rows of one running statement, batch by batch."""

    def __init__(self, engine: StdlibEngine, cursor: sqlite3.Cursor, columns: pa.Schema) -> None:
        self._engine = engine
        self._cursor = cursor
        self._columns = columns
        self._step = 8  # rows may be wide; the next step goes by what these weigh
        check_width(len(cursor.description or ()), columns)

    def fetch(self, rows: int) -> pa.RecordBatch | None:
        """At most `rows` rows, fewer when they are wide; None at the end."""
        parts: list[pa.RecordBatch] = []
        misfits: list[Misfit] = []
        count = size = 0
        while count < rows and size < BYTES:
            known = len(misfits)
            part = self._part(min(self._step, rows - count), count, misfits)
            if part is None:
                break
            parts.append(part)
            count += part.num_rows
            weight = part.nbytes + sum(len(misfit.got) for misfit in misfits[known:])
            size += weight
            self._step = _next_step(part.num_rows, weight)
        if not parts:
            return None
        return with_misfits(pa.concat_batches(parts) if len(parts) > 1 else parts[0], misfits)

    def _part(self, rows: int, offset: int, misfits: list[Misfit]) -> pa.RecordBatch | None:
        with self._engine._errors():
            found = self._cursor.fetchmany(rows)
        if not found:
            return None
        values = zip(*found, strict=True)
        arrays = [_array(v, f, offset, misfits) for v, f in zip(values, self._columns, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._columns)

    def close(self) -> None:
        self._cursor.close()


def _next_step(rows: int, weight: int) -> int:
    """As many rows as a quarter of the byte budget takes, judged by the last ones."""
    fitting = BYTES // 4 * rows // max(weight, 1)
    return max(1, min(4 * rows, fitting, 16_384))


_FITS: dict[pa.DataType, frozenset[type]] = {
    pa.int64(): frozenset({int, type(None)}),
    pa.float64(): frozenset({float, type(None)}),
    pa.string(): frozenset({str, type(None)}),
    pa.binary(): frozenset({bytes, type(None)}),
}
_KINDS: dict[type, str] = {int: "integer", float: "real", str: "text", bytes: "blob", Undecodable: "text"}


def _array(values: Sequence[Any], field: pa.Field, offset: int, misfits: list[Misfit]) -> pa.Array:
    if field.type == VARIANT:
        return _variant(values, field, offset, misfits)
    if _FITS[field.type].issuperset(set(map(type, values))):
        return pa.array(values, field.type)
    kept = [_kept(value, field.type) for value in values]
    _report(values, kept, field, offset, misfits)
    return pa.array(kept, field.type)


def _kept(value: Any, wanted: pa.DataType) -> Any:
    if type(value) in _FITS[wanted]:
        return value
    if wanted == pa.float64() and type(value) is int and abs(value) <= EXACT:
        return float(value)
    if wanted == pa.int64() and type(value) is float and value.is_integer() and abs(value) <= EXACT:
        return int(value)
    return None


def _variant(values: Sequence[Any], field: pa.Field, offset: int, misfits: list[Misfit]) -> pa.Array:
    kinds = [int, float, str, bytes]
    children = [
        pa.array([v if type(v) is kind else None for v in values], child.type)
        for kind, child in zip(kinds, VARIANT, strict=True)
    ]
    kept = [None if type(value) is Undecodable else value for value in values]
    _report(values, kept, field, offset, misfits)
    return pa.StructArray.from_arrays(children, fields=list(VARIANT), mask=pa.array([v is None for v in kept]))


def _report(values: Sequence[Any], kept: Sequence[Any], field: pa.Field, offset: int, misfits: list[Misfit]) -> None:
    for row, (value, keeps) in enumerate(zip(values, kept, strict=True)):
        if keeps is None and value is not None:
            raw = value.encode() if isinstance(value, str) else value
            size = len(raw) if isinstance(raw, bytes) else 0
            shown = got(raw, _KINDS[type(value)], size)
            misfits.append(Misfit(offset + row, field.name, expected_of(field.type), shown))
