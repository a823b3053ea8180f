"""What to look at in a SQLite file. Read-only; a locked file is a finding, not something to wait for."""

from __future__ import annotations

import os
from typing import Literal

from headwater.config import Config, StreamConfig
from headwater.dialects import Column, Table
from headwater.doctor import Enabling, Probe
from headwater.doctor.choice import unindexed_cursors
from headwater.doctor.cursors import cursor_probes
from headwater.drivers.sqlite import Connection, path_of, quoted
from headwater.errors import HeadwaterError
from headwater.sources.trigger_sqlite.install import Found, find
from headwater.sources.trigger_sqlite.names import Names

EPOCH = "'1970-01-01 00:00:00'"


class SqliteExamination:
    def __init__(self, config: Config, source: str) -> None:
        self.path = path_of(config.sources[source].url.get_secret_value(), config.directory)
        self.names = Names(config.name)
        self._connection = Connection(self.path, readonly=True, busy_timeout=0.0)
        self._journal = str(self._connection.execute("PRAGMA journal_mode")[0][0]).lower()
        rows = self._connection.execute("SELECT name FROM pragma_table_list WHERE type = 'virtual'")
        self._virtual = {name for (name,) in rows}
        self._found: Found | HeadwaterError = self._ours()

    def close(self) -> None:
        self._connection.close()

    def source_probes(self) -> list[Probe]:
        return []

    # the patterns

    def log(self, table: Table) -> Enabling:
        return Enabling("SQLite has no log that another program can follow")

    def trigger(self, table: Table) -> Enabling:
        if table.is_view:
            return Enabling("a view has no triggers that see the changes of its tables; capture the tables")
        if table.id.name in self._virtual:
            return Enabling("a virtual table cannot have triggers; capture the tables that it is made from")
        if not self._writable:
            return Enabling(f"{self.path} cannot be written by this user", (f"-- in a shell: chmod u+w '{self.path}'",))
        return Enabling()

    def query(self, table: Table) -> Enabling:
        return Enabling()

    def timestamp(self, table: Table) -> Enabling:
        candidates = unindexed_cursors(table)
        if table.is_view:
            return Enabling("a view cannot be indexed; its tables can")
        if not candidates:
            sql = (
                f"ALTER TABLE {quoted(table.id.name)} ADD COLUMN updated_at TIMESTAMP NOT NULL DEFAULT {EPOCH};",
                _index(table, "updated_at"),
                "-- and the application has to set it, in UTC, whenever it writes a row",
            )
            return Enabling("no column says when a row changed", sql)
        return self._repair(table, candidates[0])

    def _repair(self, table: Table, column: Column) -> Enabling:
        name, at = quoted(table.id.name), quoted(column.name)
        sql = []
        reasons = []
        if column.nullable:
            reasons.append("may be NULL, and such rows would never be seen")
            sql.append(f"UPDATE {name} SET {at} = {EPOCH} WHERE {at} IS NULL;")
            sql.append("-- then declare it NOT NULL (SQLite: by a migration that rebuilds the table)")
        if not any(index[:1] == (column.name,) for index in (*table.indexes, *table.unique)):
            reasons.append("has no index, so that each poll would read the whole table")
            sql.append(_index(table, column.name))
        return Enabling(f"{column.name} " + ", and ".join(reasons), tuple(sql))

    # the probes

    def probes(self, table: Table, streams: dict[str, StreamConfig]) -> list[Probe]:
        found = [self._journal_probe(), self._write_probe()]
        triggered = any(stream.pattern == "trigger" for stream in streams.values())
        if triggered or not isinstance(self._found, Found) or table.id.name in self._found.active:
            found += self._trigger_probes(table.id.name, triggered)
        for stream in streams.values():
            if stream.cursor is not None:
                found += cursor_probes(table, stream.cursor, _index, self._null_probe)
        return found

    def _journal_probe(self) -> Probe:
        if self._journal == "wal":
            return Probe("journal", "good", "WAL: readers and writers do not wait for one another")
        if self._journal in ("off", "memory"):
            text = f"journal mode {self._journal}: a crash of the application can destroy the database"
            return Probe("journal", "problem", text, "PRAGMA journal_mode = WAL;")
        text = f"journal mode {self._journal}: while one writes, others cannot read, and the reverse; WAL parts them"
        return Probe("journal", "warning", text, "PRAGMA journal_mode = WAL;")

    @property
    def _writable(self) -> bool:
        return os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)

    def _write_probe(self) -> Probe:
        if self._writable:
            return Probe("writable", "good", "file and folder can be written")
        text = "file or folder cannot be written by this user: no triggers, and no WAL file"
        return Probe("writable", "warning", text, f"chmod u+w '{self.path}' '{self.path.parent}'")

    def _ours(self) -> Found | HeadwaterError:
        try:
            return find(self._connection, self.names)
        except HeadwaterError as error:
            return error

    def _trigger_probes(self, table: str, wanted: bool) -> list[Probe]:
        if not isinstance(self._found, Found):
            return [Probe("triggers", "problem", self._found.message, self._found.hint)]
        number = self._found.active.get(table)
        if number is None:
            return [Probe("triggers", "warning", "not there yet", "`headwater run` makes them")]
        prefix = f"{self.names.prefix}_{number}_"
        gone = [name for name in self._found.missing if name.startswith(prefix)]
        if gone:
            text = f"{', '.join(gone)}: dropped or altered since, as a rebuild of the table does silently"
            return [Probe("triggers", "problem", text, "`headwater run` makes them again and finds what they missed")]
        if not wanted:
            text = "in place, and no stream needs them any more"
            return [Probe("triggers", "warning", text, "`headwater run` takes them away")]
        return [Probe("triggers", "good", "in place, as they were made"), _drop_column(table)]

    def _null_probe(self, table: Table, cursor: str) -> Probe:
        name, at = quoted(table.id.name), quoted(cursor)
        ((nulls,),) = self._connection.execute(f"SELECT EXISTS (SELECT 1 FROM {name} WHERE {at} IS NULL)")
        state: Literal["problem", "warning"] = "problem" if nulls else "warning"
        text = f"{cursor} is NULL in some rows, which a poll never sees" if nulls else f"{cursor} may become NULL"
        return Probe("cursor", state, text, f"UPDATE {name} SET {at} = {EPOCH} WHERE {at} IS NULL;")


def _index(table: Table, column: str) -> str:
    name = quoted(f"{table.id.name}_{column}_idx")
    return f"CREATE INDEX {name} ON {quoted(table.id.name)} ({quoted(column)});"


def _drop_column(table: str) -> Probe:
    text = (
        "SQLite refuses ALTER TABLE ... DROP COLUMN while a trigger names the column. `headwater migrate` lifts the "
        "triggers, changes the table and puts them back; rebuilding the table, as Django does, works as it is"
    )
    return Probe("drop column", "good", text, f"headwater migrate FILE 'ALTER TABLE {quoted(table)} DROP COLUMN ...'")
