"""URL scheme -> adapter: the built-in table, then the entry points `headwater.sources`, `.buses` and `.sinks`.

An adapter's module is imported when its scheme is used, never before. A factory is called with keyword arguments only;
the protocols in this module say which.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from headwater.config import BusConfig, SinkBatch, SinkConfig, SourceConfig
from headwater.errors import ConfigError
from headwater.protocols import Bus, Capture, Guarantee, Pending, Sink, Source

_SOURCES = {
    "sqlite+trigger": "headwater.sources.trigger_sqlite:open_source",
    "sqlite+query": "headwater.sources.query:open_source",
    "postgresql+log": "headwater.sources.log_postgres:open_source",
    "postgresql+trigger": "headwater.sources.trigger_postgres:open_source",
    "postgresql+query": "headwater.sources.query:open_source",
    "memory+log": "headwater.sources.memory:open_source",
}
_BUSES = {
    "embedded": "headwater.buses.embedded:open_bus",
    "memory": "headwater.buses.memory:open_bus",
}
_SINKS = {
    "duckdb": "headwater.sinks.duckdb:open_sink",
    "sqlite": "headwater.sinks.sqlite:open_sink",
    "parquet": "headwater.sinks.parquet:open_sink",
    "postgresql": "headwater.sinks.postgres:open_sink",
    "memory": "headwater.sinks.memory:open_sink",
}
_DIALECTS = {
    "sqlite": "headwater.dialects.sqlite:open_dialect",
    "postgresql": "headwater.dialects.postgres:open_dialect",
}


class SourceFactory(Protocol):
    """`name`: the capture's name, unique in the pipeline. `epoch`: the least epoch that its changes may carry."""

    def __call__(
        self,
        *,
        name: str,
        pipeline: str,
        config: SourceConfig,
        captures: Sequence[Capture],
        epoch: int,
        config_dir: str,
    ) -> Source: ...


class BusFactory(Protocol):
    """`append`: whether this process is to be the one that appends (`AppenderBusy` if another is)."""

    def __call__(self, *, config: BusConfig, pipeline: str, directory: str, append: bool) -> Bus: ...


class SinkFactory(Protocol):
    def __call__(self, *, name: str, pipeline: str, config: SinkConfig, directory: str) -> Sink: ...


def source_factory(scheme: str, pattern: str) -> SourceFactory:
    found: SourceFactory = _find("sources", _SOURCES, f"{scheme}+{pattern}")
    return found


def bus_factory(url: str) -> BusFactory:
    found: BusFactory = _find("buses", _BUSES, url.split(":", 1)[0])
    return found


def sink_factory(scheme: str) -> SinkFactory:
    found: SinkFactory = _find("sinks", _SINKS, scheme)
    return found


def sink_batch(scheme: str) -> SinkBatch:
    """How much a sink of this kind takes at a time, unless the configuration says otherwise: its module's `BATCH`."""
    module = sys.modules[sink_factory(scheme).__module__]
    batch: SinkBatch = getattr(module, "BATCH", SinkBatch())
    return batch


def source_guarantee(scheme: str, pattern: str) -> Callable[..., Guarantee]:
    """The `guarantee(config, *, keyed, key)` beside a source's factory; `key`: the columns that identify a row."""
    module = sys.modules[source_factory(scheme, pattern).__module__]
    found: Callable[..., Guarantee] = module.guarantee
    return found


def source_pending(scheme: str, pattern: str) -> Callable[..., Pending] | None:
    """The `pending(*, name, pipeline, config)` beside a source's factory, where the source keeps something for us."""
    module = sys.modules[source_factory(scheme, pattern).__module__]
    found: Callable[..., Pending] | None = getattr(module, "pending", None)
    return found


def dialect_factory(scheme: str) -> Callable[..., Any]:
    """The database's own knowledge: inspection, types, quoting. See `dialects/`."""
    found: Callable[..., Any] = _find("dialects", _DIALECTS, scheme)
    return found


def known(kind: str) -> list[str]:
    """The schemes of one kind (`sources`, `buses`, `sinks`): the conformance suites find every adapter by this."""
    table = {"sources": _SOURCES, "buses": _BUSES, "sinks": _SINKS, "dialects": _DIALECTS}[kind]
    return [*table, *(point.name for point in entry_points(group=f"headwater.{kind}"))]


def _find(kind: str, table: dict[str, str], scheme: str) -> Any:
    if scheme in table:
        module, _, name = table[scheme].partition(":")
        return getattr(importlib.import_module(module), name)
    for point in entry_points(group=f"headwater.{kind}", name=scheme):
        return point.load()
    near = difflib.get_close_matches(scheme, known(kind), 1)
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known(kind))}"
    raise ConfigError(f"no adapter among {kind} for `{scheme}`", hint=hint)
