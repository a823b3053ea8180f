"""`headwater repair`: a capture that lost changes begins anew, and compares its tables with their streams."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from headwater.assembly import Assembly
from headwater.config import SourceConfig
from headwater.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Repaired:
    """`removed`: what was taken out of the source, in words."""

    capture: str
    streams: tuple[str, ...]
    removed: tuple[str, ...]


def repair(assembly: Assembly, capture: str) -> Repaired:
    """By the appender. Stopped at any instruction, it can be given again."""
    streams = assembly.capture_streams()
    if capture not in streams:
        near = difflib.get_close_matches(capture, streams, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"captures are {', '.join(streams)}"
        raise ConfigError(f"there is no capture `{capture}`", hint=hint)
    assembly.begin_anew(capture)
    source, pattern = capture.split("/")[:2]
    config = assembly.config.sources[source]
    remover = _REMOVERS.get(f"{config.scheme}+{pattern}")
    removed = remover(config, assembly.config.name, source) if remover is not None else []
    return Repaired(capture, streams[capture], tuple(removed))


def _drop_slot(config: SourceConfig, pipeline: str, source: str) -> list[str]:
    from headwater.sources.log_postgres.slot import drop_slot

    return drop_slot(config, pipeline, source)


_REMOVERS: dict[str, Callable[[SourceConfig, str, str], list[str]]] = {"postgresql+log": _drop_slot}
"""What a capture keeps its place by, in the source itself."""
