"""What the crash proof's tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.testing.postgres import PostgresServer
from tests.crash.postgres_world import SETTINGS, settle_template


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One for the seeds of a process, apart from that of all other tests: it is stopped again and again."""
    with tempfile.TemporaryDirectory(prefix="headwater-torment-") as directory:
        with PostgresServer(Path(directory) / "data", settings=SETTINGS) as server:
            settle_template(server)
            yield server
