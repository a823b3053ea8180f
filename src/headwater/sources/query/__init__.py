"""Query capture: a stream is fed by reading its table again and again, in one of five ways.

bulk (no `cursor`), by timestamp and key, by timestamp without a key, by auto-increment id, and custom SQL. It works on
any dialect; what it cannot see is said by `guarantee` and `findings`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from headwater.config import SourceConfig
from headwater.dialects import Dialect
from headwater.errors import ConfigError
from headwater.protocols import Capture, Source
from headwater.sources.query.promises import findings, guarantee
from headwater.sources.query.source import QuerySource

__all__ = ["QuerySource", "findings", "guarantee", "open_source"]

_DIALECTS = {"sqlite": "headwater.dialects.sqlite", "postgresql": "headwater.dialects.postgres"}


def open_source(
    *, name: str, pipeline: str, config: SourceConfig, captures: Sequence[Capture], epoch: int, config_dir: str
) -> Source:
    """One stream each. A stream's `read_from` goes before its source's."""
    if len(captures) != 1:
        raise ConfigError(f"source `{name}`: query capture is of one stream, not of {len(captures)}")
    (capture,) = captures
    replica = config.read_from.get_secret_value() if config.read_from is not None else None
    read_from = capture.config.read_from or replica

    def dialect() -> Dialect:
        opened: Dialect = _opener(config.scheme)(config=config, directory=config_dir, read_from=read_from)
        return opened

    return QuerySource(name, capture, dialect, epoch)


def _opener(scheme: str) -> Callable[..., Dialect]:
    found: Callable[..., Dialect] = importlib.import_module(_DIALECTS[scheme]).open_dialect
    return found
