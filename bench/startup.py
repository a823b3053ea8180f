"""How soon the command line answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.result import Result, figure, median, seconds

COMMAND = Path(sys.executable).with_name("headwater")


def run() -> list[Result]:
    took = median(lambda: seconds(_help), runs=5)
    bare = median(lambda: seconds(_python), runs=5)
    return [
        Result(
            what="`headwater --help`",
            asked="at most 0.3 s",
            measured=figure(took, "s"),
            reached=took <= 0.3,
            yardstick=f"Python itself starts in {figure(bare, 's')}",
        )
    ]


def _help() -> None:
    subprocess.run([COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)


def _python() -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True)
