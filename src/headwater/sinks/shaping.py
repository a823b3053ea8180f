"""Events in the shape of a target's table, and whether a stream fits a table at all."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.model import Contract, FieldSpec
from headwater.contracts.types import FieldType, parse_type
from headwater.errors import SinkError
from headwater.mapping import unchanged as marks
from headwater.mapping.evolve import default_scalar
from headwater.model import TIMESTAMP, Events, Op
from headwater.sinks import placing
from headwater.sinks.upsert import Table

LETTERS = pa.array([op.letter for op in Op])
"""Operations as users see them; a place is the number less one."""


def check_keyed(sink: str, table: Table) -> None:
    """A current state needs a key, and one shape of event."""
    contract = table.contract
    if table.current and not contract.key:
        raise SinkError(
            f"sink {sink}, stream {contract.stream}: `mode: current` needs a contract with a key",
            hint="give the contract a `key`, or write the stream to a sink of `mode: history`",
        )
    if table.current and contract.types:
        raise SinkError(
            f"sink {sink}, stream {contract.stream}: its contract has several event types, whose sequence has no "
            "current state",
            hint="write the stream to a sink of `mode: history`",
        )


def check_same(sink: str, table: Table, found: tuple[str, bool, tuple[str, ...]]) -> None:
    """Mode, softness and key are what the table was made for."""
    expected = (table.mode, table.soft, table.key)
    if expected != found:
        stream = table.contract.stream
        raise SinkError(
            f"sink {sink}, stream {stream}: mode, soft deletes and key are {expected} now, and the table was made for "
            f"{found}",
            hint=f"`headwater sink rebuild {sink} {stream}` makes the table anew",
        )


def check_widening(sink: str, contract: Contract, old: dict[str, str]) -> list[str]:
    """The fields whose type is wider than in `old` (field -> type, as text). Any other difference is an error."""
    changed = [n for n, spec in contract.all_fields.items() if n in old and str(spec.parsed) != old[n]]
    for name in changed:
        _check_wider(sink, contract.stream, name, contract.all_fields[name], parse_type(old[name]))
    return changed


def _check_wider(sink: str, stream: str, name: str, spec: FieldSpec, old: FieldType) -> None:
    if not widens(old, spec.parsed):
        raise SinkError(
            f"sink {sink}, stream {stream}, field `{name}`: the table holds {old}, which does not widen to "
            f"{spec.parsed}",
            hint=f"use a new field, or make the table anew with `headwater sink rebuild {sink} {stream}`",
        )


def check_version(sink: str, table: Table | None, events: Events) -> Table:
    """The table, if it is prepared for these events."""
    if table is None:
        raise unprepared(sink, events.stream)
    if events.version > table.contract.version:
        raise SinkError(
            f"sink {sink}, stream {events.stream}: events of contract version {events.version} arrive, and the table "
            f"has the shape of version {table.contract.version}",
            hint="restart the sink, so that it learns the newer contract",
        )
    return table


def unprepared(sink: str, stream: str) -> SinkError:
    return SinkError(f"sink {sink}: stream {stream} was not prepared", hint="call `prepare` with its contract first")


def widens(old: FieldType, new: FieldType) -> bool:
    """Whether each value of `old` is a value of `new`, and the same one."""
    if old == new or (old.name, new.name) in _WIDER:
        return True
    if new.name == "decimal" and old.name in ("decimal", *_DIGITS):
        digits = _DIGITS.get(old.name, old.precision - old.scale)
        return new.scale >= old.scale and new.precision - new.scale >= digits
    if old.name == new.name and old.names == new.names and len(old.items) == len(new.items) > 0:
        return all(map(widens, old.items, new.items))
    return False


_WIDER = {("int32", "int64"), ("int32", "float64"), ("float32", "float64")}
_DIGITS = {"int32": 10, "int64": 19}


def lacking(data: pa.RecordBatch, fields: list[str]) -> dict[str, pa.Array]:
    """For each field that some row does not carry: which rows."""
    found = marks.pairs(data.column("_unchanged"))
    masks = {}
    for ordinal in np.unique(found.ordinals).tolist():
        mask = np.zeros(data.num_rows, dtype=bool)
        mask[found.rows[found.ordinals == ordinal]] = True
        masks[fields[ordinal]] = pa.array(mask)
    return masks


def rows(table: Table, data: pa.RecordBatch) -> pa.RecordBatch:
    """Live rows in the table's shape."""
    constants = {"_deleted": pa.scalar(False), "_deleted_at": pa.scalar(None, TIMESTAMP)}
    arrays = [
        pa.repeat(constants[name], data.num_rows) if name in constants else data.column(name)
        for name in table.columns.names
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=_as_found(table.columns, arrays))


