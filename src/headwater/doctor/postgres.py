"""What to look at in a PostgreSQL database. Read-only, and every role may ask: what it may not see is a finding."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import TYPE_CHECKING

from headwater.config import Config, StreamConfig
from headwater.contracts.store import ContractStore
from headwater.dialects import Column, Table
from headwater.doctor import Enabling, Probe, postgres_server, postgres_table, postgres_wal
from headwater.doctor.choice import unindexed_cursors
from headwater.doctor.cursors import cursor_probes
from headwater.doctor.postgres_publication import publish_sql
from headwater.doctor.postgres_table import LogView, Needs, Relation, sql_name
from headwater.drivers.postgres import connect, execute, quoted
from headwater.errors import HeadwaterError, SourceError
from headwater.mapping.fields import columns_identifying, columns_needed, columns_whole
from headwater.model import TableId
from headwater.protocols import Capture
from headwater.sources.log_postgres.names import Names
from headwater.sources.log_postgres.tables import check, describe
from headwater.sources.trigger_postgres.names import SCHEMA

if TYPE_CHECKING:
    pass

EPOCH = "'1970-01-01 00:00:00+00'"


class PostgresExamination:
    def __init__(self, config: Config, source: str) -> None:
        self._config = config
        self._names = Names(config.name, source)
        self._url = config.sources[source].url.get_secret_value()
        self._streams = {name: stream for name, stream in config.streams.items() if stream.source == source}
        self._relations: dict[TableId, Relation | None] = {}
        self._connection = connect(self._url, application="headwater doctor")
        with contextlib.ExitStack() as undo:
            undo.callback(self._connection.close)
            execute(self._connection, "SET default_transaction_read_only = on")
            self._growth = postgres_wal.Growth(self._connection)
            self.server = postgres_server.look(self._connection)
            undo.pop_all()

    def close(self) -> None:
        self._connection.close()

    # the whole server

    def source_probes(self) -> list[Probe]:
        wanted = any(stream.pattern == "log" for stream in self._streams.values())
        there = {slot.name for slot in postgres_wal.slots(self._connection)}
        ours = {self._names.slot: f"{self._names.source}/log"}
        probes = list(postgres_server.ServerProbes(self.server, wanted, self._names.slot in there).probes())
        probes += [self._reached, postgres_server.pooler_probe(self._connection, self.server)]
        probes += postgres_server.commit_probes(self._connection, self.server)
        probes += postgres_wal.wal_probes(self._connection, self.server, self._growth, ours)
        return probes

    @cached_property
    def _reached(self) -> Probe:
        return postgres_server.replication_probe(self._url, self.server)

    # the patterns

    def log(self, table: Table) -> Enabling:
        relation = self._relation(table.id)
        if relation is None:
            return Enabling("it is gone")
        if found := postgres_server.hindrances(self.server, self._reached):
            return Enabling("; ".join(text for text, _ in found), tuple(fix for _, fix in found if fix))
        view = LogView(table.id, relation, self.server.role)
        return view.hindrance() or self._publication(table.id, relation)

    def _publication(self, table: TableId, relation: Relation) -> Enabling:
        """A table is published by its owner; our role is none where privileges are kept least."""
        publications = [self._names.publication, self._names.inserts]
        rows = execute(
            self._connection,
            "SELECT 1 FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = %s"
            " WHERE p.pubname = ANY (%s) AND (p.puballtables OR r.oid IS NOT NULL)",
            (relation.oid, publications),
        )
        if rows or self.server.superuser or (relation.owned and self.server.may_create):
            return Enabling()
        text = f"{self.server.role} may not publish it; its owner {relation.owner} can, once and for all"
        return Enabling(text, publish_sql(self._connection, self._names, [table]))

    def trigger(self, table: Table) -> Enabling:
        relation = self._relation(table.id)
        if relation is None:
            return Enabling("it is gone")
        if relation.kind not in ("r", "p"):
            return Enabling("only a table has triggers that see every change of its rows")
        if self.server.standby:
            return Enabling("the server is a standby: triggers are made on the primary")
        if relation.owned and (self.server.may_create or self._has_place):
            return Enabling()
        why = f"{self.server.role} may not make what triggers need: a schema of ours, and triggers as {relation.owner}"
        return Enabling(why, ("-- `headwater grants --pattern trigger` prints the SQL",))

    @cached_property
    def _has_place(self) -> bool:
        """Of the change table."""
        may = "has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')"
        return bool(execute(self._connection, f"SELECT 1 FROM pg_namespace WHERE nspname = %s AND {may}", (SCHEMA,)))

    def query(self, table: Table) -> Enabling:
        relation = self._relation(table.id)
        if relation is None or (relation.may_use_schema and relation.may_select_some):
            return Enabling()
        return Enabling(f"{self.server.role} may not read it", tuple(relation.grants(table.id, self.server.role)))

    def timestamp(self, table: Table) -> Enabling:
        candidates = unindexed_cursors(table)
        if table.is_view:
            return Enabling("a view cannot be indexed; its tables can")
        if not candidates:
            name = sql_name(table.id)
            sql = (
                f"ALTER TABLE {name} ADD COLUMN updated_at timestamptz NOT NULL DEFAULT {EPOCH};",
                _index(table, "updated_at"),
                "-- and the application, or a trigger, has to set it whenever it writes a row",
            )
            return Enabling("no column says when a row changed", sql)
        return _repair(table, candidates[0])

    # one table

    def probes(self, table: Table, streams: dict[str, StreamConfig]) -> list[Probe]:
        relation = self._relation(table.id)
        if relation is None:
            return [Probe("table", "problem", "it is gone")]
        logged = {name: stream for name, stream in streams.items() if stream.pattern == "log"}
        needs = {name: self._needs(name, stream, table) for name, stream in logged.items()}
        found = list(LogView(table.id, relation, self.server.role).probes(needs))
        for name, stream in logged.items():
            found += self._log_probes(name, stream, table, needs[name])
        for stream in streams.values():
            if stream.cursor is not None:
                found += cursor_probes(table, stream.cursor, _index, self._null_probe)
        return found

    def _log_probes(self, name: str, stream: StreamConfig, table: Table, needs: Needs) -> list[Probe]:
        """What the capture itself would refuse at its start, but for what other probes have said."""
        relation = self._relation(table.id)
        if relation is None or (relation.unidentified and needs.kind == "fact"):
            return []
        capture = Capture(
            *(name, table.id, needs.columns, stream.key or table.key, stream),
            kind=needs.kind,
            identifying=needs.identifying,
        )
        refused = check(capture, describe(self._connection, [table.id]))
        if refused is not None:
            return [Probe("log", "problem", f"{name}: {refused.message}", refused.hint)]
        enabling = self._publication(table.id, relation)
        if enabling.why_not:
            return [Probe("publication", "problem", f"{name}: {enabling.why_not}", "\n".join(enabling.sql))]
        return [Probe("log", "good", f"{name}: its changes can be told from the log")]

    def _needs(self, name: str, stream: StreamConfig, table: Table) -> Needs:
        columns = [column.name for column in table.columns]
        try:
            contract = ContractStore(self._config.contracts_directory).current(name)
            return Needs(
                contract.kind,
                columns_needed(stream, contract, columns, stream.key or table.key),
                columns_whole(stream, contract, columns),
                columns_identifying(stream, contract, columns),
            )
        except HeadwaterError:  # `headwater check` says what is wrong with a contract or a mapping
            return Needs()

    def _relation(self, table: TableId) -> Relation | None:
        if table not in self._relations:
            self._relations[table] = postgres_table.look(self._connection, table)
        return self._relations[table]

    def _null_probe(self, table: Table, cursor: str) -> Probe:
        name, at = sql_name(table.id), quoted(cursor)
        fix = f"UPDATE {name} SET {at} = {EPOCH} WHERE {at} IS NULL;"
        try:
            ((nulls,),) = execute(self._connection, f"SELECT EXISTS (SELECT 1 FROM {name} WHERE {at} IS NULL)")
        except SourceError as error:
            return Probe("cursor", "warning", f"whether {cursor} is ever NULL cannot be seen: {error.message}")
        if nulls:
            return Probe("cursor", "problem", f"{cursor} is NULL in some rows, which a poll never sees", fix)
        return Probe("cursor", "warning", f"{cursor} may become NULL", f"ALTER TABLE {name} ALTER {at} SET NOT NULL;")


def _repair(table: Table, column: Column) -> Enabling:
    name, at = sql_name(table.id), quoted(column.name)
    sql, reasons = [], []
    if column.nullable:
        reasons.append("may be NULL, and such rows would never be seen")
        sql += [
            f"UPDATE {name} SET {at} = {EPOCH} WHERE {at} IS NULL;",
            f"ALTER TABLE {name} ALTER {at} SET NOT NULL;",
        ]
    if not any(index[:1] == (column.name,) for index in (*table.indexes, *table.unique)):
        reasons.append("has no index, so that each poll would read the whole table")
        sql.append(_index(table, column.name))
    return Enabling(f"{column.name} " + ", and ".join(reasons), tuple(sql))


def _index(table: Table, column: str) -> str:
    return f"CREATE INDEX CONCURRENTLY ON {sql_name(table.id)} ({quoted(column)});"
