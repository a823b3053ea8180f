"""The demo from beginning to end: make, capture while it is written to, prove, and say what to try next.

It uses nothing that a user does not have: the pipeline is files in a directory, and stays there to be played with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.cli.live import screen
from headwater.cli.start import supervise
from headwater.config import load
from headwater.contracts.store import ContractStore
from headwater.demo.database import Size, make
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from headwater.assembly import Assembly

MARK = ".headwater-demo"
"""The file that says that a directory is a demo's, to be made afresh."""


@dataclass(frozen=True, slots=True)
class Demo:
    """`seconds`: how long the application goes on writing."""

    directory: Path
    seconds: float = 10.0
    seed: int = 2026
    learners: int = 20_000

    @property
    def database(self) -> Path:
        return self.directory / "lms.db"

    @property
    def size(self) -> Size:
        return Size(learners=self.learners)


def tell(demo: Demo) -> int:
    """The exit status: 0 when every sink equals the source."""
    from headwater.assembly import Assembly

    begin = time.monotonic()
    _prepare(demo)
    with _timed(f"made {demo.database}: {_contents(demo.size)}"):
        make(demo.database, demo.size, demo.seed)
    config = load(demo.directory / "headwater.yaml")
    print(f"\nstreaming into {', '.join(config.sinks)}, while another process writes for {demo.seconds:.0f} s\n")
    with Assembly(config, append=True) as assembly:
        acts = _stream(demo, assembly)
        if acts is None:
            print("stopped; the next start would go on from here")
            return 0
    _print_acts(acts)
    with Assembly(config) as assembly:
        equal = _prove(assembly)
    print(f"\n{_ending(equal)} ({time.monotonic() - begin:.0f} s in all)")
    print(_next(demo))
    return 0 if equal else 1


def _prepare(demo: Demo) -> None:
    if (demo.directory / MARK).exists():
        shutil.rmtree(demo.directory)
    elif demo.directory.exists() and any(demo.directory.iterdir()):
        raise ConfigError(
            f"{demo.directory} holds something that is no demo", hint="name another directory: `headwater demo DIR`"
        )
    demo.directory.mkdir(parents=True, exist_ok=True)
    (demo.directory / MARK).touch()
    with resources.as_file(resources.files("headwater.demo") / "pipeline") as files:
        shutil.copytree(files, demo.directory, dirs_exist_ok=True)
    contracts = ContractStore(demo.directory / "contracts")
    for stream in contracts.streams():
        contracts.accept(stream)


def _stream(demo: Demo, assembly: Assembly) -> dict[str, int] | None:
    """What the application did; None when somebody stopped the demo."""
    with _application(demo) as application:
        with screen() as show:
            supervise(
                assembly,
                show,
                follow=True,
                until=lambda lag: application.poll() is not None and lag == 0 and _loaded(assembly),
            )
        if application.poll() is None:
            return None
        output, _ = application.communicate()
        if application.returncode:
            raise ConfigError(f"the demo's application ended with status {application.returncode}")
    supervise(assembly, lambda _: None, follow=False)  # what the last look had not shown yet
    acts: dict[str, int] = json.loads(output)
    return acts


def _loaded(assembly: Assembly) -> bool:
    """Whether every stream has the rows that were there before it: until then no lag means little."""
    bus = assembly.bus
    return all(any(placed.note.kind == "loaded" for placed in bus.notes(name)) for name in assembly.config.streams)


@contextmanager
def _application(demo: Demo) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "headwater.demo.writer", str(demo.database)]
    options = ["--seconds", str(demo.seconds), "--seed", str(demo.seed)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _prove(assembly: Assembly) -> bool:
    from headwater.cli.proof import comparisons, lines

    print("\ncomparing row by row:")
    equal = True
    for comparison in comparisons(assembly):
        equal = equal and comparison.equal
        print("\n".join(f"  {line}" for line in lines(comparison)), flush=True)
    return equal


def _contents(size: Size) -> str:
    return f"{size.learners:,} learners, {size.course_runs:,} course runs, {size.enrollments:,} enrolments"


def _print_acts(acts: dict[str, int]) -> None:
    print(f"\nmeanwhile the application committed {sum(acts.values()):,} transactions:")
    for name, number in sorted(acts.items(), key=lambda item: -item[1]):
        print(f"  {number:>5}  {name}")


def _ending(equal: bool) -> str:
    return (
        "every sink equals its source, row by row" if equal else "there are differences: this is a defect of Headwater"
    )


def _next(demo: Demo) -> str:
    command = _command(demo.directory)
    return f"""
What happened: triggers on two tables and a query on a third became three streams, each shaped by its contract
({demo.directory}/contracts), kept in {demo.directory}/data, and written into DuckDB, SQLite and Parquet.

Try next, in {demo.directory}:
  {command} status
  {command} tail learning.enrollment
  {command} sql 'select mode, count(*), sum(price_paid) from learning.enrollment_current group by mode'
"""


def _command(directory: Path) -> str:
    """How this very command is called there: by its name alone only where the shell finds it."""
    here = Path(sys.executable).with_name("headwater")
    found = shutil.which("headwater")
    if found is not None and Path(found) == here:
        return "headwater"
    return min(os.path.relpath(here, directory), str(here), key=len)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    print(f"{what} ({time.monotonic() - begin:.1f} s)")
