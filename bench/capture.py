"""Capture from SQLite: bulk load beside reading the same rows and dropping them, latency by triggers, peak memory."""

from __future__ import annotations

import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.result import Result
from headwater import config
from headwater.assembly import Assembly
from headwater.pipeline import capture
from headwater.runtime import Runtime, start

RUNS = 3
BULK, HUGE = 1_000_000, 5_000_000
COMMITS_PER_SECOND, COMMITS = 200, 1_800
WARM_UP = 200
"""Commits of the first second, while everything is used for the first time: not counted."""

COLUMNS = {
    "id": ("INTEGER PRIMARY KEY", "int64"),
    "user_id": ("INTEGER NOT NULL", "int64"),
    "course_key": ("TEXT NOT NULL", "string"),
    "mode": ("TEXT", "string"),
    "email": ("TEXT", "string"),
    "active": ("INTEGER", "int64"),
    "score": ("REAL", "float64"),
    "progress": ("REAL", "float64"),
    "token": ("BLOB", "bytes"),
    "updated_at": ("INTEGER NOT NULL", "int64"),
}

FILL = """
INSERT INTO enrollment
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
SELECT i, i % 100003, 'course-v1:edX+' || (i % 200) || '+2026', iif(i % 3, 'audit', NULL), 'u' || i || '@example.org',
    i % 2, (i * 7919 % 1000003) / 1000.0, i / 7.0, randomblob(12), i FROM n
"""


def project(directory: Path, rows: int, *, pattern: str, sink: bool = False) -> None:
    """A source with `rows` rows, one stream, and a DuckDB sink if asked."""
    source = sqlite3.connect(directory / "lms.db")
    source.execute("PRAGMA journal_mode = WAL")
    source.execute("CREATE TABLE enrollment (" + ", ".join(f"{n} {t[0]}" for n, t in COLUMNS.items()) + ")")
    source.execute(FILL.format(rows=rows) if rows else "SELECT 1")
    source.commit()
    source.close()
    sinks = 'sinks: {warehouse: {url: "duckdb:warehouse.duckdb", memory_limit: 200MB}}' if sink else ""
    (directory / "headwater.yaml").write_text(
        f"""headwater: 1
name: bench
bus: embedded:data
sources: {{lms: "sqlite:///lms.db"}}
streams: {{learning.enrollment: {{source: lms, table: enrollment, pattern: {pattern}}}}}
{sinks}
"""
    )
    (directory / "contracts").mkdir()
    fields = "\n".join(f"  {name}: {{type: {kind}, optional: {name != 'id'}}}" for name, (_, kind) in COLUMNS.items())
    (directory / "contracts" / "learning.enrollment.yaml").write_text(
        f"stream: learning.enrollment\nversion: 1\nowner: bench\nkey: [id]\nfields:\n{fields}\n"
    )


@contextmanager
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="headwater-bench-", dir="."))
    try:
        yield path
    finally:
        shutil.rmtree(path)


# bulk


def read_and_drop(directory: Path) -> float:
    """Rows per second of the same reader, nothing kept."""
    with Assembly(config.load(directory / "headwater.yaml")) as assembly:
        dialect = assembly.dialect("lms")
        table = dialect.table(assembly.plan("learning.enrollment").table)
        reader = dialect.reader()
        began = time.perf_counter()
        rows = sum(batch.num_rows for batch in reader.read(dialect.whole(table, list(COLUMNS)), rows=50_000))
        seconds = time.perf_counter() - began
        reader.close()
        dialect.close()
    assert rows == BULK
    return float(rows / seconds)


def load_durably(directory: Path) -> float:
    """Rows per second from the source into the bus, fsync included."""
    shutil.rmtree(directory / "data", ignore_errors=True)
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        assembly.declare()
        (name,) = assembly.capture_streams()
        source, router = Runtime(assembly).source(name), assembly.router(name)
        began = time.perf_counter()
        capture(source, router, assembly.bus, follow=False)
        seconds = time.perf_counter() - began
        source.close()
        router.close()
        assert assembly.bus.streams()["learning.enrollment"].head == BULK
    return BULK / seconds


def bulk() -> Result:
    with scratch() as directory:
        project(directory, BULK, pattern="query")
        pairs = [(load_durably(directory), read_and_drop(directory)) for _ in range(RUNS)]
    measured, yardstick = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = measured / yardstick
    return Result(
        what="bulk query of 1M rows x 10 columns into the bus, durable",
        asked="0.5 x",
        measured=f"{measured:,.0f} rows/s",
        ratio=ratio,
        yardstick=f"the same query read into Arrow and dropped: {yardstick:,.0f} rows/s",
        reached=ratio >= 0.5,
    )


# latency

WRITER = """
import json, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
due = time.perf_counter()
committed = []
for i in range(1, int(sys.argv[2]) + 1):
    db.execute("INSERT INTO enrollment (id, user_id, course_key, updated_at) VALUES (?, 1, 'x', ?)",
        (i, time.time_ns()))
    committed.append(time.time_ns())
    due += 1 / int(sys.argv[3])
    time.sleep(max(0, due - time.perf_counter()))
print(json.dumps(committed))
"""


def latencies() -> np.ndarray:
    """Milliseconds from the return of each commit in another process until its event is in a reader's hands."""
    readable: list[int] = []
    with scratch() as directory:
        project(directory, 0, pattern="trigger")
        with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
            supervisor = start(assembly)
            running = threading.Thread(target=supervisor.run)
            running.start()
            while assembly.bus.position("lms/trigger") is None:
                time.sleep(0.01)
            arguments = [str(directory / "lms.db"), str(COMMITS), str(COMMITS_PER_SECOND)]
            writer = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE)
            for events in assembly.bus.read("learning.enrollment", after=None, follow=True):
                readable += [time.time_ns()] * len(events)
                if len(readable) >= COMMITS:
                    break
            committed = json.loads(writer.communicate()[0])
            supervisor.stop()
            running.join()
    waited = np.array(readable) - np.array(committed)
    return np.asarray(waited[WARM_UP:] / 1e6)


def _apart(measure: Callable[[], np.ndarray]) -> np.ndarray:
    """In a fresh process, as a pipeline is: not in one that has just moved millions of rows."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure).result()


def latency() -> Result:
    runs = [_apart(latencies) for _ in range(RUNS)]
    p50, p99 = (statistics.median(float(np.percentile(run, q)) for run in runs) for q in (50, 99))
    return Result(
        what=f"commit in another process -> event readable, triggers, {COMMITS_PER_SECOND} commits/s, WAL",
        asked="p99 10 ms",
        measured=f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        ratio=None,
        yardstick="",
        notes="from the return of COMMIT in the application",
        reached=p99 <= 10.0,
    )


# memory


def peak(directory: Path) -> float:
    """Peak resident megabytes of `headwater run --once` in a process of its own."""
    script = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, '-m', 'headwater', 'run', '--once'], "
        "cwd=sys.argv[1], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(directory)], check=True, capture_output=True, text=True)
    return int(ended.stdout.split()[-1]) / 1024


def memory(*, sink: bool, asked: int) -> Result:
    with scratch() as directory:
        project(directory, HUGE, pattern="query", sink=sink)
        measured = peak(directory)
    return Result(
        what="peak memory, 5M-row bulk load" + (", with a DuckDB sink at 200 MB" if sink else ", capture alone"),
        asked=f"{asked} MB",
        measured=f"{measured:.0f} MB",
        ratio=None,
        yardstick="",
        reached=measured <= asked,
    )


def run() -> list[Result]:
    return [bulk(), latency(), memory(sink=False, asked=250), memory(sink=True, asked=500)]
