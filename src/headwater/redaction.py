"""Addresses of databases as they may be shown: without their secrets (F81).

An address is a URL, or libpq's `name=value ...`. Of its parameters, only those are shown that are known to be harmless:
a misspelt `pasword=` is as secret as the right one. Where a URL is read otherwise than it was meant, because a
character of the password was not percent-encoded, more is hidden rather than less.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from headwater.errors import ConfigError

HIDDEN = "***"

_HARMLESS_NAMES = """
    host hostaddr port dbname user passfile require_auth channel_binding connect_timeout client_encoding options
    application_name fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count
    tcp_user_timeout replication gssencmode sslmode requiressl sslnegotiation sslcompression sslcert sslkey sslcertmode
    sslrootcert sslcrl sslcrldir sslsni requirepeer ssl_min_protocol_version ssl_max_protocol_version krbsrvname gsslib
    gssdelegation service servicefile target_session_attrs load_balance_hosts mode cache
"""
HARMLESS = frozenset(_HARMLESS_NAMES.split())
"""Parameters whose values may be shown: libpq's, but for its passwords and keys, and SQLite's."""

PASSWORDS = frozenset(("password", "sslpassword"))
"""Parameters whose names alone may be shown. Any other name may be a piece of a password with `&` or a space in it."""

_URL = re.compile(r"(?P<scheme>[^:/?=\s]+://)(?P<rest>.*)", re.DOTALL)
_HOST = r"(?:\[[^\]]*\]|[^:\[\],]*)(?::\d*)?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
_PAIR = re.compile(r"(?P<name>\w+)\s*=\s*(?:'(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)", re.DOTALL)


def redacted(address: str) -> str:
    """The address without its passwords, for messages and reports."""
    url = _URL.fullmatch(address)
    if url is None:
        return _pairs_redacted(address) if re.match(r"\s*\w+\s*=", address) else _query_redacted(address)
    rest = url["rest"]
    start, end = _password(rest)
    if end > start:
        rest = rest[:start] + HIDDEN + rest[end:]
    return url["scheme"] + _query_redacted(rest)


def without_secrets(url: str) -> str:
    """The URL with its passwords taken out, so that it can be used as it is and the password comes from elsewhere."""
    match = _URL.fullmatch(url)
    if match is None:
        return url
    rest = match["rest"]
    start, end = _password(rest)
    if end > start:
        rest = rest[: start - 1] + rest[end:]
    path, mark, query = rest.partition("?")
    kept = "&".join(part for part in query.split("&") if _shown(part))
    return match["scheme"] + path + (mark + kept if kept else "")


def holds_secrets(address: str) -> bool:
    return redacted(address) != address


def refuse_ambiguous(url: str) -> None:
    """Raises `ConfigError` for a password that libpq would read as a host or a path, and so tell in its own errors."""
    match = _URL.fullmatch(url)
    if match is None:
        return
    start, end = _password(match["rest"])
    if set("@/") & set(match["rest"][start:end]):
        raise ConfigError(
            f"the address {redacted(url)} can be read in two ways: `@` and `/` in a password must be percent-encoded",
            hint="write `@` as %40, `/` as %2F and `%` as %25, or leave the password to a password file",
        )


def _password(rest: str) -> tuple[int, int]:
    """Where the password of what follows `scheme://` lies, or (0, 0).

    libpq sees a password if an `@` comes before the first `/`; who did not encode a `/` meant one all the same.
    """
    authority = rest.partition("/")[0]
    start = authority.find(":") + 1
    if not start:
        return 0, 0
    if "@" in authority:
        behind = rest.partition("?")[0].rfind("@")  # one behind a `/` may belong to the password all the same
        end = max(authority.rfind("@"), behind)
        return (start, end) if end >= start else (0, 0)
    end = (rest.partition("?")[0] if _HOSTS.fullmatch(authority) else rest).rfind("@")
    return (start, end) if end > start else (0, 0)


def _query_redacted(rest: str) -> str:
    path, mark, query = rest.partition("?")
    return path + mark + "&".join(part if _shown(part) else _without_value(part) for part in query.split("&"))


def _shown(part: str) -> bool:
    """Whether one part of a query may be shown: an empty one, or a harmless parameter. libpq decodes names, too."""
    name, _, _ = part.partition("=")
    return not part or unquote(name) in HARMLESS


def _without_value(part: str) -> str:
    name, mark, _ = part.partition("=")
    return f"{name}={HIDDEN}" if mark and unquote(name) in PASSWORDS else HIDDEN


def _pairs_redacted(text: str) -> str:
    """`name=value ...`; what is between such pairs is a piece of a value that was not quoted."""
    shown, end = [], 0
    for pair in _PAIR.finditer(text):
        shown += [HIDDEN] * bool(text[end : pair.start()].strip())
        name = pair["name"]
        shown.append(pair[0] if name in HARMLESS else _without_value(f"{name}="))
        end = pair.end()
    return " ".join([*shown, *[HIDDEN] * bool(text[end:].strip())])
