"""From a commit's return in the application to the event in a reader's hands, while a sink is busy in the same process.

pgbench writes from a process of its own, on its own clock, and logs the moment at which each commit returned.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench import postgres_server as server_of
from bench.postgres import STREAM, project
from bench.result import RUNS, Result
from bench.subject import started
from headwater.testing.postgres import PostgresServer

RATES = (1_000, 5_000)
SECONDS = 8
WARM_UP_SECONDS = 2
"""While everything is used for the first time: not counted."""
CLIENTS = 8
SPREAD = 10_000_000
"""Ids of one client, behind those of the one before."""

SCRIPT = f"""\\set n :n + 1
\\set id :client_id * {SPREAD} + :n
SELECT one(:id);
"""
SINK = 'sinks: {warehouse: {url: "duckdb:warehouse.duckdb"}}'


def latencies(server: PostgresServer, directory: Path, rate: int) -> np.ndarray:
    """Milliseconds, one per commit after the warm-up."""
    server_of.run_sql(server, "TRUNCATE enrollment")
    home = project(directory, server, directory.name, sink=SINK).resolve()
    count = rate * SECONDS
    with started("follow", str(home), STREAM, str(count)) as pipeline:
        while not (home / "ready").exists():
            assert pipeline.poll() is None, "the pipeline has ended"
            time.sleep(0.01)
        try:
            returned = write(server, home, rate, count)
            assert pipeline.wait(60) == 0
        finally:
            pipeline.kill()
    readable = np.load(home / "readable.npz")
    return _waited(readable["id"], readable["moment"], returned)


def write(server: PostgresServer, home: Path, rate: int, count: int) -> dict[int, int]:
    """Id -> nanoseconds at which its commit returned."""
    script = home / "insert.sql"
    script.write_text(SCRIPT)
    command = [
        str(server.binaries / "pgbench"), "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--define=n=0",
        f"--rate={rate}", f"--transactions={count // CLIENTS}", f"--file={script}", "--log", "--random-seed=1",
        server.url_of("bench"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=home)
    (log,) = home.glob("pgbench_log.*")
    # client, number within the client from 1, microseconds taken, script, epoch seconds, microseconds, lag
    told = np.loadtxt(log, dtype=np.int64)
    ids = told[:, 0] * SPREAD + told[:, 1]
    return dict(zip(ids.tolist(), (told[:, 4] * 10**9 + told[:, 5] * 1000).tolist(), strict=True))


def _waited(ids: np.ndarray, moments: np.ndarray, returned: dict[int, int]) -> np.ndarray:
    commits = np.array([returned[number] for number in ids.tolist()])
    counted = commits >= commits.min() + WARM_UP_SECONDS * 10**9
    return np.asarray((moments - commits)[counted] / 1e6)


def measured(server: PostgresServer, directory: Path, rate: int) -> Result:
    runs = [latencies(server, directory / f"latency-{rate}-{number}", rate) for number in range(RUNS)]
    p50, p99 = (statistics.median(float(np.percentile(run, q)) for run in runs) for q in (50, 99))
    return Result(
        what=f"commit in another process -> event readable, log, {rate:,} commits/s, a DuckDB sink in the same process",
        asked="p50 2 ms, p99 10 ms",
        measured=f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        reached=p50 <= 2.0 and p99 <= 10.0,
        notes=f"synchronous_commit=on; {CLIENTS} clients, one row a commit, from the return of COMMIT",
    )


def run() -> list[Result]:
    with TemporaryDirectory(prefix="headwater-bench-", dir=".") as name, server_of.running() as server:
        return [measured(server, Path(name), rate) for rate in RATES]
