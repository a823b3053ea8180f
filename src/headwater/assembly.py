"""From configuration to parts: the only place that knows which adapter, contract and mapping make up a stream.

Nothing is opened before it is asked for. Commands that only look open the bus without the appender's lock.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import pyarrow as pa

from headwater import loads, plugins
from headwater.config import Config, SinkConfig, SourceConfig, StreamConfig
from headwater.contracts.model import Contract
from headwater.contracts.store import ContractStore
from headwater.dialects import Dialect, named
from headwater.errors import ConfigError, ContractError, MappingError
from headwater.guarantees import effective, refuse_broken_promises, refuse_broken_retention
from headwater.mapping.stream import (
    Mapping,
    MappingPlan,
    StreamMapping,
    Unmappable,
    columns_identifying,
    columns_needed,
    columns_whole,
    fingerprint,
)
from headwater.model import Mapped, Note, Reload, TableId
from headwater.protocols import Bus, Capture, Declaration, Guarantee, Load, Sink, Source
from headwater.router import Route, Router


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One stream, worked out: what is read from where, and what becomes of it."""

    stream: str
    capture: str
    config: StreamConfig
    contract: Contract
    table: TableId
    columns: pa.Schema
    key: tuple[str, ...]
    trouble: MappingError | None = None
    """Why it cannot be mapped as its table is now, though it could before: then it stands still."""


class _Looking:
    """Each source over one connection, and its tables asked for once; of one thread, until `close`."""

    def __init__(self, connect: Callable[[str], Dialect]) -> None:
        self._connect = connect
        self._dialects: dict[str, Dialect] = {}
        self._tables: dict[str, list[TableId]] = {}

    def dialect(self, source: str) -> Dialect:
        if source not in self._dialects:
            self._dialects[source] = self._connect(source)
        return self._dialects[source]

    def tables(self, source: str) -> list[TableId]:
        if source not in self._tables:
            self._tables[source] = self.dialect(source).tables()
        return self._tables[source]

    def close(self) -> None:
        for dialect in self._dialects.values():
            dialect.close()


