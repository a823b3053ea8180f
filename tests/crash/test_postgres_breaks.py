"""PostgreSQL's log beside loads that are broken off; `make soak` goes on with other seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.testing.postgres import PostgresServer
from tests.crash.postgres_breaks import break_off

SEEDS = 4


@pytest.mark.crash
@pytest.mark.needs("postgres")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_f28_the_log_tells_each_change_once_although_loads_are_broken_off(
    server: PostgresServer, tmp_path: Path, seed: int
) -> None:
    break_off(server, tmp_path, seed)
