"""Where a start begins: what must be true of server, publications and slot, and what a position is worth there."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headwater.dialects.postgres_options import Options
from headwater.drivers.postgres import connect, execute, literal
from headwater.errors import GapError, SourceError
from headwater.faults import failpoint
from headwater.model import Note, Position, Reload
from headwater.protocols import Capture, Load
from headwater.sources.log_postgres import publication, slot
from headwater.sources.log_postgres.names import MESSAGES, Names
from headwater.sources.log_postgres.position import NOT_YET, Place, Progress, lsn_of, lsn_text, place_of
from headwater.sources.log_postgres.publication import Arranged
from headwater.sources.log_postgres.watch import Watch

if TYPE_CHECKING:
    import psycopg

PATIENCE = 2.0
"""Seconds that a start waits for others' transactions to end."""

AWAY = "away"
"""The token of a load whose stream could not be captured for a while: its rows are compared when it can."""

_PATIENT = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
"""A role's time-outs are not meant for a session that holds a snapshot, or the log, for as long as it takes."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is configured. `directory`: where files of large transactions go."""

    name: str
    url: str
    names: Names
    options: Options
    directory: str


class Stopping:
    """Set once, from any thread. `fileno` becomes readable then."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.fileno, self._write = os.pipe()

    def set(self) -> None:
        if not self._event.is_set():
            self._event.set()
            os.write(self._write, b"x")

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)

    def __bool__(self) -> bool:
        return self._event.is_set()

    def __del__(self) -> None:
        os.close(self.fileno)
        os.close(self._write)


@dataclass(slots=True)
class Begun:
    """`snapshot`: of a slot made just now, held by `replication`; None when a place is taken up again."""

    sql: psycopg.Connection
    replication: psycopg.Connection
    version: int
    arranged: Arranged
    captures: dict[str, Capture]
    place: Place
    snapshot: str | None
    watch: Watch
    notes: list[Note] = field(default_factory=list)

    def close(self) -> None:
        self.sql.close()
        self.replication.close()


def patient(setting: Setting, *, replication: bool = False) -> psycopg.Connection:
    """A connection that no time-out of the role ends."""
    connection = connect(setting.url, application=setting.names.application, replication=replication)
    try:
        known = _PATIENT if connection.info.server_version >= 140000 else _PATIENT[:-1]
        slot.ask(connection, "; ".join(f"SET {name} = 0" for name in known))
    except BaseException:
        connection.close()
        raise
    return connection


def begin(
    setting: Setting, captures: Mapping[str, Capture], after: Position | None, epoch: int, stopping: Stopping
) -> Begun:
    """Raises `GapError` when the position is worth nothing here, `SourceError` when there is none and nothing can be
    captured: with one, the streams are marked before anything else, and the log goes on without them.
    """
    known = None if after is None else place_of(after, setting.name)
    sql = patient(setting)
    try:
        _check_server(sql)
        replication = patient(setting, replication=True)
        try:
            return _begun((sql, replication), setting, captures, (known, epoch), stopping)
        except BaseException:
            replication.close()
            raise
    except BaseException:
        sql.close()
        raise


def _begun(
    connections: tuple[psycopg.Connection, psycopg.Connection],
    setting: Setting,
    captures: Mapping[str, Capture],
    stored: tuple[Place | None, int],
    stopping: Stopping,
) -> Begun:
    (sql, replication), (known, epoch) = connections, stored
    server = slot.identify(replication)
    found = slot.check_free(sql, setting.names.slot, stopping.wait)
    if known is not None:
        slot.check(found, known, server, setting.name, sql.info.dbname)
        _check_publications(sql, known, setting.name)
    watch = Watch(sql, setting.names, captures)
    untold = watch.begin({} if known is None else known.seen)
    arranged = publication.arrange(sql, setting.names, captures.values())
    watch.arranged()
    failpoint("log.arranged")
    if known is None and captures and len(arranged.broken) == len(captures):
        raise next(iter(arranged.broken.values()))
    if known is not None:
        place, snapshot = _taken_up(sql, known, arranged, epoch, stopping), None
    else:
        place, snapshot = _new_slot(sql, replication, setting, found, server, max(1, epoch), stopping)
        place = dataclasses.replace(place, publications=dict.fromkeys(arranged.publications, 0))
    begun = Begun(sql, replication, server.version, arranged, {}, place, snapshot, watch)
    _settle(begun, captures, untold)
    begun.place = dataclasses.replace(begun.place, published=arranged.published)
    for name in (name for name, since in begun.place.publications.items() if since == NOT_YET):
        begun.notes += _waiting(begun.captures.values(), arranged, told=name == setting.names.publication)
    return begun


def _check_publications(sql: psycopg.Connection, place: Place, capture: str) -> None:
    for name in place.publications:
        if not publication.known(sql, name):
            raise GapError(
                f"publication {name} is gone; the bus holds {capture} up to {lsn_text(place.lsn)}: what was committed "
                "since it was dropped is not given by the log",
                hint=f"`headwater repair {capture}` makes it again and compares every table with its stream",
            )


def _taken_up(sql: psycopg.Connection, place: Place, arranged: Arranged, epoch: int, stopping: Stopping) -> Place:
    """A publication made since is known to the log from now on, or from when those have ended who wrote before."""
    new = [name for name in arranged.publications if place.publications.get(name, NOT_YET) == NOT_YET]
    since = _known_since(sql, stopping) if new else 0
    publications = {**place.publications, **dict.fromkeys(new, since)}
    return dataclasses.replace(place, epoch=max(place.epoch, epoch), publications=publications)


def _waiting(captures: Iterable[Capture], arranged: Arranged, *, told: bool) -> Iterator[Note]:
    """A load reads what is not streamed until then; a stream that begins without one misses it."""
    for capture in captures:
        if capture.load.skip and arranged.tables[capture.table].told == told:
            text = "is captured from when all transactions have ended that are older than its publication"
            yield Note(capture.stream, "gap", f"table {capture.table} {text}")


def _known_since(sql: psycopg.Connection, stopping: Stopping) -> int:
    """Changes are decoded with the catalog of their transaction's beginning, and one publication that is missing there
    is an error: it must not be read by before everybody who ran when it was made has ended, and has been read.
    """
    wall, deadline = fence(sql), time.monotonic() + PATIENCE
    while not passed(sql, wall):
        if time.monotonic() > deadline or stopping.wait(0.02):
            return NOT_YET
    return mark(sql)


def fence(sql: psycopg.Connection) -> int:
    """Above every transaction that runs now. (An id of our own is above theirs; `pg_snapshot_xmax` may be not.)"""
    ((xid,),) = execute(sql, "SELECT pg_catalog.pg_current_xact_id()::text")
    return int(xid) + 1


def passed(sql: psycopg.Connection, fence: int) -> bool:
    """Whether all transactions below it have ended."""
    ((xmin,),) = execute(sql, "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text")
    return int(xmin) >= fence


def mark(sql: psycopg.Connection) -> int:
    """A place that everything committed by now is below, and that the log will come to.

    Where something is in memory only (commits without `synchronous_commit`), a commit of our own brings it to disk.
    """
    ((written, flushed),) = execute(
        sql, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text, pg_catalog.pg_current_wal_flush_lsn()::text"
    )
    if lsn_of(flushed) >= lsn_of(written):
        return lsn_of(flushed)
    execute(sql, "SET synchronous_commit = local")
    try:
        ((lsn,),) = execute(sql, f"SELECT pg_catalog.pg_logical_emit_message(true, {literal(MESSAGES)}, '')::text")
    except SourceError:  # a role that may not write: what is on disk is what has surely been committed
        return lsn_of(flushed)
    return lsn_of(lsn)


def _check_server(connection: psycopg.Connection) -> None:
    ((recovering, level),) = execute(connection, "SELECT pg_catalog.pg_is_in_recovery(), current_setting('wal_level')")
    if recovering:
        raise SourceError("the server is a standby: log capture reads from the primary", hint="give the primary's URL")
    if level != "logical":
        raise SourceError(
            f"the server's wal_level is `{level}`, and log capture needs `logical`",
            hint="ALTER SYSTEM SET wal_level = logical; and restart the server",
        )


def _new_slot(
    sql: psycopg.Connection,
    replication: psycopg.Connection,
    setting: Setting,
    found: slot.Slot | None,
    server: slot.Server,
    epoch: int,
    stopping: Stopping,
) -> tuple[Place, str]:
    """A slot without a position is of a start that was broken off before anything was durable (F20).

    A commit record may stand at the very place where the slot begins, so nothing at it is in the bus yet.
    """
    name = setting.names.slot
    if found is not None:
        slot.check_kind(found, name, sql.info.dbname)
        slot.drop(sql, name)
        failpoint("log.slot.dropped")
    made = slot.make(replication, name, stop=stopping.fileno)
    place = Place(
        epoch=epoch,
        commit=made.start - 1,
        lsn=made.start,
        system=server.system,
        timeline=server.timeline,
        slot=name,
        start=made.start,
    )
    return place, made.snapshot


def _settle(begun: Begun, captures: Mapping[str, Capture], untold: list[Note]) -> None:
    """Streams that cannot be captured now are marked; those that can be again are compared with their rows.

    So are those whose publication was altered since the position was stored, be it by us just before we died, and
    those whose table was altered in a way that the log does not tell of.
    """
    why = {note.stream: note for note in untold}
    arranged, before = begun.arranged, begun.place.published
    for stream, capture in captures.items():
        progress = begun.place.loads.get(stream)
        table = str(capture.table)
        kept = not set(before.get(table, "").split()).isdisjoint(arranged.found.get(table, "").split())
        if stream in arranged.broken:
            if progress is not None:
                begun.place = begun.place.with_load(stream, dataclasses.replace(progress, token=AWAY))
        elif progress is not None and (progress.token == AWAY or stream in why or not kept):
            begun.place = begun.place.with_load(stream, dataclasses.replace(progress, token=AWAY))
            begun.captures[stream] = _returned(capture, begun.notes, why.get(stream))
        elif progress is not None and _is_broken_comparison(progress, capture):
            begun.captures[stream] = _compared(capture, progress.token)
        else:
            begun.captures[stream] = capture


def _is_broken_comparison(progress: Progress, capture: Capture) -> bool:
    """A reading that nobody asks for by name: that of a stream which had come back, cut off by a restart."""
    is_fact = bool(capture.key) and capture.kind == "fact"
    asked = next((load for load in _loads(capture) if load.token == progress.token), None)
    return is_fact and progress.state == "reading" and asked is not None and asked.reload is None


def _loads(capture: Capture) -> tuple[Load, ...]:
    return *capture.load.earlier, capture.load


def _returned(capture: Capture, notes: list[Note], why: Note | None) -> Capture:
    text = f"table {capture.table} could not be captured for a while; what happened then was not seen one by one"
    kind, text = ("gap", text) if why is None else (why.kind, why.text)
    what = "the rows are compared" if capture.key else "rows without a key cannot be compared"
    notes.append(Note(capture.stream, kind, f"{text}, {what}"))
    if not capture.key:
        return dataclasses.replace(capture, load=Load(capture.load.token, skip=True))
    return _compared(capture, capture.load.token)


def _compared(capture: Capture, token: str) -> Capture:
    """With a comparison in the place of the load `token` and what it was behind."""
    _, *behind = itertools.dropwhile(lambda load: load.token != token, _loads(capture))
    *earlier, last = (Load(token, Reload.DIFFERENCE), *behind)
    return dataclasses.replace(capture, load=dataclasses.replace(last, earlier=tuple(earlier)))