class Assembly:
    """A context manager; what it opened, it closes. `append`: whether this process is to be the one that appends."""

    def __init__(self, config: Config, *, append: bool = False) -> None:
        self.config = config
        self.append = append
        self.contracts = ContractStore(config.contracts_directory)
        self._contracts: dict[str, Contract] = {}
        self._plans: dict[str, Plan] = {}
        self._declarations: dict[str, Declaration] = {}
        self._looking: _Looking | None = None

    def __enter__(self) -> Assembly:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if "bus" in self.__dict__:
            self.bus.close()
            del self.__dict__["bus"]

    # what the configuration says

    @property
    def home(self) -> Path | None:
        """The directory of an embedded bus; figures, requests and spill files lie there."""
        scheme, _, path = self.config.bus.url.partition(":")
        return self.config.path(path) if scheme == "embedded" else None

    def contract(self, stream: str) -> Contract:
        """The newest accepted version, or the working copy of a stream that has none; as first asked for."""
        if stream not in self._contracts:
            self._contracts[stream] = self.contracts.current(stream)
        return self._contracts[stream]

    def capture_of(self, stream: str) -> str:
        config = self._stream_config(stream)
        base = f"{config.source}/{config.pattern}"
        return f"{base}/{stream}" if config.pattern == "query" else base

    def capture_streams(self) -> dict[str, tuple[str, ...]]:
        """Captures by name, each with the streams that it feeds."""
        found: dict[str, list[str]] = {}
        for stream in self.config.streams:
            found.setdefault(self.capture_of(stream), []).append(stream)
        return {name: tuple(streams) for name, streams in found.items()}

    def streams_of(self, sink: str) -> list[str]:
        patterns = self._sink_config(sink).streams
        return [name for name in self.config.streams if any(fnmatch.fnmatchcase(name, p) for p in patterns)]

    def sink_streams(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(self.streams_of(name)) for name in self.config.sinks}

    def guarantee(self, stream: str) -> Guarantee:
        """What the path from the source into the bus gives."""
        plan = self.plan(stream)
        scheme = self._source_config(plan.config.source).scheme
        describe = plugins.source_guarantee(scheme, plan.config.pattern)
        return effective(describe(plan.config, keyed=bool(plan.key), key=plan.key))

    def check_accepted(self) -> None:
        """Raises `ContractError` for the first accepted version that was edited or deleted: readers rely on it."""
        for stream in self.config.streams:
            for tampered in self.contracts.tampered(stream):
                if tampered.found != "unrecorded":
                    raise ContractError(
                        str(tampered),
                        hint="restore the file from version control; to change a contract, accept a new version",
                    )

    def check_promises(self) -> None:
        """Raises `PromiseError` for the first contract that promises more than its path can give."""
        with self._look():
            for stream in self.config.streams:
                refuse_broken_retention(self.contract(stream), self.config.streams[stream])
                refuse_broken_promises(self.contract(stream), self.guarantee(stream))

    # parts

    @cached_property
    def bus(self) -> Bus:
        factory = plugins.bus_factory(self.config.bus.url)
        return factory(
            config=self.config.bus,
            pipeline=self.config.name,
            directory=str(self.config.directory),
            append=self.append,
        )

    def dialect(self, source: str) -> Dialect:
        """A connection for inspection, of the calling thread."""
        config = self._source_config(source)
        factory = plugins.dialect_factory(config.scheme)
        dialect: Dialect = factory(config=config, directory=str(self.config.directory))
        return dialect

    def plan(self, stream: str) -> Plan:
        if stream not in self._plans:
            self._plans[stream] = self._planned(stream)
        return self._plans[stream]

    def mapping(self, stream: str) -> Mapping:
        return self._mapping(self.plan(stream))

    def route(self, stream: str) -> Route:
        plan = self.plan(stream)
        strict = plan.contract.kind == "event" and plan.config.order == "strict"
        return Route(stream, plan.table, self._mapping(plan), plan.contract, strict)

    def router(self, capture: str) -> Router:
        """A mapping of its own for the thread that asks."""
        routes = [self.route(stream) for stream in self.capture_streams()[capture]]
        return Router(self.bus, routes, self._spill)

    def captures(self) -> dict[str, tuple[Capture, ...]]:
        """What each capture is to read, by name."""
        return {
            name: tuple(self._capture(stream, self._decide(stream).load) for stream in streams)
            for name, streams in self.capture_streams().items()
        }

    def source(self, capture: str) -> Source:
        streams = self.capture_streams()[capture]
        decisions = {stream: self._decide(stream) for stream in streams}
        config = self._source_config(self._stream_config(streams[0]).source)
        factory = plugins.source_factory(config.scheme, self._stream_config(streams[0]).pattern)
        return factory(
            name=capture,
            pipeline=self.config.name,
            config=config,
            captures=tuple(self._capture(stream, decisions[stream].load) for stream in streams),
            epoch=max(decision.epoch for decision in decisions.values()),
            config_dir=str(self.config.directory),
        )

    def sink(self, name: str) -> Sink:
        config = self._sink_config(name)
        factory = plugins.sink_factory(config.scheme)
        return factory(name=name, pipeline=self.config.name, config=config, directory=str(self.config.directory))

    # the appender's start

    def declare(self) -> None:
        """Tell the bus what this configuration says of its streams, and settle which rows each begins with."""
        notes = loads.away(self.bus, set(self.config.streams))
        for stream in self.config.streams:
            notes += self._decide(stream).notes
        if notes:
            self.bus.settle(Mapped(notes=tuple(notes)))
        self.bus.declare([self._declaration(stream) for stream in self.config.streams])

    def backfill(self, stream: str, where: str | None) -> Note:
        """What asks the stream's capture for its rows once more, to be noted on the bus.

        Under triggers and queries it takes the place of a load that is not finished, so it is refused (`MappingError`)
        where the complete reading that it asks for could not be taken.
        """
        config, capture = self._stream_config(stream), self.capture_of(stream)
        state = self.bus.streams().get(stream)
        if state is None or state.source != capture:
            before = "nothing has captured it yet" if state is None else f"it was captured by {state.source} so far"
            raise ConfigError(
                f"stream {stream}: {capture} is to capture it, and {before}: no rows can be asked for once more",
                hint="its rows are read when `headwater run` first captures it; ask again then",
            )
        if config.pattern == "log":
            return loads.backfill(self.bus, stream, where)
        if where is not None:
            raise ConfigError(
                f"stream {stream}: rows can be chosen (`--where`) where the log is captured, not by `{config.pattern}`",
                hint="without `--where` all rows are read again",
            )
        from headwater.difference import check_comparable

        check_comparable(self.contract(stream), state)
        return loads.reading_owed(self.bus, stream, Reload.REBUILD)

    def begin_anew(self, capture: str) -> None:
        """Forget where a capture stands; at its next start every stream of it is compared with its rows."""
        notes: list[Note] = []
        known = self.bus.streams()
        for stream in self.capture_streams()[capture]:
            if stream in known:
                notes += loads.repair(self.bus, self._declaration(stream))
        if notes:
            self.bus.settle(Mapped(notes=tuple(notes)))
        self.bus.forget(capture)

    def _decide(self, stream: str) -> loads.Decision:
        return loads.decide(self.bus, self._declaration(stream), self.config.streams[stream])

    def _declaration(self, stream: str) -> Declaration:
        if stream not in self._declarations:
            self._declarations[stream] = self._declared(stream)
        return self._declarations[stream]

    def _declared(self, stream: str) -> Declaration:
        plan, contract = self.plan(stream), self.contract(stream)
        sinks = {name for name in self.config.sinks if stream in self.streams_of(name)}
        consumers = {consumer.name for consumer in contract.consumers}
        return Declaration(
            contract, self.capture_of(stream), fingerprint(plan.config, contract), frozenset(sinks | consumers)
        )

    # one stream, worked out

    def _planned(self, stream: str) -> Plan:
        config, contract = self._stream_config(stream), self.contract(stream)
        table, columns, key = self._rows_of(stream, config)
        made = Plan(stream, self.capture_of(stream), config, contract, table, columns, key)
        try:
            names = columns_needed(config, contract, columns.names, key)
            plan = dataclasses.replace(made, columns=pa.schema([columns.field(name) for name in names]))
            if self.append:  # what only looks finds out when it maps, if it does
                self._mapped(plan).close()
        except MappingError as error:
            if not self._went_on_before(plan=made):
                raise
            plan = dataclasses.replace(made, trouble=error)
        return plan

    def _went_on_before(self, plan: Plan) -> bool:
        """Whether this very mapping has been at work: then it is the table that changed, and not the configuration."""
        known = self.bus.streams().get(plan.stream) if self.append else None
        return known is not None and known.fingerprint == fingerprint(plan.config, plan.contract)

    def _mapping(self, plan: Plan) -> Mapping:
        """Made anew for each thread that maps: expressions run on a connection of their own."""
        if plan.trouble is not None:
            return Unmappable(plan.stream, fingerprint(plan.config, plan.contract), plan.trouble)
        return self._mapped(plan)

    def _mapped(self, plan: Plan) -> StreamMapping:
        return StreamMapping(
            MappingPlan(
                stream=plan.stream,
                config=plan.config,
                contract=plan.contract,
                columns=plan.columns,
                key=plan.key,
                pipeline=self.config.name,
                source=plan.capture,
            )
        )

    def _rows_of(self, stream: str, config: StreamConfig) -> tuple[TableId, pa.Schema, tuple[str, ...]]:
        with self._look() as looking:
            dialect = looking.dialect(config.source)
            if config.query is not None:
                return TableId("", stream), dialect.describe(config.query), config.key
            table = dialect.table(named(looking.tables(config.source), config.table or ""))
            return table.id, table.schema(), config.key or table.key

    @contextmanager
    def _look(self) -> Iterator[_Looking]:
        """At the sources; within another such block, over its connections."""
        if self._looking is not None:
            yield self._looking
            return
        self._looking = looking = _Looking(self.dialect)
        try:
            yield looking
        finally:
            self._looking = None
            looking.close()

    def _capture(self, stream: str, load: Load) -> Capture:
        plan = self.plan(stream)
        names = plan.columns.names
        known = plan.trouble is None
        return Capture(
            stream,
            plan.table,
            tuple(names),
            plan.key,
            plan.config,
            load,
            kind=plan.contract.kind,
            whole=columns_whole(plan.config, plan.contract, names) if known else (),
            identifying=columns_identifying(plan.config, plan.contract, names) if known else (),
        )

    @property
    def _spill(self) -> Path:
        return self.home or Path(tempfile.gettempdir())

    def _stream_config(self, stream: str) -> StreamConfig:
        return _named("stream", stream, self.config.streams)

    def _sink_config(self, name: str) -> SinkConfig:
        return _named("sink", name, self.config.sinks)

    def _source_config(self, name: str) -> SourceConfig:
        return _named("source", name, self.config.sources)


T = TypeVar("T")


def _named(kind: str, name: str, known: dict[str, T]) -> T:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean `{near[0]}`?" if near else f"configured are {', '.join(known) or 'none'}"
    raise ConfigError(f"there is no {kind} `{name}`", hint=hint)
