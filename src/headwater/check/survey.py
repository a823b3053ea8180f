"""What only the databases' catalogues know of the streams: their columns and keys; and what each path gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headwater import plugins
from headwater.config import Config, StreamConfig
from headwater.dialects import Dialect, Table, named
from headwater.errors import ConfigError, HeadwaterError, MissingExtra
from headwater.protocols import Guarantee


class SourceRefused(ConfigError):
    """The settings of a source are wrong, whatever its database says."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the databases say, by stream. A stream that is missing is not checked for it."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    guarantees: Mapping[str, Guarantee] = field(default_factory=dict)
    failures: Mapping[str, HeadwaterError] = field(default_factory=dict)


def look(config: Config) -> Survey:
    """Inspect the catalogues of all sources. A source that is away is a failure of its streams, not of the check.

    One that is refused is a failure of its first stream alone.
    """
    tables: dict[str, Table] = {}
    columns: dict[str, tuple[str, ...]] = {}
    guarantees: dict[str, Guarantee] = {}
    failures: dict[str, HeadwaterError] = {}
    refused: set[str] = set()
    for name, stream in config.streams.items():
        if stream.source in refused:
            continue
        try:
            table, found = _inspected(config, stream)
            columns[name] = found
            if table is not None:
                tables[name] = table
            key = stream.key or (table.key if table is not None else ())
            scheme = config.sources[stream.source].scheme
            guarantees[name] = plugins.source_guarantee(scheme, stream.pattern)(stream, keyed=bool(key), key=key)
        except HeadwaterError as error:
            failures[name] = error
            if isinstance(error, SourceRefused):
                refused.add(stream.source)
    return Survey(tables, columns, guarantees, failures)


def _inspected(config: Config, stream: StreamConfig) -> tuple[Table | None, tuple[str, ...]]:
    dialect = _dialect(config, stream.source)
    try:
        if stream.query is not None:
            return None, tuple(dialect.describe(stream.query).names)
        table = dialect.table(named(dialect.tables(), stream.table or ""))
        return table, tuple(column.name for column in table.columns)
    finally:
        dialect.close()


def _dialect(config: Config, name: str) -> Dialect:
    source = config.sources[name]
    factory = plugins.dialect_factory(source.scheme)
    try:
        found: Dialect = factory(config=source, directory=str(config.directory))
    except MissingExtra:
        raise
    except ConfigError as error:
        raise SourceRefused(error.message, hint=error.hint) from error
    return found
