"""The replication slot: made, checked against the position that the bus holds, and dropped.

A position is worth something only on the server, timeline and slot that it was read from, and only while the server
has not been told to forget more than the bus holds. Anything else is a gap, which is an error that names it (F3, F4).
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.config import SourceConfig
from headwater.drivers.postgres import connect, execute, quoted, translated
from headwater.errors import Busy, GapError, NotConnected, SourceError
from headwater.faults import failpoint
from headwater.sources.log_postgres.names import Names
from headwater.sources.log_postgres.position import Place, lsn_of, lsn_text

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGresult

PLUGIN = "pgoutput"
OLDEST = 130000
PATIENCE = 3.0
"""Seconds that a slot is given to be let go by a session that has just ended."""


@dataclass(frozen=True, slots=True)
class Server:
    """What `IDENTIFY_SYSTEM` says. `version`: as in `server_version_num`; `end`: of its log on disk."""

    system: str
    timeline: int
    version: int
    end: int


@dataclass(frozen=True, slots=True)
class Slot:
    """As in `pg_replication_slots`. `lost`: why the server keeps nothing for it any more."""

    plugin: str
    database: str
    pid: int | None
    confirmed: int | None
    lost: str


@dataclass(frozen=True, slots=True)
class Made:
    """A slot just made. `snapshot` is exported until its connection is used for anything else."""

    start: int
    snapshot: str


def identify(connection: psycopg.Connection) -> Server:
    """`connection`: of replication. Raises `SourceError` for a server that is too old."""
    version = connection.info.server_version
    if version < OLDEST:
        raise SourceError(
            f"PostgreSQL {version // 10000} is older than what log capture knows: 13 is the first",
            hint="capture its tables with `pattern: trigger` or `query`",
        )
    ((system, timeline, end, _),) = ask(connection, "IDENTIFY_SYSTEM")
    return Server(system, int(timeline), version, lsn_of(end))


def find(connection: psycopg.Connection, name: str) -> Slot | None:
    version = connection.info.server_version
    reason = "invalidation_reason" if version >= 170000 else "NULL"
    rows = execute(
        connection,
        f"SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn::text, wal_status, {reason}"
        " FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
        [name],
    )
    if not rows:
        return None
    ((plugin, database, pid, confirmed, status, why),) = rows
    lost = (why or "max_slot_wal_keep_size was reached") if why or status == "lost" else ""
    return Slot(plugin or "", database or "", pid, lsn_of(confirmed) if confirmed else None, lost)


def check_free(connection: psycopg.Connection, name: str, stopped: Callable[[float], bool]) -> Slot | None:
    """The slot, once nobody reads from it. Raises `Busy`. `stopped`: waits so many seconds, and says whether to end."""
    deadline = time.monotonic() + PATIENCE
    while (slot := find(connection, name)) is not None and slot.pid is not None:
        if stopped(0.02) or time.monotonic() > deadline:
            rows = execute(connection, "SELECT application_name FROM pg_stat_activity WHERE pid = %s", [slot.pid])
            who = f"`{rows[0][0]}`" if rows and rows[0][0] else "somebody"
            raise Busy(
                f"replication slot {name} is being read by {who} (process {slot.pid} of the server)",
                hint="one process captures a source; a slot is let go `wal_sender_timeout` after its reader died",
            )
    return slot


def check(slot: Slot | None, place: Place, server: Server, capture: str, database: str) -> None:
    """Raises `GapError` when changes between the stored place and what the slot still gives are lost."""
    hint = f"`headwater repair {capture}` makes a new slot and compares every table with its stream"
    stored = f"the bus holds {capture} up to {lsn_text(place.lsn)}"
    if server.system != place.system:
        text = f"{stored} of the server with system identifier {place.system}; this one is {server.system}"
        raise GapError(f"{text}: it is another server, what happened on the way is unknown", hint=hint)
    if server.timeline != place.timeline:
        text = f"{stored} on timeline {place.timeline}; the server is on timeline {server.timeline}"
        raise GapError(f"{text}: it was restored or promoted, what happened on the way is unknown", hint=hint)
    if server.end < place.lsn:
        text = f"{stored}; the server's log ends at {lsn_text(server.end)}"
        raise GapError(f"{text}: its files were put back to an earlier state, what followed is unknown", hint=hint)
    if slot is None:
        text = f"replication slot {place.slot} is gone; {stored}"
        raise GapError(f"{text}: what was committed after that is lost to the log", hint=hint)
    if slot.lost:
        text = f"replication slot {place.slot} was invalidated by the server ({slot.lost}); {stored}"
        raise GapError(f"{text}: what was committed after that is lost to the log", hint=hint)
    check_kind(slot, place.slot, database)
    if slot.confirmed is not None and slot.confirmed > place.lsn:
        text = f"replication slot {place.slot} stands at {lsn_text(slot.confirmed)}; {stored}"
        raise GapError(f"{text}: what was committed between the two is lost to the log", hint=hint)


def check_kind(slot: Slot, name: str, database: str) -> None:
    """Raises `SourceError` for a slot of this name that somebody else has made."""
    for what, expected, found in (("plugin", PLUGIN, slot.plugin), ("database", database, slot.database)):
        if found != expected:
            raise SourceError(
                f"replication slot {name} is not ours: its {what} is `{found}`, expected `{expected}`",
                hint="give the pipeline another `name`, or drop that slot",
            )


def make(connection: psycopg.Connection, name: str, *, temporary: bool = False, stop: int | None = None) -> Made:
    """A slot from now on, with the snapshot of exactly that place. `connection`: of replication; it holds the snapshot.

    It waits for the transactions that run now; when the file `stop` becomes readable meanwhile, `NotConnected`.
    """
    kind = "TEMPORARY LOGICAL" if temporary else "LOGICAL"
    export = "(SNAPSHOT 'export')" if connection.info.server_version >= 150000 else "EXPORT_SNAPSHOT"
    failpoint("log.slot.before_making")
    ((_, start, snapshot, _),) = ask(
        connection, f"CREATE_REPLICATION_SLOT {quoted(name)} {kind} {PLUGIN} {export}", stop
    )
    failpoint("log.slot.made")
    return Made(lsn_of(start), snapshot)


def drop(connection: psycopg.Connection, name: str) -> None:
    """Of a slot that nobody reads. `connection`: of SQL."""
    execute(connection, "SELECT pg_catalog.pg_drop_replication_slot(%s)", [name])


def drop_slot(config: SourceConfig, pipeline: str, source: str) -> list[str]:
    """Drop the slot of a capture; what was dropped, in words. Raises `Busy` while it is read."""
    names = Names(pipeline, source)
    with connect(config.url.get_secret_value(), application=names.application) as connection:
        if check_free(connection, names.slot, _slept) is None:
            return []
        drop(connection, names.slot)
    return [f"replication slot {names.slot}"]


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def ask(connection: psycopg.Connection, command: str, stop: int | None = None) -> list[tuple[Any, ...]]:
    """A command of the replication protocol, and its rows as texts. Raises as `drivers.postgres.execute` does."""
    try:
        connection.pgconn.send_query(command.encode())
        return _rows(connection, command, stop)
    except connection.Error as error:
        raise translated(error, "") from error


def result_of(connection: psycopg.Connection, command: str, stop: int | None = None) -> PGresult | None:
    """The next result of a command that was sent; None when there are no more.

    libpq would wait for it with Python's global lock held, so it is asked only when it need not wait.
    """
    pgconn, poll = connection.pgconn, select.poll()
    for file in (pgconn.socket, *([] if stop is None else [stop])):
        poll.register(file, select.POLLIN)
    while pgconn.is_busy():
        if any(file == stop for file, _ in poll.poll()):
            pgconn.get_cancel().cancel()
            raise NotConnected(f"stopped while the server carried out {command.split()[0]}")
        pgconn.consume_input()
    return pgconn.get_result()


def _rows(connection: psycopg.Connection, command: str, stop: int | None) -> list[tuple[Any, ...]]:
    from psycopg import errors, pq

    rows: list[tuple[Any, ...]] = []
    failed = None
    while (result := result_of(connection, command, stop)) is not None:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            failed = errors.error_from_result(result)
        for row in range(result.ntuples):
            values = (result.get_value(row, column) for column in range(result.nfields))
            rows.append(tuple(None if value is None else value.decode() for value in values))
    if failed is not None:
        raise failed
    return rows
