"""The command line. Thin: parse, build, call, print.

This module is the entry and stays light, so that the command can say what is missing when the engine is not installed.
"""

from __future__ import annotations

import os
import sys

MISSING = """error: the command line needs Headwater's engine, which is not installed (no module named {name})
  hint: pip install 'headwater[engine]'"""


def choose_memory() -> None:
    """Let all of Arrow allocate as the rest of the process does, unless the environment says otherwise.

    Its own allocator keeps what other threads have freed: some 40 MB at the peak of a capture. It is chosen once, when
    Arrow is imported, and for what Arrow compresses and reads there is no other place to say so.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def main() -> int:
    """Run the command; the result is its exit status."""
    choose_memory()
    try:
        from headwater.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "headwater":
            raise
        print(MISSING.format(name=error.name), file=sys.stderr)
        return 3
    return run()
