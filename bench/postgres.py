"""PostgreSQL into the durable embedded bus, beside what reads the same bytes and drops them; see `postgres_server`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import postgres_server as server_of
from bench.postgres_server import BEFORE_MIXED, COLUMNS, ROWS
from bench.result import RUNS, Result
from bench.subject import Cost, costs
from headwater.testing.postgres import PostgresServer

STREAM = "learning.enrollment"
PROTOCOL = {"proto_version": "2", "binary": "true", "streaming": "on", "messages": "true"}
"""Of pgoutput, as Headwater asks for it on PostgreSQL 14 and later."""


def project(directory: Path, server: PostgresServer, name: str, *, sink: str = "") -> Path:
    """headwater.yaml and the contract, in a directory of their own."""
    home = directory / name
    (home / "contracts").mkdir(parents=True)
    (home / "headwater.yaml").write_text(
        f"""headwater: 1
name: {name}
bus: embedded:data
sources: {{lms: "{server.url_of("bench")}"}}
streams: {{{STREAM}: {{source: lms, table: public.enrollment, pattern: log}}}}
{sink}
"""
    )
    fields = "\n".join(
        f'  {field}: {{type: "{kind}", optional: {field != "id"}}}' for field, (_, kind) in COLUMNS.items()
    )
    (home / "contracts" / f"{STREAM}.yaml").write_text(
        f"stream: {STREAM}\nversion: 1\nowner: bench\nkey: [id]\nfields:\n{fields}\n"
    )
    return home


def publication(name: str) -> str:
    """What a pipeline of this name calls its publication, and its slot."""
    return f"headwater_{name.replace('-', '_')}_lms"


def drop_slot(server: PostgresServer, name: str) -> None:
    server.execute(f"SELECT pg_drop_replication_slot('{name}')", database="bench")


@dataclass(frozen=True, slots=True)
class Pair:
    """Our side and the yardstick's, alternating: medians."""

    ours: list[Cost]
    theirs: list[float]

    @property
    def seconds(self) -> float:
        return statistics.median(cost.seconds for cost in self.ours)

    @property
    def yardstick(self) -> float:
        return statistics.median(self.theirs)

    @property
    def ratio(self) -> float:
        return self.yardstick / self.seconds

    @property
    def cpu(self) -> float:
        return statistics.median(cost.cpu for cost in self.ours)

    @property
    def peak(self) -> float:
        return max(cost.peak for cost in self.ours)


def snapshots(server: PostgresServer, directory: Path) -> Pair:
    ours, theirs = [], []
    for number in range(RUNS):
        name = f"snapshot-{number}"
        ours.append(_all(costs("capture", str(project(directory, server, name)))))
        drop_slot(server, publication(name))
        theirs.append(server_of.copy_and_drop(server))
    return Pair(ours, theirs)


def backlog(server: PostgresServer, directory: Path, fill: Callable[[PostgresServer], None]) -> Pair:
    """A slot for each run of either side, made before the load."""
    names = [f"backlog-{number}" for number in range(RUNS)]
    homes = [project(directory, server, name) for name in names]
    for number, home in enumerate(homes):
        costs("capture", str(home))
        server_of.make_slot(server, f"yardstick_{number}")
    fill(server)
    until = server_of.settled(server)
    ours, theirs = [], []
    for number, home in enumerate(homes):
        ours.append(_all(costs("capture", str(home))))
        theirs.append(
            server_of.receive_and_drop(server, f"yardstick_{number}", publication(names[number]), until, PROTOCOL)
        )
    return Pair(ours, theirs)


def _all(cost: Cost) -> Cost:
    assert cost.events == ROWS, f"{cost.events} events, expected {ROWS}"
    return cost


def inserts(server: PostgresServer) -> None:
    server_of.fill(server, 1, ROWS)


def beside(what: str, pair: Pair, asked: float, yardstick: str, about: Mapping[str, str]) -> Result:
    return Result(
        what=what,
        asked=f"{asked} x",
        measured=f"{ROWS / pair.seconds:,.0f} rows/s",
        ratio=pair.ratio,
        reached=pair.ratio >= asked,
        yardstick=f"{yardstick}: {ROWS / pair.yardstick:,.0f} rows/s",
        notes=f"{pair.cpu:.2f} s CPU, peak {pair.peak:.0f} MB",
        about=about,
    )


def cost(what: str, pair: Pair) -> Result:
    return Result(
        what=f"CPU of our process per 1M rows of {what}, user and system",
        asked="3.5 s",
        measured=f"{pair.cpu:.2f} s",
        reached=pair.cpu <= 3.5,
    )


def peak(megabytes: float) -> Result:
    return Result(
        what="peak memory in all of these",
        asked="200 MB",
        measured=f"{megabytes:.0f} MB",
        reached=megabytes <= 200,
    )


def run() -> list[Result]:
    with TemporaryDirectory(prefix="headwater-bench-", dir=".") as name:
        with server_of.running() as server:
            first = backlog(server, Path(name) / "inserts", inserts)
            about = server_of.about(server, PROTOCOL)
            loaded = snapshots(server, Path(name) / "snapshots")
        with server_of.running() as server:
            server_of.fill(server, 1, BEFORE_MIXED)
            second = backlog(server, Path(name) / "mixed", server_of.fill_mixed)
    received = "`pg_recvlogical -f /dev/null`, the same options of pgoutput"
    return [
        beside("snapshot of 1M rows x 10 columns into the bus, durable", loaded, 0.8,
               "`COPY (select ...) TO STDOUT (FORMAT binary)` read and dropped", about),
        beside("log, backlog of 1M inserts, into the bus, durable", first, 0.85, received, about),
        beside("log, backlog of 1M inserts, updates and deletes, into the bus, durable", second, 0.85, received, about),
        cost("inserts in the log", first),
        cost("mixed changes in the log", second),
        peak(max(loaded.peak, first.peak, second.peak)),
    ]  # fmt: skip
