"""Failure rules that only the whole path can show; see docs/failures.md."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from headwater.errors import BusError
from headwater.model import Batch, Mapped, Position
from headwater.pipeline import capture
from headwater.protocols import Bus
from headwater.sources.memory import MemorySource
from headwater.status import status
from headwater.verify import gaps, verify_source
from tests.acceptance.project import Project, contract, stream

WRITER = """
import itertools, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30)
for number in itertools.count(1):
    with database:
        database.execute("INSERT INTO item (name, size) VALUES (?, ?)", (f"n{number}", number))
        database.execute("UPDATE item SET size = size + 1 WHERE id = ?", (number // 2,))
        database.execute("DELETE FROM item WHERE id = ?", (number // 3,))
"""


@contextmanager
def application(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """A process that never stops writing."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(project.directory / "shop.db")])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def require_equal(project: Project, name: str = "shop.item") -> None:
    """Neither lost nor doubled: the fold is the source's rows, and no change is in the stream twice."""
    with project.assembly() as assembly:
        source = assembly.source(assembly.capture_of(name))
        verify_source(assembly.bus, name, assembly.contract(name), source, assembly.mapping(name)).require_equal()
        source.close()
        assert gaps(assembly.bus, name, assembly.contract(name)).clean


class Told:
    """A bus and a source in one, that note what they are told, in which order."""

    def __init__(self, fail: bool = False) -> None:
        self.calls: list[str] = []
        self.fail = fail

    def append(self, mapped: Mapped, *, source: str, position: Position) -> None:
        self.calls.append(f"append {position.commit}")
        if self.fail:
            raise BusError("the disk is full")
        self.calls.append(f"durable {position.commit}")
