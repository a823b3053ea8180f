"""The process that dies: appends to an embedded bus what `expected` says, until it is done or a failpoint kills it.

Run as a script it is a nursery: it imports once, then forks a writer for each line `directory<TAB>failpoints<TAB>seed`,
and answers with the writer's exit status.
"""

from __future__ import annotations

import os
import sys

from headwater.buses.embedded import EmbeddedBus, appending, compaction, files, merging, open_bus
from headwater.config import BusConfig
from headwater.faults import set_failpoints
from headwater.model import Events, Mapped, Note, Op, Parked
from headwater.testing.buses import OTHER, SOURCE, STREAM, changes, declaration, events, numbered, position, rejected

COMPACTED = "shop.stock"
BATCHES = 40


def batch(number: int) -> list[Events]:
    """One to four events, all of the commit `number`."""
    size = number % 4 + 1
    rows = [{"id": number, "name": f"row {index}", "commit": number, "index": index} for index in range(size)]
    return [events([row]) if number % 7 else Events(STREAM, 2, events([row]).data, source=SOURCE) for row in rows]


def stock(number: int) -> Events:
    """A key that others overwrite, deleted now and then."""
    op = Op.DELETE if number % 6 == 5 else Op.UPDATE
    return events([{"id": number % 5, "name": f"v{number}", "commit": number, "op": op}], COMPACTED)


def is_parked(number: int) -> bool:
    return number % 5 == 0


def mapped(number: int) -> Mapped:
    return Mapped(
        [*batch(number), stock(number)],
        rejected=(rejected(number),) if number % 9 == 0 else (),
        parked=(Parked(OTHER, changes(number)),) if is_parked(number) else (),
        notes=(Note(STREAM, "gap", str(number)),) if number % 11 == 0 else (),
    )


def opened(directory: str) -> EmbeddedBus:
    return open_bus(config=BusConfig(url="embedded:bus"), pipeline="suite", directory=directory, append=True)


def write(bus: EmbeddedBus) -> None:
    retention = {"compacted": True, "tombstones": 0}
    bus.declare([declaration(STREAM), declaration(OTHER), declaration(COMPACTED, retention=retention)])
    last = bus.position(SOURCE)
    for number in range(last.commit + 1 if last else 0, BATCHES):
        bus.append(mapped(number), source=SOURCE, position=position(number))
        if number % 3 == 0:
            drain(bus)
        bus.maintain(budget=60)


def drain(bus: EmbeddedBus) -> None:
    for number, parked in bus.parked(OTHER):
        commit = parked.data.column("_commit")[0].as_py()
        bus.settle(Mapped([numbered(commit, stream=OTHER)]), parked=[number])


def run(directory: str, failpoints: str, seed: int) -> None:
    appending.FILE_BYTES = 1_000
    files.MOST_BYTES = 5_000
    merging.FAN = 4
    compaction.CHUNK_ROWS = 6
    set_failpoints(failpoints, seed)
    bus = opened(directory)
    write(bus)
    bus.close()


def main() -> None:
    for line in sys.stdin:
        directory, failpoints, seed = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            run(directory, failpoints, int(seed))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
