"""SQLite by triggers: every write of any process and language, in order, each intermediate state, deletes included.

names                  what everything that we make in the source is called
shape                  a table as its triggers must know it
sql                    the triggers, as values; how replaced rows are seen
install                puts them in, finds what became of them, takes them out
changes                the change table as Arrow
load                   the rows that a stream begins with, chunk by chunk
position               where to resume
begin                  what a position is worth on this database, and what is to be read again
source                 the loop
wake, pace, prune      when to look, how much to read, when to delete
inspection, guarantee  what `doctor` and `status` say
"""

from __future__ import annotations

from collections.abc import Sequence

from headwater.config import SourceConfig
from headwater.protocols import Capture
from headwater.sources.trigger_sqlite.guarantee import guarantee
from headwater.sources.trigger_sqlite.inspection import Installed, installed, uninstall
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.source import TriggerSource
from headwater.sources.trigger_sqlite.state import Opener

__all__ = ["Installed", "TriggerSource", "guarantee", "installed", "open_source", "uninstall"]


def open_source(
    *,
    name: str,
    pipeline: str,
    config: SourceConfig,
    captures: Sequence[Capture],
    epoch: int,
    config_dir: str,
) -> TriggerSource:
    """See `plugins.SourceFactory`. Nothing is opened before `read` or `state`."""
    return TriggerSource(name, Names(pipeline), captures, epoch, Opener(config, config_dir))
