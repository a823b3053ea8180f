"""The command line. Thin: parse, build, call, print.

This module is the entry and stays light, so that the command can say what is missing when the engine is not installed.
"""

from __future__ import annotations

import sys

MISSING = """error: the command line needs Headwater's engine, which is not installed (no module named {name})
  hint: pip install 'headwater[engine]'"""


def main() -> int:
    """Run the command; the result is its exit status."""
    try:
        from headwater.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "headwater":
            raise
        print(MISSING.format(name=error.name), file=sys.stderr)
        return 3
    return run()
