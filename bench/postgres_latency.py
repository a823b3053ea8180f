"""From a commit's return in the application to the event in a reader's hands, while a sink is busy in the same process.

pgbench writes from a process of its own, on its own clock, and logs the moment at which each commit returned. Turn by
turn with it the same is measured for a receiver that does no more than fsync a file (`bench.receiver`): what server,
disk and processor leave to anybody.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench import postgres_server as server_of
from bench.postgres import STREAM, project
from bench.result import RUNS, Result
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
    home = project(directory, server, directory.name, sink=SINK).resolve()
    return _followed(server, home, rate, ["bench.subject", "follow", str(home), STREAM])


def floor(server: PostgresServer, directory: Path, rate: int) -> np.ndarray:
    """The same of the bare receiver."""
    (home := directory.resolve()).mkdir()
    slot = f"floor_{directory.name.replace('-', '_')}"
    server_of.make_slot(server, slot)
    server_of.run_sql(server, f"CREATE PUBLICATION {slot} FOR TABLE enrollment")
    return _followed(server, home, rate, ["bench.receiver", server.url_of("bench"), slot, slot, str(home)])


def _followed(server: PostgresServer, home: Path, rate: int, command: Sequence[str]) -> np.ndarray:
    server_of.run_sql(server, "TRUNCATE enrollment")
    count = rate * SECONDS
    with subprocess.Popen([sys.executable, "-m", *command, str(count)], stdout=subprocess.PIPE) as follower:
        try:
            while not (home / "ready").exists():
                assert follower.poll() is None, "it has ended"
                time.sleep(0.01)
            returned = write(server, home, rate, count)
            assert follower.wait(60) == 0
        finally:
            follower.kill()
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
    ours, least = [], []
    for number in range(RUNS):
        ours.append(_percentiles(latencies(server, directory / f"latency-{rate}-{number}", rate)))
        least.append(_percentiles(floor(server, directory / f"floor-{rate}-{number}", rate)))
    (p50, p99), (least_p50, least_p99) = np.median(ours, axis=0), np.median(least, axis=0)
    return Result(
        what=f"commit in another process -> event readable, log, {rate:,} commits/s, a DuckDB sink in the same process",
        asked="p50 2 ms, p99 10 ms",
        measured=f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        reached=bool(p50 <= 2.0 and p99 <= 10.0),
        yardstick=f"a receiver that appends to a file, fsync each time: p50 {least_p50:.1f} ms, p99 {least_p99:.1f} ms",
        notes=f"synchronous_commit=on; {CLIENTS} clients, one row a commit, from the return of COMMIT",
    )


def _percentiles(waited: np.ndarray) -> tuple[float, float]:
    return float(np.percentile(waited, 50)), float(np.percentile(waited, 99))


def run() -> list[Result]:
    with TemporaryDirectory(prefix="headwater-bench-", dir=".") as name, server_of.running() as server:
        return [measured(server, Path(name), rate) for rate in RATES]
