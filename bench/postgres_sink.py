"""From the log through the bus into PostgreSQL, by key, in one process; and one transaction of ten million rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from bench import postgres_server as server_of
from bench.postgres import STREAM, drop_slot, project, publication
from bench.postgres_server import COLUMNS, ROWS
from bench.result import RUNS, Result, seconds
from bench.subject import Cost, costs
from headwater import config
from headwater.assembly import Assembly
from headwater.drivers.postgres import connect_adbc
from headwater.sinks.postgres import BATCH
from headwater.testing.postgres import PostgresServer

HUGE = 10_000_000


OF_TARGET = {"wal_level": "replica"}
"""PostgreSQL's default: nobody captures the target."""


def upserts(server: PostgresServer, target: PostgresServer, directory: Path, number: int) -> Cost:
    """Half of the changes insert rows, half update those."""
    server_of.run_sql(server, "TRUNCATE enrollment")
    name = f"upserts-{number}"
    url = target.create_database(f"target_{number}")
    home = project(directory, server, name, sink=f'sinks: {{copy: {{url: "{url}"}}}}')
    costs("once", str(home))
    server_of.fill(server, 1, ROWS // 2)
    server_of.update(server, 1, ROWS // 2)
    server_of.settled(server)
    cost = costs("once", str(home))
    assert cost.events == ROWS, cost
    ((rows,),) = target.execute('SELECT count(*) FROM "learning_enrollment"', database=f"target_{number}")
    assert rows == ROWS // 2, rows
    drop_slot(server, publication(name))
    return cost


def plain(target: PostgresServer, directory: Path, number: int) -> float:
    """Rows/s of the server alone: the same changes, ready in memory, as many in a transaction as the sink takes, copied
    into a temporary table and upserted from there with no regard to their order. Nothing is captured meanwhile."""
    with Assembly(config.load(directory / f"upserts-{number}" / "headwater.yaml")) as assembly:
        read = assembly.bus.read(STREAM, after=None, follow=False, limit=BATCH.events)
        batches = [events.data.select([*COLUMNS]) for events in read]
    assert sum(batch.num_rows for batch in batches) == ROWS
    return ROWS / seconds(lambda: _upserted(target.url_of(f"target_{number}"), batches))


def _upserted(url: str, batches: list[pa.RecordBatch]) -> None:
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items())
    sets = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name != "id")
    with connect_adbc(url, application="yardstick") as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE plain ({columns})")
        cursor.execute("CREATE TEMP TABLE batch (LIKE plain) ON COMMIT DELETE ROWS")
        for batch in batches:
            cursor.execute("BEGIN")
            cursor.adbc_ingest("batch", batch, mode="append", temporary=True)
            cursor.execute(f"INSERT INTO plain SELECT * FROM batch ON CONFLICT (id) DO UPDATE SET {sets}")
            cursor.execute("COMMIT")


def delivered() -> Result:
    runs, plains = [], []
    with (
        TemporaryDirectory(prefix="headwater-bench-", dir=".") as name,
        server_of.running() as server,
        server_of.running(OF_TARGET) as target,
    ):
        for number in range(RUNS):
            runs.append(upserts(server, target, Path(name), number))
            plains.append(plain(target, Path(name), number))
    rate = statistics.median(cost.rate for cost in runs)
    peak = max(cost.peak for cost in runs)
    return Result(
        what="log -> bus -> PostgreSQL sink, 500,000 inserts and 500,000 updates of them",
        asked="100,000 rows/s",
        measured=f"{rate:,.0f} rows/s",
        reached=rate >= 100_000,
        yardstick="the same changes, ready in memory, by COPY into a temporary table and INSERT ... ON CONFLICT DO "
        f"UPDATE without regard to order, no capture beside it: {statistics.median(plains):,.0f} rows/s",
        notes="capture and sink in one process; source and target are servers of their own on the same machine, "
        "the target, the yardstick's too, with wal_level=replica; "
        f"{statistics.median(cost.cpu for cost in runs):.2f} s CPU of that process, peak {peak:.0f} MB",
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
