"""PostgreSQL's log (logical replication, plugin `pgoutput`): every committed change, in commit order, at the server's
own speed.

names                        what everything that we make in the source is called
tables, publication, slot    what the log can tell of a table; what makes the server keep and send it
position, begin              where to resume, and what a position is worth on this server
stream, units, spool         the connection; its frames cut into transactions; those too large for memory
changes, targets             decoded rows as Arrow, columns by name
sights, watch, identities    what the log does not tell of: seen in the catalog, or by what the log leaves out
log, session, source         one replication session; one `read`; the source
rows, pages, chunks, windows, snapshot, load
                             the rows that a stream begins with, and how they and the log fit together
state                        all rows at an exact place of the log
guarantee, inspection        what `doctor` and `status` say
"""

from __future__ import annotations

from collections.abc import Sequence

from headwater.config import SourceConfig
from headwater.dialects.postgres_options import options_of
from headwater.protocols import Capture
from headwater.sources.log_postgres.begin import Setting
from headwater.sources.log_postgres.guarantee import guarantee
from headwater.sources.log_postgres.inspection import pending
from headwater.sources.log_postgres.names import Names, names_of
from headwater.sources.log_postgres.source import LogSource
from headwater.sources.log_postgres.spool import directory_for

__all__ = ["LogSource", "Names", "guarantee", "open_source", "pending"]


def open_source(
    *,
    name: str,
    pipeline: str,
    config: SourceConfig,
    captures: Sequence[Capture],
    epoch: int,
    config_dir: str,
) -> LogSource:
    """See `plugins.SourceFactory`. Nothing is opened before `read` or `state`."""
    names = names_of(pipeline, name)
    options = options_of(config.options, names.source)
    setting = Setting(name, config.url.get_secret_value(), names, options, directory_for(config_dir))
    return LogSource(name, setting, captures, epoch)
