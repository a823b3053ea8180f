"""From the bus into DuckDB by key, beside DuckDB's own `insert or replace` of the same Arrow batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from bench.bus import STREAM, batch, contract, opened
from bench.result import Result, compared
from headwater import plugins
from headwater.config import SinkConfig
from headwater.model import Events, Mapped, Op, Position
from headwater.pipeline import deliver
from headwater.protocols import Bus, Sink
from headwater.sinks.duckdb import BATCH

CREATES, UPDATES = 1_000_000, 300_000
LIMIT = "200MB"


def run() -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        bus = opened(directory)
        try:
            _fill(bus)
            return [_against_duckdb(bus, Path(directory))]
        finally:
            bus.close()


def _against_duckdb(bus: Bus, directory: Path) -> Result:
    numbers = iter(range(1000))
    took = compared(
        lambda: _ours(bus, directory / f"ours{next(numbers)}"), lambda: _duckdb(bus, directory / f"own{next(numbers)}")
    )
    rows = CREATES + UPDATES
    return Result(
        what=f"bus to DuckDB by key, {CREATES:,} creates and {UPDATES:,} updates",
        asked="0.5 of the yardstick",
        measured=f"{rows / took.ours:,.0f} rows/s",
        ratio=took.ratio,
        reached=took.ratio >= 0.5,
        yardstick=f"`insert or replace` of the same batches: {rows / took.yardstick:,.0f} rows/s",
        notes=f"memory_limit {LIMIT} on both sides",
    )


def _fill(bus: Bus) -> None:
    """Creates in key order, then updates of keys from all over."""
    size = 50_000
    for number in range(CREATES // size):
        _append(bus, batch(number, size), number)
    dice = np.random.default_rng(7)
    chosen = dice.permutation(CREATES)[:UPDATES]
    for number in range(UPDATES // size):
        events = batch(number + CREATES // size, size)
        keys = pa.array(chosen[number * size : (number + 1) * size])
        data = _with(_with(events.data, "id", keys), "_op", pa.array(np.full(size, int(Op.UPDATE)), pa.int8()))
        _append(bus, replace(events, data=data), number + CREATES // size)


def _with(data: pa.RecordBatch, name: str, array: pa.Array) -> pa.RecordBatch:
    return data.set_column(data.schema.get_field_index(name), data.schema.field(name), array)


def _append(bus: Bus, events: Events, number: int) -> None:
    bus.append(Mapped([events]), source="lms/trigger", position=Position(1, number, b""))


def _ours(bus: Bus, directory: Path) -> None:
    directory.mkdir()
    sink = sink_at("duckdb:target.duckdb", directory)
    while deliver(bus, STREAM, sink, follow=False, limit=BATCH.events):
        pass
    sink.close()


def sink_at(url: str, directory: Path) -> Sink:
    config = SinkConfig.model_validate({"url": url, "memory_limit": LIMIT})
    sink = plugins.sink_factory(config.scheme)(name="bench", pipeline="bench", config=config, directory=str(directory))
    sink.prepare(contract())
    return sink


def _duckdb(bus: Bus, directory: Path) -> None:
    """The same batches, in one connection, a transaction each."""
    directory.mkdir()
    with duckdb.connect(str(directory / "target.duckdb")) as connection:
        connection.execute(f"SET memory_limit = '{LIMIT}'")
        first = True
        for data in _batches(bus):
            connection.register("batch", data)
            if first:
                connection.execute("CREATE TABLE target AS SELECT * FROM batch LIMIT 0")
                connection.execute("ALTER TABLE target ADD PRIMARY KEY (id)")
                first = False
            connection.execute("INSERT OR REPLACE INTO target SELECT * FROM batch")
            connection.unregister("batch")


def _batches(bus: Bus) -> Iterator[pa.RecordBatch]:
    for events in bus.read(STREAM, after=None, follow=False, limit=BATCH.events):
        yield events.data.drop_columns(["_op", "_time", "_transaction"])
