"""What every test session says of itself, and how a test asks for something that not every machine has.

`@pytest.mark.needs("native")` skips with the reason where it is missing, unless `HEADWATER_REQUIRE` names it (comma
separated; continuous integration sets it): then it fails.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headwater.native import running
from headwater.testing.postgres import PostgresServer, binaries

ABSENT: dict[str, tuple[Callable[[], bool], str]] = {
    "native": (lambda: running() == "native", "the compiled modules are not built; `pip install -e .` builds them"),
    "postgres": (
        lambda: binaries() is not None,
        "no PostgreSQL server, 13 or newer, is installed; Debian's is `postgresql`",
    ),
    "root": (lambda: os.geteuid() == 0, "only root may mount a file system"),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(name): something that not every machine has; see tests/conftest.py")


def pytest_report_header(config: pytest.Config) -> str:
    required = os.environ.get("HEADWATER_REQUIRE", "") or "nothing"
    return f"headwater: {running()}, SQLite {sqlite3.sqlite_version}; required: {required}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        (name,) = marker.args
        present, reason = ABSENT[name]
        if not present():
            give_up(name, reason)


def give_up(name: str, reason: str) -> None:
    """Skip the test for want of `name`, or fail it where `name` is required."""
    if name in os.environ.get("HEADWATER_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the tests of a process; who stops or breaks it takes one of their own.

    Not in pytest's folder: each session that begins shuts that to other users, also to the one the server runs as.
    """
    if binaries() is None:
        give_up("postgres", ABSENT["postgres"][1])
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder, PostgresServer(Path(folder) / "data") as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a new, empty database; it is dropped at the end, with its slots."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)
