"""The bus alone: appending beside writing the same bytes to a file, and reading into Arrow.

`python bench/bus.py [--batches N] [--runs N]`: each figure is a ratio inside one run, the median of alternating runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from headwater.buses.embedded import open_bus, segments
from headwater.config import BusConfig
from headwater.contracts.model import Contract
from headwater.model import Events, Mapped, Position, id_seed
from headwater.protocols import Bus, Declaration
from headwater.schema import events_schema

STREAM = "learning.enrollment"
ROWS = 10_000
FIELDS = {
    "id": "int64",
    "user_id": "int64",
    "course_key": "string",
    "mode": "string",
    "price": "decimal(10,2)",
    "active": "bool",
    "created": "timestamp",
    "email": "string",
    "score": "float64",
    "position": "int32",
}


@dataclass(frozen=True, slots=True)
class Figures:
    append_ratio: float
    append_rows_per_second: float
    read_rows_per_second: float
    read_small_rows_per_second: float
    bytes_per_million: int


def contract() -> Contract:
    fields = {name: {"type": kind, "optional": name != "id"} for name, kind in FIELDS.items()}
    return Contract.model_validate({"stream": STREAM, "version": 1, "key": ["id"], "fields": fields})


def batch(number: int, rows: int = ROWS) -> Events:
    """Enrolments as they would be: some columns repeat, some do not."""
    dice = np.random.default_rng(number)
    place = np.arange(number * rows, (number + 1) * rows)
    moments = pa.array(1_700_000_000_000_000 + place * 1000, pa.timestamp("us", tz="UTC"))
    courses = pa.array([f"course-v1:Org+C{n:03}+2024" for n in range(200)])
    columns = [
        pa.array(np.ones(rows), pa.int8()),
        pa.array(np.ones(rows), pa.uint32()),
        pa.array(place, pa.uint64()),
        pa.array(np.zeros(rows), pa.uint32()),
        moments,
        pa.nulls(rows, pa.string()),
        pa.array(place),
        pa.array(dice.integers(0, 20_000, rows)),
        courses.take(pa.array(dice.integers(0, 200, rows))),
        pa.array(["audit", "verified", "honor"]).take(pa.array(dice.integers(0, 3, rows))),
        pa.array(dice.integers(0, 50_000, rows)).cast(pa.decimal128(21, 2)).cast(pa.decimal128(10, 2), safe=False),
        pa.array(dice.integers(0, 2, rows).astype(bool)),
        moments,
        pa.array([f"learner{n}@example.com" for n in dice.integers(0, 20_000, rows)]),
        pa.array(dice.random(rows)),
        pa.array(dice.integers(0, 100, rows), pa.int32()),
    ]
    data = pa.RecordBatch.from_arrays(columns, schema=events_schema(contract()))
    return Events(STREAM, 1, data, source="lms/trigger", seed=id_seed("bench", "lms/trigger", STREAM))


def opened(directory: str) -> Bus:
    bus = open_bus(config=BusConfig(url="embedded:bus"), pipeline="bench", directory=directory, append=True)
    bus.declare([Declaration(contract(), "lms/trigger", "")])
    return bus


def append(bus: Bus, batches: list[Events]) -> float:
    start = time.perf_counter()
    for number, events in enumerate(batches):
        bus.append(Mapped([events]), source="lms/trigger", position=Position(1, number, b""))
    return time.perf_counter() - start


def write_file(path: Path, batches: list[Events]) -> float:
    """The yardstick: the same batches, encoded the same way, to a file with fsync after each."""
    handle = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    start = time.perf_counter()
    try:
        for events in batches:
            os.write(handle, segments.message(events.data, "lz4")[0])
            os.fsync(handle)
    finally:
        os.close(handle)
    return time.perf_counter() - start


def read(bus: Bus) -> float:
    start = time.perf_counter()
    rows = sum(len(events) for events in bus.read(STREAM, after=None, follow=False))
    return rows / (time.perf_counter() - start)


def run(directory: Path, batches: list[Events]) -> Figures:
    bus = opened(str(directory / "large"))
    small = opened(str(directory / "small"))
    try:
        file_seconds = write_file(directory / "yardstick", batches)
        seconds = append(bus, batches)
        rows = len(batches) * ROWS
        append(small, [Events(STREAM, 1, batches[0].data.slice(n, 1)) for n in range(1_000)])
        while small.maintain(60):  # type: ignore[attr-defined]
            pass
        return Figures(
            append_ratio=file_seconds / seconds,
            append_rows_per_second=rows / seconds,
            read_rows_per_second=read(bus),
            read_small_rows_per_second=read(small),
            bytes_per_million=bus.streams()[STREAM].nbytes * 1_000_000 // rows,
        )
    finally:
        bus.close()
        small.close()


def measure(batches: int, runs: int) -> Figures:
    """The median of each figure."""
    events = [batch(number) for number in range(batches)]
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=os.environ.get("HEADWATER_BENCH_DIR")) as directory:
            found.append(run(Path(directory), events))
    return Figures(*(statistics.median(column) for column in zip(*(asdict(f).values() for f in found), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(asdict(measure(options.batches, options.runs)), indent=2))


if __name__ == "__main__":
    main()
