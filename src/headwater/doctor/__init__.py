"""`headwater doctor`: per table, which patterns are possible, what each would miss, and the SQL that enables others.

What it says rests on the database itself, looked at read-only; it changes nothing. Reports are plain values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from headwater import plugins
from headwater.config import Config, StreamConfig
from headwater.contracts.validation import nearest
from headwater.dialects import Dialect, Table, named
from headwater.doctor.choice import cursor_of, row_key
from headwater.doctor.sights import SIGHTS, Way
from headwater.errors import ConfigError, HeadwaterError

__all__ = ["Enabling", "Examination", "PatternReport", "Probe", "TableReport", "doctor", "examine"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that was looked at. `fix`: the SQL or command that helps, "" when none is needed."""

    name: str
    state: Literal["good", "warning", "problem"]
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class PatternReport:
    """`chosen`: a stream of this configuration captures the table this way."""

    way: Way
    possible: bool
    chosen: bool
    why_not: str
    misses: tuple[str, ...]
    enable: tuple[str, ...]
    """SQL that would make it possible, to be read and run by the database's owner."""


@dataclass(frozen=True, slots=True)
class TableReport:
    source: str
    table: str
    rows: int | None
    streams: tuple[str, ...]
    patterns: tuple[PatternReport, ...]
    probes: tuple[Probe, ...]

    @property
    def healthy(self) -> bool:
        return all(probe.state != "problem" for probe in self.probes)


@dataclass(frozen=True, slots=True)
class Enabling:
    """Why a pattern is not possible for a table, and the SQL that changes that; no reason when it is possible."""

    why_not: str = ""
    sql: tuple[str, ...] = ()


class Examination(Protocol):
    """What is particular to one kind of database.

    `source_probes`: what concerns all of its tables alike. `query`: whether the rows can be read at all.
    """

    def source_probes(self) -> list[Probe]: ...
    def probes(self, table: Table, streams: dict[str, StreamConfig]) -> list[Probe]: ...
    def trigger(self, table: Table) -> Enabling: ...
    def query(self, table: Table) -> Enabling: ...
    def log(self, table: Table) -> Enabling: ...
    def timestamp(self, table: Table) -> Enabling: ...
    def close(self) -> None: ...


def _sqlite(config: Config, source: str) -> Examination:
    from headwater.doctor.sqlite import SqliteExamination

    return SqliteExamination(config, source)


def _postgres(config: Config, source: str) -> Examination:
    from headwater.doctor.postgres import PostgresExamination

    return PostgresExamination(config, source)


_EXAMINATIONS: dict[str, Callable[[Config, str], Examination]] = {"sqlite": _sqlite, "postgresql": _postgres}


def doctor(config: Config, *, source: str | None = None) -> list[TableReport]:
    """A report for each table of each source (or of one), those that streams use first.

    Before them, with "" as its table, what concerns the whole source: the server, or why it cannot be looked at.
    """
    if source is not None and source not in config.sources:
        near = nearest(source, list(config.sources))
        hint = f"did you mean `{near}`?" if near else f"sources are {', '.join(config.sources)}"
        raise ConfigError(f"there is no source `{source}`", hint=hint)
    reports = []
    for name in [source] if source is not None else config.sources:
        reports += list(_source(config, name))
    return sorted(reports, key=lambda report: (report.source, bool(report.table), not report.streams, report.table))


def examine(config: Config, source: str) -> Examination | None:
    """Opened; the caller closes it. None for a kind of database of which nothing particular is known."""
    made = _EXAMINATIONS.get(config.sources[source].scheme)
    return made(config, source) if made is not None else None


def _source(config: Config, source: str) -> Iterator[TableReport]:
    settings = config.sources[source]
    with contextlib.ExitStack() as opened:
        try:
            factory = plugins.dialect_factory(settings.scheme)
            dialect: Dialect = opened.enter_context(
                contextlib.closing(factory(config=settings, directory=str(config.directory)))
            )
            examination = examine(config, source)
            if examination is not None:
                opened.enter_context(contextlib.closing(examination))
            tables = [dialect.table(table) for table in dialect.tables()]
            about = examination.source_probes() if examination is not None else []
        except HeadwaterError as error:
            yield _trouble(source, "", error)
            return
        if about:
            yield TableReport(source, "", None, (), (), tuple(about))
        for table in tables:
            try:
                yield _table(config, source, table, _streams_of(config, source, table, tables), examination)
            except HeadwaterError as error:
                yield _trouble(source, str(table.id), error)


