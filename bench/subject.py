"""A pipeline in a process of its own, as it runs everywhere else, and what it cost.

`python -m bench.subject capture DIRECTORY`   everything that its sources hold into the bus
`python -m bench.subject once DIRECTORY`      and on into its sinks, as `headwater run --once`
`python -m bench.subject follow DIRECTORY STREAM COUNT`   as `headwater run`, until a reader has COUNT events in hand;
    DIRECTORY/ready is made once the source is connected, DIRECTORY/readable.npz holds `id` and the moment of each

Prints one JSON line: seconds, events, CPU seconds (user and system, all threads), peak resident megabytes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, run

import numpy as np

from headwater import config
from headwater.assembly import Assembly
from headwater.model import Op
from headwater.pipeline import capture
from headwater.runtime import Runtime, start


@dataclass(frozen=True, slots=True)
class Cost:
    seconds: float
    events: int
    cpu: float
    peak: float

    @property
    def rate(self) -> float:
        return self.events / self.seconds


def costs(*arguments: str) -> Cost:
    """Run a command of this module and wait for it."""
    ended = run(_command(arguments), check=True, stdout=PIPE, text=True)
    return Cost(**json.loads(ended.stdout.splitlines()[-1]))


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "bench.subject", *arguments]


def captured(directory: Path) -> None:
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        assembly.declare()
        (name,) = assembly.capture_streams()
        source, router = Runtime(assembly).source(name), assembly.router(name)
        _measured(assembly, lambda: capture(source, router, assembly.bus, follow=False))
        source.close()
        router.close()


def once(directory: Path) -> None:
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)
        _measured(assembly, lambda: supervisor.run(follow=False))


def follow(directory: Path, stream: str, count: int) -> None:
    ids: list[np.ndarray] = []
    moments: list[np.ndarray] = []
    with Assembly(config.load(directory / "headwater.yaml"), append=True) as assembly:
        supervisor = start(assembly)
        running = threading.Thread(target=supervisor.run)
        running.start()
        while not assembly.bus.positions():
            time.sleep(0.01)
        (directory / "ready").touch()

        def read() -> None:
            seen = 0
            for events in assembly.bus.read(stream, after=None, follow=True):
                now = time.time_ns()
                live = np.asarray(events.data.column("_op")) != Op.READ.value
                ids.append(np.asarray(events.data.column("id"))[live])
                moments.append(np.full(len(ids[-1]), now))
                seen += len(ids[-1])
                if seen >= count:
                    return

        _measured(assembly, read)
        supervisor.stop()
        running.join()
    np.savez(directory / "readable.npz", id=np.concatenate(ids), moment=np.concatenate(moments))


def _measured(assembly: Assembly, work: Callable[[], object]) -> None:
    before = _heads(assembly)
    began, used = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    cost = {"seconds": seconds, "events": _heads(assembly) - before, "cpu": cpu, "peak": _peak()}
    print(json.dumps(cost), flush=True)


def _peak() -> float:
    """Megabytes that were resident at the most (proc(5), VmHWM). `ru_maxrss` also counts the process that started this
    one, as it was before the exec: a benchmark that held 350 MB showed as much for each child."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _heads(assembly: Assembly) -> int:
    return sum(state.head for state in assembly.bus.streams().values())


def main(arguments: Sequence[str]) -> None:
    command, directory, *more = arguments
    if command == "follow":
        follow(Path(directory), more[0], int(more[1]))
    else:
        {"capture": captured, "once": once}[command](Path(directory))


if __name__ == "__main__":
    main(sys.argv[1:])
