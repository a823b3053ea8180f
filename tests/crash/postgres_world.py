"""A PostgreSQL to crash in: pgbench writes, a pipeline captures its log through a proxy, and everything fails by turns.

A world is one seeded run on a database of its own: the pipeline lives a few short lives, each of which ends by kill -9;
meanwhile the server is started again, and connections are cut, stalled and left half open.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing.synchronize
import os
import random
import signal
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headwater import config, faults
from headwater.assembly import Assembly
from headwater.runtime import start
from headwater.sources.log_postgres.position import DONE, place_of
from headwater.testing.postgres import PostgresServer
from tests.crash.pgbench import SCRIPTS, Pgbench
from tests.crash.proxy import Proxy
from tests.crash.world import CONTEXT, run_pipeline

SETTINGS = {
    "fsync": "off",  # what dies here is processes, not the machine
    "autovacuum_naptime": "1s",
    "deadlock_timeout": "20ms",
    "max_prepared_transactions": "20",
    "wal_sender_timeout": "2s",
    "log_min_messages": "fatal",
}
TEMPLATE = "torment"
CAPTURE = "shop/log"
AUDITED = "shop.item"
PATIENCE = 120.0
"""Seconds after which a pipeline hangs; on an idle machine it needs two."""
RATES = 100, 200
"""Transactions a second."""

CONFIG = """
headwater: 1
name: {name}
bus: embedded:data
sources: {{shop: {{url: "{source}", options: {{binary: {binary}, idle_advance: 100ms, heartbeat: 300ms}}}}}}
streams:
  bank.account: {{source: shop, table: public.pgbench_accounts, pattern: log}}
  bank.history: {{source: shop, table: public.pgbench_history, pattern: log}}
  shop.item: {{source: shop, table: shop.item, pattern: log}}
  shop.note: {{source: shop, table: shop.note, pattern: log, where: "state <> 'draft'",
    fields: {{note_id: id, size: "length(body)"}}}}
  shop.measure: {{source: shop, table: shop.measure, pattern: log}}
sinks:
  copy: {{url: "{sink}", streams: [bank.account, "shop.*"], batch: {{events: 5000, age: 100ms}}}}
"""

FIELDS = {
    "bank.account": {"aid": "int32", "bid": "int32", "abalance": "int32", "filler": "string"},
    "bank.history": {
        "tid": "int32", "bid": "int32", "aid": "int32", "delta": "int32", "mtime": "local_timestamp", "filler": "string"
    },
    "shop.item": {
        "id": "int32", "version": "int64", "name": "string", "price": "decimal(10,2)", "amount": "string",
        "tags": "list<int32>", "body": "string", "photo": "bytes", "seen": "timestamp",
    },
    "shop.note": {
        "note_id": "int64", "state": "string", "author": "string", "body": "string", "at": "local_timestamp",
        "size": "int64",
    },
    "shop.measure": {"region": "string", "id": "int32", "value": "float64", "place": "uuid", "remark": "string"},
}  # fmt: skip

KEYS = {
    "bank.account": ("aid",),
    "bank.history": (),
    "shop.item": ("id",),
    "shop.note": ("note_id",),
    "shop.measure": ("region", "id"),
}


def settle_template(server: PostgresServer) -> None:
    """The application's schema, once a server: each world's database is made from it."""
    server.create_database(TEMPLATE)
    server.execute((SCRIPTS / "schema.sql").read_text(), database=TEMPLATE)


@dataclass
class World:
    """`torment`; what is left is compared by `postgres_oracle`, while the pipeline is `finishing` and after it."""

    server: PostgresServer
    directory: Path
    seed: int
    disturbed: list[str] = field(default_factory=list)
    sink_database: str = ""
    """"" where the sink is DuckDB."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.name = f"torment-{self.seed}"
        self.database = f"torment_{self.seed}"

    @property
    def url(self) -> str:
        return self.server.url_of(self.database)

    def build(self, proxy: Proxy) -> None:
        """The database, headwater.yaml and the contracts."""
        sink = "duckdb:copy.duckdb"
        if self.seed % 4:
            self.sink_database = f"{self.database}_copy"
            sink = self.server.create_database(self.sink_database)
        self.server.execute(f"CREATE DATABASE {self.database} TEMPLATE {TEMPLATE}")
        if self.dice.random() < 0.5:  # transactions are streamed while they are in progress
            self.server.execute(f"ALTER DATABASE {self.database} SET logical_decoding_work_mem = '64kB'")
        source = self.server.url_of(self.database, port=proxy.port)
        configured = textwrap.dedent(CONFIG).format(
            name=self.name, source=source, sink=sink, binary=self.dice.choice(("auto", "auto", "off"))
        )
        (self.directory / "headwater.yaml").write_text(configured)
        (self.directory / "contracts").mkdir()
        for stream, fields in FIELDS.items():
            (self.directory / "contracts" / f"{stream}.yaml").write_text(contract(stream, fields))

    def torment(self, proxy: Proxy, times: int) -> None:
        """Kills before, while and after the tables are loaded; once, in between, the pipeline may catch up."""
        peaceful = self.dice.randrange(times)
        with Pgbench(self.server, self.database, seed=self.seed, rate=self.dice.choice(RATES)) as application:
            for number in range(times):
                self._one_life(proxy, peaceful=number == peaceful)
        assert not application.problems, f"the application's writes must never fail: {application.problems}"

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """A pipeline without faults: it runs, and in the end it is stopped, catches up and ends well."""
        enough = CONTEXT.Event()
        process = CONTEXT.Process(target=last_life, args=(self.directory, enough), daemon=True)
        process.start()
        try:
            yield
            enough.set()
            process.join(PATIENCE)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGABRT)  # where it hangs is then in the log
                process.join(10)
            assert process.exitcode == 0, f"it ended with {process.exitcode}:\n{self.said()}"
        finally:
            process.kill()
            process.join()

    def drop(self) -> None:
        for name in filter(None, (self.database, self.sink_database)):
            self.server.drop_database(name)

    def said(self) -> str:
        """The end of the pipeline's log."""
        return (self.directory / "pipeline.log").read_text(errors="replace")[-4000:]

    def _one_life(self, proxy: Proxy, *, peaceful: bool) -> None:
        failpoints = f"*=kill:{self.dice.choice((0.0005, 0.002, 0.01, 0.05))}"
        running = CONTEXT.Event()
        arguments = (self.directory, failpoints, self.dice.randrange(10**9), running)
        process = CONTEXT.Process(target=peaceful_life if peaceful else life, args=arguments, daemon=True)
        process.start()
        deadline = time.monotonic() + PATIENCE
        while process.is_alive() and not running.wait(0.02):
            assert time.monotonic() < deadline, f"it does not come so far:\n{self.said()}"
        process.join(0.02 + self.dice.random() * 0.4)
        self._disturb(proxy)
        process.join(0.02 + self.dice.random() * 0.3)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL, f"it ended by itself with {process.exitcode}:\n{self.said()}"
        proxy.flow()

    def _disturb(self, proxy: Proxy) -> None:
        how = self.dice.choice(("nothing", "cut", "cut", "stall", "half open", "fast", "immediate"))
        self.disturbed.append(how)
        if how == "cut":
            proxy.cut()
        elif how == "half open":
            proxy.half_open()
        elif how == "stall":
            proxy.stall()
            time.sleep(self.dice.random() * 0.3)
            if self.dice.random() < 0.7:  # else it is killed while nothing moves
                proxy.flow()
        elif how != "nothing":
            self.server.restart(how)


