"""The command line. Thin: parse, build, call, print.

This module is the entry and stays light, so that the command can say what is missing when the engine is not installed.
"""

from __future__ import annotations

import os
import sys

MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""The environment that a pipeline's process runs in, as Arrow reads it when it is first imported. What reads and writes
Arrow's messages takes no other pool than this default one, and Arrow's own choice keeps what threads have freed: 60 MB
more at the peak of a delivery into PostgreSQL."""

MISSING = """error: the command line needs Headwater's engine, which is not installed (no module named {name})
  hint: pip install 'headwater[engine]'"""


def main() -> int:
    """Run the command; the result is its exit status."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)
    try:
        from headwater.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "headwater":
            raise
        print(MISSING.format(name=error.name), file=sys.stderr)
        return 3
    return run()
