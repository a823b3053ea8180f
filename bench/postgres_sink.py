"""From the log through the bus into PostgreSQL, by key, in one process; and one transaction of ten million rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import postgres_server as server_of
from bench.postgres import project
from bench.postgres_server import ROWS
from bench.result import RUNS, Result
from bench.subject import Cost, costs
from headwater.testing.postgres import PostgresServer

HUGE = 10_000_000


def upserts(server: PostgresServer, directory: Path, number: int) -> Cost:
    """Half of the changes insert rows, half update those; the sink is another database of the same server."""
    server_of.run_sql(server, "TRUNCATE enrollment")
    name = f"upserts-{number}"
    target = server.create_database(f"target_{number}")
    home = project(directory, server, name, sink=f'sinks: {{copy: {{url: "{target}"}}}}')
    costs("once", str(home))
    server_of.fill(server, 1, ROWS // 2)
    server_of.update(server, 1, ROWS // 2)
    server_of.settled(server)
    cost = costs("once", str(home))
    assert cost.events == ROWS, cost
    ((rows,),) = server.execute('SELECT count(*) FROM "learning_enrollment"', database=f"target_{number}")
    assert rows == ROWS // 2, rows
    return cost


def delivered() -> Result:
    with TemporaryDirectory(prefix="headwater-bench-", dir=".") as name, server_of.running() as server:
        runs = [upserts(server, Path(name), number) for number in range(RUNS)]
    rate = statistics.median(cost.rate for cost in runs)
    peak = max(cost.peak for cost in runs)
    return Result(
        what="log -> bus -> PostgreSQL sink, 500,000 inserts and 500,000 updates of them",
        asked="100,000 rows/s",
        measured=f"{rate:,.0f} rows/s",
        reached=rate >= 100_000,
        notes=f"capture and sink in one process, source and target on one server; peak {peak:.0f} MB",
    )


def huge() -> Result:
    with TemporaryDirectory(prefix="headwater-bench-", dir=".") as name, server_of.running() as server:
        home = project(Path(name), server, "huge")
        costs("capture", str(home))
        server_of.run_sql(server, f"INSERT INTO enrollment SELECT {server_of.VALUES} FROM generate_series(1, {HUGE}) n")
        cost = costs("capture", str(home))
    assert cost.events == HUGE, cost
    return Result(
        what=f"peak memory, a single transaction of {HUGE:,} rows",
        asked="400 MB",
        measured=f"{cost.peak:.0f} MB",
        reached=cost.peak <= 400,
        notes=f"{cost.rate:,.0f} rows/s, {cost.cpu:.0f} s CPU; once",
    )


def run() -> list[Result]:
    return [delivered(), huge()]
