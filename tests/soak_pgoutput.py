"""Damaged messages through the compiled and the uncompiled decoder, until told to stop.

    python -m tests.soak_pgoutput [SECONDS] [SEED]

prints how many it has compared. A difference ends it with the seed that shows it again.
"""

# ruff: noqa: T201
from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from headwater import native
from headwater.testing.postgres import PostgresServer
from headwater.wire.pgoutput import Loops, Transaction
from tests.pgoutput_messages import (
    Guarded,
    Recording,
    any_columns,
    damaged,
    joined,
    outcome,
    sampled,
)
from tests.pgoutput_recordings import record


class Compared:
    """Compares on samples of recordings. `read`, `refused`: how many of them could be decoded, and could not."""

    def __init__(self, recordings: list[Recording]) -> None:
        self._recordings = recordings
        self._guarded = Guarded(max(len(joined(recording.frames)[0]) for recording in recordings) + 1000)
        self._chosen, self._uncompiled = Loops.chosen(), Loops.uncompiled()
        self.read = self.refused = 0

    def once(self, rng: random.Random) -> None:
        recording = rng.choice(self._recordings)
        frames = sampled(rng, recording)
        if rng.random() < 0.95:
            frames = damaged(rng, frames)
        data, ends = joined(frames)
        part = Transaction(1, 2, 3, 0, streamed=rng.random() < 0.5) if rng.random() < 0.7 else None
        given = {
            "binary": recording.binary or rng.random() < 0.05,
            "wanted": any_columns(rng),
            "transaction": part,
            "aborted": [rng.randrange(2000)],
        }
        compiled = outcome(self._chosen, (self._guarded.holding(data), ends), **given)  # type: ignore[arg-type]
        uncompiled = outcome(self._uncompiled, (data, ends), **given)  # type: ignore[arg-type]
        assert compiled == uncompiled, frames
        self.refused += bool(compiled.error)
        self.read += not compiled.error


def main(seconds: float, seed: int) -> None:
    if not native.is_compiled(Loops.chosen().messages):
        raise SystemExit("the compiled modules are not built")
    with tempfile.TemporaryDirectory() as directory, PostgresServer(Path(directory) / "data") as server:
        compared = Compared(list(record(server, server.create_database("soak")).values()))
    end, told, count = time.monotonic() + seconds, 0.0, 0
    try:
        while time.monotonic() < end:
            try:
                compared.once(random.Random(seed + count))
            except BaseException:
                print(f"seed {seed + count}")
                raise
            count += 1
            if time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"{count} compared, {compared.refused} of them refused", flush=True)
    except KeyboardInterrupt:
        pass
    print(f"{count} compared, {compared.refused} of them refused")


if __name__ == "__main__":
    arguments = [float(argument) for argument in sys.argv[1:]]
    main(arguments[0] if arguments else float("inf"), int(arguments[1]) if len(arguments) > 1 else 0)
