"""What every test session says of itself, and how a test asks for something that not every machine has.

`@pytest.mark.needs("native")` skips with the reason where it is missing, unless `HEADWATER_REQUIRE` names it (comma
separated; continuous integration sets it): then it fails.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

import pytest

from headwater.native import running

ABSENT: dict[str, tuple[Callable[[], bool], str]] = {
    "native": (lambda: running() == "native", "the compiled modules are not built; `pip install -e .` builds them"),
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