def _trouble(source: str, table: str, error: HeadwaterError) -> TableReport:
    return TableReport(source, table, None, (), (), (Probe("source", "problem", error.message, error.hint),))


def _streams_of(config: Config, source: str, table: Table, tables: Sequence[Table]) -> dict[str, StreamConfig]:
    known = [other.id for other in tables]
    streams = {name: stream for name, stream in config.streams.items() if stream.source == source and stream.table}
    return {name: stream for name, stream in streams.items() if named(known, stream.table or "") == table.id}


def _table(
    config: Config, source: str, table: Table, streams: dict[str, StreamConfig], examination: Examination | None
) -> TableReport:
    chosen = {_way(stream, table) for stream in streams.values()}
    scheme = config.sources[source].scheme
    patterns = tuple(_pattern(way, table, scheme, examination, chosen) for way in SIGHTS)
    probes = [_key_probe(table, streams)]
    probes += examination.probes(table, streams) if examination is not None else []
    return TableReport(source, str(table.id), table.rows, tuple(streams), patterns, tuple(probes))


def _way(stream: StreamConfig, table: Table) -> Way:
    if stream.pattern != "query":
        return stream.pattern
    if stream.cursor is None:
        return "bulk query"
    return "query by id" if row_key(table) == (stream.cursor,) else "query by timestamp"


def _pattern(way: Way, table: Table, scheme: str, examination: Examination | None, chosen: set[Way]) -> PatternReport:
    enabling = _enabling(way, table, scheme, examination)
    possible = not enabling.why_not
    return PatternReport(way, possible, way in chosen, enabling.why_not, SIGHTS[way].misses_on(scheme), enabling.sql)


def _enabling(way: Way, table: Table, scheme: str, examination: Examination | None) -> Enabling:
    pattern = "query" if way not in ("log", "trigger", "outbox") else way
    if way == "log" and examination is not None:
        return examination.log(table)
    if f"{scheme}+{pattern}" not in plugins.known("sources"):
        return Enabling(f"there is no adapter for it on {scheme}")
    if way == "trigger" and examination is not None:
        return examination.trigger(table)
    if pattern == "query" and examination is not None and (found := examination.query(table)).why_not:
        return found
    if way == "query by timestamp":
        return _timestamp(table, examination)
    if way == "query by id":
        return _by_id(table)
    return Enabling() if row_key(table) else _keyless(table)


def _keyless(table: Table) -> Enabling:
    return Enabling(f"no columns are known to identify a row of {table.id}; name them in the stream's `key`")


def _timestamp(table: Table, examination: Examination | None) -> Enabling:
    if not row_key(table):
        return _keyless(table)
    if cursor_of(table) is not None:
        return Enabling()
    return examination.timestamp(table) if examination is not None else Enabling("no column says when a row changed")


def _by_id(table: Table) -> Enabling:
    key = row_key(table)
    column = table.column(key[0]) if len(key) == 1 else None
    if column is None:
        return Enabling("it takes a key of one column")
    grows = column.contract in ("int32", "int64")
    return Enabling() if grows else Enabling(f"its key {column.name} is {column.contract}, which does not grow")


def _key_probe(table: Table, streams: dict[str, StreamConfig]) -> Probe:
    if table.key:
        return Probe("key", "good", f"rows are identified by {', '.join(table.key)}")
    if key := row_key(table):
        fix = f"key: [{', '.join(key)}]"
        return Probe("key", "warning", f"no primary key; {', '.join(key)} is unique and always set", fix)
    if streams and all(stream.key for stream in streams.values()):
        return Probe("key", "warning", "no primary key; the configured `key` is unique only if the application says so")
    state: Literal["problem", "warning"] = "problem" if streams else "warning"
    return Probe("key", state, "no primary key: nothing identifies a row", "key: [<columns>] in the stream")
