"""The embedded bus: streams in one SQLite file, and files beside it, on a local disk, for the processes of one host."""

from __future__ import annotations

from pathlib import Path

from headwater.buses.embedded.appending import Limits
from headwater.buses.embedded.backup import restore
from headwater.buses.embedded.bus import EmbeddedBus
from headwater.buses.embedded.segments import CODECS
from headwater.config import BusConfig
from headwater.errors import ConfigError

__all__ = ["EmbeddedBus", "bus_directory", "open_bus", "restore"]

_OPTIONS = {"codec"}


def open_bus(*, config: BusConfig, pipeline: str, directory: str, append: bool) -> EmbeddedBus:
    """`embedded:PATH`, relative to `directory`. Option `codec`: lz4 (default), zstd or none."""
    unknown = sorted(set(config.options) - _OPTIONS)
    if unknown:
        raise ConfigError(f"bus: unknown option `{unknown[0]}`", hint=f"options are: {', '.join(sorted(_OPTIONS))}")
    codec = config.options.get("codec", "lz4")
    if codec not in CODECS:
        raise ConfigError(f"bus: no codec `{codec}`", hint=f"codecs are: {', '.join(CODECS)}")
    limits = Limits(config.max_bytes, config.park_bytes)
    return EmbeddedBus(bus_directory(config, directory), append=append, limits=limits, codec=codec)


def bus_directory(config: BusConfig, directory: str) -> Path:
    """Where the bus of this configuration lies."""
    path = config.url.partition(":")[2]
    if not path:
        raise ConfigError("bus: `embedded:` needs a directory", hint="write `bus: embedded:data`")
    return Path(directory) / Path(path).expanduser()
