"""What the server keeps for a capture, for `status`: asked beside the running source, by another connection (F8)."""

from __future__ import annotations

from headwater.config import SourceConfig
from headwater.drivers.postgres import connect, execute
from headwater.protocols import Pending
from headwater.sources.log_postgres.names import names_of

_SLOT = """
SELECT coalesce(wal_status, 'unknown'), active,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
FROM pg_catalog.pg_replication_slots WHERE slot_name = %s
"""


def pending(*, name: str, pipeline: str, config: SourceConfig) -> Pending:
    """Raises `NotConnected`, and `SourceError` where the role may not look."""
    names = names_of(pipeline, name)
    with connect(config.url.get_secret_value(), application=names.application) as connection:
        found = execute(connection, _SLOT, [names.slot])
    if not found:
        return Pending(0, 0, f"there is no replication slot {names.slot}")
    ((status, active, behind, kept),) = found
    text = f"slot {names.slot}: {_size(behind)} of WAL to read, {_size(kept)} kept by the server"
    if status == "lost":
        text += f"; the slot is lost (max_slot_wal_keep_size): `headwater repair {name}`"
    elif status == "unreserved":
        text += "; the server is about to give that WAL up (max_slot_wal_keep_size)"
    elif not active:
        text += ", more with every write until the capture runs"
    return Pending(int(behind), int(kept), text)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MB"