def contract(stream: str, fields: dict[str, str]) -> str:
    key = KEYS[stream]
    lines = [f"  {name}: {{type: {_quoted(kind)}, optional: {name not in key}}}" for name, kind in fields.items()]
    kind = "fact" if key else "event"
    head = [f"stream: {stream}", "version: 1", "owner: torment", f"kind: {kind}", "changes: every", "deletes: seen"]
    head += [f"key: [{', '.join(key)}]"] if key else []
    return "\n".join([*head, "fields:", *lines, ""])


def _quoted(kind: str) -> str:
    return f'"{kind}"'


# the lives of a pipeline, each in a process of its own whose log goes to a file


def life(directory: Path, failpoints: str, seed: int, running: multiprocessing.synchronize.Event) -> None:
    """It fails as soon as it may."""
    _log_to_file(directory)
    run_pipeline(directory, failpoints, seed, running)


def peaceful_life(directory: Path, failpoints: str, seed: int, running: multiprocessing.synchronize.Event) -> None:
    """It fails once everything is loaded."""
    _log_to_file(directory)
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)

        def fail_once_loaded() -> None:
            while not _is_loaded(assembly):
                time.sleep(0.02)
            running.set()  # before it may be killed, for a process that dies in `set` keeps the event's lock
            faults.set_failpoints(failpoints, seed)

        threading.Thread(target=fail_once_loaded, daemon=True).start()
        os._exit(supervisor.run())


def last_life(directory: Path, enough: multiprocessing.synchronize.Event) -> None:
    """It never fails, is stopped in good order, and catches up; exits with the supervisor's status."""
    _log_to_file(directory)
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)

        def stop() -> None:
            enough.wait()
            supervisor.stop()

        threading.Thread(target=stop, daemon=True).start()
        os._exit(supervisor.run() or start(assembly).run(follow=False))


def _is_loaded(assembly: Assembly) -> bool:
    position = assembly.bus.position(CAPTURE)
    loads = {} if position is None else place_of(position, CAPTURE).loads
    return loads.keys() == FIELDS.keys() and all(load.state == DONE for load in loads.values())


def _log_to_file(directory: Path) -> None:
    handle = os.open(directory / "pipeline.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(handle, 2)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO)
