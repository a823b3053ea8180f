"""Connections to PostgreSQL: psycopg for SQL and for replication, ADBC where rows move as Arrow.

Addresses are libpq's own, passed on as they are: several hosts, `service=`, password files and every `ssl...`
parameter mean what libpq's documentation says. Each connection is set to the same way of printing values, so that a
text of a value is the same whichever connection it came through (F24).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.errors import ConfigError, HeadwaterError, MissingExtra, NotConnected, SourceError
from headwater.redaction import redacted, refuse_ambiguous

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa
    from adbc_driver_manager import dbapi

PRINTING = (
    "SELECT set_config('datestyle', 'ISO, YMD', false), set_config('intervalstyle', 'iso_8601', false),"
    " set_config('extra_float_digits', '3', false), set_config('timezone', 'UTC', false),"
    " set_config('bytea_output', 'hex', false), set_config('quote_all_identifiers', 'off', false),"
    " set_config('client_encoding', 'UTF8', false)"
)
"""How values are printed, on every connection."""

KEEPALIVE = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "30000"}
"""Unless the address says otherwise: a half-open connection is noticed within half a minute (F11)."""

LOST = ("08", "57P", "53", "25P03")
"""SQLSTATEs (their beginnings) of a connection that is lost: shutdown, no resources (a full disk is 53100), a session
that the server ended."""
GIVEN_WAY = ("40", "55006")
"""Of what passes on a connection that goes on: a transaction that was rolled back for others' sake (on a standby: for
what it had to replay), a slot or object in use."""


def connect(url: str, *, application: str, replication: bool = False, connect_timeout: int = 10) -> psycopg.Connection:
    """A connection in autocommit. Raises `NotConnected`, with no secret in its text.

    `replication`: one that also speaks the replication protocol; it takes simple queries only.
    """
    library = _psycopg()
    given = understood(url)
    settings: dict[str, Any] = {"application_name": application, "connect_timeout": connect_timeout, **KEEPALIVE}
    settings = {name: value for name, value in settings.items() if name not in given}
    if replication:
        settings["replication"] = "database"
    try:
        connection: psycopg.Connection = library.connect(url, autocommit=True, prepare_threshold=None, **settings)
        connection.pgconn.exec_(PRINTING.encode())
    except (library.Error, UnicodeError) as error:  # psycopg resolves hosts itself; not every text can be one
        known = translated(error, url)
        if replication and UNREPLICATING in known.message:
            raise SourceError(
                f"a pooler stands before the server and cannot replicate: {known.message}",
                hint="give the server's own address for this source",
            ) from error
        raise known from error
    return connection


UNREPLICATING = "unsupported startup parameter"
"""What PgBouncer before 1.23 says when it is asked to replicate."""


def connect_adbc(url: str, *, application: str) -> dbapi.Connection:
    """An ADBC connection in autocommit, set like the others."""
    _psycopg()
    try:
        from adbc_driver_postgresql import dbapi as library
    except ImportError as error:
        raise MissingExtra("adbc-driver-postgresql is not installed", hint=_PIP) from error
    try:
        connection: dbapi.Connection = library.connect(adbc_uri(url, application), autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute(PRINTING)
    except library.Error as error:
        raise translated(error, url) from error
    except UnicodeError:
        raise ConfigError(f"{redacted(url)} holds bytes that are not UTF-8", hint="percent-encode it") from None
    return connection


def adbc_uri(url: str, application: str) -> str:
    """The address with our defaults filled in, as a connection string."""
    made: str = _psycopg().conninfo.make_conninfo(**{"application_name": application, **KEEPALIVE, **understood(url)})
    return made


def understood(url: str) -> dict[str, Any]:
    """The address in parts. Raises `ConfigError`; libpq's own message may hold a piece of the password (F81)."""
    library = _psycopg()
    refuse_ambiguous(url)
    try:
        parts: dict[str, Any] = library.conninfo.conninfo_to_dict(url)
    except (library.Error, UnicodeError):
        raise ConfigError(
            f"{redacted(url)} is no address that libpq understands",
            hint="postgresql://user@host:port/database?option=value; special characters as %XX",
        ) from None
    return parts


def execute(
    connection: psycopg.Connection, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """The rows of a statement, [] where it has none. Errors are ours, see `translated`."""
    library = _psycopg()
    try:
        cursor = connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []
    except library.Error as error:
        raise translated(error, "") from error


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement as the server understands it. `columns`: name, oid of the type, typmod; `parameter`: oid of $1's."""

    columns: tuple[tuple[str, int, int], ...]
    parameter: int


def prepared(connection: psycopg.Connection, sql: str) -> Prepared:
    """What a statement, in which `$1` may stand, gives and takes. It is parsed and planned for, never run."""
    library = _psycopg()
    pgconn, parsed = connection.pgconn, library.pq.ExecStatus.COMMAND_OK
    for result in (pgconn.prepare(b"", sql.encode()), pgconn.describe_prepared(b"")):
        if result.status != parsed:
            raise translated(library.errors.error_from_result(result), "")
    found = tuple(((result.fname(n) or b"").decode(), result.ftype(n), result.fmod(n)) for n in range(result.nfields))
    return Prepared(found, result.param_type(0) if result.nparams else 0)


def fetched(cursor: dbapi.Cursor) -> Iterator[pa.RecordBatch]:
    """What a statement that was executed gives. `fetch_record_batch` hands out a reader beneath this one, whose errors
    are texts alone, in the server's language; this one looks up their SQLSTATE.
    """
    if (results := cursor._results) is not None:
        yield from results.reader


def adbc_errors() -> tuple[type[Exception], ...]:
    """What ADBC raises: of a statement, and of a reader within its rows."""
    import pyarrow as pa
    from adbc_driver_manager import dbapi

    return (dbapi.Error, OSError, pa.ArrowException)


def translated(error: Exception, url: str) -> HeadwaterError:
    """`NotConnected` for what passes, `SourceError` for the rest; `url` is shown without its secrets.

    `error`: psycopg's or ADBC's, or an OSError. Nothing is made of the server's words, which are in its language.
    """
    state = getattr(error, "sqlstate", None) or ""
    text, _, _ = str(error).partition("\n\nQuery was:")  # the statement may hold values of rows (F81)
    where = f"{redacted(url)}: " if url else ""
    away = state.startswith((*LOST, *GIVEN_WAY)) if state else _is_lost(error)
    kind = NotConnected if away else SourceError
    hint = _LACKING if state == PRIVILEGE else ""
    return kind(f"{where}{text.strip() or type(error).__name__}", hint=hint)


PRIVILEGE = "42501"
"""The SQLSTATE of what a role may not do."""
_LACKING = "`headwater grants` prints the privileges that are needed, each as a GRANT, and what of them is missing"


def _is_lost(error: Exception) -> bool:
    """Without an SQLSTATE: did the connection fail, rather than a statement on it?"""
    status = getattr(error, "status_code", None)
    if status is not None:
        return bool(status.name in ("IO", "TIMEOUT"))
    return isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "InterfaceError")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal, whatever `standard_conforming_strings` says."""
    escaped = text.replace("'", "''")
    return "E'" + escaped.replace("\\", "\\\\") + "'" if "\\" in text else f"'{escaped}'"


def _psycopg() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise MissingExtra("psycopg is not installed", hint=_PIP) from error
    return psycopg


_PIP = "pip install 'headwater[postgres]'"
