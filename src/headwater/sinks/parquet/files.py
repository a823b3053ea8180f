"""Parquet files of a table: written in row groups, read back in the newest shape of the contract."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from headwater.errors import SinkError
from headwater.sinks import shaping
from headwater.sinks.parquet.store import Fill, Readable
from headwater.sinks.upsert import Table

GROUP = 122_880
"""Rows of a row group: DuckDB's own, so that it reads groups in parallel."""

READ_ROWS = 65_536


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


def reading(store: Readable, name: str, schema: pa.Schema, table: Table) -> Iterator[pa.RecordBatch]:
    """The file's rows as `schema`: columns that it lacks get their default, types that were narrower are cast."""
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        with store.opened(name) as stream, parquet.ParquetFile(stream) as file:
            for batch in file.iter_batches(READ_ROWS):
                yield shaping.reshaped(batch, schema, table)
    except FileNotFoundError as error:
        raise gone(store, name, table) from error
    except pa.ArrowInvalid as error:
        raise _damaged(store, name, table, f"is damaged: {error}") from error


def notes_of(store: Readable, name: str) -> dict[str, str]:
    """What `filling` noted."""
    parquet = importlib.import_module("pyarrow.parquet")
    with store.opened(name) as stream:
        metadata = parquet.read_schema(stream).metadata or {}
    return {
        key.decode().removeprefix("headwater."): value.decode()
        for key, value in metadata.items()
        if key.startswith(b"headwater.")
    }


def count(store: Readable, name: str) -> int:
    """The file's rows."""
    parquet = importlib.import_module("pyarrow.parquet")
    with store.opened(name) as stream:
        return int(parquet.read_metadata(stream).num_rows)


def gone(store: Readable, name: str, table: Table) -> SinkError:
    return _damaged(store, name, table, "is gone")


def _damaged(store: Readable, name: str, table: Table, what: str) -> SinkError:
    return SinkError(
        f"{store.path(name)} {what}, and the manifest of stream {table.contract.stream} names it",
        hint="`headwater sink rebuild` writes the table anew",
    )
