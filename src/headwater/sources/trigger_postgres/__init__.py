"""PostgreSQL by triggers: every write of any client, each intermediate state, without any privilege of replication.

names                  what everything that we make in the database is called
shape                  a table as its triggers must know it
sql                    tables, functions and triggers, as values
finding, install       finds what is there; puts it in, keeps it whole, takes it out
snapshots, look        which transactions are new, and in which order they come
pages, changes         the change table as Arrow
load                   the rows that a stream begins with, or is compared with
position               where to resume
begin                  what a position is worth on this database, and what is to be read again
tables, session        the captured tables, and one `read` of them
source                 the loop
connecting, wake, pace, prune   how it reaches the database, when it looks, how much it reads, when it deletes
state                  all rows at an exact place, beside the loop
inspection, guarantee  what `doctor` and `status` say
"""

from __future__ import annotations

from collections.abc import Sequence

from headwater.config import SourceConfig
from headwater.dialects.postgres_options import options_of
from headwater.protocols import Capture
from headwater.sources.trigger_postgres.connecting import Connector
from headwater.sources.trigger_postgres.guarantee import guarantee
from headwater.sources.trigger_postgres.inspection import Installed, installed, uninstall
from headwater.sources.trigger_postgres.install import remove
from headwater.sources.trigger_postgres.names import Names
from headwater.sources.trigger_postgres.source import TriggerSource

__all__ = ["Installed", "Names", "TriggerSource", "guarantee", "installed", "open_source", "remove", "uninstall"]


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
    names = Names(pipeline)
    options = options_of(config.options)
    connector = Connector(config.url.get_secret_value(), names.application)
    return TriggerSource(name, names, captures, epoch, connector, frozenset(options.as_text))
