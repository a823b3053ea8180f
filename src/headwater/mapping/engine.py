"""DuckDB in memory, over the columns of one batch: expressions in, one array each out, and who is to blame for errors.

It has no tables, no files and one thread; its time zone is UTC, so that an expression gives the same anywhere. The
first expression imports DuckDB: plain columns need neither it nor its 45 MB.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import MappingError
from headwater.mapping.expressions import Expression, coded
from headwater.mapping.side import Side

if TYPE_CHECKING:
    import duckdb

_EXPLAINED = 50
"""For how many rows of a batch the exact error is looked up; more say that theirs is alike."""
_UNSTABLE_MACROS = ("ago", "user", "session_user", "age")
_UNSTABLE_PREFIXES = ("current_", "pg_", "has_", "inet_", "local")


@dataclass(frozen=True, slots=True)
class Result:
    """`failed`: the rows on which the expression failed, and why; their values are null."""

    values: pa.Array
    failed: npt.NDArray[np.int64]
    errors: pa.Array


_NONE_FAILED = np.zeros(0, dtype=np.int64)


@functools.cache
def _run_time() -> tuple[type[Exception], ...]:
    """What a single row can be to blame for."""
    import duckdb

    return (
        duckdb.DataError,
        duckdb.InvalidInputException,
        duckdb.OutOfRangeException,
        duckdb.ConversionException,
    )


_UNKNOWN: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()


@functools.cache
def _functions() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """By name, what DuckDB's own catalogue says: types and stabilities. To list all takes as long as to find one."""
    import duckdb

    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        listed = connection.execute("SELECT function_name, function_type, stability FROM duckdb_functions()").fetchall()
    types: defaultdict[str, set[str]] = defaultdict(set)
    stabilities: defaultdict[str, set[str]] = defaultdict(set)
    for name, kind, stability in listed:
        types[name].add(kind)
        stabilities[name].add(stability)
    return {name: (frozenset(types[name]), frozenset(stabilities[name])) for name in types}