def deleted(table: Table, data: pa.RecordBatch) -> pa.RecordBatch:
    """Keys and orders of deletes, and when they happened."""
    names = [*table.key, *placing.ORDER]
    at = pc.fill_null(data.column("_time"), pa.scalar(int(time.time() * 1e6), data.column("_time").type))
    arrays = [*(data.column(name) for name in names), at]
    return pa.RecordBatch.from_arrays(arrays, names=[*names, "_at"])


def _as_found(schema: pa.Schema, arrays: Iterable[pa.Array]) -> pa.Schema:
    return pa.schema([field.with_type(array.type) for field, array in zip(schema, arrays, strict=True)])


def history(table: Table, data: pa.RecordBatch, events: Events) -> pa.RecordBatch:
    """Every event in the shape of a history table; fields of other event types are null."""
    count = data.num_rows
    given = {name: data.column(name) for name in data.schema.names}
    given["_offset"] = events.offsets if events.offsets is not None else pa.nulls(count, pa.uint64())
    given["_unchanged"] = _unchanged_names(table, data, events.type)
    if events.type is not None:
        given["type"] = pa.repeat(pa.scalar(events.type), count)
    arrays = [given[f.name] if f.name in given else pa.nulls(count, f.type) for f in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=_as_found(table.columns, arrays))


def _unchanged_names(table: Table, data: pa.RecordBatch, type_name: str | None) -> pa.Array:
    if "_unchanged" not in data.schema.names:
        return pa.nulls(data.num_rows, pa.string())
    marker = data.column("_unchanged")
    names = pa.array(list(table.contract.shape(type_name)))
    found = marks.pairs(marker)
    lengths = pc.fill_null(pc.list_value_length(marker), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(found.ordinals)))
    text = pc.binary_join(lists, ",")
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def reshaped(batch: pa.RecordBatch, schema: pa.Schema, table: Table) -> pa.RecordBatch:
    """Rows that were written earlier as `schema`, the table's newest shape: what `conform` is to events."""
    arrays = [_column(batch, field, table) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field, table: Table) -> pa.Array:
    if field.name not in batch.schema.names:
        return _filled(batch, field, table)
    array = batch.column(field.name)
    if field.name == "_op" and array.type == pa.string():
        return _numbered(array)
    return array.cast(field.type)


def _numbered(letters: pa.Array) -> pa.Array:
    """Published files show operations by their letters."""
    return pc.add(pc.index_in(letters, LETTERS), 1).cast(pa.int8())


def _filled(batch: pa.RecordBatch, field: pa.Field, table: Table) -> pa.Array:
    """A column that a newer contract added. Deletes carry nothing but a key, so they get no default."""
    spec = table.contract.all_fields.get(field.name)
    if spec is None or spec.default is None:
        return pa.nulls(batch.num_rows, field.type)
    value = default_scalar(spec)
    if "_op" not in batch.schema.names:
        return pa.repeat(value, batch.num_rows)
    numbers = _column(batch, pa.field("_op", pa.int8()), table)
    bare = pc.is_in(numbers, pa.array([Op.DELETE, Op.TRUNCATE], pa.int8()))
    return pc.if_else(bare, pa.scalar(None, field.type), value)


def numbers(data: pa.RecordBatch) -> pa.Array:
    """The row numbers."""
    return pa.array(np.arange(data.num_rows, dtype=np.int64))


def among(data: pa.RecordBatch, rows: list[int]) -> pa.Array:
    """Which row numbers are among `rows`."""
    return pc.is_in(numbers(data), pa.array(rows, pa.int64()))
