"""Rows on disk, parted by the hash of their key, so that each part can be worked on in little memory.

One idea: equal keys are in equal parts, in every `Spill` of the same key; what fits into no memory fits part by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

PARTS = 64
_ROWS = 50_000
_BYTES = 8 * 2**20
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class Spill:
    """Record batches of one schema. `add` and `end`, then `read`. One thread."""

    def __init__(self, directory: Path, name: str, schema: pa.Schema, key: Sequence[str]) -> None:
        self.schema = schema
        self.nbytes = [0] * PARTS
        self._directory = directory
        self._name = name
        self._key = ", ".join('"' + column.replace('"', '""') + '"' for column in key)
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, batch: pa.RecordBatch, db: duckdb.DuckDBPyConnection) -> None:
        """Take rows; small batches are gathered first. `db` computes the hashes."""
        self._waiting.append(batch)
        self._rows += len(batch)
        self._waiting_rows += len(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_rows >= _ROWS or self._waiting_bytes >= _BYTES:
            self._flush(db)

    def end(self, db: duckdb.DuckDBPyConnection) -> None:
        """Everything is on disk; nothing more is added."""
        self._flush(db)
        self.close()

    def read(self, parts: range) -> pa.RecordBatchReader:
        """The rows of these parts, part by part, each in the sequence in which it was added."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches(parts))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _flush(self, db: duckdb.DuckDBPyConnection) -> None:
        rows = pa.Table.from_batches(self._waiting, self.schema)
        self._waiting = []
        self._waiting_rows = self._waiting_bytes = 0
        db.register("rows", rows)
        parts = db.sql(f"SELECT (hash({self._key}) % {PARTS})::TINYINT AS part FROM rows").to_arrow_table()
        db.unregister("rows")
        self._write(rows, parts.column("part").combine_chunks())

    def _write(self, rows: pa.Table, parts: pa.Array) -> None:
        # Arrow's sort is stable: rows of one part stay in their sequence
        in_parts = pc.sort_indices(parts)
        sorted_rows = rows.take(in_parts).combine_chunks()
        start = 0
        for run in pc.value_counts(parts.take(in_parts)):
            part, count = run["values"].as_py(), run["counts"].as_py()
            piece = sorted_rows.slice(start, count)
            self._writer(part).write_table(piece)
            self.nbytes[part] += piece.nbytes
            start += count

    def _writer(self, part: int) -> pa.ipc.RecordBatchStreamWriter:
        if part not in self._writers:
            self._writers[part] = pa.ipc.new_stream(self._path(part), self.schema, options=_OPTIONS)
        return self._writers[part]

    def _batches(self, parts: range) -> Iterator[pa.RecordBatch]:
        for part in parts:
            if self.nbytes[part]:
                with pa.OSFile(str(self._path(part))) as file, pa.ipc.open_stream(file) as reader:
                    yield from reader

    def _path(self, part: int) -> Path:
        return self._directory / f"{self._name}-{part}.arrows"
