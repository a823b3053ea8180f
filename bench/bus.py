"""The bus alone: appending beside writing the same bytes to a file, and reading into Arrow."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.result import RUNS, Result, figure, seconds
from headwater.buses.embedded import open_bus, segments
from headwater.config import BusConfig
from headwater.contracts.model import Contract
from headwater.model import Events, Mapped, Position, id_seed
from headwater.protocols import Bus, Declaration
from headwater.schema import events_schema

STREAM = "learning.enrollment"
ROWS = 10_000
BATCHES = 100
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


def write(handle: int, data: bytes) -> None:
    os.write(handle, data)
    os.fsync(handle)


def appending(directory: Path, batches: list[Events]) -> tuple[float, float, float]:
    """Seconds of appending, of encoding and writing the same bytes to a file, and of writing them alone.

    Turn by turn, batch by batch, each with its fsync: a slow moment of the disk meets all three.
    """
    bus = opened(str(directory))
    handle = os.open(directory / "yardstick", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    times = [0.0, 0.0, 0.0]
    try:
        for number, events in enumerate(batches):
            mapped, place = Mapped([events]), Position(1, number, b"")
            data = segments.message(events.data, "lz4")[0]
            turns = (
                lambda mapped=mapped, place=place: bus.append(mapped, source="lms/trigger", position=place),
                lambda events=events: write(handle, segments.message(events.data, "lz4")[0]),
                lambda data=data: write(handle, data),
            )
            for place_of, turn in enumerate(turns):
                times[place_of] += seconds(turn)
    finally:
        os.close(handle)
        bus.close()
    return times[0], times[1], times[2]


def reading(directory: Path) -> float:
    """Events a second, of everything on the bus."""
    bus = opened(str(directory))
    try:
        rows = 0

        def everything() -> None:
            nonlocal rows
            rows = sum(len(events) for events in bus.read(STREAM, after=None, follow=False))

        took = seconds(everything)
        return rows / took
    finally:
        bus.close()


def run(batches: int = BATCHES) -> list[Result]:
    made = [batch(number) for number in range(batches)]
    appended, read = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory(dir=os.environ.get("HEADWATER_BENCH_DIR")) as name:
            appended.append(appending(Path(name), made))
            read.append(reading(Path(name)))
    ratio, bare = (statistics.median(times[yard] / times[0] for times in appended) for yard in (1, 2))
    speed = batches * ROWS / statistics.median(times[0] for times in appended)
    rate = statistics.median(read)
    return [
        Result(
            what="bus append, batches of 10,000, lz4, fsync each",
            asked="0.5",
            measured=figure(speed, "events/s"),
            reached=ratio >= 0.5,
            ratio=ratio,
            yardstick="the same batches encoded to the same bytes, written to a file, fsync each",
            notes=f"{bare:.2f} of the file when its bytes lie ready encoded",
        ),
        Result(
            what="bus read into Arrow",
            asked="3,000,000 events/s",
            measured=figure(rate, "events/s"),
            reached=rate >= 3_000_000,
            notes="16 columns",
        ),
    ]


if __name__ == "__main__":
    for result in run():
        print(result)
