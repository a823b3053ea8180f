"""The log that a PostgreSQL server keeps: who holds it back, how fast it grows, and how long the disk lasts.

A slot that nobody reads keeps every byte since, until the disk is full and the server stops: the most common complaint
about log capture (F8).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.doctor import Probe
from headwater.doctor.measures import lasting, size
from headwater.doctor.postgres_server import Server
from headwater.drivers.postgres import execute, literal
from headwater.errors import SourceError

if TYPE_CHECKING:
    import psycopg

INTERVAL = 0.5
"""Seconds over which the growth of the log is measured at least."""

MUCH = 2**30
"""Bytes of WAL that a slot without a reader may keep before it is worth a warning."""

SHORT = 86400
"""Seconds that the disk should last at least."""

_END = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END"

_SLOTS = f"""
SELECT s.slot_name::text, s.database::text, s.slot_type, s.active_pid, s.wal_status, s.safe_wal_size,
       pg_wal_lsn_diff({_END}, s.restart_lsn)::bigint, a.application_name, host(a.client_addr), a.usename::text
FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """In the sequence of `_SLOTS`. `retained`: bytes of WAL that the server keeps for it; None before it is ready."""

    name: str
    database: str | None
    kind: str
    pid: int | None
    status: str | None
    safe: int | None
    retained: int | None
    application: str | None
    client: str | None
    role: str | None

    @property
    def reader(self) -> str:
        if self.pid is None:
            return "nobody reads it now"
        if not self.role:  # rows of pg_stat_activity are for their own role and for pg_read_all_stats
            return f"process {self.pid} reads it"
        return f"{self.application or 'a program'} of {self.role} at {self.client or 'this machine'} reads it"


def slots(connection: psycopg.Connection) -> list[Slot]:
    return [Slot(*row) for row in execute(connection, _SLOTS)]


def slot_probe(slot: Slot, ours: str | None) -> Probe:
    """`ours`: this pipeline's capture that reads it."""
    name = f"slot {slot.name}"
    kept = f"keeps {size(slot.retained)} of WAL" if slot.retained is not None else "keeps no WAL"
    drop = f"SELECT pg_drop_replication_slot({literal(slot.name)});  -- if its reader will never come back"
    if slot.status == "lost":
        text = f"the server has thrown away WAL that it needed ({slot.reader}): its reader has lost changes"
        return Probe(name, "problem" if ours else "warning", text, f"headwater repair {ours}" if ours else drop)
    if slot.status == "unreserved":
        text = f"{kept}, and the next checkpoint will throw away a part of it; {slot.reader}"
        return Probe(name, "problem" if ours else "warning", text, "let its reader catch up now")
    room = f", {size(slot.safe)} more until it is lost" if slot.safe is not None else ""
    text = f"{'this pipeline’s: ' if ours else ''}{kept}{room}; {slot.reader}"
    if slot.pid is None and (not ours or (slot.retained or 0) >= MUCH):
        return Probe(name, "warning", text, "start `headwater run`" if ours else drop)
    return Probe(name, "good", text)


class Growth:
    """Measures from when it is made until `rate` is asked for, on the server's clock."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._begun = time.monotonic()
        self._first = self._look()

    def _look(self) -> tuple[int, float]:
        sql = f"SELECT pg_wal_lsn_diff({_END}, '0/0')::bigint, extract(epoch FROM clock_timestamp())::float8"
        ((lsn, now),) = execute(self._connection, sql)
        return int(lsn or 0), float(now)

    def now(self) -> float:
        """Bytes a second."""
        time.sleep(max(0.0, INTERVAL - (time.monotonic() - self._begun)))
        lsn, now = self._look()
        return max(0.0, (lsn - self._first[0]) / (now - self._first[1]))

    def average(self) -> tuple[float, str] | None:
        """Bytes a second since the statistics were reset, and when; None before version 14, or if that was just now."""
        try:
            rows = execute(
                self._connection,
                "SELECT (wal_bytes / extract(epoch FROM now() - stats_reset))::float8,"
                " to_char(stats_reset, 'YYYY-MM-DD HH24:MI')"
                " FROM pg_stat_wal WHERE stats_reset < now() - interval '10 minutes'",
            )
        except SourceError:
            return None
        return rows[0] if rows else None


@dataclass(frozen=True, slots=True)
class Disk:
    """What is free where the log lies; `why_not` where that cannot be known from here."""

    free: int = 0
    place: str = ""
    why_not: str = ""


def disk(connection: psycopg.Connection, server: Server) -> Disk:
    """Of a server on this machine, whose process here is seen to serve this connection; else it cannot be known."""
    if not _is_here(connection, server.backend):
        return Disk(why_not="it is not on this machine, as far as can be seen from here")
    try:
        ((directory,),) = execute(connection, "SELECT current_setting('data_directory')")
    except SourceError:
        return Disk(why_not=f"{server.role} may not see where it lies (pg_read_all_settings)")
    for place in (Path(directory, "pg_wal"), Path(directory)):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return Disk(found.f_bavail * found.f_frsize, str(place))
    return Disk(why_not=f"{directory} cannot be reached by this user")


def _is_here(connection: psycopg.Connection, backend: int) -> bool:
    """A server's process says in its title whom it serves: `postgres: role database 127.0.0.1(4711) SELECT`."""
    ((port,),) = execute(connection, "SELECT inet_client_port()")
    client = f"({port})" if port is not None else "[local]"
    try:
        title = Path(f"/proc/{backend}/cmdline").read_text(errors="replace")
    except OSError:
        return False
    return "postgres" in title and client in title


def growth_probe(growth: Growth, disk: Disk, server: Server) -> Probe:
    now, average = growth.now(), growth.average()
    text = f"the log grows by {size(now)} a second now"
    if average is not None:
        text += f", by {size(average[0])} on average since {average[1]}"
    rate = max(now, average[0] if average is not None else 0.0)
    if disk.why_not:
        return Probe("wal", "good", f"{text}. How long its disk lasts cannot be known: {disk.why_not}")
    text += f". {size(disk.free)} are free at {disk.place}"
    if rate <= 0:
        return Probe("wal", "good", text)
    seconds = disk.free / rate
    text += f": with a slot that stands still they last {lasting(seconds)} at the higher rate"
    return Probe("wal", "warning" if seconds < SHORT and server.slot_wal < 0 else "good", text)


def limit_probe(server: Server) -> Probe:
    if server.slot_wal < 0:
        text = (
            "max_slot_wal_keep_size has no limit: a slot whose reader stays away fills the disk, and the server stops"
        )
        fix = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';  SELECT pg_reload_conf();  -- what the disk can spare"
        return Probe("wal limit", "warning", text, fix)
    text = f"a slot may keep {size(server.slot_wal)}; beyond that it is lost, and capture compares the tables anew"
    return Probe("wal limit", "good", text)


def wal_probes(
    connection: psycopg.Connection, server: Server, growth: Growth, ours: Mapping[str, str]
) -> Iterator[Probe]:
    """`ours`: the names of this pipeline's slots, each with its capture."""
    for slot in slots(connection):
        yield slot_probe(slot, ours.get(slot.name))
    yield growth_probe(growth, disk(connection, server), server)
    yield limit_probe(server)
