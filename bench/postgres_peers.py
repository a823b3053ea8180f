"""Headwater beside Debezium: the same server, table and load, turn by turn. Runs where `make bench-peers` has been."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import postgres_server as server_of
from bench.peers import debezium
from bench.peers.debezium import Debezium, Measured
from bench.postgres import PROTOCOL, drop_slot, project, publication
from bench.postgres_server import ROWS
from bench.result import RUNS, Result
from bench.subject import Cost, costs
from headwater.testing.postgres import PostgresServer

Turns = list[tuple[Cost, Measured]]


def snapshots(server: PostgresServer, directory: Path) -> Turns:
    """Both read the whole table, with a slot of their own."""
    found: Turns = []
    for number in range(RUNS):
        name = f"beside-{number}"
        ours = costs("capture", str(project(directory, server, name)))
        drop_slot(server, publication(name))
        peer = f"peer_snapshot_{number}"
        found.append((ours, Debezium(server, directory, peer).snapshot(ROWS + 1)))
        if server.execute(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{peer}'"):
            drop_slot(server, peer)
    return found


def backlog(server: PostgresServer, directory: Path) -> Turns:
    """One row, slots for every run of either side, then the load."""
    server_of.fill(server, 0, 0)
    homes = [project(directory, server, f"log-{number}") for number in range(RUNS)]
    peers = [Debezium(server, directory, f"peer_log_{number}") for number in range(RUNS)]
    for home, peer in zip(homes, peers, strict=True):
        costs("capture", str(home))
        peer.prepare()
    server_of.fill(server, 1, ROWS)
    server_of.settled(server)
    return [(costs("capture", str(home)), peer.stream(ROWS)) for home, peer in zip(homes, peers, strict=True)]


def result(what: str, turns: Turns, asked: float, about: Mapping[str, str]) -> Result:
    ours = statistics.median(cost.rate for cost, _ in turns)
    peer = statistics.median(measured.rate for _, measured in turns)
    memory = max(measured.peak for _, measured in turns) / 2**20
    cpu = statistics.median(measured.cpu for _, measured in turns)
    size = statistics.median(measured.bytes / measured.total for _, measured in turns)
    return Result(
        what=what,
        asked=f"{asked:g} x Debezium",
        measured=f"{ours:,.0f} rows/s, durable; peak {max(cost.peak for cost, _ in turns):.0f} MB",
        ratio=ours / peer,
        reached=ours / peer >= asked,
        yardstick=f"Debezium, JSON into a counter, not kept: {peer:,.0f} rows/s",
        notes=f"Debezium: {cpu:.0f} s CPU, peak {memory:.0f} MB, {size:.0f} bytes of JSON a row",
        about=about,
    )


def run() -> list[Result]:
    if debezium.libraries() is None:
        print("  Debezium is not here: `make bench-peers` brings it")
        return []
    with TemporaryDirectory(prefix="headwater-bench-", dir=".") as name, server_of.running() as server:
        logged = backlog(server, Path(name).resolve())
        about = {**server_of.about(server, PROTOCOL), **debezium.about()}
        loaded = snapshots(server, Path(name).resolve())
    return [
        result("snapshot of 1M rows x 10 columns, beside Debezium", loaded, 8, about),
        result("log, backlog of 1M inserts, beside Debezium", logged, 5, about),
    ]
