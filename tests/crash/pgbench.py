"""The application: pgbench with the scripts of this folder, started again whenever the server went away under it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from headwater.errors import HeadwaterError
from headwater.testing.postgres import PostgresServer

SCRIPTS = Path(__file__).with_name("scripts")

WEIGHTS = {
    "tpcb": 150, "rows": 100, "single": 300, "keys": 100, "savepoints": 50, "prepared": 40, "ddl": 15, "truncate": 1,
    "big": 20,
}  # fmt: skip
"""How often each script is chosen, among 776: a truncate every few seconds."""

CLIENTS = 3
MOST = 500
"""Transactions of a client, far more than a life needs: where machines are slow, work must not pile up without end."""

RETRIES = 100
"""Of a transaction that met a deadlock."""


class Pgbench:
    """`with Pgbench(...) as application`: it writes until the end, then no transaction is left prepared."""

    def __init__(
        self, server: PostgresServer, database: str, *, seed: int, rate: int, weights: Mapping[str, int] = WEIGHTS
    ) -> None:
        self.server = server
        self.database = database
        self.seed = seed
        self.rate = rate
        self.weights = weights
        self.problems: list[str] = []
        self._runs = 0
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pgbench:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(60)
        self._await_silence()
        self.settle()

    def _await_silence(self) -> None:
        """A server process outlives its client until its statement, a COMMIT perhaps, is done."""
        sql = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{self.database}' AND application_name = 'pgbench'"
        deadline = time.monotonic() + 60
        while self.server.execute(sql):
            assert time.monotonic() < deadline, "the application does not come to its end"
            time.sleep(0.005)

    def settle(self) -> None:
        """Prepared transactions whose client is gone: committed or rolled back, by their number."""
        found = self.server.execute(
            f"SELECT gid, transaction::text FROM pg_prepared_xacts WHERE database = '{self.database}'"
        )
        for gid, number in found:
            verb = "COMMIT" if int(number) % 2 else "ROLLBACK"
            self.server.execute(f"{verb} PREPARED '{gid}'", database=self.database)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.settle()
                self._once()
            except HeadwaterError:  # the server is being started again
                self._stopping.wait(0.02)

    def _once(self) -> None:
        self._runs += 1
        command = [
            str(self.server.binaries / "pgbench"), "--no-vacuum", f"--transactions={MOST}", f"--client={CLIENTS}",
            f"--rate={self.rate}", f"--max-tries={RETRIES}", f"--random-seed={self.seed + self._runs}",
            f"--define=run={self.seed}{self._runs:03}",
            *(f"--file={SCRIPTS / name}.sql@{weight}" for name, weight in self.weights.items()),
            self.server.url_of(self.database),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if self._stopping.is_set():
            self._process.terminate()
        _, said = self._process.communicate()
        if self._process.returncode == 0:
            self._stopping.wait()
        self.problems += [line for line in said.splitlines() if "ERROR" in line]
