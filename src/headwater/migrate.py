"""Changes a SQLite schema beneath Headwater's triggers: they are lifted, and made again, in the same transaction.

SQLite refuses ALTER TABLE ... DROP COLUMN while a trigger names the column (lang_altertable.html), and rewrites
triggers on RENAME. Where the statements change columns and indexes alone, nothing is missed; where they may have
changed rows (a rebuilt table, an UPDATE), the next wake-up compares the rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from headwater.drivers.sqlite import Connection, path_of
from headwater.errors import ConfigError, SourceError
from headwater.sources.trigger_sqlite.install import lift, relay
from headwater.sources.trigger_sqlite.names import Names


@dataclass(frozen=True, slots=True)
class Migrated:
    """`pipelines` as they name things in the database; `compared`: whether their next run compares rows."""

    statements: int
    pipelines: tuple[str, ...]
    compared: bool


def migrate(url: str, sql: str, *, directory: str | None = None, busy_timeout: float = 30.0) -> Migrated:
    """Carry out `sql`, one or more statements, all or nothing. Raises `SourceError`, and `Busy` if writers never end.

    Triggers of every pipeline in the database are handled. Foreign keys are not enforced meanwhile, as
    https://www.sqlite.org/lang_altertable.html asks of table rebuilds, but must hold at the end if they did before.
    """
    statements = list(_statements(sql))
    if not statements:
        raise ConfigError("there is no SQL statement to carry out")
    complete = all(map(_leaves_rows_alone, statements))
    with Connection(path_of(url, directory), busy_timeout=busy_timeout) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        with connection.transaction("IMMEDIATE"):
            broken = 0 if complete else _violations(connection)
            lifted = {names: lift(connection, names) for names in _pipelines(connection)}
            for statement in statements:
                connection.execute(statement)
                if not connection.in_transaction:
                    raise SourceError(f"`{statement}` ended the transaction: nothing may be committed half way")
            for names, found in lifted.items():
                relay(connection, names, found, complete=complete)
            if not complete and _violations(connection) > broken:
                raise SourceError(
                    "after these statements, rows refer to rows that do not exist; nothing was changed",
                    hint="`PRAGMA foreign_key_check` lists such rows",
                )
    return Migrated(len(statements), tuple(names.pipeline for names in lifted), bool(lifted) and not complete)


def _violations(connection: Connection) -> int:
    return len(connection.execute("PRAGMA foreign_key_check"))


def _pipelines(connection: Connection) -> Iterator[Names]:
    """Every pipeline whose three tables are in the database."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in sorted(tables):
        if table.startswith("headwater_") and table.endswith("_meta"):
            names = Names(table.removeprefix("headwater_").removesuffix("_meta"))
            if tables.issuperset(names.tables):
                yield names


def _statements(sql: str) -> Iterator[str]:
    """Cut where SQLite itself sees a statement end: semicolons within strings and triggers do not count."""
    rest = ""
    for piece in sql.split(";"):
        rest += piece + ";"
        if sqlite3.complete_statement(rest):
            if _words(rest):
                yield rest.strip()
            rest = ""
    if _words(rest):
        raise ConfigError(f"this statement has no end: {rest.strip()[:80]}")


def _words(statement: str) -> list[str]:
    """Its words without comments, in upper case."""
    from sqlglot.dialects.sqlite import SQLite

    return [token.text.upper() for token in SQLite().tokenize(statement) if token.text != ";"]


_HARMLESS = frozenset({"INDEX", "UNIQUE", "VIEW", "TRIGGER", "TEMP", "TEMPORARY"})


def _leaves_rows_alone(statement: str) -> bool:
    """Whether a statement surely neither writes rows nor puts one table in the place of another."""
    words = _words(statement)
    if words[:2] == ["ALTER", "TABLE"]:
        return "RENAME" not in words or words[words.index("RENAME") + 1] != "TO"
    return words[0] in ("CREATE", "DROP") and words[1] in _HARMLESS
