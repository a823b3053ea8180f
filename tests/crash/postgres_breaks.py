"""Capture of the audited table alone, broken off again and again while pgbench writes, in this process.

No sinks, no network and no kill: a few seconds a seed, and most of them break off a load whose rows the log has yet to
come to, which few torments of a whole pipeline do.
"""

from __future__ import annotations

import contextlib
import random
import textwrap
import threading
from contextlib import closing
from pathlib import Path

from headwater import config, faults
from headwater.assembly import Assembly
from headwater.errors import HeadwaterError
from headwater.pipeline import capture
from headwater.testing.postgres import PostgresServer
from tests.crash.pgbench import WEIGHTS, Pgbench
from tests.crash.postgres_oracle import check_audited
from tests.crash.postgres_world import AUDITED, CAPTURE, FIELDS, TEMPLATE, World, contract

OF_ITEMS = {name: WEIGHTS[name] for name in ("rows", "single", "keys", "savepoints", "prepared", "ddl", "big")}
RATES = 200, 500, 900
"""Transactions a second."""

CONFIG = """
headwater: 1
name: {name}
bus: embedded:data
sources: {{shop: {{url: "{source}", options: {{binary: {binary}, idle_advance: 100ms, heartbeat: 300ms}}}}}}
streams:
  {stream}: {{source: shop, table: {stream}, pattern: log}}
"""


def break_off(server: PostgresServer, directory: Path, seed: int) -> None:
    """One seeded run, from an empty database to the comparison with the audit."""
    world = World(server, directory, seed)
    dice = world.dice
    server.execute(f"CREATE DATABASE {world.database} TEMPLATE {TEMPLATE}")
    try:
        if dice.random() < 0.5:  # transactions are streamed while they are in progress
            server.execute(f"ALTER DATABASE {world.database} SET logical_decoding_work_mem = '64kB'")
        _configure(world)
        weights = {**OF_ITEMS, "truncate": 3}
        with Pgbench(server, world.database, seed=seed, rate=dice.choice(RATES), weights=weights) as application:
            for _ in range(dice.choice((2, 3, 5))):
                with contextlib.suppress(OSError, HeadwaterError):
                    _capture(directory, dice, seconds=1.2 * dice.random())
        assert not application.problems, f"the application's writes must never fail: {application.problems}"
        _capture(directory, dice)
        with Assembly(config.load(directory / "headwater.yaml")) as assembly:
            check_audited(world, assembly)
    finally:
        server.drop_database(world.database)


def _configure(world: World) -> None:
    binary = world.dice.choice(("auto", "off"))
    text = textwrap.dedent(CONFIG).format(name=world.name, source=world.url, binary=binary, stream=AUDITED)
    (world.directory / "headwater.yaml").write_text(text)
    (world.directory / "contracts").mkdir()
    (world.directory / "contracts" / f"{AUDITED}.yaml").write_text(contract(AUDITED, FIELDS[AUDITED]))


def _capture(directory: Path, dice: random.Random, seconds: float | None = None) -> None:
    """For some seconds, if nothing fails before; without, to the end and without faults."""
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        assembly.declare()
        with closing(assembly.router(CAPTURE)) as router, closing(assembly.source(CAPTURE)) as source:
            timer = threading.Timer(seconds or 0.0, source.stop)
            if seconds is not None:
                timer.start()
                faults.set_failpoints(f"*=error:{dice.choice((0.001, 0.005, 0.02, 0.1))}", dice.randrange(10**9))
            try:
                capture(source, router, assembly.bus, follow=seconds is not None)
            finally:
                faults.set_failpoints("")
                timer.cancel()
