"""What a step that is under way must read again before it ends: in memory, and beyond a budget on disk.

A transaction too large for memory may hold a TRUNCATE: the deletes that it stands for need all that came before it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import pyarrow as pa
import pyarrow.ipc

from headwater.model import Changes, Events

MEMORY = 16 * 2**20
"""Bytes that are held in memory."""

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


Item = TypeVar("Item", Events, Changes)


class Kept(Generic[Item]):
    """`add`, and `read` any number of times. `directory`: where the file lies; None: all is held in memory.

    The file has no name: whatever ends this process ends it too.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._file: BinaryIO | None = None
        self._written: list[tuple[int, Item]] = []
        """Where each piece begins, and what it is, without its rows."""
        self._held: list[Item] = []
        self._held_bytes = 0

    def add(self, item: Item) -> None:
        self._held.append(item)
        if self._directory is not None:
            self._held_bytes += item.data.nbytes
            if self._held_bytes > MEMORY:
                self._write(self._directory)

    def read(self) -> Iterator[Item]:
        """In the sequence in which they were added."""
        for start, item in self._written:
            assert self._file is not None
            self._file.seek(start)
            with pa.ipc.open_stream(self._file) as reader:
                yield dataclasses.replace(item, data=reader.read_next_batch())
        yield from self._held

    def clear(self) -> None:
        """Forget all; more can be added."""
        self._held, self._held_bytes = [], 0
        self._written = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, directory: Path) -> None:
        if self._file is None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory, prefix="kept-")  # noqa: SIM115
        for item in self._held:
            start = self._file.seek(0, 2)
            with pa.ipc.new_stream(self._file, item.data.schema, options=_OPTIONS) as writer:
                writer.write_batch(item.data)
            empty = pa.RecordBatch.from_pylist([], schema=item.data.schema)
            self._written.append((start, dataclasses.replace(item, data=empty)))
        self._held, self._held_bytes = [], 0
