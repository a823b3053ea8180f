"""init, run, demo, and the commands that stand alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.output import DIFFERS, FILE, File, Json, assembled, count, print_json

if TYPE_CHECKING:
    from headwater.assembly import Assembly
    from headwater.cli.live import Show
    from headwater.figures import Figures
    from headwater.supervisor import Supervisor

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s action=%(action)s"


def init(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="The database: sqlite:///path/to/your.db, postgresql://user@host/database"),
    ],
    directory: Annotated[Path, typer.Option(help="Where to write headwater.yaml and contracts/.")] = Path(),
    table: Annotated[list[str] | None, typer.Option(help="Only this table; may be given several times.")] = None,
    name: Annotated[str, typer.Option(help="The pipeline's name; taken from the database's unless given.")] = "",
) -> None:
    """Write headwater.yaml and contracts for a database.

    Looks at it, chooses tables, and writes one contract for each. Columns that look secret or personal are
    withheld, with a comment; each choice says why. A password in the URL is not written. Read what it wrote before
    you run it: a contract is a promise to others.

    \b
    Examples:
      headwater init sqlite:///lms.db
      headwater init sqlite:///lms.db --table auth_user --table course --directory pipeline
      headwater init "postgresql://headwater@db.example/lms?sslmode=verify-full"
    """
    from headwater.scaffold import scaffold

    written = scaffold(url, directory, tables=table or None, name=name or None)
    for path in written:
        print(f"wrote {os.path.relpath(path)}")
    print("next: read them, then `headwater check`, `headwater contract accept` and `headwater run`")


def run(
    config: File = FILE,
    once: Annotated[bool, typer.Option("--once", help="Catch up with the source and every sink, then exit.")] = False,
    as_json: Json = False,
) -> None:
    """Stream until stopped; --once catches up and exits.

    Both go on from the same state; --once is for cron. On a terminal it shows a live table, elsewhere plain
    lines. SIGTERM and Ctrl-C stop it cleanly, with status 0; it may also be killed at any moment. Status 1: a
    capture or a sink has failed.

    \b
    Examples:
      headwater run
      headwater run --once
      headwater run --json | jq .lag
    """
    from headwater.cli.live import screen

    if as_json or not sys.stdout.isatty():  # the live table shows troubles itself, and lines would tear it
        _log_to_stderr()

    with assembled(config, append=True) as assembly, screen(as_json) as show:
        failed = supervise(assembly, show, follow=not once)
    raise typer.Exit(DIFFERS if failed else 0)


def supervise(assembly: Assembly, show: Show, *, follow: bool, until: Callable[[int], bool] | None = None) -> int:
    """Run a pipeline and show it. `until`, asked at each tick with the lag in events, may end it."""
    from headwater.cli.live import Camera

    supervisor = _started(assembly, patient=follow)
    camera = Camera(assembly)
    previous = [signal.signal(number, lambda *_: supervisor.stop()) for number in _STOPPING]

    def tick(figures: Figures) -> None:
        picture = camera.picture(figures)
        show(picture)
        if until is not None and until(picture.lag):
            supervisor.stop()

    try:
        return supervisor.run(follow=follow, on_tick=tick)
    finally:
        for number, handler in zip(_STOPPING, previous, strict=True):
            signal.signal(number, handler)


def _started(assembly: Assembly, *, patient: bool) -> Supervisor:
    """`patient`: a database that is away is waited for, as it is later on; then every worker has its own patience."""
    import logging
    import time

    from headwater.errors import NotConnected
    from headwater.runtime import start
    from headwater.supervisor import FIRST_PAUSE, LONGEST_PAUSE

    pause = FIRST_PAUSE
    while True:
        try:
            return start(assembly)
        except NotConnected as error:
            if not patient:
                raise
            text = "waiting for a source: %s"
            logging.getLogger("headwater").warning(text, error, extra={"action": "waiting_to_start"})
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


_STOPPING = (signal.SIGTERM, signal.SIGINT)


def _log_to_stderr() -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT, defaults={"action": "log"}))
    logging.getLogger("headwater").addHandler(handler)
    logging.getLogger("headwater").setLevel(logging.INFO)


def demo(
    directory: Annotated[Path, typer.Argument(help="Made afresh for each demo.")] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=0, help="How long the application goes on writing.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same database.")] = 2026,
    learners: Annotated[int, typer.Option(min=100, help="How large the platform is.")] = 20_000,
) -> None:
    """Liberate a made-up database, and prove the result.

    Makes a learning platform's database, has a second process write to it, captures it by triggers and by query
    into streams, writes those into DuckDB, SQLite and Parquet, and compares every sink with the source. About a
    minute; needs no server.

    \b
    Examples:
      headwater demo
      headwater demo /tmp/demo --seconds 3 --learners 2000
    """
    from headwater.cli.demo import Demo, tell

    raise typer.Exit(tell(Demo(directory, seconds=seconds, seed=seed, learners=learners)))


def migrate(
    database: Annotated[str, typer.Argument(help="A source's name in headwater.yaml, a URL, or a file.")],
    sql: Annotated[str, typer.Argument(help="One or more statements.")],
    config: File = FILE,
) -> None:
    """Change a table's schema under Headwater's triggers.

    Lifts the triggers, carries out the statements and puts the triggers back, all in one transaction. SQLite refuses
    DROP COLUMN while a trigger names the column. Headwater may run meanwhile.

    \b
    Examples:
      headwater migrate lms "ALTER TABLE course_overview DROP COLUMN capacity"
      headwater migrate sqlite:///lms.db "$(cat migration.sql)"
    """
    from headwater.migrate import migrate as migrated

    done = migrated(*_database(database, sql, config))
    whose = ", ".join(done.pipelines) or "no pipeline"
    compared = "; the next run compares the rows" if done.compared else ""
    print(f"carried out {count(done.statements, 'statement')}; triggers of {whose} are in place{compared}")


def _database(name: str, sql: str, config: Path) -> tuple[str, str]:
    from headwater.config import load
    from headwater.drivers.sqlite import path_of

    if name.startswith("sqlite:") or Path(name).exists():
        return name, sql
    loaded = load(config)
    if name not in loaded.sources:
        raise typer.BadParameter(f"`{name}` is no file, no URL, and no source of {config}")
    return str(path_of(loaded.sources[name].url.get_secret_value(), loaded.directory)), sql


def schema(
    kind: Annotated[str, typer.Argument(help="config, contract or vocabulary")] = "config",
) -> None:
    """Print a JSON Schema for editors.

    Of headwater.yaml (config), of a contract, or of vocabulary.yaml.

    \b
    Examples:
      headwater schema > headwater.schema.json
      headwater schema contract > contract.schema.json
    """
    from headwater.jsonschema import json_schema

    print_json(json_schema(kind))


def version(as_json: Json = False) -> None:
    """Print the version, and whether compiled code runs.

    \b
    Examples:
      headwater version --json
    """
    import platform
    import sqlite3
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from headwater.native import running

    report = {
        "headwater": installed("headwater"),
        "running": running(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for client in _CLIENTS:
        with suppress(PackageNotFoundError):
            report[client] = installed(client)
    if as_json:
        print_json(report)
    else:
        clients = "".join(f", {client} {report[client]}" for client in _CLIENTS if client in report)
        print(
            "headwater {headwater} ({running}, Python {python}, SQLite {sqlite}{clients})".format(
                **report, clients=clients
            )
        )


_CLIENTS = ("psycopg", "adbc-driver-postgresql")
"""Libraries that extras bring, and reports of trouble have to name."""
