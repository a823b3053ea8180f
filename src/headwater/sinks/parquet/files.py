"""Parquet files of a table: written in row groups, read back in the newest shape of the contract."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import SinkError
from headwater.mapping.evolve import default_scalar
from headwater.model import Op
from headwater.sinks.parquet.store import Fill, Store
from headwater.sinks.upsert import Table

GROUP = 122_880
"""Rows of a row group: DuckDB's own, so that it reads groups in parallel."""

READ_ROWS = 65_536

LETTERS = pa.array([op.letter for op in Op])


def filling(schema: pa.Schema, batches: Iterable[pa.RecordBatch], notes: Mapping[str, str] | None = None) -> Fill:
    """Content for `Store.write`. `notes` go into the file's own metadata."""

    def fill(stream: Any) -> None:
        parquet = importlib.import_module("pyarrow.parquet")
        named = schema.with_metadata({f"headwater.{name}": value for name, value in (notes or {}).items()} or None)
        with parquet.ParquetWriter(stream, named, compression="zstd") as writer:
            for group in grouped(batches):
                writer.write_table(group.cast(named), row_group_size=GROUP)

    return fill


def grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches gathered into row groups."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
        if count >= GROUP:
            yield pa.Table.from_batches(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def reading(store: Store, name: str, schema: pa.Schema, table: Table) -> Iterator[pa.RecordBatch]:
    """The file's rows as `schema`: columns that it lacks get their default, types that were narrower are cast."""
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        with closing(store.open(name)) as stream, parquet.ParquetFile(stream) as file:
            for batch in file.iter_batches(READ_ROWS):
                yield _shaped(batch, schema, table)
    except FileNotFoundError as error:
        raise _damaged(store, name, table, "is gone") from error
    except pa.ArrowInvalid as error:
        raise _damaged(store, name, table, f"is damaged: {error}") from error


def notes_of(store: Store, name: str) -> dict[str, str]:
    """What `filling` noted."""
    parquet = importlib.import_module("pyarrow.parquet")
    with closing(store.open(name)) as stream:
        metadata = parquet.read_schema(stream).metadata or {}
    return {
        key.decode().removeprefix("headwater."): value.decode()
        for key, value in metadata.items()
        if key.startswith(b"headwater.")
    }


def count(store: Store, name: str) -> int:
    """The file's rows."""
    parquet = importlib.import_module("pyarrow.parquet")
    with closing(store.open(name)) as stream:
        return int(parquet.read_metadata(stream).num_rows)


def _damaged(store: Store, name: str, table: Table, what: str) -> SinkError:
    return SinkError(
        f"{store.path(name)} {what}, and the manifest of stream {table.contract.stream} names it",
        hint="`headwater sink rebuild` writes the table anew",
    )


def _shaped(batch: pa.RecordBatch, schema: pa.Schema, table: Table) -> pa.RecordBatch:
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
