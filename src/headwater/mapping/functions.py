"""Mappings written in Python: a function over record batches, or over rows.

Batches: the function is given the columns of one state of the rows, and `_op` (int8, see `Op`); it returns a record
batch (or a table, or a mapping of names to arrays) with the contract's fields and as many rows in the same sequence.
Rows, with `rows: true`: one dict in, one dict out, or None for a row that is no event; that is many times slower, and
the only place where rows become Python objects.

A batch function says which rows are events by a boolean column `_keep`. Functions must be pure: the same row must give
the same event at any time. A row on which the function fails goes to quarantine alone; it is found by halves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.contracts.model import Contract
from headwater.errors import MappingError
from headwater.mapping.fields import KEPT
from headwater.mapping.side import Side
from headwater.schema import fields_schema

_FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, pa.ArrowException)
"""What a function's own mistakes over a row's values look like; anything else is no property of a row."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`failed`: the rows on which the function failed, and why."""

    side: Side
    failed: npt.NDArray[np.int64]
    errors: pa.Array


def load(reference: str) -> Callable[..., Any]:
    """`module:callable`, imported. Raises `MappingError`."""
    module, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MappingError(
            f"function `{reference}` cannot be imported: {error}", hint="write `module:callable`"
        ) from error
    if not callable(found):
        raise MappingError(f"function `{reference}` is a {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]


class FunctionMapping:
    """Turns a side of table columns into one of contract fields."""

    def __init__(self, function: Callable[..., Any], contract: Contract, *, rows: bool) -> None:
        self._function = function
        self._rows = rows
        self._fields = fields_schema(contract) if not contract.types else pa.schema([])
        self._name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', function)}"
        self._where = f"stream `{contract.stream}`, function `{self._name}`"

    @property
    def produced(self) -> tuple[str, ...]:
        return (*self._fields.names, KEPT)

    def __call__(self, side: Side, ops: npt.NDArray[np.int8], present: npt.NDArray[np.int64]) -> Outcome:
        """The function over the rows `present` of `side`; the others come out as nulls that are not kept."""
        batch = pa.record_batch({**side.columns, "_op": pa.array(ops, pa.int8())}).take(pa.array(present))
        pieces: list[dict[str, pa.Array]] = []
        failed: list[int] = []
        errors: list[str] = []
        for start, piece in self._pieces(batch, 0) if len(present) else ():
            if isinstance(piece, Exception):
                failed.append(start)
                errors.append(f"{type(piece).__name__}: {piece}")
                piece = self._nothing(1)
            pieces.append(piece)
        return Outcome(self._spread(pieces, present, side.count), present[failed], pa.array(errors, pa.string()))

    def _pieces(self, batch: pa.RecordBatch, start: int) -> Iterator[tuple[int, dict[str, pa.Array] | Exception]]:
        try:
            piece = self._call_rows(batch) if self._rows else self._call_batch(batch)
        except _FAILURES as error:
            if batch.num_rows == 1:
                yield start, error
                return
            half = batch.num_rows // 2
            yield from self._pieces(batch.slice(0, half), start)
            yield from self._pieces(batch.slice(half), start + half)
        else:
            yield start, piece

    def _call_batch(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        result = self._function(batch)
        if isinstance(result, (pa.RecordBatch, pa.Table)):
            result = dict(zip(result.schema.names, result.columns, strict=True))
        columns = {name: _array(result[name]) for name in self._fields.names if name in result}
        if lacking := [name for name in self._fields.names if name not in columns]:
            raise MappingError(
                f"{self._where}: its result lacks {', '.join(lacking)}", hint="return a column for each field"
            )
        columns[KEPT] = _array(result[KEPT]) if KEPT in result else _true(batch.num_rows)
        for name, column in columns.items():
            if len(column) != batch.num_rows:
                raise MappingError(
                    f"{self._where}: `{name}` has {len(column)} rows, and {batch.num_rows} were given",
                    hint="keep each row in its place; a boolean column `_keep` says which rows are events",
                )
        return columns

    def _call_rows(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        results = [self._function(row) for row in batch.to_pylist()]
        columns = {
            f.name: pa.array([None if row is None else row[f.name] for row in results], f.type) for f in self._fields
        }
        columns[KEPT] = pa.array([row is not None for row in results], pa.bool_())
        return columns

    def _nothing(self, count: int) -> dict[str, pa.Array]:
        columns = {f.name: pa.nulls(count, f.type) for f in self._fields}
        return {**columns, KEPT: pa.nulls(count, pa.bool_())}

    def _spread(self, pieces: list[dict[str, pa.Array]], present: npt.NDArray[np.int64], count: int) -> Side:
        if not pieces:
            return Side(self._nothing(count), count)
        columns = {name: _joined([piece[name] for piece in pieces]) for name in self.produced}
        if len(present) < count:
            places = np.full(count, -1, dtype=np.int64)
            places[present] = np.arange(len(present))
            indices = pa.array(places, mask=places < 0)
            columns = {name: column.take(indices) for name, column in columns.items()}
        return Side(columns, count)


def _true(count: int) -> pa.Array:
    return pa.repeat(pa.scalar(True), count)


def _array(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column if isinstance(column, pa.Array) else pa.array(column)


def _joined(arrays: list[pa.Array]) -> pa.Array:
    if len(arrays) == 1:
        return arrays[0]
    kinds = {array.type for array in arrays}
    if len(kinds) == 1:
        return pa.concat_arrays(arrays)
    table = pa.concat_tables([pa.table({"x": array}) for array in arrays], promote_options="permissive")
    return table.column(0).combine_chunks()