class _Slot:
    """A table that DuckDB knows by a name and whose rows change; to register each batch takes as long as its query."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.table: pa.Table | None = None

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        assert self.table is not None
        return self.table.__arrow_c_stream__(requested_schema)


class Engine:
    """One connection, opened when first needed; used by one thread."""

    def __init__(self) -> None:
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._closing: weakref.finalize[..., Engine] | None = None
        self._slots: dict[pa.Schema, _Slot] = {}

    def close(self) -> None:
        """Also done when the engine is forgotten, and at exit."""
        if self._closing is not None:
            self._closing()
        self._connection = self._closing = None
        self._slots.clear()

    def prepare(self, expression: Expression, columns: pa.Schema, *, what: str) -> pa.DataType:
        """The type of the expression's values. Raises `MappingError` for what DuckDB refuses or cannot repeat."""
        import duckdb

        self._refuse_unstable(expression, what)
        empty = {name: pa.nulls(0, columns.field(name).type) for name in expression.columns}
        try:
            table = self._select([f"{expression.sql} AS r0"], Side(empty, 0))
        except duckdb.Error as error:
            reason = _first_line(error)
            for name in expression.columns:
                reason = reason.replace(coded(name), name)
            raise MappingError(f"{what}: DuckDB refuses `{expression.text}`: {reason}") from error
        return table.schema.field(0).type

    def evaluate(self, expressions: Sequence[Expression], side: Side) -> list[Result]:
        """Each expression over the rows of `side`; a failing row costs its own value only."""
        import duckdb

        sql = [f"{e.sql} AS r{i}" for i, e in enumerate(expressions)]
        try:
            table = self._select(sql, side)
        except _run_time():
            return [self._each_row(expression, side) for expression in expressions]
        except duckdb.Error as error:
            texts = ", ".join(f"`{expression.text}`" for expression in expressions)
            raise MappingError(f"{texts} cannot be evaluated: {_first_line(error)}") from error
        return [Result(_one(column), _NONE_FAILED, pa.nulls(0, pa.string())) for column in table.columns]

    def valid_json(self, texts: pa.Array) -> pa.Array:
        """Which texts are JSON (RFC 8259); null for null."""
        side = Side({"x": texts}, len(texts))
        valid = _one(self._select([f"json_valid({coded('x')}) AS r0"], side).column(0))
        # DuckDB lets NaN, Infinity and trailing commas pass; Python's parser does not, and sees only suspects.
        suspect = pc.fill_null(pc.match_substring_regex(texts, r"(?i)nan|inf|,\s*[\]}]"), False)
        rows = np.flatnonzero(pc.and_(suspect, pc.fill_null(valid, False)).to_numpy(zero_copy_only=False))
        wrong = [row for row in rows.tolist() if not _is_json(texts[row].as_py())]
        if not wrong:
            return valid
        mask = np.zeros(len(texts), dtype=bool)
        mask[wrong] = True
        return pc.if_else(pa.array(mask), False, valid)

    def _each_row(self, expression: Expression, side: Side) -> Result:
        # A struct around the value tells a null from a failure.
        table = self._select([f"TRY(struct_pack(v := {expression.sql})) AS r0"], side)
        wrapped = _one(table.column(0))
        failed = np.flatnonzero(wrapped.is_null().to_numpy(zero_copy_only=False))
        values = pc.struct_field(wrapped, [0])
        return Result(values, failed, self._errors(expression, side, failed))

    def _errors(self, expression: Expression, side: Side, failed: npt.NDArray[np.int64]) -> pa.Array:
        found = []
        for row in failed[:_EXPLAINED]:
            try:
                self._select([f"{expression.sql} AS r0"], side.take(np.array([row], dtype=np.int64)))
            except _run_time() as error:
                found.append(_first_line(error))
            else:
                found.append("an error that shows only among other rows")
        found += ["an error like that of other rows of this batch"] * (len(failed) - len(found))
        return pa.array(found, pa.string())

    def _select(self, sql: Sequence[str], side: Side) -> pa.Table:
        names = {coded(name): column for name, column in side.columns.items() if coded(name) in " ".join(sql)}
        batch = pa.table(names or {"nothing": pa.nulls(side.count, pa.int8())})
        connection = self._open()
        slot = self._slots.get(batch.schema)
        if slot is None:
            slot = self._slots[batch.schema] = _Slot(f"batch_{len(self._slots)}")
            slot.table = batch
            connection.register(slot.name, slot)
        slot.table = batch
        try:
            relation: Any = connection.sql(f"SELECT {', '.join(sql)} FROM {slot.name}")
            return relation.to_arrow_table()
        finally:
            slot.table = None

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            import duckdb

            self._connection = duckdb.connect(":memory:", config={"threads": 1})
            self._connection.execute("SET TimeZone = 'UTC'")
            self._connection.execute("SET enable_external_access = false")
            self._closing = weakref.finalize(self, self._connection.close)
        return self._connection

    def _refuse_unstable(self, expression: Expression, what: str) -> None:
        """DuckDB's own catalogue says which functions give the same for the same row, and are scalar."""
        functions, names = self._calls(expression.sql)
        for name in sorted(names):
            if name.lower().startswith(_UNSTABLE_PREFIXES):
                raise _unstable(expression, name, what)
        for name in sorted(functions):
            types, stabilities = _functions().get(name.lower(), _UNKNOWN)
            if {"VOLATILE", "CONSISTENT_WITHIN_QUERY"} & stabilities or _is_unstable_macro(name):
                raise _unstable(expression, name, what)
            if types and not {"scalar", "macro"} & types:
                raise MappingError(
                    f"{what}: `{expression.text}` uses `{name}`, which is no scalar function",
                    hint="an expression sees one row at a time",
                )

    def _calls(self, sql: str) -> tuple[set[str], set[str]]:
        """The names of functions and of bare words in DuckDB's own tree of the expression."""
        row = self._open().execute("SELECT json_serialize_sql(?)", [f"SELECT {sql}"]).fetchall()[0]
        functions: set[str] = set()
        words: set[str] = set()
        pending: list[Any] = [json.loads(row[0])]
        while pending:
            node = pending.pop()
            if isinstance(node, dict):
                functions |= {node["function_name"]} if node.get("function_name") else set()
                words |= set(node["column_names"][:1]) if node.get("class") == "COLUMN_REF" else set()
                pending += node.values()
            elif isinstance(node, list):
                pending += node
        return functions, {word for word in words if not word.startswith("c_")}


def _is_unstable_macro(name: str) -> bool:
    return name.lower() in _UNSTABLE_MACROS or name.lower().startswith(_UNSTABLE_PREFIXES)


def _unstable(expression: Expression, name: str, what: str) -> MappingError:
    return MappingError(
        f"{what}: `{expression.text}` uses `{name}`, which does not give the same for the same row",
        hint="an event must come out the same whenever its change is mapped; use a column of the table",
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". Use TRY", 1)[0]


def _is_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
