"""What PostgreSQL's errors mean to a sink, by SQLSTATE (PostgreSQL documentation, appendix A).

Only the server's primary message is told: its details and the statement may hold values of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headwater.drivers.postgres import GIVEN_WAY, LOST
from headwater.errors import Busy, HeadwaterError, NotConnected, SinkError
from headwater.sinks.tables import Refused

_ROWS = ("22", "23", "44", "54000", "P0001")
"""Values, constraints and views with checks, rows too long for an index, `RAISE` in somebody's trigger."""

_LOCKED = (*GIVEN_WAY, "55P03", "57014")
"""And lock time-outs and canceled statements."""

_INPUT_OUTPUT = 10
_VALUES = (5, 9)
"""ADBC's status codes (adbc.h) IO, INVALID_ARGUMENT and INVALID_DATA."""


def translated(error: Exception, place: str, grant: Callable[[], str]) -> HeadwaterError | Refused:
    """`place`: the target, without secrets; `grant`: the SQL that gives the sink what it needs."""
    state: str = getattr(error, "sqlstate", None) or ""
    details = _details(error)
    text = f"{place}: {details.get('MESSAGE_PRIMARY') or _first_line(error)}"
    if not state:
        return _without_state(error, text)
    if (state == "23505" and details.get("SCHEMA_NAME") == "pg_catalog") or state in ("42P06", "42P07"):
        return Busy(f"{text}: another sink made it at the same moment")
    if state.startswith(_ROWS):
        return Refused(f"{details.get('MESSAGE_PRIMARY') or _first_line(error)} (SQLSTATE {state})")
    if state.startswith(_LOCKED):
        return Busy(f"{text} (SQLSTATE {state})", hint="it is tried again; look for who holds locks in pg_locks")
    if state.startswith(LOST):
        hint = "free space; nothing was written by half" if state == "53100" else ""
        return NotConnected(f"{text} (SQLSTATE {state})", hint=hint)
    return SinkError(f"{text} (SQLSTATE {state})", hint=_hint(state, grant))


def _hint(state: str, grant: Callable[[], str]) -> str:
    if state == "42501":
        return grant()
    if state == "25006":
        return "a standby, or read-only by its settings: name the primary (target_session_attrs=read-write finds it)"
    if state == "42P01":
        return "a table was dropped behind Headwater's back; `headwater sink rebuild` makes and fills it again"
    return "correct the target, and start the sink again"


def _without_state(error: Exception, text: str) -> HeadwaterError | Refused:
    status = int(getattr(error, "status_code", None) or 0)
    if status in _VALUES:
        return Refused(text)
    return NotConnected(text) if status == _INPUT_OUTPUT else SinkError(text)


def _details(error: Exception) -> Mapping[str, str]:
    """libpq's diagnostic fields, as the driver hands them on."""
    found = getattr(error, "details", None) or []
    return {name.removeprefix("PG_DIAG_"): value.decode("utf-8", "replace") for name, value in map(_pair, found)}


def _pair(detail: tuple[str | bytes, bytes]) -> tuple[str, bytes]:
    name, value = detail
    return (name if isinstance(name, str) else name.decode()), value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
