"""`headwater grants`: the least that a role needs for what a configuration captures, as SQL, and what of it is missing.

It is for somebody else to read and run: a superuser makes the role, the tables' owner the rest. Nothing is changed. The
publication is made by the tables' owner, so that the role needs neither ownership nor the right to create anything.

What is asked for is the whole table, not single columns: who may decode the log sees every column of what is published
anyway, and a contract that grows a field should not need a database administrator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headwater import plugins
from headwater.config import Config, Pattern, StreamConfig
from headwater.contracts.store import ContractStore
from headwater.contracts.validation import nearest
from headwater.dialects import Dialect, named
from headwater.doctor import postgres_table
from headwater.doctor.postgres_publication import publication_sql
from headwater.drivers.postgres import connect, execute, quoted, understood
from headwater.errors import ConfigError
from headwater.model import TableId
from headwater.sources.log_postgres.names import Names
from headwater.sources.log_postgres.publication import EVERYTHING, INSERTS
from headwater.sources.log_postgres.tables import Described, describe
from headwater.sources.trigger_postgres.names import SCHEMA

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True, slots=True)
class Grant:
    """One statement, and whether the role has what it gives already. `why`: what the role cannot do without it."""

    sql: str
    why: str
    held: bool


@dataclass(frozen=True, slots=True)
class SourceGrants:
    source: str
    role: str
    database: str
    grants: tuple[Grant, ...]

    @property
    def missing(self) -> tuple[Grant, ...]:
        return tuple(grant for grant in self.grants if not grant.held)


def grants(
    config: Config, *, source: str | None = None, role: str | None = None, patterns: Iterable[Pattern] = ()
) -> list[SourceGrants]:
    """For each PostgreSQL source, or one. `role`: the address's own unless told. `patterns`: as if streams used these.

    Looks at the catalogue only, by the address of the configuration: any role that may connect can ask for any other.
    """
    names = [name for name, settings in config.sources.items() if settings.scheme == "postgresql"]
    if source is not None and source not in config.sources:
        near = nearest(source, list(config.sources))
        hint = f"did you mean `{near}`?" if near else f"sources are {', '.join(config.sources)}"
        raise ConfigError(f"there is no source `{source}`", hint=hint)
    if source is not None and source not in names:
        raise ConfigError(f"source `{source}` is no PostgreSQL: there is nothing to grant")
    wanted = tuple(patterns)
    return [_of_source(config, name, role, wanted) for name in ([source] if source is not None else names)]


def _of_source(config: Config, source: str, role: str | None, patterns: Sequence[Pattern]) -> SourceGrants:
    settings = config.sources[source]
    url = settings.url.get_secret_value()
    with contextlib.ExitStack() as opened:
        factory = plugins.dialect_factory(settings.scheme)
        dialect: Dialect = opened.enter_context(
            contextlib.closing(factory(config=settings, directory=str(config.directory)))
        )
        connection = opened.enter_context(connect(url, application="headwater grants"))
        ((user, database),) = execute(connection, "SELECT current_user::text, current_database()::text")
        known = dialect.tables()
        streams = {name: stream for name, stream in config.streams.items() if stream.source == source}
        tables = {name: named(known, stream.table) for name, stream in streams.items() if stream.table}
        asking = _Asking(connection, role or str(understood(url).get("user") or user), database)
        found = tuple(asking.of(config, source, streams, tables, patterns))
    return SourceGrants(source, asking.role, database, found)


@dataclass(frozen=True, slots=True)
class _Asking:
    connection: psycopg.Connection
    role: str
    database: str

    def of(
        self,
        config: Config,
        source: str,
        streams: dict[str, StreamConfig],
        tables: dict[str, TableId],
        patterns: Sequence[Pattern],
    ) -> Iterator[Grant]:
        by_pattern: dict[str, set[str]] = {}
        for name, stream in streams.items():
            for pattern in patterns or (stream.pattern,):
                by_pattern.setdefault(pattern, set()).add(name)
        logged = sorted({tables[name] for name in by_pattern.get("log", ()) if name in tables})
        yield self._role(replication=bool(logged))
        yield self._connect()
        described = describe(self.connection, tables.values())
        triggered = {tables[name] for name in by_pattern.get("trigger", ()) if name in tables}
        if triggered:
            yield self._schema()
            yield from self._owners([found for table, found in described.items() if table in triggered])
        yield from self._reading({table: found for table, found in described.items() if table not in triggered})
        if logged:
            facts = {tables[name] for name in by_pattern["log"] if name in tables and _kind(config, name) == "fact"}
            chosen = [described[table] for table in logged if table in described]
            mute = [found for found in chosen if found.id in facts and not found.told]
            yield from self._identities([found for found in mute if found.lasts])
            told = [found for found in chosen if found.told or found.id in facts]
            mute = [found for found in chosen if found not in told]
            names = Names(config.name, source)
            yield from self._publication(names.publication, told, EVERYTHING)
            yield from self._publication(names.inserts, mute, INSERTS)

    def _role(self, *, replication: bool) -> Grant:
        role, why = quoted(self.role), "there is nobody to connect as"
        if replication:
            why = "no replication slot can be made or read"
        there = self._true("EXISTS (SELECT 1 FROM pg_roles WHERE rolname = %s)", self.role)
        rds = self._true("EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication')")
        held = there and (not replication or self._may_replicate(rds))
        if rds and replication:
            made = "" if there else f"CREATE ROLE {role} LOGIN;  -- and a password: \\password {role}\n"
            return Grant(f"{made}GRANT rds_replication TO {role};", why, held)
        option = " REPLICATION" if replication else ""
        if there:
            return Grant(f"ALTER ROLE {role} LOGIN{option};", why, held)
        return Grant(f"CREATE ROLE {role} LOGIN{option};  -- and a password: \\password {role}", why, held)

    def _may_replicate(self, rds: bool) -> bool:
        member = " OR pg_has_role(rolname, 'rds_replication', 'USAGE')" if rds else ""
        return self._true(
            f"EXISTS (SELECT 1 FROM pg_roles WHERE rolname = %s AND (rolreplication OR rolsuper{member}))", self.role
        )

    def _connect(self) -> Grant:
        sql = f"GRANT CONNECT ON DATABASE {quoted(self.database)} TO {quoted(self.role)};"
        held = self._held("has_database_privilege(%s, current_database(), 'CONNECT')", self.role)
        return Grant(sql, "it cannot connect", held)

    def _reading(self, described: dict[TableId, Described]) -> Iterator[Grant]:
        role = quoted(self.role)
        for schema in sorted({table.schema for table in described}):
            held = self._held("has_schema_privilege(%s, %s, 'USAGE')", self.role, schema)
            why = f"no table of schema {schema} can be read"
            yield Grant(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {role};", why, held)
        for table, found in sorted(described.items()):
            held = self._held("has_table_privilege(%s, %s::oid, 'SELECT')", self.role, found.oid)
            yield Grant(f"GRANT SELECT ON {found.sql} TO {role};", f"the rows of {table} cannot be read", held)
        if hidden := self._row_security(described.values()):
            why = f"row-level security hides rows of {', '.join(hidden)}"
            yield Grant(f"ALTER ROLE {role} BYPASSRLS;", why, False)

    def _row_security(self, described: Iterable[Described]) -> list[str]:
        """The tables whose rows are hidden from the role: it is neither exempt, nor their owner."""
        rows = execute(
            self.connection,
            "SELECT c.oid::regclass::text FROM pg_class c WHERE c.oid = ANY (%s::oid[]) AND c.relrowsecurity"
            " AND NOT EXISTS (SELECT 1 FROM pg_roles r WHERE r.rolname = %s AND (r.rolbypassrls OR r.rolsuper"
            " OR (NOT c.relforcerowsecurity AND pg_has_role(r.oid, c.relowner, 'USAGE')))) ORDER BY 1",
            ([found.oid for found in described], self.role),
        )
        return [name for (name,) in rows]

    def _schema(self) -> Grant:
        """Of the change table and the triggers' functions."""
        schema, role = quoted(SCHEMA), quoted(self.role)
        why = "there is no place for the change table"
        if self._true("EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = %s)", SCHEMA):
            both = "has_schema_privilege(%s, %s, 'USAGE') AND has_schema_privilege(%s, %s, 'CREATE')"
            held = self._held(both, self.role, SCHEMA, self.role, SCHEMA)
            return Grant(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};", why, held)
        held = self._held("has_database_privilege(%s, current_database(), 'CREATE')", self.role)
        return Grant(f"CREATE SCHEMA {schema} AUTHORIZATION {role};", why, held)

    def _owners(self, described: Sequence[Described]) -> Iterator[Grant]:
        """Only a table's owner may make its triggers fire always, and take them away again."""
        rows = execute(
            self.connection,
            "SELECT r.rolname::text, r.rolsuper, array_agg(c.oid::regclass::text ORDER BY c.relname) FROM pg_class c"
            " JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = ANY (%s::oid[]) GROUP BY 1, 2 ORDER BY 1",
            ([found.oid for found in described],),
        )
        for owner, superuser, tables in rows:
            why = f"no triggers can be made on {', '.join(tables)}"
            held = self._held("pg_has_role(%s, %s, 'USAGE')", self.role, owner)
            sql = f"GRANT {quoted(owner)} TO {quoted(self.role)};"
            if superuser and not held:
                sql = f"-- not `{sql}`, for it is a superuser: give the tables to another role first, and grant that"
            yield Grant(sql, why, held)

    def _identities(self, mute: Sequence[Described]) -> Iterator[Grant]:
        """Without them, publishing would make the application's own updates and deletes fail (F85): they come first."""
        for found in mute:
            relation = postgres_table.look(self.connection, found.id)
            for leaf in relation.unidentified if relation is not None else ():
                yield Grant(leaf.fix(), f"the log cannot say which row of {found.id} was changed or deleted", False)

    def _publication(self, name: str, tables: Sequence[Described], publish: frozenset[str]) -> Iterator[Grant]:
        if not tables:
            return
        missing = self._unpublished(name, tables)
        there = bool(missing) and self._true("EXISTS (SELECT 1 FROM pg_publication WHERE pubname = %s)", name)
        sql = publication_sql(name, missing or tables, publish, there=there)
        why = "the log shows nothing of " + ", ".join(str(found.id) for found in missing or tables)
        yield Grant(sql, why, not missing or self._may_publish(tables))

    def _unpublished(self, name: str, tables: Sequence[Described]) -> list[Described]:
        rows = execute(
            self.connection,
            "SELECT r.prrelid::bigint FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid"
            " WHERE p.pubname = %s",
            (name,),
        )
        published = {oid for (oid,) in rows}
        return [found for found in tables if found.oid not in published]

    def _may_publish(self, tables: Sequence[Described]) -> bool:
        """Who owns the tables and may create in the database makes the publication when capture starts."""
        if not self._held("has_database_privilege(%s, current_database(), 'CREATE')", self.role):
            return False
        return self._true(
            "(SELECT bool_and(pg_has_role(%s, relowner, 'USAGE')) FROM pg_class WHERE oid = ANY (%s::oid[]))",
            self.role,
            [found.oid for found in tables],
        )

    def _held(self, condition: str, role: str, *more: object) -> bool:
        """A privilege of a role that may not exist, which has none."""
        there = self._true("EXISTS (SELECT 1 FROM pg_roles WHERE rolname = %s)", role)
        return there and self._true(condition, role, *more)

    def _true(self, condition: str, *parameters: object) -> bool:
        ((found,),) = execute(self.connection, f"SELECT {condition}", parameters or None)
        return bool(found)


def _kind(config: Config, stream: str) -> str:
    """Of its contract; one that cannot be read is `headwater check`'s to complain of."""
    try:
        return ContractStore(config.contracts_directory).current(stream).kind
    except ConfigError:
        return "fact"
