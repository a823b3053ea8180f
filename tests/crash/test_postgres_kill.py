"""PostgreSQL under pgbench, a pipeline that is killed, a server that is started again, and a network that lies.

Loss and duplicates are asserted together (F6): afterwards source, folded stream and sink are equal row by row, the
stream without a key holds each row of its table exactly once, and no event is there twice. `shop.item` is compared with
the application's own audit, change by change.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headwater.testing.postgres import PostgresServer
from tests.crash.postgres_oracle import check
from tests.crash.postgres_world import World
from tests.crash.proxy import Proxy

SEEDS = int(os.environ.get("HEADWATER_SEEDS", "50"))
"""A seed takes 8 seconds of processor time, all in all."""
KILLS = 2


@pytest.mark.crash
@pytest.mark.needs("postgres")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_kills_restarts_and_cuts_nothing_is_lost_or_doubled(
    server: PostgresServer, tmp_path: Path, seed: int
) -> None:
    torment(server, tmp_path, seed)


def torment(server: PostgresServer, directory: Path, seed: int) -> World:
    """One seeded run, from an empty database to the last comparison; see `postgres_oracle.check`."""
    world = World(server, directory, seed)
    with Proxy(server.port) as proxy:
        world.build(proxy)
        try:
            world.torment(proxy, KILLS)
            check(world)
        finally:
            world.drop()
    return world
