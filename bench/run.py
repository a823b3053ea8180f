"""Runs every benchmark, or those named, and writes RESULTS.md: machine, versions, ratios.

`python -m bench.run` or `python -m bench.run startup bus`. A benchmark is a module here with `run() -> list[Result]`.
"""

from __future__ import annotations

import datetime
import importlib
import os
import pkgutil
import platform
import sqlite3
import sys
from importlib.metadata import version
from pathlib import Path

import bench
from bench.result import Result

REPORT = Path(__file__).with_name("RESULTS.md")
APART = ("run", "result")
SOAK = "\n## An hour of `make soak`"
PACKAGES = ("headwater", "pyarrow", "duckdb", "psycopg", "adbc-driver-postgresql", "pydantic", "typer")


def modules() -> list[str]:
    return [found.name for found in pkgutil.iter_modules(bench.__path__) if found.name not in APART]


def main(names: list[str]) -> int:
    """Exit status 1 if a figure is below what is asked."""
    results: list[Result] = []
    for name in names or modules():
        print(f"{name} ...", flush=True)
        module = importlib.import_module(f"bench.{name}")
        if not hasattr(module, "run"):
            continue
        for result in module.run():
            print("  " + _row(result), flush=True)
            results.append(result)
    if not names:
        soaked = _soaked(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else ""
        REPORT.write_text(report(results) + soaked, encoding="utf-8")
        print(f"wrote {REPORT}")
    return 0 if all(result.reached for result in results) else 1


def _soaked(before: str) -> str:
    """What `make soak` left in the report, which takes an hour and stays."""
    return before[before.index(SOAK) :] if SOAK in before else ""


def report(results: list[Result]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    heads = "| what | asked | measured | ratio | yardstick in the same run | reached | notes |"
    rule = "|---" * 7 + "|"
    lines = "\n".join(map(_row, results))
    return f"""# Measured

Written by `make bench` on {now:%Y-%m-%d}. Each figure is the median of three runs that alternate with their yardstick.

{heads}
{rule}
{lines}

| machine | |
|---|---|
| processor | {_processor()}, {os.cpu_count()} cores |
| memory | {os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.1f} GB |
| system | {platform.system()} {platform.release()} |
| Python | {platform.python_version()}, SQLite {sqlite3.sqlite_version} |
| versions | {", ".join(f"{name} {version(name)}" for name in PACKAGES)} |

| what the figures depend on | |
|---|---|
{_about(results)}
"""


def _about(results: list[Result]) -> str:
    found = {name: text for result in results for name, text in result.about.items()}
    return "\n".join(f"| {name} | {text} |" for name, text in found.items())


def _row(result: Result) -> str:
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    reached = "yes" if result.reached else "**no**"
    parts = (result.what, result.asked, result.measured, ratio, result.yardstick, reached, result.notes)
    return "| " + " | ".join(parts) + " |"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
