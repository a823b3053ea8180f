"""What a PostgreSQL server and its role allow, as one look at settings and catalogues shows them.

All of it can be read by a role without any privilege; what needs one is asked for apart, and its absence is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from headwater.doctor import Probe
from headwater.drivers.postgres import connect, execute, quoted
from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    import psycopg

OLDEST = 130000
"""The first version whose log capture is not refused; tests run on Debian's."""

_LOOK = """
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
       current_setting('wal_level'), current_setting('max_replication_slots')::int,
       current_setting('max_wal_senders')::int, pg_size_bytes(current_setting('max_slot_wal_keep_size')),
       (SELECT setting::int FROM pg_settings WHERE name = 'wal_writer_delay'),
       current_user::text, current_database()::text, rolsuper, rolreplication,
       has_database_privilege(current_database(), 'CREATE'),
       (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication),
       EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication'),
       EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'USAGE')),
       current_setting('rds.logical_replication', true), current_setting('cloudsql.logical_decoding', true),
       pg_backend_pid()
FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Server:
    """In the sequence of `_LOOK`. `slot_wal`: bytes that a slot may hold back, negative for no limit."""

    version: int
    version_text: str
    standby: bool
    wal_level: str
    max_slots: int
    max_senders: int
    slot_wal: int
    wal_writer_delay: int
    role: str
    database: str
    superuser: bool
    replication: bool
    may_create: bool
    slots: int
    senders: int
    on_rds: bool
    rds_replication: bool
    rds_logical: str | None
    cloudsql_logical: str | None
    backend: int

    @property
    def may_replicate(self) -> bool:
        return self.superuser or self.replication or self.rds_replication


def look(connection: psycopg.Connection) -> Server:
    (row,) = execute(connection, _LOOK)
    return Server(**dict(zip((field.name for field in fields(Server)), row, strict=True)))


State = Literal["good", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class ServerProbes:
    """`wanted`: a stream captures the log, so what stands in its way is a problem. `slot`: ours is there already."""

    server: Server
    wanted: bool
    slot: bool

    def probes(self) -> Iterator[Probe]:
        yield self._version()
        yield self._standby()
        yield self._wal_level()
        yield self._slots()
        yield self._senders()
        yield self._role()

    @property
    def _hindrance(self) -> State:
        return "problem" if self.wanted else "warning"

    def _version(self) -> Probe:
        text = f"PostgreSQL {self.server.version_text}"
        if self.server.version < OLDEST:
            return Probe("version", "problem", f"{text}: Headwater needs 13 or later")
        return Probe("version", "good", text)

    def _standby(self) -> Probe:
        if not self.server.standby:
            return Probe("standby", "good", "the server takes writes: it is no standby")
        text = "the server is a standby: publications and triggers are made on the primary, and their log is read there"
        fix = "name every host in the address, with target_session_attrs=read-write"
        return Probe("standby", self._hindrance, text, fix)

    def _wal_level(self) -> Probe:
        server = self.server
        if server.wal_level == "logical":
            return Probe("wal_level", "good", "logical: the log can be decoded")
        text = f"wal_level is {server.wal_level}: the log cannot be decoded; `logical` takes a restart"
        return Probe("wal_level", self._hindrance, text, wal_level_fix(server))

    def _slots(self) -> Probe:
        text = f"{self.server.slots} of {self.server.max_slots} replication slots are in use"
        if self.slot or self.server.slots < self.server.max_slots:
            return Probe("slots", "good", text + (", one of them by this pipeline" if self.slot else ""))
        fix = f"ALTER SYSTEM SET max_replication_slots = {self.server.max_slots + 4};  -- then restart the server"
        return Probe("slots", self._hindrance, f"{text}: none is left for this pipeline", fix)

    def _senders(self) -> Probe:
        text = f"{self.server.senders} of {self.server.max_senders} WAL senders are running"
        if self.server.senders < self.server.max_senders:
            return Probe("senders", "good", text)
        fix = f"ALTER SYSTEM SET max_wal_senders = {self.server.max_senders + 4};  -- then restart the server"
        return Probe("senders", self._hindrance, f"{text}: a further reader of the log is refused", fix)

    def _role(self) -> Probe:
        server = self.server
        if server.may_replicate:
            why = "is a superuser" if server.superuser else "has REPLICATION" if server.replication else "may, by RDS"
            return Probe("role", "good", f"{server.role} may replicate: it {why}")
        return Probe("role", self._hindrance, f"{server.role} may not replicate", replication_fix(server))


def wal_level_fix(server: Server) -> str:
    if server.on_rds or server.rds_logical is not None:
        return "-- Amazon: rds.logical_replication = 1 in the parameter group, then reboot"
    if server.cloudsql_logical is not None:
        return "-- Google: gcloud sql instances patch INSTANCE --database-flags=cloudsql.logical_decoding=on"
    return "ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server"


def replication_fix(server: Server) -> str:
    role = quoted(server.role)
    return f"GRANT rds_replication TO {role};" if server.on_rds else f"ALTER ROLE {role} REPLICATION;"


def hindrances(server: Server, reached: Probe) -> list[tuple[str, str]]:
    """What stands in the way of log capture of any table: why, and the SQL. `reached`: see `replication_probe`."""
    found = [
        (probe.text, probe.fix)
        for probe in ServerProbes(server, True, False).probes()
        if probe.state == "problem" and probe.name != "role"
    ]
    if not server.may_replicate:
        found.append((f"{server.role} may not replicate", replication_fix(server)))
    elif reached.state == "problem" and not found:
        found.append((reached.text, reached.fix))
    return found


def replication_probe(url: str, server: Server) -> Probe:
    """Whether a replication connection can be had by this address: tried, not guessed."""
    if not server.may_replicate:
        return Probe("replication", "warning", "not tried: the role may not replicate", replication_fix(server))
    try:
        with connect(url, application="headwater doctor", replication=True) as connection:
            execute(connection, "IDENTIFY_SYSTEM")
    except HeadwaterError as error:
        return _refused(error.message, error.hint)
    return Probe("replication", "good", "a replication connection was made")


def _refused(message: str, hint: str) -> Probe:
    if hint:
        return Probe("replication", "problem", message, hint)
    if re.search(r"pgbouncer|odyssey|pgcat|supavisor", message, re.IGNORECASE):
        text = f"a pooler stands before the server and cannot replicate: {message}"
        return Probe("replication", "problem", text, "give the server's own address for this source")
    if "pg_hba.conf" in message:
        return Probe("replication", "problem", message, "-- a line for the database (not `replication`) in pg_hba.conf")
    return Probe("replication", "problem", f"a replication connection is refused: {message}")


def pooler_probe(connection: psycopg.Connection, server: Server) -> Probe:
    """Poolers hand out process numbers of their own, which no server process has."""
    if connection.info.backend_pid == server.backend:
        return Probe("pooler", "good", "the address leads to the server itself")
    text = (
        "the address leads to a pooler: settings of a session may be lost between two statements, and the log can only "
        "be read past it"
    )
    return Probe("pooler", "warning", text, "give the server's own address for this source")


def commit_probes(connection: psycopg.Connection, server: Server) -> Iterator[Probe]:
    """`synchronous_commit` as it is for those who write: here by default, and where a role or database differs."""
    ((here, reset),) = execute(
        connection,
        "SELECT current_setting('synchronous_commit'), reset_val FROM pg_settings WHERE name = 'synchronous_commit'",
    )
    others = execute(
        connection,
        "SELECT r.rolname::text, d.datname::text FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole"
        " LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE 'synchronous_commit=off' = ANY (s.setconfig)"
        " AND (s.setdatabase = 0 OR d.datname = current_database()) ORDER BY 1, 2",
    )
    late = (
        f"the log shows a commit only once it is on disk, up to {3 * server.wal_writer_delay} ms later (three times "
        f"wal_writer_delay, {server.wal_writer_delay} ms), and a crash of the server loses such commits"
    )
    if "off" in (here, reset) and not others:
        fix = "ALTER SYSTEM SET synchronous_commit = 'on';  SELECT pg_reload_conf();"
        yield Probe("synchronous_commit", "warning", f"off: {late}", fix)
    for role, database in others:
        whose, fix = _whose(role, database)
        yield Probe("synchronous_commit", "warning", f"off for {whose}: {late}", fix)
    if here != "off" and not others:
        yield Probe("synchronous_commit", "good", f"{here}: a commit is in the log at once")


def _whose(role: str | None, database: str | None) -> tuple[str, str]:
    if role is None:
        return f"database {database}", f"ALTER DATABASE {quoted(database or '')} RESET synchronous_commit;"
    place = f" IN DATABASE {quoted(database)}" if database else ""
    return f"role {role}", f"ALTER ROLE {quoted(role)}{place} RESET synchronous_commit;"
