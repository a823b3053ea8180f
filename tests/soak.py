"""New seeds until told to stop, by Ctrl-C or SIGTERM, or for `make soak SECONDS=3600`: how many runs, and what failed.

Beside the torments of PostgreSQL runs the soak of the decoder: damaged messages, compiled against uncompiled.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import duckdb

from headwater.errors import HeadwaterError
from headwater.testing.postgres import PostgresServer
from tests.crash.postgres_world import SETTINGS, settle_template
from tests.crash.test_postgres_kill import torment
from tests.pgoutput_recordings import record
from tests.soak_pgoutput import Compared

WORKERS = 2
HUNDRED = 100
EVERY = 60.0
"""Seconds between two lines of figures."""

FAILURES = (AssertionError, HeadwaterError, OSError, duckdb.Error)
"""What is reported and survived; anything else ends the worker, and the soak."""

Told = tuple[str, int, str]
"""What was done, how often, and what went wrong."""


def torments(told: Queue[Told], first: int, step: int) -> None:
    """One seed after the other, on a server of its own. What a failed run leaves is kept."""
    _end_by_sigterm()
    directory = Path(tempfile.mkdtemp(prefix="headwater-soak-"))
    with PostgresServer(directory / "data", settings=SETTINGS) as server:
        settle_template(server)
        for seed in itertools.count(first, step):
            home = directory / str(seed)
            home.mkdir()
            try:
                torment(server, home, seed)
                shutil.rmtree(home)
                told.put(("torments", 1, ""))
            except FAILURES:
                told.put(("torments", 1, f"seed {seed}, left in {home}:\n{traceback.format_exc()}"))


def decoder(told: Queue[Told], first: int, step: int) -> None:
    """Damaged messages, a hundred at a time."""
    _end_by_sigterm()
    with tempfile.TemporaryDirectory() as directory, PostgresServer(Path(directory) / "data") as server:
        compared = Compared(list(record(server, server.create_database("soak")).values()))
    for seed in itertools.count(first * HUNDRED, HUNDRED):
        try:
            for number in range(HUNDRED):
                compared.once(random.Random(seed + number))
            told.put(("decoder comparisons", HUNDRED, ""))
        except FAILURES:
            told.put(("decoder comparisons", HUNDRED, f"decoder, seeds from {seed}:\n{traceback.format_exc()}"))


def _end_by_sigterm() -> None:
    """Ctrl-C reaches every process of the terminal; only the first one heeds it, and ends the others in good order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    context = get_context("spawn")
    told: Queue[Told] = context.Queue()
    first = int(time.time())
    work = [(torments, number) for number in range(WORKERS)] + [(decoder, 0)]
    workers = [context.Process(target=target, args=(told, first + number, WORKERS)) for target, number in work]
    for worker in workers:
        worker.start()
    counts: Counter[str] = Counter()
    failures = 0
    began = time.monotonic()
    try:
        for what, number, problem in heard(told, began):
            counts[what] += number
            failures += bool(problem)
            if problem:
                say(problem)
            elif not what:
                say(line(counts, failures, began))
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(30)
    say(line(counts, failures, began))
    return 1 if failures else 0


def heard(told: Queue[Told], began: float) -> Iterator[Told]:
    """What the workers tell, with an empty word each minute, until the time is over."""
    limit = float(os.environ.get("SECONDS") or "inf")
    due = EVERY
    while (passed := time.monotonic() - began) < limit:
        with contextlib.suppress(queue.Empty):
            yield told.get(timeout=min(1.0, limit - passed))
        if passed >= due:
            due += EVERY
            yield "", 0, ""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def line(counts: Counter[str], failures: int, began: float) -> str:
    done = ", ".join(f"{number:,} {what}" for what, number in sorted(counts.items()) if what)
    return f"{time.monotonic() - began:,.0f} s: {done or 'nothing yet'}, {failures} failures"


if __name__ == "__main__":
    sys.exit(main())
